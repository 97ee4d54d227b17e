//! The image store, read: `<store>/channels/NAME` names the generation, `<store>/images/NAME/GENERATION/` holds the
//! manifest and its signature. Files of images are served by the boot plane; here is only what answers need.

use std::{collections::BTreeMap, fs, io, path::Path, sync::Arc};

use labshift_model::{
    api::{BootTarget, ImageView},
    manifest::{self, Signature},
    paths,
    site::{Room, Site},
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

/// What is read besides the images that a site names.
#[derive(Debug, Clone, Default)]
pub struct Besides {
    /// What admins told machines to boot: image, and generation unless it is the stable one.
    pub told: Vec<(String, Option<String>)>,
    /// Image and generation of what nodes may go back to.
    pub good: Vec<(String, String)>,
}

impl Images {
    /// Reads what the site names, and some besides. `known` saves reading again what can't change; signatures can.
    pub fn read(store: &Path, site: &Site, besides: &Besides, known: &Images) -> Images {
        let mut images = Images::default();
        let rooms = site.rooms.iter().map(|r| (r.image.as_str(), r.generation.clone()));
        let others = site.templates.iter().map(|t| t.image.as_str()).chain(site.unknown.image());
        let told = besides.told.iter().map(|(name, pinned)| (name.as_str(), pinned.clone()));
        for (name, pinned) in rooms.chain(others.map(|name| (name, None))).chain(told) {
            let found = match &pinned {
                Some(generation) => Ok(generation.clone()),
                None => channel(store, name),
            };
            let published = found.and_then(|generation| {
                let key = (name.to_owned(), generation.clone());
                let signature = signature(store, name, &generation)?;
                match known.published.get(&key) {
                    Some(same) if same.signature == signature => Ok((key, same.clone())),
                    // Signed anew: the manifest is what it was.
                    Some(known) => {
                        let manifest = known.manifest.clone();
                        Ok((key, Arc::new(Published { manifest, signature })))
                    }
                    None => Ok((key, read_published(store, name, &generation)?)),
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
        for (name, generation) in &besides.good {
            let key = (name.clone(), generation.clone());
            let known = known.published.get(&key).or(images.published.get(&key)).cloned();
            // One that is gone from the store is nothing to go back to.
            let found = known.map_or_else(|| read_published(store, name, generation), Ok);
            images.published.extend(found.ok().map(|published| (key, published)));
        }
        images
    }

    /// Image and generation that a room's machine is to boot: the room's, unless an admin told it another.
    pub fn wanted<'a>(
        &'a self,
        room: &'a Room,
        told: Option<&'a BootTarget>,
    ) -> (&'a str, Option<&'a String>) {
        let (image, pinned) = match told {
            Some(BootTarget::Image { name, generation }) => (name, generation.as_ref()),
            _ => (&room.image, room.generation.as_ref()),
        };
        (image, pinned.or_else(|| self.stable.get(image)))
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

/// The generation of a host image that is meant by the beginning of one.
pub fn generation(store: &Path, name: &str, beginning: &str) -> Result<String, String> {
    if beginning.len() < 4 || beginning.len() > 64 || !beginning.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(format!("\"{beginning}\" is no generation: 4 to 64 hex digits"));
    }
    let entries = fs::read_dir(store.join("images").join(name))
        .map_err(|_| format!("image \"{name}\" is not in the store"))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let found: Vec<String> = names.filter(|n| n.len() == 64 && n.starts_with(beginning)).collect();
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => {
            Err(format!("image \"{name}\" has no generation {beginning}; `labshift image list` shows them"))
        }
        many => Err(format!("{} generations of image \"{name}\" begin with {beginning}", many.len())),
    }
}

/// Whether a workstation can boot this generation of an image, or its stable one.
pub fn is_bootable(store: &Path, name: &str, generation: Option<&str>) -> Result<(), String> {
    let of_channel = || channel(store, name);
    let generation = generation.map_or_else(of_channel, |generation| Ok(generation.to_owned()))?;
    let text = manifest_text(store, name, &generation)?;
    let manifest: manifest::Manifest = serde_json::from_str(&text)
        .map_err(|e| format!("image \"{name}\": its manifest is not readable: {e}"))?;
    if manifest.kind == manifest::ImageKind::Host {
        Ok(())
    } else {
        Err(format!("image \"{name}\" is a guest's; a workstation can't boot it"))
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

fn get(store: &Path, name: &str, generation: &str, file: &str) -> Result<String, String> {
    let path = store.join("images").join(name).join(generation).join(file);
    read(&path, MANIFEST_LIMIT).map_err(|e| format!("image \"{name}\": reading {}: {e}", path.display()))
}

fn read_published(store: &Path, name: &str, generation: &str) -> Result<Arc<Published>, String> {
    let signature = signature(store, name, generation)?;
    Ok(Arc::new(Published { manifest: manifest_text(store, name, generation)?, signature }))
}

fn manifest_text(store: &Path, name: &str, generation: &str) -> Result<String, String> {
    let text = get(store, name, generation, paths::MANIFEST)?;
    if manifest::generation_of(text.as_bytes()) != generation {
        let short = manifest::short(generation);
        return Err(format!(
            "image \"{name}\": the manifest in generation {short} was changed; build it again"
        ));
    }
    Ok(text)
}

fn signature(store: &Path, name: &str, generation: &str) -> Result<Signature, String> {
    serde_json::from_str(&get(store, name, generation, paths::SIGNATURE)?).map_err(|e| {
        format!("image \"{name}\": its signature is not readable: {e}; build it again with this version")
    })
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
        let none = Images::read(dir.path(), &site, &Besides::default(), &Images::default());
        assert_eq!(none.troubles.len(), 3);
        assert!(none.troubles["lab"].contains("labshift image build"));

        crate::testing::publish(dir.path(), "lab");
        let images = Images::read(dir.path(), &site, &Besides::default(), &none);
        let generation = &images.stable["lab"];
        let key_of = |generation: &String| ("lab".to_owned(), generation.clone());
        assert_eq!(
            &manifest::generation_of(images.published[&key_of(generation)].manifest.as_bytes()),
            generation
        );

        // Signed anew: the next look sees it.
        let path = dir.path().join("images/lab").join(generation).join(paths::SIGNATURE);
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let now = jiff::Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(1);
        let anew =
            manifest::sign(images.published[&key_of(generation)].manifest.as_bytes(), &key, now, Some(1));
        fs::write(&path, serde_json::to_vec(&anew).expect("JSON")).expect("written");
        let again = Images::read(dir.path(), &site, &Besides::default(), &images);
        assert_eq!(again.published[&key_of(generation)].signature, anew);
        // When its day is over, the machine is told so, and the admin what to do.
        let machine = site.machines.first().expect("a machine").clone();
        let view = crate::View::new(site.into(), again.into());
        assert!(view.boots(&machine, None, now).is_ok());
        let Err(why) = view.boots(&machine, None, now + jiff::SignedDuration::from_hours(24)) else {
            panic!("it boots a signature that is over")
        };
        assert!(why.contains("good until 1970-01-02") && why.contains("labshift image publish lab"), "{why}");
        let site = &view.site;

        fs::write(dir.path().join("images/lab").join(generation).join(paths::MANIFEST), "{}")
            .expect("written");
        let damaged = Images::read(dir.path(), site, &Besides::default(), &Images::default());
        assert!(damaged.troubles["lab"].contains("was changed"), "{:?}", damaged.troubles);
    }
}
