//! Path patterns of recipes: `*` and `?` stay within a directory, `**` goes through.

/// Whether `path` fits `pattern`. Both are relative. A pattern that names a directory fits what lies below it.
pub fn fits(pattern: &str, path: &str) -> bool {
    bytes(pattern.as_bytes(), path.as_bytes())
}

fn bytes(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty() || path[0] == b'/',
        [b'*', b'*', b'/', rest @ ..] => {
            bytes(rest, path) || (0..path.len()).any(|i| path[i] == b'/' && bytes(rest, &path[i + 1..]))
        }
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|i| bytes(rest, &path[i..])),
        [b'*', rest @ ..] => {
            let end = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
            (0..=end).any(|i| bytes(rest, &path[i..]))
        }
        [b'?', rest @ ..] => path.first().is_some_and(|b| *b != b'/') && bytes(rest, &path[1..]),
        [c, rest @ ..] => path.first() == Some(c) && bytes(rest, &path[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn table() {
        let cases = [
            ("usr/share/doc", "usr/share/doc/bash/README", true),
            ("usr/share/doc", "usr/share/doc", true),
            ("usr/share/doc", "usr/share/docs", false),
            ("usr/share/doc/**", "usr/share/doc/a/b", true),
            ("usr/share/doc/**", "usr/share/doc", false),
            ("usr/*/doc", "usr/share/doc/x", true),
            ("usr/*/doc", "usr/a/b/doc", false),
            ("**/*.pyc", "usr/lib/x.pyc", true),
            ("**/*.pyc", "x.pyc", true),
            ("usr/lib/lib?.so", "usr/lib/liba.so", true),
            ("usr/lib/lib?.so", "usr/lib/lib/.so", false),
            ("kernel/drivers/**", "kernel/drivers/net/e1000e.ko", true),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(fits(pattern, path), expected, "{pattern} {path}");
        }
    }
}
