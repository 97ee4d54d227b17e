//! The rescue shell of a boot that has failed: offered on every console while the next attempt is waited for, when the recipe has
//! `[rescue]`. Without that table the initramfs holds neither keys nor password hash nor shell, and nobody is asked.
//!
//! ```text
//! counting down ── Enter ──> asking ── right code or password ──> shell, until it ends ──> next attempt
//!       ^                     │  ^ │
//!       └── nobody types ─────┘  └─┘ wrong: a pause that doubles; after the last try the door stays shut until the machine restarts
//! ```
//!
//! Where the recipe names admins' keys, a challenge is shown, and its code opens: [`labshift_model::rescue`]. The challenge is in the log, too,
//! and so at the server, if it can be reached. A code opens once: then there is another challenge.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use labshift_model::{
    paths,
    rescue::{AdminKey, Question, is_code},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use sha_crypt::ShaCrypt;
use yescrypt::{PasswordVerifier, Yescrypt};

use crate::{console, journal::JOURNAL, sys};

/// Wrong codes and passwords before the door stays shut.
const TRIES: u32 = 5;
/// The pause after the first wrong one.
const PAUSE: Duration = Duration::from_secs(2);
/// How long somebody may take to type the password.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long somebody may take to carry the challenge to a PC, and the code back.
const CODE_PATIENCE: Duration = Duration::from_secs(600);

/// Who may come in, and how often it was tried.
#[derive(Debug)]
pub struct Door {
    /// Hash of a password.
    hash: Option<String>,
    keys: Vec<AdminKey>,
    /// What the owners of the keys are asked.
    question: Option<Question>,
    shell: PathBuf,
    wrong: u32,
    pause: Duration,
}

/// What a code or password brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is right.
    Open,
    /// It is wrong: nothing is heard for this time.
    Wrong(Duration),
    /// It is wrong, and was the last try.
    Shut,
}

impl Door {
    /// The door of this initramfs, if its recipe has one.
    pub fn read(sysroot: &Path) -> Option<Door> {
        let text = fs::read_to_string(sysroot.join(&paths::RESCUE[1..])).ok()?;
        let shell = sysroot.join(&paths::RESCUE_SHELL[1..]);
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys: Vec<AdminKey> = lines().filter_map(|line| line.parse().ok()).collect();
        let hash = lines().find(|line| line.starts_with('$')).map(str::to_owned);
        if (hash.is_none() && keys.is_empty()) || !shell.exists() {
            return None;
        }
        Some(Door { hash, keys, question: None, shell, wrong: 0, pause: PAUSE })
    }

    /// From now on there is a challenge, if there are keys. In time for the report of the failure.
    pub fn offer(&mut self) {
        if self.question.is_none() {
            self.ask_anew();
        }
    }

    /// A challenge that nobody has seen. Without good random numbers there is none, and no code opens.
    fn ask_anew(&mut self) {
        self.question = None;
        if self.keys.is_empty() {
            return;
        }
        let mut random = [0; 32];
        match File::open("/dev/random").and_then(|mut source| source.read_exact(&mut random)) {
            Ok(()) => {
                let question = Question::new(&random);
                JOURNAL.say("rescue", &format!("challenge {}", question.challenge()));
                self.question = Some(question);
            }
            Err(why) => JOURNAL.say("rescue", &format!("no challenge: {why}")),
        }
    }

    /// How long somebody may take to type.
    fn patience(&self) -> Duration {
        if self.question.is_some() { CODE_PATIENCE } else { PATIENCE }
    }

    /// What is said to whoever wants to come in.
    fn prompt(&self) -> String {
        let password = if self.hash.is_some() { "Password of the rescue shell: " } else { "" };
        match &self.question {
            None => format!("\r\n{password}"),
            Some(question) => {
                let challenge = question.challenge();
                let what = if password.is_empty() { "Code" } else { "Code or password" };
                format!("\r\nOn your PC: labshift node rescue {challenge}\r\n{what} of the rescue shell: ")
            }
        }
    }

    /// Too many wrong ones: it opens no more.
    pub fn is_shut(&self) -> bool {
        self.wrong >= TRIES
    }

