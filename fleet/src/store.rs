//! The image store, read: `<store>/channels/NAME` names the generation, `<store>/images/NAME/GENERATION/` holds the
//! manifest and its signature. Files of images are served by the boot plane; here is only what answers need.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use labshift_model::{
    api::ImageView,
    manifest::{self, Signature},
    paths,
    site::Site,
};

/// Largest manifest that is read, in bytes.
const MANIFEST_LIMIT: u64 = 16 << 20;

/// A signed manifest as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The manifest's exact bytes.
    pub manifest: String,
    /// Its signature.
    pub signature: Signature,
}

/// What the store holds of the images that a site names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Images {
    /// Generation of each image's stable channel, if that generation is whole.
    pub stable: BTreeMap<String, String>,
    /// Manifests by image and generation: stable and pinned ones.
    pub published: BTreeMap<(String, String), Arc<Published>>,
    /// Why an image can't be used.
    pub troubles: BTreeMap<String, String>,
}

impl Images {
    /// Reads what the site names. `known` saves reading again what can't change.
    pub fn read(store: &Path, site: &Site, known: &Images) -> Images {
        let mut images = Images::default();
        let rooms = site.rooms.iter().map(|r| (r.image.as_str(), r.generation.clone()));
        let others = site.templates.iter().map(|t| t.image.as_str()).chain(site.unknown.image());
        for (name, pinned) in rooms.chain(others.map(|name| (name, None))) {
            let found = match &pinned {
                Some(generation) => Ok(generation.clone()),
                None => channel(store, name),
            };
            let published = found.and_then(|generation| {
                let key = (name.to_owned(), generation.clone());
                match known.published.get(&key) {
                    Some(published) => Ok((key, published.clone())),
                    None => Ok((key, Arc::new(published(store, name, &generation)?))),
                }
            });
            match published {
                Ok((key, published)) => {
                    if pinned.is_none() {
                        images.stable.insert(key.0.clone(), key.1.clone());
                    }
                    images.published.insert(key, published);
                }
                Err(trouble) => {
                    images.troubles.insert(name.to_owned(), trouble);
                }
            }
        }
        images
    }

    /// For people.
    pub fn views(&self, site: &Site) -> Vec<ImageView> {
        let mut names: Vec<&str> = site.rooms.iter().map(|r| r.image.as_str()).collect();
        names.extend(site.templates.iter().map(|t| t.image.as_str()).chain(site.unknown.image()));
        names.sort_unstable();
        names.dedup();
        let view = |name: &str| ImageView {
            name: name.to_owned(),
            generation: self.stable.get(name).cloned(),
            trouble: self.troubles.get(name).cloned(),
        };
        names.into_iter().map(view).collect()
    }
}

fn channel(store: &Path, name: &str) -> Result<String, String> {
    let path = store.join("channels").join(name);
    let text = read(&path, 4096).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            format!("image \"{name}\" is not in the store; build it with `labshift image build`")
        }
        _ => format!("reading {}: {e}", path.display()),
    })?;
    let generation = text.trim();
    if generation.len() != 64 || !generation.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(format!("{} does not hold a generation; publish image \"{name}\" again", path.display()));
    }
    Ok(generation.to_owned())
}

fn published(store: &Path, name: &str, generation: &str) -> Result<Published, String> {
    let dir: PathBuf = store.join("images").join(name).join(generation);
    let get = |file: &str| {
        let path = dir.join(file);
        read(&path, MANIFEST_LIMIT).map_err(|e| format!("image \"{name}\": reading {}: {e}", path.display()))
    };
    let text = get(paths::MANIFEST)?;
    if manifest::generation_of(text.as_bytes()) != generation {
        let short = manifest::short(generation);
        return Err(format!(
            "image \"{name}\": the manifest in generation {short} was changed; build it again"
        ));
    }
    let signature = serde_json::from_str(&get(paths::SIGNATURE)?)
        .map_err(|e| format!("image \"{name}\": its signature is not readable: {e}"))?;
    Ok(Published { manifest: text, signature })
}

fn read(path: &Path, limit: u64) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(limit).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../docs/examples/site.toml");

    #[test]
    fn channels_lead_to_manifests_and_damage_is_told() {
        let site = Site::parse("site.toml", EXAMPLE).expect("good");
        let dir = tempfile::tempdir().expect("a directory");
        let none = Images::read(dir.path(), &site, &Images::default());
        assert_eq!(none.troubles.len(), 3);
        assert!(none.troubles["lab"].contains("labshift image build"));

        crate::testing::publish(dir.path(), "lab");
        let images = Images::read(dir.path(), &site, &none);
        let generation = &images.stable["lab"];
        let key = ("lab".to_owned(), generation.clone());
        assert_eq!(&manifest::generation_of(images.published[&key].manifest.as_bytes()), generation);

        fs::write(dir.path().join("images/lab").join(generation).join(paths::MANIFEST), "{}")
            .expect("written");
        let damaged = Images::read(dir.path(), &site, &Images::default());
        assert!(damaged.troubles["lab"].contains("was changed"), "{:?}", damaged.troubles);
    }
}
