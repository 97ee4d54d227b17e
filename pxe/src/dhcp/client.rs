//! Who speaks: the same network card sends DHCP as firmware, as iPXE, as our init and as an operating system, and
//! each needs another answer. Told apart by options 60 (vendor class), 77 (user class), 93 (architecture) and
//! 175 (iPXE's own); RFC 4578, RFC 3004, UEFI 2.10 chapter 24.

use labshift_model::boot::Speaker;

use super::options::Options;

/// Vendor class of our own init.
pub const INIT_CLASS: &[u8] = b"labshift-init";
/// Vendor class prefix of network boot firmware.
pub const PXE_CLASS: &[u8] = b"PXEClient";
/// Vendor class prefix of UEFI HTTP boot.
pub const HTTP_CLASS: &[u8] = b"HTTPClient";

const VENDOR_CLASS: u8 = 60;
const USER_CLASS: u8 = 77;
const ARCHITECTURE: u8 = 93;
const IPXE: u8 = 175;

/// The processor and firmware that an image must be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// x86 with a BIOS.
    Bios,
    /// x86-64 UEFI, by PXE.
    Uefi,
    /// x86-64 UEFI, by HTTP.
    UefiHttp,
    /// Anything that no image of ours runs on (32-bit UEFI, Arm): its number in the IANA registry.
    Foreign(u16),
}

impl Platform {
    /// From an IANA processor architecture type. 7 and 9 both mean x86-64 UEFI; firmware uses both.
    pub fn of(architecture: u16) -> Self {
        match architecture {
            0 => Platform::Bios,
            7 | 9 => Platform::Uefi,
            16 => Platform::UefiHttp,
            other => Platform::Foreign(other),
        }
    }
}

/// A DHCP client as its options describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Network boot firmware that is not iPXE.
    Firmware(Platform),
    /// iPXE, in a ROM or loaded by us.
    Ipxe,
    /// Our own init.
    Init,
    /// Anything else: wants an address.
    Other,
}

impl Client {
    /// Reads it from the options. iPXE is known by its user class or by option 175, which is all that FlexBoot sends.
    pub fn of(options: &Options) -> Self {
        let class = options.get(VENDOR_CLASS).unwrap_or_default();
        if class == INIT_CLASS {
            return Client::Init;
        }
        if options.get(IPXE).is_some() || options.get(USER_CLASS).is_some_and(names_ipxe) {
            return Client::Ipxe;
        }
        let http = class.starts_with(HTTP_CLASS);
        if !http && !class.starts_with(PXE_CLASS) {
            return Client::Other;
        }
        let architecture = architecture_option(options).or_else(|| architecture_in_class(class));
        Client::Firmware(match architecture.map(Platform::of) {
            Some(Platform::Uefi) if http => Platform::UefiHttp,
            Some(platform) => platform,
            // ROMs of the nineties name no architecture.
            None if !http => Platform::Bios,
            None => Platform::UefiHttp,
        })
    }

    /// The name that the journal uses.
    pub fn speaker(self) -> Speaker {
        match self {
            Client::Firmware(Platform::Bios) => Speaker::BiosRom,
            Client::Firmware(_) => Speaker::Uefi,
            Client::Ipxe => Speaker::Ipxe,
            Client::Init => Speaker::Init,
            Client::Other => Speaker::Other,
        }
    }
}

/// The first type in option 93 that we know, else the first.
fn architecture_option(options: &Options) -> Option<u16> {
    let value = options.get(ARCHITECTURE)?;
    let numbers = || value.as_chunks::<2>().0.iter().map(|pair| u16::from_be_bytes(*pair));
    numbers().find(|n| !matches!(Platform::of(*n), Platform::Foreign(_))).or_else(|| numbers().next())
}

/// `PXEClient:Arch:00007:UNDI:003016`.
fn architecture_in_class(class: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(class).ok()?;
    text.split(':').skip_while(|word| *word != "Arch").nth(1)?.parse().ok()
}

/// A user class is either a list of length-prefixed names (RFC 3004) or, from older loaders, one bare name.
fn names_ipxe(value: &[u8]) -> bool {
    const NAME: &[u8] = b"iPXE";
    if value == NAME {
        return true;
    }
    let mut rest = value;
    while let Some((&length, after)) = rest.split_first() {
        let Some((name, next)) = after.split_at_checked(length.into()) else { return false };
        if name == NAME {
            return true;
        }
        rest = next;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::options::HEADER;

    fn options(list: &[(u8, &[u8])]) -> Options {
        let mut packet = vec![0; HEADER - 4];
        packet.extend([99, 130, 83, 99]);
        for (code, value) in list {
            packet.extend([*code, value.len() as u8]);
            packet.extend(*value);
        }
        packet.push(255);
        Options::of(&packet).expect("reading")
    }

    #[test]
    fn case_06_07_clients_are_told_apart() {
        let pxe = (60, &b"PXEClient:Arch:00000:UNDI:002001"[..]);
        let uefi = (60, &b"PXEClient:Arch:00007:UNDI:003016"[..]);
        let http = (60, &b"HTTPClient:Arch:00016:UNDI:003001"[..]);
        let firmware = Client::Firmware;
        for (list, wanted) in [
            (vec![], Client::Other),
            (vec![(60, &b"MSFT 5.0"[..])], Client::Other),
            (vec![(60, INIT_CLASS)], Client::Init),
            (vec![pxe], firmware(Platform::Bios)),
            (vec![(60, &b"PXEClient"[..])], firmware(Platform::Bios)),
            (vec![pxe, (93, &[0, 0][..])], firmware(Platform::Bios)),
            (vec![uefi], firmware(Platform::Uefi)),
            (vec![uefi, (93, &[0, 7][..])], firmware(Platform::Uefi)),
            (vec![uefi, (93, &[0, 9][..])], firmware(Platform::Uefi)),
            (vec![uefi, (93, &[0, 6, 0, 7][..])], firmware(Platform::Uefi)),
            (vec![uefi, (93, &[0, 6][..])], firmware(Platform::Foreign(6))),
            (vec![pxe, (93, &[0, 10][..])], firmware(Platform::Foreign(10))),
            (vec![pxe, (93, &[0, 11][..])], firmware(Platform::Foreign(11))),
            (vec![uefi, (93, &[0][..])], firmware(Platform::Uefi)),
            (vec![http, (93, &[0, 16][..])], firmware(Platform::UefiHttp)),
            (vec![http], firmware(Platform::UefiHttp)),
            (vec![http, (93, &[0, 7][..])], firmware(Platform::UefiHttp)),
            (vec![http, (93, &[0, 15][..])], firmware(Platform::Foreign(15))),
            (vec![pxe, (77, &b"iPXE"[..])], Client::Ipxe),
            (vec![pxe, (77, &b"\x04iPXE"[..])], Client::Ipxe),
            (vec![pxe, (77, &b"\x03lab\x04iPXE"[..])], Client::Ipxe),
            (vec![pxe, (77, &b"\x09iPXE"[..])], firmware(Platform::Bios)),
            (vec![pxe, (175, &[0xb1, 4, 1, 0x80, 0x86, 0x10][..])], Client::Ipxe),
        ] {
            assert_eq!(Client::of(&options(&list)), wanted, "{list:?}");
        }
    }
}
