//! What packages and kernel give an image, packed once and kept in the cache.
//!
//! ```text
//! CACHE/layers/KEY/base.erofs      the packed tree
//!                  layer.json      its paths, and what is still to be known of it
//!                  vmlinuz         the kernel
//!                  modules.cpio    modules of the initramfs
//!                  used            written at each use
//!                  initrd-HASH     the initramfs with an init and keys of this hash
//! ```
//!
//! The key covers everything that the layer is made of, this program included: a layer is never wrong, only unused.
//! Nothing of it shows in an image that would not be the same without it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    cache::Cache,
    configure::{self, is_kernel},
    contents::{self, Entry},
    data::Spool,
    deb::Unpacked,
    elf,
    error::{At, BuildError},
    fetch, initramfs,
    kernel::{BadKernel, Kernel},
    lock::{Lock, Locked},
    pack,
    progress::{Progress, Stage},
    recipe_file::Loaded,
    root::{Building, may_come},
    scratch::{self, Scratch},
    script_report::Report,
    tools::Tools,
    tree::{Kind, Node, Tree},
};

/// Layers that are kept; the one that was not used for longest goes first.
const KEPT: usize = 12;

const BASE: &str = "base.erofs";
const DESCRIPTION: &str = "layer.json";
const KERNEL: &str = "vmlinuz";
const MODULES: &str = "modules.cpio";
const USED: &str = "used";

/// A packed layer.
pub struct Layer {
    directory: PathBuf,
    /// Of a layer that nobody else is to use.
    _scratch: Option<Scratch>,
    /// Its tree; contents are not at hand.
    pub tree: Tree,
    /// What else is known of it.
    pub known: Known,
}

/// What is to be known of a layer after it was packed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// `uname -r`.
    pub kernel_release: String,
    /// What packages declare for systemd-sysusers, by file name.
    pub sysusers: BTreeMap<String, String>,
    /// Files that are read later.
    pub texts: BTreeMap<String, String>,
    /// Libraries that programs ask for.
    pub needs: BTreeMap<String, Vec<String>>,
    /// What an admin should know.
    pub warnings: Vec<String>,
    /// What maintainer scripts did, where any ran.
    pub scripts: Option<Report>,
    /// The tree.
    files: Vec<Entry>,
}

/// What identifies this very program: layers and records of another one are not used.
pub fn this_program() -> String {
    let meta = std::env::current_exe().and_then(fs::metadata);
    meta.map(|m| format!("{} {:?}", m.len(), m.modified().ok())).unwrap_or_default()
}

fn key(loaded: &Loaded, kernel: &str, lock: &Lock) -> String {
    let r = &loaded.recipe;
    let parts =
        (&r.prune, &r.strict, &r.scripts, &r.initrd_modules, &r.root_modules, &r.keep_modules, kernel);
    let text = format!("{} {} {parts:?}", this_program(), lock.digest());
    hex::encode(Sha256::digest(text))[..32].to_owned()
}

impl Layer {
    /// The layer of a recipe and a lock, with the initramfs of this frame, from the cache or made now; a `fresh` one is made in any case, and not kept.
    pub fn of(
        loaded: &Loaded,
        kernel: &str,
        lock: &Lock,
        cache: &Cache,
        tools: &Tools,
        (fresh, frame): (bool, &[u8]),
        progress: &dyn Progress,
    ) -> Result<Layer, BuildError> {
        let unreadable = |path: &Path| BuildError::Io {
            doing: "reading",
            path: path.to_owned(),
            why: std::io::Error::other("the layer that was just written can't be read"),
        };
        if fresh {
            let work = cache.scratch("layer")?;
            make(loaded, (kernel, frame), lock, (cache, tools), (fresh, work.path()), progress)?;
            let layer = Layer::open(work.path()).ok_or_else(|| unreadable(work.path()))?;
            return Ok(Layer { _scratch: Some(work), ..layer });
        }
        let directory = cache.directory().join("layers").join(key(loaded, kernel, lock));
        if let Some(layer) = Layer::open(&directory) {
            // The time of its last use decides which layers stay.
            let _ = fs::write(directory.join(USED), "1");
            return Ok(layer);
        }
        let work = cache.scratch("layer")?;
        make(loaded, (kernel, frame), lock, (cache, tools), (fresh, work.path()), progress)?;
        match fs::rename(work.path(), &directory) {
            // Another build was faster, or a damaged layer is in the way.
            Err(_) if Layer::open(&directory).is_some() => {}
            Err(_) if directory.exists() => {
                fs::remove_dir_all(&directory).at("removing the damaged", &directory)?;
                fs::rename(work.path(), &directory).at("moving a layer to", &directory)?;
            }
            moved => moved.at("moving a layer to", &directory)?,
        }
        forget(&cache.directory().join("layers"));
        Layer::open(&directory).ok_or_else(|| unreadable(&directory))
    }

