//! Rectangles of pixels, and the list of those that must be drawn again.

/// A rectangle in pixels: left, top, width, height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rect {
    /// Left edge.
    pub x: u32,
    /// Top edge.
    pub y: u32,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

impl Rect {
    /// A rectangle from its left, top, width and height.
    pub fn new(x: u32, y: u32, width: u32, height: u32) -> Self {
        Self { x, y, width, height }
    }

    /// A whole surface of this size.
    pub fn of_size(width: u32, height: u32) -> Self {
        Self::new(0, 0, width, height)
    }

    /// First column right of it.
    pub fn right(self) -> u32 {
        self.x.saturating_add(self.width)
    }

    /// First row below it.
    pub fn bottom(self) -> u32 {
        self.y.saturating_add(self.height)
    }

    /// Holds no pixel.
    pub fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// The part that both cover.
    pub fn intersection(self, other: Rect) -> Option<Rect> {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let (right, bottom) = (self.right().min(other.right()), self.bottom().min(other.bottom()));
        (x < right && y < bottom).then(|| Rect::new(x, y, right - x, bottom - y))
    }

    /// The smallest rectangle around both.
    pub fn union(self, other: Rect) -> Rect {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        Rect::new(x, y, self.right().max(other.right()) - x, self.bottom().max(other.bottom()) - y)
    }

    /// Covers all of `other`.
    pub fn contains(self, other: Rect) -> bool {
        self.intersection(other) == Some(other)
    }

    fn area(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

/// Rectangles to draw again, few and clipped to one surface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Damage {
    bounds: Rect,
    rects: Vec<Rect>,
}

/// Above this many rectangles one big copy is cheaper than the bookkeeping.
const MOST_RECTS: usize = 16;

impl Damage {
    /// No damage on a surface of this size.
    pub fn new(width: u32, height: u32) -> Self {
        Self { bounds: Rect::of_size(width, height), rects: Vec::new() }
    }

    /// Adds what of `rect` lies on the surface.
    pub fn add(&mut self, rect: Rect) {
        let Some(mut rect) = rect.intersection(self.bounds) else { return };
        if self.rects.iter().any(|r| r.contains(rect)) {
            return;
        }
        // A neighbour that joins without covering much that is undamaged is swallowed; then look again.
        while let Some(i) = self.rects.iter().position(|r| {
            let joined = r.union(rect);
            joined.area() <= (r.area() + rect.area()) * 5 / 4
        }) {
            rect = rect.union(self.rects.swap_remove(i));
        }
        self.rects.push(rect);
        if self.rects.len() > MOST_RECTS {
            let all = self.rects.drain(..).fold(Rect::default(), Rect::union);
            self.rects.push(all);
        }
    }

    /// The whole surface.
    pub fn add_all(&mut self) {
        self.rects.clear();
        self.rects.push(self.bounds);
    }

    /// Nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.rects.is_empty()
    }

    /// Takes the list, leaving none.
    pub fn take(&mut self) -> Vec<Rect> {
        std::mem::take(&mut self.rects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn intersections_are_what_both_cover() {
        let a = Rect::new(0, 0, 10, 10);
        assert_eq!(a.intersection(Rect::new(5, 6, 10, 10)), Some(Rect::new(5, 6, 5, 4)));
        assert_eq!(a.intersection(Rect::new(10, 0, 5, 5)), None);
        assert_eq!(a.intersection(Rect::new(u32::MAX, 0, u32::MAX, 5)), None);
        assert!(a.contains(Rect::new(2, 2, 3, 3)));
        assert!(!a.contains(Rect::new(8, 8, 3, 3)));
    }

    #[test]
    fn damage_is_clipped_and_joined() {
        let mut damage = Damage::new(100, 100);
        damage.add(Rect::new(200, 0, 10, 10));
        assert!(damage.is_empty());
        damage.add(Rect::new(90, 90, 50, 50));
        damage.add(Rect::new(0, 0, 10, 10));
        damage.add(Rect::new(10, 0, 10, 10));
        damage.add(Rect::new(2, 2, 3, 3));
        assert_eq!(damage.take(), [Rect::new(90, 90, 10, 10), Rect::new(0, 0, 20, 10)]);
        assert!(damage.is_empty());
        for i in 0..40 {
            damage.add(Rect::new((i * 37) % 100, (i * 61) % 100, 2, 2));
        }
        assert!(damage.take().len() <= MOST_RECTS);
    }

    proptest! {
        /// Whatever is added stays covered, on the surface.
        #[test]
        fn no_damage_is_lost(rects in prop::collection::vec((0u32..120, 0u32..120, 1u32..60, 1u32..60), 1..40)) {
            let bounds = Rect::of_size(100, 100);
            let mut damage = Damage::new(100, 100);
            for &(x, y, w, h) in &rects {
                damage.add(Rect::new(x, y, w, h));
            }
            let out = damage.take();
            for r in &out {
                prop_assert!(bounds.contains(*r));
            }
            for &(x, y, w, h) in &rects {
                if let Some(r) = Rect::new(x, y, w, h).intersection(bounds) {
                    for (px, py) in [(r.x, r.y), (r.right() - 1, r.bottom() - 1), (r.x + r.width / 2, r.y)] {
                        prop_assert!(out.iter().any(|o| o.contains(Rect::new(px, py, 1, 1))));
                    }
                }
            }
        }
    }
}
