//! The initramfs: init, the modules that reach network and root, and whom init believes.

use std::{collections::BTreeSet, io::Write};

use labshift_model::paths;

use crate::{
    cpio::Archive,
    kernel::{Kernel, Module, aliases, dependencies},
    tree::Tree,
};

/// zstd level: init's start-up is limited by reading, not by unpacking. Level 12 takes three times as long and saves 1 %.
const LEVEL: i32 = 8;

/// The archive of the modules that bring network and root, with the firmware of theirs that the root has too.
pub fn modules(kernel: &Kernel, modules: &[Module], root: &Tree) -> std::io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    let directory = format!("lib/modules/{}", kernel.release);
    archive.file(&format!("{directory}/modules.dep"), 0o644, dependencies(modules).as_bytes());
    archive.file(&format!("{directory}/modules.alias"), 0o644, aliases(modules).as_bytes());
    for module in modules {
        archive.file(&format!("{directory}/{}", module.path), 0o644, &module.content.bytes()?);
    }
    let names: BTreeSet<&String> = modules.iter().flat_map(|m| &m.firmware).collect();
    for name in names {
        // Packed ones are unpacked by the kernel.
        for suffix in ["", ".zst", ".xz"] {
            if let Some(content) = root.content(&format!("usr/lib/firmware/{name}{suffix}")) {
                archive.file(&format!("lib/firmware/{name}{suffix}"), 0o644, &content);
            }
        }
    }
    Ok(archive.finish())
}

/// Whom init believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// Public key that signs manifests.
    pub images: String,
    /// Public key that signs boot answers.
    pub servers: String,
    /// Manifests that were signed before this time are refused.
    pub minimum: Option<String>,
    /// Who may open the rescue shell, a line each.
    pub rescue: Option<String>,
}

/// The archive of init and what it needs at once, with the rescue shell if there is to be one.
pub fn frame(init: &[u8], shell: Option<&[u8]>, trust: &Trust) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "run", "sysroot", "tmp"] {
        archive.directory(directory);
    }
    // The kernel opens the console for PID 1 before devtmpfs is mounted.
    archive.device("dev/console", 5, 1);
    archive.file("init", 0o755, init);
    if let Some(shell) = shell {
        archive.directory("bin");
        archive.file(paths::RESCUE_SHELL.trim_start_matches('/'), 0o755, shell);
    }
    for (path, text) in [
        (paths::TRUSTED_KEYS, Some(&trust.images)),
        (paths::SERVER_KEYS, Some(&trust.servers)),
        (paths::MINIMUM, trust.minimum.as_ref()),
        (paths::RESCUE, trust.rescue.as_ref()),
    ] {
        if let Some(text) = text {
            archive.file(path.trim_start_matches('/'), 0o644, format!("{text}\n").as_bytes());
        }
    }
    archive.finish()
}

/// Packs archives, which the kernel unpacks one after the other.
pub fn pack(archives: &[&[u8]]) -> std::io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(vec![], LEVEL)?;
    encoder.set_pledged_src_size(Some(archives.iter().map(|a| a.len() as u64).sum()))?;
    for archive in archives {
        encoder.write_all(archive)?;
    }
    encoder.finish()
}
