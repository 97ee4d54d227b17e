//! Looking at images: list, inspect, why, diff.

use std::path::Path;

use anyhow::{Context, Result, bail};
use labshift_image::{
    Inspected, Store,
    contents::Contents,
    look::{self, Branch, Difference, Sides},
};
use labshift_model::{
    manifest::{Manifest, short},
    paths,
};
use serde_json::json;

use super::{existing, mebibytes, refused};
use crate::{args::ImageInspect, exit::Refusal, table::table};

/// `image list`.
pub fn list(store: &Path, json: bool) -> Result<()> {
    let store = existing(store)?;
    let mut rows = vec![];
    let mut found = vec![];
    for name in store.images() {
        let channels = store.channels(&name);
        for generation in store.generations(&name) {
            let file = store.generation(&name, &generation).join(paths::MANIFEST);
            let bytes = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            let manifest =
                Manifest::from_bytes(&bytes).with_context(|| format!("reading {}", file.display()))?;
            let size: u64 = manifest.files.values().map(|f| f.size).sum();
            let of = |(channel, g): (&String, &String)| (*g == generation).then(|| channel.clone());
            let here: Vec<String> = channels.iter().filter_map(of).collect();
            rows.push(vec![
                name.clone(),
                short(&generation).to_owned(),
                here.join(" "),
                mebibytes(size),
                manifest.kernel_release,
            ]);
            found.push(json!({ "image": name, "generation": generation, "channels": here, "bytes": size }));
        }
    }
    if json {
        return crate::print_json(&found);
    }
    print!("{}", table(&["image", "generation", "channel", "size", "kernel"], &rows));
    Ok(())
}

/// Opens and verifies what `NAME`, `NAME@CHANNEL` or `NAME@GENERATION` means.
fn open(store: &Store, reference: &str) -> Result<(String, Inspected)> {
    let (name, generation) = store.find(reference).map_err(refused)?;
    let image = labshift_image::inspect(store, &name, Some(&generation)).map_err(refused)?;
    Ok((name, image))
}

fn contents<'i>(reference: &str, image: &'i Inspected) -> Result<&'i Contents> {
    image.contents.as_ref().with_context(|| {
        format!("{reference} was built by an older labshift that did not list its files; build it again")
    })
}

/// `image inspect`.
pub fn inspect(arguments: &ImageInspect, json: bool) -> Result<()> {
    let store = existing(&arguments.store)?;
    let (name, image) = open(&store, &arguments.image)?;
    let manifest = &image.manifest;
    let least = arguments.least.saturating_mul(1 << 10);
    let tree = image.contents.as_ref().map(|c| look::sizes(c, arguments.depth, least));
    let origins = image.contents.as_ref().map(look::by_origin).unwrap_or_default();
    if json {
        let origins: Vec<_> = origins
            .iter()
            .map(|(origin, bytes, files)| json!({ "origin": origin, "bytes": bytes, "files": files }))
            .collect();
        return crate::print_json(&json!({
            "image": name, "generation": image.generation, "channels": image.channels,
            "signed_by": image.signature.key, "signed": image.signature.signed,
            "expires": image.signature.expires, "directory": image.directory, "manifest": manifest,
            "packages": image.lock.packages, "scripts": image.scripts, "tree": tree, "origins": origins,
        }));
    }
    let channels =
        if image.channels.is_empty() { "no channel".to_owned() } else { image.channels.join(", ") };
    println!("{name}@{} · {} · {channels}", short(&image.generation), image.generation);
    println!("kernel     {}", manifest.kernel_release);
    println!("arguments  {}", manifest.kernel_arguments);
    println!("root hash  {}", manifest.root.root_hash);
    println!("signed by  {} · every file verified", image.signature.key);
    let end = image.signature.expires.map_or_else(|| "for ever".to_owned(), |t| format!("until {t}"));
    println!("signed at  {} · good {end}\n", image.signature.signed);
    let rows: Vec<_> = manifest
        .files
        .iter()
        .map(|(file, entry)| vec![file.clone(), mebibytes(entry.size), entry.sha256.clone()])
        .collect();
    println!("{}", table(&["file", "size", "sha256"], &rows));
    if !manifest.services.is_empty() {
        let row =
            |s: &labshift_model::service::Service| vec![s.name.clone(), s.after.join(" "), s.exec.join(" ")];
        let rows: Vec<_> = manifest.services.iter().map(row).collect();
        println!("{}", table(&["service", "after", "runs"], &rows));
    }
    if let Some(report) = &image.scripts {
        println!(
            "{} maintainer scripts ran, all with exit status 0: that two builds are the same is not labshift's promise alone",
            report.ran.len()
        );
        let rows: Vec<_> = report.ran.iter().map(script_row).collect();
        println!("{}", table(&["script", "of", "version", "changed", "removed", "paths"], &rows));
    }
    if arguments.packages {
        let row = |(origin, bytes, files): &(String, u64, u64)| {
            let version = image.lock.packages.iter().find(|p| p.name == *origin).map(|p| p.version.clone());
            vec![origin.clone(), version.unwrap_or_default(), mebibytes(*bytes), files.to_string()]
        };
        let rows: Vec<_> = origins.iter().map(row).collect();
        println!("{}", table(&["from", "version", "size", "files"], &rows));
    }
    if let Some(tree) = tree {
        println!("where the megabytes are (before packing; from {}):", mebibytes(least));
        print!("{}", drawn(&tree));
    }
    Ok(())
}

