//! Builds captures: what would be on the wire between one machine and its servers.

use std::net::{Ipv4Addr, SocketAddrV4};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

/// The beginning of a program for x86-64 UEFI, and for Arm64.
pub const UEFI_PROGRAM: &[u8] = &program([0x64, 0x86]);
pub const ARM_PROGRAM: &[u8] = &program([0x64, 0xaa]);

const fn program(machine: [u8; 2]) -> [u8; 128] {
    let mut bytes = [0; 128];
    (bytes[0], bytes[1], bytes[60]) = (b'M', b'Z', 64);
    (bytes[64], bytes[65], bytes[68], bytes[69]) = (b'P', b'E', machine[0], machine[1]);
    bytes
}

pub fn oack(options: &[(&str, &str)]) -> Vec<u8> {
    let mut packet = vec![0, 6];
    for word in options.iter().flat_map(|(name, value)| [name, value]) {
        packet.extend(word.as_bytes());
        packet.push(0);
    }
    packet
}

pub fn data(block: u16, bytes: &[u8]) -> Vec<u8> {
    [&[0, 3][..], &block.to_be_bytes(), bytes].concat()
}

/// A server's reply.
#[derive(Clone)]
pub struct Dhcp {
    kind: u8,
    server: Ipv4Addr,
    address: Ipv4Addr,
    next: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
}

impl Dhcp {
    pub fn offer(server: &str, address: &str) -> Self {
        let [server, address] = [server, address].map(ip);
        let options = vec![(54, server.octets().to_vec())];
        Dhcp { kind: 2, server, address, next: Ipv4Addr::UNSPECIFIED, options }
    }

    pub fn file(mut self, next: &str, file: &str) -> Self {
        self.next = ip(next);
        self.options.push((67, file.as_bytes().to_vec()));
        self
    }

    /// Option 60, and 43 when it says where the file is.
    pub fn pxe(mut self, control: bool) -> Self {
        self.options.push((60, b"PXEClient".to_vec()));
        self.options.extend(control.then(|| (43, vec![6, 1, 8, 255])));
        self
    }

    pub fn ack(mut self) -> Self {
        self.kind = 5;
        self
    }

    pub fn nak(mut self, why: &str) -> Self {
        self.kind = 6;
        self.options.push((56, why.as_bytes().to_vec()));
        self
    }
}

/// Frames with their times.
pub struct Capture {
    frames: Vec<(f64, Vec<u8>)>,
    now: f64,
    xid: u32,
    /// The client's port for TFTP.
    pub port: u16,
    /// The capture is behind this relay, on the server's side.
    pub relay: Option<&'static str>,
}

impl Capture {
    pub fn new() -> Self {
        Capture { frames: vec![], now: 1_700_000_000.0, xid: 1, port: 2070, relay: None }
    }

    /// Time passes, and something else is heard at its end.
    pub fn wait(&mut self, seconds: f64) {
        self.now += seconds;
        self.udp(MAC, "10.0.0.5:5353", "224.0.0.251:5353", b"something else", 0);
    }

    fn client(&mut self, kind: u8, to: &str, ciaddr: Ipv4Addr, options: &[(u8, Vec<u8>)]) {
        let relay = self.relay.map_or(Ipv4Addr::UNSPECIFIED, ip);
        let packet =
            bootp(1, self.xid, [ciaddr, Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED, relay], kind, options);
        match self.relay {
            Some(relay) => self.udp([2, 9, 9, 9, 9, 9], &format!("{relay}:67"), "10.0.0.1:67", &packet, 0),
            None if ciaddr.is_unspecified() => self.udp(MAC, "0.0.0.0:68", to, &packet, 0),
            None => self.udp(MAC, &format!("{ciaddr}:4011"), to, &packet, 0),
        }
    }

    fn firmware(architecture: u16) -> Vec<(u8, Vec<u8>)> {
        let class = if architecture == 16 { "HTTPClient" } else { "PXEClient" };
        let class = format!("{class}:Arch:{architecture:05}:UNDI:003016");
        vec![(60, class.into_bytes()), (93, architecture.to_be_bytes().to_vec())]
    }

    pub fn discover(&mut self, architecture: u16) {
        self.xid += 1;
        self.client(1, "255.255.255.255:67", Ipv4Addr::UNSPECIFIED, &Self::firmware(architecture));
    }

    pub fn ipxe(&mut self) {
        self.xid += 1;
        let options = [Self::firmware(0), vec![(77, b"iPXE".to_vec())]].concat();
        self.client(1, "255.255.255.255:67", Ipv4Addr::UNSPECIFIED, &options);
    }

    pub fn request(&mut self, architecture: u16, server: &str, address: &str) {
        let mut options = Self::firmware(architecture);
        options.extend([(50, ip(address).octets().to_vec()), (54, ip(server).octets().to_vec())]);
        self.client(3, "255.255.255.255:67", Ipv4Addr::UNSPECIFIED, &options);
    }

    /// A REQUEST to port 4011.
    pub fn boot_service(&mut self, architecture: u16, address: &str, server: &str) {
        self.client(3, &format!("{server}:4011"), ip(address), &Self::firmware(architecture));
    }

    pub fn reply(&mut self, reply: &Dhcp) {
        let relay = self.relay.map_or(Ipv4Addr::UNSPECIFIED, ip);
        let addresses = [Ipv4Addr::UNSPECIFIED, reply.address, reply.next, relay];
        let packet = bootp(2, self.xid, addresses, reply.kind, &reply.options);
        let to = self.relay.map_or("255.255.255.255:68".to_owned(), |relay| format!("{relay}:67"));
        self.udp(card(reply.server), &format!("{}:67", reply.server), &to, &packet, 0);
    }

