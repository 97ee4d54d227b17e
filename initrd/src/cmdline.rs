//! What the kernel command line tells init. Pure: text in, settings and faults out.
//!
//! Only `labshift.*`, `BOOTIF` and nothing else is looked at. A setting that can't be read is a fault, never
//! silently a default: a mistyped `labshift.roothash` must not turn a check off.

use std::net::SocketAddrV4;

use labshift_model::MacAddr;

use crate::blocks::Policy;

/// Where the root file system comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RootSource {
    /// A node: fetched from the server and verified on the way.
    #[default]
    Network,
    /// A guest: on the first virtio disk.
    Disk(DiskRoot),
}

/// The verified root on a guest's first disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRoot {
    /// dm-verity root hash, 64 hex digits.
    pub root_hash: String,
    /// Bytes of file system before the hash tree.
    pub data_size: u64,
    /// dm-verity salt in hex; may be empty.
    pub salt: String,
}

/// Who a guest is and where its work is reported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestIdentity {
    /// Name of the guest in the site.
    pub name: String,
    /// URL that takes its reports.
    pub report: String,
    /// Bearer token for that URL.
    pub token: String,
}

/// Settings from the kernel command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cmdline {
    /// Network or disk.
    pub root: RootSource,
    /// `labshift.server=http://IP:PORT`: asked instead of the server that DHCP names. No trailing slash.
    pub server: Option<String>,
    /// `labshift.mac=` or `BOOTIF=`: the port that the firmware booted from.
    pub port: Option<MacAddr>,
    /// `labshift.roothash=` on a node: the manifest must name this one.
    pub root_hash: Option<String>,
    /// `labshift.retry=SECONDS`: wait between attempts instead of the growing default.
    pub retry_seconds: Option<u64>,
    /// `labshift.attempts=N`: failures before the machine reboots.
    pub attempts: Option<u32>,
    /// `labshift.policy=whole|full|lazy|disk`: how much of the root is kept in memory, and when it comes.
    pub policy: Policy,
    /// `labshift.mirror=http://IP:PORT`, as often as there are: servers that hold the images, too.
    pub mirrors: Vec<String>,
    /// Guest identity, in a guest.
    pub guest: Option<GuestIdentity>,
}

/// Longest value that is accepted.
const LONGEST: usize = 2048;

/// Reads a command line. `Err` holds every fault, as sentences.
pub fn parse(text: &str) -> Result<Cmdline, Vec<String>> {
    let mut faults = Vec::new();
    let mut found = Cmdline::default();
    let (mut disk, mut hash, mut size, mut salt) = (false, None, None, String::new());
    let (mut bootif, mut identity) = (None, GuestIdentity::default());
    for (key, value) in words(text) {
        if !(key.starts_with("labshift.") || key == "BOOTIF") {
            continue;
        }
        if value.len() > LONGEST || value.chars().any(char::is_control) {
            faults.push(format!("{key} is too long or holds control characters"));
            continue;
        }
        let mut fault = |wanted: &str| faults.push(format!("{key}={value} is not {wanted}"));
        match key.as_str() {
            "labshift.root" => match value.as_str() {
                "network" => disk = false,
                "disk" => disk = true,
                _ => fault("\"network\" or \"disk\""),
            },
            "labshift.server" => match server_url(&value) {
                Some(url) => found.server = Some(url),
                None => fault("a base URL like http://10.0.0.1:8080"),
            },
            "labshift.mirror" => match server_url(&value) {
                Some(url) => found.mirrors.push(url),
                None => fault("a base URL like http://10.0.0.1:8080"),
            },
            "labshift.policy" => match value.as_str() {
                "whole" => found.policy = Policy::Whole,
                "full" => found.policy = Policy::Full,
                "lazy" => found.policy = Policy::Lazy,
                "disk" => found.policy = Policy::Disk,
                _ => fault("\"whole\", \"full\", \"lazy\" or \"disk\""),
            },
            "labshift.mac" => match value.parse() {
                Ok(mac) => found.port = Some(mac),
                Err(_) => fault("a MAC address like 52:54:00:12:34:56"),
            },
            // 01- is the hardware type that PXELINUX puts in front; it says nothing about us when it is absent.
            "BOOTIF" => bootif = value.strip_prefix("01-").unwrap_or(&value).parse().ok(),
            "labshift.roothash" if is_hex(&value, 64) => hash = Some(value.to_ascii_lowercase()),
            "labshift.roothash" => fault("a root hash of 64 hex digits"),
            "labshift.datasize" => match value.parse::<u64>() {
                Ok(bytes) if bytes > 0 && bytes % 4096 == 0 => size = Some(bytes),
                _ => fault("a size in bytes, a multiple of 4096"),
            },
            "labshift.salt" if value.len() % 2 == 0 && is_hex(&value, value.len()) && value.len() <= 512 => {
                salt = value.to_ascii_lowercase();
            }
            "labshift.salt" => fault("a salt in hex"),
            "labshift.retry" => match value.parse() {
                Ok(seconds) if seconds <= 3600 => found.retry_seconds = Some(seconds),
                _ => fault("a number of seconds up to 3600"),
            },
            "labshift.attempts" => match value.parse() {
                Ok(attempts) if attempts > 0 => found.attempts = Some(attempts),
                _ => fault("a number of attempts, at least 1"),
            },
            "labshift.guest" => identity.name = value,
            "labshift.report" => identity.report = value,
            "labshift.token" => identity.token = value,
            _ => {}
        }
    }
    found.port = found.port.or(bootif);
    if !identity.name.is_empty() {
        found.guest = Some(identity);
    }
    match (disk, hash, size) {
        (true, Some(root_hash), Some(data_size)) => {
            found.root = RootSource::Disk(DiskRoot { root_hash, data_size, salt });
        }
        (true, _, _) => {
            faults.push("labshift.root=disk needs labshift.roothash= and labshift.datasize=".to_owned());
        }
        (false, hash, _) => found.root_hash = hash,
    }
    if faults.is_empty() { Ok(found) } else { Err(faults) }
}

