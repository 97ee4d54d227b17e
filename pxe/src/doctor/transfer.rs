//! One TFTP transfer as a bystander sees it.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::tftp::packet::{Packet, ReadRequest};

/// Bytes of a file's beginning that tell what kind of program it is.
const HEAD: usize = 1024;

/// From the request on.
#[derive(Debug)]
pub(super) struct Transfer {
    /// The client's socket.
    pub client: SocketAddrV4,
    /// Port 69 of the server that was asked.
    pub server: SocketAddrV4,
    pub request: ReadRequest,
    /// When it was asked for.
    pub asked: Vec<f64>,
    /// First answer of the server, by its new port.
    pub answered: Option<(f64, SocketAddrV4)>,
    /// Highest block number sent so far, and how often the newest was sent.
    pub block: u16,
    pub again: u32,
    /// Bytes in the largest DATA packet, with its headers.
    pub largest: usize,
    /// DATA came in several IP fragments.
    pub fragmented: bool,
    /// Last block that the client acknowledged, once it has one.
    pub acked: Option<u16>,
    /// Code, text, and whether the client said it.
    pub error: Option<(f64, u16, String, bool)>,
    /// When, by whom, the ICMP code, and whether it was about the client's packet.
    pub unreachable: Option<(f64, Ipv4Addr, u8, bool)>,
    /// The beginning of the file.
    pub head: Vec<u8>,
    pub done: bool,
    block_size: usize,
}

impl Transfer {
    /// A read request.
    pub fn begin(seconds: f64, client: SocketAddrV4, server: SocketAddrV4, payload: &[u8]) -> Option<Self> {
        let Ok(Packet::Read(request)) = Packet::of(payload) else { return None };
        Some(Transfer {
            client,
            server,
            request,
            asked: vec![seconds],
            answered: None,
            block: 0,
            again: 0,
            largest: 0,
            fragmented: false,
            acked: None,
            error: None,
            unreachable: None,
            head: vec![],
            done: false,
            block_size: 512,
        })
    }

    /// Whether a datagram belongs to it.
    pub fn concerns(&self, from: SocketAddrV4, to: SocketAddrV4) -> bool {
        let server = |socket: SocketAddrV4| match self.answered {
            Some((_, port)) => socket == port || socket == self.server,
            None => socket.ip() == self.server.ip(),
        };
        (from == self.client && server(to)) || (to == self.client && server(from))
    }

    /// The same request from the same port: nothing was heard.
    pub fn asked_again(&mut self, seconds: f64, payload: &[u8]) -> bool {
        let same = matches!(Packet::of(payload), Ok(Packet::Read(request)) if request == self.request);
        if same && !self.done {
            self.asked.push(seconds);
        }
        same && !self.done
    }

    /// A datagram of it.
    pub fn take(&mut self, seconds: f64, from: SocketAddrV4, payload: &[u8], cut: bool) {
        let client = from == self.client;
        match payload {
            [0, 5, ..] => {
                if let Ok(Packet::Error(code, text)) = Packet::of(payload) {
                    self.error.get_or_insert((seconds, code, text, client));
                    self.done |= client;
                }
            }
            [0, 4, high, low, ..] if client => self.acked = Some(u16::from_be_bytes([*high, *low])),
            [0, 6, words @ ..] if !client => {
                self.answered.get_or_insert((seconds, from));
                let words: Vec<&[u8]> = words.split(|b| *b == 0).collect();
                let at = words.iter().position(|w| w.eq_ignore_ascii_case(b"blksize"));
                let value = at.and_then(|at| std::str::from_utf8(words.get(at + 1)?).ok()?.parse().ok());
                self.block_size = value.unwrap_or(512);
            }
            [0, 3, high, low, data @ ..] if !client => {
                self.answered.get_or_insert((seconds, from));
                let block = u16::from_be_bytes([*high, *low]);
                self.again = if block == self.block { self.again + 1 } else { 1 };
                self.block = block;
                // Four bytes of TFTP, eight of UDP, twenty of IP.
                self.largest = self
                    .largest
                    .max(self.block_size.min(data.len().max(if cut { self.block_size } else { 0 })) + 32);
                self.fragmented |= cut;
                if block == 1 && self.head.is_empty() {
                    self.head = data[..data.len().min(HEAD)].to_vec();
                }
                self.done |= !cut && data.len() < self.block_size;
            }
            _ => {}
        }
    }
}
