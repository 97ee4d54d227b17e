//! The options of a DHCP message as they stand on the wire (RFC 2132): parts of one code joined (RFC 3396), and
//! the `file` and `sname` fields read where option 52 says that they hold options too.
//!
//! `dhcproto` decodes the header and encodes our replies. Its option decoder stops without a word at the first
//! malformed option, knows no overload, keeps one part of a split option and re-orders option 82, which a relay
//! must get back unchanged; hence this reader.

use std::{collections::BTreeMap, net::Ipv4Addr};

/// Bytes before the options: the BOOTP header and the magic cookie.
pub const HEADER: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;

const PAD: u8 = 0;
const OVERLOAD: u8 = 52;
const END: u8 = 255;

/// Why bytes are not a DHCP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Under 240 bytes, or without the magic cookie.
    #[error("not a DHCP message: too short, or without the magic cookie")]
    NotDhcp,
    /// An option runs past the end of its field.
    #[error("option {0} runs past the end")]
    Truncated(u8),
    /// An option has a length that its code does not allow.
    #[error("option {0} has a wrong length")]
    Length(u8),
    /// A field of the header has a value that no client of ours sends.
    #[error("field {0} has an impossible value")]
    Header(&'static str),
}

/// Options by code; values raw.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    /// Reads the options of a whole message.
    pub fn of(packet: &[u8]) -> Result<Self, Malformed> {
        if packet.len() < HEADER || packet[HEADER - 4..HEADER] != COOKIE {
            return Err(Malformed::NotDhcp);
        }
        let mut options = Options::default();
        options.read(&packet[HEADER..])?;
        let overload = match options.get(OVERLOAD) {
            None => 0,
            Some(&[fields @ 1..=3]) => fields,
            Some(_) => return Err(Malformed::Length(OVERLOAD)),
        };
        // `file` before `sname`: the order in which RFC 3396 joins the parts.
        if overload & 1 != 0 {
            options.read(&packet[FILE])?;
        }
        if overload & 2 != 0 {
            options.read(&packet[SNAME])?;
        }
        Ok(options)
    }

    fn read(&mut self, mut field: &[u8]) -> Result<(), Malformed> {
        while let [code, rest @ ..] = field {
            field = match *code {
                PAD => rest,
                END => return Ok(()),
                code => {
                    let (value, after) = split(rest).ok_or(Malformed::Truncated(code))?;
                    self.0.entry(code).or_default().extend_from_slice(value);
                    after
                }
            };
        }
        Ok(())
    }

    /// The raw value.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    /// A value that must be one address.
    pub fn address(&self, code: u8) -> Result<Option<Ipv4Addr>, Malformed> {
        self.get(code).map_or(Ok(None), |value| {
            <[u8; 4]>::try_from(value).map(|a| Some(a.into())).map_err(|_| Malformed::Length(code))
        })
    }

    /// A value that must be one byte.
    pub fn byte(&self, code: u8) -> Result<Option<u8>, Malformed> {
        match self.get(code) {
            None => Ok(None),
            Some(&[byte]) => Ok(Some(byte)),
            Some(_) => Err(Malformed::Length(code)),
        }
    }
}

/// The value of one sub-option in a field of sub-options (options 43, 82, 175); `None` when the field is malformed.
pub fn sub_option(mut field: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [code, rest @ ..] = field {
        match *code {
            PAD => field = rest,
            END => return None,
            code => {
                let (value, after) = split(rest)?;
                if code == wanted {
                    return Some(value);
                }
                field = after;
            }
        }
    }
    None
}

/// Length byte and value, then what follows.
fn split(field: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = field.split_first()?;
    rest.split_at_checked(length.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(options: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEADER - 4];
        packet.extend(COOKIE);
        packet.extend(options);
        packet
    }

    #[test]
    fn case_15_short_and_malformed_packets_are_refused() {
        for (packet, wanted) in [
            (vec![], Malformed::NotDhcp),
            (vec![0; 239], Malformed::NotDhcp),
            (vec![0; 300], Malformed::NotDhcp),
            (packet(&[53]), Malformed::Truncated(53)),
            (packet(&[53, 1]), Malformed::Truncated(53)),
            (packet(&[60, 200, b'P']), Malformed::Truncated(60)),
            (packet(&[52, 1, 4, 255]), Malformed::Length(52)),
            (packet(&[52, 0, 255]), Malformed::Length(52)),
        ] {
            assert_eq!(Options::of(&packet), Err(wanted), "{packet:?}");
        }
    }

    #[test]
    fn case_15_parts_are_joined_and_overloaded_fields_are_read() {
        let mut bytes = packet(&[0, 60, 2, b'P', b'X', 52, 1, 3, 60, 1, b'E', 255, 53, 1, 9]);
        bytes[FILE][..5].copy_from_slice(&[60, 1, b'C', 255, 60]);
        bytes[SNAME][..4].copy_from_slice(&[60, 1, b'l', 255]);
        let options = Options::of(&bytes).expect("reading");
        assert_eq!(options.get(60), Some(&b"PXECl"[..]));
        assert_eq!(options.get(53), None, "what follows END is not an option");
        bytes[FILE][..2].copy_from_slice(&[60, 255]);
        assert_eq!(Options::of(&bytes), Err(Malformed::Truncated(60)));
    }

    #[test]
    fn case_15_zero_length_options_are_no_addresses() {
        let options = Options::of(&packet(&[50, 0, 53, 0, 255])).expect("reading");
        assert_eq!(options.get(50), Some(&[][..]));
        assert_eq!(options.address(50), Err(Malformed::Length(50)));
        assert_eq!(options.byte(53), Err(Malformed::Length(53)));
        assert_eq!(options.address(54), Ok(None));
    }

    #[test]
    fn sub_options_end_at_the_first_fault() {
        assert_eq!(sub_option(&[1, 1, 7, 5, 4, 10, 0, 0, 1], 5), Some(&[10, 0, 0, 1][..]));
        for field in [&[][..], &[5], &[5, 4, 10], &[255, 5, 1, 1], &[1, 9, 5, 1, 1]] {
            assert_eq!(sub_option(field, 5), None, "{field:?}");
        }
    }
}
