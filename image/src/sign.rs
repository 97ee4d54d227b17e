//! Signatures of a generation's kernel image for Secure Boot: made in the build, or attached later when the key is
//! elsewhere (a token, a signing service). A signed generation is a new one; the unsigned one stays as it was.

use std::{fs, path::Path, path::PathBuf};

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use labshift_model::{
    boot_order::BootOrder,
    manifest::{self, Manifest},
    paths,
};
use serde_json::Value;
use x509_cert::{Certificate, der::Encode};

use crate::{
    authenticode::{self, Refused},
    build::{entry_of, write, write_manifest},
    error::{At, BuildError},
    inspect::inspect,
    provenance::PROVENANCE,
    store::{Published, Store},
};

/// The certificate inside a generation (DER).
pub const CERTIFICATE: &str = "secure-boot.crt";

fn refused(what: impl Into<String>) -> impl FnOnce(Refused) -> BuildError {
    let what = what.into();
    |why| BuildError::SecureBoot { what, why }
}

/// Reads a certificate; `path` is for messages.
pub fn certificate(path: &str, bytes: &[u8]) -> Result<Certificate, BuildError> {
    authenticode::certificate(bytes).map_err(refused(path))
}

/// A certificate's bytes.
pub(crate) fn der(path: &str, certificate: &Certificate) -> Result<Vec<u8>, BuildError> {
    certificate.to_der().map_err(|e| refused(path)(Refused::Certificate(e.to_string())))
}

/// Signs a kernel image with a key: its path and bytes.
pub(crate) fn with_key(
    image: &[u8],
    (path, pem): (&str, &[u8]),
    certificate: &Certificate,
) -> Result<Vec<u8>, BuildError> {
    let key = authenticode::key(pem, certificate).map_err(refused(path))?;
    authenticode::sign(image, &key, certificate).map_err(refused(paths::UKI))
}

/// What an external signer needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToSign {
    /// Image.
    pub name: String,
    /// Full generation.
    pub generation: String,
    /// The kernel image.
    pub file: PathBuf,
    /// Its Authenticode digest (SHA-256, lower-case hex): what a signer that never sees the file signs.
    pub digest: String,
    /// Subjects of the certificates in its signature; empty when it has none.
    pub signed_by: Vec<String>,
}

/// What is to be signed of an image.
pub fn to_sign(store: &Store, reference: &str) -> Result<ToSign, BuildError> {
    let (name, generation) = store.find(reference)?;
    let image = inspect(store, &name, Some(&generation))?;
    let file = image.directory.join(paths::UKI);
    let bytes = kernel_image(&file, &name)?;
    let digest = authenticode::digest(&bytes).map_err(refused(file.display().to_string()))?;
    let signed_by = authenticode::signers(&bytes);
    Ok(ToSign { name, generation, file, digest: hex::encode(digest), signed_by })
}

fn kernel_image(file: &Path, name: &str) -> Result<Vec<u8>, BuildError> {
    match fs::read(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(BuildError::Unusable {
            path: file.to_owned(),
            reason: format!("image {name} is a guest's: it has no kernel image to sign"),
        }),
        other => other.at("reading", file),
    }
}

/// How an image gets its signature.
pub enum Signer<'a> {
    /// With a key in PEM: path and bytes.
    Key(&'a str, &'a [u8]),
    /// Somebody made it: path and bytes of the signed kernel image, or of the PKCS #7 signature alone.
    Made(&'a str, &'a [u8]),
}

/// A signed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Image.
    pub name: String,
    /// The generation that was signed.
    pub before: String,
    /// The new one.
    pub generation: String,
    /// New, or the same as before.
    pub published: Published,
    /// Whose certificate.
    pub subject: String,
}

