//! File systems: the kernel's own, each mounted once, and the verified root.
//!
//! ```text
//! root.erofs on tmpfs ── loop ──┐
//! blocks over HTTP ───────── nbd ┤
//! /dev/vda (guest) ─────────────┴─ dm-verity ── EROFS, read-only ──┐
//! tmpfs or /dev/vdb (guest) ───────────────────────────────────────┴─ overlay = the new root
//! ```

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{nbd, sys, verity::Shape};

/// Where the root's parts are mounted; below `/run`, so that they move along.
const STATE: &str = "/run/labshift";
/// Where the new root is put together.
pub const NEW_ROOT: &str = "/sysroot";
/// File on tmpfs that holds a fetched root.
pub const ROOT_FILE: &str = "/run/labshift/boot/root.erofs";
/// Name of the device-mapper device.
const MAPPING: &str = "labshift-root";

fn mount_one(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("creating {target}"))?;
    mount(Some(source), target, Some(kind), flags, Some(data))
        .with_context(|| format!("mounting {kind} on {target}"))
}

/// Mounts the kernel's file systems. `/dev` and `/dev/pts` once and for all: libvirt can't move a second layer.
pub fn mount_kernel_file_systems() -> Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_one("proc", "/proc", "proc", plain, "")?;
    mount_one("sysfs", "/sys", "sysfs", plain, "")?;
    mount_one("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755")?;
    let terminals = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_one("devpts", "/dev/pts", "devpts", terminals, "gid=5,mode=620,ptmxmode=666")?;
    mount_one("tmpfs", "/dev/shm", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    mount_one("tmpfs", "/run", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755,size=64m")?;
    mount_one("cgroup2", "/sys/fs/cgroup", "cgroup2", plain, "nsdelegate")?;
    fs::create_dir_all(STATE).context("creating /run/labshift")?;
    for (link, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let _ = symlink(format!("/proc/self/{target}"), format!("/dev/{link}"));
    }
    Ok(())
}

/// Bytes that the kernel can still hand out.
pub fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// An empty file on a tmpfs of its own that holds `bytes`.
pub fn root_file(bytes: u64) -> Result<File> {
    undo(Path::new(ROOT_FILE).parent().unwrap_or(Path::new("/")));
    let options = format!("mode=0700,size={},nr_inodes=16,huge=within_size", bytes + (4 << 20));
    let directory = "/run/labshift/boot";
    // A kernel without huge pages for tmpfs refuses the option.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_one("tmpfs", directory, "tmpfs", flags, &options).or_else(|_| {
        mount_one("tmpfs", directory, "tmpfs", flags, options.trim_end_matches(",huge=within_size"))
    })?;
    File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(ROOT_FILE)
        .with_context(|| format!("creating {ROOT_FILE}"))
}

/// The verified block device over a fetched root file.
pub fn verified_file(file: &File, shape: &Shape) -> Result<PathBuf> {
    let dev = Path::new("/dev");
    let (device, keep) = sys::attach_loop(dev, file, 4096).context("attaching a loop device")?;
    let verified = verified_device(&device, shape);
    drop(keep);
    verified
}

/// The verified block device over a device that holds data and tree.
pub fn verified_device(device: &Path, shape: &Shape) -> Result<PathBuf> {
    let parameters = shape.table(device);
    let sectors = shape.data_size() / 512;
    sys::create_mapping(Path::new("/dev"), MAPPING, "verity", sectors, &parameters, sys::Access::Read)
        .with_context(|| format!("setting up dm-verity over {}", device.display()))
}

/// Where a root's changes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upper {
    /// Memory: lost with the machine's power.
    Memory,
    /// An ext4 file system on this device.
    Disk(PathBuf),
}

const LOWER: &str = "/run/labshift/lower";
const UPPER: &str = "/run/labshift/upper";

/// Mounts the verified device and puts a writable layer in memory over it, at [`NEW_ROOT`].
pub fn mount_root(verified: &Path) -> Result<()> {
    mount_lower(verified)?;
    mount_one("tmpfs", UPPER, "tmpfs", MsFlags::MS_NODEV, "mode=0755,size=60%")?;
    mount_overlay()
}

/// The same for a guest: its changes go to `disk` when there is one. Returns where they go.
pub fn mount_guest_root(verified: &Path, disk: Option<&Path>) -> Result<Upper> {
    mount_lower(verified)?;
    let upper = match disk {
        Some(disk) => disk_layer(disk)?,
        None => Upper::Memory,
    };
    match &upper {
        Upper::Memory => mount_one("tmpfs", UPPER, "tmpfs", MsFlags::MS_NODEV, "mode=0755,size=60%")?,
        Upper::Disk(disk) => {
            let flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
            mount_one(&disk.display().to_string(), UPPER, "ext4", flags, "")?;
        }
    }
    mount_overlay()?;
    Ok(upper)
}

fn mount_lower(verified: &Path) -> Result<()> {
    let device = verified.display().to_string();
    mount_one(&device, LOWER, "erofs", MsFlags::MS_RDONLY | MsFlags::MS_NODEV, "")
}

fn mount_overlay() -> Result<()> {
    for part in ["upper", "work"] {
        let directory = Path::new(UPPER).join(part);
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))
            .context("opening up the new root")?;
    }
    let options = format!("lowerdir={LOWER},upperdir={UPPER}/upper,workdir={UPPER}/work");
    mount_one("overlay", NEW_ROOT, "overlay", MsFlags::empty(), &options)
}

