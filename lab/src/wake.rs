//! Why a lab machine can be woken: the ACPI table that says so, and the card's register that says whether it is armed.
//!
//! QEMU's e1000e offers no PME in its PCI power management, so Linux finds that the card cannot wake the machine and
//! refuses `ethtool -s eth0 wol g` ("cannot enable unsupported WoL mode"). A PC's firmware says it in another way:
//! the network card's ACPI device has a `_PRW` (ACPI 6.5, 7.3.13). [`ssdt`] adds that one. From then on the e1000e
//! driver behaves as on real hardware: armed by the card's own settings at first, and at shutdown it writes what was
//! asked for into the card's wake-up filter register.

use crate::qmp::Qmp;

/// PCI slot of the network card on bus 0; QEMU's ACPI names it `S20`, the slot times eight.
pub const SLOT: u8 = 4;

/// `Scope (\_SB.PCI0.S20) { Name (_PRW, Package () { 0x0D, 0x05 }) }`: the card wakes the machine from S5.
pub fn ssdt() -> Vec<u8> {
    let body =
        [&[0x10, 0x1c, b'\\', 0x2f, 3][..], b"_SB_PCI0S20_", b"\x08_PRW", &[0x12, 6, 2, 0x0a, 0x0d, 0x0a, 5]];
    let body = body.concat();
    let length = u32::try_from(36 + body.len()).unwrap_or(0).to_le_bytes();
    let mut table =
        [&b"SSDT"[..], &length, &[1, 0], b"LABSFTLANWAKE\0", &[1, 0, 0, 0], b"LABS", &[1, 0, 0, 0], &body]
            .concat();
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
    table
}

/// Whether the card of a machine that just powered off was left armed: bit 1 of the 82574's wake-up filter control register (WUFC,
/// offset 0x5808), read through QEMU's monitor.
pub fn is_armed(qmp: &Qmp) -> Result<bool, String> {
    let devices = qmp.monitor("info pci").map_err(|e| e.to_string())?;
    let bar = network_bar(&devices).ok_or("no network card with a memory range")?;
    let text = qmp.monitor(&format!("xp /1wx 0x{:x}", bar + 0x5808)).map_err(|e| e.to_string())?;
    let value = text.split(':').nth(1).map(str::trim).and_then(|v| v.strip_prefix("0x"));
    let value =
        value.and_then(|v| u32::from_str_radix(v, 16).ok()).ok_or(format!("unexpected answer {text:?}"))?;
    if value == u32::MAX {
        return Err("its registers can't be reached".into());
    }
    Ok(value & 0b10 != 0)
}

/// The first memory range of the 82574 in `info pci`'s text.
fn network_bar(devices: &str) -> Option<u64> {
    let card = devices.split("  Bus ").find(|d| d.contains("8086:10d3"))?;
    let range = card.split("BAR0: 32 bit memory at 0x").nth(1)?;
    let digits: String = range.chars().take_while(char::is_ascii_hexdigit).collect();
    u64::from_str_radix(&digits, 16).ok().filter(|b| *b != 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_card_among_others() {
        let text = "  Bus  0, device   1, function 0:\r\n    Class 0768: PCI device 1af4:1050\r\n      BAR0: 64 bit prefetchable memory at 0x380000000000 [0x1].\r\n  \
                    Bus  0, device   3, function 0:\r\n    Ethernet controller: PCI device 8086:10d3\r\n      IRQ 11, pin A\r\n      BAR0: 32 bit memory at 0xfeb80000 [0xfeb9ffff].\r\n";
        assert_eq!(network_bar(text), Some(0xfeb8_0000));
        assert_eq!(network_bar("nothing"), None);
    }

    #[test]
    fn the_table_is_whole() {
        let table = ssdt();
        assert_eq!(table.len(), 65);
        assert_eq!(table[4..8], 65u32.to_le_bytes());
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        let device = format!("S{:02X}_", SLOT * 8);
        assert!(table.windows(4).any(|w| w == device.as_bytes()), "names the card's slot");
    }
}
