//! The guest's mouse cursor, which its display sends apart from its picture.

use super::rect::Rect;

/// A cursor's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Which of its pixels points.
    hot: (u32, u32),
    width: u32,
    height: u32,
    /// `None` lets the picture shine through.
    pixels: Vec<Option<u32>>,
}

impl Cursor {
    /// From the RichCursor pseudo-encoding (RFC 6143, 7.8.1): little-endian pixels, then a mask of one bit a pixel
    /// with rows padded to bytes. `rect` holds the hot spot and the size. `None` when no pixel is set.
    pub fn new(rect: Rect, pixels: &[u8], mask: &[u8]) -> Option<Self> {
        let (width, row) = (rect.width as usize, rect.width.div_ceil(8) as usize);
        let pixels: Vec<_> = pixels
            .chunks_exact(4)
            .enumerate()
            .map(|(i, b)| {
                let (x, y) = (i % width.max(1), i / width.max(1));
                let bits = mask.get(y * row + x / 8).copied().unwrap_or(0);
                (bits & (0x80 >> (x % 8)) != 0).then(|| u32::from_le_bytes([b[0], b[1], b[2], 0]))
            })
            .collect();
        pixels.iter().any(Option::is_some).then_some(Self {
            hot: (rect.x, rect.y),
            width: rect.width,
            height: rect.height,
            pixels,
        })
    }

    /// What it covers with its hot spot at a point; cut off at the left and top edge.
    pub fn area(&self, at: (u32, u32)) -> Rect {
        let (x, y) = self.origin(at);
        let (right, bottom) = (x + i64::from(self.width), y + i64::from(self.height));
        let clip = |v: i64| u32::try_from(v.max(0)).unwrap_or(u32::MAX);
        Rect::new(clip(x), clip(y), clip(right - x.max(0)), clip(bottom - y.max(0)))
    }

    /// Draws over one row of the screen that begins at column `left`.
    pub fn draw(&self, at: (u32, u32), y: u32, left: u32, row: &mut [u32]) {
        let (ox, oy) = self.origin(at);
        let line = i64::from(y) - oy;
        if line < 0 || line >= i64::from(self.height) {
            return;
        }
        let start = line as usize * self.width as usize;
        let Some(pixels) = self.pixels.get(start..start + self.width as usize) else { return };
        for (i, pixel) in pixels.iter().enumerate() {
            let target = usize::try_from(ox + i as i64 - i64::from(left)).ok().and_then(|x| row.get_mut(x));
            if let (Some(colour), Some(target)) = (pixel, target) {
                *target = *colour;
            }
        }
    }

    fn origin(&self, at: (u32, u32)) -> (i64, i64) {
        (i64::from(at.0) - i64::from(self.hot.0), i64::from(at.1) - i64::from(self.hot.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_drawn_where_it_points() {
        let white = [255, 255, 255, 0];
        let pixels = [white; 4].concat();
        let cursor = Cursor::new(Rect::new(1, 1, 2, 2), &pixels, &[0b1000_0000, 0b1100_0000]).unwrap();
        assert_eq!(cursor.area((5, 5)), Rect::new(4, 4, 2, 2));
        assert_eq!(cursor.area((0, 0)), Rect::new(0, 0, 1, 1));
        let mut row = [0; 4];
        cursor.draw((5, 5), 4, 3, &mut row);
        assert_eq!(row, [0, 0xffffff, 0, 0]);
        cursor.draw((5, 5), 5, 5, &mut row);
        assert_eq!(row, [0xffffff, 0xffffff, 0, 0]);
        cursor.draw((5, 5), 9, 0, &mut row);
        assert_eq!(Cursor::new(Rect::new(0, 0, 2, 2), &pixels, &[0, 0]), None);
        assert_eq!(Cursor::new(Rect::new(9, 9, 0, 0), &[], &[]), None);
    }
}
