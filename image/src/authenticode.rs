//! Signatures of PE files as UEFI Secure Boot checks them (Microsoft, "Windows Authenticode Portable Executable Signature
//! Format"; UEFI 2.10, 32.2.4).
//!
//! A signature is a PKCS #7 SignedData over the SHA-256 of the file without its check sum, its certificate table and the
//! table's entry in the directory; it lies in that table, behind everything else. It holds no time here: RSA with PKCS #1 v1.5
//! padding gives the same bytes for the same file and key, so a signed image stays reproducible.

use cms::{cert::CertificateChoices, content_info::ContentInfo, signed_data::SignedData};
use rsa::{
    RsaPrivateKey, RsaPublicKey,
    pkcs1::DecodeRsaPrivateKey,
    pkcs1v15::{Signature, SigningKey, VerifyingKey},
    pkcs8::{DecodePrivateKey, DecodePublicKey},
    signature::{SignatureEncoding, Signer, Verifier},
};
use sha2::{Digest, Sha256};
use x509_cert::{
    Certificate,
    der::{Decode, DecodePem, Encode, asn1::ObjectIdentifier},
};

/// Why a file can't be signed, or why a signature is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// Not a PE file for a 64-bit machine, or cut off.
    #[error("it is no PE file for a 64-bit machine, or it is cut off")]
    NoImage,
    /// Signed already.
    #[error("it is signed already")]
    Signed,
    /// No signature.
    #[error("it has no signature")]
    Unsigned,
    /// The signature can't be read.
    #[error("its signature can't be read: {0}")]
    Unreadable(String),
    /// The signature is of another file.
    #[error("its signature is of another file (SHA-256 {signed}, this one has {found})")]
    OtherFile {
        /// Digest in the signature.
        signed: String,
        /// Digest of the file.
        found: String,
    },
    /// Nobody with the certificate's key made the signature.
    #[error("its signature was not made with the key of the certificate {0}")]
    OtherKey(String),
    /// A key that can't be used.
    #[error("the key can't be used: {0}; wanted is an RSA key in PEM (PKCS #8 or PKCS #1)")]
    Key(String),
    /// A certificate that can't be used.
    #[error(
        "the certificate can't be used: {0}; wanted is an X.509 certificate of an RSA key, in PEM or DER"
    )]
    Certificate(String),
    /// The two do not belong together.
    #[error("the key is not the one of the certificate {0}; give the certificate that was made for this key")]
    Pair(String),
}

/// Where the parts are that a signature leaves out.
struct Layout {
    /// Offset of the check sum (4 bytes).
    check_sum: usize,
    /// Offset of the certificate table's entry in the directory (8 bytes).
    entry: usize,
    /// The certificate table: offset and size, both 0 when there is none.
    table: (usize, usize),
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?) as usize)
}

fn layout(image: &[u8]) -> Option<Layout> {
    let pe = u32_at(image, 0x3c)?;
    let optional = pe.checked_add(24)?;
    if image.get(..2)? != b"MZ"
        || image.get(pe..pe.checked_add(4)?)? != b"PE\0\0"
        || image.get(optional..optional.checked_add(2)?)? != [0x0b, 0x02]
        // The directory has a fifth entry: the certificate table's.
        || u32_at(image, optional + 108)? < 5
    {
        return None;
    }
    let entry = optional + 144;
    let table = (u32_at(image, entry)?, u32_at(image, entry + 4)?);
    let behind = table == (0, 0) || table.0.checked_add(table.1)? == image.len() && table.0 > entry + 8;
    behind.then_some(Layout { check_sum: optional + 64, entry, table })
}

/// The file without its signature: as it was before it was signed.
pub fn unsigned(image: &[u8]) -> Result<Vec<u8>, Refused> {
    let layout = layout(image).ok_or(Refused::NoImage)?;
    let mut bytes = image.to_vec();
    if layout.table.1 > 0 {
        bytes.truncate(layout.table.0);
    }
    bytes[layout.check_sum..layout.check_sum + 4].fill(0);
    bytes[layout.entry..layout.entry + 8].fill(0);
    Ok(bytes)
}

/// Whether a file has a signature; nothing is said about whose.
pub fn is_signed(image: &[u8]) -> bool {
    layout(image).is_some_and(|l| l.table.1 > 0)
}

/// What is signed of a file. In our images the sections follow one another without gaps, so this is the whole file in order
/// but for the parts that are left out.
pub fn digest(image: &[u8]) -> Result<[u8; 32], Refused> {
    let layout = layout(image).ok_or(Refused::NoImage)?;
    let end = if layout.table.1 > 0 { layout.table.0 } else { image.len() };
    let mut hash = Sha256::new();
    hash.update(&image[..layout.check_sum]);
    hash.update(&image[layout.check_sum + 4..layout.entry]);
    hash.update(&image[layout.entry + 8..end]);
    // The table begins at a multiple of 8, and what fills up to there counts.
    hash.update(vec![0; end.next_multiple_of(8) - end]);
    Ok(hash.finalize().into())
}

