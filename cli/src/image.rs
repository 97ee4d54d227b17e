//! `labshift image`: build, lock, list and inspect, with progress that fits who is watching.

use std::{
    collections::BTreeMap,
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Instant,
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use labshift_image::{BuildError, BuildOptions, Built, Progress, Published, Stage, Store};
use labshift_model::{
    manifest::{Manifest, short},
    paths,
};
use serde_json::json;

use crate::{
    args::{Image, Sources},
    exit::Refusal,
    table::{duration, table},
};

/// Carries out an image command.
pub fn run(command: Image, json: bool) -> Result<()> {
    match command {
        Image::Build(b) => {
            build_all(&b.recipe, &b.store, b.locked.as_deref(), b.programs.as_deref(), &b.sources, json)
        }
        Image::Lock(l) => {
            let watcher = Watcher::new(json);
            let lock = labshift_image::lock(&l.recipe, &sources(&l.sources)?, &watcher).map_err(refused)?;
            watcher.end();
            let output = l.output.unwrap_or_else(|| l.recipe.with_extension("lock"));
            fs::write(&output, lock.to_bytes()).with_context(|| format!("writing {}", output.display()))?;
            if json {
                return crate::print_json(&json!({ "lock": output, "packages": lock.packages.len() }));
            }
            println!("{}: {} packages", output.display(), lock.packages.len());
            Ok(())
        }
        Image::List { store } => list(&store, json),
        Image::Inspect { image, store } => inspect(&image, &store, json),
    }
}

/// Builds and publishes images, one after the other; prints a line for each.
pub fn build_all(
    recipes: &[PathBuf],
    store: &Path,
    locked: Option<&Path>,
    programs: Option<&Path>,
    from: &Sources,
    json: bool,
) -> Result<()> {
    for recipe in recipes {
        let start = Instant::now();
        let watcher = Watcher::new(json);
        let options = BuildOptions {
            recipe: recipe.clone(),
            store: store.to_owned(),
            programs: programs.map_or_else(beside_this_program, |p| Ok(p.to_owned()))?,
            locked: locked.map(Path::to_owned),
            sources: sources(from)?,
        };
        let built = labshift_image::build(&options, &watcher).map_err(refused)?;
        watcher.end();
        let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        tell(&built, took, json);
    }
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

fn beside_this_program() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding this program")?;
    Ok(program.with_file_name("programs"))
}

/// Gives what is not there its exit code.
fn refused(error: BuildError) -> anyhow::Error {
    match error {
        BuildError::NoRecipe { .. } | BuildError::NoImage { .. } => {
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

fn list(store: &Path, json: bool) -> Result<()> {
    let store = existing(store)?;
    let mut rows = vec![];
    let mut found = vec![];
    for name in store.images() {
        let stable = store.channel(&name).ok();
        for generation in store.generations(&name) {
            let manifest = read(&store, &name, &generation)?;
            let size: u64 = manifest.files.values().map(|f| f.size).sum();
            let channel = if stable.as_deref() == Some(&*generation) { "stable" } else { "" };
            rows.push(vec![
                name.clone(),
                short(&generation).to_owned(),
                channel.to_owned(),
                mebibytes(size),
                manifest.kernel_release,
            ]);
            found.push(json!({ "image": name, "generation": generation, "channel": channel, "bytes": size }));
        }
    }
    if json {
        return crate::print_json(&found);
    }
    print!("{}", table(&["image", "generation", "channel", "size", "kernel"], &rows));
    Ok(())
}

fn inspect(image: &str, store: &Path, json: bool) -> Result<()> {
    let store = existing(store)?;
    let (name, prefix) = image.split_once('@').unwrap_or((image, ""));
    let generation = if prefix.is_empty() { store.channel(name) } else { store.complete(name, prefix) }
        .map_err(refused)?;
    let manifest = read(&store, name, &generation)?;
    if json {
        return crate::print_json(&manifest);
    }
    println!("{name}@{} · {} · kernel {}", short(&generation), generation, manifest.kernel_release);
    println!("root hash  {}", manifest.root.root_hash);
    println!("arguments  {}\n", manifest.kernel_arguments);
    let rows: Vec<_> = manifest
        .files
        .iter()
        .map(|(file, entry)| vec![file.clone(), mebibytes(entry.size), entry.sha256.clone()])
        .collect();
    println!("{}", table(&["file", "size", "sha256"], &rows));
    let rows: Vec<_> =
        manifest.services.iter().map(|s| vec![s.name.clone(), s.after.join(" "), s.exec.join(" ")]).collect();
    print!("{}", table(&["service", "after", "runs"], &rows));
    Ok(())
}

/// Looking must not make a store.
fn existing(store: &Path) -> Result<Store> {
    if !store.is_dir() {
        return Err(Refusal::NotFound(format!(
            "no image store at {}; `labshift image build` makes one",
            store.display()
        ))
        .into());
    }
    Store::open(store).map_err(refused)
}

fn read(store: &Store, name: &str, generation: &str) -> Result<Manifest> {
    let file = store.generation(name, generation).join(paths::MANIFEST);
    let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    Manifest::from_bytes(&bytes).with_context(|| format!("reading {}", file.display()))
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Shows how a build goes: bars on a terminal, lines without one, JSON for programs.
struct Watcher {
    json: bool,
    bar: Option<ProgressBar>,
    /// Tenths of each stage that were told already.
    told: Mutex<BTreeMap<Stage, u64>>,
}

impl Watcher {
    fn new(json: bool) -> Self {
        let bar = (!json && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            let style =
                ProgressStyle::with_template("{prefix:>9} {bar:32} {bytes:>10}/{total_bytes:10} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Watcher { json, bar, told: Mutex::default() }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Watcher {
    fn stage(&self, stage: Stage, detail: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(stage.to_string());
                bar.set_message(detail.to_owned());
            }
            None if self.json => {
                println!("{}", json!({ "event": "stage", "stage": stage.to_string(), "detail": detail }))
            }
            None => eprintln!("  {stage}: {detail}"),
        }
    }

    fn bytes(&self, stage: Stage, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            return;
        }
        let tenth = done * 10 / total.max(1);
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.json && told.insert(stage, tenth) != Some(tenth) {
            println!(
                "{}",
                json!({ "event": "bytes", "stage": stage.to_string(), "done": done, "total": total })
            );
        }
    }

    fn warning(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("warning: {text}")),
            None if self.json => println!("{}", json!({ "event": "warning", "text": text })),
            None => eprintln!("  warning: {text}"),
        }
    }
}
