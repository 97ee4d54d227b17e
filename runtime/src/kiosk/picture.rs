//! A picture in memory: 32-bit pixels `0x00RRGGBB`, row after row.

use super::rect::Rect;

/// Pixels of one colour depth, the one that KMS calls XRGB8888.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<u32>,
}

impl Picture {
    /// A picture of one colour.
    pub fn new(width: u32, height: u32, colour: u32) -> Self {
        Self { width, height, pixels: vec![colour; width as usize * height as usize] }
    }

    /// Pixels across.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Pixels down.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The whole of it.
    pub fn bounds(&self) -> Rect {
        Rect::of_size(self.width, self.height)
    }

    /// One row; empty when there is no such row.
    pub fn row(&self, y: u32) -> &[u32] {
        let width = self.width as usize;
        self.pixels.get(y as usize * width..(y as usize + 1) * width).unwrap_or_default()
    }

    /// One row, to write to.
    pub fn row_mut(&mut self, y: u32) -> &mut [u32] {
        let width = self.width as usize;
        self.pixels.get_mut(y as usize * width..(y as usize + 1) * width).unwrap_or_default()
    }

    /// One pixel; black outside.
    pub fn pixel(&self, x: u32, y: u32) -> u32 {
        self.row(y).get(x as usize).copied().unwrap_or(0)
    }

    /// How much of it is not black, in percent, judged by one pixel in sixteen.
    pub fn lit_percent(&self) -> u32 {
        let rows = (0..self.height).step_by(4).map(|y| self.row(y));
        let (mut lit, mut seen) = (0u64, 0u64);
        for pixel in rows.flat_map(|row| row.iter().step_by(4)) {
            seen += 1;
            lit += u64::from(*pixel & 0xff_ff_ff != 0);
        }
        (lit * 100).checked_div(seen).unwrap_or(0) as u32
    }

    /// Fills what of `rect` lies inside.
    pub fn fill(&mut self, rect: Rect, colour: u32) {
        let Some(r) = rect.intersection(self.bounds()) else { return };
        for y in r.y..r.bottom() {
            self.row_mut(y)[r.x as usize..r.right() as usize].fill(colour);
        }
    }

    /// Lays `colour` over one pixel; `alpha` 255 covers it.
    pub fn blend(&mut self, x: u32, y: u32, colour: u32, alpha: u8) {
        if let Some(pixel) = self.row_mut(y).get_mut(x as usize) {
            *pixel = mix(*pixel, colour, alpha);
        }
    }

    /// Copies `from` to the place whose left top is (`x`, `y`); both may overlap. What would lie outside is left
    /// out.
    pub fn copy_within(&mut self, from: Rect, x: u32, y: u32) {
        let Some(from) = from.intersection(self.bounds()) else { return };
        let Some(to) = Rect::new(x, y, from.width, from.height).intersection(self.bounds()) else { return };
        let width = self.width as usize;
        let one = |i: u32| {
            let source = (from.y + i) as usize * width + from.x as usize;
            (source..source + to.width as usize, (to.y + i) as usize * width + to.x as usize)
        };
        let rows: Vec<_> = (0..to.height).map(one).collect();
        // Downwards moves start at the bottom, so that no row is overwritten before it was read.
        if to.y > from.y {
            rows.into_iter().rev().for_each(|(source, target)| self.pixels.copy_within(source, target));
        } else {
            rows.into_iter().for_each(|(source, target)| self.pixels.copy_within(source, target));
        }
    }
}

/// `under` with `over` laid on it; `alpha` 255 is all `over`.
pub fn mix(under: u32, over: u32, alpha: u8) -> u32 {
    let alpha = u32::from(alpha);
    let channel = |shift: u32| {
        let (u, o) = (under >> shift & 0xff, over >> shift & 0xff);
        ((u * (255 - alpha) + o * alpha + 127) / 255) << shift
    };
    channel(16) | channel(8) | channel(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_stay_inside() {
        let mut p = Picture::new(4, 3, 1);
        p.fill(Rect::new(2, 1, 90, 90), 7);
        assert_eq!((p.pixel(1, 1), p.pixel(2, 1), p.pixel(3, 2), p.pixel(9, 9)), (1, 7, 7, 0));
        p.blend(0, 0, 0xffffff, 255);
        p.blend(99, 99, 0xffffff, 255);
        assert_eq!(p.pixel(0, 0), 0xffffff);
    }

    #[test]
    fn overlapping_copies_read_before_they_write() {
        let mut p = Picture::new(1, 5, 0);
        for y in 0..5 {
            p.row_mut(y)[0] = y + 1;
        }
        let mut up = p.clone();
        p.copy_within(Rect::new(0, 0, 1, 4), 0, 1);
        assert_eq!(p.pixels, [1, 1, 2, 3, 4]);
        up.copy_within(Rect::new(0, 1, 1, 4), 0, 0);
        assert_eq!(up.pixels, [2, 3, 4, 5, 5]);
        up.copy_within(Rect::new(0, 0, 1, 5), 0, 3);
        assert_eq!(up.pixels, [2, 3, 4, 2, 3]);
    }

    #[test]
    fn text_on_black_is_little_light() {
        let mut p = Picture::new(64, 64, 0);
        assert_eq!(p.lit_percent(), 0);
        p.fill(Rect::new(0, 0, 64, 4), 0xaaaaaa);
        assert_eq!(p.lit_percent(), 6);
        p.fill(Rect::new(0, 0, 64, 64), 0x0f4c5c);
        assert_eq!(p.lit_percent(), 100);
        assert_eq!(Picture::default().lit_percent(), 0);
    }

    #[test]
    fn mixing_ends_at_both_colours() {
        assert_eq!(mix(0x102030, 0xa0b0c0, 0), 0x102030);
        assert_eq!(mix(0x102030, 0xa0b0c0, 255), 0xa0b0c0);
    }
}
