//! The kernel package: its image, and the modules an image needs of it.
//!
//! Modules are named by recipes; what they depend on is read from their `.modinfo`, and `modules.dep`,
//! `modules.alias` and `modules.devname` are written here, in the form that depmod gives them (modules.dep(5)).

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use labshift_model::fault::nearest;
use object::{Object, ObjectSection};

use crate::{
    data::Data,
    deb::Unpacked,
    glob,
    shelf::Shelf,
    tree::{Kind, Node},
};

/// What is wrong with a kernel package.
#[derive(Debug, thiserror::Error)]
pub enum BadKernel {
    /// No kernel image, no modules, or no configuration.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A module that a recipe names.
    #[error("it has no module {}", .0.join(", no module "))]
    NoModules(Vec<String>),
    /// A module's file.
    #[error("module {name} can't be read: {reason}")]
    Unreadable {
        /// Name.
        name: String,
        /// Why.
        reason: String,
    },
    /// Its unpacked files can't be written, or read back.
    #[error("its unpacked files can't be kept: {0}")]
    Spool(#[from] std::io::Error),
    /// A feature that the boot relies on is off.
    #[error("it is built without {0}, which our nodes boot with")]
    Feature(&'static str),
}

/// A kernel package's content.
#[derive(Debug)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// The boot image.
    pub image: Vec<u8>,
    /// The package that it is of.
    pub origin: Arc<str>,
    /// Names of what is compiled in.
    builtin: BTreeSet<String>,
    /// Normalised name to path below the module directory and file content, as packed.
    packed: BTreeMap<String, (String, Data)>,
    /// Modules unpacked so far.
    loaded: BTreeMap<String, Module>,
}

/// One module.
#[derive(Debug, Clone)]
pub struct Module {
    /// Name with `_`.
    pub name: String,
    /// Path below `/lib/modules/RELEASE`, ending in `.ko`.
    pub path: String,
    /// The ELF file, with its signature.
    pub content: Data,
    depends: Vec<String>,
    soft: Vec<String>,
    aliases: Vec<String>,
    /// Firmware files that it may ask for, below `/lib/firmware`.
    pub firmware: Vec<String>,
}

impl Kernel {
    /// Finds kernel and modules among a package's files.
    pub fn of_package(nodes: &[(String, Node)]) -> Result<Kernel, BadKernel> {
        let files = || {
            nodes.iter().filter_map(|(path, node)| match &node.kind {
                Kind::File(data) => Some((path.as_str(), data, &node.origin)),
                _ => None,
            })
        };
        let read = |data: &Data| data.bytes().map(Cow::into_owned).map_err(BadKernel::Spool);
        let (path, image, origin) = files()
            .find(|(path, ..)| path.starts_with("boot/vmlinuz-"))
            .ok_or(BadKernel::Missing("kernel image (boot/vmlinuz-*)"))?;
        let release = path.trim_start_matches("boot/vmlinuz-").to_owned();
        let config = format!("boot/config-{release}");
        let (_, config, _) = files()
            .find(|(path, ..)| *path == config)
            .ok_or(BadKernel::Missing("configuration (boot/config-*)"))?;
        check(&String::from_utf8_lossy(&read(config)?))?;
        let mut kernel = Kernel {
            release: release.clone(),
            image: read(image)?,
            origin: origin.clone(),
            builtin: BTreeSet::new(),
            packed: BTreeMap::new(),
            loaded: BTreeMap::new(),
        };
        let directory = format!("lib/modules/{release}/");
        for (path, data, _) in files() {
            let path = path.strip_prefix("usr/").unwrap_or(path);
            let Some(path) = path.strip_prefix(&directory) else { continue };
            if path == "modules.builtin" {
                kernel.builtin = String::from_utf8_lossy(&read(data)?).lines().map(name_of).collect();
            } else if path.contains(".ko") {
                kernel.packed.insert(name_of(path), (path.to_owned(), data.clone()));
            }
        }
        if kernel.packed.is_empty() {
            return Err(BadKernel::Missing("modules (lib/modules/*)"));
        }
        Ok(kernel)
    }

    /// The modules that names and globs mean, with everything they depend on, sorted by path. Names that are
    /// compiled in are fine; a glob may match nothing.
    pub fn select(&mut self, wanted: &[String], shelf: &Shelf) -> Result<Vec<Module>, BadKernel> {
        let mut queue: Vec<String> = vec![];
        let mut missing = vec![];
        for want in wanted {
            if want.contains(['/', '*', '?']) {
                let matching = self.packed.iter().filter(|(_, (path, _))| glob::fits(want, plain(path)));
                queue.extend(matching.map(|(name, _)| name.clone()));
            } else {
                let name = name_of(want);
                if self.packed.contains_key(&name) {
                    queue.push(name);
                } else if !self.builtin.contains(&name) {
                    let near = nearest(&name, self.packed.keys().map(String::as_str));
                    missing.push(near.map_or(want.clone(), |n| format!("{want} (did you mean {n}?)")));
                }
            }
        }
        if !missing.is_empty() {
            return Err(BadKernel::NoModules(missing));
        }
        let mut chosen: BTreeSet<String> = BTreeSet::new();
        // Round by round: what is asked for, then what that needs. The modules of a round are unpacked side by side.
        while !queue.is_empty() {
            queue.retain(|name| chosen.insert(name.clone()));
            self.load(&queue, shelf)?;
            let needed = |name: &String| {
                let module = self.loaded.get(name);
                module.into_iter().flat_map(|m| m.depends.iter().chain(&m.soft))
            };
            queue = queue.iter().flat_map(needed).filter(|n| self.packed.contains_key(*n)).cloned().collect();
        }
        let mut modules: Vec<Module> = chosen.iter().filter_map(|n| self.loaded.get(n)).cloned().collect();
        modules.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(modules)
    }