    /// Tries a code or password.
    pub fn knock(&mut self, typed: &str) -> Answer {
        if self.is_shut() {
            return Answer::Shut;
        }
        let fits = |question: &Question| self.keys.iter().any(|key| is_code(typed, &question.code(key)));
        if self.question.as_ref().is_some_and(fits) {
            self.wrong = 0;
            self.ask_anew();
            return Answer::Open;
        }
        if self.hash.as_ref().is_some_and(|hash| is_right(hash, typed)) {
            self.wrong = 0;
            return Answer::Open;
        }
        self.wrong += 1;
        if self.is_shut() { Answer::Shut } else { Answer::Wrong(self.pause * (1 << (self.wrong - 1))) }
    }
}

/// Compares with a hash as crypt(5) has it. One of another form fits no password.
fn is_right(hash: &str, password: &str) -> bool {
    if hash.starts_with("$y$") {
        Yescrypt::default().verify_password(password.as_bytes(), hash).is_ok()
    } else {
        ShaCrypt::SHA512.verify_password(password.as_bytes(), hash).is_ok()
    }
}

/// Waits for the next attempt, and lets in whoever has the code or the password. `opened` is called when somebody came in.
pub fn wait(door: &mut Door, sysroot: &Path, time: Duration, opened: impl Fn()) {
    let mut until = Instant::now() + time;
    let mut terminals: Vec<Terminal> =
        console::active(sysroot).iter().filter_map(|tty| Terminal::open(sysroot, tty).ok()).collect();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || terminals.is_empty() || door.is_shut() {
            drop(terminals);
            std::thread::sleep(left);
            return;
        }
        let Some((at, line)) = next_line(&mut terminals, left) else { continue };
        let Some(terminal) = terminals.get_mut(at) else { continue };
        let patience = Instant::now() + door.patience();
        if !std::mem::replace(&mut terminal.asking, true) {
            if console::is_screen(&terminal.tty) {
                JOURNAL.leave_page();
            }
            terminal.ask(&door.prompt());
            until = until.max(patience);
            continue;
        }
        match door.knock(&line) {
            Answer::Open => {
                JOURNAL.say("rescue", &format!("the shell is open on {}", terminal.tty));
                opened();
                let said = match terminal.run(&door.shell) {
                    Ok(()) => "the shell has ended; trying again".to_owned(),
                    Err(why) => format!("{} does not run: {why}", door.shell.display()),
                };
                JOURNAL.say("rescue", &said);
                return;
            }
            Answer::Wrong(pause) => {
                JOURNAL.say("rescue", &format!("wrong code or password on {}", terminal.tty));
                std::thread::sleep(pause);
                terminal.ask(&door.prompt());
                until = until.max(Instant::now() + door.patience());
            }
            Answer::Shut => {
                JOURNAL.say(
                    "rescue",
                    &format!(
                        "wrong code or password on {}, for the {TRIES}th time: no more are taken",
                        terminal.tty
                    ),
                );
            }
        }
    }
}

/// Waits for a line on one of them. A terminal that is hung up is left alone.
fn next_line(terminals: &mut Vec<Terminal>, time: Duration) -> Option<(usize, String)> {
    let mut ready: Vec<PollFd<'_>> =
        terminals.iter().map(|t| PollFd::new(t.file.as_fd(), PollFlags::POLLIN)).collect();
    let milliseconds = time.as_millis().clamp(1, 3_600_000) as u32;
    poll(&mut ready, PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)).ok()?;
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    let found = ready.iter().position(|fd| fd.revents().is_some_and(|r| !r.is_empty()))?;
    let is_gone = ready[found].revents().is_some_and(|r| r.intersects(gone));
    drop(ready);
    let mut buffer = [0; 512];
    let read = terminals.get_mut(found).map(|t| t.file.read(&mut buffer));
    match read {
        Some(Ok(length)) if !is_gone => {
            let line = String::from_utf8_lossy(&buffer[..length]);
            Some((found, line.trim_end_matches(['\r', '\n']).to_owned()))
        }
        _ => {
            terminals.remove(found);
            None
        }
    }
}

