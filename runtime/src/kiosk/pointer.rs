//! The pointer: what mice and tablets say becomes one place on the screen and a set of buttons. Pure.

use evdev::{AbsoluteAxisCode, KeyCode, RelativeAxisCode};

/// What pointing devices say, one axis or button at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Motion {
    /// A relative axis moved so far.
    Relative(RelativeAxisCode, i32),
    /// An absolute axis stands at `value` of `least..=most`.
    Absolute {
        /// Axis.
        axis: AbsoluteAxisCode,
        /// Where.
        value: i32,
        /// Smallest value.
        least: i32,
        /// Largest value.
        most: i32,
    },
    /// A button went down or up.
    Button(KeyCode, bool),
}

/// Place, movement and buttons, ready for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Column on the screen.
    pub x: u32,
    /// Row on the screen.
    pub y: u32,
    /// Moved right by so much since the last report.
    pub dx: i32,
    /// Moved down by so much.
    pub dy: i32,
    /// RFB button mask.
    pub buttons: u8,
}

/// Where the pointer is.
#[derive(Debug, Clone)]
pub struct Pointer {
    size: (u32, u32),
    x: u32,
    y: u32,
    moved: (i32, i32),
    buttons: u8,
    wheel: Vec<u8>,
    changed: bool,
}

/// Wheel clicks taken from one report of a device: more is a broken device.
const MOST_CLICKS: i32 = 8;

impl Pointer {
    /// In the middle of a screen of this size.
    pub fn new(width: u32, height: u32) -> Self {
        Self {
            size: (width, height),
            x: width / 2,
            y: height / 2,
            moved: (0, 0),
            buttons: 0,
            wheel: Vec::new(),
            changed: false,
        }
    }

    /// The screen has another size.
    pub fn set_size(&mut self, width: u32, height: u32) {
        self.size = (width, height);
        self.x = self.x.min(width.saturating_sub(1));
        self.y = self.y.min(height.saturating_sub(1));
    }

    /// Lets go of all buttons, as when their device is gone.
    pub fn release(&mut self) {
        self.changed |= self.buttons != 0;
        self.buttons = 0;
    }

    /// Takes one motion.
    pub fn take(&mut self, motion: Motion) {
        match motion {
            Motion::Relative(RelativeAxisCode::REL_X, by) => {
                self.moved.0 = self.moved.0.saturating_add(by);
                self.x = moved(self.x, by, self.size.0);
            }
            Motion::Relative(RelativeAxisCode::REL_Y, by) => {
                self.moved.1 = self.moved.1.saturating_add(by);
                self.y = moved(self.y, by, self.size.1);
            }
            Motion::Relative(RelativeAxisCode::REL_WHEEL, by) => self.click(by, 3, 4),
            Motion::Relative(RelativeAxisCode::REL_HWHEEL, by) => self.click(by, 6, 5),
            Motion::Absolute { axis, value, least, most } => {
                let place = |size: u32| {
                    let span = (i64::from(most) - i64::from(least)).max(1);
                    let at = (i64::from(value) - i64::from(least)).clamp(0, span);
                    (at * i64::from(size.saturating_sub(1)) / span) as u32
                };
                match axis {
                    AbsoluteAxisCode::ABS_X => self.x = place(self.size.0),
                    AbsoluteAxisCode::ABS_Y => self.y = place(self.size.1),
                    _ => return,
                }
            }
            Motion::Button(button, down) => {
                let bit = match button {
                    KeyCode::BTN_LEFT | KeyCode::BTN_TOUCH => 1,
                    KeyCode::BTN_MIDDLE => 2,
                    KeyCode::BTN_RIGHT => 4,
                    _ => return,
                };
                self.buttons = if down { self.buttons | bit } else { self.buttons & !bit };
            }
            Motion::Relative(..) => return,
        }
        self.changed = true;
    }

    /// RFB has a button for each direction of a wheel; a click presses and lets go.
    fn click(&mut self, by: i32, forward: u8, back: u8) {
        let bit = 1 << if by > 0 { forward } else { back };
        for _ in 0..by.saturating_abs().min(MOST_CLICKS) {
            self.wheel.push(bit);
        }
    }

    /// What to tell the guest now: nothing when nothing changed, several reports for wheel clicks.
    pub fn reports(&mut self) -> Vec<Report> {
        if !std::mem::take(&mut self.changed) {
            return Vec::new();
        }
        let (dx, dy) = std::mem::take(&mut self.moved);
        let report = Report { x: self.x, y: self.y, dx, dy, buttons: self.buttons };
        let still = |buttons| Report { dx: 0, dy: 0, buttons, ..report };
        let mut all = vec![report];
        for bit in self.wheel.drain(..) {
            all.extend([still(self.buttons | bit), still(self.buttons)]);
        }
        all
    }
}

fn moved(from: u32, by: i32, size: u32) -> u32 {
    from.saturating_add_signed(by).min(size.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mice_move_within_the_screen() {
        let mut p = Pointer::new(100, 50);
        assert_eq!(p.reports(), []);
        p.take(Motion::Relative(RelativeAxisCode::REL_X, 10));
        p.take(Motion::Relative(RelativeAxisCode::REL_Y, -500));
        assert_eq!(p.reports(), [Report { x: 60, y: 0, dx: 10, dy: -500, buttons: 0 }]);
        p.take(Motion::Relative(RelativeAxisCode::REL_X, i32::MAX));
        assert_eq!(p.reports()[0].x, 99);
        p.set_size(10, 10);
        p.take(Motion::Relative(RelativeAxisCode::REL_Y, 0));
        assert_eq!(p.reports()[0].x, 9);
    }

    #[test]
    fn tablets_span_the_screen() {
        let mut p = Pointer::new(1280, 800);
        for (value, x) in [(0, 0), (32767, 1279), (16384, 639), (-5, 0), (99999, 1279)] {
            p.take(Motion::Absolute { axis: AbsoluteAxisCode::ABS_X, value, least: 0, most: 32767 });
            assert_eq!(p.reports()[0].x, x);
        }
        p.take(Motion::Absolute { axis: AbsoluteAxisCode::ABS_Y, value: 7, least: 7, most: 7 });
        assert_eq!(p.reports()[0].y, 0);
    }

    #[test]
    fn buttons_and_wheel() {
        let mut p = Pointer::new(100, 100);
        p.take(Motion::Button(KeyCode::BTN_RIGHT, true));
        p.take(Motion::Button(KeyCode::BTN_SIDE, true));
        p.take(Motion::Relative(RelativeAxisCode::REL_WHEEL, -2));
        let masks: Vec<_> = p.reports().iter().map(|r| r.buttons).collect();
        assert_eq!(masks, [4, 20, 4, 20, 4]);
        p.release();
        assert_eq!(p.reports()[0].buttons, 0);
        p.take(Motion::Relative(RelativeAxisCode::REL_WHEEL, i32::MIN));
        assert!(p.reports().len() < 20);
    }
}
