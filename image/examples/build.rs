//! Builds one image: the library's way in for other rooms, and for measuring.
//!
//!     cargo run --release -p labshift-image --example build -- recipes/lab.toml -o STORE --programs DIR
#![allow(clippy::disallowed_methods, reason = "the edge of a program reads the clock")]

use std::{path::PathBuf, time::Instant};

use anyhow::Context;
use clap::Parser;
use labshift_image::{BuildOptions, Progress, Sources, Stage, build};

/// Builds one image.
#[derive(Parser)]
struct Arguments {
    /// Recipe file.
    recipe: PathBuf,
    /// Image store.
    #[arg(short = 'o', long)]
    store: PathBuf,
    /// Directory of labshift's programs.
    #[arg(long, default_value = "target/release/programs")]
    programs: PathBuf,
    /// Download cache.
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Packages of this lock.
    #[arg(long)]
    locked: Option<PathBuf>,
    /// Mirror.
    #[arg(long)]
    mirror: Vec<String>,
}

struct Lines(Instant);

impl Progress for Lines {
    fn stage(&self, stage: Stage, detail: &str) {
        eprintln!("[{:7.2}] {stage}: {detail}", self.0.elapsed().as_secs_f64());
    }
    fn bytes(&self, _: Stage, _: u64, _: u64) {}
    fn warning(&self, text: &str) {
        eprintln!("[{:7.2}] warning: {text}", self.0.elapsed().as_secs_f64());
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let home = std::env::var_os("HOME").map(PathBuf::from).context("finding the home directory")?;
    let options = BuildOptions {
        recipe: arguments.recipe,
        store: arguments.store,
        programs: arguments.programs,
        locked: arguments.locked,
        sources: Sources {
            mirrors: arguments.mirror,
            keyring: None,
            cache: arguments.cache.unwrap_or_else(|| home.join(".cache/labshift")),
            apt: "/etc/apt".into(),
            now: std::time::SystemTime::now().try_into()?,
        },
    };
    let built = build(&options, &Lines(Instant::now()))?;
    let size = |name: &str| built.manifest.files.get(name).map_or(0, |f| f.size >> 10);
    println!("{} {} ({:?})", built.name, built.generation, built.published);
    println!(
        "{} packages, root {} MiB -> {} KiB, initrd {} KiB, kernel {} KiB",
        built.packages,
        built.root_bytes >> 20,
        size("root.erofs"),
        size("initrd.img"),
        size("vmlinuz")
    );
    println!("{}", built.directory.display());
    Ok(())
}
