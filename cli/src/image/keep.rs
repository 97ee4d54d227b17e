//! Moving and keeping images: verify, publish, rollback, gc.

use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use labshift_fleet::client::Client;
use labshift_image::{
    BuildOptions,
    channel::STABLE,
    collect::{self, InUse},
    verify,
};
use labshift_model::{
    manifest::{ImageKind, Manifest, short},
    paths,
    site::Site,
};
use serde_json::json;

use super::{existing, mebibytes, programs, refused, sources, watch::Watcher};
use crate::{
    args::{ImageGc, ImageVerify},
    exit::Refusal,
    table::table,
};

/// `image verify`.
pub fn verify(arguments: &ImageVerify, json: bool) -> Result<()> {
    let store = existing(&arguments.store)?;
    let Some(recipe) = &arguments.rebuild else {
        let (name, generation) = store.find(&arguments.image).map_err(refused)?;
        let image = labshift_image::inspect(&store, &name, Some(&generation)).map_err(refused)?;
        if json {
            return crate::print_json(&json!({ "image": name, "generation": generation, "verified": true }));
        }
        let files = image.manifest.files.len();
        println!("{name}@{}: signature and {files} files are as they were built", short(&generation));
        return Ok(());
    };
    let watcher = Watcher::new(json);
    let options = BuildOptions {
        recipe: recipe.clone(),
        store: arguments.store.clone(),
        programs: programs(arguments.programs.as_deref())?,
        locked: arguments.locked.clone(),
        channel: STABLE.to_owned(),
        sources: sources(&arguments.sources)?,
    };
    let (image, differs) = verify::rebuild(&options, &arguments.image, &watcher).map_err(refused)?;
    watcher.end();
    let shown = format!("{}@{}", image.manifest.name, short(&image.generation));
    if json {
        println!(
            "{}",
            json!({ "event": "verified", "image": image.manifest.name, "generation": image.generation,
                    "identical": differs.is_empty(), "differs": differs })
        );
    } else if differs.is_empty() {
        println!("{shown}: built again, all {} files are identical", image.manifest.files.len());
    } else {
        for differs in &differs {
            println!("{}:", differs.file);
            differs.what.iter().take(50).for_each(|line| println!("  {line}"));
            if differs.what.len() > 50 {
                println!("  and {} more", differs.what.len() - 50);
            }
        }
    }
    match differs.len() {
        0 => Ok(()),
        n => anyhow::bail!("{shown} was built again and {n} of its files came out differently"),
    }
}

/// `image publish`.
pub fn publish(reference: &str, channel: &str, store: &Path, json: bool) -> Result<()> {
    let store = existing(store)?;
    let (name, generation) = store.find(reference).map_err(refused)?;
    // What is damaged must not be served.
    labshift_image::inspect(&store, &name, Some(&generation)).map_err(refused)?;
    store.sign_anew(&name, &generation, Timestamp::now()).map_err(refused)?;
    let before = store.channel(&name, channel).ok();
    store.set_channel(&name, channel, &generation, Timestamp::now()).map_err(refused)?;
    moved(&name, channel, before.as_deref(), &generation, json)
}

/// `image rollback`.
pub fn rollback(name: &str, channel: &str, store: &Path, json: bool) -> Result<()> {
    let store = existing(store)?;
    let before = store.channel(name, channel).map_err(refused)?;
    let generation = store.rollback(name, channel).map_err(refused)?;
    // The admin wants it again, now: that is what its signature says from here on.
    store.sign_anew(name, &generation, Timestamp::now()).map_err(refused)?;
    moved(name, channel, Some(&before), &generation, json)
}

fn moved(name: &str, channel: &str, before: Option<&str>, after: &str, json: bool) -> Result<()> {
    if json {
        return crate::print_json(
            &json!({ "image": name, "channel": channel, "before": before, "generation": after }),
        );
    }
    match before {
        Some(before) if before == after => println!("{name}: {channel} is {} already", short(after)),
        Some(before) => println!("{name}: {channel} {} -> {}", short(before), short(after)),
        None => println!("{name}: {channel} is now {}", short(after)),
    }
    Ok(())
}

/// `image gc`.
pub fn gc(arguments: &ImageGc, json: bool) -> Result<()> {
    let store = existing(&arguments.store)?;
    let mut in_use = InUse::new();
    if let Some(file) = &arguments.site {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let site = Site::parse(&file.display().to_string(), &text)?;
        for room in &site.rooms {
            if let Some(generation) = &room.generation {
                in_use.insert(
                    (room.image.clone(), generation.clone()),
                    format!("room {} is pinned to it", room.name),
                );
            }
        }
    }
    if !arguments.no_server {
        let server = &arguments.server;
        let status = Client::new(&server.server, &server.token_file).and_then(|c| c.status()).map_err(|e| {
            Refusal::Unreachable(format!(
                "asking {} which images are in use: {e}; with --no-server nobody is asked (only when no workstation runs from this store)",
                server.server
            ))
        })?;
        for used in status.in_use {
            in_use.insert((used.image, used.generation), used.why);
        }
        // A saved guest goes on with the root it was started with; which one that was, only it knows.
        if let Some(guest) = status.guests.iter().find(|g| g.saved.is_some() || g.node.is_some()) {
            for name in store.images() {
                if is_guest(&store, &name) {
                    in_use.insert((name, "*".to_owned()), format!("guest {} may need it", guest.name));
                }
            }
        }
    }
    let fates = if arguments.dry_run {
        collect::fates(&store, arguments.keep, &in_use)
    } else {
        collect::collect(&store, arguments.keep, &in_use).map_err(refused)?
    };
    if json {
        return crate::print_json(&fates);
    }
    let word = if arguments.dry_run { "would go" } else { "removed" };
    let rows: Vec<_> = fates
        .iter()
        .map(|f| {
            let fate = f.kept.as_ref().map_or_else(|| word.to_owned(), |why| format!("stays: {why}"));
            vec![f.image.clone(), short(&f.generation).to_owned(), mebibytes(f.bytes), fate]
        })
        .collect();
    print!("{}", table(&["image", "generation", "size", "fate"], &rows));
    let gone: Vec<_> = fates.iter().filter(|f| f.kept.is_none()).collect();
    println!("{word}: {} generations, {}", gone.len(), mebibytes(gone.iter().map(|f| f.bytes).sum()));
    Ok(())
}

fn is_guest(store: &labshift_image::Store, name: &str) -> bool {
    store.generations(name).iter().any(|generation| {
        let manifest = std::fs::read(store.generation(name, generation).join(paths::MANIFEST));
        let manifest = manifest.ok().and_then(|bytes| Manifest::from_bytes(&bytes).ok());
        manifest.is_none_or(|m| m.kind == ImageKind::Guest)
    })
}
