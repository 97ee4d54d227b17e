//! The proof that an image is what its inputs make: built again from nothing but the lock, byte by byte the same.

use labshift_model::{
    manifest::{self, Manifest},
    paths,
};
use serde::Serialize;

use crate::{
    build::{BuildOptions, Job, entries},
    contents::{CONTENTS, Contents},
    error::{At, BuildError},
    inspect::{Inspected, inspect},
    look,
    progress::Progress,
    store::Store,
};

/// A file of a generation that came out differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Differs {
    /// Its name in the generation.
    pub file: String,
    /// What differs in it.
    pub what: Vec<String>,
}

/// Builds an image again, without any layer of an earlier build, and compares every byte with a published generation
/// (the stable one without `reference`). Empty when they are the same. Nothing is published.
pub fn rebuild(
    options: &BuildOptions,
    reference: &str,
    progress: &dyn Progress,
) -> Result<(Inspected, Vec<Differs>), BuildError> {
    let store = Store::existing(&options.store)?;
    let (name, generation) = store.find(reference)?;
    let published = inspect(&store, &name, Some(&generation))?;
    let work = store.workplace(&name)?;
    // The lock that the image was built with, unless another is asked for.
    let own = published.directory.join(crate::build::LOCK);
    let locked = Some(options.locked.clone().unwrap_or(own));
    let job = Job::new(&BuildOptions { locked, ..options.clone() }, &store, progress)?;
    if job.name() != name {
        let reason = format!("it makes image \"{}\", not \"{name}\"", job.name());
        return Err(BuildError::Unusable { path: options.recipe.clone(), reason });
    }
    let rebuilt = job.assemble(true, work.path(), progress)?;
    let found = entries(work.path(), &[])?;
    let mut differs = vec![];
    let mut files: Vec<&String> = found.keys().chain(published.manifest.files.keys()).collect();
    files.sort();
    files.dedup();
    for file in files {
        let what = match (published.manifest.files.get(file), found.get(file)) {
            (Some(a), Some(b)) if a == b => continue,
            (None, _) => vec!["the published image does not have it".to_owned()],
            (_, None) => vec!["only the published image has it".to_owned()],
            (Some(a), Some(b)) if file == paths::ROOT => {
                let path = work.path().join(CONTENTS);
                let contents = Contents::from_bytes(&std::fs::read(&path).at("reading", &path)?);
                let inside = inside(&published, contents.as_ref().ok());
                if inside.is_empty() { vec![sizes(a.size, b.size)] } else { inside }
            }
            (Some(a), Some(b)) => vec![sizes(a.size, b.size)],
        };
        differs.push(Differs { file: file.clone(), what });
    }
    if manifest::generation_of(&rebuilt.manifest.to_bytes()) != published.generation && differs.is_empty() {
        differs.push(Differs {
            file: paths::MANIFEST.to_owned(),
            what: manifest_fields(&published.manifest, &rebuilt.manifest),
        });
    }
    Ok((published, differs))
}

fn sizes(before: u64, after: u64) -> String {
    match before == after {
        true => format!("other bytes ({before} of them)"),
        false => format!("{before} bytes published, {after} rebuilt"),
    }
}

/// Which paths of the root differ.
fn inside(published: &Inspected, rebuilt: Option<&Contents>) -> Vec<String> {
    let (Some(before), Some(after)) = (&published.contents, rebuilt) else { return vec![] };
    let changes = look::file_changes(before, after);
    changes
        .iter()
        .map(|c| match (c.before, c.after) {
            (None, _) => format!("/{}: only in the rebuilt root", c.path),
            (_, None) => format!("/{}: only in the published root", c.path),
            _ => format!("/{}: {} differs", c.path, c.what.join(", ")),
        })
        .collect()
}

fn manifest_fields(before: &Manifest, after: &Manifest) -> Vec<String> {
    let object =
        |m: &Manifest| serde_json::to_value(m).ok().and_then(|v| v.as_object().cloned()).unwrap_or_default();
    let (a, b) = (object(before), object(after));
    a.keys()
        .chain(b.keys())
        .filter(|k| a.get(*k) != b.get(*k))
        .map(|k| format!("field {k} differs"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build,
        progress::Silent,
        world::{RECIPE, World},
    };

    #[test]
    fn the_differing_file_is_named() {
        let world = World::new();
        let built = build(&world.options(), &Silent).unwrap();
        let (published, differs) = rebuild(&world.options(), "tiny", &Silent).unwrap();
        assert_eq!((published.generation, differs), (built.generation, vec![]));

        world.recipe(&RECIPE.replace("\"hello\"", "\"hellO\"\nmode = \"0600\""));
        let (_, differs) = rebuild(&world.options(), "tiny", &Silent).unwrap();
        let root = differs.iter().find(|d| d.file == paths::ROOT).unwrap();
        assert_eq!(root.what, ["/etc/motd: content, mode differs"]);

        world.recipe(&RECIPE.replace("[kernel]", "[kernel]\narguments = [\"quiet\"]"));
        let (_, differs) = rebuild(&world.options(), "tiny", &Silent).unwrap();
        // Two of them only name other lines of the recipe.
        let files: Vec<_> = differs.iter().map(|d| d.file.as_str()).collect();
        assert_eq!(files, ["contents.json", "provenance.intoto.json", "sbom.spdx.json", "uki.efi"]);
        world.recipe(&RECIPE.replace("name = \"tiny\"", "name = \"other\""));
        assert!(rebuild(&world.options(), "tiny", &Silent).unwrap_err().to_string().contains("\"other\""));
    }
}
