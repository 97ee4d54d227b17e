//! What a build tells while it works. The `labshift` command draws it as bars, plain lines or JSON.

use std::fmt;

/// Steps of a build, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Reading package lists and verifying their signatures.
    Index,
    /// Choosing packages.
    Resolve,
    /// Fetching packages.
    Download,
    /// Unpacking packages and putting the root together.
    Unpack,
    /// Running maintainer scripts in an isolated root.
    Scripts,
    /// Kernel, modules and initramfs.
    Kernel,
    /// Packing the root file system.
    Root,
    /// Hash tree, UKI, manifest, signature.
    Seal,
    /// Moving the generation into the store.
    Publish,
    /// Sending files to another host.
    Send,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Index => "index",
            Stage::Resolve => "resolve",
            Stage::Download => "download",
            Stage::Unpack => "unpack",
            Stage::Scripts => "scripts",
            Stage::Kernel => "kernel",
            Stage::Root => "root",
            Stage::Seal => "seal",
            Stage::Publish => "publish",
            Stage::Send => "send",
        })
    }
}

/// Hears how a build goes. Called from several threads.
pub trait Progress: Sync {
    /// A stage began; `detail` says on what.
    fn stage(&self, stage: Stage, detail: &str);
    /// `done` of `total` bytes of a stage are handled.
    fn bytes(&self, stage: Stage, done: u64, total: u64);
    /// Something that an admin should know, though the build goes on.
    fn warning(&self, text: &str);
}

/// Says nothing.
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _: Stage, _: &str) {}
    fn bytes(&self, _: Stage, _: u64, _: u64) {}
    fn warning(&self, _: &str) {}
}
