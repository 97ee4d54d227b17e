//! The driver device, from `dlopen` to results, in real worker processes. In place of NVIDIA's library stands one
//! of ours with the same interface; see `stand_in.rs`.
#![cfg(not(target_feature = "crt-static"))]

use std::{
    error::Error,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use labshift_rcuda::{
    client::{Client, ClientError, Shape},
    selftest::{self, VECTOR_ADD},
    wire::{
        endpoint::Endpoint,
        message::{Reply, Request},
    },
};

/// The stand-in's path. `cargo test` builds it with the tests; only a run of this test alone may have to.
fn library() -> Result<PathBuf, Box<dyn Error>> {
    let server = PathBuf::from(env!("CARGO_BIN_EXE_rcuda-server"));
    let library = server.with_file_name("examples").join("libstand_in_driver.so");
    if !library.exists() {
        let mut command = Command::new(env!("CARGO"));
        command.args([
            "build",
            "--offline",
            "--quiet",
            "-p",
            "labshift-rcuda",
            "--example",
            "stand-in-driver",
        ]);
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        assert!(command.status()?.success());
    }
    Ok(library)
}

#[test]
fn the_driver_device_computes() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("s");
    let mut server = Command::new(env!("CARGO_BIN_EXE_rcuda-server"))
        // A worker with a user of its own may not look into this folder.
        .args(["--memory-limit", "16", "--worker-uid", "0", "--driver-library"])
        .arg(library()?)
        .arg("--unix")
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(server.stdout.take().ok_or("no output")?);
    let mut lines = output.lines();
    assert!(lines.next().ok_or("the server ended")??.contains("stand-in device (32 MiB)"));
    lines.next().ok_or("the server ended")??;
    let outcome = converse(&Endpoint::Unix(path));
    server.kill()?;
    server.wait()?;
    outcome
}

fn converse(endpoint: &Endpoint) -> Result<(), Box<dyn Error>> {
    let mut client = Client::connect(endpoint)?;
    let device = &client.devices()[0];
    assert_eq!(
        (device.name.as_str(), device.software, device.capability),
        ("stand-in device", false, [7, 0])
    );
    assert_eq!((device.memory_total, device.device_total, device.uuid), (16 << 20, 32 << 20, [3; 16]));
    assert_eq!(selftest::vector_add(&mut client, 0)?.wrong, None);

    let address = client.allocate(0, 4096)?;
    client.refresh()?;
    assert_eq!(client.devices()[0].device_used, 4096);
    for (value, width) in [(0x11, 1), (0x2222, 2), (0x3333_3333, 4)] {
        client.fill(0, address + u64::from(width) * 16, value, width, 4, 0)?;
    }
    client.copy(0, address, address + 16, 4, 0)?;
    let mut bytes = [0; 80];
    client.read(0, address, &mut bytes, 0)?;
    assert_eq!(
        (&bytes[..5], &bytes[32..40], &bytes[64..]),
        (&[0x11, 0x11, 0x11, 0x11, 0][..], &[0x22; 8][..], &[0x33; 16][..])
    );

    let module = client.load_module(0, include_str!("../../kernels/histogram.ptx"))?;
    let counters = module.symbols.iter().find(|s| s.name == "counters").ok_or("no counters")?;
    assert_eq!(counters.bytes, 1024);
    client.write(0, address, &[9; 300], 0)?;
    client.launch(&module, 0, Shape::line(2, 256), &[&address.to_le_bytes(), &300u32.to_le_bytes()])?;
    let mut count = [0; 4];
    client.read(0, counters.address + 36, &mut count, 0)?;
    assert_eq!(u32::from_le_bytes(count), 300);
    client.unload_module(&module)?;

    let (stream, start, end) = (client.create_stream(0)?, client.create_event(0)?, client.create_event(0)?);
    client.record_event(0, start, stream)?;
    client.record_event(0, end, stream)?;
    client.synchronize_event(0, end)?;
    client.synchronize_stream(0, stream)?;
    assert!(client.elapsed(0, start, end)? >= 0.0);
    assert_eq!(client.call(&Request::QueryStream { device: 0, stream })?, Reply::Ready { ready: false });
    client.destroy_event(0, start)?;
    client.destroy_stream(0, stream)?;
    client.free(0, address)?;

    let Err(ClientError::Refused(failure)) =
        client.load_module(0, &VECTOR_ADD.replace("add.f32", "nonsense"))
    else {
        panic!("nonsense was loaded")
    };
    assert_eq!(failure.message, "loading a module: the driver says CUDA_ERROR_INVALID_PTX");
    let module = client.load_module(0, VECTOR_ADD)?;
    client.launch(&module, 0, Shape::line(1, 1), &[&[0; 8], &[0; 8], &[0; 8], &1u32.to_le_bytes()])?;
    let Err(ClientError::Refused(failure)) = client.synchronize(0) else { panic!("no fault") };
    assert_eq!(
        (failure.code, failure.message.as_str()),
        (700, "launching a kernel: the driver says CUDA_ERROR_ILLEGAL_ADDRESS")
    );
    Ok(())
}
