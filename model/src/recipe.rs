//! An image recipe: what an image is made of, as an admin writes it.
//!
//! [`Recipe::parse`] reads one file and reports all its mistakes at once. A recipe may extend one other
//! ([`Recipe::extends`]): whoever reads files loads that one too and joins them with [`Recipe::over`]. Then
//! [`Recipe::image`] says whether the whole can be built.

use jiff::{Timestamp, civil, tz::TimeZone};
use toml::Spanned;

use crate::{
    fault::{Faults, Section, Source},
    manifest::{ImageKind, LocalDisk},
    rescue::AdminKey,
    service::{Limits, MODULES, Restart, Service},
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
        let recipe = read(&source);
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
        }
        Ok(Image { name, kind, kernel })
    }

    /// The suite, with its default.
    pub fn suite(&self) -> &str {
        self.suite.as_deref().unwrap_or("trixie")
    }
}

fn read(source: &Source<'_>) -> Recipe {
    let root = source.root();
    let name = root.string("name").and_then(|n| checked(source, n, "an image name", is_name));
    let kind = root.string("kind").and_then(|k| match *k.get_ref() {
        "host" => Some(ImageKind::Host),
        "guest" => Some(ImageKind::Guest),
        other => {
            source.fault(k.span(), format!("unknown kind \"{other}\""), "known kinds: host, guest");
            None
        }
    });
    let (mut kernel, mut arguments) = (None, vec![]);
    if let Some(section) = root.section("kernel") {
        kernel = section.string("package").and_then(|p| checked(source, p, "a package name", is_package));
        arguments = all(source, section.strings("arguments"), "one kernel argument", is_argument);
        section.close();
    }
    let (mut initrd_modules, mut root_modules, mut keep_modules) = (vec![], vec![], vec![]);
    if let Some(section) = root.section("modules") {
        initrd_modules = all(source, section.strings("initrd"), "a module name or glob", is_glob);
        root_modules = all(source, section.strings("root"), "a module name", is_module);
        keep_modules = all(source, section.strings("keep"), "a module name or glob", is_glob);
        section.close();
    }
    let secure_boot = root.section("secure_boot").and_then(|section| {
        let cert = section.required("cert", "the certificate (PEM or DER) that the machines' firmware knows");
        let key = text(section.string("key"));
        section.close();
        Some(SecureBoot { cert: (*cert?.get_ref()).to_owned(), key })
    });
    let disk = root.section("disk").map(|section| {
        let (span, disk) = (section.span(), disk(source, &section));
        section.close();
        if disk.partition.is_some() == disk.serial.is_some() {
            source.fault(
                span,
                "[disk] must say how the disk is recognised".to_owned(),
                "give exactly one of: partition = \"GPT NAME\", serial = \"NUMBER\"",
            );
        }
        disk
    });
    if disk.is_some() {
        initrd_modules.extend(DISK_MODULES.map(str::to_owned));
    }
    let rescue = root.section("rescue").and_then(|section| {
        let password = section.string("password").and_then(|p| {
            if is_password_hash(p.get_ref()) {
                return Some((*p.get_ref()).to_owned());
            }
            // The value is not repeated: it may be the password itself.
            source.fault(
                p.span(),
                "this is no password hash as in /etc/shadow".to_owned(),
                "known are yescrypt ($y$), SHA-512 ($6$) and SHA-256 ($5$): mkpasswd -m yescrypt prints one",
            );
            None
        });
        let is_key = |line: &str| !line.contains(char::is_control) && line.parse::<AdminKey>().is_ok();
        let keys = all(source, section.strings("keys"), "a public key (ssh-ed25519 AAAA...)", is_key);
        if section.string("password").is_none() && section.strings("keys").is_empty() {
            section.missing("keys", "lines of id_ed25519.pub; or give `password`, a hash");
        }
        section.close();
        (password.is_some() || !keys.is_empty()).then_some(Rescue { password, keys })
    });
    let recipe = Recipe {
        name,
        kind,
        extends: text(root.string("extends")),
        suite: root.string("suite").and_then(|s| checked(source, s, "a suite name", is_name)),
        components: all(source, root.strings("components"), "a component name", is_name),
        mirrors: all(source, root.strings("mirrors"), "a mirror's address", is_url),
        keyring: text(root.string("keyring")),
        packages: all(source, root.strings("packages"), "a package name", is_package),
        leave_out: all(source, root.strings("leave_out"), "a package name", is_package),
        strict: root.boolean("strict"),
        scripts: root.boolean("scripts"),
        kernel,
        arguments,
        initrd_modules,
        root_modules,
        keep_modules,
        files: root.sections("file").into_iter().filter_map(|s| file(source, s)).collect(),
        users: root.sections("user").into_iter().filter_map(|s| user(source, s)).collect(),
        groups: root.sections("group").into_iter().filter_map(|s| group(source, s)).collect(),
        services: root.sections("service").into_iter().filter_map(|s| service(source, s)).collect(),
        prune: all(source, root.strings("prune"), "a glob without a leading /", is_relative),
        ports: ports(source, &root),
        hostname: root.string("hostname").and_then(|h| checked(source, h, "a host name", is_name)),
        valid_days: root.integer("valid_days", 1..=36_500).and_then(|days| u32::try_from(days).ok()),
        minimum: root
            .string("minimum")
            .and_then(|m| checked(source, m, "a date like 2026-10-01", |m| day(m).is_some()))
            .and_then(|m| day(&m)),
        secure_boot,
        disk,
        rescue,
    };
    twice(source, &root);
    root.close();
    recipe
}

