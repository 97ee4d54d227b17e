//! The dm-verity hash tree of a root file system (Documentation/admin-guide/device-mapper/verity.rst): format 1,
//! SHA-256, 4096-byte blocks, no superblock. The tree lies behind the data, its top level first.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

/// Bytes per data block and per hash block.
pub const BLOCK: usize = 4096;
const PER_BLOCK: usize = BLOCK / 32;

/// The root hash and the tree's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Hash of the top block.
    pub root_hash: [u8; 32],
    /// All levels, top first, each padded to whole blocks.
    pub tree: Vec<u8>,
}

/// Hashes `data`, whose size must be a multiple of [`BLOCK`].
pub fn seal(mut data: impl Read, salt: &[u8]) -> io::Result<Sealed> {
    let mut block = vec![0; BLOCK];
    let mut level: Vec<u8> = vec![];
    let salted = Sha256::new_with_prefix(salt);
    let hash = |block: &[u8]| salted.clone().chain_update(block).finalize();
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            match data.read(&mut block[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        match filled {
            0 => break,
            BLOCK => level.extend(hash(&block)),
            _ => return Err(io::Error::other("the data is not a whole number of blocks")),
        }
    }
    let mut levels: Vec<Vec<u8>> = vec![];
    while level.len() > 32 {
        level.resize(level.len().next_multiple_of(BLOCK), 0);
        let above: Vec<u8> = level.chunks(PER_BLOCK * 32).flat_map(|chunk| hash(chunk).to_vec()).collect();
        levels.push(std::mem::replace(&mut level, above));
    }
    let root_hash = level.try_into().map_err(|_| io::Error::other("there is no data"))?;
    levels.reverse();
    Ok(Sealed { root_hash, tree: levels.concat() })
}

/// Appends the tree to `out` and returns the root hash.
pub fn append(data: impl Read, salt: &[u8], mut out: impl Write) -> io::Result<[u8; 32]> {
    let sealed = seal(data, salt)?;
    out.write_all(&sealed.tree)?;
    Ok(sealed.root_hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_levels() {
        for (blocks, expected) in [(1, 0), (2, 1), (128, 1), (129, 3), (128 * 128, 129), (128 * 128 + 1, 132)]
        {
            let data = vec![7; blocks * BLOCK];
            assert_eq!(seal(&data[..], b"salt").unwrap().tree.len(), expected * BLOCK, "{blocks} blocks");
        }
    }

    #[test]
    fn a_flipped_bit_shows() {
        let mut data = vec![0; 300 * BLOCK];
        let before = seal(&data[..], b"").unwrap();
        data[200 * BLOCK + 5] ^= 1;
        let after = seal(&data[..], b"").unwrap();
        assert_ne!(before.root_hash, after.root_hash);
        // Only the leaf's block and those above it differ: top, and the second leaf block.
        let differing =
            before.tree.chunks(BLOCK).zip(after.tree.chunks(BLOCK)).filter(|(a, b)| a != b).count();
        assert_eq!(differing, 2);
    }

    #[test]
    fn refuses_half_a_block() {
        assert!(seal(&[0; 5000][..], b"").is_err());
        assert!(seal(&[][..], b"").is_err());
    }
}