/// Makes a signed generation of an image and points a channel to it. The certificate is the recipe's unless one is given
/// (path and bytes); a signature that is not of its key, or not of this kernel image, is refused.
pub fn sign(
    store: &Store,
    reference: &str,
    given: Option<(&str, &[u8])>,
    signer: Signer<'_>,
    (channel, now): (&str, Timestamp),
) -> Result<Signed, BuildError> {
    let (name, before) = store.find(reference)?;
    let image = inspect(store, &name, Some(&before))?;
    let file = image.directory.join(paths::UKI);
    let plain =
        authenticode::unsigned(&kernel_image(&file, &name)?).map_err(refused(file.display().to_string()))?;
    let own = image.directory.join(CERTIFICATE);
    let certificate = match given {
        Some((path, bytes)) => certificate(path, bytes)?,
        None if own.is_file() => {
            certificate(&own.display().to_string(), &fs::read(&own).at("reading", &own)?)?
        }
        None => {
            let reason = format!(
                "image {name} does not say whose signature it wants: name the certificate with --cert, or in its recipe: [secure_boot] cert = \"...\""
            );
            return Err(BuildError::Unusable { path: file, reason });
        }
    };
    let signed = match signer {
        Signer::Key(path, pem) => with_key(&plain, (path, pem), &certificate)?,
        Signer::Made(path, bytes) => {
            // What else a signer may have changed in the file is of no interest: only its signature is taken over.
            let signature = if bytes.starts_with(b"MZ") { authenticode::signature(bytes) } else { Ok(bytes) };
            signature
                .and_then(|signature| authenticode::attach(&plain, signature))
                .and_then(|signed| authenticode::verify(&signed, &certificate).map(|()| signed))
                .map_err(refused(path))?
        }
    };
    let key = store.signing_key()?;
    if hex::encode(key.verifying_key().as_bytes()) != image.signature.key {
        let reason =
            "it was pushed here from another store, and its nodes trust that one's key: sign it there"
                .to_owned();
        return Err(BuildError::Unusable { path: file, reason });
    }
    let work = store.workplace(&name)?;
    for file in image.manifest.files.keys().filter(|f| *f != paths::UKI) {
        let (from, to) = (image.directory.join(file), work.path().join(file));
        // Files of generations are never changed: two may share them. The provenance is made anew below.
        if file == PROVENANCE || fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).at("writing", &to)?;
        }
    }
    let mut manifest = image.manifest;
    if given.is_some() || !manifest.files.contains_key(CERTIFICATE) {
        let path = work.path().join(CERTIFICATE);
        let _ = fs::remove_file(&path);
        write(work.path(), CERTIFICATE, &der(CERTIFICATE, &certificate)?)?;
        manifest.files.insert(CERTIFICATE.to_owned(), entry_of(&path)?);
    }
    let manifest = put(work.path(), manifest, &signed, (&key, now))?;
    let generation = manifest::generation_of(&manifest.to_bytes());
    let published = store.publish(work, (&name, &generation), channel, now)?;
    // The root is the same, and so is the order in which a boot reads it.
    if let Ok(order) = BootOrder::parse(&image.signature.boot_order)
        && !order.is_empty()
    {
        store.set_boot_order((&name, &generation), &order, now)?;
    }
    Ok(Signed { name, before, generation, published, subject: authenticode::subject(&certificate) })
}

/// Puts a kernel image into a directory that holds all else, and says so in provenance and manifest.
fn put(
    directory: &Path,
    mut manifest: Manifest,
    image: &[u8],
    key: (&SigningKey, Timestamp),
) -> Result<Manifest, BuildError> {
    write(directory, paths::UKI, image)?;
    manifest.files.insert(paths::UKI.to_owned(), entry_of(&directory.join(paths::UKI))?);
    let path = directory.join(PROVENANCE);
    let bytes = fs::read(&path).at("reading", &path)?;
    if let Ok(mut statement) = serde_json::from_slice::<Value>(&bytes) {
        let files = manifest.files.iter().filter(|(name, _)| *name != PROVENANCE);
        statement["subject"] = crate::provenance::subjects(files);
        let mut bytes = serde_json::to_vec(&statement).unwrap_or_default();
        bytes.push(b'\n');
        write(directory, PROVENANCE, &bytes)?;
        manifest.files.insert(PROVENANCE.to_owned(), entry_of(&path)?);
    }
    write_manifest(directory, &manifest, key)?;
    Ok(manifest)
}