/// Names that may stand only once in one file.
fn twice(source: &Source<'_>, root: &Section<'_, '_>) {
    for (table, key) in [("file", "dest"), ("user", "name"), ("group", "name"), ("service", "name")] {
        let mut seen = vec![];
        for section in root.sections(table) {
            let Some(name) = section.string(key) else { continue };
            if seen.contains(name.get_ref()) {
                source.fault(
                    name.span(),
                    format!("[[{table}]] \"{}\" is here twice", name.get_ref()),
                    "remove one",
                );
            }
            seen.push(name.into_inner());
        }
    }
}

fn text(value: Option<Spanned<&str>>) -> Option<String> {
    value.map(|v| (*v.get_ref()).to_owned())
}

fn checked(
    source: &Source<'_>,
    value: Spanned<&str>,
    wanted: &str,
    ok: impl Fn(&str) -> bool,
) -> Option<String> {
    if ok(value.get_ref()) {
        return Some((*value.get_ref()).to_owned());
    }
    source.fault(value.span(), format!("\"{}\" is not {wanted}", value.get_ref()), "");
    None
}

fn all(
    source: &Source<'_>,
    values: Vec<Spanned<&str>>,
    wanted: &str,
    ok: impl Fn(&str) -> bool,
) -> Vec<String> {
    values.into_iter().filter_map(|v| checked(source, v, wanted, &ok)).collect()
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.len() <= 63
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c))
}

