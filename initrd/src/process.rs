//! One service's process: its birth with user, terminal, cgroup and output; and what is left of it at its end.

use std::{
    fs::{self, File, OpenOptions},
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use labshift_model::service::{Limits, Service};
use nix::{
    sys::{
        signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    journal::JOURNAL,
    sys::{self, Birth},
};

/// Lines of output longer than this are cut.
const LONGEST_LINE: usize = 4096;

/// What a service gets besides its own environment.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("LANG", "C.UTF-8"),
    ("HOME", "/root"),
];

/// A started service.
#[derive(Debug)]
pub struct Started {
    /// Process id; its session has the same number.
    pub pid: u32,
    /// Its standard output and error, unless it has a terminal.
    pub output: Option<OwnedFd>,
}

/// Where services' cgroups are; nowhere without cgroup2.
#[derive(Debug, Clone)]
pub struct Cgroups(Option<PathBuf>);

impl Cgroups {
    /// Below `/sys/fs/cgroup/labshift`, when cgroup2 is mounted there.
    pub fn at(sysroot: &Path) -> Self {
        let root = sysroot.join("sys/fs/cgroup");
        if !root.join("cgroup.procs").exists() {
            return Cgroups(None);
        }
        // libvirt gives its guests cgroups of their own; the controllers must be on at the root for that.
        for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
            let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        let own = root.join("labshift");
        let _ = fs::create_dir_all(&own);
        for controller in ["cpu", "memory", "pids"] {
            let _ = fs::write(own.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        Cgroups(Some(own))
    }

    fn of(&self, service: &str) -> Option<PathBuf> {
        self.0.as_ref().map(|root| root.join(service.replace('/', "-")))
    }

    /// Makes a service's cgroup with its limits. A limit that the kernel does not take is told: the service runs all the same.
    fn join(&self, service: &Service) -> Option<File> {
        let directory = self.of(&service.name)?;
        fs::create_dir_all(&directory).ok()?;
        for (file, value) in settings(&service.limits) {
            if let Err(why) = fs::write(directory.join(file), &value) {
                JOURNAL.say("service", &format!("{}: {file} = {value} is not in force: {why}", service.name));
            }
        }
        OpenOptions::new().write(true).open(directory.join("cgroup.procs")).ok()
    }

    /// How often the kernel has ended a process of a service for want of memory.
    pub fn out_of_memory(&self, service: &str) -> u64 {
        let Some(directory) = self.of(service) else { return 0 };
        let events = fs::read_to_string(directory.join("memory.events")).unwrap_or_default();
        events.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    fn members(&self, service: &str) -> Vec<i32> {
        let Some(directory) = self.of(service) else { return vec![] };
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|l| l.parse().ok()).collect()
    }

    /// Kills what an ended service left behind before it starts again. Processes that opened a session of their own chose to outlive
    /// it: guests survive a restart of libvirtd.
    pub fn clear(&self, service: &str, session: u32) {
        for pid in self.members(service) {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if session_of(&stat) == Some(session) {
                let _ = signal::kill(Pid::from_raw(pid), signal::SIGKILL);
            }
        }
    }

    /// Kills everything that a service ever started.
    pub fn kill(&self, service: &str) {
        if let Some(directory) = self.of(service) {
            let _ = fs::write(directory.join("cgroup.kill"), "1");
        }
    }
}

/// The files of a cgroup that hold a service's limits, and what goes into them.
fn settings(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut settings = vec![];
    if let Some(mib) = limits.memory_mib {
        settings.push(("memory.max", (u64::from(mib) << 20).to_string()));
        // Half a service is worse than one that starts anew.
        settings.push(("memory.oom.group", "1".to_owned()));
    }
    settings.extend(limits.cpu_weight.map(|weight| ("cpu.weight", weight.to_string())));
    settings.extend(limits.processes.map(|most| ("pids.max", most.to_string())));
    settings
}

/// Session of a process, from `/proc/PID/stat`. The command name before it may hold anything, `)` too.
fn session_of(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(3)?.parse().ok()
}

/// Starts a service; one that listens gets its listening `socket`.
pub fn start(service: &Service, cgroups: &Cgroups, socket: Option<BorrowedFd<'_>>) -> Result<Started> {
    let (program, arguments) = service.exec.split_first().context("reading its program")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(ENVIRONMENT).current_dir("/");
    let mut birth = Birth { cgroup: cgroups.join(service), ..Birth::default() };
    if let Some(user) = &service.user {
        let (passwd, group) = (read("/etc/passwd"), read("/etc/group"));
        let account = account(&passwd, &group, user).with_context(|| format!("finding user {user}"))?;
        command.env("HOME", &account.home).env("USER", user).env("LOGNAME", user);
        birth.user = Some((account.uid, account.gid, account.groups));
    }
    command.envs(service.environment.iter().filter_map(|pair| pair.split_once('=')));
    if let Some(socket) = socket {
        // The name is the one that systemd gives to the descriptor of NAME.socket, where programs look for it.
        command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", format!("{}.socket", service.name));
        birth.socket = Some(socket.try_clone_to_owned().context("duplicating its socket")?);
    }
    let mut output = None;
    if let Some(tty) = &service.tty {
        let terminal =
            OpenOptions::new().read(true).write(true).open(tty).with_context(|| format!("opening {tty}"))?;
        birth.terminal = true;
        command.env("TERM", "linux");
        command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    } else {
        let (reader, writer) = std::io::pipe().context("making a pipe for its output")?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        output = Some(OwnedFd::from(reader));
    }
    sys::prepare(&mut command, birth);
    let child = command.spawn().with_context(|| format!("starting {program}"))?;
    Ok(Started { pid: child.id(), output })
}

/// Takes in a child that has ended, a certain one or any: its pid, whether it ended with success, and the same in words.
pub fn reap(pid: Option<u32>) -> Option<(u32, (bool, String))> {
    match waitpid(pid.map(|p| Pid::from_raw(p as i32)), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(pid, code)) => {
            Some((pid.as_raw() as u32, (code == 0, format!("ended with exit code {code}"))))
        }
        Ok(WaitStatus::Signaled(pid, signal, _)) => {
            Some((pid.as_raw() as u32, (false, format!("was ended by {}", signal.as_str()))))
        }
        _ => None,
    }
}

/// Carries a service's output into the journal, line by line, until its last holder closes it.
pub async fn carry_output(service: String, output: OwnedFd, show: bool) {
    let Ok(pipe) = tokio::net::unix::pipe::Receiver::from_owned_fd(output) else { return };
    let mut reader = BufReader::with_capacity(LONGEST_LINE, pipe);
    let mut line = Vec::new();
    loop {
        let (taken, complete) = match reader.fill_buf().await {
            Ok([]) | Err(_) => return,
            Ok(bytes) => match bytes.iter().position(|&b| b == b'\n') {
                Some(at) => {
                    line.extend_from_slice(&bytes[..at]);
                    (at + 1, true)
                }
                None => {
                    line.extend_from_slice(bytes);
                    (bytes.len(), line.len() >= LONGEST_LINE)
                }
            },
        };
        reader.consume(taken);
        if complete {
            JOURNAL.output(&service, &String::from_utf8_lossy(&line), show);
            line.clear();
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A user of the root's `/etc/passwd`.
#[derive(Debug, PartialEq, Eq)]
struct Account {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: String,
}

/// Reads an account from the text of `/etc/passwd` and `/etc/group`: a static program has no name service.
fn account(passwd: &str, group: &str, user: &str) -> Option<Account> {
    let fields =
        passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.first() == Some(&user))?;
    let gid: u32 = fields.get(3)?.parse().ok()?;
    let mut groups = vec![gid];
    for line in group.lines() {
        let fields: Vec<_> = line.split(':').collect();
        if let [_, _, gid, members] = fields[..]
            && members.split(',').any(|m| m == user)
        {
            groups.extend(gid.parse::<u32>());
        }
    }
    groups.dedup();
    let home = fields.get(5).filter(|h| !h.is_empty()).unwrap_or(&"/").to_string();
    Some(Account { uid: fields.get(2)?.parse().ok()?, gid, groups, home })
}

/// Number of a group in the text of `/etc/group`.
pub fn group_id(group: &str, name: &str) -> Option<u32> {
    let line = group.lines().find(|l| l.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_without_a_name_service() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nlibvirt-qemu:x:64055:108::/var/lib/libvirt:/usr/sbin/nologin\nbroken\n";
        let group = "kvm:x:107:other,libvirt-qemu\nlibvirt-qemu:x:108:\nbad:line\n";
        assert_eq!(
            account(passwd, group, "libvirt-qemu"),
            Some(Account { uid: 64055, gid: 108, groups: vec![108, 107], home: "/var/lib/libvirt".into() })
        );
        assert_eq!(account(passwd, group, "broken"), None);
        assert_eq!(group_id(group, "kvm"), Some(107));
    }

    #[test]
    fn limits_go_into_the_cgroup_and_want_of_memory_is_counted() {
        let dir = std::env::temp_dir().join(format!("labshift-cgroup-{}", std::process::id()));
        let root = dir.join("sys/fs/cgroup");
        fs::create_dir_all(root.join("labshift/web")).unwrap();
        fs::write(root.join("cgroup.procs"), "").unwrap();
        fs::write(root.join("labshift/web/cgroup.procs"), "").unwrap();
        let cgroups = Cgroups::at(&dir);
        let service = Service {
            limits: Limits { memory_mib: Some(64), cpu_weight: Some(20), processes: Some(9) },
            ..serde_json::from_str(r#"{"name": "web", "exec": ["/bin/web"]}"#).unwrap()
        };
        assert!(cgroups.join(&service).is_some());
        let read = |file: &str| fs::read_to_string(root.join("labshift/web").join(file)).unwrap();
        assert_eq!(
            [read("memory.max"), read("memory.oom.group"), read("cpu.weight"), read("pids.max")],
            ["67108864", "1", "20", "9"]
        );
        assert_eq!(cgroups.out_of_memory("web"), 0);
        fs::write(root.join("labshift/web/memory.events"), "low 0\noom 2\noom_kill 3\n").unwrap();
        assert_eq!(cgroups.out_of_memory("web"), 3);
        assert!(settings(&Limits::default()).is_empty());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_session_is_found_behind_any_name() {
        assert_eq!(session_of("42 (a) b) S 1 42 41 0 -1"), Some(41));
        assert_eq!(session_of("42 (x"), None);
    }
}
