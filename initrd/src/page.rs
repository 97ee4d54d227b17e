//! The page of a failed boot, as a person in front of the machine reads it: what, why, what to do, which machine. Pure: text in,
//! rows or pixels out.
//!
//! A graphics screen gets large letters, the code three times as large; a text screen and the serial line get the same words.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

/// Letters of a graphics screen, in pixels at scale 1; without blank pixels between them.
pub const LETTER: (usize, usize) =
    (get_raster_width(FontWeight::Bold, RasterHeight::Size32), RasterHeight::Size32.val());
/// Fewest letters in a row before the letters are made smaller.
const FEWEST: usize = 40;

/// White on dark red: what a colour-blind person can read, too.
pub const PAPER: [u8; 3] = [0x5a, 0x0a, 0x14];
/// Colour of the letters.
pub const INK: [u8; 3] = [0xff, 0xff, 0xff];

/// What a boot says that does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// First line: `BOOT FAILED`.
    pub title: &'static str,
    /// Short constant, for searching.
    pub code: String,
    /// The stage that could not be reached.
    pub stage: &'static str,
    /// What is wrong.
    pub sentence: String,
    /// What to do.
    pub hint: String,
    /// Host name, when the server has told it.
    pub node: String,
    /// Hardware address.
    pub mac: String,
    /// What the machine does next.
    pub next: String,
}

/// One row of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Row {
    /// The code: as large as it fits.
    Code(String),
    /// Ordinary text.
    Text(String),
}

/// Text at its place on a graphics screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Left edge in pixels.
    pub x: usize,
    /// Upper edge in pixels.
    pub y: usize,
    /// Pixels of the screen for one of the font's.
    pub scale: usize,
    /// The letters.
    pub text: String,
}

impl Page {
    fn rows(&self, columns: usize) -> Vec<Row> {
        let mut rows = vec![Row::Text(self.title.to_owned()), Row::Code(self.code.clone())];
        let blank = || Row::Text(String::new());
        let stage = format!("at stage {}", self.stage);
        let hint = format!("What to do: {}", self.hint);
        for text in [stage.as_str(), "", &self.sentence, "", &hint] {
            rows.extend(wrapped(text, columns).into_iter().map(Row::Text));
        }
        rows.push(blank());
        let machine = format!("Node: {}   MAC: {}", self.node, self.mac);
        for text in [machine.as_str(), &self.next] {
            rows.extend(wrapped(text, columns).into_iter().map(Row::Text));
        }
        rows
    }

    /// The block on serial lines and text screens: rows of at most 76 characters between two rules.
    pub fn block(&self) -> String {
        let rule = "=".repeat(76);
        let rows: String = self
            .rows(72)
            .into_iter()
            .map(|(Row::Code(text) | Row::Text(text))| format!("  {text}").trim_end().to_owned() + "\n")
            .collect();
        format!("\n{rule}\n{rows}{rule}\n")
    }

    /// Where the text goes on a screen of so many pixels: the largest letters with which everything fits.
    pub fn layout(&self, width: usize, height: usize) -> Vec<Placed> {
        let (across, down) = LETTER;
        let sizes = (1..=8).rev().flat_map(|scale| [3, 2, 1].map(|larger| (scale, scale * larger)));
        let fits = |&(scale, code): &(usize, usize)| {
            let columns = (width / across / scale).saturating_sub(2);
            let rows = self.rows(columns.max(1));
            let tall: usize =
                rows.iter().map(|r| down * if matches!(r, Row::Code(_)) { code } else { scale }).sum();
            columns >= FEWEST.max(self.code.len() * code / scale) && tall + down * scale <= height
        };
        let (scale, code) = sizes.into_iter().find(fits).unwrap_or((1, 1));
        let columns = (width / across / scale).saturating_sub(2).max(1);
        let (margin, mut y) = (across * scale, down * scale / 2);
        let mut placed = Vec::new();
        for row in self.rows(columns) {
            let (text, scale) = match row {
                Row::Code(text) => (text, code),
                Row::Text(text) => (text, scale),
            };
            placed.push(Placed { x: margin, y, scale, text });
            y += down * scale;
        }
        placed
    }
}

/// How much ink (0 to 255) each pixel of a letter has, row by row, [`LETTER`] in size. Letters that the font lacks are `?`.
pub fn letter(c: char) -> Vec<u8> {
    let raster = |c| get_raster(c, FontWeight::Bold, RasterHeight::Size32);
    let found = raster(c).or_else(|| raster('?'));
    found.map_or_else(|| vec![0; LETTER.0 * LETTER.1], |r| r.pixels().to_vec())
}

