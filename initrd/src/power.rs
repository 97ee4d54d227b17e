//! The end: Wake-on-LAN armed and read back, everything stopped, then power off or reboot.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{journal::JOURNAL, sys};

/// How the machine goes down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Off, to be woken through these ports; none for a guest.
    PowerOff {
        /// Ports that were armed.
        wake: Vec<String>,
    },
    /// From the start.
    Reboot,
    /// Into the kernel that is loaded; through the firmware if that fails.
    Kexec,
}

/// Arms Wake-on-LAN on a port, or on the physical ports of a bridge, and reads it back. Returns the armed ports.
pub fn arm(sysroot: &Path, interface: &str) -> Result<Vec<String>> {
    let ports = physical_ports(sysroot, interface);
    if ports.is_empty() {
        bail!("{interface} is no network port of this machine and has none under it");
    }
    for port in &ports {
        let setting = sys::wake_on_lan(port).with_context(|| format!("reading Wake-on-LAN of {port}"))?;
        if !setting.supported {
            bail!(
                "{port} can't wake on a magic packet; look into the firmware setup, or wake it by other means"
            );
        }
        sys::arm_wake_on_lan(port).with_context(|| format!("arming Wake-on-LAN of {port}"))?;
        let setting =
            sys::wake_on_lan(port).with_context(|| format!("reading Wake-on-LAN of {port} back"))?;
        if !setting.armed {
            bail!("{port} took the Wake-on-LAN setting but does not keep it");
        }
        let mac =
            fs::read_to_string(sysroot.join("sys/class/net").join(port).join("address")).unwrap_or_default();
        JOURNAL.say("power", &format!("wake-on-lan armed on {port} {}, read back", mac.trim()));
    }
    Ok(ports)
}

/// The port itself when a device stands behind it, else those physical ports that a bridge has.
fn physical_ports(sysroot: &Path, interface: &str) -> Vec<String> {
    if interface.is_empty() || interface.contains('/') || interface.starts_with('.') {
        return vec![];
    }
    let net = sysroot.join("sys/class/net");
    let is_physical = |name: &str| net.join(name).join("device").exists();
    if is_physical(interface) {
        return vec![interface.to_owned()];
    }
    let below = fs::read_dir(net.join(interface).join("brif"));
    let mut ports: Vec<String> = below
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_physical(name))
        .collect();
    ports.sort();
    ports
}

/// Ends whatever still runs, writes what is to be written, and leaves. For PID 1 only; never returns there.
pub fn finish(end: End) -> ! {
    JOURNAL.say("power", "stopping what still runs");
    for (signal, patience) in [(Signal::SIGTERM, 50), (Signal::SIGKILL, 20)] {
        // From PID 1, -1 means everyone else.
        let _ = kill(Pid::from_raw(-1), signal);
        let _ = kill(Pid::from_raw(-1), Signal::SIGCONT);
        for _ in 0..patience {
            if nobody_left() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    nix::unistd::sync();
    for target in ["/run/labshift/upper", "/run/labshift/lower"] {
        let _ = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
    }
    let _ = nix::mount::mount(
        None::<&str>,
        "/",
        None::<&str>,
        nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_RDONLY,
        None::<&str>,
    );
    nix::unistd::sync();
    let mode = match &end {
        End::PowerOff { wake } => {
            // A driver may forget its setting while services stop.
            for port in wake {
                if let Err(why) = arm(Path::new("/"), port) {
                    JOURNAL.say("power", &format!("wake-on-lan: {why:#}"));
                }
            }
            JOURNAL.say("power", "off");
            RebootMode::RB_POWER_OFF
        }
        End::Reboot => {
            JOURNAL.say("power", "rebooting");
            RebootMode::RB_AUTOBOOT
        }
        End::Kexec => {
            JOURNAL.say("power", "starting the next kernel");
            RebootMode::RB_AUTOBOOT
        }
    };
    if end == End::Kexec {
        let refused = sys::start_loaded_kernel();
        JOURNAL.say(
            "power",
            &format!("the kernel refused to start the next one ({refused}): through the firmware then"),
        );
    }
    let refused = reboot(mode);
    JOURNAL.say("power", &format!("the kernel refused: {refused:?}"));
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Reaps; true when there is no child any more.
fn nobody_left() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return false,
            Ok(_) => {}
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_stands_for_its_physical_port() {
        let dir = std::env::temp_dir().join(format!("labshift-wol-{}", std::process::id()));
        let net = dir.join("sys/class/net");
        fs::create_dir_all(net.join("eth0/device")).unwrap();
        fs::create_dir_all(net.join("vnet0")).unwrap();
        for port in ["eth0", "vnet0"] {
            fs::create_dir_all(net.join("br0/brif").join(port)).unwrap();
        }
        assert_eq!(physical_ports(&dir, "eth0"), ["eth0"]);
        assert_eq!(physical_ports(&dir, "br0"), ["eth0"]);
        for other in ["vnet0", "../br0", "", "none"] {
            assert!(physical_ports(&dir, other).is_empty(), "{other}");
        }
        assert!(arm(&dir, "none").unwrap_err().to_string().contains("none is no network port"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
