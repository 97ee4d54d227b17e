//! Patterns as depmod writes them: `pci:v00008086d*sv*`.

/// Shell pattern match with `*`, `?` and `[..]`, as depmod uses. Linear in practice: on a mismatch only the last `*` is tried
/// again.
pub fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => class(&pattern[p..], text[t]),
            Some(&c) if c == text[t] => Some(1),
            _ => None,
        };
        match (step, star) {
            (Some(length), _) => (p, t) = (p + length, t + 1),
            (None, Some((after, from))) => {
                star = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// Length of the class at the pattern's start when it holds `c`.
fn class(pattern: &[u8], c: u8) -> Option<usize> {
    let end = pattern.iter().position(|&b| b == b']')?;
    let set = &pattern[1..end];
    let mut i = 0;
    while i < set.len() {
        let (low, high) = if set.get(i + 1) == Some(&b'-') && i + 2 < set.len() {
            i += 2;
            (set[i - 2], set[i])
        } else {
            (set[i], set[i])
        };
        if (low..=high).contains(&c) {
            return Some(end + 1);
        }
        i += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, text, yes) in [
            ("a*c", "abc", true),
            ("a*c", "ab", false),
            ("*", "", true),
            ("a?c", "abc", true),
            ("a[0-9b]c", "abc", true),
            ("a[0-9]c", "abc", false),
            ("a[", "a[", false),
            ("*a*b*c*", "xxaxxbxxc", true),
            ("usb:v*d*dc*ic03isc*", "usb:v1d2dc0ic03isc1", true),
        ] {
            assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), yes, "{pattern} {text}");
        }
        // A pattern made to backtrack must not take for ever.
        let text = "a".repeat(5_000);
        assert!(!fits(format!("{}b", "a*".repeat(50)).as_bytes(), text.as_bytes()));
    }
}
