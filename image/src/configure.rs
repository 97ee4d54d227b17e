//! `scripts = true`: maintainer scripts run, for packages that nobody has reviewed.
//!
//! ```text
//! unpacked packages --extract--> isolated root --dpkg --unpack--> --dpkg --configure, one script at a time-->
//!     tar --> what differs from the packages' own files --normalise--> changes of the image's tree, and a report
//! ```
//!
//! dpkg is the image's own, the .debs are the lock's, and nothing else is there. Only what scripts changed is taken over: owners,
//! modes and origin of all other paths stay what the packages say. What is there for the scripts alone (`helpers` of
//! the lock) stays out of the image.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use crate::{
    cache::Cache,
    data::Spool,
    deb::{self, Unpacked},
    error::{At, BuildError},
    fetch, glob,
    index::field,
    isolated::{INPUT, Isolated, last_words},
    lock::{Lock, Locked},
    progress::{Progress, Stage},
    relation::parse_field,
    root::may_come,
    script_report::{Ran, Report, SCHEMA},
    tools,
    tree::{Kind, Node, Tree},
};

/// What came of it.
pub struct Outcome {
    /// Paths that scripts made or changed.
    pub changed: Vec<(String, Node)>,
    /// Paths that they removed.
    pub removed: Vec<String>,
    /// `etc/passwd` and `etc/group` as scripts left them.
    pub accounts: (String, String),
    /// What ran.
    pub report: Report,
}

/// Not changed by scripts as far as an image goes: dpkg's and debconf's own books, logs, caches, locks, copies of what was
/// before, and what every machine must have for itself: secrets that a build made would be the same on all of them. The builder
/// writes accounts, machine-id, and the modes of directories for temporary files.
const NOT_TAKEN: [&str; 30] = [
    "var/lib/dpkg",
    "var/lib/apt",
    "var/log/**",
    "var/cache/**",
    "var/backups/**",
    "**/__pycache__",
    "tmp",
    "var/tmp",
    "run",
    "dev",
    "proc",
    "etc/.pwd.lock",
    "etc/passwd",
    "etc/group",
    "etc/shadow",
    "etc/gshadow",
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    "etc/subuid-",
    "etc/subgid-",
    "etc/machine-id",
    "var/lib/dbus/machine-id",
    "usr/sbin/policy-rc.d",
    "var/lib/systemd/random-seed",
    "etc/ssh/ssh_host_*",
    "etc/munge/munge.key",
    "etc/ssl/private/ssl-cert-snakeoil.key",
    "etc/ssl/certs/ssl-cert-snakeoil.pem",
];

/// dpkg's options: no question is asked, no network or disk waited for, and order is ours.
const DPKG: [&str; 7] = [
    "/usr/bin/dpkg",
    "--force-depends",
    "--force-confnew",
    "--force-unsafe-io",
    "--force-overwrite",
    "--force-bad-path",
    "--no-triggers",
];

/// A call of dpkg: one package with a script, or several without.
#[derive(Debug, PartialEq, Eq)]
struct Step<'p> {
    packages: Vec<&'p str>,
    script: Option<&'static str>,
}

