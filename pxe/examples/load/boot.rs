//! How long firmware and boot server take: from a machine's first DISCOVER on the wire to the start of its kernel. The machine is a
//! QEMU with its serial line on standard output; init's first line there says how long ago the kernel started.

use std::{
    io::{BufRead, BufReader},
    os::fd::{AsRawFd, OwnedFd},
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

/// Firmware in an emulated machine on a busy builder takes its time.
const GUARD: Duration = Duration::from_secs(600);

/// Runs the command until the kernel has started; prints the seconds.
pub fn kernel_start(command: &[&str]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command")?;
    let wire = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .context("opening a packet socket")?;
    let mut child =
        Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().context("starting it")?;
    let lines = BufReader::new(child.stdout.take().context("its output")?);
    let (tell, told) = mpsc::channel();
    let discovers = tell.clone();
    std::thread::spawn(move || {
        let _ = discovers.send(("discover", first_discover(&wire), 0.0));
    });
    std::thread::spawn(move || {
        for line in lines.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Some(since) = kernel_age(&line) {
                let _ = tell.send(("kernel", Instant::now(), since));
                return;
            }
        }
    });
    let mut asked = None;
    let result = loop {
        match told.recv_timeout(GUARD) {
            Ok(("discover", at, _)) => asked = Some(at),
            Ok((_, at, since)) => {
                break asked.context("no DISCOVER was seen").map(|a| (at - a).as_secs_f64() - since);
            }
            Err(_) => break Err(anyhow!("the kernel did not start")),
        }
    };
    let _ = child.kill();
    let _ = child.wait();
    println!("{:.2}", result?);
    Ok(())
}

/// `labshift: [   1.234] init kernel 6.12 ...`: seconds since the kernel started.
fn kernel_age(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once("labshift: [")?;
    let (seconds, rest) = rest.split_once(']')?;
    rest.trim_start().starts_with("init kernel").then(|| seconds.trim().parse().ok()).flatten()
}

/// When the first frame from UDP port 68 to port 67 passes.
fn first_discover(wire: &OwnedFd) -> Instant {
    const ETHERNET: usize = 14;
    let mut frame = [0; 2048];
    loop {
        let Ok(length) = recv(wire.as_raw_fd(), &mut frame, MsgFlags::empty()) else { continue };
        let packet = frame.get(ETHERNET..length).unwrap_or_default();
        let header = packet.first().map_or(0, |b| usize::from(b & 15) * 4);
        let ports = packet.get(header..header + 4);
        if packet.get(9) == Some(&17) && ports == Some(&[0, 68, 0, 67]) {
            return Instant::now();
        }
    }
}
