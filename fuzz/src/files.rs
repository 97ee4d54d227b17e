//! Files that came from a mirror, a store or an admin.

use jiff::Timestamp;
use labshift_image::{deb, index, lock::Lock, release};
use labshift_model::{manifest, recipe, site};

/// A package: no path leaves the image.
pub fn deb(bytes: &[u8]) {
    if let Ok(unpacked) = deb::unpack(bytes, "seed", &|_| true, &mut deb::in_memory) {
        for (path, _) in &unpacked.nodes {
            assert!(!path.starts_with('/') && path.split('/').all(|part| part != ".."), "{path}");
        }
    }
}

/// A `Packages` text.
pub fn package_index(bytes: &[u8]) {
    let mut index = index::Index::default();
    if index.add(&String::from_utf8_lossy(bytes), 0).is_ok() {
        index.finish();
        let names: Vec<String> = index.names().map(str::to_owned).collect();
        assert!(names.iter().all(|name| index.get(name).is_some()));
    }
}

/// An `InRelease` that no key of ours made is never believed.
pub fn release(bytes: &[u8]) {
    let ring = release::KeyRing::parse("ring", bytes);
    let none = release::KeyRing::parse("none", b"");
    assert!(release::verify(bytes, &none, "trixie", Timestamp::UNIX_EPOCH).is_err());
    drop(release::verify(bytes, &ring, "trixie", Timestamp::UNIX_EPOCH));
}

/// A lock: what is read can be written and read again.
pub fn lock(bytes: &[u8]) {
    if let Ok(lock) = Lock::from_bytes(bytes) {
        let again = Lock::from_bytes(&lock.to_bytes()).expect("our own lock");
        assert_eq!(again.digest(), lock.digest());
    }
}

/// A manifest behind a good signature: canonical bytes are a fixed point.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = manifest::Manifest::from_bytes(bytes) {
        let again = manifest::Manifest::from_bytes(&manifest.to_bytes()).expect("our own manifest");
        assert_eq!(again, manifest);
    }
}

/// A recipe; each fault names a place in the file.
pub fn recipe(bytes: &[u8]) {
    match recipe::Recipe::parse("seed.toml", &String::from_utf8_lossy(bytes)) {
        Ok(recipe) => drop(recipe.image()),
        Err(faults) => assert!(faults.to_string().contains("seed.toml:")),
    }
}

/// A site file; each fault names a place in the file.
pub fn site(bytes: &[u8]) {
    if let Err(faults) = site::Site::parse("seed.toml", &String::from_utf8_lossy(bytes)) {
        assert!(faults.to_string().contains("seed.toml:"));
    }
}