    /// Unpacks modules that are not unpacked yet, or finds them on the shelf.
    fn load(&mut self, names: &[String], shelf: &Shelf) -> Result<(), BadKernel> {
        let wanted: Vec<&String> = names.iter().filter(|n| !self.loaded.contains_key(*n)).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut modules = vec![];
            while let Some(name) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                modules.push(self.read(name, shelf)?);
            }
            Ok::<_, BadKernel>(modules)
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8).min(wanted.len());
        let loaded = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let join = |t: std::thread::ScopedJoinHandle<'_, _>| {
                t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect::<Result<Vec<Vec<Module>>, BadKernel>>()
        })?;
        self.loaded.extend(loaded.into_iter().flatten().map(|m| (m.name.clone(), m)));
        Ok(())
    }

    fn read(&self, name: &str, shelf: &Shelf) -> Result<Module, BadKernel> {
        let bad = |reason: String| BadKernel::Unreadable { name: name.to_owned(), reason };
        let (path, packed) = self.packed.get(name).ok_or_else(|| bad("it is not there".into()))?;
        let key = hex::encode(packed.sha256);
        let kept = match shelf.get(&key) {
            Some(kept) => kept,
            None => shelf.keep(&key, |sink| {
                let packed = packed.bytes().map_err(BadKernel::Spool)?;
                let content = unpack(path, &packed).map_err(|e| bad(e.to_string()))?;
                let info = modinfo(&content).map_err(bad)?;
                let content = Kind::File(
                    sink(plain(path), content.len() as u64, &mut &content[..]).map_err(BadKernel::Spool)?,
                );
                let nodes = vec![(plain(path).to_owned(), Node::made(content, 0o644))];
                Ok::<_, BadKernel>(Unpacked { nodes, control: BTreeMap::from([(MODINFO.to_owned(), info)]) })
            })?,
        };
        let Some((_, Node { kind: Kind::File(content), .. })) = kept.nodes.into_iter().next() else {
            return Err(bad("it is not there".into()));
        };
        let mut module = Module {
            name: name.to_owned(),
            path: plain(path).to_owned(),
            content,
            depends: vec![],
            soft: vec![],
            aliases: vec![],
            firmware: vec![],
        };
        for entry in kept.control.get(MODINFO).map_or("", String::as_str).split('\0') {
            let Some((key, value)) = entry.split_once('=') else { continue };
            match key {
                "depends" => {
                    module.depends = value.split(',').filter(|d| !d.is_empty()).map(name_of).collect()
                }
                "softdep" => {
                    let words = value.split_whitespace().filter(|w| !w.ends_with(':'));
                    module.soft.extend(words.map(name_of));
                }
                "alias" => module.aliases.push(value.to_owned()),
                "firmware" => module.firmware.push(value.to_owned()),
                _ => {}
            }
        }
        Ok(module)
    }
}

/// `modules.dep` of a set of modules: each with all that it needs, nearest first.
pub fn dependencies(modules: &[Module]) -> String {
    let by_name: BTreeMap<&str, &Module> = modules.iter().map(|m| (m.name.as_str(), m)).collect();
    let mut text = String::new();
    for module in modules {
        let (mut needs, mut seen) = (vec![], BTreeSet::from([module.name.as_str()]));
        for name in &module.depends {
            visit(name, &by_name, &mut seen, &mut needs);
        }
        // What is needed was noted before what needs it; the file wants it the other way round.
        needs.reverse();
        text += &format!("{}:", module.path);
        for need in needs {
            text += &format!(" {}", need.path);
        }
        text.push('\n');
    }
    text
}

fn visit<'m>(
    name: &str,
    by_name: &BTreeMap<&'m str, &'m Module>,
    seen: &mut BTreeSet<&'m str>,
    needs: &mut Vec<&'m Module>,
) {
    let Some(module) = by_name.get(name) else { return };
    if seen.insert(&module.name) {
        for next in &module.depends {
            visit(next, by_name, seen, needs);
        }
        needs.push(module);
    }
}

