//! Kernel modules: which file a hardware alias asks for, and what must be loaded before it.
//!
//! Reads `modules.dep` and `modules.alias` in depmod's text form. Loading is `finit_module`, dependencies first.
//!
//! ```text
//! /sys/**/modalias ─┐
//! names of a recipe ├─> Index::wanted ─> Index::order ─> load, each once
//! kernel's modprobe ┘
//! ```

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::{glob, journal::JOURNAL, sys};

/// What depmod knows of one kernel's modules.
#[derive(Debug, Default)]
pub struct Index {
    /// Normalised name to its path below the module directory and its dependencies' paths.
    files: HashMap<String, (String, Vec<String>)>,
    /// Alias patterns without `*` or `?` or `[`, by pattern.
    exact: HashMap<String, Vec<String>>,
    /// Other patterns, by their bus: the text before the first `:`. Those that leave the bus open (`acpi*:`) are under the empty
    /// one.
    patterns: HashMap<String, Vec<(String, String)>>,
}

impl Index {
    /// Parses both files. Lines that make no sense are skipped: a missing module shows up when it is wanted.
    pub fn parse(dep: &str, alias: &str) -> Self {
        let mut index = Self::dependencies(dep);
        index.add_aliases(alias);
        index
    }

    /// Parses `modules.dep` alone.
    fn dependencies(dep: &str) -> Self {
        let mut index = Index::default();
        for line in dep.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                index.files.insert(name_of(path), (path.trim().to_owned(), needs));
            }
        }
        index
    }

    /// Adds `modules.alias`.
    fn add_aliases(&mut self, alias: &str) {
        let index = self;
        for line in alias.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next()) {
                let module = name_of(module);
                if pattern.contains(['*', '?', '[']) {
                    let bus = pattern.split(':').next().filter(|bus| !bus.contains(['*', '?', '[']));
                    index
                        .patterns
                        .entry(bus.unwrap_or_default().to_owned())
                        .or_default()
                        .push((pattern.to_owned(), module));
                } else {
                    index.exact.entry(pattern.replace('-', "_")).or_default().push(module);
                }
            }
        }
    }

    /// Modules that a device's modalias, or the kernel's request by alias or name, asks for.
    pub fn wanted(&self, alias: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let name = name_of(alias);
        if self.files.contains_key(&name) {
            found.insert(name);
        }
        found.extend(self.exact.get(&alias.replace('-', "_")).into_iter().flatten().cloned());
        let bus = alias.split(':').next().unwrap_or_default();
        let of_bus = [bus, ""].into_iter().filter_map(|bus| self.patterns.get(bus)).flatten();
        found.extend(
            of_bus.filter(|(p, _)| glob::fits(p.as_bytes(), alias.as_bytes())).map(|(_, m)| m.clone()),
        );
        found
    }

    /// Which modules these aliases ask for, of those whose path is `chosen`; and the aliases that ask for no other.
    fn choose(
        &self,
        aliases: impl Iterator<Item = String>,
        chosen: impl Fn(&str) -> bool,
    ) -> (BTreeSet<String>, Vec<String>) {
        let (mut modules, mut settled) = (BTreeSet::new(), vec![]);
        for alias in aliases {
            let wanted = self.wanted(&alias).into_iter();
            let (now, later): (Vec<_>, Vec<_>) = wanted.partition(|m| chosen(self.path(m)));
            modules.extend(now);
            if later.is_empty() {
                settled.push(alias);
            }
        }
        (modules, settled)
    }

    /// Files to load for a module, dependencies first. Empty when the module is not there.
    pub fn order(&self, module: &str) -> Vec<&str> {
        let mut order = Vec::new();
        self.visit(&name_of(module), &mut order, &mut HashSet::new());
        order
    }

    fn visit<'a>(&'a self, name: &str, order: &mut Vec<&'a str>, seen: &mut HashSet<String>) {
        let Some((path, needs)) = self.files.get(name) else { return };
        if !seen.insert(name.to_owned()) {
            return;
        }
        // depmod lists the nearest dependency first; each entry's own list puts them into order.
        for need in needs {
            self.visit(&name_of(need), order, seen);
        }
        order.push(path);
    }

    /// True for a CPU's own implementation of a cipher or hash.
    fn is_accelerator(&self, module: &str) -> bool {
        self.files
            .get(module)
            .is_some_and(|(path, _)| path.starts_with("kernel/arch/") && path.contains("/crypto/"))
    }

    /// A module's file, below the module directory; empty when there is none.
    fn path(&self, module: &str) -> &str {
        self.files.get(module).map_or("", |(path, _)| path)
    }

    /// True when the module has a file.
    pub fn has(&self, module: &str) -> bool {
        self.files.contains_key(&name_of(module))
    }
}

