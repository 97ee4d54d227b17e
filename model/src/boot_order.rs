//! In which order a boot reads its root. Recorded at a boot in the lab and signed with the manifest; later boots fetch these blocks
//! in this order before anybody asks for them.
//!
//! As text: ranges `FIRST+COUNT` with commas between them, in blocks of the root; `FIRST` alone is one block. A semicolon instead of a comma
//! stands where the machine was up: what comes behind it is fetched when that is so. The order decides only what is fetched early: whatever
//! it says, every block is verified.

use std::fmt;

/// Longest text that is read, in bytes. The boot of a lab image takes a few thousand.
pub const LONGEST: usize = 256 << 10;

/// Ranges of blocks, first read first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BootOrder {
    ranges: Vec<(u64, u64)>,
    /// Ranges that were read before the machine was up; all when not known.
    until_up: Option<usize>,
}

/// Why a text is no boot order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoOrder {
    /// Too long.
    #[error("the boot order has more than {LONGEST} bytes")]
    Long,
    /// Not a range.
    #[error("\"{0}\" in the boot order is no range of blocks")]
    Range(String),
}

impl BootOrder {
    /// Adds blocks that were read next.
    pub fn push(&mut self, first: u64, count: u64) {
        let is_apart = self.until_up == Some(self.ranges.len());
        match self.ranges.last_mut() {
            Some((last, length)) if !is_apart && last.checked_add(*length) == Some(first) => *length += count,
            _ => self.ranges.push((first, count)),
        }
    }

    /// What is pushed from now on was read when the machine was up.
    pub fn note_up(&mut self) {
        self.until_up.get_or_insert(self.ranges.len());
    }

    /// How many of the ranges were read before the machine was up.
    pub fn until_up(&self) -> usize {
        self.until_up.unwrap_or(self.ranges.len())
    }

    /// First block and number of blocks of each range.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Reads a text; an empty one is an empty order.
    pub fn parse(text: &str) -> Result<BootOrder, NoOrder> {
        if text.len() > LONGEST {
            return Err(NoOrder::Long);
        }
        let mut order = BootOrder::default();
        let (before, after) =
            text.split_once(';').map_or((text, None), |(before, after)| (before, Some(after)));
        let words = |text| str::split(text, ',');
        let after = after.into_iter().flat_map(words).map(|word| (true, word));
        for (is_up, word) in words(before).map(|word| (false, word)).chain(after).filter(|_| !text.is_empty())
        {
            if is_up {
                order.note_up();
            }
            let (first, count) = word.split_once('+').unwrap_or((word, "1"));
            let number = |text: &str| {
                text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten()
            };
            match (number(first), number(count)) {
                (Some(first), Some(count)) if count > 0 => order.push(first.into(), count.into()),
                _ => return Err(NoOrder::Range(word.chars().take(40).collect())),
            }
        }
        Ok(order)
    }
}

impl fmt::Display for BootOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, count)) in self.ranges.iter().enumerate() {
            let comma = match i {
                0 => "",
                _ if Some(i) == self.until_up => ";",
                _ => ",",
            };
            match count {
                1 => write!(f, "{comma}{first}")?,
                _ => write!(f, "{comma}{first}+{count}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_range() {
        let mut order = BootOrder::default();
        for (first, count) in [(64, 32), (96, 32), (0, 32), (7, 1)] {
            order.push(first, count);
        }
        assert_eq!(order.to_string(), "64+64,0+32,7");
        assert_eq!(BootOrder::parse("64+64,0+32,7").unwrap(), order);
        assert!(BootOrder::parse("").unwrap().is_empty());
    }

    #[test]
    fn where_the_machine_was_up_is_kept() {
        let mut order = BootOrder::default();
        order.push(64, 32);
        assert_eq!(order.until_up(), 1, "all of it");
        order.note_up();
        order.push(96, 32);
        order.note_up();
        order.push(0, 1);
        assert_eq!((order.to_string().as_str(), order.until_up()), ("64+32;96+32,0", 1));
        assert_eq!(BootOrder::parse("64+32;96+32,0").unwrap(), order);
    }

    #[test]
    fn what_is_no_range_is_named() {
        for odd in ["x", "1+0", "-1", "+5", "1+", "1,,2", "4294967296", "1 +2", "1+2+3", ";1", "1;", "1;2;3"]
        {
            assert!(matches!(BootOrder::parse(odd), Err(NoOrder::Range(_))), "{odd}");
        }
        assert_eq!(BootOrder::parse(&"1".repeat(LONGEST + 1)), Err(NoOrder::Long));
    }

    /// Whatever the text: an order or an error, and an order comes back from its own text.
    #[test]
    fn mutated_texts_are_read_or_refused() {
        let (seed, mut lot) = (b"64+64,0+32;7,900000+2".to_vec(), 88_172_645_463_325_252_u64);
        for _ in 0..20_000 {
            let mut bytes = seed.clone();
            for _ in 0..3 {
                lot ^= lot << 13;
                lot ^= lot >> 7;
                lot ^= lot << 17;
                let at = lot as usize % bytes.len();
                bytes[at] = b"0123456789+,;-x "[(lot >> 32) as usize % 16];
            }
            if let Ok(order) = BootOrder::parse(&String::from_utf8_lossy(&bytes)) {
                assert_eq!(BootOrder::parse(&order.to_string()), Ok(order));
            }
        }
    }
}
