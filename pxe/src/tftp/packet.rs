//! TFTP packets (RFC 1350) and their options (RFC 2347, 2348, 2349, 7440).

/// A client's packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// RRQ.
    Read(ReadRequest),
    /// WRQ: we take nothing.
    Write,
    /// ACK of a block number.
    Ack(u16),
    /// ERROR with code and message.
    Error(u16, String),
}

/// A read request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest {
    /// Path as sent.
    pub path: String,
    /// Options as sent, names in lower case, the first of each name.
    pub options: Vec<(String, String)>,
}

/// Why a packet gets an ERROR, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Not TFTP, or nothing that a client sends: no answer.
    Nonsense,
    /// A request that can't be served, with the reason.
    Refused(&'static str),
}

/// ERROR codes.
pub mod code {
    /// See the message.
    pub const UNDEFINED: u16 = 0;
    /// File not found.
    pub const NOT_FOUND: u16 = 1;
    /// Access violation.
    pub const ACCESS: u16 = 2;
    /// Illegal operation.
    pub const ILLEGAL: u16 = 4;
    /// The client does not like our OACK.
    pub const OPTIONS: u16 = 8;
}

const RRQ: u16 = 1;
const WRQ: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;

/// Longest request worth reading: a path and a dozen options.
pub const MAX_REQUEST: usize = 1024;

impl Packet {
    /// Reads a packet.
    pub fn of(bytes: &[u8]) -> Result<Self, Fault> {
        let (opcode, rest) = bytes.split_first_chunk::<2>().ok_or(Fault::Nonsense)?;
        match u16::from_be_bytes(*opcode) {
            RRQ => ReadRequest::of(rest).map(Packet::Read),
            WRQ => Ok(Packet::Write),
            ACK => {
                let number = rest.first_chunk::<2>().ok_or(Fault::Nonsense)?;
                Ok(Packet::Ack(u16::from_be_bytes(*number)))
            }
            ERROR => {
                let (number, text) = rest.split_first_chunk::<2>().ok_or(Fault::Nonsense)?;
                let text = text.split(|b| *b == 0).next().unwrap_or_default();
                let text = String::from_utf8_lossy(&text[..text.len().min(200)]);
                Ok(Packet::Error(u16::from_be_bytes(*number), text.escape_debug().to_string()))
            }
            _ => Err(Fault::Nonsense),
        }
    }
}

impl ReadRequest {
    fn of(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.len() > MAX_REQUEST {
            return Err(Fault::Refused("request is too long"));
        }
        let body = bytes.strip_suffix(&[0]).ok_or(Fault::Refused("request does not end in NUL"))?;
        let text = std::str::from_utf8(body).map_err(|_| Fault::Refused("request is not text"))?;
        let mut words = text.split('\0');
        let path = words.next().filter(|p| !p.is_empty()).ok_or(Fault::Refused("request names no file"))?;
        match words.next().map(str::to_ascii_lowercase).as_deref() {
            Some("octet") => {}
            Some("netascii") => return Err(Fault::Refused("mode netascii would change the file; use octet")),
            _ => return Err(Fault::Refused("mode must be octet")),
        }
        let mut options: Vec<(String, String)> = vec![];
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            let name = name.to_ascii_lowercase();
            if options.iter().all(|(known, _)| *known != name) {
                options.push((name, value.to_owned()));
            }
        }
        Ok(ReadRequest { path: path.to_owned(), options })
    }
}

/// DATA, behind what `packets` holds already.
pub fn data_into(packets: &mut Vec<u8>, block: u16, bytes: &[u8]) {
    packets.extend_from_slice(&DATA.to_be_bytes());
    packets.extend_from_slice(&block.to_be_bytes());
    packets.extend_from_slice(bytes);
}

/// OACK.
pub fn oack(options: &[(String, String)]) -> Vec<u8> {
    let mut packet = OACK.to_be_bytes().to_vec();
    for word in options.iter().flat_map(|(name, value)| [name, value]) {
        packet.extend(word.as_bytes());
        packet.push(0);
    }
    packet
}

/// ERROR.
pub fn error(code: u16, message: &str) -> Vec<u8> {
    let mut packet = ERROR.to_be_bytes().to_vec();
    packet.extend(code.to_be_bytes());
    packet.extend(message.as_bytes());
    packet.push(0);
    packet
}

/// What was agreed on for one transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Bytes in a block.
    pub block: usize,
    /// Blocks sent for one ACK.
    pub window: usize,
    /// Seconds before something is sent again, when the client asked for a time.
    pub timeout: Option<u8>,
    /// Options to acknowledge: those asked for and understood, and nothing else.
    pub accepted: Vec<(String, String)>,
}

/// Largest window: beyond it the client's receive buffer loses more than the window gains.
const MAX_WINDOW: usize = 64;
/// Most bytes in flight: bounds the memory of a transfer.
const MAX_FLIGHT: usize = 512 * 1024;

