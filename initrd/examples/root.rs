//! A node's root without the node: fetches as init does, in the recorded order, with peers or without, and says when it had what. For
//! `make bench-boot`, which starts a room of them.
//!
//! `root MANIFEST ORDER URL OWN-ADDRESS [PEER ...]`: the manifest's and the order's files, where the root is, and the machines that the server names.
//! It begins when its input says so, and gives to others until its input ends. It prints
//!
//! ```text
//! read SECONDS BYTES-FROM-SERVER BYTES-FROM-PEERS       everything of the order was read, in its order, as a boot reads it
//! whole SECONDS BYTES-FROM-SERVER BYTES-FROM-PEERS      the rest is here, too; after a second line of input
//! ```

use std::{
    io::BufRead,
    net::Ipv4Addr,
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use labshift_initrd::{
    blocks::{Blocks, CHUNK, Policy},
    peers::Swarm,
    server,
    source::Source,
    verity::{BLOCK, Shape},
};
use labshift_model::{boot_order::BootOrder, manifest::Manifest, paths};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [manifest, order, url, own, named @ ..] = &words[..] else {
        bail!("usage: root MANIFEST ORDER URL OWN-ADDRESS [PEER ...]");
    };
    let manifest = Manifest::from_bytes(&std::fs::read(manifest).context("reading the manifest")?)?;
    let order = BootOrder::parse(std::fs::read_to_string(order).context("reading the order")?.trim())?;
    let own: Ipv4Addr = own.parse().context("reading the own address")?;
    let named: Vec<Ipv4Addr> = named
        .iter()
        .map(|peer| peer.parse())
        .collect::<Result<_, _>>()
        .context("reading a peer's address")?;
    let shape = Shape::of(&manifest.root)?;
    let source = Source {
        agent: server::agent(),
        urls: vec![url.clone()],
        current: AtomicUsize::new(0),
        pause: Duration::from_secs(1),
        workers: 1,
    };

    let mut input = std::io::stdin().lock().lines();
    input.next().context("waiting for the word to begin")??;
    let begin = Instant::now();
    let blocks = Blocks::open(source, shape.clone(), Policy::Full, None)?;
    blocks.follow(&order);
    let blocks = match named.is_empty() {
        true => Arc::new(blocks),
        false => blocks.among(Swarm::new(own, &named, paths::PEER_PORT, shape.root_hash())),
    };
    for _ in 0..2 {
        let blocks = blocks.clone();
        std::thread::spawn(move || blocks.prefetch());
    }
    let tell = |what: &str| {
        let (all, peers) = (blocks.fetched(), blocks.from_peers());
        println!("{what} {:.3} {} {peers}", begin.elapsed().as_secs_f64(), all - peers);
    };
    let mut buffer = vec![0; CHUNK as usize];
    for (number, (first, count)) in order.ranges().iter().enumerate() {
        if number == order.until_up() {
            blocks.note_up();
        }
        let (mut at, end) = (first * BLOCK as u64, ((first + count) * BLOCK as u64).min(blocks.data_size()));
        while at < end {
            let part = CHUNK.min(end - at) as usize;
            blocks.read(at, &mut buffer[..part]).context("reading")?;
            at += part as u64;
        }
    }
    tell("read");
    if input.next().is_some_and(|line| line.is_ok()) {
        if !blocks.fetch_rest(Duration::ZERO) {
            bail!("the rest did not come: {:?}", blocks.fault());
        }
        tell("whole");
    }
    input.for_each(drop);
    Ok(())
}