/// `modules.alias` of a set of modules.
pub fn aliases(modules: &[Module]) -> String {
    let lines = modules.iter().flat_map(|m| m.aliases.iter().map(move |a| format!("alias {a} {}\n", m.name)));
    lines.collect()
}

/// `modules.devname` of a set of modules: the device nodes by which each may be asked for, of those that say both name and numbers.
pub fn devices(modules: &[Module]) -> String {
    let mut text = "# Device nodes to trigger on-demand module loading.\n".to_owned();
    for module in modules {
        let find = |prefix: &str| module.aliases.iter().find_map(|alias| alias.strip_prefix(prefix));
        let numbers = [("c", "char-major-"), ("b", "block-major-")].into_iter().find_map(|(kind, prefix)| {
            let (major, minor) = find(prefix)?.split_once('-')?;
            Some(format!("{kind}{}:{}", major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        });
        if let (Some(path), Some(numbers)) = (find("devname:"), numbers) {
            text += &format!("{} {path} {numbers}\n", module.name);
        }
    }
    text
}

/// What a module says of itself, on the shelf.
const MODINFO: &str = ".modinfo";

/// The entries of that section, with a zero byte between them.
fn modinfo(content: &[u8]) -> Result<String, String> {
    let elf = object::File::parse(content).map_err(|e| e.to_string())?;
    let section = elf.section_by_name(MODINFO).ok_or("it has no .modinfo")?;
    Ok(String::from_utf8_lossy(section.data().map_err(|e| e.to_string())?).into_owned())
}

/// A module's name as the kernel spells it: of a path or a name, with `_` for `-`.
pub fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// A module's path without the suffix of its compression.
fn plain(path: &str) -> &str {
    path.trim_end_matches(".xz").trim_end_matches(".zst").trim_end_matches(".gz")
}

fn unpack(path: &str, packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut content = vec![];
    match path.rsplit('.').next() {
        Some("xz") => liblzma::read::XzDecoder::new(packed).read_to_end(&mut content)?,
        Some("zst") => zstd::Decoder::new(packed)?.read_to_end(&mut content)?,
        Some("gz") => flate2::read::GzDecoder::new(packed).read_to_end(&mut content)?,
        _ => packed.take(u64::MAX).read_to_end(&mut content)?,
    };
    Ok(content)
}

/// Options without which no image of ours boots.
fn check(config: &str) -> Result<(), BadKernel> {
    for option in ["CONFIG_RD_ZSTD", "CONFIG_EROFS_FS_ZIP_ZSTD", "CONFIG_DEVTMPFS"] {
        if !config.lines().any(|l| l == format!("{option}=y")) {
            return Err(BadKernel::Feature(option));
        }
    }
    for option in ["CONFIG_EROFS_FS", "CONFIG_DM_VERITY", "CONFIG_OVERLAY_FS", "CONFIG_BLK_DEV_LOOP"] {
        if !config.lines().any(|l| l == format!("{option}=y") || l == format!("{option}=m")) {
            return Err(BadKernel::Feature(option));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, depends: &[&str], aliases: &[&str]) -> Module {
        Module {
            name: name.into(),
            path: format!("kernel/{name}.ko"),
            content: Data::new(*b""),
            depends: depends.iter().map(|d| (*d).to_owned()).collect(),
            soft: vec![],
            aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
            firmware: vec![],
        }
    }

    #[test]
    fn dependencies_come_after_what_needs_them() {
        let modules = [
            module("a", &["b", "c"], &["pci:v1d2*"]),
            module("b", &["c"], &[]),
            module("c", &["builtin"], &[]),
        ];
        assert_eq!(
            dependencies(&modules),
            "kernel/a.ko: kernel/b.ko kernel/c.ko\nkernel/b.ko: kernel/c.ko\nkernel/c.ko:\n"
        );
        assert_eq!(aliases(&modules), "alias pci:v1d2* a\n");
    }

    #[test]
    fn device_nodes_have_a_name_and_numbers() {
        let modules = [
            module("tun", &[], &["devname:net/tun", "char-major-10-200"]),
            module("loop", &[], &["devname:loop-control", "char-major-10-237", "block-major-7-*"]),
            module("btrfs", &[], &["devname:btrfs-control"]),
            module("sd_mod", &[], &["block-major-8-*"]),
        ];
        let text = devices(&modules);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines, ["tun net/tun c10:200", "loop loop-control c10:237"]);
    }

    #[test]
    fn a_circle_ends() {
        let modules = [module("a", &["b"], &[]), module("b", &["a"], &[])];
        assert!(dependencies(&modules).contains("kernel/a.ko: kernel/b.ko"));
    }

    #[test]
    fn names() {
        assert_eq!(name_of("kernel/drivers/md/dm-verity.ko.xz"), "dm_verity");
        assert_eq!(name_of("kvm-amd"), "kvm_amd");
    }

    #[test]
    fn features_are_checked() {
        assert_eq!(
            check("").unwrap_err().to_string(),
            "it is built without CONFIG_RD_ZSTD, which our nodes boot with"
        );
    }
}
