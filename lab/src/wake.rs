//! Why a lab machine can be woken: the ACPI table that says so.
//!
//! QEMU's e1000e offers no PME in its PCI power management, so Linux finds that the card cannot wake the machine and
//! refuses `ethtool -s eth0 wol g` ("cannot enable unsupported WoL mode"). A PC's firmware says it in another way:
//! the network card's ACPI device has a `_PRW` (ACPI 6.5, 7.3.13). [`ssdt`] adds that one. From then on the e1000e
//! driver behaves as on real hardware: armed by the card's own settings at first, and at shutdown it writes what was
//! asked for into the card's wake-up filter register.

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

#[cfg(test)]
mod tests {
    use super::*;

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
