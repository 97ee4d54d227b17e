//! The boot's steps to the server: ports, a link, an address, an answer. Each ends with a timed stage or a [`Halt`].

use std::{
    path::Path,
    time::{Duration, Instant},
};

use labshift_model::boot::Stage;
use ureq::Agent;

use crate::{
    cmdline::Cmdline,
    dhcp::Lease,
    failure::{Code, Halt},
    journal::JOURNAL,
    lease,
    link::{self, Port},
    netlink,
    server::{self, Asked, Trust},
};

/// How long a driver may take to show its port.
const PORT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a cable may take to come up.
const LINK_PATIENCE: Duration = Duration::from_secs(30);
/// How long DHCP is asked: longer than a switch port with spanning tree stays deaf.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(75);

/// Finds the ports and sets them all up.
pub fn raise(cmdline: &Cmdline) -> Result<Vec<Port>, Halt> {
    let halt = |sentence: String| Halt::new(Stage::Link, Code::NoLink, sentence);
    let begin = Instant::now();
    let ports = loop {
        let ports = link::ports(Path::new("/"), cmdline.port);
        if !ports.is_empty() {
            break ports;
        }
        if begin.elapsed() > PORT_PATIENCE {
            return Err(halt("this machine has no network port that a driver of the image knows".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // Port 1 is the loopback.
    let indexes: Vec<u32> = [1].into_iter().chain(ports.iter().map(|p| p.index)).collect();
    netlink::set_up(&indexes).map_err(|e| halt(format!("{e:#}")))?;
    Ok(ports)
}

/// Waits until one of the ports has a link.
pub fn wait_for_link(ports: &[Port]) -> Result<(), Halt> {
    let sysroot = Path::new("/");
    let begin = Instant::now();
    loop {
        if let Some(port) = ports.iter().find(|p| link::has_link(sysroot, &p.name)) {
            let speed = link::speed(sysroot, &port.name).map(|s| format!(" at {s}")).unwrap_or_default();
            JOURNAL.reached(Stage::Link, &format!("{} {} ({}) up{speed}", port.name, port.mac, port.driver));
            return Ok(());
        }
        if begin.elapsed() > LINK_PATIENCE {
            let names: Vec<_> =
                ports.iter().map(|p| format!("{} {} ({})", p.name, p.mac, p.driver)).collect();
            let sentence = format!("no port has a link: {}", names.join(", "));
            return Err(Halt::new(Stage::Link, Code::NoLink, sentence));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Gets an address by DHCP and sets it.
pub fn get_address(ports: &[Port], cmdline: &Cmdline) -> Result<(Port, Lease), Halt> {
    let halt = |sentence: String| Halt::new(Stage::Address, Code::NoAddress, sentence);
    let sysroot = Path::new("/");
    let found = lease::acquire(
        ports,
        ADDRESS_PATIENCE,
        |port| link::has_link(sysroot, &port.name),
        |port, what| JOURNAL.say("address", &format!("{}: {what}", port.name)),
    );
    let (port, lease) = match found {
        Ok(Some((port, lease))) => (port.clone(), lease),
        Ok(None) => {
            return Err(halt(format!("no DHCP server answered in {} s", ADDRESS_PATIENCE.as_secs())));
        }
        Err(why) => return Err(halt(format!("{why:#}"))),
    };
    netlink::flush(port.index)
        .and_then(|()| netlink::configure(port.index, lease.address, lease.prefix, lease.gateway))
        .map_err(|why| halt(format!("{why:#}")))?;
    JOURNAL.reached(
        Stage::Address,
        &format!(
            "{}/{} on {} from {}, server {}",
            lease.address,
            lease.prefix,
            port.name,
            lease.server,
            server(cmdline, &lease).unwrap_or("unknown")
        ),
    );
    Ok((port, lease))
}

/// The server's base URL: the command line's, else the lease's.
pub fn server<'a>(cmdline: &'a Cmdline, lease: &'a Lease) -> Option<&'a str> {
    cmdline.server.as_deref().or(lease.boot_server.as_deref())
}

/// Nobody has named a server.
pub fn no_server(lease: &Lease) -> Halt {
    let sentence = format!(
        "the DHCP server {} names no labshift server (option 67) and the command line has no labshift.server=",
        lease.server
    );
    Halt::new(Stage::Address, Code::NoServer, sentence)
}

/// Asks the server, and then the further ones: the first that answers decides. What the first one said counts when none does.
pub fn ask_servers(
    agent: &Agent,
    server: String,
    cmdline: &Cmdline,
    port: &Port,
    trust: &Trust,
) -> Result<(String, Asked), Halt> {
    let first = match server::ask(agent, &server, port.mac, trust) {
        Ok(answer) => return Ok((server, answer)),
        Err(halt) if halt.code != Code::NoServer || cmdline.mirrors.is_empty() => return Err(halt),
        Err(halt) => halt,
    };
    for next in &cmdline.mirrors {
        JOURNAL.say("manifest", &format!("{}; asking {next}", first.sentence));
        match server::ask(agent, next, port.mac, trust) {
            Ok(answer) => return Ok((next.clone(), answer)),
            Err(why) => JOURNAL.say("manifest", &why.to_string()),
        }
    }
    Err(first)
}

/// A guest's network, if it has one.
pub fn of_guest(cmdline: &Cmdline) -> Option<(Port, Lease)> {
    let found = raise(cmdline).and_then(|ports| {
        wait_for_link(&ports)?;
        get_address(&ports, cmdline)
    });
    found.map_err(|why| JOURNAL.say("network", &format!("goes on without: {why}"))).ok()
}