/// `kernel/drivers/net/virtio-net.ko.xz` is module `virtio_net`.
fn name_of(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

/// A module that did not load.
#[derive(Debug, thiserror::Error)]
#[error("loading {path}: {why}")]
pub struct NotLoaded {
    /// File.
    pub path: PathBuf,
    /// Why.
    pub why: std::io::Error,
}

/// What came of loading for devices.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Modules that are there now.
    pub names: BTreeSet<String>,
    /// Modules that did not load.
    pub refused: Vec<NotLoaded>,
}

impl Loaded {
    /// Tells which modules are there, if any.
    pub fn tell(&self, whose: &str) {
        if !self.names.is_empty() {
            JOURNAL.say("modules", &format!("{whose}: {}", self));
        }
    }
}

impl std::fmt::Display for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        f.write_str(&names.join(" "))
    }
}

/// The modules of the running kernel, and which of them this process has loaded.
#[derive(Debug)]
pub struct Loader {
    directory: PathBuf,
    index: Index,
    /// A root's aliases are megabytes: they are read when the first one is looked up.
    has_aliases: bool,
    done: HashSet<String>,
    seen_aliases: HashSet<String>,
}

impl Loader {
    /// Reads the index below `root` for kernel `release`.
    pub fn open(root: &Path, release: &str) -> std::io::Result<Self> {
        let directory = directory(root, release);
        let dep = fs::read_to_string(directory.join("modules.dep"))?;
        let index = Index::dependencies(&dep);
        Ok(Loader {
            directory,
            index,
            has_aliases: false,
            done: HashSet::new(),
            seen_aliases: HashSet::new(),
        })
    }

    /// Loads a module by name with everything it needs. `Ok(false)` when there is no such module (it may be built in).
    pub fn load(&mut self, module: &str) -> Result<bool, NotLoaded> {
        let order: Vec<String> = self.index.order(module).iter().map(|&p| p.to_owned()).collect();
        for relative in &order {
            if !self.done.contains(relative) {
                // One that another loader has loaded, perhaps from another root, would be read whole only to be refused.
                if !is_live(relative) {
                    let path = self.directory.join(relative);
                    load_file(&path).map_err(|why| NotLoaded { path, why })?;
                }
                self.done.insert(relative.clone());
            }
        }
        Ok(!order.is_empty())
    }

    /// Loads whatever the devices of `/sys` ask for, until no new one appears; see [`Loader::load_for`]. Only modules whose path is `chosen`:
    /// the others' devices are looked at again the next time.
    pub fn coldplug(&mut self, sysroot: &Path, chosen: impl Fn(&str) -> bool) -> Loaded {
        let (mut all, mut tried) = (Loaded::default(), HashSet::new());
        loop {
            self.read_aliases();
            let new = modaliases(sysroot).into_iter().filter(|alias| !self.seen_aliases.contains(alias));
            let (mut modules, settled) = self.index.choose(new, &chosen);
            self.seen_aliases.extend(settled);
            modules.retain(|module| tried.insert(module.clone()));
            if modules.is_empty() {
                return all;
            }
            self.load_each(modules, &mut all);
        }
    }

    /// [`Loader::coldplug`] takes no notice of these.
    pub fn leave(&mut self, aliases: impl IntoIterator<Item = String>) {
        self.seen_aliases.extend(aliases);
    }

