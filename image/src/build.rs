//! The whole way: recipe -> lock -> packages -> root -> kernel, initramfs, UKI -> manifest -> store.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use jiff::Timestamp;
use labshift_model::{
    manifest::{self, FileEntry, ImageKind, Manifest, Root, SCHEMA},
    paths,
    recipe::Content,
};
use sha2::{Digest, Sha256};

use crate::{
    apt::{self, Mirrors},
    archive,
    cache::Cache,
    deb::{self, Unpacked},
    elf,
    error::{At, BuildError},
    initramfs,
    kernel::Kernel,
    lock::{self, Lock, Locked},
    progress::{Progress, Stage},
    recipe_file::{self, Loaded},
    resolve::resolve,
    root::Building,
    store::{Published, Store},
    tools::{self, Tools},
    uki, verity,
};

/// The lock inside a generation.
pub(crate) const LOCK: &str = "lock.json";

/// Where packages come from and go to.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Mirrors instead of the recipe's and the machine's own.
    pub mirrors: Vec<String>,
    /// Key ring instead of the recipe's and Debian's.
    pub keyring: Option<PathBuf>,
    /// Download cache.
    pub cache: PathBuf,
    /// apt's configuration directory (`/etc/apt`).
    pub apt: PathBuf,
    /// The time: decides whether lists are too old.
    pub now: Timestamp,
}

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Recipe file.
    pub recipe: PathBuf,
    /// Image store.
    pub store: PathBuf,
    /// Directory of labshift's programs.
    pub programs: PathBuf,
    /// Use exactly the packages of this lock.
    pub locked: Option<PathBuf>,
    /// Packages.
    pub sources: Sources,
}

/// A built image.
#[derive(Debug, Clone)]
pub struct Built {
    /// Image name.
    pub name: String,
    /// Full generation.
    pub generation: String,
    /// Where it lies.
    pub directory: PathBuf,
    /// New, or the same as before.
    pub published: Published,
    /// What it is.
    pub manifest: Manifest,
    /// Number of packages.
    pub packages: usize,
    /// Bytes of the root before packing.
    pub root_bytes: u64,
}

/// A lock and the cache it was made with.
struct Chosen {
    lock: Lock,
    cache: Cache,
}

/// Chooses the packages of a recipe, and says exactly which.
pub fn lock(recipe: &Path, sources: &Sources, progress: &dyn Progress) -> Result<Lock, BuildError> {
    let loaded = recipe_file::load(recipe)?;
    Ok(choose(&loaded, sources, None, progress)?.lock)
}