/// The colour of a pixel with so much ink.
pub fn mixed(ink: u8) -> [u8; 3] {
    let ink = u16::from(ink);
    std::array::from_fn(|i| ((u16::from(PAPER[i]) * (255 - ink) + u16::from(INK[i]) * ink) / 255) as u8)
}

/// Calls `dot` with place and colour of every pixel that is not paper, on a screen of `width` times `height`.
pub fn paint(placed: &[Placed], width: usize, height: usize, mut dot: impl FnMut(usize, usize, [u8; 3])) {
    let (across, down) = LETTER;
    for Placed { x, y, scale, text } in placed {
        for (nth, c) in text.chars().enumerate().filter(|(_, c)| *c != ' ') {
            let letter = letter(c);
            let left = x + nth * across * scale;
            for py in (0..down * scale).take_while(|py| y + py < height) {
                for px in (0..across * scale).take_while(|px| left + px < width) {
                    match letter.get(py / scale * across + px / scale) {
                        Some(&ink) if ink > 0 => dot(left + px, y + py, mixed(ink)),
                        _ => {}
                    }
                }
            }
        }
    }
}

/// Breaks a sentence at blanks into rows of at most `width` characters; a longer word is cut.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut rows = vec![String::new()];
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        loop {
            let used = rows.last().map_or(0, |r| r.chars().count());
            let gap = usize::from(used > 0);
            if used + gap + word.len() > width && used > 0 {
                rows.push(String::new());
                continue;
            }
            let rest = word.split_off(word.len().min(width.max(1)));
            if let Some(row) = rows.last_mut() {
                row.extend(std::iter::repeat_n(' ', gap).chain(word));
            }
            if rest.is_empty() {
                break;
            }
            word = rest;
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn page() -> Page {
        Page {
            title: "BOOT FAILED",
            code: "ROOT-HASH".into(),
            stage: "root-fetched",
            sentence: "image lab generation 0123456789ab: block 17 of 300 differs from what the root hash says".into(),
            hint: "The image in the store is damaged or was changed after it was built: build it again and let the channel \
                   point to that generation."
                .into(),
            node: "ws-01".into(),
            mac: "52:54:00:01:02:03".into(),
            next: "Failure 1 of 12. Trying again in 10 s.".into(),
        }
    }

    #[test]
    fn the_block_says_what_where_and_what_to_do() {
        let block = page().block();
        for part in [
            "ROOT-HASH",
            "root-fetched",
            "block 17 of 300",
            "ws-01",
            "52:54:00:01:02:03",
            "What to do",
            "10 s",
        ] {
            assert!(block.contains(part), "{part} in {block}");
        }
        assert!(block.lines().all(|l| l.chars().count() <= 76));
        assert!(block.lines().count() <= 24, "a text screen has 25 rows: {block}");
    }

    #[test]
    fn everything_fits_on_every_screen_and_the_code_is_largest() {
        for (width, height) in [(800, 600), (1024, 768), (1280, 800), (1366, 768), (1920, 1080), (3840, 2160)]
        {
            let placed = page().layout(width, height);
            let words: Vec<&str> = placed.iter().map(|p| p.text.as_str()).collect();
            assert!(
                words.concat().contains("52:54:00:01:02:03") && words.contains(&"ROOT-HASH"),
                "{words:?}"
            );
            for p in &placed {
                assert!(p.x + p.text.chars().count() * LETTER.0 * p.scale <= width, "{width}: {p:?}");
                assert!(p.y + LETTER.1 * p.scale <= height, "{height}: {p:?}");
            }
            let code = placed.iter().find(|p| p.text == "ROOT-HASH").unwrap();
            assert!(placed.iter().all(|p| p == code || p.scale < code.scale), "{width}x{height}: {placed:?}");
            // From a chair: a letter at least one part in 110 of the screen's width, as on a text screen of 80 columns or better.
            let least = placed.iter().map(|p| p.scale * LETTER.0).min().unwrap();
            assert!(least * 110 >= width, "{width}x{height}: letters of {least}");
        }
        // Too small for anything: no panic, and the code is there.
        assert!(page().layout(64, 32).iter().any(|p| p.text == "ROOT-HASH"));
        paint(&page().layout(64, 32), 64, 32, |x, y, _| assert!(x < 64 && y < 32));
    }

    #[test]
    fn long_words_are_cut_and_nothing_is_lost() {
        assert_eq!(wrapped("a bb ccc", 4), ["a bb", "ccc"]);
        assert_eq!(wrapped("x abcdefghij y", 4), ["x", "abcd", "efgh", "ij y"]);
        assert_eq!(wrapped("", 4), [""]);
    }
}
