//! `Packages` files: what a mirror offers.

use std::collections::HashMap;

use debversion::Version;

use crate::relation::{Relation, parse_field};

/// One package version that a mirror offers.
#[derive(Debug, Clone)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version.
    pub version: Version,
    /// Path below the mirror's root.
    pub filename: String,
    /// Bytes of the `.deb`.
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
    /// Source package name.
    pub source: String,
    /// `Pre-Depends` and `Depends`.
    pub depends: Vec<Vec<Relation>>,
    /// `Conflicts` and `Breaks`.
    pub conflicts: Vec<Relation>,
    /// Virtual names, with the version they stand for where one is given.
    pub provides: Vec<Relation>,
    /// `Priority` is `required`, or `Essential: yes`.
    pub essential: bool,
    /// Number of the archive (mirror and suite) it comes from.
    pub archive: usize,
}

/// Everything that is on offer; of each name the latest version.
#[derive(Debug, Default)]
pub struct Index {
    packages: HashMap<String, Package>,
    /// Virtual name to the names of its providers, sorted.
    providers: HashMap<String, Vec<String>>,
}

/// A stanza without a usable field.
#[derive(Debug, thiserror::Error)]
#[error("package list: stanza of \"{package}\" has no usable {field} field")]
pub struct BadStanza {
    /// Its name, if it has one.
    pub package: String,
    /// The field.
    pub field: &'static str,
}

impl Index {
    /// Adds the stanzas of one `Packages` text. A later version replaces an earlier one.
    pub fn add(&mut self, text: &str, archive: usize) -> Result<usize, BadStanza> {
        let mut count = 0;
        for stanza in text.split("\n\n").filter(|s| !s.trim().is_empty()) {
            let package = stanza_of(stanza, archive)?;
            count += 1;
            match self.packages.get(&package.name) {
                Some(known) if known.version >= package.version => {}
                _ => {
                    self.packages.insert(package.name.clone(), package);
                }
            }
        }
        Ok(count)
    }

    /// Lists the providers of virtual names; call once after the last [`Index::add`].
    pub fn finish(&mut self) {
        self.providers.clear();
        for package in self.packages.values() {
            for provided in &package.provides {
                self.providers.entry(provided.name.clone()).or_default().push(package.name.clone());
            }
        }
        for names in self.providers.values_mut() {
            names.sort();
            names.dedup();
        }
    }

    /// A package by name.
    pub fn get(&self, name: &str) -> Option<&Package> {
        self.packages.get(name)
    }

    /// Packages that satisfy a relation, a real one first, then providers by name.
    pub fn satisfying<'i>(&'i self, relation: &'i Relation) -> impl Iterator<Item = &'i Package> {
        let real = self.packages.get(&relation.name).filter(|p| relation.admits(&p.version));
        let providers = self.providers.get(&relation.name).map_or(&[][..], Vec::as_slice);
        real.into_iter().chain(
            providers
                .iter()
                .filter_map(|n| self.packages.get(n))
                .filter(|p| p.name != relation.name && provides(p, relation)),
        )
    }

    /// Names of the packages that every system has.
    pub fn essential(&self) -> impl Iterator<Item = &str> {
        self.packages.values().filter(|p| p.essential).map(|p| p.name.as_str())
    }

    /// All names, for finding the nearest to a mistyped one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.packages.keys().map(String::as_str)
    }
}

/// Whether `package` is, or stands for, what the relation names.
pub fn provides(package: &Package, relation: &Relation) -> bool {
    if package.name == relation.name && relation.admits(&package.version) {
        return true;
    }
    package.provides.iter().filter(|p| p.name == relation.name).any(|p| match (&p.bound, &relation.bound) {
        (_, None) => true,
        (Some((_, version)), Some(_)) => relation.admits(version),
        (None, Some(_)) => false,
    })
}

/// The value of a one-line field.
pub fn field<'s>(stanza: &'s str, name: &str) -> Option<&'s str> {
    stanza.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

fn stanza_of(stanza: &str, archive: usize) -> Result<Package, BadStanza> {
    let mut fields: HashMap<&str, &str> = HashMap::with_capacity(24);
    for line in stanza.lines().filter(|l| !l.starts_with([' ', '\t'])) {
        if let Some((name, value)) = line.split_once(':') {
            fields.insert(name, value.trim());
        }
    }
    let name = fields.get("Package").copied().unwrap_or_default();
    let bad = |field| BadStanza { package: name.to_owned(), field };
    let get = |field: &'static str| fields.get(field).copied().ok_or_else(|| bad(field));
    let relations = |field: &str| fields.get(field).map(|f| parse_field(f)).unwrap_or_default();
    let sha256 = get("SHA256")?;
    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(bad("SHA256"));
    }
    let filename = get("Filename")?;
    if filename.starts_with('/') || filename.split('/').any(|part| part == "..") {
        return Err(bad("Filename"));
    }
    let mut depends = relations("Pre-Depends");
    depends.extend(relations("Depends"));
    let mut conflicts: Vec<Relation> = relations("Conflicts").into_iter().flatten().collect();
    conflicts.extend(relations("Breaks").into_iter().flatten());
    Ok(Package {
        name: get("Package")?.to_owned(),
        version: get("Version")?.parse().map_err(|_| bad("Version"))?,
        filename: filename.to_owned(),
        size: get("Size")?.parse().map_err(|_| bad("Size"))?,
        sha256: sha256.to_ascii_lowercase(),
        source: fields.get("Source").and_then(|s| s.split_whitespace().next()).unwrap_or(name).to_owned(),
        depends,
        conflicts,
        provides: relations("Provides").into_iter().flatten().collect(),
        essential: fields.get("Essential") == Some(&"yes"),
        archive,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stanza(name: &str, version: &str, more: &str) -> String {
        format!(
            "Package: {name}\nVersion: {version}\nFilename: pool/{name}.deb\nSize: 10\nSHA256: {}\n{more}\n",
            "a".repeat(64)
        )
    }

    #[test]
    fn keeps_the_latest_version() {
        let mut index = Index::default();
        index.add(&[stanza("a", "1.0", ""), stanza("a", "1.1~rc1", "")].join("\n"), 0).unwrap();
        index.add(&stanza("a", "1.0+deb13u1", ""), 1).unwrap();
        assert_eq!(index.get("a").unwrap().version.to_string(), "1.1~rc1");
    }

    #[test]
    fn refuses_what_would_escape_or_lacks_a_hash() {
        let bad = stanza("a", "1", "").replace("pool/", "../../");
        assert_eq!(Index::default().add(&bad, 0).unwrap_err().field, "Filename");
        let bad = stanza("a", "1", "").replace(&"a".repeat(64), "zz");
        assert_eq!(Index::default().add(&bad, 0).unwrap_err().field, "SHA256");
    }

    #[test]
    fn versioned_provides() {
        let mut index = Index::default();
        index
            .add(&[stanza("b", "1", "Provides: v (= 2), w"), stanza("c", "1", "Provides: v")].join("\n"), 0)
            .unwrap();
        index.finish();
        let find = |r: &str| {
            let relation = &parse_field(r)[0][0];
            index.satisfying(relation).map(|p| p.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(find("v"), ["b", "c"]);
        assert_eq!(find("v (>= 2)"), ["b"]);
        assert!(find("v (>> 2)").is_empty());
        assert!(find("w (>= 1)").is_empty());
    }
}
