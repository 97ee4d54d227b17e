//! Columns for people.

/// Rows under a header, aligned by the widest cell of each column; the last column is not padded.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut width: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (w, cell) in width.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (i, cell) in cells.iter().enumerate() {
            let last = i + 1 == cells.len();
            let pad = if last { 0 } else { width[i] - cell.chars().count() + 2 };
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', pad));
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(header.to_vec());
    text.push_str(&line(
        width
            .iter()
            .map(|w| {
                "────────────────────────────────────────────────────────────────────────────────"
                    .get(..w * 3)
                    .unwrap_or_default()
            })
            .collect(),
    ));
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

/// Milliseconds as people read them: `850 ms`, `12.3 s`, `2 min 05 s`.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{:.1} s", ms as f64 / 1000.0),
        _ => format!("{} min {:02} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = table(
            &["node", "state"],
            &[vec!["ws1".into(), "off".into()], vec!["a-long-one".into(), "".into()]],
        );
        assert_eq!(text, "node        state\n──────────  ─────\nws1         off\na-long-one\n");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(850), "850 ms");
        assert_eq!(duration(12_340), "12.3 s");
        assert_eq!(duration(125_000), "2 min 05 s");
    }
}