    pub fn rrq(&mut self, client: &str, server: &str, path: &str, options: &[(&str, &str)]) {
        let mut packet = vec![0, 1];
        for word in [path, "octet"].into_iter().chain(options.iter().flat_map(|(n, v)| [*n, *v])) {
            packet.extend(word.as_bytes());
            packet.push(0);
        }
        let from = format!("{client}:{}", self.port);
        self.udp(MAC, &from, &format!("{server}:69"), &packet, 0);
    }

    /// A datagram of a transfer, from or to the server's new port.
    pub fn tftp(&mut self, from: &str, to: &str, packet: &[u8]) {
        self.part(from, to, packet, 0);
    }

    /// The same as the first fragment of several.
    pub fn fragment(&mut self, from: &str, to: &str, packet: &[u8]) {
        self.part(from, to, packet, 0x2000);
    }

    fn part(&mut self, from: &str, to: &str, packet: &[u8], flags: u16) {
        let server = matches!(packet, [0, 3 | 6, ..]) || matches!(packet, [0, 5, ..] if from == "10.0.0.1");
        let own = format!("{from}:{}", if server { 30_000 } else { self.port });
        let peer = format!("{to}:{}", if server { self.port } else { 30_000 });
        let card = if server { card(ip(from)) } else { MAC };
        self.udp(card, &own, &peer, packet, flags);
    }

    /// An ICMP error about the client's last datagram.
    pub fn unreachable(&mut self, by: &str, code: u8) {
        self.error(by, code);
    }

    /// An ICMP error about the server's last datagram.
    pub fn unreachable_to_server(&mut self, by: &str, code: u8) {
        self.error(by, code);
    }

    fn error(&mut self, by: &str, code: u8) {
        let quoted = self.frames.last().expect("a frame").1[14..][..28].to_vec();
        let to: [u8; 4] = quoted[12..16].try_into().expect("an address");
        let body = [&[3, code, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
        self.ip(card(ip(by)), 1, ip(by), to.into(), &body, 0);
    }

    fn udp(&mut self, card: [u8; 6], from: &str, to: &str, payload: &[u8], flags: u16) {
        let [from, to]: [SocketAddrV4; 2] = [from, to].map(|a| a.parse().expect("an address"));
        let mut body = vec![];
        body.extend(from.port().to_be_bytes());
        body.extend(to.port().to_be_bytes());
        body.extend((payload.len() as u16 + 8).to_be_bytes());
        body.extend([0, 0]);
        body.extend(payload);
        self.ip(card, 17, *from.ip(), *to.ip(), &body, flags);
    }

    fn ip(&mut self, card: [u8; 6], protocol: u8, from: Ipv4Addr, to: Ipv4Addr, body: &[u8], flags: u16) {
        let mut frame = vec![0xff; 6];
        frame.extend(card);
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((body.len() as u16 + 20).to_be_bytes());
        frame.extend([0, 1]);
        frame.extend(flags.to_be_bytes());
        frame.extend([64, protocol, 0, 0]);
        frame.extend(from.octets());
        frame.extend(to.octets());
        frame.extend(body);
        // Ethernet's shortest frame.
        frame.resize(frame.len().max(60), 0);
        self.now += 0.001;
        self.frames.push((self.now, frame));
    }

    pub fn pcap(&self) -> Vec<u8> {
        let mut bytes = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([65_535u32, 1].map(u32::to_le_bytes).concat());
        for (at, frame) in &self.frames {
            let length = frame.len() as u32;
            let micros = (at.fract() * 1e6) as u32;
            bytes.extend([*at as u32, micros, length, length].map(u32::to_le_bytes).concat());
            bytes.extend(frame);
        }
        bytes
    }

    pub fn pcapng(&self) -> Vec<u8> {
        let block = |kind: u32, body: &[u8]| {
            let padded = body.len().next_multiple_of(4);
            let length = (12 + padded) as u32;
            let mut bytes = [kind, length].map(u32::to_be_bytes).concat();
            bytes.extend(body);
            bytes.resize(8 + padded, 0);
            bytes.extend(length.to_be_bytes());
            bytes
        };
        // A section in network order, its length unknown; an Ethernet interface with microseconds.
        let section = [&[0x1a, 0x2b, 0x3c, 0x4d, 0, 1, 0, 0][..], &[0xff; 8]].concat();
        let interface = [0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 6, 0, 0, 0, 0, 0, 0, 0];
        let mut bytes = [block(0x0a0d_0d0a, &section), block(1, &interface)].concat();
        for (at, frame) in &self.frames {
            let ticks = *at as u64 * 1_000_000 + (at.fract() * 1e6) as u64;
            let length = frame.len() as u32;
            let head = [0, (ticks >> 32) as u32, ticks as u32, length, length].map(u32::to_be_bytes).concat();
            bytes.extend(block(6, &[&head[..], frame].concat()));
        }
        bytes
    }
}

/// ciaddr, yiaddr, siaddr, giaddr.
fn bootp(op: u8, xid: u32, addresses: [Ipv4Addr; 4], kind: u8, options: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut packet = vec![op, 1, 6, 0];
    packet.extend(xid.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(addresses.iter().flat_map(Ipv4Addr::octets));
    packet.extend(MAC);
    packet.resize(236, 0);
    packet.extend([99, 130, 83, 99, 53, 1, kind]);
    for (code, value) in options {
        packet.extend([*code, value.len() as u8]);
        packet.extend(value);
    }
    packet.push(255);
    packet
}

fn card(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [2, 0, a, b, c, d]
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}