impl Terms {
    /// Agrees with a request. `largest` is the block that fits the link's MTU.
    pub fn agree(request: &ReadRequest, size: u64, largest: usize) -> Self {
        let mut terms = Terms { block: 512, window: 1, timeout: None, accepted: vec![] };
        for (name, value) in &request.options {
            let Ok(number) = value.parse::<u64>() else { continue };
            let granted = match (name.as_str(), number) {
                ("blksize", 8..=65464) => {
                    terms.block = (number as usize).min(largest);
                    terms.block as u64
                }
                ("tsize", _) => size,
                ("timeout", 1..=255) => {
                    terms.timeout = Some(number as u8);
                    number
                }
                ("windowsize", 1..=65535) => {
                    terms.window = (number as usize).min(MAX_WINDOW);
                    terms.window as u64
                }
                _ => continue,
            };
            terms.accepted.push((name.clone(), granted.to_string()));
        }
        let fits = (MAX_FLIGHT / terms.block).max(1);
        if terms.window > fits {
            terms.window = fits;
            for (_, value) in terms.accepted.iter_mut().filter(|(name, _)| name == "windowsize") {
                *value = fits.to_string();
            }
        }
        terms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(words: &[&str]) -> Vec<u8> {
        let mut packet = RRQ.to_be_bytes().to_vec();
        for word in words {
            packet.extend(word.as_bytes());
            packet.push(0);
        }
        packet
    }

    fn read(words: &[&str]) -> ReadRequest {
        match Packet::of(&request(words)) {
            Ok(Packet::Read(read)) => read,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn case_18_only_options_that_were_asked_for_are_acknowledged() {
        for (words, wanted) in [
            (&["f", "octet"][..], &[][..]),
            (&["f", "OCTET", "tsize", "0"], &[("tsize", "5000")]),
            (&["f", "octet", "BLKSIZE", "1428", "multicast", ""], &[("blksize", "1428")]),
            (&["f", "octet", "blksize", "7", "timeout", "0", "windowsize", "0"], &[]),
            (&["f", "octet", "blksize", "many"], &[]),
            (&["f", "octet", "windowsize", "4", "windowsize", "9"], &[("windowsize", "4")]),
            (&["f", "octet", "tsize"], &[]),
        ] {
            let terms = Terms::agree(&read(words), 5000, 1468);
            let accepted: Vec<(&str, &str)> =
                terms.accepted.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            assert_eq!(accepted, wanted, "{words:?}");
        }
    }

    #[test]
    fn case_19_20_blocks_fit_the_mtu_and_windows_the_client() {
        let words = ["f", "octet", "blksize", "65464", "windowsize", "1000"];
        let terms = Terms::agree(&read(&words), 1, 1468);
        assert_eq!((terms.block, terms.window), (1468, 64));
        let terms = Terms::agree(&read(&words), 1, 65464);
        assert_eq!((terms.block, terms.window), (65464, 8), "bounded memory");
        assert_eq!(terms.accepted[1].1, "8");
    }

    #[test]
    fn case_21_requests_that_can_not_be_served() {
        let long = "x".repeat(10_000);
        for bytes in [
            request(&["f", "netascii"]),
            request(&["f", "mail"]),
            request(&["f"]),
            request(&["", "octet"]),
            request(&[&long, "octet"]),
            b"\x00\x01f\x00octet".to_vec(),
            b"\x00\x01\xff\xfe\x00octet\x00".to_vec(),
        ] {
            assert!(matches!(Packet::of(&bytes), Err(Fault::Refused(_))), "{bytes:?}");
        }
        for bytes in [&b""[..], b"\x00", b"\x00\x03\x00\x01x", b"\x00\x06", b"\x00\x04\x00", b"\x01\x00"] {
            assert_eq!(Packet::of(bytes), Err(Fault::Nonsense), "{bytes:?}");
        }
        assert_eq!(Packet::of(b"\x00\x02f\x00octet\x00"), Ok(Packet::Write));
    }

    /// Any bytes, cut and changed: no panic, and what is accepted is bounded.
    #[test]
    fn hostile_packets_do_no_harm() {
        let seeds = [
            request(&["images/lab/uki.efi", "octet", "tsize", "0", "blksize", "1468", "windowsize", "4"]),
            error(8, "User aborted the transfer"),
            b"\x00\x04\x12\x34".to_vec(),
        ];
        let mut state = 1u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below.max(1)
        };
        for round in 0..60_000 {
            let mut bytes = seeds[round % seeds.len()].clone();
            for _ in 0..random(4) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            bytes.truncate(random(bytes.len() + 1));
            if let Ok(Packet::Read(read)) = Packet::of(&bytes) {
                let terms = Terms::agree(&read, 1, 1468);
                assert!((8..=1468).contains(&terms.block) && (1..=64).contains(&terms.window));
                assert!(!read.path.contains('\0'));
            }
        }
    }
}
