//! The node's own page and the warning banner, as pictures.

use super::{
    control::Status,
    picture::{Picture, mix},
    rect::Rect,
    text::{self, Weight},
};

const INK: u32 = 0xf4f7f8;
const SOFT: u32 = 0x9fb4bd;
const TOP: u32 = 0x14222c;
const LOW: u32 = 0x0b141b;
const WARNING: u32 = 0xf2a33a;

/// Colour of a mode, the same as on the dashboard.
fn accent(mode: &str) -> u32 {
    match mode {
        "desktop" => 0x2bb3c0,
        "compute" => 0x7bc86c,
        "maintenance" => 0xb48ee0,
        "off" => 0x6c7a82,
        _ => 0x8aa0ab,
    }
}

/// The whole page for a screen of this size.
pub fn status(width: u32, height: u32, status: &Status) -> Picture {
    let mut page = Picture::new(width, height, TOP);
    for y in 0..height {
        let part = (u64::from(y) * 255 / u64::from(height.max(1))) as u8;
        page.row_mut(y).fill(mix(TOP, LOW, part));
    }
    let unit = (height / 100).max(3);
    let margin = unit * 9;
    let room = width.saturating_sub(margin * 2);
    let accent = accent(&status.mode);
    page.fill(Rect::new(0, 0, width, unit), accent);

    let brand = unit * 4;
    text::draw(&mut page, (margin, margin), Weight::Bold, brand, SOFT, "labshift");

    let name_height = text::fitting(Weight::Bold, unit * 18, &status.node, room);
    let mut y = height * 30 / 100;
    text::draw(&mut page, (margin, y), Weight::Bold, name_height, INK, &status.node);
    y += name_height + unit * 2;

    let label = unit * 5;
    let pad = unit * 2;
    let wide = text::width(Weight::Bold, label, &status.mode) + pad * 2;
    rounded(&mut page, Rect::new(margin, y, wide, label + pad), unit * 2, accent);
    text::draw(&mut page, (margin + pad, y + pad / 2), Weight::Bold, label, LOW, &status.mode);
    y += label + pad + unit * 4;

    let line_height = text::fitting(Weight::Regular, unit * 5, &status.line, room);
    text::draw(&mut page, (margin, y), Weight::Regular, line_height, INK, &status.line);

    let hint_height = text::fitting(Weight::Regular, unit * 4, &status.hint, room);
    let low = height.saturating_sub(margin + hint_height);
    text::draw(&mut page, (margin, low), Weight::Regular, hint_height, SOFT, &status.hint);
    page
}

/// The banner for a screen of this size, and where it lies.
pub fn warning(width: u32, height: u32, sentence: &str) -> (Rect, Picture) {
    let unit = (height / 100).max(3);
    let most = width.saturating_sub(unit * 12);
    let letters = text::fitting(Weight::Bold, unit * 5, sentence, most.saturating_sub(unit * 10));
    let wide = (text::width(Weight::Bold, letters, sentence) + unit * 9).min(width);
    let high = (letters + unit * 5).min(height);
    let mut banner = Picture::new(wide, high, LOW);
    banner.fill(Rect::new(0, 0, wide, high), WARNING);
    banner.fill(Rect::new(0, 0, unit * 2, high), LOW);
    let at = (unit * 5, (high.saturating_sub(letters)) / 2);
    text::draw(&mut banner, at, Weight::Bold, letters, LOW, sentence);
    (Rect::new((width - wide) / 2, unit * 3, wide, high), banner)
}

/// Fills a rectangle with round corners, their edge softened by four samples a pixel.
fn rounded(page: &mut Picture, rect: Rect, radius: u32, colour: u32) {
    let radius = radius.min(rect.width / 2).min(rect.height / 2);
    for y in 0..rect.height {
        for x in 0..rect.width {
            let from_edge = |v: u32, length: u32| radius.saturating_sub(v.min(length - 1 - v));
            let (dx, dy) = (from_edge(x, rect.width), from_edge(y, rect.height));
            let alpha = if dx == 0 || dy == 0 {
                255
            } else {
                let inside = |ox: f32, oy: f32| (dx as f32 - ox).hypot(dy as f32 - oy) <= radius as f32;
                let hits = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
                    .iter()
                    .filter(|(ox, oy)| inside(*ox, *oy))
                    .count();
                (hits * 255 / 4) as u8
            };
            page.blend(rect.x + x, rect.y + y, colour, alpha);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_fit_every_screen() {
        let status_of = |node: &str| Status {
            node: node.into(),
            mode: "compute".into(),
            line: "Runs batch work".into(),
            hint: "Press a key".into(),
        };
        for (width, height) in [(1, 1), (640, 480), (1280, 800), (320, 2000)] {
            let page = status(width, height, &status_of(&"long-name".repeat(20)));
            assert_eq!((page.width(), page.height()), (width, height));
            let (rect, banner) = warning(width, height, &"Session ends. ".repeat(9));
            assert_eq!((rect.width, rect.height), (banner.width(), banner.height()));
            assert!(rect.right() <= width, "{width}x{height}");
        }
        assert_ne!(status(640, 480, &status_of("a")), status(640, 480, &status_of("b")));
    }
}
