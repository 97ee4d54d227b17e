//! `make bench-boot`: from the kernel's start to a libvirt that answers, and the machine when nobody wants anything of it; labshift and a
//! Debian live system with the same packages in turn, in the same kind of machine (QEMU without KVM, 2 processors, 3 GiB).
//!
//! Both kernels are started by QEMU itself, and both fetch their root over HTTP from this program; times are the machine's own, since
//! its kernel started. What each machine said on its serial line stays in `target/bench/`.
//!
//! `bench-boot [RUNS]`, 3 when not given. `bench-boot labshift [RUNS]` boots ours only, `bench-boot peer [RUNS]` the peer, and `bench-boot room [RUNS]` measures only the room
//! that starts at once, for which this must run as root; ours follow the order that was recorded last.
//!
//! The first boot of ours records in which order it reads its root; the boots that count follow it. In each run stands one without the order
//! beside it: what the order is worth.

mod room;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use labshift_model::{
    manifest::Manifest,
    service::{Restart, Service},
};
use labshift_tests::{
    bare::{Bare, Behaviour, Server, Setup, answer, boot_order, image, ordered},
    root,
};

/// What the node's runtime says when it is ready.
const READY: &str = "labshift-runtime ready kvm ";

/// What one boot showed.
#[derive(Debug, Clone, Copy, Default)]
struct Boot {
    ready: f64,
    mounted: f64,
    fetched: f64,
    processes: f64,
    memory: f64,
    switches: f64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runs = words.last().and_then(|n| n.parse().ok()).unwrap_or(3).max(1);
    match words.first().map(String::as_str) {
        Some("room") => {
            last_order();
            measured(room::measure(runs))
        }
        Some("labshift") => {
            let order = last_order();
            for run in 1..=runs {
                println!("run {run} labshift {:?}", labshift(&order).0);
            }
            ExitCode::SUCCESS
        }
        Some("peer") => {
            for run in 1..=runs {
                println!("run {run} debian-live {:?}", debian_live(&kept("peer")));
            }
            ExitCode::SUCCESS
        }
        _ => boots(runs),
    }
}

/// The order that was recorded last; without one a boot records it.
fn last_order() -> String {
    let saved = std::fs::read_to_string(kept("boot-order")).unwrap_or_default();
    if saved.is_empty() { keep_order(labshift("").1) } else { saved }
}

fn keep_order(order: String) -> String {
    keep("boot-order", &order);
    order
}

/// A file of this benchmark.
fn kept(name: &str) -> PathBuf {
    root().join("target/bench").join(name)
}

