//! Clients for measuring boot servers: the same load for labshift and its peers. `scripts/bench-boot-server` runs it.
//!
//! ```text
//! load publish STORE BYTES              makes image `bench` with one file; prints its path under the store
//! load macs COUNT                       prints the cards of batch guests work-1, work-2, ...
//! load tftp SERVER PATH BLOCK WINDOW CLIENTS
//! load http SERVER:PORT PATH CLIENTS [TIMES]   both print bytes and seconds of all clients together
//! load boot COMMAND ...                 seconds from a machine's first DISCOVER to the start of its kernel
//! load avalanche SERVER:PORT OWN COUNT  seconds until the last and the median machine has its lease, NAKs, repeated questions
//! ```

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use labshift_model::{
    MacAddr,
    manifest::{FileEntry, ImageKind, Manifest, Root, SCHEMA, generation_of, sign},
};

mod boot;
mod dhcp;
mod http;
mod tftp;

/// A client that hears nothing for so long gives up, and the measurement with it.
const SILENCE: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["publish", store, bytes] => println!("{}", publish(Path::new(store), bytes.parse()?)?),
        ["macs", count] => {
            for n in 1..=count.parse::<usize>()? {
                println!("{}", MacAddr::for_guest(&format!("work-{n}")));
            }
        }
        ["tftp", server, path, block, window, clients] => {
            let (server, block, window) = (address(server)?, block.parse()?, window.parse()?);
            together(clients.parse()?, || tftp::fetch(server, path, block, window))?;
        }
        ["http", server, path, clients, times @ ..] if times.len() < 2 => {
            let (server, times) = (address(server)?, times.first().map_or(Ok(1), |t| t.parse::<u32>())?);
            together(clients.parse()?, || (0..times).map(|_| http::fetch(server, path)).sum())?;
        }
        ["boot", command @ ..] => boot::kernel_start(command)?,
        ["avalanche", server, own, count] => {
            dhcp::avalanche(address(server)?, own.parse().context("reading OWN")?, count.parse()?)?;
        }
        _ => bail!("usage: see the head of pxe/examples/load/main.rs"),
    }
    Ok(())
}

fn address(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("reading the address {text}"))
}

/// Runs so many clients at once; each must get as much as the others.
fn together(clients: usize, fetch: impl Fn() -> Result<u64> + Sync) -> Result<()> {
    let started = Instant::now();
    let sizes = std::thread::scope(|scope| {
        let running: Vec<_> = (0..clients).map(|_| scope.spawn(&fetch)).collect();
        running.into_iter().map(|one| one.join().expect("a client")).collect::<Result<Vec<u64>>>()
    })?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(
        sizes.iter().all(|size| *size == sizes[0] && *size > 0),
        "clients got different sizes: {sizes:?}"
    );
    println!("{} {seconds:.3}", sizes.iter().sum::<u64>());
    Ok(())
}

/// One file of so many bytes, signed like any image.
fn publish(store: &Path, bytes: usize) -> Result<String> {
    let content: Vec<u8> = (0..bytes as u64).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let entry = FileEntry { size: bytes as u64, sha256: generation_of(&content) };
    let manifest = Manifest {
        schema: SCHEMA,
        name: "bench".to_owned(),
        kind: ImageKind::Host,
        architecture: "amd64".to_owned(),
        kernel_release: "6.12".to_owned(),
        kernel_arguments: String::new(),
        root: Root { root_hash: "ab".repeat(32), salt: "00".into(), data_size: 4096, block_size: 4096 },
        files: [("vmlinuz".to_owned(), entry)].into(),
        lock: "22".to_owned(),
        services: vec![],
        modules: vec![],
        ports: vec![],
        valid_days: None,
        disk: None,
    };
    let text = manifest.to_bytes();
    let path = format!("images/bench/{}", generation_of(&text));
    let directory = store.join(&path);
    std::fs::create_dir_all(&directory).context("making the generation")?;
    let signature =
        sign(&text, &ed25519_dalek::SigningKey::from_bytes(&[7; 32]), jiff::Timestamp::now(), None);
    std::fs::write(directory.join("manifest.sig"), serde_json::to_vec(&signature)?)?;
    std::fs::write(directory.join("manifest.json"), text)?;
    std::fs::write(directory.join("vmlinuz"), content).context("writing the file")?;
    Ok(format!("{path}/vmlinuz"))
}