/// A certificate in PEM or DER.
pub fn certificate(bytes: &[u8]) -> Result<Certificate, Refused> {
    let read =
        if bytes.starts_with(b"-----") { Certificate::from_pem(bytes) } else { Certificate::from_der(bytes) };
    let certificate = read.map_err(|e| Refused::Certificate(e.to_string()))?;
    public_key(&certificate)?;
    Ok(certificate)
}

fn public_key(certificate: &Certificate) -> Result<RsaPublicKey, Refused> {
    let bad = |e: String| Refused::Certificate(e);
    let info = &certificate.tbs_certificate.subject_public_key_info;
    let der = info.to_der().map_err(|e| bad(e.to_string()))?;
    RsaPublicKey::from_public_key_der(&der).map_err(|e| bad(e.to_string()))
}

/// Whose certificate it is, for messages.
pub fn subject(certificate: &Certificate) -> String {
    certificate.tbs_certificate.subject.to_string()
}

/// Reads a key and checks that it is the certificate's.
pub fn key(pem: &[u8], certificate: &Certificate) -> Result<RsaPrivateKey, Refused> {
    let text = std::str::from_utf8(pem).map_err(|e| Refused::Key(e.to_string()))?;
    let key = RsaPrivateKey::from_pkcs8_pem(text)
        .or_else(|first| RsaPrivateKey::from_pkcs1_pem(text).map_err(|_| Refused::Key(first.to_string())))?;
    match key.to_public_key() == public_key(certificate)? {
        true => Ok(key),
        false => Err(Refused::Pair(subject(certificate))),
    }
}

const SPC_INDIRECT_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.4");
const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
/// AlgorithmIdentifier of SHA-256 and of rsaEncryption, both with NULL parameters.
const SHA256: &[u8] = b"\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00";
const RSA: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";
/// SpcAttributeTypeAndOptionalValue: SPC_PE_IMAGE_DATA, no flags, an empty file name.
const PE_IMAGE_DATA: &[u8] =
    b"\x30\x17\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x02\x01\x0f\x30\x09\x03\x01\x00\xa0\x04\xa2\x02\x80\x00";

/// An element of DER (X.690): tag, length, what it holds.
fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let mut bytes = vec![tag];
    match length {
        0..0x80 => bytes.push(length as u8),
        _ => {
            let digits: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect();
            bytes.push(0x80 | digits.len() as u8);
            bytes.extend(digits);
        }
    }
    parts.iter().for_each(|p| bytes.extend(*p));
    bytes
}

