//! What arrives before and while a machine boots.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use dhcproto::{Decodable, Decoder, v4::Message};
use jiff::Timestamp;
use labshift_initrd::{
    blocks::CHUNK,
    cmdline, dhcp, modules,
    peers::{
        circle::GROUP,
        request::{self, Asked},
    },
};
use labshift_lab::frame;
use labshift_model::{
    MacAddr,
    boot::{BootChoice, Directory, Machine, MachineKind, NoAnswer, SignedAnswer},
};
use labshift_pxe::{
    Config, Mode,
    dhcp::{
        answer::{Port, answer},
        lease::Leases,
        ledger,
    },
    doctor::pcap,
    tftp::packet::{Packet, Terms},
};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Every machine is known and boots the same image: more of the server can be reached than where strangers are ignored.
struct Everybody;

impl Directory for Everybody {
    fn machine(&self, _: MacAddr) -> Option<Machine> {
        Some(Machine { name: "lab-01".to_owned(), address: None, kind: MachineKind::Node })
    }

    fn boot(&self, _: MacAddr) -> BootChoice {
        let (name, generation) = ("lab".to_owned(), "ab".repeat(32));
        BootChoice::Image { name, generation, arguments: String::new() }
    }

    fn answer(&self, mac: MacAddr, _: &str, _: IpAddr) -> Result<SignedAnswer, NoAnswer> {
        Err(NoAnswer::Refused(format!("{mac} asked over DHCP")))
    }
}

/// A capture for the boot doctor: whatever it holds, every finding has evidence and a fix.
pub fn capture(bytes: &[u8]) {
    for finding in pcap::read(bytes).0.findings() {
        assert!(!finding.evidence.is_empty() && !finding.fix.is_empty() && !finding.problem.is_empty());
    }
}

/// One packet to our DHCP server, in each of its roles; whatever it replies can be read, and is no shorter than BOOTP.
pub fn dhcp_server(bytes: &[u8]) {
    let now = Timestamp::UNIX_EPOCH;
    for (mode, port) in [
        (Mode::Authoritative, Port::Dhcp),
        (Mode::Authoritative, Port::BootServer),
        (Mode::Proxy, Port::Dhcp),
        (Mode::Proxy, Port::BootServer),
    ] {
        let mut config = Config::new("lab0", SERVER, 24, "/nowhere".into(), "/nowhere".into());
        config.mode = mode;
        let mut leases = Leases::default();
        for source in ["0.0.0.0:68", "10.77.0.11:68", "10.99.0.1:67"] {
            let source: SocketAddrV4 = source.parse().expect("an address");
            for reply in answer(bytes, source, port, &config, &mut leases, &Everybody, now).replies {
                assert!(reply.bytes.len() >= 300, "shorter than BOOTP allows");
                Message::decode(&mut Decoder::new(&reply.bytes)).expect("a reply that can be read");
            }
        }
    }
}

/// One packet to PID 1's DHCP client, in each of its states.
pub fn dhcp_client(bytes: &[u8]) {
    let mut client = dhcp::Client::new(MAC, 0x1234_5678);
    client.hear(bytes);
    client.hear(bytes);
    client.packet(1);
    dhcp::Client::renewing(MAC, 0x1234_5678, Ipv4Addr::new(10, 77, 0, 11)).hear(bytes);
}

/// One packet to our TFTP server; a transfer's terms stay within memory.
pub fn tftp(bytes: &[u8]) {
    if let Ok(Packet::Read(request)) = Packet::of(bytes) {
        let terms = Terms::agree(&request, 100 << 20, 1468);
        assert!((8..=1468).contains(&terms.block) && terms.window >= 1);
        assert!(terms.block * terms.window <= 512 << 10, "{terms:?}");
        assert!(terms.accepted.len() <= request.options.len());
    }
}

/// The kernel command line, as PID 1 reads it.
pub fn kernel_cmdline(bytes: &[u8]) {
    drop(cmdline::parse(&String::from_utf8_lossy(bytes)));
}

/// What another machine asks a node for: whole chunks of one group inside the root, or a refusal that ends the connection or not.
pub fn peer_request(bytes: &[u8]) {
    const SIZE: u64 = 1000 * CHUNK + 4096;
    let Some(head) = request::head(bytes, &"ab".repeat(32), SIZE) else {
        assert!(bytes.len() < request::LONGEST);
        return;
    };
    assert!(head.length > 0 && head.length <= bytes.len());
    if let Ok(Asked::Chunks { first, count }) = head.asked {
        assert!((1..=GROUP).contains(&count) && first / GROUP == (first + count - 1) / GROUP);
        assert!(first + count <= SIZE.div_ceil(CHUNK));
    }
}

/// `modules.dep` and `modules.alias`, cut at the first empty line: no module comes twice, cycles end.
pub fn module_index(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (dep, alias) = text.split_once("\n\n").unwrap_or((&text, ""));
    let index = modules::Index::parse(dep, alias);
    for line in dep.lines().take(16) {
        let order = index.order(line.split(':').next().unwrap_or_default());
        let unique: std::collections::HashSet<_> = order.iter().collect();
        assert_eq!(unique.len(), order.len(), "{order:?}");
    }
    for line in alias.lines().take(16) {
        index.wanted(line.split_whitespace().nth(1).unwrap_or_default());
    }
}

/// The lease ledger after a crash: what is read can be written and read again.
pub fn lease_ledger(bytes: &[u8]) {
    let leases = ledger::parse(bytes);
    let text: String = leases.iter().map(ledger::line).collect();
    assert_eq!(ledger::parse(text.as_bytes()), leases);
}

/// A frame at a workstation that is off: only a magic packet names a machine to wake.
pub fn ethernet_frame(bytes: &[u8]) {
    frame::addresses(bytes);
    if let Some(mac) = frame::magic_packet(bytes) {
        let pattern = [&[0xff; 6][..], &mac.0.repeat(16)].concat();
        assert!(bytes.windows(pattern.len()).any(|w| w == pattern));
    }
}
