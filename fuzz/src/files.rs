//! Files that came from a mirror, a store or an admin.

use std::sync::LazyLock;

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use labshift_image::{
    authenticode, deb, index,
    lock::Lock,
    receive::{self, Offer, Publish},
    release,
};
use labshift_model::{manifest, recipe, site};

/// A kernel image with or without a signature for Secure Boot. Taking a signature away or putting one on changes nothing that a
/// signature covers, and no certificate of ours made one.
pub fn authenticode(bytes: &[u8]) {
    static CERTIFICATE: LazyLock<x509_cert::Certificate> = LazyLock::new(|| {
        authenticode::certificate(include_bytes!("../data/certificate.pem")).expect("our own certificate")
    });
    drop(authenticode::certificate(bytes));
    drop(authenticode::key(bytes, &CERTIFICATE));
    drop(authenticode::signers(bytes));
    if let Ok(digest) = authenticode::digest(bytes) {
        if let Ok(plain) = authenticode::unsigned(bytes) {
            assert!(!authenticode::is_signed(&plain));
            assert!(authenticode::digest(&plain).is_ok());
        }
        if let Ok(signed) = authenticode::attach(bytes, b"no signature at all") {
            assert!(authenticode::is_signed(&signed));
            assert!(authenticode::verify(&signed, &CERTIFICATE).is_err());
            if bytes.len().is_multiple_of(8) {
                assert_eq!(authenticode::digest(&signed), Ok(digest), "what is covered has changed");
            }
        }
    }
    if let Ok(signature) = authenticode::signature(bytes) {
        assert!(signature.len() < bytes.len());
        drop(authenticode::verify(bytes, &CERTIFICATE));
    }
}

/// What another host sends to the push routes: the image's name, a line end, and a manifest, an offer or a request to publish.
/// A manifest is judged as if a trusted key had signed it; one that nobody signed is never taken.
pub fn push(bytes: &[u8]) {
    let key = SigningKey::from_bytes(&[7; 32]);
    let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    let (name, body) = (String::from_utf8_lossy(&bytes[..end]), bytes.get(end + 1..).unwrap_or_default());
    if let Ok(offer) = serde_json::from_slice::<Offer>(body) {
        let generation = manifest::generation_of(offer.manifest.as_bytes());
        assert!(receive::checked((&name, &generation), &offer, &[key.verifying_key()]).is_err());
    }
    drop(serde_json::from_slice::<Publish>(body));
    let generation = manifest::generation_of(body);
    let Ok(text) = String::from_utf8(body.to_vec()) else { return };
    let signature = manifest::sign(body, &key, Timestamp::UNIX_EPOCH, None);
    let offer = Offer { manifest: text, signature };
    if let Ok(manifest) = receive::checked((&name, &generation), &offer, &[key.verifying_key()]) {
        let plain = |name: &str| !name.starts_with('.') && !name.contains(['/', '\0']) && !name.is_empty();
        assert!(plain(&name) && manifest.files.keys().all(|file| plain(file)), "{name}");
        assert!(receive::checked((&name, &generation), &offer, &[]).is_err());
    }
}

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
