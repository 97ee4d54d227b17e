//! `contents.json`: every path of a root with its size, hash, owner and origin. What `image inspect`, `why`, `diff` and
//! `verify` read, so that nobody has to unpack an image to look into it.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    data::Data,
    tree::{Kind, Node, Tree},
};

/// The file inside a generation.
pub const CONTENTS: &str = "contents.json";

/// The format that this version writes and reads.
pub const SCHEMA: u32 = 1;

/// All that a root holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Packages that a recipe names, with the line that does (`base.toml:4`).
    pub wanted: BTreeMap<String, String>,
    /// All paths, sorted.
    pub files: Vec<Entry>,
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Type {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
}

/// One path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Path, relative to the root.
    pub path: String,
    /// What it is.
    pub kind: Type,
    /// Permission bits, in octal.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// SHA-256 of a file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// SHA-1 of a file, where it is wanted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha1: String,
    /// Target of a link.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// A program's capabilities: see [`Node::capability`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub capability: String,
    /// Where it comes from: see [`Node::origin`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub origin: String,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Entry {
    /// Describes a node.
    pub fn of(path: &str, node: &Node) -> Entry {
        let mut entry = Entry {
            path: path.to_owned(),
            kind: Type::Directory,
            mode: format!("{:04o}", node.mode),
            uid: node.uid,
            gid: node.gid,
            size: 0,
            sha256: String::new(),
            sha1: String::new(),
            target: String::new(),
            capability: node.capability.as_ref().map(hex::encode).unwrap_or_default(),
            origin: node.origin.to_string(),
        };
        match &node.kind {
            Kind::Directory => {}
            Kind::Link(target) => (entry.kind, entry.target) = (Type::Link, target.clone()),
            Kind::File(data) => {
                (entry.kind, entry.size) = (Type::File, data.size);
                (entry.sha256, entry.sha1) = (hex::encode(data.sha256), hex::encode(data.sha1));
            }
        }
        entry
    }

    /// The node that it describes; a file's content is not at hand. `None` when a field can't be read.
    pub fn node(&self) -> Option<Node> {
        let kind = match self.kind {
            Type::Directory => Kind::Directory,
            Type::Link => Kind::Link(self.target.clone()),
            Type::File => {
                let sha256 = hex::decode(&self.sha256).ok()?.try_into().ok()?;
                let sha1 = hex::decode(&self.sha1).ok()?.try_into().ok()?;
                Kind::File(Data::packed(self.size, sha256, sha1))
            }
        };
        let mode = u32::from_str_radix(&self.mode, 8).ok()?;
        let capability = match self.capability.as_str() {
            "" => None,
            value => Some(hex::decode(value).ok()?.into()),
        };
        let origin = Arc::from(self.origin.as_str());
        Some(Node { uid: self.uid, gid: self.gid, capability, origin, ..Node::made(kind, mode) })
    }
}

/// All entries of a tree.
pub fn entries(tree: &Tree) -> Vec<Entry> {
    tree.iter().map(|(path, node)| Entry::of(path, node)).collect()
}

impl Contents {
    /// Describes a tree.
    pub fn of(tree: &Tree, wanted: BTreeMap<String, String>) -> Contents {
        let mut files = entries(tree);
        for file in &mut files {
            file.sha1.clear();
        }
        Contents { schema: SCHEMA, wanted, files }
    }

    /// Canonical bytes: one path a line.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{{\"schema\":{},\"wanted\":", self.schema).into_bytes();
        bytes.extend(serde_json::to_vec(&self.wanted).unwrap_or_default());
        bytes.extend(b",\"files\":[\n");
        for (i, file) in self.files.iter().enumerate() {
            if i > 0 {
                bytes.extend(b",\n");
            }
            bytes.extend(serde_json::to_vec(file).unwrap_or_default());
        }
        bytes.extend(b"\n]}\n");
        bytes
    }

    /// Reads them, or says why it can't.
    pub fn from_bytes(bytes: &[u8]) -> Result<Contents, String> {
        let contents: Contents = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if contents.schema != SCHEMA {
            return Err(format!("schema {}, this program reads {SCHEMA}", contents.schema));
        }
        Ok(contents)
    }

    /// What is at a path, given as people do (`/usr/bin/dash`).
    pub fn get(&self, path: &str) -> Option<&Entry> {
        let path = path.trim_start_matches('/').trim_end_matches('/');
        self.files.binary_search_by(|f| f.path.as_str().cmp(path)).ok().map(|i| &self.files[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let mut tree = Tree::new();
        tree.put(
            "etc/x",
            Node {
                uid: 5,
                origin: "bash".into(),
                capability: Some([1, 0, 0, 2].into()),
                ..Node::made(Kind::File(Data::new(*b"hi")), 0o4750)
            },
        );
        let contents = Contents::of(&tree, BTreeMap::from([("bash".into(), "base.toml:4".into())]));
        let again = Contents::from_bytes(&contents.to_bytes()).unwrap();
        assert_eq!(again, contents);
        let entry = again.get("/etc/x").unwrap();
        assert_eq!((entry.mode.as_str(), entry.size, entry.origin.as_str()), ("4750", 2, "bash"));
        let full = Entry::of("etc/x", tree.get("etc/x").unwrap());
        assert_eq!(full.node().as_ref(), tree.get("etc/x"));
        assert!(again.get("etc/y").is_none());
    }
}