/// The beginning of a day, in UTC.
fn day(text: &str) -> Option<Timestamp> {
    let date: civil::Date = text.parse().ok()?;
    date.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// What reaches the disks of usual machines, and encrypts swap.
const DISK_MODULES: [&str; 8] = [
    "kernel/drivers/nvme/host/nvme.*",
    "kernel/drivers/ata/ahci.*",
    "kernel/drivers/scsi/sd_mod.*",
    "kernel/drivers/block/virtio_blk.*",
    "kernel/drivers/md/dm-crypt.*",
    "kernel/crypto/xts.*",
    "kernel/crypto/ecb.*",
    "kernel/arch/x86/crypto/aesni-intel.*",
];

fn disk(source: &Source<'_>, section: &Section<'_, '_>) -> LocalDisk {
    let named = |key: &str, value: Option<Spanned<&str>>| {
        let wanted = format!("a {key} of 1 to 64 printable characters");
        let plain = |text: &str| (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());
        value.and_then(|value| checked(source, value, &wanted, plain))
    };
    LocalDisk {
        partition: named("partition name", section.string("partition")),
        serial: named("serial number", section.string("serial")),
    }
}

/// The form of crypt(5): method, parameters or salt, hash.
fn is_password_hash(text: &str) -> bool {
    let fields: Vec<&str> = text.split('$').collect();
    let form = match fields[..] {
        ["", "y", parameters, salt, hash] => !parameters.is_empty() && !salt.is_empty() && hash.len() == 43,
        ["", "5", .., hash] => (4..=5).contains(&fields.len()) && hash.len() == 43,
        ["", "6", .., hash] => (4..=5).contains(&fields.len()) && hash.len() == 86,
        _ => false,
    };
    form && text.len() <= 256 && text.chars().all(|c| c.is_ascii_alphanumeric() || "./$=,".contains(c))
}

fn is_package(text: &str) -> bool {
    text.len() >= 2
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
}

fn is_module(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
}

fn is_glob(text: &str) -> bool {
    is_module(text) || is_relative(text)
}

fn is_relative(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('/') && text.split('/').all(|part| part != ".." && !part.is_empty())
}

fn is_absolute(text: &str) -> bool {
    text.strip_prefix('/').is_some_and(is_relative)
}

fn is_argument(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())
}

fn is_url(text: &str) -> bool {
    ["http://", "https://"]
        .iter()
        .any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
}

fn is_owner(text: &str) -> bool {
    let (user, group) = text.split_once(':').unwrap_or((text, "root"));
    [user, group].into_iter().all(is_account)
}

fn is_account(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.len() <= 31
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c))
}

fn ports(source: &Source<'_>, root: &Section<'_, '_>) -> Vec<u16> {
    let ports = root.strings("ports");
    let parsed = ports.into_iter().filter_map(|port| match port.get_ref().parse::<u16>() {
        Ok(number) if number > 0 => Some(number),
        _ => {
            source.fault(
                port.span(),
                format!("\"{}\" is not a TCP port", port.get_ref()),
                "write ports as strings of numbers from 1 to 65535",
            );
            None
        }
    });
    parsed.collect()
}

fn file(source: &Source<'_>, section: Section<'_, '_>) -> Option<File> {
    let dest = section
        .required("dest", "the absolute path in the image")
        .and_then(|d| checked(source, d, "an absolute path without \"..\"", is_absolute));
    let from = section.string("source").map(|s| match s.get_ref().strip_prefix('@') {
        Some(program) => Content::Program(program.to_owned()),
        None => Content::Path((*s.get_ref()).to_owned()),
    });
    let inline = text(section.string("text")).map(Content::Text);
    let link = text(section.string("link")).map(Content::Link);
    let directory = section.boolean("directory").filter(|d| *d).map(|_| Content::Directory);
    let is_program = matches!(from, Some(Content::Program(_)));
    let is_directory = directory.is_some();
    let mut contents: Vec<Content> = [from, inline, link, directory].into_iter().flatten().collect();
    if contents.len() != 1 {
        source.fault(
            section.span(),
            format!("[[file]] has {} contents", if contents.is_empty() { "no" } else { "several" }),
            "give exactly one of: source = \"path or @program\", text = \"...\", link = \"target\", directory = true",
        );
    }
    let default = if is_program || is_directory { 0o755 } else { 0o644 };
    let mode = match section.string("mode") {
        None => default,
        Some(mode) => match u32::from_str_radix(mode.get_ref(), 8) {
            Ok(bits) if bits <= 0o7777 => bits,
            _ => {
                source.fault(
                    mode.span(),
                    format!("\"{}\" is not a file mode", mode.get_ref()),
                    "write it in octal, such as mode = \"0644\"",
                );
                default
            }
        },
    };
    let owner = match section.string("owner") {
        None => Some("root:root".to_owned()),
        Some(owner) => checked(source, owner, "an owner (user or user:group)", is_owner),
    };
    section.close();
    Some(File { dest: dest?, content: contents.pop()?, mode, owner: owner? })
}

