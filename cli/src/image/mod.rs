//! `labshift image`: locks and builds. What looks at images is in `look`, what moves them in `keep`.

mod keep;
mod look;
mod push;
mod run;
mod sign;
mod watch;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use labshift_image::{
    BuildError, BuildOptions, Built, Published, Store,
    channel::STABLE,
    lock::{Lock, changes},
};
use labshift_model::{manifest::short, paths};
use serde_json::json;

use crate::{
    args::{Image, ImageBuild, ImageLock, Sources},
    exit::Refusal,
    table::duration,
};
use watch::Watcher;

/// Carries out an image command.
pub fn run(command: Image, json: bool) -> Result<()> {
    match command {
        Image::Build(b) => build(&b, json),
        Image::Lock(l) => lock(&l, json),
        Image::List { store } => look::list(&store, json),
        Image::Inspect(i) => look::inspect(&i, json),
        Image::Why { image, what, store } => look::why(&image, &what, &store, json),
        Image::Diff { before, after, store } => look::diff(&before, &after, &store, json),
        Image::Verify(v) => keep::verify(&v, json),
        Image::Publish { image, channel, store } => keep::publish(&image, &channel, &store, json),
        Image::Rollback { image, channel, store } => keep::rollback(&image, &channel, &store, json),
        Image::Push(p) => push::push(&p, json),
        Image::Trust(t) => push::trust(&t),
        Image::Sign(s) => sign::sign(&s, json),
        Image::Gc(g) => keep::gc(&g, json),
        Image::Run(r) => run::run(&r),
        Image::Reference => {
            print!("{}", labshift_model::recipe_reference::page());
            Ok(())
        }
    }
}

fn lock(arguments: &ImageLock, json: bool) -> Result<()> {
    let output = arguments.output.clone().unwrap_or_else(|| arguments.recipe.with_extension("lock"));
    let before = match fs::read(&output) {
        Ok(bytes) => Some(Lock::from_bytes(&bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(e).with_context(|| format!("reading {}", output.display())),
    };
    // What can't be read is made anew; what was asked for stays as it is.
    if let (Some(Ok(lock)), false) = (&before, arguments.update)
        && labshift_image::lock_fits(&arguments.recipe, lock).map_err(refused)?
    {
        if json {
            return crate::print_json(
                &json!({ "lock": output, "packages": lock.packages.len(), "changes": [] }),
            );
        }
        println!(
            "{}: {} packages, as before; --update takes newer versions",
            output.display(),
            lock.packages.len()
        );
        return Ok(());
    }
    let watcher = Watcher::new(json);
    let lock =
        labshift_image::lock(&arguments.recipe, &sources(&arguments.sources)?, &watcher).map_err(refused)?;
    watcher.end();
    labshift_image::write_whole(&output, &lock.to_bytes())
        .with_context(|| format!("writing {}", output.display()))?;
    let changes = before.and_then(Result::ok).map(|before| changes(&before, &lock));
    if json {
        let changes = changes.unwrap_or_default();
        println!(
            "{}",
            json!({ "event": "locked", "lock": output, "packages": lock.packages.len(), "changes": changes })
        );
        return Ok(());
    }
    println!("{}: {} packages", output.display(), lock.packages.len());
    match changes.as_deref() {
        None => {}
        Some([]) => println!("nothing changed"),
        Some(changes) => changes.iter().for_each(|c| println!("  {c}")),
    }
    Ok(())
}

fn build(arguments: &ImageBuild, json: bool) -> Result<()> {
    for recipe in &arguments.recipe {
        let options = BuildOptions {
            recipe: recipe.clone(),
            store: arguments.store.clone(),
            programs: programs(arguments.programs.as_deref())?,
            locked: arguments.locked.clone(),
            channel: arguments.channel.clone(),
            sources: sources(&arguments.sources)?,
        };
        build_one(&options, json)?;
    }
    Ok(())
}

/// Builds and publishes images, one after the other; prints a line for each.
pub fn build_all(recipes: &[PathBuf], store: &Path, from: &Sources, json: bool) -> Result<()> {
    for recipe in recipes {
        let options = BuildOptions {
            recipe: recipe.clone(),
            store: store.to_owned(),
            programs: programs(None)?,
            locked: None,
            channel: STABLE.to_owned(),
            sources: sources(from)?,
        };
        build_one(&options, json)?;
    }
    Ok(())
}

fn build_one(options: &BuildOptions, json: bool) -> Result<()> {
    let start = Instant::now();
    let watcher = Watcher::new(json);
    let built = labshift_image::build(options, &watcher).map_err(refused)?;
    watcher.end();
    let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    tell(&built, took, json);
    Ok(())
}

fn tell(built: &Built, took: u64, json: bool) {
    let root = built.manifest.files.get(paths::ROOT).map_or(0, |f| f.size);
    let new = built.published == Published::New;
    if json {
        println!(
            "{}",
            json!({ "event": "built", "image": built.name, "generation": built.generation, "new": new,
                    "directory": built.directory, "packages": built.packages, "root_bytes": root, "took_ms": took })
        );
        return;
    }
    println!(
        "{}@{} {} · {} packages, root {} · {}",
        built.name,
        short(&built.generation),
        if new { "built" } else { "unchanged" },
        built.packages,
        mebibytes(root),
        duration(took)
    );
}

#[allow(clippy::disallowed_methods, reason = "the command line is the edge of the program")]
fn sources(from: &Sources) -> Result<labshift_image::Sources> {
    let cache = match &from.cache {
        Some(cache) => cache.clone(),
        None => {
            let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
            let base =
                std::env::var_os("XDG_CACHE_HOME").filter(|d| !d.is_empty()).map(PathBuf::from).or_else(home);
            base.context("finding a cache directory: neither HOME nor --cache is set")?.join("labshift")
        }
    };
    Ok(labshift_image::Sources {
        mirrors: from.mirror.clone(),
        keyring: from.keyring.clone(),
        cache,
        apt: PathBuf::from("/etc/apt"),
        now: Timestamp::now(),
    })
}

/// Where labshift's own programs are: beside this one, unless they were named.
fn programs(named: Option<&Path>) -> Result<PathBuf> {
    match named {
        Some(path) => Ok(path.to_owned()),
        None => Ok(std::env::current_exe().context("finding this program")?.with_file_name("programs")),
    }
}

/// Gives what is not there its exit code.
fn refused(error: BuildError) -> anyhow::Error {
    match error {
        BuildError::NoRecipe { .. } | BuildError::NoImage { .. } | BuildError::NoStore { .. } => {
            Refusal::NotFound(error.to_string()).into()
        }
        BuildError::Recipe(faults) => faults.into(),
        // It prints its cause within its own sentence, so the cause is not in its chain.
        BuildError::Io { ref why, .. } if why.kind() == std::io::ErrorKind::NotFound => {
            Refusal::NotFound(error.to_string()).into()
        }
        BuildError::Io { ref why, .. } if why.kind() == std::io::ErrorKind::PermissionDenied => {
            Refusal::NoPermission(error.to_string()).into()
        }
        other => other.into(),
    }
}

/// Opens a store that is there.
fn existing(store: &Path) -> Result<Store> {
    Store::existing(store).map_err(refused)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
