//! What this machine is made of, as the kernel knows it: for a server that has never seen the machine.

use std::{fs, path::Path};

use labshift_model::hardware::{Disk, Hardware, NetworkPort};

use crate::link;

/// Bytes of a sector in `/sys/block/*/size`, whatever the disk's own are.
const SECTOR: u64 = 512;

/// Reads it below `sysroot`. What the kernel does not know stays empty.
pub fn read(sysroot: &Path) -> Hardware {
    let text = |path: &str| {
        let bytes = fs::read(sysroot.join(path)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    };
    let dmi = |file: &str| text(&format!("sys/class/dmi/id/{file}"));
    let processors = text("proc/cpuinfo");
    let values = |key: &str| {
        let key = key.to_owned();
        processors.lines().filter_map(move |line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim())
        })
    };
    let virtualisation =
        values("flags").next().is_some_and(|flags| flags.split(' ').any(|f| f == "vmx" || f == "svm"));
    let memory = text("proc/meminfo");
    let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|t| t.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default();
    let ports = link::ports(sysroot, None).into_iter().map(|port| NetworkPort {
        speed: link::speed(sysroot, &port.name).unwrap_or_default(),
        name: port.name,
        mac: port.mac,
        driver: port.driver,
    });
    Hardware {
        vendor: dmi("sys_vendor"),
        product: dmi("product_name"),
        serial: dmi("product_serial"),
        firmware: [dmi("bios_version"), dmi("bios_date")].join(" ").trim().to_owned(),
        uefi: sysroot.join("sys/firmware/efi").exists(),
        cpu: values("model name").next().unwrap_or_default().to_owned(),
        cpus: values("processor").count() as u32,
        virtualisation,
        memory_mib: kib >> 10,
        ports: ports.collect(),
        disks: disks(sysroot),
        displays: displays(sysroot),
    }
}

/// Disks with a device behind them: no loops, no RAM disks.
fn disks(sysroot: &Path) -> Vec<Disk> {
    let mut disks: Vec<Disk> = entries(sysroot, "sys/block")
        .filter_map(|(name, read)| {
            let bytes = read("size").parse::<u64>().ok()? * SECTOR;
            let real = sysroot.join("sys/block").join(&name).join("device").exists();
            (real && bytes > 0).then(|| Disk { model: read("device/model"), name, bytes })
        })
        .collect();
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks
}

/// A disk's serial number, wherever its driver shows it below `/sys/class/block/NAME`; empty when it has none.
pub fn serial_of(device: &Path) -> String {
    let plain = ["serial", "device/serial"].iter().find_map(|file| fs::read(device.join(file)).ok());
    // SCSI and SATA: page 80 of the vital product data, four bytes before the text.
    let page = || fs::read(device.join("device/vpd_pg80")).ok()?.get(4..).map(<[u8]>::to_vec);
    let bytes = plain.or_else(page).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()
}

/// PCI devices of class 03.
fn displays(sysroot: &Path) -> Vec<String> {
    let mut displays: Vec<String> = entries(sysroot, "sys/bus/pci/devices")
        .filter(|(_, read)| read("class").starts_with("0x03"))
        .map(|(_, read)| {
            ["vendor", "device"].map(|file| read(file).trim_start_matches("0x").to_owned()).join(":")
        })
        .collect();
    displays.sort();
    displays
}

/// Entries of a directory, each with a way to read its small files.
fn entries(sysroot: &Path, directory: &str) -> impl Iterator<Item = (String, impl Fn(&str) -> String)> {
    let found = fs::read_dir(sysroot.join(directory)).into_iter().flatten().flatten();
    found.filter_map(|entry| {
        let path = entry.path();
        let read = move |file: &str| {
            fs::read_to_string(path.join(file)).map(|t| t.trim().to_owned()).unwrap_or_default()
        };
        Some((entry.file_name().into_string().ok()?, read))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_machine_is_described() {
        let root = std::env::temp_dir().join(format!("labshift-hardware-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, text).expect("written");
        };
        for (file, value) in
            [("sys_vendor", "Maker\n"), ("product_name", "Desk 7\n"), ("bios_version", "1.2\n")]
        {
            write(&format!("sys/class/dmi/id/{file}"), value);
        }
        let cpu = "processor\t: 0\nmodel name\t: Core 5\nflags\t\t: fpu svm sse\n\n";
        write("proc/cpuinfo", &(cpu.to_owned() + &cpu.replace(": 0", ": 1")));
        write("proc/meminfo", "MemTotal:       16384000 kB\nMemFree: 1 kB\n");
        write("sys/block/sda/size", "1000215216\n");
        write("sys/block/sda/device/model", "Disk X   \n");
        write("sys/block/loop0/size", "9\n");
        write("sys/block/sr0/size", "0\n");
        write("sys/block/sr0/device/model", "DVD\n");
        for (slot, class) in [("0000:01:00.0", "0x030000"), ("0000:02:00.0", "0x020000")] {
            for (file, value) in [("class", class), ("vendor", "0x10de"), ("device", "0x2204")] {
                write(&format!("sys/bus/pci/devices/{slot}/{file}"), value);
            }
        }
        write("sys/class/net/eth0/type", "1\n");
        write("sys/class/net/eth0/ifindex", "2\n");
        write("sys/class/net/eth0/address", "52:54:00:01:02:03\n");
        write("sys/class/net/eth0/speed", "1000\n");
        write("sys/class/net/eth0/device/vendor", "");
        symlink("../../../../bus/pci/drivers/e1000e", root.join("sys/class/net/eth0/device/driver"))
            .expect("a link");
        let hardware = read(&root);
        fs::remove_dir_all(&root).expect("removed");
        assert_eq!(hardware.summary(), "Maker Desk 7, 2 x Core 5, 16000 MiB, disk of 512 GB");
        assert_eq!((hardware.firmware.as_str(), hardware.uefi), ("1.2", false));
        assert_eq!(hardware.displays, ["10de:2204"]);
        let port = &hardware.ports[0];
        assert_eq!((port.driver.as_str(), port.speed.as_str()), ("e1000e", "1000 Mbit/s"));
        assert_eq!(hardware.disks[0].model, "Disk X");
        assert_eq!(hardware.disks.len(), 1, "{:?}", hardware.disks);
    }

    #[test]
    fn a_kernel_that_knows_nothing() {
        assert_eq!(read(Path::new("/nowhere")), Hardware::default());
    }
}
