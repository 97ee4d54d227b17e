//! Questions about finished images, answered from what lies beside them: why something is there, where the megabytes are,
//! what differs between two.

use std::collections::BTreeMap;

use labshift_model::{fault::nearest, manifest::Manifest};
use serde::Serialize;

use crate::{
    contents::{Contents, Entry, Type},
    lock::{Change, Lock, changes},
};

/// Why a path or a package is in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Why {
    /// The path or package.
    pub what: String,
    /// A path's entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<Entry>,
    /// From the package that has it up to the one that the recipe names, with versions.
    pub packages: Vec<String>,
    /// Where the recipe says so (`base.toml:4`); empty when labshift makes it in every image.
    pub line: String,
    /// The program of labshift that it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
}

/// Finds out why; a name that is neither path nor package gives the nearest one that is.
pub fn why(contents: &Contents, lock: &Lock, what: &str) -> Result<Why, Option<String>> {
    let package = |name: &str| lock.packages.iter().find(|p| p.name == name);
    let chain = |name: &str| {
        let (mut packages, mut at, mut line) = (vec![], Some(name.to_owned()), String::new());
        while let Some(found) = at.take().and_then(|name| package(&name)).filter(|_| packages.len() < 64) {
            packages.push(format!("{} {}", found.name, found.version));
            line = contents.wanted.get(&found.name).cloned().unwrap_or_default();
            at = found.needed_by.clone();
        }
        (packages, line)
    };
    let mut why =
        Why { what: what.to_owned(), entry: None, packages: vec![], line: String::new(), program: None };
    let entry = if what.contains('/') || package(what).is_none() { contents.get(what) } else { None };
    if let Some(entry) = entry {
        match entry.origin.split_once(' ') {
            Some(("recipe", line)) => why.line = line.to_owned(),
            Some(("program", rest)) => {
                let (name, line) = rest.split_once(' ').unwrap_or((rest, ""));
                (why.program, why.line) = (Some(name.to_owned()), line.to_owned());
            }
            // What its maintainer script made, a package is to answer for.
            Some(("script", name)) => (why.packages, why.line) = chain(name),
            _ => (why.packages, why.line) = chain(&entry.origin),
        }
        why.entry = Some(entry.clone());
        return Ok(why);
    }
    if package(what).is_some() {
        (why.packages, why.line) = chain(what);
        return Ok(why);
    }
    if what.contains('/') {
        let path = what.trim_start_matches('/');
        return Err(nearest(path, contents.files.iter().map(|f| f.path.as_str())).map(|n| format!("/{n}")));
    }
    Err(nearest(what, lock.packages.iter().map(|p| p.name.as_str())).map(str::to_owned))
}

/// A directory with the bytes below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Branch {
    /// Its own name; empty for the root.
    pub name: String,
    /// Bytes of all files in and below it, before packing.
    pub bytes: u64,
    /// Their number.
    pub files: u64,
    /// Directories and large files in it, the largest first.
    pub children: Vec<Branch>,
}

/// Where the megabytes are: down to `depth`, what has at least `least` bytes.
pub fn sizes(contents: &Contents, depth: usize, least: u64) -> Branch {
    #[derive(Default)]
    struct Sum {
        bytes: u64,
        files: u64,
        below: BTreeMap<String, Sum>,
    }
    fn branch(name: &str, sum: Sum, depth: usize, least: u64) -> Branch {
        let mut children: Vec<Branch> = match depth {
            0 => vec![],
            _ => sum
                .below
                .into_iter()
                .filter(|(_, s)| s.bytes >= least)
                .map(|(name, s)| branch(&name, s, depth - 1, least))
                .collect(),
        };
        children.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.name.cmp(&b.name)));
        Branch { name: name.to_owned(), bytes: sum.bytes, files: sum.files, children }
    }
    let mut root = Sum::default();
    for file in contents.files.iter().filter(|f| f.kind == Type::File) {
        let mut at = &mut root;
        (at.bytes, at.files) = (at.bytes + file.size, at.files + 1);
        for part in file.path.split('/') {
            at = at.below.entry(part.to_owned()).or_default();
            (at.bytes, at.files) = (at.bytes + file.size, at.files + 1);
        }
    }
    branch("", root, depth, least)
}