/// A console that is listened to: whole lines, and no echo. As it was before, when it is dropped.
struct Terminal {
    tty: String,
    path: PathBuf,
    file: File,
    before: Termios,
    asking: bool,
}

impl Terminal {
    fn open(sysroot: &Path, tty: &str) -> io::Result<Terminal> {
        let path = sysroot.join("dev").join(tty);
        let flags = libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path)?;
        let before = tcgetattr(&file)?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHONL);
        quiet.local_flags.insert(LocalFlags::ICANON);
        // What was typed before is not meant.
        tcsetattr(&file, SetArg::TCSAFLUSH, &quiet)?;
        Ok(Terminal { tty: tty.to_owned(), path, file, before, asking: false })
    }

    fn ask(&mut self, prompt: &str) {
        // Who can't be asked does not answer.
        let _ = self.file.write_all(prompt.as_bytes());
    }

    /// Runs the shell here until it ends, and ends what it has left.
    fn run(&mut self, shell: &Path) -> io::Result<()> {
        tcsetattr(&self.file, SetArg::TCSAFLUSH, &self.before)?;
        let commands = shell.parent().unwrap_or(Path::new("/bin"));
        Command::new(shell).arg("--install").arg("-s").arg(commands).status()?;
        let open = || {
            let file =
                OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&self.path)?;
            Ok::<_, io::Error>(Stdio::from(file))
        };
        let mut command = Command::new(shell);
        command
            .arg("sh")
            .env_clear()
            .env("PATH", commands)
            .env("HOME", "/")
            .env("TERM", if console::is_screen(&self.tty) { "linux" } else { "vt100" })
            .env("PS1", "rescue# ")
            .stdin(open()?)
            .stdout(open()?)
            .stderr(open()?);
        sys::prepare(&mut command, sys::Birth { terminal: true, ..Default::default() });
        let ended = command.status();
        end_all();
        ended.map(drop)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A line that was hung up needs nothing.
        let _ = tcsetattr(&self.file, SetArg::TCSANOW, &self.before);
    }
}

