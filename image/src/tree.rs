//! A root file system in memory: paths with owners and modes as data, so that no root rights are needed.
//!
//! Packages, generated files and the recipe's own files all land here; a deterministic tar stream leaves it.
//! Paths are relative (`usr/bin/dash`); a path through a symbolic link lands where the link points, as it would on
//! a real file system, which also merges `/bin`, `/sbin` and `/lib` into `/usr`.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    sync::Arc,
};

use crate::data::Data;

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File(Data),
    /// A symbolic link and its target.
    Link(String),
}

/// One path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// A program's capabilities: the value of its `security.capability` (capabilities(7)), if it has any.
    pub capability: Option<Arc<[u8]>>,
    /// Where it comes from: a package's name, `recipe FILE:LINE`, `program NAME` with the line that names it
    /// (`program init lab.toml:7`), or empty for what the builder made.
    pub origin: Arc<str>,
}

/// A root file system.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

/// How tar spells the extended attribute with a program's capabilities.
pub(crate) const CAPABILITY: &str = "SCHILY.xattr.security.capability";

/// The directories that merged-/usr turns into links.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// Nothing at all; for [`Tree::restore`].
    pub fn empty() -> Tree {
        Tree { nodes: BTreeMap::new() }
    }

    /// An empty root with merged /usr.
    pub fn new() -> Tree {
        let mut tree = Tree { nodes: BTreeMap::new() };
        tree.directory("usr");
        for name in MERGED {
            tree.directory(&format!("usr/{name}"));
            tree.nodes.insert(name.to_owned(), Node::made(Kind::Link(format!("usr/{name}")), 0o777));
        }
        // base-files has these as directories and turns them into links when it is installed.
        tree.link("var/run", "/run");
        tree.link("var/lock", "/run/lock");
        tree
    }

    /// Puts a node at a path and makes the directories above it. Returns what was there before, if it was
    /// another file or link. A directory that is there already keeps its content, and stays if it is a link.
    pub fn put(&mut self, path: &str, node: Node) -> Option<Node> {
        let path = self.real(path);
        if path.is_empty() {
            return None;
        }
        self.parents(&path);
        if node.kind == Kind::Directory {
            match self.nodes.get_mut(&path) {
                Some(Node { kind: Kind::Directory, mode, uid, gid, .. }) => {
                    (*mode, *uid, *gid) = (node.mode, node.uid, node.gid);
                    return None;
                }
                Some(Node { kind: Kind::Link(_), .. }) => return None,
                _ => {}
            }
        }
        self.nodes.insert(path, node).filter(|old| old.kind != Kind::Directory)
    }

    /// A file that the builder makes, owned by root.
    pub fn file(&mut self, path: &str, mode: u32, content: impl AsRef<[u8]>) {
        self.put(path, Node::made(Kind::File(Data::new(content.as_ref())), mode));
    }

    /// A link that the builder makes, unless something is there.
    pub fn link(&mut self, path: &str, target: &str) {
        if self.get(path).is_none() {
            self.put(path, Node::made(Kind::Link(target.to_owned()), 0o777));
        }
    }

    /// A directory that the builder makes, unless something is there.
    pub fn directory(&mut self, path: &str) {
        if self.get(path).is_none() {
            self.put(path, Node::made(Kind::Directory, 0o755));
        }
    }

    /// What is at a path; links on the way are followed, a link at its end is not.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(&self.real(path))
    }

    /// What is at a path, with all links followed: its real path and node.
    pub fn follow(&self, path: &str) -> Option<(String, &Node)> {
        let mut path = self.real(path);
        for _ in 0..16 {
            let node = self.nodes.get(&path)?;
            let Kind::Link(target) = &node.kind else { return Some((path, node)) };
            path = self.real(&join(&path, target));
        }
        None
    }

    /// A file's content, with links followed; `None` too when it is not at hand.
    pub fn content(&self, path: &str) -> Option<Cow<'_, [u8]>> {
        match &self.follow(path)?.1.kind {
            Kind::File(data) => data.bytes().ok(),
            _ => None,
        }
    }

    /// Changes an existing node.
    pub fn get_mut(&mut self, path: &str) -> Option<&mut Node> {
        let path = self.real(path);
        self.nodes.get_mut(&path)
    }

    /// Removes the paths for which `gone` says so, with all below them.
    pub fn prune(&mut self, gone: impl Fn(&str) -> bool) {
        let mut below: Option<String> = None;
        self.nodes.retain(|path, _| {
            if below.as_ref().is_some_and(|b| path.starts_with(b.as_str())) {
                return false;
            }
            let remove = gone(path);
            if remove {
                below = Some(format!("{path}/"));
            }
            !remove
        });
    }

    /// Puts a node exactly where it was; the opposite of [`Tree::iter`].
    pub fn restore(&mut self, path: String, node: Node) {
        self.nodes.insert(path, node);
    }

    /// All paths, parents before children.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.nodes.values().map(|n| if let Kind::File(d) = &n.kind { d.size } else { 0 }).sum()
    }

    fn parents(&mut self, path: &str) {
        for (i, _) in path.match_indices('/') {
            let parent = &path[..i];
            if !self.nodes.contains_key(parent) {
                self.nodes.insert(parent.to_owned(), Node::made(Kind::Directory, 0o755));
            }
        }
    }

    /// The path with every link before its last part followed.
    fn real(&self, path: &str) -> String {
        let mut done = String::new();
        let mut left: Vec<String> = parts(path);
        left.reverse();
        let mut links = 0;
        while let Some(part) = left.pop() {
            let next = if done.is_empty() { part } else { format!("{done}/{part}") };
            match self.nodes.get(&next) {
                Some(Node { kind: Kind::Link(target), .. }) if !left.is_empty() && links < 16 => {
                    links += 1;
                    let mut around = parts(&join(&next, target));
                    around.reverse();
                    left.extend(around);
                    done.clear();
                }
                _ => done = next,
            }
        }
        done
    }

    /// Writes the tree as a tar stream: sorted, all times zero. `look` sees path and content of
    /// every file on its way, those with large content apart.
    pub fn write_tar(&self, out: impl Write, look: &mut dyn FnMut(&str, &[u8])) -> io::Result<()> {
        self.write_tar_over(None, out, look)
    }

    /// Writes what this tree has other than `base`, with all directories on the way there: laid over the base, it
    /// gives this tree. Nothing of the base is missing here.
    pub fn write_tar_over(
        &self,
        base: Option<&Tree>,
        out: impl Write,
        look: &mut dyn FnMut(&str, &[u8]),
    ) -> io::Result<()> {
        let changed = |path: &str, node: &Node| base.is_none_or(|b| b.nodes.get(path) != Some(node));
        let mut wanted: BTreeSet<&str> = BTreeSet::new();
        for (path, _) in self.nodes.iter().filter(|(path, node)| changed(path, node)) {
            wanted.extend(path.match_indices('/').map(|(i, _)| &path[..i]));
            wanted.insert(path);
        }
        let mut tar = tar::Builder::new(out);
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        tar.append_data(&mut header, "./", io::empty())?;
        for (path, node) in wanted.into_iter().filter_map(|path| Some((path, self.nodes.get(path)?))) {
            let mut header = tar::Header::new_gnu();
            header.set_mode(node.mode);
            header.set_uid(node.uid.into());
            header.set_gid(node.gid.into());
            header.set_mtime(0);
            header.set_size(0);
            match &node.kind {
                Kind::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    tar.append_data(&mut header, format!("{path}/"), io::empty())?;
                }
                Kind::File(data) => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_size(data.size);
                    let attribute = node.capability.as_ref().map(|value| (CAPABILITY, &value[..]));
                    tar.append_pax_extensions(attribute)?;
                    if let Some(pieces) = data.pieces()? {
                        tar.append_data(&mut header, path, pieces)?;
                    } else {
                        let bytes = data.bytes()?;
                        look(path, &bytes);
                        tar.append_data(&mut header, path, &bytes[..])?;
                    }
                }
                Kind::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    tar.append_link(&mut header, path, target)?;
                }
            }
        }
        tar.into_inner()?.flush()
    }
}

