//! From unpacked packages and a recipe to the whole root: what maintainer scripts would have done, accounts, links,
//! modules, the recipe's files.

use std::{collections::BTreeMap, sync::Arc};

use labshift_model::recipe::{Content, Recipe};

use crate::{
    accounts::Accounts,
    deb::Unpacked,
    glob,
    kernel::{Kernel, Module, aliases, dependencies},
    recipe_file::Loaded,
    scripts,
    tree::{Kind, Node, Tree},
};

/// Paths that no image of ours needs. A recipe's own `prune` comes on top.
pub const NEVER: [&str; 12] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/doc-base",
    "usr/share/bash-completion",
    "usr/share/apport",
    "usr/lib/systemd",
    "usr/share/initramfs-tools",
    "boot",
];

/// A root being put together.
pub struct Building<'a> {
    /// Image name, for messages.
    pub recipe: &'a Loaded,
    /// The tree so far.
    pub tree: Tree,
    /// What does not fit together.
    pub problems: Vec<String>,
    /// What an admin should know.
    pub warnings: Vec<String>,
    sysusers: BTreeMap<String, String>,
}

impl<'a> Building<'a> {
    /// An empty root.
    pub fn new(recipe: &'a Loaded) -> Building<'a> {
        let (problems, warnings) = (vec![], vec![]);
        Building { recipe, tree: Tree::new(), problems, warnings, sysusers: BTreeMap::new() }
    }

    /// Whether a package's path comes into the image.
    pub fn keeps(recipe: &Recipe, path: &str) -> bool {
        // Declarations of users are read, then left out with the rest of their directory.
        path.starts_with("usr/lib/sysusers.d/")
            || !NEVER
                .iter()
                .copied()
                .chain(recipe.prune.iter().map(String::as_str))
                .any(|p| glob::fits(p, path))
    }

    /// Adds a package's files and looks at its maintainer script.
    pub fn add(&mut self, name: &str, package: Unpacked) {
        if let Some(complaint) = scripts::review(name, &package.control) {
            if self.recipe.recipe.strict == Some(true) {
                self.problems.push(complaint);
            } else {
                self.warnings.push(complaint);
            }
        }
        for (path, node) in package.nodes {
            if let Some(file) = path.strip_prefix("usr/lib/sysusers.d/")
                && let Kind::File(bytes) = &node.kind
            {
                self.sysusers.insert(file.to_owned(), String::from_utf8_lossy(bytes).into_owned());
                continue;
            }
            let origin = node.origin.clone();
            if let Some(old) = self.tree.put(&path, node.clone())
                && old.kind != node.kind
            {
                self.warnings.push(format!(
                    "{path} is in package {} and in package {origin}; the latter's is used",
                    old.origin
                ));
            }
        }
    }

    /// Adds modules with their indexes.
    pub fn modules(&mut self, kernel: &Kernel, modules: &[Module]) {
        let directory = format!("usr/lib/modules/{}", kernel.release);
        self.tree.file(&format!("{directory}/modules.dep"), 0o644, dependencies(modules));
        self.tree.file(&format!("{directory}/modules.alias"), 0o644, aliases(modules));
        for module in modules {
            let node = Node::made(Kind::File(module.content.clone()), 0o644);
            self.tree.put(&format!("{directory}/{}", module.path), node);
        }
    }

    /// What is left when all packages are in: accounts, links, directories, the recipe's files. `programs` are
    /// the programs of labshift that the recipe names.
    pub fn finish(&mut self, programs: &BTreeMap<String, Vec<u8>>) {
        let recipe = &self.recipe.recipe;
        let master = |tree: &Tree, name: &str| {
            let content = tree.content(&format!("usr/share/base-passwd/{name}.master"));
            content.map(|c| String::from_utf8_lossy(c).into_owned()).unwrap_or_default()
        };
        let mut accounts = Accounts::parse(&master(&self.tree, "passwd"), &master(&self.tree, "group"));
        for text in self.sysusers.values() {
            accounts.sysusers(text);
        }
        let installed: Vec<String> = {
            let mut names: Vec<String> =
                self.tree.iter().map(|(_, n)| n.origin.to_string()).filter(|o| !o.is_empty()).collect();
            names.sort();
            names.dedup();
            names
        };
        for (package, lines) in scripts::ACCOUNTS {
            if installed.iter().any(|i| i == package) {
                accounts.sysusers(lines);
            }
        }
        self.problems.extend(accounts.add(&recipe.users, &recipe.groups));
        directories(&mut self.tree, &accounts);
        configuration(&mut self.tree, recipe, &accounts);
        for file in &recipe.files {
            self.recipe_file(file, &accounts, programs);
        }
        for service in &recipe.services {
            let program = service.exec.first().map(String::as_str).unwrap_or_default();
            match self.tree.follow(program) {
                Some((_, node)) if node.mode & 0o111 != 0 => {}
                Some(_) => {
                    self.problems.push(format!("service {}: {program} is not executable", service.name))
                }
                None => self.problems.push(format!("service {}: the image has no {program}", service.name)),
            }
            if let Some(user) = &service.user
                && accounts.owner(user).is_err()
            {
                self.problems.push(format!("service {}: the image has no user {user}", service.name));
            }
        }
        let prune: Vec<&str> =
            recipe.prune.iter().map(String::as_str).chain(["usr/lib/sysusers.d"]).collect();
        let named =
            |path: &str| recipe.files.iter().any(|f| f.dest.trim_start_matches('/').starts_with(path));
        self.tree.prune(|path| prune.iter().any(|p| glob::fits(p, path)) && !named(path));
        drop_dangling(&mut self.tree);
    }

    fn recipe_file(
        &mut self,
        file: &labshift_model::recipe::File,
        accounts: &Accounts,
        programs: &BTreeMap<String, Vec<u8>>,
    ) {
        let kind = match &file.content {
            Content::Directory => Kind::Directory,
            Content::Link(target) => Kind::Link(target.clone()),
            Content::Text(text) => Kind::File(text.as_bytes().into()),
            Content::Path(path) => {
                Kind::File(self.recipe.files.get(path).map_or(&[][..], Vec::as_slice).into())
            }
            Content::Program(name) => Kind::File(programs.get(name).map_or(&[][..], Vec::as_slice).into()),
        };
        match accounts.owner(&file.owner) {
            Ok((uid, gid)) => {
                let node = Node { kind, mode: file.mode, uid, gid, origin: Arc::from("") };
                self.tree.put(file.dest.trim_start_matches('/'), node);
            }
            Err(reason) => self.problems.push(format!("[[file]] {}: {reason}", file.dest)),
        }
    }
}

/// The frame that every root has.
fn directories(tree: &mut Tree, accounts: &Accounts) {
    for path in [
        "dev",
        "proc",
        "sys",
        "run",
        "mnt",
        "home",
        "etc",
        "var/lib",
        "var/log",
        "var/cache",
        "var/tmp",
        "tmp",
    ] {
        tree.directory(path);
    }
    tree.directory("root");
    for (path, mode) in [("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700)] {
        if let Some(node) = tree.get_mut(path) {
            node.mode = mode;
        }
    }
    for (home, uid, gid) in accounts.homes() {
        tree.directory(&home);
        if let Some(node) = tree.get_mut(&home) {
            (node.mode, node.uid, node.gid) = (0o700, uid, gid);
        }
    }
}

/// Files that maintainer scripts or first boots would write.
fn configuration(tree: &mut Tree, recipe: &Recipe, accounts: &Accounts) {
    tree.file("etc/passwd", 0o644, accounts.passwd());
    tree.file("etc/group", 0o644, accounts.group());
    tree.file("etc/shadow", 0o600, accounts.shadow());
    let name = recipe.hostname.as_deref().or(recipe.name.as_deref()).unwrap_or("labshift");
    tree.file("etc/hostname", 0o644, format!("{name}\n"));
    tree.file("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n");
    tree.file("etc/resolv.conf", 0o644, "");
    tree.file("etc/fstab", 0o644, "");
    tree.file("etc/machine-id", 0o444, "");
    for (path, source) in [
        ("etc/nsswitch.conf", "usr/share/libc-bin/nsswitch.conf"),
        ("etc/profile", "usr/share/base-files/profile"),
        ("root/.profile", "usr/share/base-files/dot.profile"),
    ] {
        if let (None, Some(content)) = (tree.get(path), tree.content(source).map(<[u8]>::to_vec)) {
            tree.file(path, 0o644, content);
        }
    }
    for (link, candidates) in scripts::ALTERNATIVES {
        let there = candidates.iter().find(|c| tree.follow(c).is_some());
        if let (Some(target), None) = (there, tree.follow(link)) {
            tree.put(link, Node::made(Kind::Link(format!("/{target}")), 0o777));
        }
    }
    let services = serde_json::to_vec_pretty(&recipe.services).unwrap_or_default();
    tree.file("etc/labshift/services.json", 0o644, services);
    let modules: String = recipe.root_modules.iter().map(|m| format!("{m}\n")).collect();
    tree.file("etc/labshift/modules", 0o644, modules);
}

/// Links into directories that are always pruned point to nothing: they go too.
fn drop_dangling(tree: &mut Tree) {
    let dangling: Vec<String> = tree
        .iter()
        .filter(|(path, node)| {
            matches!(&node.kind, Kind::Link(target) if NEVER.iter().any(|n| glob::fits(n, target.trim_start_matches('/'))))
                && tree.follow(path).is_none()
        })
        .map(|(path, _)| path.to_owned())
        .collect();
    tree.prune(|path| dangling.iter().any(|d| d == path));
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
