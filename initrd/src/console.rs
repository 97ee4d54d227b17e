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

use crate::{page::Page, screen};

/// White on red, without a cursor: the text screen's page, and what lies under the framebuffer's.
const BARE: &str = "\x1b[0;1;37;41m\x1b[2J\x1b[H\x1b[?25l";

/// The open consoles of this machine.
#[derive(Debug)]
pub struct Consoles {
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    sysroot: PathBuf,
    consoles: Vec<Console>,
    /// The page that is on the screen: lines must not write over it.
    page: Option<Page>,
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
        Consoles { open: Mutex::new(Open { sysroot: PathBuf::new(), consoles: Vec::new(), page: None }) }
    }

    /// Opens what the kernel uses. Call again after `/dev` or `/sys` has changed. One that can't be opened (no such serial port)
    /// is left out.
    pub fn open(&self, sysroot: &Path) {
        let mut consoles: Vec<_> = active(sysroot).iter().filter_map(|tty| open_tty(sysroot, tty)).collect();
        if consoles.is_empty() {
            consoles.extend(open_tty(sysroot, "console"));
        }
        let mut open = self.lock();
        open.sysroot = sysroot.to_owned();
        open.consoles = consoles;
    }

    /// Shows a page: as a block on serial lines, over the whole of the screen. Lines do not reach the screen until
    /// [`Consoles::leave_page`].
    pub fn show(&self, page: &Page) {
        self.write(&page.block().replace('\n', "\r\n"), |c| !c.is_screen());
        if self.lock().page.replace(page.clone()).is_none() {
            self.write(BARE, Console::is_screen);
        }
        self.fill_screen(page);
    }

    /// Shows the page, if there is one, on the screen once more: a driver has brought a better one.
    pub fn show_again(&self) {
        let page = self.lock().page.clone();
        if let Some(page) = page {
            self.fill_screen(&page);
        }
    }

    fn fill_screen(&self, page: &Page) {
        let sysroot = self.lock().sysroot.clone();
        if !screen::paint(&sysroot, page).unwrap_or(false) {
            let text = format!("{BARE}{}", page.block().trim().replace('\n', "\r\n"));
            self.write(&text, Console::is_screen);
        }
    }

    /// Takes the page off the screen, if there is one.
    pub fn leave_page(&self) {
        let mut open = self.lock();
        if open.page.take().is_none() {
            return;
        }
        // Nobody could be told if it failed: the screen is where it would be said.
        let _ = screen::clear(&open.sysroot);
        drop(open);
        self.write("\x1b[0m\x1b[2J\x1b[H\x1b[?25h", Console::is_screen);
    }

    /// Writes a line everywhere.
    pub fn line(&self, line: &str) {
        let page = self.lock().page.is_some();
        self.write(&line_of(line), |c| !(page && c.is_screen()));
    }

    /// Writes a line to serial consoles only: what would flood the screen, and what a log collector wants.
    pub fn serial_line(&self, line: &str) {
        self.write(&line_of(line), |c| c.tty.starts_with("ttyS") || c.tty.starts_with("ttyAMA"));
    }

    fn write(&self, text: &str, wanted: impl Fn(&Console) -> bool) {
        for console in self.lock().consoles.iter_mut().filter(|c| wanted(c)) {
            // A session that had the terminal and ended hangs it up for everybody: opened anew, it works again.
            if console.file.write_all(text.as_bytes()).is_err()
                && let Ok(file) = open_path(&console.path)
            {
                console.file = file;
                let _ = console.file.write_all(text.as_bytes());
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Console {
    /// True for a virtual terminal: `tty0`, `tty1`.
    fn is_screen(&self) -> bool {
        is_screen(&self.tty)
    }
}

/// True for the name of a virtual terminal.
pub fn is_screen(tty: &str) -> bool {
    tty.strip_prefix("tty").is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()))
}

/// Names of the kernel's consoles, such as `tty0` and `ttyS0`.
pub fn active(sysroot: &Path) -> Vec<String> {
    let active = std::fs::read_to_string(sysroot.join("sys/class/tty/console/active")).unwrap_or_default();
    active.split_whitespace().map(str::to_owned).collect()
}

/// Terminals in raw mode need the carriage return; the others do not mind it.
fn line_of(line: &str) -> String {
    format!("{}\r\n", line.trim_end())
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

        let page = Page {
            title: "BOOT FAILED",
            code: "NO-LINK".into(),
            stage: "link",
            sentence: "no port has a link".into(),
            hint: "Check the cable.".into(),
            node: "not known yet".into(),
            mac: "unknown".into(),
            next: "Trying again.".into(),
        };
        consoles.show(&page);
        consoles.line("hidden by the page");
        // A graphics driver comes while the page is up.
        let framebuffer = dir.join("sys/class/graphics/fb0");
        std::fs::create_dir_all(&framebuffer).unwrap();
        for (file, text) in [("virtual_size", "640,400"), ("stride", "2560"), ("bits_per_pixel", "32")] {
            std::fs::write(framebuffer.join(file), text).unwrap();
        }
        std::fs::write(dir.join("dev/fb0"), "").unwrap();
        consoles.show_again();
        let painted = |bytes: Vec<u8>| bytes.contains(&255);
        assert!(painted(std::fs::read(dir.join("dev/fb0")).unwrap()));
        consoles.leave_page();
        consoles.show_again();
        assert!(!painted(std::fs::read(dir.join("dev/fb0")).unwrap()));
        consoles.line("goes on");
        let (screen, serial) = (read("tty0"), read("ttyS0"));
        assert!(screen.contains("\x1b[2J") && screen.contains("NO-LINK") && !screen.contains("hidden"));
        assert!(screen.ends_with("goes on\r\n"));
        assert!(serial.contains("NO-LINK") && serial.contains("hidden") && !serial.contains('\x1b'));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
