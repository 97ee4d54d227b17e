//! Where people look: the screen and the serial line, both.
//!
//! The kernel names its consoles in `/sys/class/tty/console/active`; every line goes to each of them directly.
//! `/dev/kmsg` would be rate-limited, and `quiet` would hide it; `/dev/console` is only the last `console=`.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Mutex,
};

/// The open consoles of this machine.
#[derive(Debug, Default)]
pub struct Consoles {
    open: Mutex<Vec<(String, File)>>,
}

impl Consoles {
    /// No console yet.
    pub const fn closed() -> Self {
        Consoles { open: Mutex::new(Vec::new()) }
    }

    /// Opens what the kernel uses. Call again after `/dev` or `/sys` has changed. One that can't be opened (no such serial port)
    /// is left out.
    pub fn open(&self, sysroot: &Path) {
        let active =
            std::fs::read_to_string(sysroot.join("sys/class/tty/console/active")).unwrap_or_default();
        let mut open: Vec<_> = active.split_whitespace().filter_map(|tty| open_tty(sysroot, tty)).collect();
        if open.is_empty() {
            open.extend(open_tty(sysroot, "console"));
        }
        *self.lock() = open;
    }

    /// Writes a line everywhere.
    pub fn line(&self, line: &str) {
        self.write(line, |_| true);
    }

    /// Writes a line to serial consoles only: what would flood the screen, and what a log collector wants.
    pub fn serial_line(&self, line: &str) {
        self.write(line, |tty| tty.starts_with("ttyS") || tty.starts_with("ttyAMA"));
    }

    fn write(&self, line: &str, wanted: impl Fn(&str) -> bool) {
        // Terminals in raw mode need the carriage return; the others do not mind it.
        let bytes = format!("{}\r\n", line.trim_end());
        for (tty, file) in self.lock().iter_mut() {
            if wanted(tty) {
                let _ = file.write_all(bytes.as_bytes());
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(String, File)>> {
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn open_tty(sysroot: &Path, tty: &str) -> Option<(String, File)> {
    let path = sysroot.join("dev").join(tty);
    let file =
        OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC).open(path).ok()?;
    Some((tty.to_owned(), file))
}
