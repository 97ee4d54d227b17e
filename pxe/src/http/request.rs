//! The head of a request for an image, read from bytes (RFC 9112). Only the plain form that firmware, iPXE, curl and our
//! init send is read here; whatever is unusual is left to the router, which knows all of HTTP.

use axum::http::Method;
use labshift_model::paths;

use super::file::Wanted;

/// Most header lines of a request that is read here.
const HEADERS: usize = 32;

/// What the first bytes of a connection are.
pub(super) enum Head {
    /// Not all of it is there yet.
    Partial,
    /// A request for a file: what it wants, whether the connection stays open, and how many bytes the head had.
    Image { wanted: Wanted, keep: bool, length: usize },
    /// Anything else, or nonsense: for the router.
    Other,
}

/// Reads the bytes that have come so far.
pub(super) fn head(bytes: &[u8]) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Head::Partial,
        Err(_) => return Head::Other,
    };
    image(&request).map_or(Head::Other, |(wanted, keep)| Head::Image { wanted, keep, length })
}

fn image(request: &httparse::Request<'_, '_>) -> Option<(Wanted, bool)> {
    let head = match request.method? {
        "GET" => false,
        method if method == Method::HEAD.as_str() => true,
        _ => return None,
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+');
    let mut parts = request.path?.strip_prefix(paths::IMAGES)?.strip_prefix('/')?.split('/');
    let mut part = || parts.next().filter(|p| !p.is_empty() && p.bytes().all(plain)).map(str::to_owned);
    let (name, generation, file) = (part()?, part()?, part()?);
    if parts.next().is_some() {
        return None;
    }
    let mut keep = request.version? == 1;
    let (mut range, mut if_range, mut if_none_match) = (None, None, None);
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let text = || std::str::from_utf8(header.value).map(str::to_owned).ok();
        if is("connection") {
            match text()?.to_ascii_lowercase().trim() {
                "keep-alive" => keep = true,
                "close" => keep = false,
                _ => return None,
            }
        } else if is("range") {
            range = text();
        } else if is("if-range") {
            if_range = text();
        } else if is("if-none-match") {
            if_none_match = text();
        } else if is("content-length") || is("transfer-encoding") || is("expect") || is("upgrade") {
            return None;
        }
    }
    Some((Wanted { name, generation, file, head, range, if_range, if_none_match }, keep))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_requests_are_read_and_all_others_left_to_the_router() {
        let Head::Image { wanted, keep, length } =
            head(b"GET /images/lab/ab/uki.efi HTTP/1.1\r\nHost: x\r\nrange: bytes=5-\r\n\r\nrest")
        else {
            panic!("not read")
        };
        assert_eq!((wanted.name.as_str(), wanted.file.as_str(), wanted.head), ("lab", "uki.efi", false));
        assert_eq!((wanted.range.as_deref(), keep, length), (Some("bytes=5-"), true, 65));
        for (text, keeps) in [
            ("HEAD /images/a/b/c HTTP/1.1\r\n\r\n", true),
            ("GET /images/a/b/c HTTP/1.0\r\n\r\n", false),
            ("GET /images/a/b/c HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
            ("GET /images/a/b/c HTTP/1.1\r\nConnection: close\r\n\r\n", false),
        ] {
            assert!(matches!(head(text.as_bytes()), Head::Image { keep, .. } if keep == keeps), "{text}");
        }
        for text in [
            "POST /images/a/b/c HTTP/1.1\r\n\r\n",
            "GET /boot/script.ipxe?mac=1 HTTP/1.1\r\n\r\n",
            "GET /images/a/b HTTP/1.1\r\n\r\n",
            "GET /images/a/b/c/d HTTP/1.1\r\n\r\n",
            "GET /images//b/c HTTP/1.1\r\n\r\n",
            "GET /images/a/b/c?x HTTP/1.1\r\n\r\n",
            "GET /images/a/%2e%2e/c HTTP/1.1\r\n\r\n",
            "GET http://host/images/a/b/c HTTP/1.1\r\n\r\n",
            "GET /images/a/b/c HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "GET /images/a/b/c HTTP/1.1\r\nConnection: upgrade\r\n\r\n",
            "\x16\x03\x01 not HTTP",
        ] {
            assert!(matches!(head(text.as_bytes()), Head::Other), "{text}");
        }
    }

    /// Cut anywhere, a request is unfinished, never another one; changed anywhere, it does no harm.
    #[test]
    fn hostile_heads_do_no_harm() {
        let good = b"GET /images/lab/ab/uki.efi HTTP/1.1\r\nHost: 10.77.0.1\r\nRange: bytes=0-9\r\n\r\n";
        for cut in 0..good.len() {
            assert!(matches!(head(&good[..cut]), Head::Partial), "{cut}");
        }
        let mut state = 7u64;
        for _ in 0..60_000 {
            let mut bytes = good.to_vec();
            for _ in 0..3 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] = (state >> 20) as u8;
            }
            if let Head::Image { wanted, length, .. } = head(&bytes) {
                assert!(length <= bytes.len());
                assert!([wanted.name, wanted.generation, wanted.file].iter().all(|p| !p.contains('/')));
            }
        }
    }
}