    fn open(directory: &Path) -> Option<Layer> {
        let text = fs::read(directory.join(DESCRIPTION)).ok()?;
        let mut known: Known = serde_json::from_slice(&text).ok()?;
        let mut tree = Tree::empty();
        for entry in std::mem::take(&mut known.files) {
            let node = entry.node()?;
            tree.restore(entry.path, node);
        }
        let layer = Layer { directory: directory.to_owned(), _scratch: None, tree, known };
        [BASE, KERNEL, MODULES].iter().all(|f| directory.join(f).is_file()).then_some(layer)
    }

    /// The packed tree.
    pub fn base(&self) -> PathBuf {
        self.directory.join(BASE)
    }

    /// The kernel's boot image.
    pub fn kernel(&self) -> Result<Vec<u8>, BuildError> {
        let path = self.directory.join(KERNEL);
        fs::read(&path).at("reading", &path)
    }

    /// The initramfs with this frame (init and keys).
    pub fn initrd(&self, frame: &[u8]) -> Result<Vec<u8>, BuildError> {
        let path = self.directory.join(initrd_name(frame));
        if let Ok(bytes) = fs::read(&path) {
            return Ok(bytes);
        }
        let modules = self.directory.join(MODULES);
        let modules = fs::read(&modules).at("reading", &modules)?;
        let (_, bytes) = initrd(&modules, frame).at("packing", &path)?;
        scratch::write_whole(&path, &bytes, 0o644, false).at("writing", &path)?;
        Ok(bytes)
    }
}

fn initrd_name(frame: &[u8]) -> String {
    format!("initrd-{}", &hex::encode(Sha256::digest(frame))[..32])
}

/// The initramfs and the name under which a layer keeps it.
fn initrd(modules: &[u8], frame: &[u8]) -> std::io::Result<(String, Vec<u8>)> {
    Ok((initrd_name(frame), initramfs::pack(&[frame, modules])?))
}

