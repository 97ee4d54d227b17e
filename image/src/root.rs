//! From unpacked packages and a recipe to the whole root, in two steps: first what packages and kernel bring
//! ([`Building::seal`] ends that, and it can be kept: see `layer`), then accounts, links, and the recipe's files on top.

use std::{collections::BTreeMap, sync::Arc};

use labshift_model::recipe::{Content, Recipe};

use crate::{
    accounts::Accounts,
    configure::Outcome,
    data::Data,
    deb::Unpacked,
    glob,
    kernel::{Kernel, Module, aliases, dependencies, devices},
    layer::Layer,
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

/// Declarations of users are read, then left out with the rest of their directory.
const SYSUSERS: &str = "usr/lib/sysusers.d/";

/// Whether a package's path comes into any image.
pub fn may_come(path: &str) -> bool {
    path.starts_with(SYSUSERS) || !NEVER.iter().any(|never| glob::fits(never, path))
}

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
    /// What packages declare for systemd-sysusers, by file name.
    pub sysusers: BTreeMap<String, String>,
    /// Files of packages that are read after they were packed, by path.
    pub texts: BTreeMap<String, String>,
}

/// Which files of packages are read when their layer is packed already.
const READ_LATER: [&str; 5] = [
    "usr/share/base-passwd/passwd.master",
    "usr/share/base-passwd/group.master",
    "usr/share/libc-bin/nsswitch.conf",
    "usr/share/base-files/profile",
    "usr/share/base-files/dot.profile",
];

