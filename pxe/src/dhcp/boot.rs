//! What a client is told to boot: pure choice from who speaks and what the directory says.
//!
//! ```text
//!             Image                     Refuse                  LocalDisk                Ignore
//! BIOS ROM    undionly.kpxe  (TFTP)     undionly.kpxe           nothing: goes on to it   nothing
//! UEFI PXE    uki.efi        (TFTP)     snponly.efi             a menu of one: the disk  nothing
//! UEFI HTTP   uki.efi        (HTTP)     nothing                 a URL without a file     nothing
//! iPXE        script         (HTTP)     script with the reason  nothing: goes on to it   nothing
//! our init    base URL of the server, whatever the choice
//! ```
//!
//! UEFI that is offered an address alone asks for a minute, once by PXE and once by HTTP, before it goes on to the disk.
//!
//! Virtual machines get an address only. For machines that nobody knows the directory chooses as for all others: nothing, unless
//! the site has a policy for them.

use labshift_model::{
    MacAddr,
    boot::{BootChoice, Machine, MachineKind},
    paths,
};

use super::client::{Client, Platform};
use crate::config::Config;

/// iPXE for a BIOS, driving the card through the ROM's own driver.
pub const BIOS_LOADER: &str = "undionly.kpxe";
/// iPXE for x86-64 UEFI, driving the card through the firmware's driver.
pub const UEFI_LOADER: &str = "snponly.efi";

/// What goes into a reply about booting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootFile {
    /// A path on our TFTP server, for firmware.
    Tftp(String),
    /// A URL, for UEFI HTTP boot.
    HttpBoot(String),
    /// The URL of iPXE's script.
    Script(String),
    /// Base URL of the server, for our init.
    Base(String),
    /// Not a file but the machine's own disk, by PXE's boot server type 0 (PXE 2.1, table 2-1, tag 9).
    OwnDisk,
}

/// The boot file for one client, if it gets one.
pub fn boot_file(
    client: Client,
    mac: MacAddr,
    machine: Option<&Machine>,
    choice: impl FnOnce() -> BootChoice,
    config: &Config,
) -> Option<BootFile> {
    let base = config.base_url();
    match client {
        Client::Other => None,
        _ if machine.is_some_and(|m| m.kind == MachineKind::Guest) => None,
        Client::Init => Some(BootFile::Base(base)),
        Client::Ipxe => match choice() {
            BootChoice::Image { .. } | BootChoice::Refuse(_) => {
                Some(BootFile::Script(script_url(&base, mac)))
            }
            BootChoice::LocalDisk | BootChoice::Ignore => None,
        },
        Client::Firmware(platform) => match (platform, choice()) {
            (Platform::Bios, BootChoice::Image { .. } | BootChoice::Refuse(_)) => {
                Some(BootFile::Tftp(BIOS_LOADER.to_owned()))
            }
            (Platform::Uefi, BootChoice::Image { name, generation, .. }) => {
                Some(BootFile::Tftp(format!("{}/{name}/{generation}/{}", &paths::IMAGES[1..], paths::UKI)))
            }
            (Platform::Uefi, BootChoice::Refuse(_)) => Some(BootFile::Tftp(UEFI_LOADER.to_owned())),
            (Platform::UefiHttp, BootChoice::Image { name, generation, .. }) => Some(BootFile::HttpBoot(
                format!("{base}{}/{name}/{generation}/{}", paths::IMAGES, paths::UKI),
            )),
            (Platform::Uefi, BootChoice::LocalDisk) => Some(BootFile::OwnDisk),
            (Platform::UefiHttp, BootChoice::LocalDisk) => {
                Some(BootFile::HttpBoot(format!("{base}{}", paths::OWN_DISK)))
            }
            _ => None,
        },
    }
}

/// Where a machine's iPXE script is.
pub fn script_url(base: &str, mac: MacAddr) -> String {
    format!("{base}{}?mac={mac}", paths::IPXE_SCRIPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_05_06_07_each_client_gets_what_it_can_run() {
        let config = Config::new("lab0", [10, 77, 0, 1].into(), 24, "/s".into(), "/t".into());
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let node = Machine { name: "lab-01".into(), address: None, kind: MachineKind::Node };
        let guest = Machine { kind: MachineKind::Guest, ..node.clone() };
        let image =
            || BootChoice::Image { name: "lab".into(), generation: "ab".into(), arguments: String::new() };
        let refuse = || BootChoice::Refuse("maintenance".into());
        let tftp = |path: &str| Some(BootFile::Tftp(path.into()));
        let script = "http://10.77.0.1:8080/boot/script.ipxe?mac=02:00:00:00:00:01";
        let script = || Some(BootFile::Script(script.into()));
        let url = || Some(BootFile::HttpBoot("http://10.77.0.1:8080/images/lab/ab/uki.efi".into()));
        let nowhere = || Some(BootFile::HttpBoot("http://10.77.0.1:8080/boot/own-disk".into()));
        let base = || Some(BootFile::Base("http://10.77.0.1:8080".into()));
        let firmware = Client::Firmware;
        for (client, machine, choice, wanted) in [
            (firmware(Platform::Bios), Some(&node), image(), tftp("undionly.kpxe")),
            (firmware(Platform::Uefi), Some(&node), image(), tftp("images/lab/ab/uki.efi")),
            (firmware(Platform::UefiHttp), Some(&node), image(), url()),
            (firmware(Platform::Foreign(6)), Some(&node), image(), None),
            (firmware(Platform::Foreign(11)), Some(&node), image(), None),
            (Client::Ipxe, Some(&node), image(), script()),
            (firmware(Platform::Bios), Some(&node), refuse(), tftp("undionly.kpxe")),
            (firmware(Platform::Uefi), Some(&node), refuse(), tftp("snponly.efi")),
            (Client::Ipxe, Some(&node), refuse(), script()),
            (firmware(Platform::Bios), Some(&node), BootChoice::LocalDisk, None),
            (Client::Ipxe, Some(&node), BootChoice::LocalDisk, None),
            (firmware(Platform::Uefi), Some(&node), BootChoice::LocalDisk, Some(BootFile::OwnDisk)),
            (firmware(Platform::UefiHttp), Some(&node), BootChoice::LocalDisk, nowhere()),
            (firmware(Platform::UefiHttp), Some(&node), BootChoice::Ignore, None),
            (Client::Ipxe, Some(&node), BootChoice::Ignore, None),
            (firmware(Platform::Uefi), Some(&guest), image(), None),
            (Client::Ipxe, None, BootChoice::Ignore, None),
            (Client::Ipxe, None, image(), script()),
            (firmware(Platform::Bios), None, image(), tftp("undionly.kpxe")),
            (Client::Init, None, image(), base()),
            (Client::Init, Some(&node), BootChoice::Ignore, base()),
            (Client::Init, Some(&guest), image(), None),
            (Client::Other, Some(&node), image(), None),
        ] {
            let found = boot_file(client, mac, machine, || choice.clone(), &config);
            assert_eq!(found, wanted, "{client:?} {machine:?} {choice:?}");
        }
    }
}
