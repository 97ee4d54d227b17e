//! Maintainer scripts, reviewed: they are never run. For each package whose `postinst` or `preinst` does something,
//! a person has read it and says here what stands in for it.
//!
//! A script that this table does not know is a warning (an error in a strict recipe): read it, then either add
//! its package here or leave the package out.

use std::collections::BTreeMap;

/// Packages whose scripts need nothing in our images, with what they do.
const REVIEWED: &[(&str, &str)] = &[
    ("base-files", "copies defaults of /etc and makes directories: root.rs does"),
    ("base-passwd", "makes passwd and group of its master files: accounts.rs does"),
    ("bash", "alternatives for builtins(7)"),
    ("ca-certificates", "collects certificates; no image of ours makes TLS connections"),
    ("dash", "diverts /bin/sh, which its own files hold by now"),
    ("dbus", "messagebus user by sysusers; machine id"),
    ("debconf", "asks questions"),
    ("debianutils", "alternatives; registers shells"),
    ("dmsetup", "renews the initramfs of an installed system"),
    ("e2fsprogs", "upgrade of an installed system"),
    ("fontconfig", "font cache: made when first asked for"),
    ("fontconfig-config", "configuration links by debconf"),
    ("gnutls-bin", "nothing at a first installation"),
    ("init-system-helpers", "diversions of old releases"),
    ("iproute2", "capabilities of an old release"),
    ("kmod", "module list of old releases"),
    ("libc-bin", "ldconfig: its paths are the default ones"),
    ("libc6", "restarts services of an installed system"),
    ("libdevmapper1.02.1", "udev rules"),
    ("libglib2.0-0t64", "schemas by trigger"),
    ("libgdk-pixbuf-2.0-0", "loader cache by trigger"),
    ("libnss-systemd", "names in nsswitch.conf"),
    ("libpam-modules", "upgrade of an installed system"),
    ("libpam-runtime", "writes /etc/pam.d/common-*: no image of ours logs in by PAM"),
    ("libpam0g", "restarts services of an installed system"),
    ("libpam-systemd", "pam-auth-update"),
    ("libssl3t64", "restarts services of an installed system"),
    ("libvirt-common", "permissions below /etc and /var: libvirtd makes them"),
    ("libvirt-daemon", "permissions; systemd units"),
    ("libvirt-daemon-common", "group libvirt, permissions; systemd units"),
    ("libvirt-daemon-config-network", "the default network, which we do not use"),
    ("libvirt-daemon-driver-qemu", "users libvirt-qemu and libvirt: ACCOUNTS"),
    ("libvirt-daemon-lock", "systemd units"),
    ("libvirt-daemon-log", "systemd units"),
    ("libvirt0", "nothing at a first installation"),
    ("linux-base", "links of an installed kernel"),
    ("linux-sysctl-defaults", "applies sysctl on an installed system"),
    ("login", "upgrade of an installed system"),
    ("login.defs", "upgrade of an installed system"),
    ("logrotate", "systemd timer"),
    ("mawk", "alternative awk: ALTERNATIVES"),
    ("mount", "nothing at a first installation"),
    ("netbase", "upgrade of an installed system"),
    ("openssl", "moves old configuration"),
    ("passwd", "permissions of shadow; shells"),
    ("perl-base", "nothing at a first installation"),
    ("polkitd", "user polkitd by sysusers; systemd units"),
    ("procps", "alternatives; sysctl"),
    ("qemu-system-common", "group kvm: base or ACCOUNTS; systemd units"),
    ("qemu-system-x86", "alternative kvm; binfmt"),
    ("sed", "nothing at a first installation"),
    ("shared-mime-info", "MIME cache by trigger"),
    ("systemd", "accounts by sysusers; units"),
    ("tar", "alternative rmt"),
    ("tzdata", "time zone by debconf: UTC"),
    ("ucf", "upgrade of an installed system"),
    ("udev", "accounts by sysusers; initramfs; hardware database"),
    ("util-linux", "alternatives; old configuration"),
    ("x11-common", "old directories"),
    ("xfonts-utils", "font directories of an installed system"),
];

/// Accounts that scripts of packages add, as sysusers.d(5) lines.
pub const ACCOUNTS: &[(&str, &str)] = &[
    (
        "libvirt-daemon-driver-qemu",
        "g kvm -\ng libvirt-qemu 64055\nu libvirt-qemu 64055:64055 \"Libvirt Qemu\" /var/lib/libvirt\nm libvirt-qemu kvm\n",
    ),
    ("libvirt-daemon-common", "g libvirt -\n"),
    ("qemu-system-common", "g kvm -\n"),
    ("udev", "g kvm -\ng render -\ng input -\n"),
];

/// Alternatives that our images need: link, then candidates, the first that is there wins.
pub const ALTERNATIVES: &[(&str, &[&str])] = &[
    ("usr/bin/awk", &["usr/bin/mawk", "usr/bin/gawk", "usr/bin/busybox"]),
    ("usr/bin/which", &["usr/bin/which.debianutils"]),
    ("usr/bin/pager", &["usr/bin/less", "usr/bin/more"]),
    ("usr/bin/sh", &["usr/bin/dash", "usr/bin/busybox"]),
    ("usr/bin/x-terminal-emulator", &["usr/bin/xterm"]),
    (
        "usr/bin/x-window-manager",
        &["usr/bin/matchbox-window-manager", "usr/bin/openbox", "usr/bin/icewm", "usr/bin/jwm"],
    ),
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
