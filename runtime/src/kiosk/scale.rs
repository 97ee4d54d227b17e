//! Where a guest's picture lies on the screen.
//!
//! The kiosk first asks the guest for the screen's own size. Until the guest follows, or when it can't, its picture
//! is centred: enlarged by a whole number when that fits (text stays sharp), else shrunk to fit with its shape kept.

use super::rect::Rect;

/// A guest's picture placed on a screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Guest's pixels across and down.
    pub source: (u32, u32),
    /// Where they lie on the screen.
    pub target: Rect,
}

impl Placement {
    /// Places a picture of size `source` on a screen of size `screen`. An empty picture gets an empty place.
    pub fn new(source: (u32, u32), screen: (u32, u32)) -> Self {
        let (sw, sh) = source;
        if sw == 0 || sh == 0 || screen.0 == 0 || screen.1 == 0 {
            return Self { source, target: Rect::default() };
        }
        let times = (screen.0 / sw).min(screen.1 / sh);
        let (width, height) = if times >= 1 {
            (sw * times, sh * times)
        } else if u64::from(screen.0) * u64::from(sh) <= u64::from(screen.1) * u64::from(sw) {
            (screen.0, portion(screen.0, sh, sw).max(1))
        } else {
            (portion(screen.1, sw, sh).max(1), screen.1)
        };
        let target = Rect::new((screen.0 - width) / 2, (screen.1 - height) / 2, width, height);
        Self { source, target }
    }

    /// One guest pixel is one screen pixel.
    pub fn is_direct(&self) -> bool {
        (self.target.width, self.target.height) == self.source
    }

    /// The guest's column under a screen column. Only for columns inside `target`.
    pub fn source_x(&self, x: u32) -> u32 {
        portion(x.saturating_sub(self.target.x), self.source.0, self.target.width.max(1))
            .min(self.source.0.saturating_sub(1))
    }

    /// The guest's row under a screen row.
    pub fn source_y(&self, y: u32) -> u32 {
        portion(y.saturating_sub(self.target.y), self.source.1, self.target.height.max(1))
            .min(self.source.1.saturating_sub(1))
    }

    /// The screen's part that shows any of the guest's `rect`.
    pub fn to_screen(&self, rect: Rect) -> Rect {
        let Some(r) = rect.intersection(Rect::of_size(self.source.0, self.source.1)) else {
            return Rect::default();
        };
        let left = portion(r.x, self.target.width, self.source.0);
        let top = portion(r.y, self.target.height, self.source.1);
        let right = portion_up(r.right(), self.target.width, self.source.0);
        let bottom = portion_up(r.bottom(), self.target.height, self.source.1);
        Rect::new(self.target.x + left, self.target.y + top, right - left, bottom - top)
    }

    /// The guest's point under a point of the screen; the nearest edge when it lies outside.
    pub fn to_guest(&self, x: u32, y: u32) -> (u16, u16) {
        let inside = |v: u32, from: u32, length: u32| v.clamp(from, from + length.saturating_sub(1));
        let x = self.source_x(inside(x, self.target.x, self.target.width));
        let y = self.source_y(inside(y, self.target.y, self.target.height));
        (u16::try_from(x).unwrap_or(u16::MAX), u16::try_from(y).unwrap_or(u16::MAX))
    }
}

fn portion(value: u32, numerator: u32, denominator: u32) -> u32 {
    (u64::from(value) * u64::from(numerator) / u64::from(denominator)) as u32
}

fn portion_up(value: u32, numerator: u32, denominator: u32) -> u32 {
    (u64::from(value) * u64::from(numerator)).div_ceil(u64::from(denominator)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn same_centred_doubled_and_shrunk() {
        for (source, screen, target) in [
            ((1280, 800), (1280, 800), Rect::new(0, 0, 1280, 800)),
            ((1024, 768), (1280, 800), Rect::new(128, 16, 1024, 768)),
            ((720, 400), (1920, 1080), Rect::new(240, 140, 1440, 800)),
            ((1920, 1080), (1280, 800), Rect::new(0, 40, 1280, 720)),
            ((800, 1600), (1280, 800), Rect::new(440, 0, 400, 800)),
            ((0, 0), (1280, 800), Rect::default()),
            ((65535, 1), (640, 480), Rect::new(0, 239, 640, 1)),
        ] {
            assert_eq!(Placement::new(source, screen).target, target, "{source:?} on {screen:?}");
        }
    }

    #[test]
    fn pointer_follows_the_picture() {
        let p = Placement::new((640, 400), (1280, 1000));
        assert_eq!(p.target, Rect::new(0, 100, 1280, 800));
        assert_eq!(p.to_guest(0, 0), (0, 0));
        assert_eq!(p.to_guest(1279, 899), (639, 399));
        assert_eq!(p.to_guest(1279, 999), (639, 399));
        assert_eq!(p.to_guest(641, 500), (320, 200));
    }

    proptest! {
        /// Every screen pixel that shows a damaged guest pixel is in the damaged screen part.
        #[test]
        fn damage_covers_its_pixels(sw in 1u32..300, sh in 1u32..300, w in 1u32..300, h in 1u32..300,
                                    x in 0u32..300, y in 0u32..300) {
            let p = Placement::new((sw, sh), (w, h));
            prop_assert!(Rect::of_size(w, h).contains(p.target));
            let (x, y) = (x % w, y % h);
            if p.target.contains(Rect::new(x, y, 1, 1)) {
                let (gx, gy) = (p.source_x(x), p.source_y(y));
                prop_assert!(gx < sw && gy < sh);
                prop_assert!(p.to_screen(Rect::new(gx, gy, 1, 1)).contains(Rect::new(x, y, 1, 1)));
                prop_assert_eq!(p.to_guest(x, y), (gx as u16, gy as u16));
            }
        }
    }
}
