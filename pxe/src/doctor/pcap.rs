//! Capture files: pcap (both byte orders, micro- and nanoseconds) and pcapng, as tcpdump and Wireshark write them.
//! draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.

use super::{frame::Link, observe::Observations};

/// Frames longer than this are no frames.
const MAX_FRAME: usize = 1 << 18;

/// Why a capture can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCapture {
    /// Another kind of file.
    #[error("not a capture: it begins neither like pcap nor like pcapng")]
    Magic,
    /// A medium that the doctor does not read.
    #[error("frames of link type {0} are not read; capture on an Ethernet interface")]
    Link(u32),
    /// Cut in the middle, or damaged.
    #[error("the capture is cut or damaged at byte {0}; what came before was read")]
    Damaged(usize),
}

/// Reads a whole capture. A damaged one gives what could be read, and why the rest could not.
pub fn read(bytes: &[u8]) -> (Observations, Option<BadCapture>) {
    let mut seen = Observations::default();
    let fault = match bytes.first_chunk::<4>() {
        Some([0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d]) => {
            classic(bytes, u32::from_be_bytes, &mut seen)
        }
        Some([0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1]) => {
            classic(bytes, u32::from_le_bytes, &mut seen)
        }
        Some([0x0a, 0x0d, 0x0d, 0x0a]) => blocks(bytes, &mut seen),
        _ => Err(BadCapture::Magic),
    };
    (seen, fault.err())
}

type Number = fn([u8; 4]) -> u32;

fn number(bytes: &[u8], at: usize, order: Number) -> Result<u32, BadCapture> {
    let four = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>).ok_or(BadCapture::Damaged(at))?;
    Ok(order(*four))
}

fn classic(bytes: &[u8], order: Number, seen: &mut Observations) -> Result<(), BadCapture> {
    let unit = if bytes.starts_with(&[0xa1, 0xb2, 0x3c, 0x4d]) || bytes.starts_with(&[0x4d, 0x3c]) {
        1e-9
    } else {
        1e-6
    };
    let link = number(bytes, 20, order)? & 0xffff;
    let link = Link::of(link).ok_or(BadCapture::Link(link))?;
    let mut at = 24;
    while at < bytes.len() {
        let seconds = f64::from(number(bytes, at, order)?) + f64::from(number(bytes, at + 4, order)?) * unit;
        let length = number(bytes, at + 8, order)? as usize;
        let frame = bytes.get(at + 16..at.saturating_add(16 + length)).filter(|_| length <= MAX_FRAME);
        seen.take(seconds, link, frame.ok_or(BadCapture::Damaged(at))?);
        at += 16 + length;
    }
    Ok(())
}

/// One interface of a pcapng section.
struct Interface {
    link: Option<Link>,
    number: u32,
    unit: f64,
}

fn blocks(bytes: &[u8], seen: &mut Observations) -> Result<(), BadCapture> {
    const SECTION: u32 = 0x0a0d_0d0a;
    const INTERFACE: u32 = 1;
    const SIMPLE: u32 = 3;
    const ENHANCED: u32 = 6;
    let (mut at, mut order, mut interfaces): (usize, Number, Vec<Interface>) =
        (0, u32::from_le_bytes, vec![]);
    while at < bytes.len() {
        if number(bytes, at, order)? == SECTION {
            order = match bytes.get(at + 8..at + 12) {
                Some([0x1a, 0x2b, 0x3c, 0x4d]) => u32::from_be_bytes,
                Some([0x4d, 0x3c, 0x2b, 0x1a]) => u32::from_le_bytes,
                _ => return Err(BadCapture::Damaged(at)),
            };
            interfaces.clear();
        }
        let (kind, length) = (number(bytes, at, order)?, number(bytes, at + 4, order)? as usize);
        let block =
            bytes.get(at..at.saturating_add(length)).filter(|_| length >= 12 && length.is_multiple_of(4));
        let block = block.ok_or(BadCapture::Damaged(at))?;
        let field = |offset: usize| number(block, offset, order).map_err(|_| BadCapture::Damaged(at));
        let body = |offset: usize, length: usize| {
            let end = offset.saturating_add(length);
            block.get(offset..end).filter(|_| end + 4 <= block.len()).ok_or(BadCapture::Damaged(at))
        };
        match kind {
            INTERFACE => {
                let number = field(8)? & 0xffff;
                let big = order(*b"\0\0\0\x01") == 1;
                let number = if big { field(8)? >> 16 } else { number };
                interfaces.push(Interface { link: Link::of(number), number, unit: resolution(block, order) });
            }
            ENHANCED => {
                let interface = interfaces.get(field(8)? as usize).ok_or(BadCapture::Damaged(at))?;
                let link = interface.link.ok_or(BadCapture::Link(interface.number))?;
                let ticks = (u64::from(field(12)?) << 32) | u64::from(field(16)?);
                seen.take(ticks as f64 * interface.unit, link, body(28, field(20)? as usize)?);
            }
            SIMPLE => {
                let interface = interfaces.first().ok_or(BadCapture::Damaged(at))?;
                let link = interface.link.ok_or(BadCapture::Link(interface.number))?;
                let length = (field(8)? as usize).min(block.len() - 16);
                seen.take(0.0, link, body(12, length)?);
            }
            _ => {}
        }
        at += length;
    }
    Ok(())
}

/// Option 9 of an interface: decimal, or with the high bit binary, digits of a second. Microseconds without it.
fn resolution(block: &[u8], order: Number) -> f64 {
    let big = order(*b"\0\0\0\x01") == 1;
    let short = |pair: [u8; 2]| if big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) };
    let mut at = 16;
    while let Some([a, b, c, d]) = block.get(at..).and_then(<[u8]>::first_chunk::<4>) {
        let (code, length) = (short([*a, *b]), usize::from(short([*c, *d])));
        match (code, block.get(at + 4)) {
            (0, _) | (_, None) => break,
            (9, Some(value)) if value & 0x80 == 0 => return 10f64.powi(-i32::from(*value)),
            (9, Some(value)) => return 2f64.powi(-i32::from(value & 0x7f)),
            _ => at += 4 + length.next_multiple_of(4),
        }
    }
    1e-6
}