    /// Loads what these aliases ask for. A driver that refuses its device is named in the result, and does not stop the others. Crypto
    /// accelerators of the CPU are left to those who ask for them: the kernel requests them by name, and a machine has a dozen.
    pub fn load_for(&mut self, aliases: impl IntoIterator<Item = String>, all: &mut Loaded) {
        let index = self.index();
        let modules = aliases.into_iter().flat_map(|a| index.wanted(&a)).collect();
        self.load_each(modules, all);
    }

    fn load_each(&mut self, modules: BTreeSet<String>, all: &mut Loaded) {
        let cpuinfo = cpuinfo();
        for module in modules {
            if self.index.is_accelerator(&module) || !fits_processor(&module, &cpuinfo) {
                continue;
            }
            match self.load(&module) {
                Ok(true) => drop(all.names.insert(module)),
                Ok(false) => {}
                Err(why) => all.refused.push(why),
            }
        }
    }

    /// Loads by name or alias, as the kernel's own request does.
    pub fn request(&mut self, alias: &str) -> Result<bool, NotLoaded> {
        let mut any = false;
        for module in self.index().wanted(alias) {
            any |= self.load(&module)?;
        }
        Ok(any)
    }

    /// What the index knows, aliases included.
    pub fn index(&mut self) -> &Index {
        self.read_aliases();
        &self.index
    }

    fn read_aliases(&mut self) {
        if !self.has_aliases {
            let text = fs::read_to_string(self.directory.join("modules.alias")).unwrap_or_default();
            self.index.add_aliases(&text);
            self.has_aliases = true;
        }
    }
}

/// Where the modules of kernel `release` are below `root`. Debian keeps them under /usr/lib; an initramfs may have either.
pub fn directory(root: &Path, release: &str) -> PathBuf {
    ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|d| root.join(d).join(release))
        .find(|d| d.join("modules.dep").exists())
        .unwrap_or_else(|| root.join("lib/modules").join(release))
}

fn load_file(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    // One device, and nobody looks for partitions on it.
    let is_nbd = name_of(&path.to_string_lossy()) == "nbd";
    let parameters = if is_nbd { c"nbds_max=1 max_part=0" } else { c"" };
    match sys::load_module(&file, is_compressed(path), parameters) {
        // Somebody else was faster.
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// True for a module that is loaded and has started.
pub fn is_live(module: &str) -> bool {
    let state = Path::new("/sys/module").join(name_of(module)).join("initstate");
    fs::read_to_string(state).is_ok_and(|state| state.trim() == "live")
}

fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|e| e != "ko")
}

/// What the kernel says of the processors.
pub fn cpuinfo() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

/// False for a module that this processor has no use for: the hypervisor of the other maker's processors, of which a recipe names both
/// (trying costs a second on a slow machine); SHA-256 by vector instructions, where there are none made for it (an emulator takes longer for
/// those than for the kernel's own code).
pub fn fits_processor(module: &str, cpuinfo: &str) -> bool {
    let needed = match name_of(module).as_str() {
        "kvm_intel" => "vmx",
        "kvm_amd" => "svm",
        "sha256_ssse3" => "sha_ni",
        _ => return true,
    };
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == needed)
}

/// What the processors ask for.
pub fn alias_of_processors(sysroot: &Path) -> Option<String> {
    let alias = fs::read_to_string(sysroot.join("sys/devices/system/cpu/modalias")).ok()?;
    Some(alias.trim().to_owned())
}

