//! An image recipe: what an image is made of, as an admin writes it.
//!
//! [`Recipe::parse`] reads one file and reports all its mistakes at once. A recipe may extend one other
//! ([`Recipe::extends`]): whoever reads files loads that one too and joins them with [`Recipe::over`]. Then
//! [`Recipe::image`] says whether the whole can be built.

mod entries;
mod reading;
mod words;

use jiff::Timestamp;

use crate::{
    fault::{Faults, Source},
    manifest::{ImageKind, LocalDisk},
    service::{MODULES, Service},
};

/// One recipe file, or several joined by [`Recipe::over`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recipe {
    /// Image name. A recipe without one is only a base for others.
    pub name: Option<String>,
    /// Host or guest.
    pub kind: Option<ImageKind>,
    /// Recipe that this one adds to, as a path relative to this file.
    pub extends: Option<String>,
    /// Debian suite (`trixie` when absent). Its updates and security suites are used where the mirror has them.
    pub suite: Option<String>,
    /// Components (`main` when empty).
    pub components: Vec<String>,
    /// Mirrors to use instead of the machine's own apt sources.
    pub mirrors: Vec<String>,
    /// OpenPGP key ring file that the mirror's signature must match, instead of Debian's.
    pub keyring: Option<String>,
    /// Packages to install, with all that they depend on.
    pub packages: Vec<String>,
    /// Packages that stay out although something depends on them.
    pub leave_out: Vec<String>,
    /// Maintainer scripts that nobody has reviewed are an error, not a warning.
    pub strict: Option<bool>,
    /// Maintainer scripts are run, in an isolated root.
    pub scripts: Option<bool>,
    /// Kernel package.
    pub kernel: Option<String>,
    /// Kernel arguments, in order.
    pub arguments: Vec<String>,
    /// Modules for the initramfs: names or globs over paths below `kernel/`; dependencies come along.
    pub initrd_modules: Vec<String>,
    /// Modules that init loads from the root, in order; names only.
    pub root_modules: Vec<String>,
    /// Modules kept in the root for hardware that may be there: names or globs.
    pub keep_modules: Vec<String>,
    /// Files added to the root.
    pub files: Vec<File>,
    /// Users added.
    pub users: Vec<User>,
    /// Groups added.
    pub groups: Vec<Group>,
    /// What PID 1 supervises.
    pub services: Vec<Service>,
    /// Globs of paths that are left out of the root (`*` stays within a directory, `**` does not).
    pub prune: Vec<String>,
    /// TCP ports that the node may listen on.
    pub ports: Vec<u16>,
    /// Host name until the server gives one.
    pub hostname: Option<String>,
    /// Days for which a signature of the image is good; for ever when absent.
    pub valid_days: Option<u32>,
    /// Machines that boot this image refuse images that were signed before.
    pub minimum: Option<Timestamp>,
    /// Who signs the kernel image for Secure Boot.
    pub secure_boot: Option<SecureBoot>,
    /// The local disk that machines may use; none when absent.
    pub disk: Option<LocalDisk>,
    /// Who may open a shell on a machine whose boot has failed; nobody when absent.
    pub rescue: Option<Rescue>,
}

/// Who signs the kernel image for UEFI's Secure Boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecureBoot {
    /// Path of the certificate that the machines' firmware knows.
    pub cert: String,
    /// Path of its key; absent when somebody else signs later.
    pub key: Option<String>,
}

/// Who may open a shell on a machine whose boot has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rescue {
    /// Hash of the password, in the form of `/etc/shadow`: yescrypt (`$y$`), SHA-512 (`$6$`) or SHA-256 (`$5$`).
    pub password: Option<String>,
    /// Lines of public keys, whose owners work out a code for the machine's challenge.
    pub keys: Vec<String>,
}

impl Rescue {
    /// The content of [`crate::paths::RESCUE`], without its last line end.
    pub fn lines(&self) -> String {
        let lines: Vec<&str> = self.password.iter().chain(&self.keys).map(String::as_str).collect();
        lines.join("\n")
    }
}

/// One file, link or directory that a recipe adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Absolute path in the root.
    pub dest: String,
    /// Where its content comes from.
    pub content: Content,
    /// Permission bits.
    pub mode: u32,
    /// `user` or `user:group`, by name.
    pub owner: String,
}

/// Where a file's content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file beside the recipe.
    Path(String),
    /// A program of labshift (written `@name`).
    Program(String),
    /// Given in the recipe itself.
    Text(String),
    /// A symbolic link to this target.
    Link(String),
    /// An empty directory.
    Directory,
}