/// Bytes and number of files by origin (package, `recipe`, `program NAME`, `labshift`), the largest first.
pub fn by_origin(contents: &Contents) -> Vec<(String, u64, u64)> {
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for file in contents.files.iter().filter(|f| f.kind == Type::File) {
        let mut words = file.origin.split(' ');
        let origin = match (words.next().unwrap_or_default(), words.next()) {
            ("", _) => "labshift".to_owned(),
            ("program", Some(name)) => format!("program {name}"),
            (first, _) => first.to_owned(),
        };
        let sum = sums.entry(origin).or_default();
        *sum = (sum.0 + file.size, sum.1 + 1);
    }
    let mut all: Vec<_> = sums.into_iter().map(|(origin, (bytes, files))| (origin, bytes, files)).collect();
    all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    all
}

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Path.
    pub path: String,
    /// Bytes before; absent when it is new.
    pub before: Option<u64>,
    /// Bytes after; absent when it is gone.
    pub after: Option<u64>,
    /// What of a path in both differs: kind, content, target, mode, owner, capabilities.
    pub what: Vec<&'static str>,
    /// Where it comes from (the later one, if it is in both).
    pub origin: String,
}

/// What one image has and another has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sides<T> {
    /// Only before.
    pub removed: Vec<T>,
    /// Only after.
    pub added: Vec<T>,
}

impl<T: Clone + PartialEq> Sides<T> {
    fn of(before: &[T], after: &[T]) -> Sides<T> {
        let only = |a: &[T], b: &[T]| a.iter().filter(|x| !b.contains(x)).cloned().collect();
        Sides { removed: only(before, after), added: only(after, before) }
    }

    /// Both have the same.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }
}

/// What differs between two images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Packages and their versions.
    pub packages: Vec<Change>,
    /// Kernel releases, when they differ.
    pub kernel: Option<(String, String)>,
    /// Kernel arguments.
    pub arguments: Sides<String>,
    /// What PID 1 supervises, by name; a service that runs something else is on both sides.
    pub services: Sides<String>,
    /// Modules that init loads.
    pub modules: Sides<String>,
    /// Ports that the node may listen on.
    pub ports: Sides<u16>,
    /// Paths of the root.
    pub files: Vec<FileChange>,
    /// Files of the generation: name, bytes before and after.
    pub outputs: Vec<(String, Option<u64>, Option<u64>)>,
}

/// One side of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Its manifest.
    pub manifest: &'a Manifest,
    /// Its packages.
    pub lock: &'a Lock,
    /// Its paths.
    pub contents: &'a Contents,
}

/// Compares two images.
pub fn difference(before: Side<'_>, after: Side<'_>) -> Difference {
    let words = |m: &Manifest| m.kernel_arguments.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let services = |m: &Manifest| {
        m.services.iter().map(|s| format!("{}: {}", s.name, s.exec.join(" "))).collect::<Vec<_>>()
    };
    let (a, b) = (before.manifest, after.manifest);
    let size = |m: &Manifest, name: &str| m.files.get(name).map(|f| f.size);
    let mut names: Vec<&String> = a.files.keys().chain(b.files.keys()).collect();
    names.sort();
    names.dedup();
    let differs =
        |name: &&String| a.files.get(*name).map(|f| &f.sha256) != b.files.get(*name).map(|f| &f.sha256);
    Difference {
        packages: changes(before.lock, after.lock),
        kernel: (a.kernel_release != b.kernel_release)
            .then(|| (a.kernel_release.clone(), b.kernel_release.clone())),
        arguments: Sides::of(&words(a), &words(b)),
        services: Sides::of(&services(a), &services(b)),
        modules: Sides::of(&a.modules, &b.modules),
        ports: Sides::of(&a.ports, &b.ports),
        files: file_changes(before.contents, after.contents),
        outputs: names.into_iter().filter(differs).map(|n| (n.clone(), size(a, n), size(b, n))).collect(),
    }
}

