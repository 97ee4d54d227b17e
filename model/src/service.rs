//! A program that PID 1 starts and keeps running.

use serde::{Deserialize, Serialize};

/// Bytes that the path of a Unix socket may have: `sun_path` less its final NUL (unix(7)).
pub const LONGEST_SOCKET: usize = 107;

/// What a service may wait for besides other services: the kernel modules that the recipe names are loaded.
pub const MODULES: &str = "modules";

/// When PID 1 starts a program again after it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Whatever its exit status, with back-off.
    #[default]
    Always,
    /// Only after a non-zero exit or a signal.
    OnFailure,
    /// Run once; services that name it in `after` wait until it has ended with success.
    Never,
}

/// What a service and everything it starts may take (cgroup v2). Nothing is limited by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// MiB of memory; above it the kernel ends the whole service (`memory.max`, `memory.oom.group`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Share of the processors when they are busy, 1 to 10000; others have 100 (`cpu.weight`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u32>,
    /// Processes and threads at one time (`pids.max`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }
}

/// One supervised program. Part of the manifest, so it is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Unique in its image.
    pub name: String,
    /// Absolute path and arguments; no shell in between.
    pub exec: Vec<String>,
    /// Services that must be up (or, for [`Restart::Never`], done) first, or [`MODULES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// When to start it again.
    #[serde(default)]
    pub restart: Restart,
    /// `NAME=value` pairs added to a clean environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// User to run as; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Path whose appearance means that the service is ready (a socket or a file); without it a service is
    /// ready when started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// Path of a Unix stream socket that PID 1 opens in its place: the service is up from then on, and the first connection starts the
    /// program, which gets the listening socket as descriptor 3 (sd_listen_fds(3)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Terminal to run on (for example `/dev/tty1`), opened as its standard input, output and error, with a new
    /// session. Without it, output goes to init's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<String>,
    /// What it may take.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
}
