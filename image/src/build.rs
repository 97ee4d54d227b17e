//! The whole way: recipe -> lock -> packages -> root -> kernel, initramfs, UKI -> manifest -> store.
//!
//! Three things are kept from one build to the next, and none of them shows in an image: which packages were chosen
//! from which lists (`choose`), what these packages give (`layer`), and which inputs gave which generation (`record`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use labshift_model::{
    manifest::{self, FileEntry, ImageKind, Manifest, SCHEMA},
    paths,
    recipe::{Content, Rescue},
};
use sha2::{Digest, Sha256};

use crate::{
    cache::Cache,
    choose,
    contents::{CONTENTS, Contents},
    elf,
    error::{At, BuildError},
    fetch,
    initramfs::{self, Trust},
    layer::{self, Layer},
    lock::{self, Lock},
    pack,
    progress::{Progress, Stage},
    provenance,
    recipe_file::{self, Loaded},
    record::Record,
    root::Building,
    sbom,
    script_report::REPORT,
    sign,
    store::{Published, Store},
    tools::Tools,
    uki,
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
    /// Channel that points to it when it is published.
    pub channel: String,
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

/// Chooses the packages of a recipe, and says exactly which.
pub fn lock(recipe: &Path, sources: &Sources, progress: &dyn Progress) -> Result<Lock, BuildError> {
    let loaded = recipe_file::load(recipe)?;
    let image = usable(&loaded)?;
    let cache = choose::open_cache(sources)?;
    choose::choose(&loaded, sources, &cache, (image.name, image.kernel), progress)
}

/// Whether a lock was made for what a recipe asks for now.
pub fn lock_fits(recipe: &Path, lock: &Lock) -> Result<bool, BuildError> {
    let loaded = recipe_file::load(recipe)?;
    let image = usable(&loaded)?;
    let (wanted, leave_out) = choose::wanted(&loaded, image.kernel);
    Ok(lock.fits(image.name, &wanted, &leave_out, loaded.recipe.scripts == Some(true)).is_ok())
}

/// Builds an image and publishes it. The same recipe, programs and packages give the same generation.
pub fn build(options: &BuildOptions, progress: &dyn Progress) -> Result<Built, BuildError> {
    // A recipe with mistakes must not make a store.
    usable(&recipe_file::load(&options.recipe)?)?;
    let store = Store::open(&options.store)?;
    let job = Job::new(options, &store, progress)?;
    let (inputs, now) = (job.inputs(), options.sources.now);
    let built = |published, generation: String, manifest, root_bytes| Built {
        name: job.name.clone(),
        directory: store.generation(&job.name, &generation),
        generation,
        published,
        manifest,
        packages: job.lock.packages.len(),
        root_bytes,
    };
    if let Some(record) = Record::read(&store, &job.name).filter(|r| r.inputs == inputs) {
        let _held = store.hold()?;
        if let Some(manifest) = record.still_there(&store, &job.name) {
            record.warnings.iter().for_each(|w| progress.warning(w));
            store.sign_anew(&job.name, &record.generation, now)?;
            store.set_channel(&job.name, &options.channel, &record.generation, now)?;
            return Ok(built(Published::AlreadyThere, record.generation, manifest, record.root_bytes));
        }
    }
    let work = store.workplace(&job.name)?;
    let Assembled { manifest, root_bytes, warnings } = job.assemble(false, work.path(), progress)?;
    let generation = manifest::generation_of(&manifest.to_bytes());
    progress.stage(Stage::Publish, manifest::short(&generation));
    let published = store.publish(work, (&job.name, &generation), &options.channel, now)?;
    // Without its record it is only built again, to the same.
    if let Err(error) =
        (Record { inputs, generation: generation.clone(), root_bytes, warnings }).write(&store, &job.name)
    {
        progress.warning(&error.to_string());
    }
    Ok(built(published, generation, manifest, root_bytes))
}

/// Everything that decides about an image, read.
pub(crate) struct Job {
    loaded: Loaded,
    name: String,
    kind: ImageKind,
    kernel: String,
    programs: BTreeMap<String, Vec<u8>>,
    key: SigningKey,
    trust: Trust,
    now: Timestamp,
    cache: Cache,
    lock: Lock,
}

/// An image in its directory.
pub(crate) struct Assembled {
    /// What it is.
    pub manifest: Manifest,
    root_bytes: u64,
    warnings: Vec<String>,
}

impl Job {
    pub(crate) fn new(
        options: &BuildOptions,
        store: &Store,
        progress: &dyn Progress,
    ) -> Result<Job, BuildError> {
        let loaded = recipe_file::load(&options.recipe)?;
        let image = usable(&loaded)?;
        let (name, kind, kernel) = (image.name.to_owned(), image.kind, image.kernel.to_owned());
        let programs = programs(&loaded, &options.programs)?;
        let key = store.signing_key()?;
        let trust = Trust {
            images: manifest::public(&key),
            servers: store.servers()?.join("\n"),
            minimum: loaded.recipe.minimum.map(|t| t.to_string()),
            rescue: loaded.recipe.rescue.as_ref().map(Rescue::lines),
        };
        let now = options.sources.now;
        let cache = choose::open_cache(&options.sources)?;
        let lock = match &options.locked {
            Some(path) => choose::read_lock(path, &loaded, (&name, &kernel))?,
            None => choose::choose(&loaded, &options.sources, &cache, (&name, &kernel), progress)?,
        };
        Ok(Job { loaded, name, kind, kernel, programs, key, trust, now, cache, lock })
    }

    /// What signs the manifest, and the time that the signature has.
    pub(crate) fn key(&self) -> (&SigningKey, Timestamp) {
        (&self.key, self.now)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A hash of it all.
    fn inputs(&self) -> String {
        inputs(&self.loaded, &self.programs, &self.lock, &self.trust)
    }

    /// Puts the image into a directory; `fresh` uses nothing of earlier builds.
    pub(crate) fn assemble(
        &self,
        fresh: bool,
        directory: &Path,
        progress: &dyn Progress,
    ) -> Result<Assembled, BuildError> {
        let Job { loaded, name, kernel, programs, cache, lock, .. } = self;
        let tools = Tools::prepare(cache, lock, |i| fetch::open(cache, lock, &lock.tools[i]))?;
        let init = programs.get("init").map_or(&[][..], Vec::as_slice);
        let shell = loaded.recipe.rescue.as_ref().map(|_| tools.shell()).transpose()?;
        let frame = initramfs::frame(init, shell.as_deref(), &self.trust);
        let layer = Layer::of(loaded, kernel, lock, cache, &tools, (fresh, &frame), progress)?;
        let mut root = Building::over(loaded, &layer);
        root.finish(programs);
        let mut needs = layer.known.needs.clone();
        needs.extend(elf::needs(&root.tree));
        root.warnings.extend(elf::missing_libraries(&root.tree, &needs));
        root.warnings.iter().for_each(|w| progress.warning(w));
        if !root.problems.is_empty() {
            return Err(BuildError::Root { image: name.clone(), problems: root.problems });
        }
        let root_bytes = root.tree.size();

        progress.stage(Stage::Seal, "root, initramfs, manifest, signature");
        let salt = Sha256::digest(lock.digest());
        let root_file = directory.join(paths::ROOT);
        pack::over(&tools, (&layer.base(), &layer.tree), &root.tree, &lock.digest(), &root_file)?;
        // The root is hashed twice, block by block and as a whole; all else is written meanwhile.
        let beside = || {
            let sealed = pack::seal(&root_file, &salt)?;
            Ok::<_, BuildError>((sealed, entry_of(&root_file)?))
        };
        let others = || {
            let (linux, initrd) = (layer.kernel()?, layer.initrd(&frame)?);
            write(directory, paths::KERNEL, &linux)?;
            write(directory, paths::INITRD, &initrd)?;
            write(directory, LOCK, &published_lock(lock).to_bytes())?;
            let wanted = loaded
                .lines
                .iter()
                .filter_map(|(what, line)| Some((what.strip_prefix("package ")?.to_owned(), line.clone())));
            write(directory, CONTENTS, &Contents::of(&root.tree, wanted.collect()).to_bytes())?;
            write(directory, sbom::SBOM, &sbom::bill(name, lock, &root.tree))?;
            if let Some(report) = &layer.known.scripts {
                write(directory, REPORT, &report.to_bytes())?;
            }
            let files = entries(directory, &[paths::ROOT])?;
            Ok::<_, BuildError>((linux, initrd, files))
        };
        let (root_done, others) = std::thread::scope(|scope| {
            let beside = scope.spawn(beside);
            let others = others();
            (beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), others)
        });
        let ((sealed, root_entry), (linux, initrd, mut files)) = (root_done?, others?);
        files.insert(paths::ROOT.to_owned(), root_entry);
        let recipe = &loaded.recipe;
        let arguments = recipe.arguments.join(" ");
        if self.kind == ImageKind::Host {
            let release = format!("ID=labshift\nNAME=labshift\nIMAGE_ID={name}\n");
            let cmdline = format!("{arguments} labshift.roothash={}", sealed.root_hash);
            let sections: [uki::Section<'_>; 5] = [
                (".osrel", release.as_bytes()),
                (".cmdline", cmdline.trim().as_bytes()),
                (".uname", layer.known.kernel_release.as_bytes()),
                (".initrd", &initrd),
                (".linux", &linux),
            ];
            let stub = tools.file("usr/lib/systemd/boot/efi/linuxx64.efi.stub")?;
            let image = uki::assemble(&stub, &sections).map_err(|e| BuildError::Tool {
                tool: "systemd-boot-efi".into(),
                status: "boot stub".into(),
                output: e.to_string(),
            })?;
            let image = match &recipe.secure_boot {
                None => image,
                Some(boot) => {
                    let bytes = |path: &String| loaded.files.get(path).map_or(&[][..], Vec::as_slice);
                    let certificate = sign::certificate(&boot.cert, bytes(&boot.cert))?;
                    let der = sign::der(&boot.cert, &certificate)?;
                    write(directory, sign::CERTIFICATE, &der)?;
                    files.insert(sign::CERTIFICATE.to_owned(), entry_of(&directory.join(sign::CERTIFICATE))?);
                    match &boot.key {
                        Some(key) => sign::with_key(&image, (key, bytes(key)), &certificate)?,
                        None => image,
                    }
                }
            };
            write(directory, paths::UKI, &image)?;
            files.insert(paths::UKI.to_owned(), entry_of(&directory.join(paths::UKI))?);
        }
        let statement = provenance::statement(loaded, lock, programs, &files);
        write(directory, provenance::PROVENANCE, &statement)?;
        files.insert(provenance::PROVENANCE.to_owned(), entry_of(&directory.join(provenance::PROVENANCE))?);
        let manifest = Manifest {
            schema: SCHEMA,
            name: name.clone(),
            kind: self.kind,
            architecture: "amd64".to_owned(),
            kernel_release: layer.known.kernel_release,
            kernel_arguments: arguments,
            root: sealed,
            files,
            lock: lock.digest(),
            services: recipe.services.clone(),
            modules: recipe.root_modules.clone(),
            ports: recipe.ports.clone(),
            valid_days: recipe.valid_days,
            disk: recipe.disk.clone(),
        };
        write_manifest(directory, &manifest, (&self.key, self.now))?;
        Ok(Assembled { manifest, root_bytes, warnings: root.warnings })
    }
}

/// A hash of everything that decides about an image.
fn inputs(loaded: &Loaded, programs: &BTreeMap<String, Vec<u8>>, lock: &Lock, trust: &Trust) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{}\n{:?}\n{}\n{trust:?}", layer::this_program(), loaded.recipe, lock.digest()));
    for (name, bytes) in &loaded.files {
        hash.update(format!("file {name} {}\n", hex::encode(Sha256::digest(bytes))));
    }
    for (name, bytes) in loaded.sources.iter().map(|(n, b)| (n, b)).chain(programs) {
        hash.update(format!("input {name} {}\n", hex::encode(Sha256::digest(bytes))));
    }
    hex::encode(hash.finalize())
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
    let names: BTreeSet<&str> = named.chain(["init"]).collect();
    let read = |name: &str| {
        let bytes = fs::read(directory.join(name));
        let absent = |_| BuildError::NoProgram { name: name.to_owned(), directory: directory.to_owned() };
        Ok((name.to_owned(), bytes.map_err(absent)?))
    };
    names.into_iter().map(read).collect()
}

