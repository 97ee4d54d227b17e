//! A 48-bit IEEE 802 hardware address.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 48-bit hardware address; printed and written as `52:54:00:12:34:56`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A locally administered unicast address derived from a name: the same name gives the same address, so a
    /// guest keeps its address wherever it runs.
    pub fn for_guest(name: &str) -> Self {
        use sha2::{Digest, Sha256};
        let hash = Sha256::digest(name.as_bytes());
        MacAddr([0x02, 0x1a, hash[0], hash[1], hash[2], hash[3]])
    }

    /// Lower-case hex without separators, as used in file names.
    pub fn compact(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six hexadecimal bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a MAC address; write six bytes like 52:54:00:12:34:56")]
pub struct BadMac(pub String);

impl FromStr for MacAddr {
    type Err = BadMac;

    /// Accepts `:` or `-` between the bytes, or no separator at all.
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let separated =
            text.len() == 17 && text.bytes().enumerate().all(|(i, b)| (i % 3 != 2) || b == b':' || b == b'-');
        let digits: String = match (separated, text.len()) {
            (true, _) => text.split([':', '-']).collect(),
            (false, 12) => text.to_owned(),
            _ => return Err(bad()),
        };
        let bytes = hex::decode(&digits).map_err(|_| bad())?;
        Ok(MacAddr(bytes.try_into().map_err(|_| bad())?))
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints_and_the_forms_people_paste() {
        let mac = MacAddr([0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert_eq!("52-54-00-AB-CD-EF".parse(), Ok(mac));
        assert_eq!("525400abcdef".parse(), Ok(mac));
        for bad in ["", "52:54:00:ab:cd", "52:54:00:ab:cd:eg", "52:54:00:ab:cd:ef:", "525400abcde\u{e9}"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn guest_addresses_are_local_unicast() {
        let mac = MacAddr::for_guest("batch-1");
        assert_eq!(mac.0[0] & 0b11, 0b10);
        assert_ne!(mac, MacAddr::for_guest("batch-2"));
    }
}