fn measured(room: anyhow::Result<()>) -> ExitCode {
    match room {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench-boot: the room was not measured: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn boots(runs: usize) -> ExitCode {
    let peer = kept("peer");
    let has_peer = peer.join("filesystem.squashfs").exists();
    if !has_peer {
        eprintln!("bench-boot: no peer at {}; `make bench-boot` builds it (as root)", peer.display());
    }
    let (mut ours, mut theirs, mut unordered) = (vec![], vec![], vec![]);
    let mut order = String::new();
    for run in 1..=runs {
        let (boot, told) = labshift("");
        println!("run {run} labshift without an order {boot:?}");
        unordered.push(boot);
        if order.is_empty() {
            order = keep_order(told);
        }
        ours.push(labshift(&order).0);
        println!("run {run} labshift {:?}", ours.last());
        if has_peer {
            theirs.push(debian_live(&peer));
            println!("run {run} debian-live {:?}", theirs.last());
        }
    }
    let (ours, theirs, unordered) = (median(&ours), median(&theirs), median(&unordered));
    if has_peer {
        println!("figure peer-processes-idle {:.0} processes goal >= 0 met", theirs.processes);
        for (name, unit, field, share) in [
            ("ready", "s", (|b| b.ready) as fn(&Boot) -> f64, 0.2),
            ("fetched", "MiB", |b| b.fetched, 0.25),
            ("memory-idle", "MiB", |b| b.memory, 1.0 / 3.0),
            ("switches-idle", "/s", |b| b.switches, 1.0 / 3.0),
        ] {
            let peer = field(&theirs);
            println!("figure peer-{name} {peer:.1} {unit} goal >= 0 met");
            figure(name, field(&ours), unit, peer * share);
            figure(&format!("{name}-without-order"), field(&unordered), unit, peer * share);
        }
    }
    for (name, unit, with, without) in [
        ("ready-with-order", "s", ours.ready, unordered.ready),
        ("fetched-with-order", "MiB", ours.fetched, unordered.fetched),
    ] {
        println!("figure {name}-against {without:.1} {unit} goal >= 0 met");
        figure(name, with, unit, without);
    }
    for (name, boot) in [("", ours), ("-without-order", unordered)] {
        figure(&format!("init-to-root{name}"), boot.mounted, "s", 1.5);
        figure(&format!("processes-idle{name}"), boot.processes, "processes", 8.0);
    }
    measured(room::measure(runs))
}

fn figure(name: &str, value: f64, unit: &str, bound: f64) {
    let verdict = if value <= bound { "met" } else { "short" };
    println!("figure {name} {value:.1} {unit} goal <= {bound:.1} {verdict}");
}

fn median(boots: &[Boot]) -> Boot {
    let of = |field: fn(&Boot) -> f64| middle(boots.iter().map(field).collect());
    Boot {
        ready: of(|b| b.ready),
        mounted: of(|b| b.mounted),
        fetched: of(|b| b.fetched),
        processes: of(|b| b.processes),
        memory: of(|b| b.memory),
        switches: of(|b| b.switches),
    }
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

const MIB: f64 = 1024.0 * 1024.0;

/// One boot that follows this order; without one it tells what it has read.
fn labshift(order: &str) -> (Boot, String) {
    let script =
        std::fs::read_to_string(root().join("scripts/bench-idle")).expect("reading scripts/bench-idle");
    let bytes = std::fs::read(image("lab").join("manifest.json")).expect("reading the manifest");
    let lab = Manifest::from_bytes(&bytes).expect("a manifest");
    let own = lab.kernel_arguments.clone();
    let answer = answer(|manifest| {
        *manifest = lab;
        manifest.services.push(Service {
            name: "bench".into(),
            exec: vec!["/usr/bin/sh".into(), "-c".into(), script],
            after: vec!["labshift-runtime".into()],
            restart: Restart::Never,
            environment: vec![],
            user: None,
            // Up at once: then the rest of the root comes, and what is measured is the node as it stays.
            ready: Some("/run/bench".into()),
            listen: None,
            tty: None,
            limits: Default::default(),
        });
    });
    let root = image("lab").join("root.erofs");
    let answer = ordered(answer, order);
    let server =
        Server::start(Behaviour { answer: Some(Ok(answer)), root, channel: true, ..Default::default() });
    let arguments = format!("labshift.server={} {own}", server.url());
    let machine = Bare::start("bench-labshift", Setup { memory: 3072, arguments, ..Setup::default() });
    // The runtime says so when libvirt has answered and its channel is open.
    machine.says(READY);
    let fetched = server.sent() as f64 / MIB + boot_files(&image("lab"));
    let said = machine.says("BENCH end");
    keep("serial-labshift.log", &said);
    let idle = idle_of(&said);
    let told = if order.is_empty() { machine.says("the server may go away") } else { String::new() };
    let boot = Boot {
        ready: stamp(&said, READY),
        mounted: stamp(&said, "root-mounted") - stamp(&said, " init kernel"),
        fetched,
        ..idle
    };
    (boot, boot_order(&told).unwrap_or_default())
}

fn debian_live(peer: &Path) -> Boot {
    let files = vec![("/filesystem.squashfs".to_owned(), peer.join("filesystem.squashfs"))];
    let server = Server::start(Behaviour { files, ..Default::default() });
    let arguments = format!("boot=live fetch={}/filesystem.squashfs", server.url());
    let setup = Setup { memory: 3072, arguments, foreign: Some(peer.to_owned()), ..Setup::default() };
    let machine = Bare::start("bench-live", setup);
    machine.says("BENCH ready ");
    let fetched = server.sent() as f64 / MIB + boot_files(peer);
    // Read when all was said: the number may come after its word.
    let said = machine.says("BENCH end");
    let ready = said.split("BENCH ready ").nth(1).and_then(|t| t.split_whitespace().next()?.parse().ok());
    keep("serial-debian-live.log", &said);
    Boot { ready: ready.unwrap_or_default(), fetched, ..idle_of(&said) }
}

/// Keeps what a boot said. It may fail: the figures count.
fn keep(name: &str, said: &str) {
    let path = kept(name);
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    if let Err(why) = made.and_then(|()| std::fs::write(&path, said)) {
        eprintln!("bench-boot: {}: {why}", path.display());
    }
}

fn boot_files(directory: &Path) -> f64 {
    let size = |name| std::fs::metadata(directory.join(name)).map_or(0, |m| m.len());
    (size("vmlinuz") + size("initrd.img")) as f64 / MIB
}

/// The time in the last `[  12.345]` before a text.
fn stamp(said: &str, text: &str) -> f64 {
    let before = said.find(text).map_or("", |at| &said[..at]);
    let stamp = before.rsplit('[').next().and_then(|t| t.split(']').next());
    stamp.and_then(|t| t.trim().parse().ok()).unwrap_or_default()
}

fn idle_of(said: &str) -> Boot {
    let line = said.split("BENCH idle ").nth(1).unwrap_or_default();
    let numbers: Vec<f64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
    match numbers[..] {
        [processes, _all, memory, switches, ..] => Boot { processes, memory, switches, ..Boot::default() },
        _ => Boot::default(),
    }
}