/// The lock without where its packages came from: two mirrors give the same image.
fn published_lock(lock: &Lock) -> Lock {
    let mut lock = lock.clone();
    for package in lock.packages.iter_mut().chain(&mut lock.tools).chain(lock.helpers.iter_mut().flatten()) {
        package.archive = 0;
    }
    lock.archives = vec![lock::Archive { mirror: String::new(), suite: String::new(), date: String::new() }];
    lock
}

/// Writes a manifest with its signature.
pub(crate) fn write_manifest(
    directory: &Path,
    manifest: &Manifest,
    (key, now): (&SigningKey, Timestamp),
) -> Result<(), BuildError> {
    let bytes = manifest.to_bytes();
    let signature = manifest::sign(&bytes, key, now, manifest.valid_days);
    write(directory, paths::MANIFEST, &bytes)?;
    write(directory, paths::SIGNATURE, &serde_json::to_vec_pretty(&signature).unwrap_or_default())
}

pub(crate) fn write(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), BuildError> {
    let path = directory.join(name);
    fs::write(&path, bytes).at("writing", &path)
}

/// Size and hash of every file of a generation, except some.
pub(crate) fn entries(directory: &Path, except: &[&str]) -> Result<BTreeMap<String, FileEntry>, BuildError> {
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir(directory).at("reading", directory)? {
        let path = entry.at("reading", directory)?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if [paths::MANIFEST, paths::SIGNATURE].iter().chain(except).any(|e| *e == name) {
            continue;
        }
        entries.insert(name, entry_of(&path)?);
    }
    Ok(entries)
}

pub(crate) fn entry_of(path: &Path) -> Result<FileEntry, BuildError> {
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
