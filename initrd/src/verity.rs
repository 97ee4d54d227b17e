//! The dm-verity hash tree (version 1, SHA-256): its shape, and the check of every block against the root hash.
//!
//! A file is `data | tree`. The tree has no superblock. Its levels lie top first: one root block, then the level
//! below, down to the leaves, each padded to whole blocks. An entry is `SHA-256(salt || block)`.
//! Document: Linux `Documentation/admin-guide/device-mapper/verity.rst`.

use labshift_model::manifest::Root;
use sha2::{Digest, Sha256};

/// Bytes per block; the only size that labshift builds and accepts.
pub const BLOCK: usize = 4096;
/// Bytes of one hash.
const HASH: usize = 32;
/// Hashes per block.
const FAN_OUT: u64 = (BLOCK / HASH) as u64;

/// Why a tree or block is not what the root hash says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The manifest names something that this program can't check.
    #[error("the manifest's root is not usable: {0}")]
    Unusable(String),
    /// A block of the tree is wrong.
    #[error("hash block {block} of {total} differs from what the root hash says")]
    Tree {
        /// Index from the tree's start.
        block: u64,
        /// Blocks in the tree.
        total: u64,
    },
    /// A data block is wrong.
    #[error("block {block} of {total} differs from what the root hash says")]
    Data {
        /// Index from the file's start.
        block: u64,
        /// Data blocks.
        total: u64,
    },
}

/// Sizes, salt and root hash, checked and decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Data blocks.
    pub data_blocks: u64,
    /// Blocks of each level, top first.
    levels: Vec<u64>,
    salt: Vec<u8>,
    root_hash: [u8; HASH],
}

impl Shape {
    /// Decodes what a manifest or command line says.
    pub fn new(root_hash: &str, salt: &str, data_size: u64, block_size: u32) -> Result<Self, Mismatch> {
        let unusable = |why: String| Mismatch::Unusable(why);
        if block_size as usize != BLOCK {
            return Err(unusable(format!("block size {block_size}, this program reads {BLOCK}")));
        }
        if data_size == 0 || !data_size.is_multiple_of(BLOCK as u64) || data_size > 1 << 44 {
            return Err(unusable(format!("data size {data_size} is not a sensible multiple of {BLOCK}")));
        }
        let root_hash = hex::decode(root_hash)
            .ok()
            .and_then(|h| h.try_into().ok())
            .ok_or_else(|| unusable("root hash is not 64 hex digits".into()))?;
        let salt = hex::decode(salt).map_err(|_| unusable("salt is not hex".into()))?;
        if salt.len() > 256 {
            return Err(unusable("salt is longer than 256 bytes".into()));
        }
        let data_blocks = data_size / BLOCK as u64;
        let mut levels = Vec::new();
        let mut below = data_blocks;
        while below > 1 {
            below = below.div_ceil(FAN_OUT);
            levels.insert(0, below);
        }
        Ok(Shape { data_blocks, levels, salt, root_hash })
    }

    /// The shape of a manifest's root.
    pub fn of(root: &Root) -> Result<Self, Mismatch> {
        Self::new(&root.root_hash, &root.salt, root.data_size, root.block_size)
    }

    /// Bytes before the tree.
    pub fn data_size(&self) -> u64 {
        self.data_blocks * BLOCK as u64
    }

    /// Bytes of the tree.
    pub fn tree_size(&self) -> u64 {
        self.levels.iter().sum::<u64>() * BLOCK as u64
    }

    /// The device-mapper table for a device that holds data and tree.
    pub fn table(&self, device: &std::path::Path) -> String {
        let device = device.display();
        let salt = if self.salt.is_empty() { "-".to_owned() } else { hex::encode(&self.salt) };
        let (blocks, hash) = (self.data_blocks, hex::encode(self.root_hash));
        format!("1 {device} {device} {BLOCK} {BLOCK} {blocks} {blocks} sha256 {hash} {salt}")
    }

    /// The root hash in lower-case hex.
    pub fn root_hash(&self) -> String {
        hex::encode(self.root_hash)
    }

    /// Root hash and salt as text: what one root has and no other.
    pub fn identity(&self) -> String {
        format!("{} {}", hex::encode(self.root_hash), hex::encode(&self.salt))
    }

    /// SHA-256 over salt and block.
    fn hash(&self, block: &[u8]) -> [u8; HASH] {
        Sha256::new().chain_update(&self.salt).chain_update(block).finalize().into()
    }