impl Node {
    /// A node that the builder makes, owned by root.
    pub fn made(kind: Kind, mode: u32) -> Node {
        Node { kind, mode, uid: 0, gid: 0, capability: None, origin: "".into() }
    }
}

/// The parts of a path; `.` falls away, `..` removes the part before it (never more than there is).
fn parts(path: &str) -> Vec<String> {
    let mut parts: Vec<String> = vec![];
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part.to_owned()),
        }
    }
    parts
}

/// The path that a link's target means.
fn join(link: &str, target: &str) -> String {
    match target.strip_prefix('/') {
        Some(absolute) => absolute.to_owned(),
        None => format!("{}/{target}", link.rsplit_once('/').map_or("", |(parent, _)| parent)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_land_behind_links() {
        let mut tree = Tree::new();
        tree.file("bin/sh", 0o755, "x");
        tree.file("var/run/a", 0o644, "a");
        tree.link("var/up", "../run/lock");
        tree.directory("run/lock");
        tree.file("var/up/b", 0o644, "b");
        let paths: Vec<_> = tree.iter().map(|(p, _)| p).collect();
        assert!(paths.contains(&"usr/bin/sh") && paths.contains(&"run/a") && paths.contains(&"run/lock/b"));
        assert_eq!(tree.content("/bin/sh").as_deref(), Some(&b"x"[..]));
        tree.link("loop", "loop");
        assert!(tree.follow("loop/x").is_none());
    }

    #[test]
    fn directories_do_not_replace_links() {
        let mut tree = Tree::new();
        tree.put("lib", Node::made(Kind::Directory, 0o755));
        assert_eq!(tree.get("lib").unwrap().kind, Kind::Link("usr/lib".into()));
    }

    #[test]
    fn prune_takes_whole_directories() {
        let mut tree = Tree::new();
        tree.file("usr/share/doc/a/b", 0o644, "");
        tree.file("usr/share/docs", 0o644, "");
        tree.prune(|p| p == "usr/share/doc");
        assert!(tree.get("usr/share/doc/a/b").is_none() && tree.get("usr/share/docs").is_some());
    }

    #[test]
    fn tar_is_deterministic_and_keeps_owners() {
        let mut tree = Tree::new();
        tree.put("etc/x", Node { uid: 5, gid: 6, ..Node::made(Kind::File(Data::new(*b"hi")), 0o640) });
        let long = format!("usr/{}/file", "d".repeat(150));
        tree.file(&long, 0o644, "far");
        let write = || {
            let mut bytes = vec![];
            tree.write_tar(&mut bytes, &mut |_, _| ()).unwrap();
            bytes
        };
        let bytes = write();
        assert_eq!(bytes, write());
        let mut archive = tar::Archive::new(&bytes[..]);
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.path().unwrap().display().to_string(), e.header().uid().unwrap()))
            .collect();
        assert!(found.contains(&("etc/x".into(), 5)) && found.iter().any(|(p, _)| *p == long));
    }

    #[test]
    fn a_layer_has_what_changed_and_the_way_there() {
        let mut base = Tree::new();
        base.file("etc/a", 0o644, "a");
        base.file("etc/b", 0o644, "b");
        base.directory("srv/deep");
        let mut tree = base.clone();
        tree.file("etc/b", 0o600, "b");
        tree.file("srv/deep/c", 0o644, "c");
        let mut bytes = vec![];
        tree.write_tar_over(Some(&base), &mut bytes, &mut |_, _| ()).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let paths: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(paths, ["./", "etc/", "etc/b", "srv/", "srv/deep/", "srv/deep/c"]);
    }
}