/// Runs the scripts of a lock's packages. `image` and `helpers` are its packages, unpacked; `keeps` says which paths may come into
/// the image.
pub fn run(
    lock: &Lock,
    (image, helpers): (&[Unpacked], &[Unpacked]),
    cache: &Cache,
    (spool, directory): (&Spool, &Path),
    keeps: &dyn Fn(&str) -> bool,
    progress: &dyn Progress,
) -> Result<Outcome, BuildError> {
    let locked = || lock.packages.iter().zip(image).chain(lock.helpers().iter().zip(helpers));
    // The builder does itself what a kernel's scripts would do.
    let all: BTreeMap<&str, (&Locked, &Unpacked)> =
        locked().filter(|(l, _)| !is_kernel(&l.name)).map(|(l, u)| (l.name.as_str(), (l, u))).collect();
    let controls: BTreeMap<&str, &BTreeMap<String, String>> =
        all.iter().map(|(name, (_, u))| (*name, &u.control)).collect();
    let order = in_order(&controls);
    let own: BTreeSet<&str> = lock.packages.iter().map(|p| p.name.as_str()).collect();
    let tree_of = |names: &dyn Fn(&str) -> bool| {
        let mut tree = Tree::new();
        for (name, (_, unpacked)) in all.iter().filter(|(name, _)| names(name)) {
            for (path, node) in &unpacked.nodes {
                let node = Node { origin: (*name).into(), ..node.clone() };
                tree.put(path, node);
            }
        }
        tree
    };
    let before = prepared(tree_of(&|_| true));

    let work = cache.scratch("scripts")?;
    let isolated = Isolated::new(work.path())?;
    tools::extract(&before, isolated.root())?;
    isolated.probe(&["/bin/sh", "-c", ":"])?;
    for (name, (package, _)) in &all {
        let mut from = fetch::open(cache, lock, package)?;
        let to = isolated.input().join(format!("{name}.deb"));
        let mut file = fs::File::create(&to).at("writing", &to)?;
        io::copy(&mut from, &mut file).at("writing", &to)?;
    }

    let count = controls.values().filter(|c| c.contains_key("postinst")).count();
    progress.stage(Stage::Scripts, &format!("{} packages, {count} of them with scripts", all.len()));
    let mut site = Site { isolated: &isolated, all: &all, ran: vec![] };
    for step in steps(&order, &controls, "preinst") {
        let files: Vec<String> = step.packages.iter().map(|p| format!("{INPUT}/{p}.deb")).collect();
        site.dpkg("--unpack", files.iter().map(String::as_str).collect(), &step)?;
    }
    for step in steps(&order, &controls, "postinst") {
        site.dpkg("--configure", step.packages.clone(), &step)?;
    }
    site.triggers()?;
    let ran = site.ran;

    let after = export(&isolated, spool, directory)?;
    let text = |path: &str| {
        let node = after.iter().find(|(p, _)| p == path).map(|(_, node)| &node.kind);
        match node {
            Some(Kind::File(data)) => {
                data.bytes().map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
            }
            _ => String::new(),
        }
    };
    let accounts = (text("etc/passwd"), text("etc/group"));
    let in_image = tree_of(&|name| own.contains(name));
    let (changed, removed, report) = outcome((&before, &in_image), &own, keeps, after, ran);
    Ok(Outcome { changed, removed, accounts, report })
}

pub(crate) fn is_kernel(package: &str) -> bool {
    package.starts_with("linux-image-")
}

/// Packages, each after those that it depends on, as far as circles let it be; the rest by name.
fn in_order<'p>(controls: &BTreeMap<&'p str, &BTreeMap<String, String>>) -> Vec<&'p str> {
    let empty = String::new();
    let stanza = |name: &str| {
        let text = controls.get(name).and_then(|c| c.get("control")).unwrap_or(&empty);
        text.replace("\n ", " ")
    };
    let mut provided: BTreeMap<String, &'p str> = BTreeMap::new();
    for name in controls.keys() {
        for relation in
            parse_field(field(&stanza(name), "Provides").unwrap_or_default()).into_iter().flatten()
        {
            provided.entry(relation.name).or_insert(name);
        }
    }
    let mut order = vec![];
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    // base-passwd makes the accounts that others count on.
    let first = controls.keys().filter(|n| **n == "base-passwd");
    for start in first.chain(controls.keys()) {
        let mut path = vec![(*start, None::<std::vec::IntoIter<&'p str>>)];
        while let Some((name, needs)) = path.last_mut() {
            let name = *name;
            if needs.is_none() && !seen.insert(name) {
                path.pop();
                continue;
            }
            let needs = needs.get_or_insert_with(|| {
                let stanza = stanza(name);
                let of = |f: &str| parse_field(field(&stanza, f).unwrap_or_default());
                let all = [of("Pre-Depends"), of("Depends")].concat().into_iter().flatten();
                let here = |n: &str| controls.get_key_value(n).map(|(k, _)| *k);
                let found: Vec<&'p str> =
                    all.filter_map(|r| here(&r.name).or_else(|| provided.get(&r.name).copied())).collect();
                found.into_iter()
            });
            match needs.next() {
                Some(need) => path.push((need, None)),
                None => {
                    order.push(name);
                    path.pop();
                }
            }
        }
    }
    order
}

/// Calls of dpkg for packages in this order, so that it is known of each script what it does.
fn steps<'p>(
    order: &[&'p str],
    controls: &BTreeMap<&'p str, &BTreeMap<String, String>>,
    script: &'static str,
) -> Vec<Step<'p>> {
    let mut steps: Vec<Step<'p>> = vec![];
    for name in order {
        let has = controls.get(name).is_some_and(|c| c.contains_key(script));
        match steps.last_mut() {
            Some(step) if !has && step.script.is_none() => step.packages.push(name),
            _ => steps.push(Step { packages: vec![name], script: has.then_some(script) }),
        }
    }
    steps
}