/// Gives a rebuilt, unsigned kernel image the signature of the published one, when that signature is of these very bytes.
pub(crate) fn with_signature_of(
    published: &Path,
    rebuilt: &Path,
    manifest: Manifest,
    key: (&SigningKey, Timestamp),
) -> Result<Manifest, BuildError> {
    let (Ok(theirs), Ok(ours)) = (fs::read(published.join(paths::UKI)), fs::read(rebuilt.join(paths::UKI)))
    else {
        return Ok(manifest);
    };
    if authenticode::is_signed(&ours) || authenticode::unsigned(&theirs).ok().as_deref() != Some(&ours) {
        return Ok(manifest);
    }
    match authenticode::signature(&theirs).and_then(|signature| authenticode::attach(&ours, signature)) {
        Ok(signed) if signed == theirs => put(rebuilt, manifest, &signed, key),
        _ => Ok(manifest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        authenticode::tests::{CERTIFICATE as PEM, KEY},
        build,
        channel::STABLE,
        progress::Silent,
        verify,
        world::{RECIPE, World},
    };

    fn world(secure_boot: &str) -> World {
        let world = World::new();
        fs::write(world.path("db.crt"), PEM).unwrap();
        fs::write(world.path("db.key"), KEY).unwrap();
        world.recipe(&format!("{RECIPE}[secure_boot]\ncert = \"db.crt\"\n{secure_boot}"));
        world
    }

    #[test]
    fn a_build_with_a_key_signs_and_is_built_again_the_same() {
        let world = world("key = \"db.key\"\n");
        let built = build(&world.options(), &Silent).unwrap();
        let uki = fs::read(built.directory.join(paths::UKI)).unwrap();
        assert_eq!(authenticode::verify(&uki, &certificate("c", PEM).unwrap()), Ok(()));
        let (_, differs) = verify::rebuild(&world.options(), "tiny", &Silent).unwrap();
        assert_eq!(differs, []);
        // Nothing in the image is the key, or says what it is.
        let digest = hex::encode(sha2::Digest::finalize(sha2::Digest::chain_update(
            <sha2::Sha256 as sha2::Digest>::new(),
            KEY,
        )));
        let provenance = fs::read_to_string(built.directory.join(PROVENANCE)).unwrap();
        assert!(provenance.contains("db.crt") && !provenance.contains(&digest));

        fs::write(world.path("db.key"), include_bytes!("../tests/data/secure-boot-other.key")).unwrap();
        let error = build(&world.options(), &Silent).unwrap_err().to_string();
        assert!(error.contains("db.key: the key is not the one of the certificate"), "{error}");
        fs::remove_file(world.path("db.crt")).unwrap();
        let error = build(&world.options(), &Silent).unwrap_err().to_string();
        assert!(error.contains("[secure_boot] cert is") && error.contains("db.crt"), "{error}");
    }

    #[test]
    fn somebody_else_signs_later() {
        let world = world("");
        let built = build(&world.options(), &Silent).unwrap();
        let store = Store::open(&world.path("store")).unwrap();
        let wanted = to_sign(&store, "tiny").unwrap();
        assert!(wanted.signed_by.is_empty() && wanted.digest.len() == 64);
        // The signer, elsewhere.
        let certificate = certificate("c", PEM).unwrap();
        let elsewhere = with_key(&fs::read(&wanted.file).unwrap(), ("k", KEY), &certificate).unwrap();
        let apart = authenticode::signature(&elsewhere).unwrap();

        let how = (STABLE, Timestamp::UNIX_EPOCH);
        let signed = sign(&store, "tiny", None, Signer::Made("uki", &elsewhere), how).unwrap();
        assert_eq!((&signed.before, signed.published), (&built.generation, Published::New));
        assert_eq!(store.channel("tiny", STABLE).unwrap(), signed.generation);
        let before = format!("tiny@{}", built.generation);
        for signer in [Signer::Made("p7", apart), Signer::Key("k", KEY)] {
            let again = sign(&store, &before, None, signer, how).unwrap();
            assert_eq!(
                (again.generation, again.published),
                (signed.generation.clone(), Published::AlreadyThere)
            );
        }
        // Both verify, file by file; the signed one is built again but for what only the signer can make.
        inspect(&store, "tiny", Some(&built.generation)).unwrap();
        inspect(&store, "tiny", Some(&signed.generation)).unwrap();
        assert_eq!(to_sign(&store, "tiny").unwrap().signed_by, ["CN=labshift test"]);
        assert_eq!(verify::rebuild(&world.options(), "tiny", &Silent).unwrap().1, []);
        let statement =
            fs::read_to_string(store.generation("tiny", &signed.generation).join(PROVENANCE)).unwrap();
        let entry = &inspect(&store, "tiny", None).unwrap().manifest.files[paths::UKI];
        assert!(statement.contains(&entry.sha256));
    }

    #[test]
    fn refuses_signatures_of_others_and_of_other_files() {
        let world = world("");
        build(&world.options(), &Silent).unwrap();
        let store = Store::open(&world.path("store")).unwrap();
        let fail = |signer: Signer<'_>| {
            let how = (STABLE, Timestamp::UNIX_EPOCH);
            sign(&store, "tiny", None, signer, how).unwrap_err().to_string()
        };
        let certificate = certificate("c", PEM).unwrap();
        let other = with_key(&authenticode::tests::image(), ("k", KEY), &certificate).unwrap();
        assert!(
            fail(Signer::Made("other.efi", &other)).contains("other.efi: its signature is of another file")
        );
        assert!(fail(Signer::Made("junk", b"junk")).contains("junk: its signature can't be read"));
        let wrong = include_bytes!("../tests/data/secure-boot-other.key");
        assert!(fail(Signer::Key("k", wrong)).contains("not the one of the certificate"));
        assert_eq!(store.generations("tiny").len(), 1);

        world.recipe(RECIPE);
        build(&world.options(), &Silent).unwrap();
        assert!(fail(Signer::Key("k", KEY)).contains("--cert"));
    }
}
