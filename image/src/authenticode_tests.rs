//! Signatures made here, and one that another tool checks.

use super::*;
use crate::uki::{self, tests::stub};

/// Made for these tests by `openssl req -x509 -newkey rsa:2048 -nodes`: a key and its certificate, in PEM.
pub(crate) const KEY: &[u8] = include_bytes!("../tests/data/secure-boot.key");
pub(crate) const CERTIFICATE: &[u8] = include_bytes!("../tests/data/secure-boot.crt");
const OTHER_KEY: &[u8] = include_bytes!("../tests/data/secure-boot-other.key");

pub(crate) fn image() -> Vec<u8> {
    uki::assemble(&stub(), &[(".cmdline", b"quiet"), (".linux", &[9; 5000])]).unwrap()
}

fn signed() -> (Vec<u8>, Certificate) {
    let certificate = certificate(CERTIFICATE).unwrap();
    let key = key(KEY, &certificate).unwrap();
    (sign(&image(), &key, &certificate).unwrap(), certificate)
}

#[test]
fn what_is_signed_is_verified_and_the_same_each_time() {
    let (image_signed, certificate) = signed();
    assert_eq!(verify(&image_signed, &certificate), Ok(()));
    assert_eq!(image_signed, signed().0);
    assert_eq!(unsigned(&image_signed).unwrap(), image());
    assert_eq!(digest(&image_signed), digest(&image()));
    assert!(is_signed(&image_signed) && !is_signed(&image()));
    assert_eq!(signers(&image_signed), ["CN=labshift test"]);
    // What another tool made out of it is attached the same way.
    let apart = signature(&image_signed).unwrap().to_vec();
    assert_eq!(attach(&image(), &apart).unwrap(), image_signed);
    let error = sign(&image_signed, &key(KEY, &certificate).unwrap(), &certificate).unwrap_err();
    assert_eq!(error, Refused::Signed);
}

/// `sbverify` checks what we sign; we check what `sbsign` signs.
#[test]
fn agrees_with_sbsigntool() {
    use std::process::Command;
    if Command::new("sbverify").arg("--version").output().is_err() {
        eprintln!("sbverify is not installed (scripts/deps): not compared");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = place.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let (ours, certificate) = signed();
    let (key, crt) = (file("key", KEY), file("crt", CERTIFICATE));
    let output = Command::new("sbverify").arg("--cert").arg(&crt).arg(file("ours", &ours)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = place.path().join("theirs");
    let mut sbsign = Command::new("sbsign");
    sbsign
        .arg("--key")
        .arg(&key)
        .arg("--cert")
        .arg(&crt)
        .arg("--output")
        .arg(&theirs)
        .arg(file("plain", &image()));
    let output = sbsign.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = std::fs::read(theirs).unwrap();
    assert_eq!(verify(&theirs, &certificate), Ok(()));
    assert_eq!(unsigned(&theirs).unwrap(), image());
}

#[test]
fn refuses_other_files_keys_and_certificates() {
    let (signed, certificate) = signed();
    let mut changed = signed.clone();
    changed[0x500] ^= 1;
    assert!(matches!(verify(&changed, &certificate), Err(Refused::OtherFile { .. })));
    assert_eq!(verify(&image(), &certificate), Err(Refused::Unsigned));
    let error = key(OTHER_KEY, &certificate).unwrap_err().to_string();
    assert!(error.contains("not the one of the certificate CN=labshift test"), "{error}");
    assert!(matches!(key(b"-----BEGIN NOTHING-----", &certificate), Err(Refused::Key(_))));
    assert!(matches!(super::certificate(b"x"), Err(Refused::Certificate(_))));
    let mut other = certificate.clone();
    other.tbs_certificate.subject_public_key_info = {
        let text = std::str::from_utf8(OTHER_KEY).unwrap();
        let public = RsaPrivateKey::from_pkcs8_pem(text).unwrap().to_public_key();
        let der = rsa::pkcs8::EncodePublicKey::to_public_key_der(&public).unwrap();
        Decode::from_der(der.as_bytes()).unwrap()
    };
    assert!(matches!(verify(&signed, &other), Err(Refused::OtherKey(_))));
}

#[test]
fn garbage_is_an_error_and_never_a_panic() {
    let (seed, certificate) = signed();
    let mut state = 0x9e37_79b9_u32;
    for _ in 0..3000 {
        let mut bytes = seed.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Headers and signature, in turn.
            let at = if state & 1 == 0 {
                (state >> 8) as usize % 0x200
            } else {
                bytes.len() - 1 - (state >> 8) as usize % 1500
            };
            bytes[at] = (state >> 24) as u8;
        }
        bytes.truncate(bytes.len() - (state as usize % 5) * 300);
        let _ = (verify(&bytes, &certificate), unsigned(&bytes), signers(&bytes), digest(&bytes));
        let _ = attach(&bytes, b"x");
    }
}