/// A user that a recipe adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id, and group id of the group of the same name unless `group` names another.
    pub uid: u32,
    /// Primary group.
    pub group: Option<String>,
    /// Further groups.
    pub groups: Vec<String>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// A group that a recipe adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Group id.
    pub gid: u32,
}

/// What a complete recipe must have, all present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image<'r> {
    /// Image name.
    pub name: &'r str,
    /// Host or guest.
    pub kind: ImageKind,
    /// Kernel package.
    pub kernel: &'r str,
}

impl Recipe {
    /// Parses one file; `file_name` is only for messages.
    pub fn parse(file_name: &str, text: &str) -> Result<Recipe, Faults> {
        let source = Source::new(file_name, text);
        let recipe = reading::read(&source);
        source.finish(Some(recipe))
    }

    /// This recipe on top of `base`: lists follow the base's, single values and entries of the same name win.
    pub fn over(self, base: Recipe) -> Recipe {
        fn joined<T: PartialEq>(mut base: Vec<T>, own: Vec<T>) -> Vec<T> {
            base.retain(|b| !own.contains(b));
            base.extend(own);
            base
        }
        fn by_key<T, K: PartialEq>(mut base: Vec<T>, own: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
            base.retain(|b| !own.iter().any(|o| key(o) == key(b)));
            base.extend(own);
            base
        }
        Recipe {
            name: self.name,
            kind: self.kind.or(base.kind),
            extends: base.extends,
            suite: self.suite.or(base.suite),
            components: joined(base.components, self.components),
            mirrors: if self.mirrors.is_empty() { base.mirrors } else { self.mirrors },
            keyring: self.keyring.or(base.keyring),
            packages: joined(base.packages, self.packages),
            leave_out: joined(base.leave_out, self.leave_out),
            strict: self.strict.or(base.strict),
            scripts: self.scripts.or(base.scripts),
            kernel: self.kernel.or(base.kernel),
            arguments: joined(base.arguments, self.arguments),
            initrd_modules: joined(base.initrd_modules, self.initrd_modules),
            root_modules: joined(base.root_modules, self.root_modules),
            keep_modules: joined(base.keep_modules, self.keep_modules),
            files: by_key(base.files, self.files, |f| f.dest.clone()),
            users: by_key(base.users, self.users, |u| u.name.clone()),
            groups: by_key(base.groups, self.groups, |g| g.name.clone()),
            services: by_key(base.services, self.services, |s| s.name.clone()),
            prune: joined(base.prune, self.prune),
            ports: joined(base.ports, self.ports),
            hostname: self.hostname.or(base.hostname),
            valid_days: self.valid_days.or(base.valid_days),
            minimum: self.minimum.max(base.minimum),
            secure_boot: self.secure_boot.or(base.secure_boot),
            disk: self.disk.or(base.disk),
            rescue: self.rescue.or(base.rescue),
        }
    }

    /// The parts that an image can't do without, or what is missing, in words.
    pub fn image(&self) -> Result<Image<'_>, String> {
        let name = self.name.as_deref().ok_or("it has no \"name\": it is a base for other recipes")?;
        let kind = self.kind.ok_or("it has no \"kind\": write kind = \"host\" or kind = \"guest\"")?;
        let kernel = self.kernel.as_deref().ok_or("it has no kernel: write [kernel] package = \"...\"")?;
        if kind == ImageKind::Guest && self.secure_boot.is_some() {
            return Err("[secure_boot] is for images of kind \"host\": a guest has no kernel image of its own to sign".into());
        }
        let both = self.packages.iter().find(|p| self.leave_out.contains(p));
        if let Some(package) = both {
            return Err(format!("package {package} is in \"packages\" and in \"leave_out\": remove one"));
        }
        let names: Vec<&str> = self.services.iter().map(|s| s.name.as_str()).collect();
        for service in &self.services {
            if let Some(unknown) =
                service.after.iter().find(|a| !names.contains(&a.as_str()) && *a != MODULES)
            {
                return Err(format!(
                    "service {} starts after \"{unknown}\", which is no service of this image",
                    service.name
                ));
            }
            let same = |other: &&Service| other.name != service.name && other.listen == service.listen;
            if let Some(path) = &service.listen
                && let Some(other) = self.services.iter().find(same)
            {
                return Err(format!(
                    "services {} and {} both listen at {path}: one path, one service",
                    service.name, other.name
                ));
            }
        }
        Ok(Image { name, kind, kernel })
    }

    /// The suite, with its default.
    pub fn suite(&self) -> &str {
        self.suite.as_deref().unwrap_or("trixie")
    }
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
