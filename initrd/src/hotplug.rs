//! Devices that come later: a keyboard is plugged in, a driver brings a new bus.
//!
//! The kernel announces each device on a netlink socket. An announcement only wakes us up; then the devices of `/sys` are
//! listed again, and modules for new ones are loaded.

use std::{os::fd::AsRawFd, path::Path, time::Duration};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use crate::{journal::JOURNAL, modules::Loader};

/// Group of the kernel's own announcements.
const KERNEL: u32 = 1;
/// A device brings others with it: one look for all of them.
const SETTLE: Duration = Duration::from_millis(50);

/// Loads modules for every device there is, then for those that come, for life. `after` runs after each round that loaded
/// something.
pub fn serve(loader: &mut Loader, sysroot: &Path, after: impl Fn()) -> Result<()> {
    let events = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkKObjectUEvent,
    )
    .context("opening the kernel's announcements")?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))
        .context("listening to the kernel's announcements")?;
    let mut message = vec![0; 16 * 1024];
    loop {
        let loaded = loader.coldplug(sysroot, |_| true);
        loaded.tell("hardware");
        if !loaded.names.is_empty() {
            after();
        }
        for why in loaded.refused {
            JOURNAL.say("modules", &format!("not loaded: {why}"));
        }
        // Announcements that were lost in a burst do no harm: the list is read whole.
        loop {
            match recv(events.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(length) if brings_device(&message[..length]) => break,
                Ok(_) => {}
                Err(nix::errno::Errno::ENOBUFS) => break,
                Err(why) => return Err(why).context("hearing the kernel's announcements"),
            }
        }
        std::thread::sleep(SETTLE);
    }
}

/// True when an announcement is about a new device that may want a module.
fn brings_device(message: &[u8]) -> bool {
    let mut fields = message.split(|&b| b == 0);
    fields.next().is_some_and(|head| head.starts_with(b"add@")) && fields.any(|f| f.starts_with(b"MODALIAS="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_devices_with_an_alias_count() {
        assert!(brings_device(b"add@/devices/usb1/1-1\0ACTION=add\0MODALIAS=usb:v1d6bp0002\0"));
        assert!(!brings_device(b"remove@/devices/usb1/1-1\0ACTION=remove\0MODALIAS=usb:v1d6bp0002\0"));
        assert!(!brings_device(b"add@/module/erofs\0ACTION=add\0"));
        assert!(!brings_device(b"") && !brings_device(&[0xff; 64]));
    }
}