/// What dpkg needs before it can unpack anything: the packages' files, as a system that was put there by hand.
fn prepared(mut tree: Tree) -> Tree {
    for path in
        ["dev", "proc", "sys", "run", "tmp", "root", "var/tmp", "var/lib/dpkg/info", "var/lib/dpkg/updates"]
    {
        tree.directory(path);
    }
    for name in ["status", "available"] {
        tree.file(&format!("var/lib/dpkg/{name}"), 0o644, "");
    }
    for name in ["passwd", "group"] {
        if let (None, Some(text)) = (
            tree.get(&format!("etc/{name}")),
            tree.content(&format!("usr/share/base-passwd/{name}.master")).map(Cow::into_owned),
        ) {
            tree.file(&format!("etc/{name}"), 0o644, text);
        }
    }
    // invoke-rc.d asks it: no service is started.
    tree.file("usr/sbin/policy-rc.d", 0o755, "#!/bin/sh\nexit 101\n");
    tree
}

/// The isolated root at work.
struct Site<'s> {
    isolated: &'s Isolated,
    all: &'s BTreeMap<&'s str, (&'s Locked, &'s Unpacked)>,
    ran: Vec<Ran>,
}

impl Site<'_> {
    fn dpkg(&mut self, action: &str, arguments: Vec<&str>, step: &Step<'_>) -> Result<(), BuildError> {
        let words: Vec<&str> = DPKG.into_iter().chain([action]).chain(arguments).collect();
        let (ended, touched) = self.watched(&words)?;
        let shown =
            |name: &str| self.all.get(name).map_or(name.to_owned(), |(l, _)| format!("{name} {}", l.version));
        if !ended.good {
            let package = step.packages.iter().map(|p| shown(p)).collect::<Vec<_>>().join(", ");
            let script = step.script.map_or_else(|| format!("dpkg {action}"), str::to_owned);
            let (status, output) =
                (exit_of_script(&ended.output).unwrap_or(ended.status), last_words(&ended.output));
            return Err(BuildError::Script { package, script, status, output });
        }
        if let (Some(script), [name]) = (step.script, &step.packages[..]) {
            let version = self.all.get(name).map(|(l, _)| l.version.clone()).unwrap_or_default();
            let (package, script) = ((*name).to_owned(), script.to_owned());
            self.ran.push(Ran { package, version, script, exit: 0, changed: touched, removed: vec![] });
        }
        Ok(())
    }

    /// What is left for the end: triggers, and with them whatever waited for one.
    fn triggers(&mut self) -> Result<(), BuildError> {
        let words: Vec<&str> =
            DPKG.into_iter().filter(|w| *w != "--no-triggers").chain(["--configure", "-a"]).collect();
        let (ended, changed) = self.watched(&words)?;
        if !ended.good {
            let status = exit_of_script(&ended.output).unwrap_or(ended.status);
            let package = failed_package(&ended.output).unwrap_or_else(|| "with a trigger".to_owned());
            let (script, output) = ("triggers".to_owned(), last_words(&ended.output));
            return Err(BuildError::Script { package, script, status, output });
        }
        let (package, version, script) = (String::new(), String::new(), "triggers".to_owned());
        self.ran.push(Ran { package, version, script, exit: 0, changed, removed: vec![] });
        Ok(())
    }

    /// Runs a program, and lists the paths that changed meanwhile.
    fn watched(&self, words: &[&str]) -> Result<(crate::isolated::Ended, Vec<String>), BuildError> {
        let mark = self.isolated.input().join("mark");
        fs::write(&mark, "").at("writing", &mark)?;
        let root = self.isolated.root();
        let ended = self.isolated.run(words).at("running dpkg in", root)?;
        let mark = format!("{INPUT}/mark");
        let list = ["/usr/bin/find", "/", "-xdev", "-cnewer", &mark, "-printf", "%P\\n"];
        let found = self.isolated.run(&list).at("running find in", root)?;
        if !found.good {
            // Without it nobody would know what a script changed.
            let (tool, output) = ("find".to_owned(), last_words(&found.output));
            return Err(BuildError::Tool { tool, status: found.status, output });
        }
        Ok((ended, found.output.lines().map(str::to_owned).collect()))
    }
}

/// The status that dpkg tells of a script.
fn exit_of_script(output: &str) -> Option<String> {
    let (_, rest) = output.rsplit_once("returned error ")?;
    Some(rest.lines().next()?.trim().to_owned())
}

/// The package that dpkg could not handle.
fn failed_package(output: &str) -> Option<String> {
    let (_, rest) = output.split_once("error processing package ")?;
    rest.split([' ', ':']).next().map(str::to_owned)
}

