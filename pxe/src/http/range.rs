//! Which bytes a request wants (RFC 9110 sections 13 and 14), pure.

use std::ops::Range;

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// 200: everything.
    Whole,
    /// 206: these bytes.
    Some(Range<u64>),
    /// 304: the client has it.
    Unchanged,
    /// 416: no such bytes.
    Beyond,
}

/// Decides from the request's headers. `tag` is the file's strong ETag with its quotes.
pub fn part(
    range: Option<&str>,
    if_range: Option<&str>,
    if_none_match: Option<&str>,
    tag: &str,
    size: u64,
) -> Part {
    if if_none_match.is_some_and(|list| matches_tag(list, tag)) {
        return Part::Unchanged;
    }
    // A date, or the tag of something else, means: send it whole.
    if if_range.is_some_and(|wanted| wanted.trim() != tag) {
        return Part::Whole;
    }
    range.and_then(|text| parse(text, size)).unwrap_or(Part::Whole)
}

/// One range; several at once, another unit or nonsense are ignored, as the RFC allows.
fn parse(text: &str, size: u64) -> Option<Part> {
    let (first, last) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    let range = if first.is_empty() {
        let length = digits(last)?;
        if length == 0 {
            return Some(Part::Beyond);
        }
        size.saturating_sub(length)..size
    } else {
        let first = digits(first)?;
        let end = if last.is_empty() { size } else { digits(last)?.checked_add(1)?.min(size) };
        if !last.is_empty() && digits(last)? < first {
            return None;
        }
        first..end
    };
    Some(if range.is_empty() { Part::Beyond } else { Part::Some(range) })
}

fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn matches_tag(list: &str, tag: &str) -> bool {
    list.split(',').map(|t| t.trim().trim_start_matches("W/")).any(|t| t == tag || t == "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_25_ranges() {
        let tag = "\"abc\"";
        for (range, if_range, wanted) in [
            (None, None, Part::Whole),
            (Some("bytes=0-9"), None, Part::Some(0..10)),
            (Some("bytes=10-"), None, Part::Some(10..100)),
            (Some("bytes=90-500"), None, Part::Some(90..100)),
            (Some("bytes=-10"), None, Part::Some(90..100)),
            (Some("bytes=-500"), None, Part::Some(0..100)),
            (Some("bytes=99-99"), None, Part::Some(99..100)),
            (Some("bytes=100-"), None, Part::Beyond),
            (Some("bytes=-0"), None, Part::Beyond),
            (Some("bytes=9-5"), None, Part::Whole),
            (Some("bytes=0-1,5-6"), None, Part::Whole),
            (Some("bytes=-"), None, Part::Whole),
            (Some("bytes=+1-5"), None, Part::Whole),
            (Some("bytes=18446744073709551616-"), None, Part::Whole),
            (Some("bytes=0-18446744073709551615"), None, Part::Whole),
            (Some("blocks=0-1"), None, Part::Whole),
            (Some("bytes=5-"), Some("\"abc\""), Part::Some(5..100)),
            (Some("bytes=5-"), Some("\"old\""), Part::Whole),
            (Some("bytes=5-"), Some("W/\"abc\""), Part::Whole),
            (Some("bytes=5-"), Some("Sat, 21 Nov 2026 07:00:00 GMT"), Part::Whole),
        ] {
            assert_eq!(part(range, if_range, None, tag, 100), wanted, "{range:?} {if_range:?}");
        }
        assert_eq!(part(Some("bytes=0-"), None, None, tag, 0), Part::Beyond);
        for list in ["\"abc\"", "W/\"abc\"", "\"x\", \"abc\"", "*"] {
            assert_eq!(part(None, None, Some(list), tag, 100), Part::Unchanged, "{list}");
        }
        assert_eq!(part(None, None, Some("\"x\""), tag, 100), Part::Whole);
    }
}
