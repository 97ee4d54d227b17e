//! The power button: libvirt presses it to shut a guest down, a person to turn a workstation off.
//!
//! Reads the kernel's input devices (`linux/input.h`); those that have a power key are listened to.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

/// `KEY_POWER`.
const POWER_KEY: usize = 116;
/// `struct input_event`: two 64-bit times, type, code, value.
const EVENT: usize = 24;

/// True when a key bitmap of sysfs (64-bit words in hex, highest first) has the power key.
fn has_power_key(bitmap: &str) -> bool {
    let words: Vec<&str> = bitmap.split_whitespace().rev().collect();
    let word = words.get(POWER_KEY / 64).and_then(|w| u64::from_str_radix(w, 16).ok());
    word.is_some_and(|w| w >> (POWER_KEY % 64) & 1 == 1)
}

/// True when these events hold a press of the power key.
fn pressed(events: &[u8]) -> bool {
    const EV_KEY: u16 = 1;
    events.chunks_exact(EVENT).any(|event| {
        let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
        half(16) == EV_KEY && usize::from(half(18)) == POWER_KEY && half(20) == 1
    })
}

/// Devices below `sysroot` that have a power key.
fn devices(sysroot: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(sysroot.join("sys/class/input")).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_name().to_string_lossy().starts_with("event"))
        .filter(|e| {
            let bitmap = fs::read_to_string(e.path().join("device/capabilities/key")).unwrap_or_default();
            has_power_key(&bitmap)
        })
        .map(|e| sysroot.join("dev/input").join(e.file_name()))
        .collect()
}

/// Waits until the button is pressed. Keyboards come and go: the kernel tells (inotify), and only then are they looked at again.
pub fn wait(sysroot: &Path) -> Result<()> {
    let directory = sysroot.join("dev/input");
    // The first device would make it.
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let changes =
        Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("asking for changes")?;
    changes
        .add_watch(&directory, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE)
        .with_context(|| format!("watching {}", directory.display()))?;
    let mut open: HashMap<PathBuf, File> = HashMap::new();
    loop {
        // All of them are forgotten by looking at all devices.
        let _ = changes.read_events();
        let present = devices(sysroot);
        open.retain(|path, _| present.contains(path));
        for path in present {
            if !open.contains_key(&path)
                && let Ok(file) = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path)
            {
                open.insert(path, file);
            }
        }
        let all = open.values().map(AsFd::as_fd).chain([changes.as_fd()]);
        let mut fds: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let _ = poll(&mut fds, PollTimeout::NONE);
        let mut gone = Vec::new();
        for (path, file) in &mut open {
            let mut events = [0; EVENT * 64];
            match file.read(&mut events) {
                Ok(length) if pressed(&events[..length]) => return Ok(()),
                Ok(0) => gone.push(path.clone()),
                Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => gone.push(path.clone()),
                _ => {}
            }
        }
        for path in gone {
            open.remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_and_events() {
        assert!(has_power_key("10000000000000 0"));
        assert!(has_power_key("402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe"));
        assert!(!has_power_key("70000 0 0 0 0"));
        assert!(!has_power_key("") && !has_power_key("x y"));
        let mut event = [0u8; EVENT];
        event[16] = 1;
        event[18] = 116;
        assert!(!pressed(&event), "released");
        event[20] = 1;
        assert!(pressed(&event) && !pressed(&event[..20]));
    }
}
