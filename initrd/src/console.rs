//! Where people look: the screen and the serial line, both.
//!
//! The kernel names its consoles in `/sys/class/tty/console/active`; every line goes to each of them directly.
//! `/dev/kmsg` would be rate-limited, and `quiet` would hide it; `/dev/console` is only the last `console=`.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// The open consoles of this machine.
#[derive(Debug, Default)]
pub struct Consoles {
    open: Mutex<Vec<Console>>,
}

#[derive(Debug)]
struct Console {
    tty: String,
    path: PathBuf,
    file: File,
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
        for console in self.lock().iter_mut().filter(|c| wanted(&c.tty)) {
            // A session that had the terminal and ended hangs it up for everybody: opened anew, it works again.
            if console.file.write_all(bytes.as_bytes()).is_err()
                && let Ok(file) = open_path(&console.path)
            {
                console.file = file;
                let _ = console.file.write_all(bytes.as_bytes());
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Console>> {
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn open_tty(sysroot: &Path, tty: &str) -> Option<Console> {
    let path = sysroot.join("dev").join(tty);
    let file = open_path(&path).ok()?;
    Some(Console { tty: tty.to_owned(), path, file })
}

fn open_path(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_to_every_console_that_the_kernel_uses() {
        let dir = std::env::temp_dir().join(format!("labshift-console-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("sys/class/tty/console")).unwrap();
        std::fs::create_dir_all(dir.join("dev")).unwrap();
        std::fs::write(dir.join("sys/class/tty/console/active"), "tty0 ttyS0 ttyS9\n").unwrap();
        for tty in ["tty0", "ttyS0", "console"] {
            std::fs::write(dir.join("dev").join(tty), "").unwrap();
        }
        let consoles = Consoles::closed();
        consoles.open(&dir);
        consoles.line("stage");
        consoles.serial_line("noise");
        let read = |tty: &str| std::fs::read_to_string(dir.join("dev").join(tty)).unwrap();
        assert_eq!((read("tty0"), read("ttyS0")), ("stage\r\n".into(), "stage\r\nnoise\r\n".into()));
        assert_eq!(read("console"), "");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
