//! What guests print on their serial line goes to the node's log too, so that a guest that does not boot can be
//! read on the node's own serial line.
//!
//! A guest's bytes are a stranger's: lines are cut, control characters dropped, and a guest that prints without
//! end is throttled.

use std::{
    io::{Read, Seek, SeekFrom},
    path::Path,
    time::Duration,
};

use tokio::time::sleep;

/// Between two looks at the file.
const INTERVAL: Duration = Duration::from_millis(500);
/// Bytes taken at a look; the rest of a flood is skipped.
const AT_ONCE: u64 = 16 << 10;
/// Characters of a line.
const LONGEST_LINE: usize = 240;

/// Follows a guest's console file and prints its lines; runs until it is aborted.
pub async fn follow(guest: String, path: std::path::PathBuf) {
    let (mut position, mut rest) = (0u64, Vec::new());
    loop {
        sleep(INTERVAL).await;
        let Ok((bytes, skipped)) = read_from(&path, &mut position) else { continue };
        if skipped > 0 {
            println!("{guest}| ... {skipped} bytes not shown");
            rest.clear();
        }
        rest.extend_from_slice(&bytes);
        for line in complete_lines(&mut rest) {
            println!("{guest}| {line}");
        }
    }
}

/// Seconds since a guest was switched on that has not said anything: its console's file, which its start emptied, is still
/// empty.
pub fn silent_seconds(path: &Path) -> Option<u64> {
    let file = std::fs::metadata(path).ok()?;
    let age = file.modified().ok()?.elapsed().unwrap_or_default();
    (file.len() == 0).then_some(age.as_secs())
}

/// New bytes since `position`, at most [`AT_ONCE`], and how many before them were skipped. A file that got
/// shorter was started anew.
fn read_from(path: &Path, position: &mut u64) -> std::io::Result<(Vec<u8>, u64)> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    if length < *position {
        *position = 0;
    }
    let skipped = (length - *position).saturating_sub(AT_ONCE);
    file.seek(SeekFrom::Start(*position + skipped))?;
    let mut bytes = Vec::new();
    let read = file.take(AT_ONCE).read_to_end(&mut bytes)?;
    *position += skipped + read as u64;
    Ok((bytes, skipped))
}

/// Takes whole lines out of `bytes`, clean and of bounded length; a line without end is cut.
fn complete_lines(bytes: &mut Vec<u8>) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
        lines.push(clean(&bytes[..end]));
        bytes.drain(..=end);
    }
    if bytes.len() > LONGEST_LINE * 4 {
        lines.push(clean(bytes));
        bytes.clear();
    }
    lines.retain(|l| !l.is_empty());
    lines
}

/// Printable characters only; the terminal sequences of firmware and kernels are dropped whole.
fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if chars.next_if(|c| matches!(c, '[' | '(' | ')')).is_some() {
                    while chars.next_if(|c| !c.is_ascii_alphabetic()).is_some() {}
                }
                chars.next();
            }
            c if c.is_control() => {}
            c => out.push(c),
        }
        if out.len() >= LONGEST_LINE {
            break;
        }
    }
    out.truncate(out.trim_end().len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_clean_and_bounded() {
        let mut bytes = b"\x1b[2J\x1b[0mlabshift: up\r\n\r\nhalf".to_vec();
        assert_eq!(complete_lines(&mut bytes), ["labshift: up"]);
        assert_eq!(bytes, b"half");
        bytes.extend(vec![b'x'; 2000]);
        let lines = complete_lines(&mut bytes);
        assert!(lines.len() == 1 && lines[0].len() == LONGEST_LINE && bytes.is_empty());
        assert_eq!(clean(b"\xff\xfe\x07\x1b"), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn a_flood_is_skipped_and_a_new_file_is_read_from_its_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut position = 0;
        assert!(read_from(&path, &mut position).is_err());
        std::fs::write(&path, vec![b'a'; AT_ONCE as usize + 5]).unwrap();
        let (bytes, skipped) = read_from(&path, &mut position).unwrap();
        assert_eq!((bytes.len() as u64, skipped), (AT_ONCE, 5));
        assert_eq!(read_from(&path, &mut position).unwrap(), (vec![], 0));
        std::fs::write(&path, b"new").unwrap();
        assert_eq!(read_from(&path, &mut position).unwrap(), (b"new".to_vec(), 0));
    }

    #[test]
    fn a_guest_is_silent_until_its_first_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        assert_eq!(silent_seconds(&path), None, "never switched on");
        let file = std::fs::File::create(&path).unwrap();
        let now = file.metadata().unwrap().modified().unwrap();
        file.set_modified(now - Duration::from_secs(70)).unwrap();
        assert!(silent_seconds(&path).unwrap() >= 70);
        file.set_modified(now + Duration::from_secs(3600)).unwrap();
        assert_eq!(silent_seconds(&path), Some(0), "the clock was set back");
        std::fs::write(&path, b"x").unwrap();
        assert_eq!(silent_seconds(&path), None);
    }
}
