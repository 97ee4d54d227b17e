//! What another machine asks for, read from bytes that anybody may have sent. Pure. Document: RFC 9112, as much of it as a reader
//! of ranges needs.

use std::net::Ipv4Addr;

use labshift_model::paths;

use super::circle::GROUP;
use crate::blocks::CHUNK;

/// Longest head of a request that is read, in bytes.
pub const LONGEST: usize = 4096;

/// Something that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Which chunks are held; asked by the machine with this address, as it says.
    Held(Ipv4Addr),
    /// Whole chunks, of one group.
    Chunks {
        /// Number of the first.
        first: u64,
        /// How many.
        count: u64,
    },
}

/// Why it does not get it; the number is the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No request of HTTP.
    Malformed = 400,
    /// Another root, or nothing of ours.
    Elsewhere = 404,
    /// Not `GET`.
    Method = 405,
    /// Not whole chunks of one group.
    Range = 416,
    /// Longer than any request has to be.
    Long = 431,
}

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// What is asked for.
    pub asked: Result<Asked, Refusal>,
    /// The connection stays open afterwards.
    pub keep: bool,
    /// Bytes of the head.
    pub length: usize,
}

/// Reads a head; `None` when more must come. `root` is the root hash in hex, `size` the bytes of its data.
pub fn head(bytes: &[u8], root: &str, size: u64) -> Option<Head> {
    let refused = |refusal, length| Some(Head { asked: Err(refusal), keep: false, length });
    let seen = bytes.len().min(LONGEST);
    let Some(end) = bytes[..seen].windows(4).position(|w| w == b"\r\n\r\n") else {
        return if bytes.len() >= LONGEST { refused(Refusal::Long, bytes.len()) } else { None };
    };
    let length = end + 4;
    let Ok(text) = std::str::from_utf8(&bytes[..end]) else { return refused(Refusal::Malformed, length) };
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(path), Some("HTTP/1.1"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return refused(Refusal::Malformed, length);
    };
    let (mut range, mut keep) = (None, true);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return refused(Refusal::Malformed, length) };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "range" => range = Some(value),
            "connection" => keep = !value.eq_ignore_ascii_case("close"),
            // What follows is no request then.
            "content-length" | "transfer-encoding" => return refused(Refusal::Malformed, length),
            _ => {}
        }
    }
    let asked = if method == "GET" { asked(path, range, root, size) } else { Err(Refusal::Method) };
    Some(Head { asked, keep, length })
}

fn asked(path: &str, range: Option<&str>, root: &str, size: u64) -> Result<Asked, Refusal> {
    let rest = path.strip_prefix(paths::PEER_ROOT).and_then(|p| p.strip_prefix('/'));
    let rest = rest.and_then(|p| p.strip_prefix(root)).ok_or(Refusal::Elsewhere)?;
    if let Some(from) = rest.strip_prefix(paths::PEER_HELD).and_then(|p| p.strip_prefix('/')) {
        return from.parse().map(Asked::Held).map_err(|_| Refusal::Elsewhere);
    }
    if !rest.is_empty() {
        return Err(Refusal::Elsewhere);
    }
    range.and_then(|range| chunks(range, size)).ok_or(Refusal::Range)
}

/// `bytes=FROM-TO` as whole chunks of one group.
fn chunks(range: &str, size: u64) -> Option<Asked> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    let number =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (from, end) = (number(from)?, number(to)?.checked_add(1)?);
    let first = from / CHUNK;
    let whole = from % CHUNK == 0 && (end % CHUNK == 0 || end == size);
    let count = end.checked_sub(from)?.div_ceil(CHUNK);
    let one_group = count > 0 && first % GROUP + count <= GROUP;
    (whole && one_group && end <= size).then_some(Asked::Chunks { first, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 10 * CHUNK + 8192;

    fn get(path: &str, more: &str) -> Head {
        let text = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
        let head = head(text.as_bytes(), "ab", SIZE).unwrap();
        assert_eq!(head.length, text.len());
        head
    }

    fn range(from: u64, to: u64) -> Result<Asked, Refusal> {
        get("/root/ab", &format!("Range: bytes={from}-{to}\r\n")).asked
    }

    #[test]
    fn chunks_and_what_is_held() {
        let held = get("/root/ab/held/10.0.0.7", "Connection: Close\r\n");
        assert_eq!((held.asked, held.keep), (Ok(Asked::Held(Ipv4Addr::new(10, 0, 0, 7))), false));
        assert_eq!(range(0, CHUNK - 1), Ok(Asked::Chunks { first: 0, count: 1 }));
        assert_eq!(range(5 * CHUNK, 8 * CHUNK - 1), Ok(Asked::Chunks { first: 5, count: 3 }));
        assert_eq!(range(8 * CHUNK, SIZE - 1), Ok(Asked::Chunks { first: 8, count: 3 }), "the last is short");
        assert!(get("/root/ab", "Range: bytes=0-131071\r\n").keep);
    }

    #[test]
    fn everything_else_is_refused() {
        for (from, to) in [
            (1, CHUNK - 1),
            (0, CHUNK - 2),
            (0, 5 * CHUNK - 1),
            (3 * CHUNK, 5 * CHUNK - 1),
            (8 * CHUNK, SIZE),
            (8 * CHUNK, 12 * CHUNK - 1),
            (CHUNK, CHUNK - 1),
            (CHUNK, 0),
            (u64::MAX - CHUNK + 1, u64::MAX),
        ] {
            assert_eq!(range(from, to), Err(Refusal::Range), "{from}-{to}");
        }
        for path in
            ["/", "/root/ac", "/root/abc", "/root/ab/held", "/root/ab/held/x", "/root/ab/../x", "root/ab"]
        {
            assert_eq!(get(path, "").asked, Err(Refusal::Elsewhere), "{path}");
        }
        assert_eq!(get("/root/ab", "").asked, Err(Refusal::Range));
        assert_eq!(get("/root/ab", "Content-Length: 5\r\n").asked, Err(Refusal::Malformed));
        let read = |text: &str| head(text.as_bytes(), "ab", SIZE);
        assert_eq!(read("POST /root/ab HTTP/1.1\r\n\r\n").unwrap().asked, Err(Refusal::Method));
        for odd in [
            "\r\n\r\n",
            "GET /root/ab\r\n\r\n",
            "GET  /root/ab HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nx\r\n\r\n",
        ] {
            assert_eq!(read(odd).unwrap().asked, Err(Refusal::Malformed), "{odd:?}");
        }
        assert_eq!(read("GET /root/ab HTTP/1.1\r\nRange: "), None, "more must come");
        assert_eq!(read(&"x".repeat(LONGEST)).unwrap().asked, Err(Refusal::Long));
    }
}