/// The whole isolated root, as its own tar writes it.
fn export(isolated: &Isolated, spool: &Spool, at: &Path) -> Result<Vec<(String, Node)>, BuildError> {
    let words = [
        "/usr/bin/tar",
        "--create",
        "--one-file-system",
        "--numeric-owner",
        "--hard-dereference",
        "--format=posix",
        "--xattrs",
        "--xattrs-include=security.capability",
        "--sort=name",
        "--exclude=./proc/*",
        "--exclude=./dev/*",
        "--exclude=./run/*",
        "--exclude=./tmp/*",
        "--exclude=./var/lib/dpkg",
        "--file=-",
        "--directory=/",
        ".",
    ];
    let mut child = isolated.start(&words).at("running tar in", isolated.root())?;
    let keep = |path: &str| may_come(path) && !skipped(path);
    let read = match child.stdout.take() {
        Some(pipe) => {
            deb::read_data(io::BufReader::with_capacity(1 << 20, pipe), "", &keep, &mut |_, size, from| {
                spool.keep(size, from)
            })
        }
        None => Ok(vec![]),
    };
    let status = child.wait().at("running tar in", at)?;
    let fail = |output: String| BuildError::Tool { tool: "tar".into(), status: status.to_string(), output };
    match read {
        Ok(nodes) if status.success() => Ok(nodes),
        Ok(_) => Err(fail("it could not read the isolated root".into())),
        Err(why) => Err(fail(format!("what scripts left behind can't be taken: {why}"))),
    }
}

/// What [`export`] need not read. Accounts are read, though they are not taken as files.
fn skipped(path: &str) -> bool {
    !["etc/passwd", "etc/group"].contains(&path) && NOT_TAKEN.iter().any(|n| glob::fits(n, path))
}

/// What scripts changed: `after` against the files of all packages, as far as it concerns the image's.
fn outcome(
    (before, image): (&Tree, &Tree),
    own: &BTreeSet<&str>,
    keeps: &dyn Fn(&str) -> bool,
    after: Vec<(String, Node)>,
    mut ran: Vec<Ran>,
) -> (Vec<(String, Node)>, Vec<String>, Report) {
    let nodes = |tree: &Tree| -> BTreeMap<String, Node> {
        tree.iter().map(|(path, node)| (path.to_owned(), node.clone())).collect()
    };
    let (before, image) = (nodes(before), nodes(image));
    // The last script that touched a path is the one that made it what it is.
    let mut touched: BTreeMap<String, usize> = BTreeMap::new();
    for (i, one) in ran.iter_mut().enumerate() {
        for path in std::mem::take(&mut one.changed) {
            touched.insert(path, i);
        }
    }
    let taken = |path: &str| keeps(path) && !NOT_TAKEN.iter().any(|n| glob::fits(n, path));
    let mut changed = vec![];
    let mut there: BTreeSet<String> = BTreeSet::new();
    for (path, mut node) in after {
        there.insert(path.clone());
        let by = touched.get(&path);
        let known = before.get(&path);
        let same = known.is_some_and(|k| alike(k, &node));
        // dpkg and the tree may differ in who owns a directory that several packages have: no script did that.
        let nobody = known.is_some() && by.is_none();
        let package = by.and_then(|i| ran.get(*i)).map_or("", |r| r.package.as_str());
        // What a helper makes of itself stays out with it.
        let helpers = !package.is_empty() && !own.contains(package) && !image.contains_key(&path);
        if !taken(&path) || same || nobody || helpers {
            continue;
        }
        if let Some(one) = by.and_then(|i| ran.get_mut(*i)) {
            one.changed.push(path.clone());
            node.origin = format!("script {}", one.package).trim_end().into();
        } else {
            node.origin = "script".into();
        }
        changed.push((path, node));
    }
    let removed: Vec<String> = image
        .iter()
        .filter(|(path, node)| taken(path) && node.kind != Kind::Directory && !there.contains(*path))
        .map(|(path, _)| path.clone())
        .collect();
    for path in &removed {
        // A removed path shows in the time of its directory only.
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let by = touched.get(parent).copied().unwrap_or(ran.len().saturating_sub(1));
        if let Some(one) = ran.get_mut(by) {
            one.removed.push(path.clone());
        }
    }
    (changed, removed, Report { schema: SCHEMA, ran })
}

/// Whether two nodes are the same in all that an image keeps.
fn alike(a: &Node, b: &Node) -> bool {
    let modes = matches!(a.kind, Kind::Link(_)) || a.mode == b.mode;
    a.kind == b.kind && modes && (a.uid, a.gid, &a.capability) == (b.uid, b.gid, &b.capability)
}

#[cfg(test)]
#[path = "configure_tests.rs"]
mod tests;
