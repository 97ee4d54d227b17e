//! Old generations are removed: never one that a channel points to or a node uses, and of the others the newest stay.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Serialize;

use crate::{
    error::{At, BuildError},
    store::Store,
};

/// A generation and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fate {
    /// Image.
    pub image: String,
    /// Full generation.
    pub generation: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Why it stays; absent when it goes.
    pub kept: Option<String>,
}

/// Why generations are in use, by image and generation. A generation `*` means all of an image.
pub type InUse = BTreeMap<(String, String), String>;

/// What would become of every generation, by image, the newest first.
pub fn fates(store: &Store, keep: usize, in_use: &InUse) -> Vec<Fate> {
    let mut fates = vec![];
    for image in store.images() {
        let mut channels: BTreeMap<String, String> = BTreeMap::new();
        for (channel, generation) in store.channels(&image) {
            channels.insert(generation, format!("channel {channel}"));
        }
        let mut dated: Vec<_> = store
            .generations(&image)
            .into_iter()
            .map(|g| (fs::metadata(store.generation(&image, &g)).and_then(|m| m.modified()).ok(), g))
            .collect();
        dated.sort();
        for (age, (_, generation)) in dated.into_iter().rev().enumerate() {
            let used = |g: &str| in_use.get(&(image.clone(), g.to_owned())).cloned();
            let newest = || (age < keep).then(|| format!("number {} of the newest {keep}", age + 1));
            let kept = channels
                .get(&generation)
                .cloned()
                .or_else(|| used(&generation))
                .or_else(|| used("*"))
                .or_else(newest);
            let bytes = size(&store.generation(&image, &generation));
            fates.push(Fate { image: image.clone(), generation, bytes, kept });
        }
    }
    fates
}

/// Removes what goes and says what became of all. A generation vanishes by one rename.
pub fn collect(store: &Store, keep: usize, in_use: &InUse) -> Result<Vec<Fate>, BuildError> {
    // No build publishes what we are about to remove.
    let _held = store.hold()?;
    let fates = fates(store, keep, in_use);
    for gone in fates.iter().filter(|f| f.kept.is_none()) {
        let place = store.workplace(&gone.image)?;
        let path = store.generation(&gone.image, &gone.generation);
        fs::rename(&path, place.path()).at("removing", &path)?;
    }
    Ok(fates)
}

fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).map(|e| e.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries.iter().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::channel::STABLE;

    #[test]
    fn what_is_used_stays() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let names: Vec<String> = ["11", "22", "33", "44", "55"].map(|g| g.repeat(32)).to_vec();
        for (i, generation) in names.iter().enumerate() {
            let path = store.generation("lab", generation);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(labshift_model::paths::MANIFEST), "{}").unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000 + i as u64);
            fs::File::open(&path).unwrap().set_modified(time).unwrap();
        }
        store.set_channel("lab", STABLE, &names[1], Timestamp::UNIX_EPOCH).unwrap();
        store.set_channel("lab", "canary", &names[4], Timestamp::UNIX_EPOCH).unwrap();
        let used = InUse::from([(("lab".to_owned(), names[0].clone()), "node ws1".to_owned())]);
        let fates = collect(&store, 1, &used).unwrap();
        let kept = |g: &str| fates.iter().find(|f| f.generation == g).unwrap().kept.as_deref();
        assert_eq!(kept(&names[0]), Some("node ws1"));
        assert_eq!(kept(&names[1]), Some("channel stable"));
        assert_eq!(kept(&names[2]), None);
        assert_eq!(kept(&names[3]), None);
        assert_eq!(kept(&names[4]), Some("channel canary"));
        assert_eq!(store.generations("lab"), [names[0].clone(), names[1].clone(), names[4].clone()]);
        let all = InUse::from([(("lab".to_owned(), "*".to_owned()), "guest primes is saved".to_owned())]);
        assert!(super::fates(&store, 0, &all).iter().all(|f| f.kept.is_some()));
    }
}