fn user(source: &Source<'_>, section: Section<'_, '_>) -> Option<User> {
    let name = section
        .required("name", "the login name")
        .and_then(|n| checked(source, n, "a user name", is_account));
    let uid = section.integer("uid", 1..=65_533);
    if uid.is_none() {
        section.missing("uid", "ids are fixed, so that two builds are the same");
    }
    let group = section.string("group").and_then(|g| checked(source, g, "a group name", is_account));
    let groups = all(source, section.strings("groups"), "a group name", is_account);
    let home = text(section.string("home")).unwrap_or_else(|| "/nonexistent".to_owned());
    let shell = text(section.string("shell")).unwrap_or_else(|| "/usr/sbin/nologin".to_owned());
    section.close();
    Some(User { name: name?, uid: u32::try_from(uid?).ok()?, group, groups, home, shell })
}

fn group(source: &Source<'_>, section: Section<'_, '_>) -> Option<Group> {
    let name = section
        .required("name", "the group's name")
        .and_then(|n| checked(source, n, "a group name", is_account));
    let gid = section.integer("gid", 1..=65_533);
    if gid.is_none() {
        section.missing("gid", "ids are fixed, so that two builds are the same");
    }
    section.close();
    Some(Group { name: name?, gid: u32::try_from(gid?).ok()? })
}

fn service(source: &Source<'_>, section: Section<'_, '_>) -> Option<Service> {
    let name = section
        .required("name", "the service's name")
        .and_then(|n| checked(source, n, "a service name", is_name));
    let exec = section.strings("exec");
    match exec.first() {
        None => section.missing("exec", "the absolute path of the program, then its arguments"),
        Some(program) if !is_absolute(program.get_ref()) => source.fault(
            program.span(),
            format!("\"{}\" is not an absolute path", program.get_ref()),
            "no shell and no PATH are involved: name the program in full",
        ),
        Some(_) => {}
    }
    let restart = match section.string("restart") {
        None => Restart::default(),
        Some(text) => match *text.get_ref() {
            "always" => Restart::Always,
            "on-failure" => Restart::OnFailure,
            "never" => Restart::Never,
            other => {
                source.fault(
                    text.span(),
                    format!("unknown restart rule \"{other}\""),
                    "known rules: always, on-failure, never",
                );
                Restart::default()
            }
        },
    };
    let limit = |number: Option<i64>| number.and_then(|n| u32::try_from(n).ok());
    let service = Service {
        name: name.unwrap_or_default(),
        exec: exec.into_iter().map(|e| (*e.get_ref()).to_owned()).collect(),
        after: all(source, section.strings("after"), "a service name", is_name),
        restart,
        environment: all(source, section.strings("environment"), "a NAME=value pair", |e| {
            e.split_once('=').is_some_and(|(name, _)| !name.is_empty())
        }),
        user: section.string("user").and_then(|u| checked(source, u, "a user name", is_account)),
        ready: section.string("ready").and_then(|r| checked(source, r, "an absolute path", is_absolute)),
        tty: section.string("tty").and_then(|t| checked(source, t, "an absolute path", is_absolute)),
        limits: Limits {
            memory_mib: limit(section.integer("memory_mib", 4..=16_777_216)),
            cpu_weight: limit(section.integer("cpu_weight", 1..=10_000)),
            processes: limit(section.integer("processes", 1..=1_000_000)),
        },
    };
    section.close();
    (!service.name.is_empty()).then_some(service)
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