    /// Checks a whole tree up to the root hash and keeps its leaves.
    pub fn verify_tree(self, tree: &[u8]) -> Result<Leaves, Mismatch> {
        let total = self.levels.iter().sum::<u64>();
        if tree.len() as u64 != self.tree_size() {
            return Err(Mismatch::Unusable(format!(
                "hash tree of {} bytes, wanted {}",
                tree.len(),
                self.tree_size()
            )));
        }
        // `expected` are the hashes of the level that is looked at; they come from the level above.
        let mut expected: &[u8] = &self.root_hash;
        let (mut at, mut rest) = (0, tree);
        for &blocks in &self.levels {
            let (level, below) = rest.split_at(blocks as usize * BLOCK);
            for (block, want) in level.chunks_exact(BLOCK).zip(expected.chunks_exact(HASH)) {
                if self.hash(block) != want {
                    return Err(Mismatch::Tree { block: at, total });
                }
                at += 1;
            }
            (expected, rest) = (level, below);
        }
        let hashes = expected[..self.data_blocks as usize * HASH].to_vec();
        Ok(Leaves { shape: self, hashes })
    }
}

/// The verified hashes of all data blocks.
#[derive(Debug, Clone)]
pub struct Leaves {
    shape: Shape,
    hashes: Vec<u8>,
}

impl Leaves {
    /// Checks whole data blocks that begin at block `first`.
    pub fn verify(&self, first: u64, data: &[u8]) -> Result<(), Mismatch> {
        let total = self.shape.data_blocks;
        for (index, block) in (first..).zip(data.chunks(BLOCK)) {
            let at = index as usize * HASH;
            let wanted = self.hashes.get(at..at + HASH);
            if block.len() != BLOCK || wanted != Some(&self.shape.hash(block)[..]) {
                return Err(Mismatch::Data { block: index, total });
            }
        }
        Ok(())
    }

    /// Shape of the tree that these are the leaves of.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
}

/// Builds a tree: the test's counterpart of [`Shape::verify_tree`]. Returns the tree and the root hash.
#[cfg(test)]
pub fn build(data: &[u8], salt: &[u8]) -> (Vec<u8>, String) {
    let hash = |block: &[u8]| Sha256::new().chain_update(salt).chain_update(block).finalize().to_vec();
    let mut levels: Vec<Vec<u8>> = Vec::new();
    let mut below: Vec<u8> = data.to_vec();
    while below.len() > BLOCK {
        let mut level: Vec<u8> = below.chunks(BLOCK).flat_map(hash).collect();
        level.resize(level.len().next_multiple_of(BLOCK), 0);
        levels.insert(0, level.clone());
        below = level;
    }
    (levels.concat(), hex::encode(hash(&below)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK).map(|i| (i / 7 % 251) as u8 ^ (i / BLOCK) as u8).collect()
    }

    #[test]
    fn one_level_two_levels_and_none() {
        for blocks in [1, 2, 128, 129, 300] {
            let data = data(blocks);
            let (tree, root_hash) = build(&data, &[9, 8]);
            let shape = Shape::new(&root_hash, "0908", data.len() as u64, 4096).unwrap();
            assert_eq!(shape.tree_size(), tree.len() as u64, "{blocks}");
            let leaves = shape.verify_tree(&tree).unwrap();
            leaves.verify(0, &data).unwrap();
            let last = blocks - 1;
            leaves.verify(last as u64, &data[last * BLOCK..]).unwrap();
            assert!(leaves.verify(blocks as u64, &data[..BLOCK]).is_err());
        }
    }

    #[test]
    fn a_flipped_byte_is_found_with_its_block() {
        let mut data = data(300);
        let (tree, root_hash) = build(&data, &[]);
        let shape = Shape::new(&root_hash, "", data.len() as u64, 4096).unwrap();
        let leaves = shape.clone().verify_tree(&tree).unwrap();
        data[200 * BLOCK + 17] ^= 1;
        assert_eq!(leaves.verify(0, &data), Err(Mismatch::Data { block: 200, total: 300 }));
        for (at, block) in [(0, 0), (BLOCK + 5, 1), (3 * BLOCK + 40, 3)] {
            let mut tree = tree.clone();
            tree[at] ^= 0x80;
            assert_eq!(shape.clone().verify_tree(&tree).unwrap_err(), Mismatch::Tree { block, total: 4 });
        }
    }

    #[test]
    fn senseless_roots_are_refused() {
        let hash = "00".repeat(32);
        for (hash, salt, size, block) in [
            (hash.as_str(), "", 4095, 4096),
            (&hash, "", 0, 4096),
            (&hash, "", u64::MAX - 4095, 4096),
            (&hash, "x", 4096, 4096),
            (&hash, "", 4096, 512),
            ("00", "", 4096, 4096),
        ] {
            assert!(matches!(Shape::new(hash, salt, size, block), Err(Mismatch::Unusable(_))));
        }
        assert!(Shape::new(&hash, "", 8192, 4096).unwrap().verify_tree(&[0; 100]).is_err());
    }
}
