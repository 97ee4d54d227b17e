//! Why a build did not come to an image.

use std::{io, path::PathBuf};

use labshift_model::fault::Faults;

use crate::{
    deb::BadPackage, index::BadStanza, kernel::BadKernel, release::Untrusted, resolve::Unresolvable,
};

/// Why a build, a lock or an inspection failed. Each says what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The recipe (or its base) has mistakes.
    #[error(transparent)]
    Recipe(#[from] Faults),
    /// No such recipe file.
    #[error("no recipe {}{}", .path.display(), hint(.near))]
    NoRecipe {
        /// What was asked for.
        path: PathBuf,
        /// The nearest recipe in the same directory.
        near: Option<String>,
    },
    /// The recipe can be read, but not built.
    #[error("recipe {}: {reason}", .path.display())]
    Unusable {
        /// Recipe.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// No mirror is known.
    #[error(
        "no Debian mirror found in {looked}; name one with --mirror http://HOST/debian, or in the recipe: mirrors = [...]"
    )]
    NoMirror {
        /// Where apt's sources were looked for.
        looked: String,
    },
    /// A mirror did not give a file.
    #[error("fetching {url}: {reason}")]
    Fetch {
        /// Address.
        url: String,
        /// Why.
        reason: String,
    },
    /// Bytes from a mirror or the cache are not what they should be.
    #[error(
        "{what} has {found}, expected {expected}; the mirror may be in the middle of an update: try again, or use another with --mirror"
    )]
    Mismatch {
        /// File.
        what: String,
        /// Wanted size or hash.
        expected: String,
        /// What came.
        found: String,
    },
    /// A package list's signature was refused.
    #[error("package list {url} is refused: {reason}")]
    Untrusted {
        /// Address.
        url: String,
        /// Why.
        reason: Untrusted,
    },
    /// A package list can't be read.
    #[error("package list of {url}: {why}")]
    Index {
        /// Address.
        url: String,
        /// Why.
        why: BadStanza,
    },
    /// No set of packages fits.
    #[error("choosing packages for {}: {why}", .recipe.display())]
    Unresolvable {
        /// Recipe.
        recipe: PathBuf,
        /// Why.
        why: Box<Unresolvable>,
    },
    /// A lock file does not fit the recipe or can't be read.
    #[error("lock {}: {reason}", .path.display())]
    Lock {
        /// Lock file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A package's content was refused.
    #[error("package {package}: {why}")]
    Package {
        /// Name and version.
        package: String,
        /// Why.
        why: BadPackage,
    },
    /// The kernel package lacks something.
    #[error("kernel package {package}: {why}")]
    Kernel {
        /// Name.
        package: String,
        /// What is wrong.
        why: BadKernel,
    },
    /// A program of labshift that the recipe names was not found.
    #[error("program @{name} is not in {}: run \"make build\", or name the directory with --programs", .directory.display())]
    NoProgram {
        /// Name.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// Things in the root that contradict each other; the list is complete.
    #[error("the root of {image} is not right:\n  {}", .problems.join("\n  "))]
    Root {
        /// Image name.
        image: String,
        /// One line each.
        problems: Vec<String>,
    },
    /// Maintainer scripts can't be isolated here.
    #[error(
        "scripts = true, but no isolated root can be made here: {why}; it takes bwrap (package bubblewrap), and either root, or unshare and newuidmap (package uidmap) with 65536 ids of this user in /etc/subuid and /etc/subgid"
    )]
    NotIsolated {
        /// What failed.
        why: String,
    },
    /// A maintainer script failed.
    #[error("package {package}: {script} failed ({status}) in the isolated root; its last words:\n  {}", .output.replace('\n', "\n  "))]
    Script {
        /// Name and version.
        package: String,
        /// `postinst`, say.
        script: String,
        /// How it ended.
        status: String,
        /// Last lines of what it said.
        output: String,
    },
    /// A tool from a package failed.
    #[error("{tool} failed ({status}): {output}")]
    Tool {
        /// Program.
        tool: String,
        /// Exit status.
        status: String,
        /// Last lines of what it said.
        output: String,
    },
    /// A file or directory.
    #[error("{doing} {}: {}", .path.display(), said(.why))]
    Io {
        /// What was tried, as a gerund (`writing`).
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: io::Error,
    },
    /// Secure Boot: key, certificate or signature.
    #[error("Secure Boot, {what}: {why}")]
    SecureBoot {
        /// File or image.
        what: String,
        /// Why not.
        why: crate::authenticode::Refused,
    },
    /// The signing key can't be used.
    #[error("signing key {}: {reason}", .path.display())]
    Key {
        /// File.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no store.
    #[error("no image store at {}; `labshift image build` makes one", .store.display())]
    NoStore {
        /// Where it was looked for.
        store: PathBuf,
    },
    /// A channel can't be used or moved so.
    #[error("channel {channel} of image {name}: {reason}")]
    Channel {
        /// Channel.
        channel: String,
        /// Image.
        name: String,
        /// Why.
        reason: String,
    },
    /// There is no such image in the store.
    #[error("no image \"{name}\" in {}{}", .store.display(), hint(.near))]
    NoImage {
        /// Name (and generation).
        name: String,
        /// Store.
        store: PathBuf,
        /// Nearest name.
        near: Option<String>,
    },
    /// An image that another host pushes is not taken.
    #[error("image {name} is not taken: {reason}")]
    Refused {
        /// Name.
        name: String,
        /// Why.
        reason: String,
    },
    /// An image can't be pushed.
    #[error("pushing to {url}: {reason}")]
    Push {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// A published image was changed.
    #[error("image {name} was changed after it was built: {reason}")]
    Tampered {
        /// Name and generation.
        name: String,
        /// What differs.
        reason: String,
    },
}

fn hint(near: &Option<String>) -> String {
    near.as_ref().map(|n| format!("; did you mean \"{n}\"?")).unwrap_or_default()
}

fn said(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::StorageFull => {
            "no space is left on this disk; free some, or choose another with --store and --cache".into()
        }
        io::ErrorKind::PermissionDenied => "not allowed; use a directory that you may write to".into(),
        io::ErrorKind::ReadOnlyFilesystem => "this file system is read-only; choose another directory".into(),
        _ => source.to_string(),
    }
}

/// Adds what was done and to which file.
pub(crate) trait At<T> {
    /// `doing` is a gerund.
    fn at(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T, BuildError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T, BuildError> {
        self.map_err(|why| BuildError::Io { doing, path: path.into(), why })
    }
}
