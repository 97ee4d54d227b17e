//! The bill of materials, SPDX 2.3 (ISO/IEC 5962, JSON form): every package, every file with its origin, and the tools.
//!
//! It names no time and no place: the same image has the same bill.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::{
    lock::{Lock, Locked},
    tree::{Kind, Tree},
};

/// The file inside a generation.
pub const SBOM: &str = "sbom.spdx.json";

/// The bill of an image.
pub fn bill(image: &str, lock: &Lock, tree: &Tree) -> Vec<u8> {
    let mut files = vec![];
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image")];
    let packages: BTreeMap<&str, String> = lock
        .packages
        .iter()
        .enumerate()
        .map(|(i, p)| (p.name.as_str(), format!("SPDXRef-Package-{i}")))
        .collect();
    let mut hashes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut identity = Sha256::new();
    let nodes = tree.iter().filter_map(|(path, node)| match &node.kind {
        Kind::File(data) => Some((path, node, data)),
        _ => None,
    });
    for (i, (path, node, data)) in nodes.enumerate() {
        let id = format!("SPDXRef-File-{i}");
        let (sha1, sha256) = (hex::encode(data.sha1), hex::encode(data.sha256));
        identity.update(format!("{path} {sha256}\n"));
        let comment = match node.origin.as_ref() {
            "" => "made by labshift".to_owned(),
            origin if packages.contains_key(origin) => format!("package {origin}"),
            origin => origin.to_owned(),
        };
        files.push(json!({
            "SPDXID": id, "fileName": format!("./{path}"), "comment": format!("origin: {comment}"),
            "checksums": [
                { "algorithm": "SHA1", "checksumValue": sha1 }, { "algorithm": "SHA256", "checksumValue": sha256 },
            ],
            "licenseConcluded": "NOASSERTION", "copyrightText": "NOASSERTION",
        }));
        let owner = packages.get(node.origin.as_ref()).map_or("SPDXRef-Image", String::as_str);
        relations.push(relation(owner, "CONTAINS", &id));
        hashes.entry(owner).or_default().push(sha1);
    }
    let mut all = vec![];
    let mut own = json!({
        "SPDXID": "SPDXRef-Image", "name": image, "versionInfo": lock.digest(), "downloadLocation": "NOASSERTION",
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
    });
    analyse(&mut own, hashes.get("SPDXRef-Image"));
    all.push(own);
    for package in &lock.packages {
        let id = &packages[package.name.as_str()];
        identity.update(format!("{} {}\n", package.name, package.sha256));
        let mut described = describe(package, id);
        analyse(&mut described, hashes.get(id.as_str()));
        all.push(described);
        relations.push(relation("SPDXRef-Image", "CONTAINS", id));
        if let Some(parent) = package.needed_by.as_deref().and_then(|p| packages.get(p)) {
            relations.push(relation(id, "DEPENDENCY_OF", parent));
        }
    }
    for (i, tool) in lock.tools.iter().enumerate() {
        let id = format!("SPDXRef-Tool-{i}");
        let mut described = describe(tool, &id);
        analyse(&mut described, None);
        all.push(described);
        relations.push(relation(&id, "BUILD_TOOL_OF", "SPDXRef-Image"));
    }
    for (i, helper) in lock.helpers().iter().enumerate() {
        let id = format!("SPDXRef-Helper-{i}");
        let mut described = describe(helper, &id);
        analyse(&mut described, None);
        all.push(described);
        relations.push(relation(&id, "BUILD_TOOL_OF", "SPDXRef-Image"));
    }
    let identity = hex::encode(identity.finalize());
    let document = json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": image,
        "documentNamespace": format!("urn:labshift:sbom:{image}:{identity}"),
        "creationInfo": {
            "created": "1970-01-01T00:00:00Z",
            "creators": [concat!("Tool: labshift-", env!("CARGO_PKG_VERSION"))],
            "comment": "the time is fixed, so that the same image has the same bill",
        },
        "packages": all, "files": files, "relationships": relations,
    });
    let mut bytes = serde_json::to_vec(&document).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

fn describe(package: &Locked, id: &str) -> Value {
    json!({
        "SPDXID": id, "name": package.name, "versionInfo": package.version, "packageFileName": file_name(package),
        "sourceInfo": format!("built from source package {}", package.source),
        "downloadLocation": "NOASSERTION",
        "checksums": [{ "algorithm": "SHA256", "checksumValue": package.sha256 }],
        "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl(package),
        }],
    })
}

/// Says which files of a package were looked at: those that are in the image.
fn analyse(package: &mut Value, hashes: Option<&Vec<String>>) {
    match hashes {
        None => package["filesAnalyzed"] = json!(false),
        Some(hashes) => {
            let mut sorted = hashes.clone();
            sorted.sort();
            let code = hex::encode(Sha1::digest(sorted.concat()));
            package["filesAnalyzed"] = json!(true);
            package["packageVerificationCode"] = json!({ "packageVerificationCodeValue": code });
        }
    }
}

fn file_name(package: &Locked) -> &str {
    package.filename.rsplit('/').next().unwrap_or_default()
}

/// A package URL (the purl specification's type `deb`).
pub fn purl(package: &Locked) -> String {
    let escape = |text: &str| -> String {
        text.bytes()
            .map(|b| match b {
                b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
                b => format!("%{b:02X}"),
            })
            .collect()
    };
    let architecture = if file_name(package).ends_with("_all.deb") { "all" } else { "amd64" };
    format!("pkg:deb/debian/{}@{}?arch={architecture}", escape(&package.name), escape(&package.version))
}
