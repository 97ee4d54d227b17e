//! The initramfs: init, the modules that reach network and root, and the keys that may sign.

use labshift_model::paths;

use crate::{
    cpio::Archive,
    kernel::{Kernel, Module, aliases, dependencies},
};

/// zstd level: init's start-up is limited by reading, not by unpacking.
const LEVEL: i32 = 12;

/// Puts an initramfs together.
pub fn build(
    init: &[u8],
    kernel: &Kernel,
    modules: &[Module],
    trusted_keys: &str,
) -> std::io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "run", "sysroot", "tmp"] {
        archive.directory(directory);
    }
    // The kernel opens the console for PID 1 before devtmpfs is mounted.
    archive.device("dev/console", 5, 1);
    archive.file("init", 0o755, init);
    archive.file(paths::TRUSTED_KEYS.trim_start_matches('/'), 0o644, trusted_keys.as_bytes());
    let directory = format!("lib/modules/{}", kernel.release);
    archive.file(&format!("{directory}/modules.dep"), 0o644, dependencies(modules).as_bytes());
    archive.file(&format!("{directory}/modules.alias"), 0o644, aliases(modules).as_bytes());
    for module in modules {
        archive.file(&format!("{directory}/{}", module.path), 0o644, &module.content);
    }
    zstd::bulk::compress(&archive.finish(), LEVEL)
}