fn make(
    loaded: &Loaded,
    (package, frame): (&str, &[u8]),
    lock: &Lock,
    (cache, tools): (&Cache, &Tools),
    (fresh, directory): (bool, &Path),
    progress: &dyn Progress,
) -> Result<(), BuildError> {
    let spool = Spool::on_disk_of(directory).at("making a file in", directory)?;
    let recipe = &loaded.recipe;
    let shelf = cache.shelf(fresh, directory)?;
    let stays = |locked: &Locked, path: &str| is_kernel(&locked.name) || may_come(path);
    let mut unpacked = fetch::unpack_all(cache, lock, &stays, &shelf, progress)?;
    let outcome = match recipe.scripts {
        Some(true) => {
            let only = Lock { packages: lock.helpers().to_vec(), ..lock.clone() };
            let helpers = fetch::unpack_all(cache, &only, &stays, &shelf, progress)?;
            let keeps = |path: &str| Building::keeps(recipe, path);
            let place = (&spool, directory);
            Some(configure::run(lock, (&unpacked, &helpers), cache, place, &keeps, progress)?)
        }
        _ => None,
    };
    for (locked, package) in lock.packages.iter().zip(&mut unpacked) {
        let keeps = |path: &str, node: &Node| node.kind == Kind::Directory || Building::keeps(recipe, path);
        package.nodes.retain(|(path, node)| is_kernel(&locked.name) || keeps(path, node));
    }
    progress.stage(Stage::Kernel, package);
    let bad = |why: BadKernel| BuildError::Kernel { package: package.to_owned(), why };
    let mut kernel = find_kernel(&unpacked).map_err(bad)?;
    let early = kernel.select(&recipe.initrd_modules, &shelf).map_err(bad)?;
    let late: Vec<String> = recipe.root_modules.iter().chain(&recipe.keep_modules).cloned().collect();
    let late = kernel.select(&late, &shelf).map_err(bad)?;

    let mut root = Building::new(loaded);
    for (locked, package) in lock.packages.iter().zip(unpacked) {
        if !is_kernel(&locked.name) {
            root.add(&locked.name, package);
        }
    }
    if let Some(outcome) = &outcome {
        root.configured(outcome);
        root.warnings.push(outcome.report.warning());
    }
    root.modules(&kernel, &late);
    root.seal();
    if let Some(outcome) = &outcome {
        // From here on these are the accounts that the recipe's own are added to.
        let (passwd, group) = &outcome.accounts;
        for (name, text) in [("passwd", passwd), ("group", group)] {
            root.texts.insert(format!("usr/share/base-passwd/{name}.master"), text.clone());
        }
    }
    if !root.problems.is_empty() {
        let image = recipe.name.clone().unwrap_or_default();
        return Err(BuildError::Root { image, problems: root.problems });
    }
    progress.stage(Stage::Root, &format!("{} MiB", root.tree.size() >> 20));
    let write =
        |name: &str, bytes: &[u8]| fs::write(directory.join(name), bytes).at("writing", directory.join(name));
    // What else is to be done needs less time than packing.
    let beside = || {
        write(KERNEL, &kernel.image)?;
        let modules =
            initramfs::modules(&kernel, &early, &root.tree).at("packing", directory.join(MODULES))?;
        write(MODULES, &modules)?;
        let (file, bytes) = initrd(&modules, frame).at("packing", directory)?;
        write(&file, &bytes)
    };
    let mut needs = elf::needs_of_large(&root.tree).at("reading programs in", cache.directory())?;
    std::thread::scope(|scope| {
        let beside = scope.spawn(beside);
        let mut look = |path: &str, bytes: &[u8]| needs.extend(elf::needs_of(path, bytes));
        pack::base(tools, &root.tree, &lock.digest(), &directory.join(BASE), &mut look)?;
        beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let known = Known {
        kernel_release: kernel.release,
        needs,
        sysusers: root.sysusers,
        texts: root.texts,
        warnings: root.warnings,
        scripts: outcome.map(|o| o.report),
        files: contents::entries(&root.tree),
    };
    shelf.forget();
    write(DESCRIPTION, &serde_json::to_vec(&known).unwrap_or_default())
}

fn find_kernel(unpacked: &[Unpacked]) -> Result<Kernel, BadKernel> {
    let with_image =
        unpacked.iter().find(|p| p.nodes.iter().any(|(path, _)| path.starts_with("boot/vmlinuz-")));
    Kernel::of_package(with_image.map_or(&[][..], |p| &p.nodes))
}

/// Removes the layers that were not used for longest.
fn forget(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    let last_used = |layer: &Path| {
        let meta = fs::metadata(layer.join(USED)).or_else(|_| fs::metadata(layer)).ok()?;
        meta.modified().ok()
    };
    let mut layers: Vec<_> =
        entries.flatten().filter_map(|e| Some((last_used(&e.path())?, e.path()))).collect();
    layers.sort();
    for (_, path) in layers.iter().rev().skip(KEPT) {
        let _ = fs::remove_dir_all(path);
    }
}