fn object(id: ObjectIdentifier) -> Vec<u8> {
    element(0x06, &[id.as_bytes()])
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OCTETS: u8 = 0x04;
const FIRST: u8 = 0xa0;

/// A PKCS #7 signature over a digest.
fn pkcs7(digest: &[u8; 32], key: &RsaPrivateKey, certificate: &Certificate) -> Result<Vec<u8>, Refused> {
    let bad = |e: x509_cert::der::Error| Refused::Certificate(e.to_string());
    let tbs = &certificate.tbs_certificate;
    let (whole, issuer) = (certificate.to_der().map_err(bad)?, tbs.issuer.to_der().map_err(bad)?);
    let serial = tbs.serial_number.to_der().map_err(bad)?;
    let info = element(SEQUENCE, &[SHA256, &element(OCTETS, &[digest])]);
    let content = [PE_IMAGE_DATA, &info].concat();
    let attribute =
        |id: ObjectIdentifier, value: &[u8]| element(SEQUENCE, &[&object(id), &element(SET, &[value])]);
    let attributes = [
        attribute(CONTENT_TYPE, &object(SPC_INDIRECT_DATA)),
        attribute(MESSAGE_DIGEST, &element(OCTETS, &[&Sha256::digest(&content)])),
    ]
    .concat();
    let signing = SigningKey::<rsa::sha2::Sha256>::new(key.clone());
    let signature = signing.sign(&element(SET, &[&attributes])).to_bytes();
    let signer = element(
        SEQUENCE,
        &[
            b"\x02\x01\x01",
            &element(SEQUENCE, &[&issuer, &serial]),
            SHA256,
            &element(FIRST, &[&attributes]),
            RSA,
            &element(OCTETS, &[&signature]),
        ],
    );
    let signed = element(SEQUENCE, &[&content]);
    let signed_data = element(
        SEQUENCE,
        &[
            b"\x02\x01\x01",
            &element(SET, &[SHA256]),
            &element(SEQUENCE, &[&object(SPC_INDIRECT_DATA), &element(FIRST, &[&signed])]),
            &element(FIRST, &[&whole]),
            &element(SET, &[&signer]),
        ],
    );
    Ok(element(SEQUENCE, &[&object(SIGNED_DATA), &element(FIRST, &[&signed_data])]))
}

/// Signs a file.
pub fn sign(image: &[u8], key: &RsaPrivateKey, certificate: &Certificate) -> Result<Vec<u8>, Refused> {
    let signature = pkcs7(&digest(image)?, key, certificate)?;
    attach(image, &signature)
}

/// Puts a PKCS #7 signature (DER) into an unsigned file.
pub fn attach(image: &[u8], signature: &[u8]) -> Result<Vec<u8>, Refused> {
    let at = layout(image).ok_or(Refused::NoImage)?;
    if at.table.1 > 0 {
        return Err(Refused::Signed);
    }
    let mut bytes = image.to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let start = bytes.len();
    // WIN_CERTIFICATE: length, revision 2.0, type PKCS #7 SignedData; padded to 8 bytes.
    let length = (8 + signature.len()).next_multiple_of(8);
    let number = |n: usize| u32::try_from(n).map(u32::to_le_bytes).map_err(|_| Refused::NoImage);
    bytes.extend(number(length)?);
    bytes.extend([0x00, 0x02, 0x02, 0x00]);
    bytes.extend(signature);
    bytes.resize(start + length, 0);
    bytes[at.entry..at.entry + 4].copy_from_slice(&number(start)?);
    bytes[at.entry + 4..at.entry + 8].copy_from_slice(&number(length)?);
    Ok(bytes)
}

/// The PKCS #7 signature of a signed file (DER, with what pads it).
pub fn signature(image: &[u8]) -> Result<&[u8], Refused> {
    let at = layout(image).ok_or(Refused::NoImage)?;
    if at.table.1 == 0 {
        return Err(Refused::Unsigned);
    }
    let table = &image[at.table.0..];
    let cut = || Refused::Unreadable("it is cut off".to_owned());
    let length = u32_at(table, 0).filter(|l| *l >= 8).ok_or_else(cut)?;
    table.get(8..length).ok_or_else(cut)
}

/// Checks that the key of `certificate` signed exactly this file.
pub fn verify(image: &[u8], certificate: &Certificate) -> Result<(), Refused> {
    let unreadable = |e: x509_cert::der::Error| Refused::Unreadable(e.to_string());
    let missing = |what: &str| Refused::Unreadable(format!("it has no {what}"));
    let bytes = signature(image)?;
    // Behind it lies what pads it.
    let mut reader = x509_cert::der::SliceReader::new(bytes).map_err(unreadable)?;
    let info = ContentInfo::decode(&mut reader).map_err(unreadable)?;
    if info.content_type != SIGNED_DATA {
        return Err(missing("signed data"));
    }
    let signed: SignedData = info.content.decode_as().map_err(unreadable)?;
    let content = signed.encap_content_info.econtent.as_ref().ok_or_else(|| missing("content"))?;
    // SpcIndirectDataContent ends with the digest's octets.
    let found = digest(image)?;
    let claimed = content.value().len().checked_sub(34).map(|at| &content.value()[at..]);
    match claimed {
        Some([0x04, 0x20, digest @ ..]) if *digest == found => {}
        Some([0x04, 0x20, digest @ ..]) => {
            return Err(Refused::OtherFile { signed: hex::encode(digest), found: hex::encode(found) });
        }
        _ => return Err(missing("SHA-256 digest")),
    }
    let verifier = VerifyingKey::<rsa::sha2::Sha256>::new(public_key(certificate)?);
    for signer in signed.signer_infos.0.iter() {
        let Ok(signature) = Signature::try_from(signer.signature.as_bytes()) else { continue };
        let over = match &signer.signed_attrs {
            None => content.value().to_vec(),
            Some(attributes) => {
                let digest = attributes.iter().find(|a| a.oid == MESSAGE_DIGEST);
                let value = digest.and_then(|a| a.values.get(0)).ok_or_else(|| missing("message digest"))?;
                if value.value() != &Sha256::digest(content.value())[..] {
                    continue;
                }
                attributes.to_der().map_err(unreadable)?
            }
        };
        if verifier.verify(&over, &signature).is_ok() {
            return Ok(());
        }
    }
    Err(Refused::OtherKey(subject(certificate)))
}

/// Certificates that came with a signature, for messages.
pub fn signers(image: &[u8]) -> Vec<String> {
    let read = || -> Option<Vec<String>> {
        let mut reader = x509_cert::der::SliceReader::new(signature(image).ok()?).ok()?;
        let signed: SignedData = ContentInfo::decode(&mut reader).ok()?.content.decode_as().ok()?;
        let subjects =
            signed.certificates.iter().flat_map(|set| set.0.iter()).filter_map(|choice| match choice {
                CertificateChoices::Certificate(c) => Some(subject(c)),
                CertificateChoices::Other(_) => None,
            });
        Some(subjects.collect())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
#[path = "authenticode_tests.rs"]
pub(crate) mod tests;