/// Compares the paths of two roots.
pub fn file_changes(before: &Contents, after: &Contents) -> Vec<FileChange> {
    let mut pairs: BTreeMap<&str, (Option<&Entry>, Option<&Entry>)> = BTreeMap::new();
    for file in &before.files {
        pairs.entry(&file.path).or_default().0 = Some(file);
    }
    for file in &after.files {
        pairs.entry(&file.path).or_default().1 = Some(file);
    }
    let mut found = vec![];
    for (path, (a, b)) in pairs {
        let mut what = vec![];
        if let (Some(a), Some(b)) = (a, b) {
            let checks = [
                ("kind", a.kind != b.kind),
                ("content", a.sha256 != b.sha256),
                ("target", a.target != b.target),
                ("mode", a.mode != b.mode),
                ("owner", (a.uid, a.gid) != (b.uid, b.gid)),
                ("capabilities", a.capability != b.capability),
            ];
            what.extend(checks.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name));
            if what.is_empty() {
                continue;
            }
        }
        let origin = b.or(a).map(|e| e.origin.clone()).unwrap_or_default();
        let size = |e: Option<&Entry>| e.map(|e| e.size);
        found.push(FileChange { path: path.to_owned(), before: size(a), after: size(b), what, origin });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build, inspect,
        progress::Silent,
        store::Store,
        world::{RECIPE, World, packages},
    };

    #[test]
    fn why_leads_to_a_line_of_the_recipe() {
        let world = World::new();
        build(&world.options(), &Silent).unwrap();
        let image = inspect(&Store::open(&world.path("store")).unwrap(), "tiny", None).unwrap();
        let ask = |what: &str| why(image.contents.as_ref().unwrap(), &image.lock, what);
        let library = ask("/usr/lib/libfoo.so.1").unwrap();
        assert_eq!(
            (library.packages.join(" < "), library.line.as_str()),
            ("libfoo 1.2-3 < base-passwd 3.6".into(), "tiny.toml:4")
        );
        assert_eq!(ask("libfoo").unwrap().packages.len(), 2);
        assert_eq!(ask("linux-image-test").unwrap().line, "tiny.toml:6");
        assert_eq!(ask("etc/motd").unwrap().line, "tiny.toml:8");
        assert_eq!(
            ask("/etc/passwd").unwrap(),
            Why {
                what: "/etc/passwd".into(),
                entry: image.contents.as_ref().unwrap().get("etc/passwd").cloned(),
                packages: vec![],
                line: String::new(),
                program: None,
            }
        );
        assert_eq!(ask("libfo"), Err(Some("libfoo".into())));
        assert_eq!(ask("/etc/passwdd"), Err(Some("/etc/passwd".into())));
    }

    #[test]
    fn differences_of_every_kind() {
        let world = World::new();
        let first = build(&world.options(), &Silent).unwrap();
        let mut newer = packages();
        newer.iter_mut().find(|p| p.0 == "tool").unwrap().1 = "3.0";
        world.publish(&newer);
        world.recipe(
            &(RECIPE
                .replace("hello", "hello there")
                .replace("package = \"linux", "arguments = [\"quiet\"]\npackage = \"linux")
                + "[[file]]\ndest = \"/srv/new\"\ntext = \"12345\"\nmode = \"0600\"\n"),
        );
        let second = build(&world.options(), &Silent).unwrap();
        let store = Store::open(&world.path("store")).unwrap();
        let open = |generation: &str| inspect(&store, "tiny", Some(generation)).unwrap();
        let (a, b) = (open(&first.generation), open(&second.generation));
        let found = difference(a.side().unwrap(), b.side().unwrap());
        assert_eq!(found.packages.iter().map(ToString::to_string).collect::<Vec<_>>(), ["tool 2.0 -> 3.0"]);
        assert_eq!(
            (found.arguments.removed, found.arguments.added),
            (vec![String::new()], vec!["quiet".to_owned()])
        );
        let paths: Vec<_> = found.files.iter().map(|f| (f.path.as_str(), f.before, f.after)).collect();
        assert_eq!(
            paths,
            [("etc/motd", Some(5), Some(11)), ("srv", None, Some(0)), ("srv/new", None, Some(5))]
        );
        assert!(found.outputs.iter().any(|(name, ..)| name == "root.erofs"));
        assert!(difference(a.side().unwrap(), a.side().unwrap()).files.is_empty());
    }

    #[test]
    fn sizes_add_up() {
        let world = World::new();
        build(&world.options(), &Silent).unwrap();
        let image = inspect(&Store::open(&world.path("store")).unwrap(), "tiny", None).unwrap();
        let contents = image.contents.as_ref().unwrap();
        let tree = sizes(contents, 9, 0);
        assert_eq!(tree.bytes, tree.children.iter().map(|c| c.bytes).sum::<u64>());
        assert_eq!(tree.bytes, by_origin(contents).iter().map(|(_, bytes, _)| bytes).sum::<u64>());
        assert!(sizes(contents, 0, 0).children.is_empty());
    }
}