/// The modalias of every device that the kernel knows.
pub fn modaliases(sysroot: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut directories = vec![sysroot.join("sys/devices")];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                // sysfs has loops of links; only directories are followed.
                Ok(t) if t.is_dir() => directories.push(entry.path()),
                Ok(t) if t.is_file() && entry.file_name() == "modalias" => {
                    let text = fs::read_to_string(entry.path()).unwrap_or_default();
                    found.extend(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned));
                }
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_processor_has_a_use_for_is_loaded() {
        let amd = "processor : 0\nflags\t\t: fpu svm sse2\n";
        assert!(fits_processor("kvm_amd", amd) && fits_processor("tun", amd) && fits_processor("tun", ""));
        assert!(!fits_processor("kvm_intel", amd) && !fits_processor("kvm-amd", "flags : fpu"));
        assert!(!fits_processor("sha256-ssse3", amd) && fits_processor("sha256_ssse3", "flags : sha_ni"));
    }

    const DEP: &str = "kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko kernel/drivers/net/net_failover.ko\n\
        kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko\n\
        kernel/net/core/failover.ko:\n\
        kernel/drivers/md/dm-verity.ko.xz: kernel/drivers/md/dm-mod.ko.xz\n\
        kernel/drivers/md/dm-mod.ko.xz:\n\
        kernel/a.ko: kernel/b.ko\n\
        kernel/b.ko: kernel/a.ko\n";
    const ALIAS: &str = "# Aliases\n\
        alias virtio:d00000001v* virtio_net\n\
        alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e\n\
        alias crypto-sha256 sha256_ssse3\n\
        alias cpu:type:x86,ven*fam*mod*:feature:*00C2* kvm_amd\n\
        alias acpi*:LNXPWRBN:* button\n\
        alias devname:loop-control loop\n\
        alias broken\n";

    #[test]
    fn dependencies_come_first_and_cycles_end() {
        let index = Index::parse(DEP, ALIAS);
        assert_eq!(
            index.order("virtio-net"),
            [
                "kernel/net/core/failover.ko",
                "kernel/drivers/net/net_failover.ko",
                "kernel/drivers/net/virtio_net.ko"
            ]
        );
        assert_eq!(index.order("dm_verity").len(), 2);
        assert_eq!(index.order("a").len(), 2);
        assert!(index.order("none").is_empty());
        assert!(index.has("dm-verity") && !index.has("e1000e"));
    }

    #[test]
    fn aliases_name_modules() {
        let index = Index::parse(DEP, ALIAS);
        for (alias, module) in [
            ("virtio:d00000001v00001AF4", "virtio_net"),
            ("pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00", "e1000e"),
            ("acpi:LNXPWRBN:", "button"),
            ("crypto-sha256", "sha256_ssse3"),
            ("cpu:type:x86,ven0002fam0019mod0001:feature:,0000,00C2,00FF", "kvm_amd"),
            ("dm-mod", "dm_mod"),
        ] {
            assert_eq!(index.wanted(alias).into_iter().collect::<Vec<_>>(), [module], "{alias}");
        }
        assert!(index.wanted("pci:v0000FFFF").is_empty());
    }

    #[test]
    fn a_device_that_wants_an_unchosen_module_is_looked_at_again() {
        let alias = format!("{ALIAS}alias virtio:d00000001v* dm_verity\n");
        let index = Index::parse(DEP, &alias);
        let aliases = ["virtio:d00000001v1", "pci:v0000FFFF"].map(str::to_owned);
        let (modules, settled) = index.choose(aliases.clone().into_iter(), |p| p.contains("/net/"));
        assert_eq!(modules.into_iter().collect::<Vec<_>>(), ["virtio_net"]);
        assert_eq!(settled, ["pci:v0000FFFF"], "nobody wants it");
        let (modules, settled) = index.choose(aliases.clone().into_iter(), |_| true);
        assert!(modules.len() == 2 && settled == aliases);
    }

    #[test]
    fn sysfs_is_walked_without_following_links() {
        let dir = std::env::temp_dir().join(format!("labshift-modalias-{}", std::process::id()));
        let device = dir.join("sys/devices/pci0/dev1");
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("modalias"), "virtio:d00000001v00001AF4\n").unwrap();
        std::os::unix::fs::symlink("../..", device.join("loop")).unwrap();
        assert_eq!(modaliases(&dir).into_iter().collect::<Vec<_>>(), ["virtio:d00000001v00001AF4"]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
