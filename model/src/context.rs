//! What init knows when it hands over, and what may be asked of it afterwards.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{boot::StageEvent, mac::MacAddr};

/// Written by init to [`crate::paths::NODE_CONTEXT`] (mode 0600) before it starts the services.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeContext {
    /// Host name.
    pub node: String,
    /// Room.
    pub room: String,
    /// `http://ADDRESS:PORT` of the server, without a trailing slash.
    pub server: String,
    /// Image name and full generation that run now.
    pub image: String,
    /// Full generation.
    pub generation: String,
    /// Boot attempt.
    pub attempt: u64,
    /// Bearer token.
    pub token: String,
    /// The wire that brought us here.
    pub network: Network,
    /// Public keys (hex) that may sign manifests.
    pub trusted_keys: Vec<String>,
    /// Manifests that were signed earlier are refused.
    pub minimum: Option<Timestamp>,
    /// The server's clock minus this machine's `CLOCK_BOOTTIME`, in milliseconds since the epoch.
    pub clock_offset_ms: i64,
    /// Stages up to now.
    pub stages: Vec<StageEvent>,
    /// TCP ports that the recipe lets this node listen on.
    pub ports: Vec<u16>,
}

/// An address that init got by DHCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Kernel name of the port.
    pub interface: String,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Our address.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// DHCP server, for renewals.
    pub dhcp_server: Ipv4Addr,
    /// Lease time in seconds.
    pub lease_seconds: u32,
}

/// A request to PID 1 over [`crate::paths::INIT_SOCKET`], one JSON object per line; each gets one
/// [`InitReply`] line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum InitRequest {
    /// Stop all services in order, arm Wake-on-LAN on the given port and read it back, power off.
    PowerOff {
        /// Port to arm.
        interface: String,
    },
    /// The same, but reboot.
    Reboot,
    /// The same, into the generation that the server wants, without the firmware's start-up. Answered when its kernel is loaded.
    Kexec,
    /// What the supervisor knows of each service.
    Services,
    /// The last lines of the log.
    Log {
        /// At most so many lines.
        lines: usize,
    },
}

/// PID 1's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum InitReply {
    /// Under way; for `PowerOff`, Wake-on-LAN was armed and read back.
    Ok,
    /// Refused or failed; nothing was stopped.
    Failed {
        /// Why.
        reason: String,
    },
    /// Services, in start order.
    Services {
        /// One each.
        services: Vec<ServiceStatus>,
    },
    /// Log lines, newest last.
    Log {
        /// The lines.
        lines: Vec<String>,
    },
}

/// One service as the supervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Name.
    pub name: String,
    /// Process id while it runs.
    pub pid: Option<u32>,
    /// Ready, as defined by the recipe.
    pub ready: bool,
    /// Its program does not run: the next connection to its socket starts it.
    #[serde(default)]
    pub listening: bool,
    /// Times it was started again.
    pub restarts: u32,
    /// Last exit, in words.
    pub last_exit: Option<String>,
}