/// Builds an image and publishes it. The same recipe, programs and packages give the same generation.
pub fn build(options: &BuildOptions, progress: &dyn Progress) -> Result<Built, BuildError> {
    let loaded = recipe_file::load(&options.recipe)?;
    let image = usable(&loaded)?;
    let (name, kind) = (image.name.to_owned(), image.kind);
    let programs = programs(&loaded, &options.programs)?;
    let store = Store::open(&options.store)?;
    let key = store.signing_key()?;
    let chosen = choose(&loaded, &options.sources, options.locked.as_deref(), progress)?;
    let Chosen { lock, cache } = &chosen;
    download(lock, cache, progress)?;
    let read = |locked: &Locked| {
        let url = format!("{}/{}", lock.archives[locked.archive].mirror, locked.filename);
        cache.get(&url, &locked.expected())
    };
    let tools = Tools::prepare(cache, lock, |i| read(&lock.tools[i]))?;

    progress.stage(Stage::Unpack, &format!("{} packages", lock.packages.len()));
    let unpacked = unpack(&loaded, lock, &read, progress)?;
    progress.stage(Stage::Kernel, image.kernel);
    let mut kernel = find_kernel(image.kernel, &unpacked)?;
    let bad = |why| BuildError::Kernel { package: image.kernel.to_owned(), why };
    let recipe = &loaded.recipe;
    let early = kernel.select(&recipe.initrd_modules).map_err(bad)?;
    let late: Vec<String> = recipe.root_modules.iter().chain(&recipe.keep_modules).cloned().collect();
    let late = kernel.select(&late).map_err(bad)?;

    let mut root = Building::new(&loaded);
    for (locked, package) in lock.packages.iter().zip(unpacked) {
        if !locked.name.starts_with("linux-image-") {
            root.add(&locked.name, package);
        }
    }
    root.modules(&kernel, &late);
    root.finish(&programs);
    root.warnings.extend(elf::missing_libraries(&root.tree));
    for warning in &root.warnings {
        progress.warning(warning);
    }
    if !root.problems.is_empty() {
        return Err(BuildError::Root { image: name, problems: root.problems });
    }
    let root_bytes = root.tree.size();

    let work = store.workplace(&name)?;
    progress.stage(Stage::Root, &format!("{} MiB", root_bytes >> 20));
    let salt = Sha256::digest(lock.digest());
    let sealed = pack_root(&tools, &root.tree, &lock.digest(), &salt, work.path())?;

    progress.stage(Stage::Seal, "initramfs, manifest, signature");
    let trusted = format!("{}\n", hex::encode(key.verifying_key().as_bytes()));
    let init = programs.get("init").map_or(&[][..], Vec::as_slice);
    let initrd =
        initramfs::build(init, &kernel, &early, &trusted).at("packing", work.path().join(paths::INITRD))?;
    write(work.path(), paths::KERNEL, &kernel.image)?;
    write(work.path(), paths::INITRD, &initrd)?;
    write(work.path(), LOCK, &published_lock(lock).to_bytes())?;
    let arguments = recipe.arguments.join(" ");
    if kind == ImageKind::Host {
        let stub = tools.file("usr/lib/systemd/boot/efi/linuxx64.efi.stub")?;
        let release = format!("ID=labshift\nNAME=labshift\nIMAGE_ID={name}\n");
        let cmdline = format!("{arguments} labshift.roothash={}", sealed.root_hash);
        let sections: [uki::Section<'_>; 5] = [
            (".osrel", release.as_bytes()),
            (".cmdline", cmdline.trim().as_bytes()),
            (".uname", kernel.release.as_bytes()),
            (".initrd", &initrd),
            (".linux", &kernel.image),
        ];
        let image = uki::assemble(&stub, &sections).map_err(|e| BuildError::Tool {
            tool: "systemd-boot-efi".into(),
            status: "boot stub".into(),
            output: e.to_string(),
        })?;
        write(work.path(), paths::UKI, &image)?;
    }
    let manifest = Manifest {
        schema: SCHEMA,
        name: name.clone(),
        kind,
        architecture: "amd64".to_owned(),
        kernel_release: kernel.release.clone(),
        kernel_arguments: arguments,
        root: sealed,
        files: entries(work.path())?,
        lock: lock.digest(),
        services: recipe.services.clone(),
        modules: recipe.root_modules.clone(),
        ports: recipe.ports.clone(),
    };
    let bytes = manifest.to_bytes();
    let signature = manifest::sign(&bytes, &key);
    write(work.path(), paths::MANIFEST, &bytes)?;
    write(work.path(), paths::SIGNATURE, &serde_json::to_vec_pretty(&signature).unwrap_or_default())?;
    let generation = manifest::generation_of(&bytes);
    progress.stage(Stage::Publish, manifest::short(&generation));
    let published = store.publish(work, &name, &generation)?;
    let directory = store.generation(&name, &generation);
    let packages = lock.packages.len();
    Ok(Built { name, generation, directory, published, manifest, packages, root_bytes })
}

fn usable(loaded: &Loaded) -> Result<labshift_model::recipe::Image<'_>, BuildError> {
    loaded.recipe.image().map_err(|reason| BuildError::Unusable { path: loaded.path.clone(), reason })
}

/// The programs of labshift that a recipe names, and init.
fn programs(loaded: &Loaded, directory: &Path) -> Result<BTreeMap<String, Vec<u8>>, BuildError> {
    let named = loaded.recipe.files.iter().filter_map(|f| match &f.content {
        Content::Program(name) => Some(name.as_str()),
        _ => None,
    });
    let mut programs = BTreeMap::new();
    for name in named.chain(["init"]) {
        match fs::read(directory.join(name)) {
            Ok(bytes) => programs.insert(name.to_owned(), bytes),
            Err(_) => {
                return Err(BuildError::NoProgram { name: name.to_owned(), directory: directory.to_owned() });
            }
        };
    }
    Ok(programs)
}

