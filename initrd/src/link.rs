//! Ports: which network cards there are, which of them has a link.

use std::{fs, path::Path};

use labshift_model::MacAddr;

/// One physical network port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Kernel name.
    pub name: String,
    /// Kernel index.
    pub index: u32,
    /// Hardware address.
    pub mac: MacAddr,
    /// Driver's name.
    pub driver: String,
}

/// All physical Ethernet ports, the preferred one first, then by index. A port is physical when a device stands
/// behind it; bridges, taps and the loopback have none.
pub fn ports(sysroot: &Path, preferred: Option<MacAddr>) -> Vec<Port> {
    const ETHERNET: &str = "1";
    let Ok(entries) = fs::read_dir(sysroot.join("sys/class/net")) else { return vec![] };
    let mut ports: Vec<Port> = entries
        .flatten()
        .filter_map(|entry| {
            let directory = entry.path();
            let read = |file: &str| {
                fs::read_to_string(directory.join(file)).map(|t| t.trim().to_owned()).unwrap_or_default()
            };
            if !directory.join("device").exists() || read("type") != ETHERNET {
                return None;
            }
            let driver = fs::read_link(directory.join("device/driver")).ok();
            Some(Port {
                name: entry.file_name().into_string().ok()?,
                index: read("ifindex").parse().ok()?,
                mac: read("address").parse().ok()?,
                driver: driver
                    .and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned()))
                    .unwrap_or_else(|| "unknown driver".to_owned()),
            })
        })
        .collect();
    ports.sort_by_key(|p| (Some(p.mac) != preferred, p.index));
    ports
}

/// True when a cable with something at its other end is plugged in.
pub fn has_link(sysroot: &Path, port: &str) -> bool {
    let file = sysroot.join("sys/class/net").join(port).join("carrier");
    fs::read_to_string(file).is_ok_and(|t| t.trim() == "1")
}

/// `1000 Mbit/s`, when the port tells.
pub fn speed(sysroot: &Path, port: &str) -> Option<String> {
    let file = sysroot.join("sys/class/net").join(port).join("speed");
    let speed: i64 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (speed > 0).then(|| format!("{speed} Mbit/s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_ports_preferred_first() {
        let dir = std::env::temp_dir().join(format!("labshift-ports-{}", std::process::id()));
        let net = dir.join("sys/class/net");
        for (name, index, mac, physical) in [
            ("lo", "1", "00:00:00:00:00:00", false),
            ("eth0", "2", "52:54:00:00:00:02", true),
            ("eth1", "3", "52:54:00:00:00:03", true),
            ("br0", "4", "52:54:00:00:00:02", false),
        ] {
            let port = net.join(name);
            fs::create_dir_all(if physical { port.join("device") } else { port.clone() }).unwrap();
            for (file, text) in
                [("type", "1"), ("ifindex", index), ("address", mac), ("carrier", "1"), ("speed", "-1")]
            {
                fs::write(port.join(file), format!("{text}\n")).unwrap();
            }
        }
        let names = |preferred: Option<&str>| -> Vec<String> {
            ports(&dir, preferred.map(|m| m.parse().unwrap())).into_iter().map(|p| p.name).collect()
        };
        assert_eq!(names(None), ["eth0", "eth1"]);
        assert_eq!(names(Some("52:54:00:00:00:03")), ["eth1", "eth0"]);
        assert!(has_link(&dir, "eth0") && !has_link(&dir, "eth7"));
        assert_eq!(speed(&dir, "eth0"), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
