//! From a recipe to a lock: signed lists are fetched, packages chosen.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{
    apt::{self, Mirrors},
    archive,
    build::Sources,
    cache::Cache,
    error::{At, BuildError},
    index::Index,
    lock::{self, Lock, Locked},
    progress::{Progress, Stage},
    recipe_file::Loaded,
    resolve::resolve,
    scratch, tools,
};

/// What a kernel's package wants for its installation.
const KERNELS_HELPERS: [&str; 3] = ["kmod", "linux-base", "initramfs-tools"];

/// The packages that a recipe names, with its kernel; and those that it leaves out.
pub fn wanted(loaded: &Loaded, kernel: &str) -> (Vec<String>, Vec<String>) {
    let mut wanted = loaded.recipe.packages.clone();
    wanted.push(kernel.to_owned());
    let mut leave_out = loaded.recipe.leave_out.clone();
    // Of the kernel's package we take image and modules; what makes an initramfs or links is ours.
    leave_out.extend(KERNELS_HELPERS.map(String::from));
    leave_out.retain(|l| !wanted.contains(l));
    (wanted, leave_out)
}

/// Opens the download cache, with the proxy that this machine's apt uses.
pub fn open_cache(sources: &Sources) -> Result<Cache, BuildError> {
    Cache::open(&sources.cache, apt::proxy_of_machine(&sources.apt).as_deref())
}

/// Reads a lock and checks that it is this recipe's.
pub fn read_lock(path: &Path, loaded: &Loaded, (image, kernel): (&str, &str)) -> Result<Lock, BuildError> {
    let (wanted, leave_out) = wanted(loaded, kernel);
    let bad = |reason| BuildError::Lock { path: path.to_owned(), reason };
    let lock = Lock::from_bytes(&std::fs::read(path).at("reading", path)?).map_err(bad)?;
    lock.fits(image, &wanted, &leave_out, loaded.recipe.scripts == Some(true)).map_err(bad)?;
    let missing =
        tools::packages(&loaded.recipe).into_iter().find(|t| lock.tools.iter().all(|l| l.name != *t));
    if let Some(tool) = missing {
        return Err(bad(format!(
            "it does not name {tool}, which the recipe needs now: renew it (labshift image lock)"
        )));
    }
    Ok(lock)
}

/// Chooses packages from what the mirrors offer now. The same lists give the same lock: it is kept under their hashes.
pub fn choose(
    loaded: &Loaded,
    sources: &Sources,
    cache: &Cache,
    (image, kernel): (&str, &str),
    progress: &dyn Progress,
) -> Result<Lock, BuildError> {
    let recipe = &loaded.recipe;
    let (wanted, leave_out) = wanted(loaded, kernel);
    let tools = tools::packages(recipe);
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
    let lists = archive::Wanted {
        mirrors: &mirrors,
        suite: recipe.suite(),
        components,
        ring: &ring,
        now: sources.now,
    };
    let found = archive::lists(cache, &lists, progress)?;

    let question = format!(
        "{} {:?}",
        crate::layer::this_program(),
        (image, &wanted, &leave_out, &tools, recipe.scripts, &found.archives, &found.hashes)
    );
    let kept = cache.directory().join("locks").join(&hex::encode(Sha256::digest(question))[..32]);
    if let Some(lock) = std::fs::read(&kept).ok().and_then(|bytes| Lock::from_bytes(&bytes).ok()) {
        return Ok(lock);
    }
    let index = found.read(cache)?;
    progress.stage(Stage::Resolve, &format!("{} packages named", wanted.len()));
    let resolve = |wanted: &[String], leave_out: &[String]| {
        let chosen = resolve(&index, wanted, leave_out)
            .map_err(|why| BuildError::Unresolvable { recipe: loaded.path.clone(), why: Box::new(why) })?;
        Ok::<_, BuildError>(chosen.iter().map(Locked::of).collect::<Vec<_>>())
    };
    let packages = resolve(&wanted, &leave_out)?;
    let helpers = match recipe.scripts {
        Some(true) => {
            let (all, leave_out) = with_essentials(&index, &packages, &leave_out);
            let mut helpers = resolve(&all, &leave_out)?;
            helpers.retain(|h| packages.iter().all(|p| p.name != h.name));
            Some(helpers)
        }
        _ => None,
    };
    let tools = resolve(&tools, &[])?;
    let (schema, image) = (lock::SCHEMA, image.to_owned());
    let lock = Lock { schema, image, wanted, leave_out, archives: found.archives, packages, tools, helpers };
    scratch::write_whole(&kept, &lock.to_bytes(), 0o644, false).at("writing", &kept)?;
    Ok(lock)
}

/// What maintainer scripts may count on: the image's own packages, the essential ones, and what was left out of the image. What
/// the kernel's package would do is the builder's work, whatever the recipe says.
fn with_essentials(index: &Index, packages: &[Locked], leave_out: &[String]) -> (Vec<String>, Vec<String>) {
    let mut all: Vec<String> = packages.iter().map(|p| p.name.clone()).collect();
    all.extend(index.essential().filter(|name| packages.iter().all(|p| p.name != *name)).map(str::to_owned));
    all.sort();
    let kernels = |name: &&String| KERNELS_HELPERS.contains(&name.as_str());
    (all, leave_out.iter().filter(kernels).cloned().collect())
}
