//! Keyboards, mice and tablets of the workstation, as the kernel's evdev files; they may come and go.
//!
//! Devices are grabbed: what a person types for the guest must not reach the text console behind the picture.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use evdev::{
    AbsoluteAxisCode, Device, EventSummary, EventType, InputEvent, KeyCode, LedCode, RelativeAxisCode,
};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::pointer::Motion;

/// What a person did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A key went down, went up, or repeats (as another down).
    Key {
        /// Kernel key code.
        key: u16,
        /// Down or repeated.
        down: bool,
    },
    /// A pointing device spoke.
    Point(Motion),
    /// A device's report is complete.
    Done,
}

/// All devices under one directory.
#[derive(Debug)]
pub struct Devices {
    directory: PathBuf,
    watch: Inotify,
    watching: bool,
    open: BTreeMap<PathBuf, Opened>,
}

#[derive(Debug)]
struct Opened {
    device: Device,
    ranges: BTreeMap<u16, (i32, i32)>,
}

impl Devices {
    /// Watches `directory` (`/dev/input`), which need not be there yet.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let mut devices =
            Self { directory: directory.to_owned(), watch, watching: false, open: BTreeMap::new() };
        devices.rescan();
        Ok(devices)
    }

    /// Opens what is new. Called again when the watch speaks, and now and then until the directory is there.
    pub fn rescan(&mut self) {
        if !self.watching {
            // Attributes too: a device file is born closed to us and opened up by a later change of mode.
            let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE;
            self.watching = self.watch.add_watch(&self.directory, flags).is_ok();
        }
        let _ = self.watch.read_events();
        let paths: Vec<PathBuf> = std::fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("event")))
            .collect();
        self.open.retain(|path, _| paths.contains(path));
        for path in paths {
            if !self.open.contains_key(&path)
                && let Some(opened) = open(&path)
            {
                self.open.insert(path, opened);
            }
        }
    }

    /// The directory is watched; until then [`Devices::rescan`] must be called by the clock.
    pub fn is_watching(&self) -> bool {
        self.watching
    }

    /// The watch, to wait on.
    pub fn watch(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// The devices, to wait on, in the order that [`Devices::read`] counts them.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.open.values().map(|o| o.device.as_fd())
    }

    /// Reads what these devices have to say. One that fails is gone; true when any is.
    pub fn read(&mut self, ready: &[bool], acts: &mut Vec<Act>) -> bool {
        let mut gone = Vec::new();
        for ((path, opened), ready) in self.open.iter_mut().zip(ready) {
            if !ready {
                continue;
            }
            match opened.device.fetch_events() {
                Ok(events) => acts.extend(events.filter_map(|event| act(event, &opened.ranges))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => gone.push(path.clone()),
            }
        }
        self.open.retain(|path, _| !gone.contains(path));
        !gone.is_empty()
    }

    /// Sets the lock lights of all keyboards: bit 0 scroll, bit 1 num, bit 2 caps.
    pub fn set_lights(&mut self, lights: u8) {
        for opened in self.open.values_mut() {
            let Some(known) = opened.device.supported_leds() else { continue };
            let events: Vec<_> = [(LedCode::LED_SCROLLL, 1), (LedCode::LED_NUML, 2), (LedCode::LED_CAPSL, 4)]
                .into_iter()
                .filter(|(led, _)| known.contains(*led))
                .map(|(led, bit)| InputEvent::new(EventType::LED.0, led.0, i32::from(lights & bit != 0)))
                .collect();
            // A light that stays dark is no reason to stop.
            let _ = opened.device.send_events(&events);
        }
    }
}

/// Opens a device if it is a keyboard or points at places; others (power buttons, touch pads) stay with the system.
fn open(path: &Path) -> Option<Opened> {
    let mut device = Device::open(path).ok()?;
    let keys = device.supported_keys()?;
    let keyboard = keys.contains(KeyCode::KEY_A) && keys.contains(KeyCode::KEY_ENTER);
    let mouse = keys.contains(KeyCode::BTN_LEFT)
        && device.supported_relative_axes().is_some_and(|axes| axes.contains(RelativeAxisCode::REL_X));
    let tablet = (keys.contains(KeyCode::BTN_LEFT) || keys.contains(KeyCode::BTN_TOUCH))
        && !keys.contains(KeyCode::BTN_TOOL_FINGER)
        && device.supported_absolute_axes().is_some_and(|axes| axes.contains(AbsoluteAxisCode::ABS_X));
    if !(keyboard || mouse || tablet) {
        return None;
    }
    let ranges = device
        .get_absinfo()
        .map(|all| all.map(|(axis, info)| (axis.0, (info.minimum(), info.maximum()))).collect())
        .unwrap_or_default();
    device.set_nonblocking(true).ok()?;
    device.grab().ok()?;
    Some(Opened { device, ranges })
}

fn act(event: InputEvent, ranges: &BTreeMap<u16, (i32, i32)>) -> Option<Act> {
    match event.destructure() {
        EventSummary::Synchronization(..) => Some(Act::Done),
        EventSummary::RelativeAxis(_, axis, by) => Some(Act::Point(Motion::Relative(axis, by))),
        EventSummary::AbsoluteAxis(_, axis, value) => {
            let (least, most) = *ranges.get(&axis.0)?;
            Some(Act::Point(Motion::Absolute { axis, value, least, most }))
        }
        EventSummary::Key(_, key, value) if (0x100..0x160).contains(&key.code()) => {
            (value < 2).then_some(Act::Point(Motion::Button(key, value == 1)))
        }
        EventSummary::Key(_, key, value) => Some(Act::Key { key: key.code(), down: value != 0 }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_acts() {
        let ranges = BTreeMap::from([(AbsoluteAxisCode::ABS_X.0, (0, 99))]);
        let of = |kind: EventType, code: u16, value: i32| act(InputEvent::new(kind.0, code, value), &ranges);
        assert_eq!(of(EventType::KEY, 30, 2), Some(Act::Key { key: 30, down: true }));
        assert_eq!(of(EventType::KEY, 30, 0), Some(Act::Key { key: 30, down: false }));
        let left = Act::Point(Motion::Button(KeyCode::BTN_LEFT, true));
        assert_eq!(of(EventType::KEY, KeyCode::BTN_LEFT.code(), 1), Some(left));
        let x = Motion::Absolute { axis: AbsoluteAxisCode::ABS_X, value: 5, least: 0, most: 99 };
        assert_eq!(of(EventType::ABSOLUTE, 0, 5), Some(Act::Point(x)));
        assert_eq!(of(EventType::ABSOLUTE, 1, 5), None);
        assert_eq!(of(EventType::SYNCHRONIZATION, 0, 0), Some(Act::Done));
    }

    #[test]
    fn a_directory_that_is_not_there_yet() {
        let root = std::env::temp_dir().join(format!("labshift-kiosk-{}", std::process::id()));
        let mut devices = Devices::new(&root).unwrap();
        assert!(!devices.is_watching());
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("event0"), "not a device").unwrap();
        devices.rescan();
        assert!(devices.is_watching());
        assert_eq!(devices.fds().count(), 0);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
