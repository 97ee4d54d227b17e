//! Maintainer scripts, reviewed: they are never run. For each package whose `postinst` or `preinst` does something,
//! a person has read it and says here what stands in for it.
//!
//! A script that this table does not know is a warning (an error in a strict recipe): read it, then either add
//! its package here or leave the package out.

use std::collections::BTreeMap;

/// Packages whose scripts need nothing in our images, with what they do.
const REVIEWED: &[(&str, &str)] = &[
    ("base-files", "checks the merged /usr; makes directories and defaults of /etc: root.rs does"),
    ("base-passwd", "makes passwd and group of its master files: accounts.rs does"),
    ("bash", "alternative for builtins(7)"),
    ("condor", "user condor: ACCOUNTS; directories: the recipe's start script; bytecode of its Python tools"),
    ("dash", "diverts /bin/sh in upgrades; the recipe's base links it"),
    ("e2fsprogs", "renews the initramfs of an installed system"),
    ("firmware-amd-graphics", "renews the initramfs of an installed system"),
    ("firmware-bnx2", "renews the initramfs of an installed system"),
    ("firmware-bnx2x", "renews the initramfs of an installed system"),
    ("firmware-intel-graphics", "diversions for dpkg's own upgrades; renews the initramfs"),
    ("firmware-intel-misc", "diversions for dpkg's own upgrades"),
    ("firmware-misc-nonfree", "diversions for dpkg's own upgrades; renews the initramfs"),
    ("firmware-realtek", "diversions for dpkg's own upgrades; renews the initramfs"),
    (
        "fontconfig-config",
        "links of conf.d by debconf's answers: the desktop recipe brings its own fonts.conf",
    ),
    ("icewm", "alternative x-window-manager: ALTERNATIVES"),
    ("icewm-common", "menus by update-menus, which no image of ours has"),
    ("libc-bin", "nsswitch.conf: root.rs does; ldconfig: libraries lie in the loader's own paths"),
    ("libc6", "checks the running kernel; restarts services of an installed system"),
    ("libext2fs2t64", "diversions for dpkg's own upgrades"),
    ("libglib2.0-0t64", "compiles schemas: no program of ours reads GSettings"),
    ("libgcrypt20", "restarts services of an installed system"),
    ("libgssapi-krb5-2", "moves a file of an old release"),
    ("libibverbs1", "group rdma: ACCOUNTS"),
    ("libpam0g", "restarts services of an installed system"),
    ("libreadline8t64", "diversions for dpkg's own upgrades"),
    ("libselinux1", "makes a run-time directory of SELinux, which is off"),
    ("libtirpc3t64", "diversions for dpkg's own upgrades"),
    ("libvirt-daemon", "diversions for dpkg's own upgrades; systemd units"),
    ("libvirt-daemon-common", "group libvirt: ACCOUNTS; modes of directories that libvirtd makes itself"),
    (
        "libvirt-daemon-driver-qemu",
        "user libvirt-qemu: ACCOUNTS; owners of directories that libvirtd makes itself",
    ),
    ("libvirt-daemon-log", "diversions for dpkg's own upgrades; systemd units"),
    (
        "munge",
        "user munge: ACCOUNTS; directories: the recipe's start script; a key of its own, which no node may have",
    ),
    ("readline-common", "/etc/inputrc, a copy of the built-in default"),
    ("slurm-wlm-basic-plugins", "user slurm: its sysusers.d; owners of directories of slurmctld"),
    ("slurmd", "alternatives: ALTERNATIVES; owners of directories: slurmd runs as root"),
];

/// Accounts that scripts of packages add, as sysusers.d(5) lines.
pub const ACCOUNTS: &[(&str, &str)] = &[
    ("condor", "u condor - \"HTCondor Daemons\" /var/lib/condor\n"),
    ("libibverbs1", "g rdma -\n"),
    ("libvirt-daemon-common", "g libvirt -\n"),
    (
        "libvirt-daemon-driver-qemu",
        "g kvm -\ng libvirt-qemu 64055\nu libvirt-qemu 64055:kvm \"Libvirt Qemu\" /var/lib/libvirt\nm libvirt-qemu libvirt-qemu\n",
    ),
    ("munge", "u munge - - /nonexistent\n"),
];

/// Alternatives that our images need: link, then candidates, the first that is there wins.
pub const ALTERNATIVES: &[(&str, &[&str])] = &[
    ("usr/bin/awk", &["usr/bin/mawk", "usr/bin/gawk", "usr/bin/busybox"]),
    ("usr/bin/sh", &["usr/bin/dash", "usr/bin/busybox"]),
    ("usr/bin/x-window-manager", &["usr/bin/icewm"]),
    ("usr/sbin/slurmd", &["usr/sbin/slurmd-wlm"]),
    ("usr/sbin/slurmstepd", &["usr/sbin/slurmstepd-wlm"]),
];

/// What to say about a package's scripts; `None` when they are known or absent.
pub fn review(package: &str, control: &BTreeMap<String, String>) -> Option<String> {
    let script = ["preinst", "postinst"].into_iter().find(|s| control.get(*s).is_some_and(|t| works(t)))?;
    if REVIEWED.iter().any(|(name, _)| *name == package) {
        return None;
    }
    Some(format!(
        "package {package} has a {script} script that nobody has reviewed; it is not run: check whether the image needs what it does"
    ))
}

/// Whether a script does more than the lines that debhelper writes for upgrades and systemd.
fn works(text: &str) -> bool {
    let mut block = 0_usize;
    for line in text.lines().map(str::trim) {
        if line.starts_with("# Automatically added by") {
            block += 1;
        } else if line.starts_with("# End automatically added section") {
            block = block.saturating_sub(1);
        } else if block == 0
            && !line.is_empty()
            && !line.starts_with('#')
            && !line.starts_with("set -")
            && !["exit 0", "true", ":", "esac", "fi", ";;", "}"].contains(&line)
            && !line.starts_with("case \"$1\" in")
            && !line.ends_with(')')
        {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(script: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("postinst".to_owned(), script.to_owned())])
    }

    #[test]
    fn only_what_works_is_asked_about() {
        let idle = "#!/bin/sh\nset -e\n# Automatically added by dh_systemd\nsystemctl x\n# End automatically added section\nexit 0\n";
        assert_eq!(review("x", &control(idle)), None);
        assert_eq!(review("x", &BTreeMap::new()), None);
        let busy = "#!/bin/sh\nset -e\nadduser --system x\n";
        assert!(review("x", &control(busy)).unwrap().contains("package x has a postinst script"));
        assert_eq!(review("libc-bin", &control(busy)), None);
    }

    #[test]
    fn the_list_is_sorted_within_its_letters_and_without_doubles() {
        let mut names: Vec<_> = REVIEWED.iter().map(|(n, _)| n).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