/// `http://IPV4:PORT`, with or without a trailing slash; the port may be left out. Names are refused: there is
/// no resolver before the root is there. Also used for the URL that DHCP names.
pub fn server_url(text: &str) -> Option<String> {
    let host = text.strip_prefix("http://")?.trim_end_matches('/');
    if let Ok(address) = host.parse::<SocketAddrV4>() {
        return (address.port() != 0 && !address.ip().is_unspecified()).then(|| format!("http://{address}"));
    }
    let address: std::net::Ipv4Addr = host.parse().ok()?;
    (!address.is_unspecified()).then(|| format!("http://{address}:80"))
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Splits as the kernel does: blanks separate, double quotes hold blanks together.
fn words(text: &str) -> Vec<(String, String)> {
    let mut words = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for c in text.chars().chain([' ']) {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    let (key, value) = word.split_once('=').unwrap_or((&word, ""));
                    words.push((key.to_owned(), value.to_owned()));
                    word.clear();
                }
            }
            c => word.push(c),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ABCDEF";

    #[test]
    fn reads_a_node_and_a_guest() {
        let node = parse(&format!(
            "BOOT_IMAGE=vmlinuz quiet console=ttyS0 labshift.server=http://10.0.2.2:8080/ BOOTIF=01-52-54-00-12-34-56 \
             labshift.roothash={HASH} labshift.retry=1 labshift.policy=full labshift.mirror=http://10.0.2.3"
        ))
        .unwrap();
        assert_eq!(node.root, RootSource::Network);
        assert_eq!(node.server.as_deref(), Some("http://10.0.2.2:8080"));
        assert_eq!(node.port.unwrap().to_string(), "52:54:00:12:34:56");
        assert_eq!(node.root_hash, Some(HASH.to_ascii_lowercase()));
        assert_eq!(node.retry_seconds, Some(1));
        assert_eq!((node.policy, node.mirrors), (Policy::Full, vec!["http://10.0.2.3:80".to_owned()]));

        let guest = parse(&format!(
            "labshift.root=disk labshift.roothash={HASH} labshift.datasize=8192 labshift.salt=00ff \
             labshift.guest=\"batch-1\" labshift.report=http://10.0.0.1:8080/v1/guests/batch-1/report labshift.token=t"
        ))
        .unwrap();
        assert_eq!(
            guest.root,
            RootSource::Disk(DiskRoot {
                root_hash: HASH.to_ascii_lowercase(),
                data_size: 8192,
                salt: "00ff".into()
            })
        );
        assert_eq!(guest.guest.unwrap().name, "batch-1");
    }

    #[test]
    fn every_bad_setting_is_named() {
        for (text, word) in [
            ("labshift.server=https://x", "labshift.server"),
            ("labshift.server=http://example:80", "labshift.server"),
            ("labshift.server=http://10.0.0.1:0", "labshift.server"),
            ("labshift.mac=52:54", "labshift.mac"),
            ("labshift.roothash=12", "labshift.roothash"),
            ("labshift.root=nfs", "labshift.root"),
            ("labshift.root=disk", "labshift.datasize"),
            ("labshift.datasize=100", "labshift.datasize"),
            ("labshift.salt=abc", "labshift.salt"),
            ("labshift.retry=never", "labshift.retry"),
            ("labshift.policy=most", "labshift.policy"),
            ("labshift.mirror=ftp://x", "labshift.mirror"),
            ("labshift.attempts=0", "labshift.attempts"),
        ] {
            let faults = parse(text).unwrap_err();
            assert!(faults.iter().any(|f| f.contains(word)), "{text}: {faults:?}");
        }
        assert_eq!(parse("labshift.root=nfs labshift.mac=1 labshift.retry=x").unwrap_err().len(), 3);
    }

    #[test]
    fn hostile_text_gives_an_answer() {
        let seed = format!(
            "labshift.root=disk labshift.roothash={HASH} labshift.server=\"http://1.2.3.4:5\" BOOTIF=01-\u{e9}"
        );
        let mut state = 7u32;
        for _ in 0..5_000 {
            let mut chars: Vec<char> = seed.chars().collect();
            for _ in 0..4 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (state >> 8) as usize % chars.len();
                match state >> 29 {
                    0 | 1 => chars[at] = char::from_u32(state & 0xffff).unwrap_or('"'),
                    2 => chars.truncate(at + 1),
                    3 => chars.insert(at, '='),
                    _ => chars.swap(at, 0),
                }
            }
            let _ = parse(&chars.into_iter().collect::<String>());
        }
    }
}
