//! The real server with real worker processes, over a Unix socket.

use std::{
    error::Error,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use labshift_model::node::CudaDevice;
use labshift_rcuda::{
    client::{Client, ClientError, Shape},
    selftest::{self, VECTOR_ADD},
    wire::{
        endpoint::Endpoint,
        frame::{self, WireError},
        hello::{Hello, VERSION},
        message::{Bytes, Launch, Request},
    },
};
use tempfile::TempDir;

type Outcome = Result<(), Box<dyn Error>>;

const MIB: u64 = 1 << 20;
/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(120);
const SPIN: &str = include_str!("../kernels/spin.ptx");

/// A running server; killed at the end.
struct Server {
    child: Child,
    lines: Receiver<String>,
    endpoint: Endpoint,
    _folder: TempDir,
}

impl Server {
    fn start(arguments: &[&str]) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("rcuda.sock");
        let mut child = Command::new(env!("CARGO_BIN_EXE_rcuda-server"))
            .arg("--unix")
            .arg(&path)
            .args(["--software", "--software-memory", "24", "--memory-limit", "16"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let server = Self { child, lines, endpoint: Endpoint::Unix(path), _folder: folder };
        server.wait_for("listening on")?;
        Ok(server)
    }

    /// Waits for a line of the server's output.
    fn wait_for(&self, text: &str) -> Result<String, Box<dyn Error>> {
        loop {
            let line = self.lines.recv_timeout(HANG).map_err(|e| format!("waiting for {text:?}: {e}"))?;
            if line.contains(text) {
                return Ok(line);
            }
        }
    }

    fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.endpoint)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The `CUresult` of a refusal.
fn code<T>(outcome: Result<T, ClientError>) -> Option<u32> {
    match outcome {
        Err(ClientError::Refused(failure)) => Some(failure.code),
        _ => None,
    }
}

#[test]
fn a_client_computes() -> Outcome {
    let server = Server::start(&[])?;
    let mut client = server.connect()?;
    let device = &client.devices()[0];
    assert_eq!((device.software, device.memory_total, device.device_total), (true, 16 * MIB, 24 * MIB));
    assert_eq!(selftest::vector_add(&mut client, 0)?.wrong, None);
    assert_eq!(client.memory_info(0)?, (16 * MIB, 16 * MIB));

    let address = client.allocate(0, 4096)?;
    client.fill(0, address, 0xabcd, 2, 2048, 0)?;
    client.post_write(0, address, &[1, 2, 3], 0)?;
    client.copy(0, address + 100, address, 4, 0)?;
    let mut bytes = [0; 104];
    client.read(0, address, &mut bytes, 0)?;
    assert_eq!(
        (&bytes[..4], &bytes[96..]),
        (&[1, 2, 3, 0xab][..], &[0xcd, 0xab, 0xcd, 0xab, 1, 2, 3, 0xab][..])
    );

    let (stream, start, end) = (client.create_stream(0)?, client.create_event(0)?, client.create_event(0)?);
    client.record_event(0, start, stream)?;
    client.synchronize_stream(0, stream)?;
    client.record_event(0, end, stream)?;
    client.synchronize_event(0, end)?;
    assert!(client.elapsed(0, start, end)? >= 0.0);
    client.destroy_event(0, start)?;
    assert_eq!(code(client.elapsed(0, start, end)), Some(400));
    client.destroy_stream(0, stream)?;
    Ok(())
}

#[test]
fn large_copies_go_in_pieces() -> Outcome {
    let server = Server::start(&[])?;
    let mut client = server.connect()?;
    let data: Vec<u8> = (0..12 * MIB + 5).map(|i| ((i * 31) >> 3) as u8).collect();
    let address = client.allocate(0, data.len() as u64)?;
    client.write(0, address, &data, 0)?;
    let mut back = vec![0; data.len()];
    client.read(0, address, &mut back, 0)?;
    assert!(back == data);
    Ok(())
}

#[test]
fn the_quota_holds_on_every_path() -> Outcome {
    let server = Server::start(&[])?;
    let mut client = server.connect()?;
    assert_eq!(code(client.allocate(0, 16 * MIB + 1)), Some(2));
    assert_eq!(code(client.allocate(0, u64::MAX)), Some(2));
    let whole = client.allocate(0, 16 * MIB)?;
    assert_eq!(client.memory_info(0)?, (0, 16 * MIB));
    assert_eq!(code(client.allocate(0, 1)), Some(2));
    let variable = VECTOR_ADD.replace(".visible .entry", ".global .b8 buffer[1000000];\n.visible .entry");
    assert_eq!(code(client.load_module(0, &variable)), Some(2));
    client.free(0, whole)?;
    let module = client.load_module(0, &variable)?;
    assert!(client.memory_info(0)?.0 <= 15 * MIB + 48_576);
    // Part of the module: it can't be freed alone.
    assert_eq!(code(client.free(0, module.symbols[0].address)), Some(1));
    client.unload_module(&module)?;
    assert_eq!(client.memory_info(0)?.0, 16 * MIB);
    Ok(())
}

#[test]
fn clients_share_the_device_and_what_one_leaves_is_free() -> Outcome {
    let server = Server::start(&[])?;
    let (mut first, mut second) = (server.connect()?, server.connect()?);
    first.allocate(0, 16 * MIB)?;
    assert_eq!(second.memory_info(0)?, (8 * MIB, 16 * MIB));
    assert_eq!(code(second.allocate(0, 9 * MIB)), Some(2));
    second.allocate(0, 8 * MIB)?;
    second.refresh()?;
    assert_eq!((second.clients(), second.devices()[0].device_used), (2, 24 * MIB));
    drop(first);
    server.wait_for("client 0 has gone")?;
    second.allocate(0, 8 * MIB)?;
    Ok(())
}

#[test]
fn one_clients_handles_mean_nothing_to_another() -> Outcome {
    let server = Server::start(&[])?;
    let (mut first, mut second) = (server.connect()?, server.connect()?);
    let address = first.allocate(0, 4096)?;
    first.write(0, address, b"secret", 0)?;
    let (module, stream, event) =
        (first.load_module(0, VECTOR_ADD)?, first.create_stream(0)?, first.create_event(0)?);
    // The second has the same things, so that only the names differ.
    second.allocate(0, 4096)?;
    second.load_module(0, VECTOR_ADD)?;
    second.create_stream(0)?;
    second.create_event(0)?;

    assert_eq!(code(second.read(0, address, &mut [0; 6], 0)), Some(1));
    assert_eq!(code(second.write(0, address, b"x", 0)), Some(1));
    assert_eq!(code(second.free(0, address)), Some(1));
    assert_eq!(code(second.unload_module(&module)), Some(400));
    assert_eq!(code(second.synchronize_stream(0, stream)), Some(400));
    assert_eq!(code(second.synchronize_event(0, event)), Some(400));
    second.launch(&module, 0, Shape::line(1, 1), &[&[0; 8], &[0; 8], &[0; 8], &[0; 4]])?;
    assert_eq!(code(second.synchronize(0)), Some(400));

    let mut bytes = [0; 6];
    first.read(0, address, &mut bytes, 0)?;
    assert_eq!(&bytes, b"secret");
    Ok(())
}

#[test]
fn an_error_of_a_posted_request_surfaces_at_the_next_wait() -> Outcome {
    let server = Server::start(&[])?;
    let mut client = server.connect()?;
    let module = client.load_module(0, VECTOR_ADD)?;
    let mut launch = Launch {
        device: 0,
        module: module.handle,
        kernel: 0,
        grid: [1, 1, 1],
        block: [1, 1, 1],
        shared_bytes: 0,
        stream: 0,
        parameters: Bytes(vec![0; 7]),
    };
    client.post(&Request::Launch { launch: launch.clone() })?;
    let address = client.allocate(0, 4)?;
    let Err(ClientError::Refused(failure)) = client.synchronize(0) else { panic!("no error") };
    assert_eq!(failure.code, 1);
    assert_eq!(failure.message, "kernel vector_add takes 28 bytes of parameters, not 7");
    client.synchronize(0)?;

    // A fault in a kernel ends the session, as it ends a CUDA context.
    launch.parameters = Bytes([[0; 24].as_slice(), &1u32.to_le_bytes()].concat());
    client.post(&Request::Launch { launch })?;
    let Err(ClientError::Refused(failure)) = client.synchronize(0) else { panic!("no error") };
    assert_eq!(failure.code, 700);
    assert!(
        failure.message.starts_with("kernel vector_add, PTX line 34, block [0, 0, 0], thread [0, 0, 0]"),
        "{failure:?}"
    );
    assert_eq!(code(client.synchronize(0)), Some(700));
    assert_eq!(code(client.free(0, address)), Some(700));
    assert_eq!(selftest::vector_add(&mut server.connect()?, 0)?.wrong, None);
    Ok(())
}

#[test]
fn a_client_that_goes_in_the_middle_of_a_kernel_takes_its_worker_along() -> Outcome {
    let server = Server::start(&[])?;
    let mut connection = server.endpoint.connect()?;
    frame::send_hello(&mut connection, &Hello::ours())?;
    frame::receive_hello(&mut connection)?;
    server.wait_for("client 0 has worker")?;
    frame::send(&mut connection, &Request::LoadModule { device: 0, ptx: SPIN.into() })?;
    let reply = frame::receive(&mut connection)?;
    let labshift_rcuda::wire::message::Reply::Module { module, .. } = reply else { panic!("{reply:?}") };
    let launch = Launch {
        device: 0,
        module,
        kernel: 0,
        grid: [1, 1, 1],
        block: [1, 1, 1],
        shared_bytes: 0,
        stream: 0,
        parameters: Bytes(Vec::new()),
    };
    frame::send(&mut connection, &Request::Launch { launch })?;
    frame::send(&mut connection, &Request::Synchronize { device: 0 })?;
    drop(connection);
    server.wait_for("client 0 has gone")?;
    assert_eq!(server.connect()?.clients(), 1);
    Ok(())
}

#[test]
fn a_worker_is_confined() -> Outcome {
    let server = Server::start(&[])?;
    let client = server.connect()?;
    let line = server.wait_for("client 0 has worker")?;
    let pid = line.rsplit(' ').next().unwrap_or_default();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap_or_default()
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    if nix::unistd::Uid::effective().is_root() {
        assert_eq!(field("Uid:"), ["64000"; 4]);
        assert_eq!(field("Gid:"), ["64000"; 4]);
        assert_eq!(field("Groups:"), [""; 0]);
        assert_eq!(field("CapEff:"), ["0000000000000000"]);
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    assert!(limits.lines().any(|l| {
        l.split_whitespace().collect::<Vec<_>>().starts_with(&["Max", "core", "file", "size", "0"])
    }));
    drop(client);
    Ok(())
}

#[test]
fn workers_end_with_their_server() -> Outcome {
    let mut server = Server::start(&[])?;
    let mut client = server.connect()?;
    server.child.kill()?;
    server.child.wait()?;
    assert!(matches!(client.synchronize(0), Err(ClientError::Wire(_))));
    // The dead server's socket is in nobody's way.
    assert!(matches!(server.connect(), Err(ClientError::Connect { .. })));
    server.endpoint.listen()?;
    Ok(())
}

#[test]
fn other_versions_and_full_servers_say_so() -> Outcome {
    let server = Server::start(&["--clients", "1"])?;
    let mut connection = server.endpoint.connect()?;
    frame::send_hello(&mut connection, &Hello { version: VERSION + 1, ..Hello::ours() })?;
    let theirs = frame::receive_hello(&mut connection)?;
    assert_eq!(theirs, Hello::ours());
    assert_eq!(connection.read(&mut [0])?, 0);
    server.wait_for("client 0 has gone")?;

    let first = server.connect()?;
    let Err(ClientError::Wire(WireError::Hello(refusal))) = server.connect() else { panic!("two clients") };
    assert_eq!(
        refusal.to_string(),
        "the server refused the connection: it serves at most 1 at a time, and that many are connected"
    );
    drop(first);
    server.wait_for("client 0 has gone")?;
    server.connect()?;
    Ok(())
}

#[test]
fn garbage_ends_its_sender_only() -> Outcome {
    let server = Server::start(&[])?;
    let mut good = server.connect()?;
    for (greeting, garbage) in [
        (false, b"GET / HTTP/1.1\r\n\r\n".as_slice()),
        (true, &[0xff; 64]),
        (true, &[2, 0, 0, 0, 0xee, 0xee]),
        (true, &[100, 0, 0, 0, 1]),
    ] {
        let mut connection = server.endpoint.connect()?;
        if greeting {
            frame::send_hello(&mut connection, &Hello::ours())?;
            frame::receive_hello(&mut connection)?;
        }
        connection.write_all(garbage)?;
        if garbage.len() > 5 {
            // The worker ends by itself: what it had to say comes to an end.
            let ended = connection.read_to_end(&mut Vec::new());
            assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
        }
        drop(connection);
        server.wait_for("client 1 has gone")?;
    }
    assert_eq!(selftest::vector_add(&mut good, 0)?.wrong, None);
    Ok(())
}

#[test]
fn smi_lists_and_tests() -> Outcome {
    let server = Server::start(&[])?;
    let smi = |arguments: &[&str]| {
        let endpoint = server.endpoint.to_string();
        Command::new(env!("CARGO_BIN_EXE_rcuda-smi")).args(["--connect", &endpoint]).args(arguments).output()
    };
    let devices: Vec<CudaDevice> = serde_json::from_slice(&smi(&["--json"])?.stdout)?;
    assert_eq!((devices.len(), devices[0].software, devices[0].memory_total), (1, true, 24 * MIB));
    let table = String::from_utf8(smi(&[])?.stdout)?;
    assert!(table.contains("labshift software device"), "{table}");
    let tested = smi(&["--selftest"])?;
    assert!(tested.status.success());
    assert!(String::from_utf8(tested.stdout)?.contains("added 4096 pairs: all right"));

    let nobody =
        Command::new(env!("CARGO_BIN_EXE_rcuda-smi")).args(["--connect", "unix:/nowhere/s"]).output()?;
    assert_eq!(nobody.status.code(), Some(1));
    let text = String::from_utf8(nobody.stderr)?;
    assert!(text.contains("connecting to unix:/nowhere/s failed; is rcuda-server running?"), "{text}");
    Ok(())
}

#[test]
fn a_driver_that_is_named_must_work() -> Outcome {
    let run = |library: &str| {
        Command::new(env!("CARGO_BIN_EXE_rcuda-server"))
            .args(["--unix", "/nowhere/s", "--driver-library", library])
            .output()
    };
    for (library, message) in [
        (
            "/nowhere/libcuda.so.1",
            if cfg!(target_feature = "crt-static") { "statically" } else { "/nowhere/libcuda.so.1" },
        ),
        ("libcuda.so.1", "no absolute path"),
    ] {
        let output = run(library)?;
        let text = String::from_utf8(output.stderr)?;
        assert!(!output.status.success() && text.contains(message), "{text}");
    }
    Ok(())
}