/// A maintainer script, with the first of the paths that it changed.
fn script_row(ran: &labshift_image::script_report::Ran) -> Vec<String> {
    const SHOWN: usize = 3;
    let paths: Vec<&String> = ran.changed.iter().chain(&ran.removed).collect();
    let mut shown: Vec<String> = paths.iter().take(SHOWN).map(|p| format!("/{p}")).collect();
    if paths.len() > SHOWN {
        shown.push("…".to_owned());
    }
    let of = if ran.package.is_empty() { "several".to_owned() } else { ran.package.clone() };
    let (changed, removed) = (ran.changed.len().to_string(), ran.removed.len().to_string());
    vec![ran.script.clone(), of, ran.version.clone(), changed, removed, shown.join(" ")]
}

/// A tree with lines.
fn drawn(root: &Branch) -> String {
    fn draw(branch: &Branch, before: &str, text: &mut String) {
        for (i, child) in branch.children.iter().enumerate() {
            let last = i + 1 == branch.children.len();
            let (here, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            *text += &format!("{:>10}  {before}{here}{}\n", mebibytes(child.bytes), child.name);
            draw(child, &format!("{before}{below}"), text);
        }
    }
    let mut text = format!("{:>10}  / ({} files)\n", mebibytes(root.bytes), root.files);
    draw(root, "", &mut text);
    text
}

/// `image why`.
pub fn why(reference: &str, what: &str, store: &Path, json: bool) -> Result<()> {
    let store = existing(store)?;
    let (name, image) = open(&store, reference)?;
    let why = match look::why(contents(reference, &image)?, &image.lock, what) {
        Ok(why) => why,
        Err(near) => {
            let hint = near.map(|n| format!("; did you mean \"{n}\"?")).unwrap_or_default();
            return Err(
                Refusal::NotFound(format!("image {name} has no file or package \"{what}\"{hint}")).into()
            );
        }
    };
    if json {
        return crate::print_json(&why);
    }
    if let Some(entry) = &why.entry {
        let target = if entry.target.is_empty() { String::new() } else { format!(" -> {}", entry.target) };
        println!(
            "/{}{target} · mode {} · owner {}:{} · {} bytes",
            entry.path, entry.mode, entry.uid, entry.gid, entry.size
        );
    }
    let mut steps = why.packages.iter();
    if let Some(first) = steps.next() {
        println!("  package {first}");
    }
    steps.for_each(|parent| println!("  needed by {parent}"));
    if let Some(program) = &why.program {
        println!("  program {program} of labshift");
    }
    match why.line.as_str() {
        "" if why.packages.is_empty() && why.program.is_none() => {
            println!("  made by labshift for every image")
        }
        "" => {}
        line => println!("  named in {line}"),
    }
    Ok(())
}

/// `image diff`.
pub fn diff(before: &str, after: &str, store: &Path, json: bool) -> Result<()> {
    let store = existing(store)?;
    let ((_, a), (_, b)) = (open(&store, before)?, open(&store, after)?);
    contents(before, &a)?;
    contents(after, &b)?;
    let (Some(old), Some(new)) = (a.side(), b.side()) else { bail!("comparing {before} and {after}") };
    let difference = look::difference(old, new);
    if json {
        return crate::print_json(&difference);
    }
    print!("{}", told(&difference));
    Ok(())
}

fn told(d: &Difference) -> String {
    let mut text = String::new();
    let mut part = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text += &format!("{title}\n");
            lines.iter().for_each(|line| text += &format!("  {line}\n"));
        }
    };
    fn sides<T: std::fmt::Display + Clone + PartialEq>(s: &Sides<T>) -> Vec<String> {
        let removed = s.removed.iter().map(|x| format!("- {x}"));
        removed.chain(s.added.iter().map(|x| format!("+ {x}"))).collect()
    }
    part("packages", d.packages.iter().map(ToString::to_string).collect());
    part("kernel", d.kernel.iter().map(|(a, b)| format!("{a} -> {b}")).collect());
    part("kernel arguments", sides(&d.arguments));
    part("services", sides(&d.services));
    part("modules", sides(&d.modules));
    part("ports", sides(&d.ports));
    let file = |f: &look::FileChange| match (f.before, f.after) {
        (None, Some(size)) => format!("+ /{} ({size} bytes)", f.path),
        (Some(size), None) => format!("- /{} ({size} bytes)", f.path),
        (Some(a), Some(b)) if a != b => format!("~ /{} ({}; {a} -> {b} bytes)", f.path, f.what.join(", ")),
        _ => format!("~ /{} ({})", f.path, f.what.join(", ")),
    };
    part("files", d.files.iter().map(file).collect());
    let size = |s: Option<u64>| s.map_or_else(|| "absent".to_owned(), mebibytes);
    part(
        "sizes",
        d.outputs.iter().map(|(name, a, b)| format!("{name} {} -> {}", size(*a), size(*b))).collect(),
    );
    if text.is_empty() {
        text = "they are the same\n".to_owned();
    }
    text
}
