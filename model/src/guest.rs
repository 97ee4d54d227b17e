//! A virtual machine on a node, and its saved state.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{mac::MacAddr, manifest::FileEntry};

/// What a guest is for; decides what happens to it at a mode change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The student's desktop: owns the workstation's screen, keyboard and mouse; is shut down at the session's end.
    Desktop,
    /// Work: saved when the node leaves compute mode, resumed on whichever node is free.
    Batch,
}

/// Everything a node needs to run a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestSpec {
    /// Unique in the site; the libvirt domain's name.
    pub name: String,
    /// Purpose.
    pub role: Role,
    /// Guest image name.
    pub image: String,
    /// Full generation; fetched from `/images/IMAGE/GENERATION/` and verified like the node's own.
    pub generation: String,
    /// MiB of RAM.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// MiB of the writable overlay disk; 0 for none (changes are lost at shutdown).
    pub disk_mib: u32,
    /// Hardware address of its one network card.
    pub mac: MacAddr,
    /// vsock context id, unique in the site, at least 3.
    pub cid: u32,
    /// Bearer token with which the guest reports.
    pub token: String,
    /// Start from here instead of booting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<SavedState>,
}

/// A guest saved to the server's store: memory and disk overlay, consistent with each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedState {
    /// Counts up with every save of this guest.
    pub revision: u64,
    /// libvirt save image, at `/v1/saved/GUEST/REVISION/memory`.
    pub memory: FileEntry,
    /// qcow2 overlay, at `/v1/saved/GUEST/REVISION/disk`; absent for a guest without one.
    pub disk: Option<FileEntry>,
    /// Node that saved it.
    pub node: String,
}

/// What a node says of one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestStatus {
    /// Name.
    pub name: String,
    /// Purpose.
    pub role: Role,
    /// Where it is in its life.
    pub state: GuestState,
    /// IPv4 address on the bridge, once seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Its picture is on the workstation's screen.
    #[serde(default)]
    pub visible: bool,
}

/// Life of a guest on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum GuestState {
    /// Image or saved state is being fetched and verified.
    Fetching,
    /// Being created or restored.
    Starting,
    /// Runs.
    Running,
    /// Asked to shut down.
    Stopping,
    /// Being saved and uploaded.
    Saving,
    /// Saved; the store has verified it and the local copy is gone.
    Saved {
        /// Where to restore from.
        saved: SavedState,
    },
    /// Ended by itself or on request.
    Stopped,
    /// Could not do what was asked.
    Failed {
        /// A sentence for an admin.
        reason: String,
    },
}
