//! A root directory in which programs of packages may run: bubblewrap gives them file systems, processes and a network
//! (none) of their own, and takes away every privilege that an installation does not need.
//!
//! Root uses bubblewrap alone. For anybody else `unshare` makes a user namespace before, in which the user is root and 65536
//! ids of theirs are the other users; without such ids no script could give a file to anybody.

use std::{
    fs,
    io::Read,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::error::{At, BuildError};

/// What an installation needs of root's privileges: owners, modes and capabilities of files, not devices, mounts, networks or
/// modules.
const PRIVILEGES: [&str; 10] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_SYS_CHROOT",
];

/// What scripts find in their environment.
const ENVIRONMENT: [(&str, &str); 9] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LC_ALL", "C.UTF-8"),
    ("TZ", "UTC"),
    ("SOURCE_DATE_EPOCH", "0"),
    ("PYTHONHASHSEED", "0"),
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
    ("SYSTEMD_OFFLINE", "1"),
];

/// Where the guest sees [`Isolated::input`].
pub const INPUT: &str = "/run/labshift";

/// Lines of a program's output that an error shows.
const LAST_LINES: usize = 20;

/// The isolated root; it is removed in the end.
pub struct Isolated {
    root: PathBuf,
    input: PathBuf,
    outer: Vec<String>,
}

/// How a program in it ended.
pub struct Ended {
    /// It ended with status 0.
    pub good: bool,
    /// `exit status 3`, `signal 9`.
    pub status: String,
    /// Everything that it said.
    pub output: String,
}

impl Isolated {
    /// An empty root in `directory`.
    pub fn new(directory: &Path) -> Result<Isolated, BuildError> {
        let own_ids = match nix::unistd::geteuid().is_root() {
            true => &[][..],
            false => &["unshare", "--user", "--map-root-user", "--map-auto", "--"],
        };
        let outer = own_ids.iter().map(|s| (*s).to_owned()).collect();
        let isolated = Isolated { root: directory.join("root"), input: directory.join("input"), outer };
        for made in [&isolated.root, &isolated.input] {
            fs::create_dir(made).at("making", made)?;
        }
        Ok(isolated)
    }

    /// Where its root lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What lies here is read-only at [`INPUT`].
    pub fn input(&self) -> &Path {
        &self.input
    }

    /// Whether programs can be run here at all; `program` must be in the root by now, and succeed.
    pub fn probe(&self, program: &[&str]) -> Result<(), BuildError> {
        let cannot = |why: String| BuildError::NotIsolated { why };
        match self.run(program) {
            Ok(ended) if ended.good => Ok(()),
            Ok(ended) => Err(cannot(format!("{} ({})", last_lines(&ended.output, 3), ended.status))),
            Err(e) => Err(cannot(e.to_string())),
        }
    }

    /// Runs a program to its end.
    pub fn run(&self, program: &[&str]) -> std::io::Result<Ended> {
        let (mut reader, writer) = std::io::pipe()?;
        let mut command = self.command(program);
        let mut child = command.stdout(writer.try_clone()?).stderr(writer).spawn()?;
        // The command holds the pipe's other end, too.
        drop(command);
        let mut output = vec![];
        reader.read_to_end(&mut output)?;
        let status = child.wait()?;
        let told = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        let output = String::from_utf8_lossy(&output).into_owned();
        Ok(Ended { good: status.success(), status: told, output })
    }

    /// Starts a program whose standard output is read.
    pub fn start(&self, program: &[&str]) -> std::io::Result<Child> {
        self.command(program).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()
    }

    fn command(&self, program: &[&str]) -> Command {
        let mut words: Vec<String> = self.outer.clone();
        words.extend(
            [
                "bwrap",
                "--die-with-parent",
                "--new-session",
                "--unshare-ipc",
                "--unshare-pid",
                "--unshare-net",
                "--unshare-uts",
                "--unshare-cgroup-try",
                "--hostname",
                "localhost",
                "--cap-drop",
                "ALL",
            ]
            .map(str::to_owned),
        );
        for privilege in PRIVILEGES {
            words.extend(["--cap-add".to_owned(), privilege.to_owned()]);
        }
        words.push("--clearenv".to_owned());
        for (name, value) in ENVIRONMENT {
            words.extend(["--setenv", name, value].map(str::to_owned));
        }
        let (root, input) = (self.root.display().to_string(), self.input.display().to_string());
        words.extend(["--bind", &root, "/", "--proc", "/proc", "--dev", "/dev"].map(str::to_owned));
        words.extend(["--tmpfs", "/run", "--tmpfs", "/tmp", "--ro-bind", &input, INPUT].map(str::to_owned));
        words.extend(["--chdir", "/", "--"].map(str::to_owned));
        words.extend(program.iter().map(|s| (*s).to_owned()));
        // The user's umask must not show in what scripts make.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "umask 022; exec \"$@\"", "sh"]).args(words).stdin(Stdio::null());
        command
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        // Files of other ids can only be removed by who has them.
        if let Some((first, rest)) = self.outer.split_first() {
            let _ = Command::new(first)
                .args(rest)
                .args(["rm", "-rf", "--"])
                .arg(&self.root)
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
        for path in [&self.root, &self.input] {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// The end of what a program said.
pub fn last_words(output: &str) -> String {
    last_lines(output, LAST_LINES)
}

fn last_lines(output: &str, count: usize) -> String {
    let lines: Vec<&str> = output.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