/// What a guest's second disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Blank,
    Ext4,
    Other,
}

/// Looks at the first bytes: ext4 keeps its magic number 56 bytes into the superblock at 1024.
fn content(mut disk: impl Read) -> io::Result<Content> {
    let mut head = Vec::with_capacity(65536);
    disk.by_ref().take(65536).read_to_end(&mut head)?;
    Ok(match head.get(1080..1082) {
        Some([0x53, 0xEF]) => Content::Ext4,
        _ if head.iter().all(|&b| b == 0) => Content::Blank,
        _ => Content::Other,
    })
}

/// Decides what a guest's second disk is good for; formats a blank one with the root's own mkfs.ext4, and never one that
/// holds anything.
fn disk_layer(disk: &Path) -> Result<Upper> {
    let shown = disk.display();
    let file = File::open(disk).with_context(|| format!("opening {shown}"))?;
    match content(file).with_context(|| format!("reading {shown}"))? {
        Content::Ext4 => Ok(Upper::Disk(disk.to_owned())),
        Content::Other => bail!("{shown} holds something that is not ext4; it is left alone"),
        Content::Blank if !Path::new(LOWER).join("usr/sbin/mkfs.ext4").exists() => Ok(Upper::Memory),
        Content::Blank => format_disk(disk).map(|()| Upper::Disk(disk.to_owned())),
    }
}

/// The tool is linked dynamically: it runs inside the root, with /dev lent to it.
fn format_disk(disk: &Path) -> Result<()> {
    let shown = disk.display();
    let dev = format!("{LOWER}/dev");
    mount(Some("/dev"), dev.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .context("lending /dev to mkfs")?;
    let mut command = std::process::Command::new("/usr/sbin/mkfs.ext4");
    command.args(["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"]).arg(disk).env_clear();
    let root = std::ffi::CString::new(LOWER).context("naming the root")?;
    sys::prepare(&mut command, sys::Birth { root: Some(root), ..Default::default() });
    let status = command.status();
    umount2(dev.as_str(), MntFlags::empty()).context("taking /dev back")?;
    let status = status.with_context(|| format!("running mkfs.ext4 for {shown}"))?;
    if !status.success() {
        bail!("mkfs.ext4 {shown} ended with {status}");
    }
    Ok(())
}

/// Takes apart what an earlier attempt left.
pub fn clean_up() {
    for target in [NEW_ROOT, UPPER, LOWER] {
        undo(Path::new(target));
    }
    let _ = sys::remove_mapping(Path::new("/dev"), MAPPING);
    nbd::detach(Path::new("/dev"));
    undo(Path::new("/run/labshift/boot"));
}

fn undo(target: &Path) {
    let _ = umount2(target, MntFlags::MNT_DETACH);
}

/// Makes the new root the root: moves the kernel's file systems over, frees the initramfs, steps in.
pub fn switch_root() -> Result<()> {
    for part in ["dev", "proc", "sys", "run"] {
        let (from, to) = (format!("/{part}"), format!("{NEW_ROOT}/{part}"));
        fs::create_dir_all(&to).with_context(|| format!("creating {to}"))?;
        mount(Some(from.as_str()), to.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .with_context(|| format!("moving {from}"))?;
    }
    std::env::set_current_dir(NEW_ROOT).context("stepping into the new root")?;
    free_initramfs(Path::new("/"));
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("moving the new root to /")?;
    nix::unistd::chroot(".").context("changing the root")?;
    std::env::set_current_dir("/").context("stepping to /")
}

/// Deletes what the initramfs holds: it is memory. Stays on its own file system.
fn free_initramfs(directory: &Path) {
    use std::os::unix::fs::MetadataExt;
    let Ok(device) = fs::symlink_metadata(directory).map(|m| m.dev()) else { return };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.dev() != device => {}
            Ok(meta) if meta.is_dir() => {
                free_initramfs(&path);
                let _ = fs::remove_dir(&path);
            }
            _ => drop(fs::remove_file(&path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernel() {
        let text = "MemTotal:  3000000 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(available_memory(text), Some(2 << 20));
        assert_eq!(available_memory("MemTotal: 1 kB"), None);
        assert_eq!(available_memory("MemAvailable: 99999999999999999999 kB"), None);
    }

    #[test]
    fn only_a_blank_disk_is_blank() {
        let mut ext4 = vec![0u8; 2048];
        ext4[1080..1082].copy_from_slice(&[0x53, 0xEF]);
        assert_eq!(content(&ext4[..]).unwrap(), Content::Ext4);
        assert_eq!(content(&vec![0u8; 70_000][..]).unwrap(), Content::Blank);
        assert_eq!(content(&b"QFI\xfb data"[..]).unwrap(), Content::Other);
    }

    #[test]
    fn an_initramfs_is_deleted_on_its_own_file_system() {
        let dir = std::env::temp_dir().join(format!("labshift-free-{}", std::process::id()));
        fs::create_dir_all(dir.join("lib/modules")).unwrap();
        fs::write(dir.join("lib/modules/a.ko"), "x").unwrap();
        symlink("/etc", dir.join("link")).unwrap();
        free_initramfs(&dir);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        assert!(Path::new("/etc").exists());
        fs::remove_dir(&dir).unwrap();
    }
}