fn choose(
    loaded: &Loaded,
    sources: &Sources,
    locked: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Chosen, BuildError> {
    let image = usable(loaded)?;
    let recipe = &loaded.recipe;
    let proxy = apt::proxy_of_machine(&sources.apt);
    let cache = Cache::open(&sources.cache, proxy.as_deref())?;
    let mut wanted = recipe.packages.clone();
    wanted.push(image.kernel.to_owned());
    if let Some(path) = locked {
        let bad = |reason| BuildError::Lock { path: path.to_owned(), reason };
        let lock = Lock::from_bytes(&fs::read(path).at("reading", path)?).map_err(bad)?;
        lock.fits(image.name, &wanted).map_err(bad)?;
        return Ok(Chosen { lock, cache });
    }
    let mirrors = match (&sources.mirrors[..], &recipe.mirrors[..]) {
        ([], []) => Mirrors::of_machine(&sources.apt),
        ([], named) | (named, _) => Mirrors::named(named),
    };
    if mirrors.main.is_empty() {
        return Err(BuildError::NoMirror { looked: sources.apt.display().to_string() });
    }
    let keyring = sources.keyring.clone().or_else(|| recipe.keyring.as_ref().map(PathBuf::from));
    let ring = archive::key_ring(keyring.as_deref())?;
    let main = vec!["main".to_owned()];
    let components = if recipe.components.is_empty() { &main } else { &recipe.components };
    let wanted_lists = archive::Wanted {
        mirrors: &mirrors,
        suite: recipe.suite(),
        components,
        ring: &ring,
        now: sources.now,
    };
    let (index, archives) = archive::load(&cache, &wanted_lists, progress)?;
    progress.stage(Stage::Resolve, &format!("{} packages named", wanted.len()));
    let resolve = |wanted: &[String], leave_out: &[String]| {
        let chosen = resolve(&index, wanted, leave_out)
            .map_err(|why| BuildError::Unresolvable { recipe: loaded.path.clone(), why })?;
        Ok::<_, BuildError>(chosen.into_iter().map(Locked::of).collect())
    };
    let mut leave_out = recipe.leave_out.clone();
    // Of the kernel's package we take image and modules; what makes an initramfs or links is ours.
    leave_out.extend(["kmod", "linux-base", "initramfs-tools"].map(String::from));
    leave_out.retain(|l| !wanted.contains(l));
    let packages = resolve(&wanted, &leave_out)?;
    let tools = resolve(&tools::PACKAGES.map(String::from), &[])?;
    let lock = Lock { schema: lock::SCHEMA, image: image.name.to_owned(), archives, packages, tools };
    Ok(Chosen { lock, cache })
}

/// The lock without where its packages came from: two mirrors give the same image.
fn published_lock(lock: &Lock) -> Lock {
    let mut lock = lock.clone();
    for package in lock.packages.iter_mut().chain(&mut lock.tools) {
        package.archive = 0;
    }
    lock.archives = vec![lock::Archive { mirror: String::new(), suite: String::new(), date: String::new() }];
    lock
}

/// Downloads that run at the same time.
const CONNECTIONS: usize = 6;

fn download(lock: &Lock, cache: &Cache, progress: &dyn Progress) -> Result<(), BuildError> {
    let mut missing: Vec<&Locked> =
        lock.packages.iter().chain(&lock.tools).filter(|p| !cache.has(&p.expected())).collect();
    // A package may be in the image and among the tools.
    let mut seen = BTreeSet::new();
    missing.retain(|p| seen.insert(&p.sha256));
    let total = missing.iter().map(|p| p.size).sum();
    if missing.is_empty() {
        return Ok(());
    }
    progress.stage(Stage::Download, &format!("{} packages, {} MiB", missing.len(), total >> 20));
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let worker = || {
        while let Some(package) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            let url = format!("{}/{}", lock.archives[package.archive].mirror, package.filename);
            let heard = |count| {
                let now = done.fetch_add(count, Ordering::Relaxed) + count;
                progress.bytes(Stage::Download, now.min(total), total);
            };
            if let Err(e) = cache.download(&url, &package.expected(), &heard) {
                // The others stop after what they are at.
                next.store(missing.len(), Ordering::Relaxed);
                return Err(e);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|w| w.join().unwrap_or(Ok(()))).collect::<Result<Vec<()>, _>>().map(|_| ())
    })
}