impl<'a> Building<'a> {
    /// An empty root.
    pub fn new(recipe: &'a Loaded) -> Building<'a> {
        let (problems, warnings) = (vec![], vec![]);
        let (sysusers, texts) = (BTreeMap::new(), BTreeMap::new());
        Building { recipe, tree: Tree::new(), problems, warnings, sysusers, texts }
    }

    /// What a packed layer has, to be finished.
    pub fn over(recipe: &'a Loaded, layer: &Layer) -> Building<'a> {
        let known = &layer.known;
        Building {
            recipe,
            tree: layer.tree.clone(),
            problems: vec![],
            warnings: known.warnings.clone(),
            sysusers: known.sysusers.clone(),
            texts: known.texts.clone(),
        }
    }

    /// Whether a package's path comes into the image.
    pub fn keeps(recipe: &Recipe, path: &str) -> bool {
        may_come(path)
            && (path.starts_with(SYSUSERS) || !recipe.prune.iter().any(|pruned| glob::fits(pruned, path)))
    }

    /// Adds a package's files and looks at its maintainer script.
    pub fn add(&mut self, name: &str, package: Unpacked) {
        let runs = self.recipe.recipe.scripts == Some(true);
        if let Some(complaint) = scripts::review(name, &package.control).filter(|_| !runs) {
            if self.recipe.recipe.strict == Some(true) {
                self.problems.push(complaint);
            } else {
                self.warnings.push(complaint);
            }
        }
        for (path, node) in package.nodes {
            if let Some(file) = path.strip_prefix(SYSUSERS)
                && let Kind::File(data) = &node.kind
            {
                match data.bytes() {
                    Ok(bytes) => {
                        self.sysusers.insert(file.to_owned(), String::from_utf8_lossy(&bytes).into_owned());
                    }
                    Err(e) => self.problems.push(format!("{path} of package {name}: {e}")),
                }
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

    /// Takes over what maintainer scripts did.
    pub fn configured(&mut self, outcome: &Outcome) {
        self.tree.prune(|path| outcome.removed.binary_search_by(|r| r.as_str().cmp(path)).is_ok());
        for (path, node) in &outcome.changed {
            self.tree.put(path, node.clone());
        }
    }

    /// Adds modules with their indexes.
    pub fn modules(&mut self, kernel: &Kernel, modules: &[Module]) {
        let directory = format!("usr/lib/modules/{}", kernel.release);
        self.tree.file(&format!("{directory}/modules.dep"), 0o644, dependencies(modules));
        self.tree.file(&format!("{directory}/modules.alias"), 0o644, aliases(modules));
        self.tree.file(&format!("{directory}/modules.devname"), 0o644, devices(modules));
        for module in modules {
            let mut node = Node::made(Kind::File(module.content.clone()), 0o644);
            node.origin = kernel.origin.clone();
            self.tree.put(&format!("{directory}/{}", module.path), node);
        }
    }

    /// Ends what packages bring: directories that every root has, files to be read later, and what is pruned.
    pub fn seal(&mut self) {
        for path in READ_LATER {
            if let Some(content) = self.tree.content(path) {
                self.texts.insert(path.to_owned(), String::from_utf8_lossy(&content).into_owned());
            }
        }
        directories(&mut self.tree);
        let recipe = &self.recipe.recipe;
        let prune: Vec<&str> =
            recipe.prune.iter().map(String::as_str).chain(["usr/lib/sysusers.d"]).collect();
        self.tree.prune(|path| prune.iter().any(|p| glob::fits(p, path)));
        drop_dangling(&mut self.tree);
    }

    /// What is left when all packages are in: accounts, links, the recipe's files. `programs` are the programs of
    /// labshift that the recipe names. Nothing that is there is removed.
    pub fn finish(&mut self, programs: &BTreeMap<String, Vec<u8>>) {
        let recipe = &self.recipe.recipe;
        let master = |name: &str| {
            let path = format!("usr/share/base-passwd/{name}.master");
            self.texts.get(&path).map(String::as_str).unwrap_or_default()
        };
        let mut accounts = Accounts::parse(master("passwd"), master("group"));
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
        homes(&mut self.tree, &accounts);
        configuration(&mut self.tree, recipe, &accounts, &self.texts);
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
    }

    fn recipe_file(
        &mut self,
        file: &labshift_model::recipe::File,
        accounts: &Accounts,
        programs: &BTreeMap<String, Vec<u8>>,
    ) {
        let line = self.recipe.lines.get(&format!("file {}", file.dest)).map_or("", String::as_str);
        let mut origin = format!("recipe {line}");
        let kind = match &file.content {
            Content::Directory => Kind::Directory,
            Content::Link(target) => Kind::Link(target.clone()),
            Content::Text(text) => Kind::File(Data::new(text.as_bytes())),
            Content::Path(path) => {
                Kind::File(Data::new(self.recipe.files.get(path).map_or(&[][..], Vec::as_slice)))
            }
            Content::Program(name) => {
                origin = format!("program {name} {line}");
                Kind::File(Data::new(programs.get(name).map_or(&[][..], Vec::as_slice)))
            }
        };
        let (uid, gid) = match accounts.owner(&file.owner) {
            Ok(ids) => ids,
            Err(reason) => return self.problems.push(format!("[[file]] {}: {reason}", file.dest)),
        };
        let path = file.dest.trim_start_matches('/');
        let there = self.tree.get(path);
        if kind != Kind::Directory && there.is_some_and(|n| n.kind == Kind::Directory) {
            let origin = there.map_or("", |n| &n.origin);
            let of = if origin.is_empty() { String::new() } else { format!(" of package {origin}") };
            return self.problems.push(format!("[[file]] {}: a directory{of} is there", file.dest));
        }
        self.tree.put(
            path,
            Node { mode: file.mode, uid, gid, origin: Arc::from(origin.trim_end()), ..Node::made(kind, 0) },
        );
    }
}

/// The frame that every root has.
fn directories(tree: &mut Tree) {
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
}

fn homes(tree: &mut Tree, accounts: &Accounts) {
    for (home, uid, gid) in accounts.homes() {
        tree.directory(&home);
        if let Some(node) = tree.get_mut(&home) {
            (node.mode, node.uid, node.gid) = (0o700, uid, gid);
        }
    }
}

/// Files that maintainer scripts or first boots would write.
fn configuration(tree: &mut Tree, recipe: &Recipe, accounts: &Accounts, texts: &BTreeMap<String, String>) {
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
        if let (None, Some(content)) = (tree.get(path), texts.get(source)) {
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
