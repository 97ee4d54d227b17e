//! Programs of Debian packages, run from the cache: `mkfs.erofs` is the one of the image's own suite, whatever
//! the builder's system is, started by its own dynamic loader.

use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use labshift_model::recipe::Recipe;

use crate::{
    cache::Cache,
    deb,
    error::{At, BuildError},
    lock::Lock,
    tree::{Kind, Tree},
};

/// Packages whose programs or files the builder uses.
const PACKAGES: [&str; 2] = ["erofs-utils", "systemd-boot-efi"];
/// The package of the rescue shell. It is no package of the image: a root may hold the other busybox.
const SHELL_PACKAGE: &str = "busybox-static";
/// The rescue shell in it.
const SHELL: &str = "usr/bin/busybox";

/// The packages that building a recipe needs.
pub fn packages(recipe: &Recipe) -> Vec<String> {
    let shell = recipe.rescue.is_some().then_some(SHELL_PACKAGE);
    PACKAGES.into_iter().chain(shell).map(str::to_owned).collect()
}

const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";

/// Unpacked tools.
pub struct Tools {
    directory: PathBuf,
}

impl Tools {
    /// Unpacks the lock's tools, unless that was done before.
    pub fn prepare(
        cache: &Cache,
        lock: &Lock,
        read: impl Fn(usize) -> Result<fs::File, BuildError>,
    ) -> Result<Tools, BuildError> {
        let mut identity = lock.clone();
        identity.packages.clear();
        identity.helpers = None;
        let directory = cache.directory().join("tools").join(&identity.digest()[..16]);
        let tools = Tools { directory: directory.clone() };
        if directory.is_dir() {
            return Ok(tools);
        }
        let mut tree = Tree::new();
        for (i, locked) in lock.tools.iter().enumerate() {
            let keep = |path: &str| !path.starts_with("usr/share/");
            let package = format!("{} {}", locked.name, locked.version);
            let unpacked = deb::unpack(read(i)?, &locked.name, &keep, &mut deb::in_memory)
                .map_err(|why| BuildError::Package { package, why })?;
            for (path, node) in unpacked.nodes {
                tree.put(&path, node);
            }
        }
        let fresh = cache.scratch("tools")?;
        extract(&tree, fresh.path())?;
        match fs::rename(fresh.path(), &directory) {
            Ok(()) => Ok(tools),
            // Another build was faster.
            Err(_) if directory.is_dir() => Ok(tools),
            Err(e) => Err(e).at("moving the tools to", &directory),
        }
    }

    /// A file's content.
    pub fn file(&self, path: &str) -> Result<Vec<u8>, BuildError> {
        let path = self.directory.join(path);
        fs::read(&path).at("reading", &path)
    }

    /// The rescue shell.
    pub fn shell(&self) -> Result<Vec<u8>, BuildError> {
        self.file(SHELL)
    }

    /// Runs a program with `feed` writing to its standard input; it writes below `workplace`.
    pub fn run(
        &self,
        program: &str,
        arguments: &[String],
        workplace: &Path,
        feed: impl FnOnce(&mut dyn Write) -> std::io::Result<()> + Send,
    ) -> Result<(), BuildError> {
        let library = |d: &str| self.directory.join(d).display().to_string();
        let libraries = [library("usr/lib/x86_64-linux-gnu"), library("usr/lib")].join(":");
        let loader = self.directory.join(LOADER);
        // The user's umask shows in what mkfs.erofs writes (the mode of its packed inode): every builder has this one.
        let mut child = Command::new("/bin/sh")
            .args(["-c", "umask 022; exec \"$@\"", "sh"])
            .arg(&loader)
            .args(["--library-path", &libraries])
            .arg(self.directory.join(program))
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .at("starting", &loader)?;
        let input = child.stdin.take();
        let fed = std::thread::scope(|scope| {
            let writer = scope.spawn(|| match input {
                Some(mut pipe) => feed(&mut pipe),
                None => Ok(()),
            });
            let output = child.wait_with_output();
            (writer.join(), output)
        });
        let (fed, output) = fed;
        let output = output.at("running", program)?;
        if !output.status.success() {
            if let Some(full) = full_disk(workplace) {
                return Err(full);
            }
            let text = [output.stderr, output.stdout].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            let mut last: Vec<&str> = text.lines().rev().take(6).collect();
            last.reverse();
            return Err(BuildError::Tool {
                tool: program.to_owned(),
                status: output.status.to_string(),
                output: last.join("; "),
            });
        }
        match fed {
            Ok(fed) => fed.at("writing to", program),
            Err(_) => Err(BuildError::Tool {
                tool: program.to_owned(),
                status: "unfinished".into(),
                output: "its input ended early".into(),
            }),
        }
    }
}

/// Tools report a full disk in many ways: looked at here, it is said in one.
fn full_disk(directory: &Path) -> Option<BuildError> {
    let space = nix::sys::statvfs::statvfs(directory).ok()?;
    let left = space.blocks_available() as u64 * space.fragment_size() as u64;
    (left < 1 << 20).then(|| BuildError::Io {
        doing: "writing in",
        path: directory.to_owned(),
        why: std::io::ErrorKind::StorageFull.into(),
    })
}

/// Writes a tree into a directory; owners are not kept.
pub(crate) fn extract(tree: &Tree, into: &Path) -> Result<(), BuildError> {
    for (path, node) in tree.iter() {
        let target = into.join(path);
        match &node.kind {
            Kind::Directory => {
                fs::create_dir_all(&target).at("making", &target)?;
                // Others than the owner may have to pass, whatever the user's umask is.
                let mode = fs::Permissions::from_mode(0o755);
                fs::set_permissions(&target, mode).at("setting the mode of", &target)?;
            }
            Kind::Link(to) => symlink(to, &target).at("linking", &target)?,
            Kind::File(data) => {
                let mut options = fs::OpenOptions::new();
                options.write(true).create_new(true).mode(node.mode & 0o755 | 0o600);
                let mut file = options.open(&target).at("writing", &target)?;
                data.copy_to(&mut file).at("writing", &target)?;
            }
        }
    }
    Ok(())
}