fn unpack(
    loaded: &Loaded,
    lock: &Lock,
    read: &(dyn Fn(&Locked) -> Result<Vec<u8>, BuildError> + Sync),
    progress: &dyn Progress,
) -> Result<Vec<Unpacked>, BuildError> {
    let total = lock.packages.iter().map(|p| p.size).sum();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let worker = || {
        let mut mine = vec![];
        while let Some((i, locked)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            lock.packages.get(i).map(|p| (i, p))
        } {
            let bytes = read(locked)?;
            let kernel = locked.name.starts_with("linux-image-");
            let keep = |path: &str| kernel || Building::keeps(&loaded.recipe, path);
            let package = deb::unpack(&bytes, &locked.name, &keep).map_err(|why| BuildError::Package {
                package: format!("{} {}", locked.name, locked.version),
                why,
            })?;
            mine.push((i, package));
            let now = done.fetch_add(locked.size, Ordering::Relaxed) + locked.size;
            progress.bytes(Stage::Unpack, now, total);
        }
        Ok(mine)
    };
    let mut all: Vec<(usize, Unpacked)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let parts: Result<Vec<_>, BuildError> =
            workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Ok(vec![]))).collect();
        parts.map(|p| p.into_iter().flatten().collect())
    })?;
    all.sort_by_key(|(i, _)| *i);
    Ok(all.into_iter().map(|(_, package)| package).collect())
}

fn find_kernel(package: &str, unpacked: &[Unpacked]) -> Result<Kernel, BuildError> {
    let with_image =
        unpacked.iter().find(|p| p.nodes.iter().any(|(path, _)| path.starts_with("boot/vmlinuz-")));
    let nodes = with_image.map_or(&[][..], |p| &p.nodes);
    Kernel::of_package(nodes).map_err(|why| BuildError::Kernel { package: package.to_owned(), why })
}

/// Packs a tree as EROFS and appends its hash tree.
fn pack_root(
    tools: &Tools,
    tree: &crate::tree::Tree,
    identity: &str,
    salt: &[u8],
    directory: &Path,
) -> Result<Root, BuildError> {
    let path = directory.join(paths::ROOT);
    let uuid = format!(
        "{}-{}-4{}-8{}-{}",
        &identity[..8],
        &identity[8..12],
        &identity[13..16],
        &identity[17..20],
        &identity[20..32]
    );
    let arguments = [
        "--quiet".to_owned(),
        "-zzstd,3".to_owned(),
        "-C65536".to_owned(),
        "-Efragments".to_owned(),
        "-T0".to_owned(),
        format!("-U{uuid}"),
        "--tar=f".to_owned(),
        path.display().to_string(),
    ];
    tools.run("usr/bin/mkfs.erofs", &arguments, directory, |pipe| {
        tree.write_tar(BufWriter::with_capacity(1 << 20, pipe))
    })?;
    let mut file = fs::OpenOptions::new().read(true).write(true).open(&path).at("opening", &path)?;
    let size = file.metadata().at("reading", &path)?.len().next_multiple_of(verity::BLOCK as u64);
    file.set_len(size).at("writing", &path)?;
    let sealed = verity::seal(&file, salt).at("hashing", &path)?;
    file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(&sealed.tree)).at("writing", &path)?;
    Ok(Root {
        root_hash: hex::encode(sealed.root_hash),
        salt: hex::encode(salt),
        data_size: size,
        block_size: verity::BLOCK as u32,
    })
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), BuildError> {
    let path = directory.join(name);
    fs::write(&path, bytes).at("writing", &path)
}

/// Size and hash of every file of a generation.
pub(crate) fn entries(directory: &Path) -> Result<BTreeMap<String, FileEntry>, BuildError> {
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir(directory).at("reading", directory)? {
        let path = entry.at("reading", directory)?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if [paths::MANIFEST, paths::SIGNATURE].contains(&name.as_str()) {
            continue;
        }
        entries.insert(name, entry_of(&path)?);
    }
    Ok(entries)
}

fn entry_of(path: &Path) -> Result<FileEntry, BuildError> {
    let mut file = fs::File::open(path).at("opening", path)?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).at("reading", path)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
    Ok(FileEntry { size, sha256: hex::encode(hash.finalize()) })
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
