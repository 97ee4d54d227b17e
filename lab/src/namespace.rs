//! A lab runs in network, process and mount namespaces of its own: when its first process is gone, for whatever
//! reason, the kernel ends every other one and removes interfaces and mounts. Nothing can be left behind.
//!
//! ```text
//!   labshift lab up ── unshare ──> labshift lab up (hidden: inside)   pid 1 of the lab: takes in every orphan
//!     waits, passes Ctrl-C on        └─ labshift lab up (hidden: inside)   the lab
//!                                         ├─ labshift serve
//!                                         └─ qemu-system-x86_64 ...
//! ```

use std::{fs, io, process::Command};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getegid, geteuid},
};

/// Why there is no namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The kernel says no.
    #[error(
        "making the lab's namespaces ({0}); run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)"
    )]
    Unshare(nix::Error),
    /// Something around it.
    #[error("{doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Moves this process into a new network namespace; processes it starts from now on live in a new process
/// namespace, the first as its init. Must be called before any thread is started.
pub fn leave() -> Result<(), NamespaceError> {
    let (user, group) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    if !user.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(NamespaceError::Unshare)?;
    if !user.is_root() {
        let write = |path, text: String| {
            fs::write(path, text)
                .map_err(|source| NamespaceError::Io { doing: "mapping the user into the namespace", source })
        };
        write("/proc/self/setgroups", "deny".into())?;
        write("/proc/self/uid_map", format!("0 {user} 1"))?;
        write("/proc/self/gid_map", format!("0 {group} 1"))?;
    }
    Ok(())
}

/// The first act of the process that is the new namespace's init: dies with its parent, and sees its own `/proc`. What it does
/// from then on is [`tend`].
pub fn settle() -> Result<(), NamespaceError> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(NamespaceError::Unshare)?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(NamespaceError::Unshare)?;
    let none = None::<&str>;
    let failed = |e: nix::Error| NamespaceError::Io { doing: "mounting the lab's /proc", source: e.into() };
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(failed)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).map_err(failed)
}

/// Starts a program and waits for its end, taking in every orphan that comes to this process meanwhile; returns the program's exit
/// code. SIGINT and SIGTERM are passed on. For a process that starts nothing else: the statuses of its children are all taken
/// here. Must be called before any thread is started.
pub fn tend(mut program: Command) -> Result<i32, NamespaceError> {
    let failed = |doing| move |e: Errno| NamespaceError::Io { doing, source: e.into() };
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD].iter().for_each(|s| signals.add(*s));
    signals.thread_block().map_err(failed("blocking signals"))?;
    let child = program
        .spawn()
        .map_err(|source| NamespaceError::Io { doing: "starting the lab in its namespaces", source })?;
    let child = Pid::from_raw(child.id().cast_signed());
    loop {
        let signal = signals.wait().map_err(failed("waiting for signals"))?;
        if signal != Signal::SIGCHLD {
            // It may have ended this moment; then its status comes next.
            let _ = kill(child, signal);
            continue;
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == child => return Ok(code),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return Ok(128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }
}

/// This program, as it runs now: survives being rebuilt underneath.
pub fn this_program() -> Command {
    Command::new("/proc/self/exe")
}
