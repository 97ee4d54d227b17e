//! A room that starts at once: eight nodes fetch their root through one server whose cable carries 100 Mbit/s or 1 Gbit/s, with and without
//! peers. The nodes are init's own code (`initrd/examples/root.rs`), each in a network of its own behind the lab's switch; eight whole machines
//! would measure the two processors of this one instead of the cable.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result};
use labshift_lab::{switch::Switch, tap};
use labshift_model::paths;
use labshift_tests::{root, store};
use nix::sched::{CloneFlags, unshare};

use super::{MIB, figure, middle};

/// Nodes that start at once.
const NODES: u8 = 8;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PREFIX: u8 = 24;

/// Seconds until the last node had it, and MiB that the server has sent.
#[derive(Debug, Clone, Copy, Default)]
struct Room {
    read: f64,
    whole: f64,
    sent: f64,
}

/// Measures and prints; the recorded boot order is a file of this benchmark.
pub fn measure(runs: usize) -> Result<()> {
    let file = super::kept("boot-order");
    let size = fs::metadata(super::image("lab").join(paths::ROOT)).context("reading the root's size")?.len();
    for (name, mbit) in [("100mbit", 100), ("1gbit", 1000)] {
        let (mut alone, mut together) = (vec![], vec![]);
        for run in 1..=runs {
            alone.push(start(mbit, false, &file)?);
            together.push(start(mbit, true, &file)?);
            println!(
                "run {run} room at {mbit} Mbit/s without peers {:?}, with {:?}",
                alone.last(),
                together.last()
            );
        }
        let of = |rooms: &[Room], field: fn(&Room) -> f64| middle(rooms.iter().map(field).collect());
        for (what, field) in [("read", (|r| r.read) as fn(&Room) -> f64), ("whole", |r| r.whole)] {
            let without = of(&alone, field);
            println!("figure room-{name}-{what}-without-peers {without:.1} s goal >= 0 met");
            figure(&format!("room-{name}-{what}-with-peers"), of(&together, field), "s", without);
        }
        println!("figure room-{name}-sent-without-peers {:.1} MiB goal >= 0 met", of(&alone, |r| r.sent));
        figure(
            &format!("room-{name}-sent-with-peers"),
            of(&together, |r| r.sent),
            "MiB",
            2.0 * size as f64 / MIB,
        );
    }
    Ok(())
}

/// One node that runs.
struct Node {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.input.take());
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Node {
    fn word(&mut self) -> Result<()> {
        let input = self.input.as_mut().context("its input is open")?;
        input.write_all(b"\n").context("telling a node to go on")
    }

    /// Waits for a line that begins with a word; returns its numbers.
    fn says(&mut self, word: &str) -> Result<Vec<f64>> {
        let mut line = String::new();
        loop {
            line.clear();
            anyhow::ensure!(self.output.read_line(&mut line)? > 0, "a program ended before it said {word:?}");
            if let Some(rest) = line.strip_prefix(word) {
                return Ok(rest.split_whitespace().map_while(|n| n.parse().ok()).collect());
            }
        }
    }
}

fn start(mbit: u32, peers: bool, order: &Path) -> Result<Room> {
    let switch = Arc::new(Switch::default());
    let generation = fs::read_to_string(store().join("channels/lab")).context("reading the channel")?;
    let generation = generation.trim().to_owned();
    let images = format!("{}/lab/{generation}", paths::IMAGES);
    let state = tempfile::tempdir().context("making a directory")?;
    let mut serve = Command::new(example("serve"));
    serve.args(["lab0", &SERVER.to_string()]).arg(store()).arg(state.path()).args(["lab", &generation]);
    let mut server = plug(&switch, SERVER, mbit, serve)?;
    server.says("serving")?;
    let address = |n: u8| Ipv4Addr::new(10, 77, 0, 10 + n);
    let mut nodes = vec![];
    for n in 1..=NODES {
        let mut node = Command::new(example("root"));
        node.arg(super::image("lab").join(paths::MANIFEST)).arg(order);
        node.args([
            format!("http://{SERVER}:{}{images}/{}", paths::HTTP_PORT, paths::ROOT),
            address(n).to_string(),
        ]);
        if peers {
            node.args((1..=NODES).filter(|other| *other != n).map(|other| address(other).to_string()));
        }
        // The room's cables carry 1 Gbit/s each.
        nodes.push(plug(&switch, address(n), 1000, node)?);
    }
    // What the server says must not fill the pipe.
    std::thread::scope(|scope| {
        let Node { child, output, input } = &mut server;
        scope.spawn(move || drop(std::io::copy(output, &mut std::io::sink())));
        let room = run(&mut nodes);
        drop(nodes);
        drop(input.take());
        drop(child.kill());
        room
    })
}

fn run(nodes: &mut [Node]) -> Result<Room> {
    let mut room = Room::default();
    for (what, last) in [("read", &mut room.read), ("whole", &mut room.whole)] {
        nodes.iter_mut().try_for_each(Node::word)?;
        room.sent = 0.0;
        for node in &mut *nodes {
            let numbers = node.says(what)?;
            let [seconds, from_server, ..] = numbers[..] else { anyhow::bail!("no numbers: {numbers:?}") };
            *last = last.max(seconds);
            room.sent += from_server / MIB;
        }
    }
    Ok(room)
}

/// Starts a program in a network of its own, behind a port of the switch.
fn plug(switch: &Arc<Switch>, address: Ipv4Addr, mbit: u32, mut command: Command) -> Result<Node> {
    let (port, frames, cable) = switch.plug();
    cable.set_rate(mbit);
    let switch = switch.clone();
    let plugging = move || -> Result<Node> {
        // Of this thread and what it starts.
        unshare(CloneFlags::CLONE_NEWNET).context("making a network (run as root)")?;
        let mut tap = tap::create("lab0").context("making a tap (/dev/net/tun)")?;
        tap::configure("lab0", address, PREFIX)?;
        let mut out: File = tap.try_clone().context("using a tap")?;
        std::thread::spawn(move || {
            while let Ok(frame) = frames.recv() {
                cable.leave(frame.bytes.len());
                drop(out.write_all(&frame.bytes));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = tap.read(&mut buffer) {
                switch.forward(port, &buffer[..length]);
            }
        });
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting a node")?;
        let (input, output) = (child.stdin.take(), child.stdout.take().context("its output")?);
        Ok(Node { child, input, output: BufReader::new(output) })
    };
    let plugged = std::thread::spawn(plugging).join();
    plugged.unwrap_or_else(|_| Err(anyhow::anyhow!("plugging a node in failed")))
}

fn example(name: &str) -> PathBuf {
    root().join("target/release/examples").join(name)
}