/// Ends every process besides this one, if it is PID 1: the next attempt begins on a clean machine.
fn end_all() {
    if std::process::id() != 1 {
        return;
    }
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while let Ok(ended) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
        if ended == WaitStatus::StillAlive {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::{pty::openpty, unistd::ttyname};

    use super::*;

    const YESCRYPT: &str = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$6JlLzEdKMvGk83Zgd3owplAejssJr2SFlJFlOc7i54A";
    const SHA512: &str =
        "$6$labshift$zwXn5bUSQMwxqp/pEkC/jBCNcsufh4iX1yqSiHbKaGMutfalZPe0eGilCn7SXGF2h5a3bYhK9Sef7ygpQqJ8Y0";
    const SHA256: &str = "$5$rounds=1000$labshift$8iWDFufy4zPRLO/4zK362cxUs0D84qITamt1ava8ji5";

    #[test]
    fn hashes_as_in_etc_shadow() {
        for hash in [YESCRYPT, SHA512, SHA256] {
            assert!(is_right(hash, "open sesame"), "{hash}");
            assert!(!is_right(hash, "open sesam") && !is_right(hash, ""), "{hash}");
        }
        for odd in [
            "",
            "*",
            "!",
            "open sesame",
            "$y$",
            "$y$j9T$x",
            "$6$labshift",
            "$1$a$b",
            "$6$$",
            "$5$rounds=9$a$b",
        ] {
            assert!(!is_right(odd, "open sesame") && !is_right(odd, ""), "{odd}");
        }
    }

    fn sysroot(name: &str, hash: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("labshift-rescue-{name}-{}", std::process::id()));
        for part in ["bin", "dev", "etc/labshift", "sys/class/tty/console"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        fs::write(dir.join(&paths::RESCUE[1..]), format!("{hash}\n")).unwrap();
        dir
    }

    fn shell(dir: &Path) {
        let path = dir.join(&paths::RESCUE_SHELL[1..]);
        // What it is asked to do, and that the terminal is its own and echoes again.
        fs::write(&path, "#!/bin/sh\n[ \"$1\" = sh ] || exit 0\necho \"in as $PS1\"; read word < /dev/tty; echo \"got $word\"\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn there_is_no_door_without_hash_and_shell() {
        let dir = sysroot("absent", SHA256);
        assert!(Door::read(&dir).is_none());
        shell(&dir);
        assert!(Door::read(&dir).is_some());
        fs::write(dir.join(&paths::RESCUE[1..]), "\n").unwrap();
        assert!(Door::read(&dir).is_none());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn pauses_grow_and_the_door_shuts() {
        let (hash, keys, question) = (Some(SHA256.into()), vec![], None);
        let mut door = Door { hash, keys, question, shell: PathBuf::new(), wrong: 0, pause: PAUSE };
        let answers: Vec<Answer> = (0..5).map(|_| door.knock("guess")).collect();
        let wrong = |seconds| Answer::Wrong(Duration::from_secs(seconds));
        assert_eq!(answers, [wrong(2), wrong(4), wrong(8), wrong(16), Answer::Shut]);
        assert_eq!(door.knock("open sesame"), Answer::Shut);
    }

    #[test]
    fn a_code_opens_once_for_whoever_has_a_key_of_the_recipe() {
        let secret = [9; 32];
        let (keys, question) = (vec![AdminKey::of(&[8; 32]), AdminKey::of(&secret)], None);
        let mut door =
            Door { hash: Some(SHA256.into()), keys, question, shell: PathBuf::new(), wrong: 0, pause: PAUSE };
        assert!(!door.prompt().contains("Code"), "without random numbers there is the password only");
        door.offer();
        let challenge = door.question.as_ref().unwrap().challenge();
        assert!(door.prompt().contains(&format!("labshift node rescue {challenge}\r\nCode or password")));
        assert!(matches!(door.knock(&challenge.answer(&[7; 32])), Answer::Wrong(_)), "a stranger's key");
        let code = challenge.answer(&secret);
        assert_eq!(door.knock(&code.to_lowercase()), Answer::Open);
        assert!(matches!(door.knock(&code), Answer::Wrong(_)), "there is another challenge now");
        assert_eq!(door.knock("open sesame"), Answer::Open);
    }

    #[test]
    fn a_person_comes_in_by_the_console() {
        let dir = sysroot("console", SHA256);
        shell(&dir);
        let pty = openpty(None, None).unwrap();
        symlink(ttyname(&pty.slave).unwrap(), dir.join("dev/ttyS0")).unwrap();
        fs::write(dir.join("sys/class/tty/console/active"), "tty0 ttyS0\n").unwrap();
        let mut master = File::from(pty.master);
        let mut person = master.try_clone().unwrap();
        let typing = std::thread::spawn(move || {
            let mut heard = String::new();
            let mut hear = |text: &str| {
                let mut buffer = [0; 512];
                while !heard.contains(text) {
                    let length = master.read(&mut buffer).unwrap();
                    heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
                }
                std::mem::take(&mut heard)
            };
            // What is typed before the terminal listens is lost; it does once it echoes no more.
            while tcgetattr(&person).unwrap().local_flags.contains(LocalFlags::ECHO) {
                std::thread::sleep(Duration::from_millis(1));
            }
            person.write_all(b"\n").unwrap();
            hear("Password");
            person.write_all(b"wrong\n").unwrap();
            let said = hear("Password");
            person.write_all(b"open sesame\n").unwrap();
            let then = hear("in as rescue# ");
            person.write_all(b"hello\n").unwrap();
            (said, then, hear("got hello"))
        });
        let mut door = Door { pause: Duration::from_millis(1), ..Door::read(&dir).unwrap() };
        let opened = std::cell::Cell::new(0);
        wait(&mut door, &dir, Duration::from_secs(900), || opened.set(opened.get() + 1));
        let (said, then, last) = typing.join().unwrap();
        assert!(
            !said.contains("wrong") && !then.contains("sesame"),
            "passwords are not echoed: {said} {then}"
        );
        assert!(last.contains("hello\r\n"), "the shell's terminal echoes: {last}");
        assert_eq!((opened.get(), door.wrong), (1, 0));
        fs::remove_dir_all(dir).unwrap();
    }
}
