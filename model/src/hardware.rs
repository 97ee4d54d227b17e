//! What a machine is made of, as its init tells the server before anybody knows the machine.

use serde::{Deserialize, Serialize};

use crate::mac::MacAddr;

/// Most entries that a list of hardware keeps, and most characters of a text.
const MOST: usize = 32;
const LONGEST: usize = 96;

/// One machine's hardware.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Who made it (DMI).
    pub vendor: String,
    /// What they call it (DMI).
    pub product: String,
    /// Serial number (DMI), as the sticker on the case has it.
    pub serial: String,
    /// Version and date of its firmware (DMI).
    pub firmware: String,
    /// Started by UEFI, not by a BIOS.
    pub uefi: bool,
    /// The processor's own name.
    pub cpu: String,
    /// Logical processors.
    pub cpus: u32,
    /// The processor can run virtual machines (and the firmware does not hide it).
    pub virtualisation: bool,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Network ports.
    pub ports: Vec<NetworkPort>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Display devices, `VENDOR:DEVICE` in hexadecimal digits as `lspci -n` prints them.
    pub displays: Vec<String>,
}

/// One physical network port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPort {
    /// The kernel's name.
    pub name: String,
    /// Hardware address.
    pub mac: MacAddr,
    /// The driver's name.
    pub driver: String,
    /// `1000 Mbit/s`; empty without a link.
    pub speed: String,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The kernel's name.
    pub name: String,
    /// What its maker calls it.
    pub model: String,
    /// Size in bytes.
    pub bytes: u64,
}

impl Hardware {
    /// In one line: maker, processors, memory, disks.
    pub fn summary(&self) -> String {
        let maker = [self.vendor.as_str(), &self.product].join(" ").trim().to_owned();
        let disks: u64 = self.disks.iter().map(|d| d.bytes).sum();
        let kvm = if self.virtualisation { "" } else { ", no virtualisation" };
        let disks = match self.disks.len() {
            0 => "no disk".to_owned(),
            1 => format!("disk of {} GB", disks / 1_000_000_000),
            n => format!("{n} disks of {} GB", disks / 1_000_000_000),
        };
        let maker = if maker.is_empty() { "machine of an unnamed maker" } else { &maker };
        format!("{maker}, {} x {}, {} MiB, {disks}{kvm}", self.cpus, self.cpu, self.memory_mib)
    }

    /// The same with nothing longer than a page can show: it comes from whoever says it is a machine.
    pub fn bounded(mut self) -> Self {
        let texts =
            [&mut self.vendor, &mut self.product, &mut self.serial, &mut self.firmware, &mut self.cpu];
        self.ports.truncate(MOST);
        self.disks.truncate(MOST);
        self.displays.truncate(MOST);
        let ports = self.ports.iter_mut().flat_map(|p| [&mut p.name, &mut p.driver, &mut p.speed]);
        let disks = self.disks.iter_mut().flat_map(|d| [&mut d.name, &mut d.model]);
        for text in texts.into_iter().chain(ports).chain(disks).chain(&mut self.displays) {
            *text = text.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_people() {
        let disk = |name: &str| Disk { name: name.into(), model: String::new(), bytes: 512_000_000_000 };
        let mut hardware = Hardware {
            vendor: "Maker".into(),
            product: "Desk 7".into(),
            cpu: "Core 5".into(),
            cpus: 8,
            memory_mib: 16000,
            ..Hardware::default()
        };
        assert_eq!(hardware.summary(), "Maker Desk 7, 8 x Core 5, 16000 MiB, no disk, no virtualisation");
        (hardware.virtualisation, hardware.disks) = (true, vec![disk("sda"), disk("sdb")]);
        assert!(hardware.summary().ends_with("16000 MiB, 2 disks of 1024 GB"), "{}", hardware.summary());
    }

    #[test]
    fn what_a_stranger_says_stays_small() {
        let hardware = Hardware {
            serial: "x\u{1b}".repeat(1000),
            displays: vec!["y".repeat(1000); 1000],
            ..Hardware::default()
        };
        let bounded = hardware.bounded();
        assert!(bounded.serial.len() == LONGEST && !bounded.serial.contains('\u{1b}'));
        assert!(bounded.displays.len() == MOST && bounded.displays.iter().all(|d| d.len() == LONGEST));
    }
}
