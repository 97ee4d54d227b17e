//! Kernel modules that load beside the way to the root, on threads of their own. Each costs the time in which the kernel checks its signature
//! and links it, and a node wants three dozen: one after the other they would be a third of a boot.
//!
//! ```text
//! the run:   network drivers ─ link ─ address ─ answer ─ hash tree ─┬─ root ─────┬─ services
//! ground:    device-mapper, EROFS, overlay, nbd ────────────────────┘            │
//! rest:      watchdog and other hardware, KVM, what the image names ─────────────┘
//! ```

use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use labshift_model::boot::Stage;
use nix::unistd::{Pid, gettid};

use crate::{
    crash,
    failure::{Code, Halt},
    journal::JOURNAL,
    modules::{self, Loaded, Loader},
    sys,
};

/// Parts of the kernel's tree whose drivers may lead to a network port: cards, and the buses that they are plugged into.
const WAYS_TO_NETWORK: [&str; 8] = ["bcma", "hv", "net", "pci", "phy", "thunderbolt", "usb", "virtio"];

/// Whether a module, by its path, may lead to a network port.
fn leads_to_network(path: &str) -> bool {
    let part = path.strip_prefix("kernel/drivers/").and_then(|rest| rest.split('/').next());
    part.is_some_and(|part| WAYS_TO_NETWORK.contains(&part))
}

/// What loads the modules of a boot.
#[derive(Debug)]
pub struct Beside {
    /// The run's own way to modules.
    pub loader: Loader,
    ground: Option<JoinHandle<Result<(), Halt>>>,
    rest: JoinHandle<()>,
    rest_id: Arc<OnceLock<Pid>>,
    wanted: Sender<Vec<String>>,
}

impl Beside {
    /// Begins, from the initramfs. `ground` is what this root stands on besides device-mapper, EROFS and overlay.
    pub fn start(release: &str, ground: &'static [&'static str]) -> Result<Beside, Halt> {
        let mut loader = open(release)?;
        // KVM is the longest of all: it is the rest's to load, after the board's watchdog.
        let processors = modules::alias_of_processors(Path::new("/"));
        loader.leave(processors.clone());
        let (wanted, batches) = channel();
        let rest_id = Arc::<OnceLock<Pid>>::default();
        let (own, id) = (release.to_owned(), rest_id.clone());
        let rest = std::thread::spawn(move || {
            let _ = id.set(gettid());
            sys::give_way();
            load_rest(&own, processors, &batches);
        });
        let own = release.to_owned();
        let ground = std::thread::spawn(move || load_ground(&own, ground));
        Ok(Beside { loader, ground: Some(ground), rest, rest_id, wanted })
    }

    /// Loads the drivers that lead to the network, and tells which are there.
    pub fn network(&mut self) {
        let loaded = self.loader.coldplug(Path::new("/"), leads_to_network);
        tell_refused(&loaded);
        let names = if loaded.names.is_empty() { "no module needed".to_owned() } else { loaded.to_string() };
        JOURNAL.reached(Stage::Modules, &format!("network: {names}"));
    }

    /// Loads these, too, by name; what the initramfs lacks is loaded from the root, and named then.
    pub fn load(&self, modules: Vec<String>) {
        let _ = self.wanted.send(modules);
    }

    /// Waits for what the root stands on. From then on the rest gives way to nobody any more: it is waited for next.
    pub fn ground(&mut self) -> Result<(), Halt> {
        let ground = self.ground.take().map_or(Ok(Ok(())), JoinHandle::join);
        if let Some(&id) = self.rest_id.get() {
            sys::take_turn(id);
        }
        ground.unwrap_or_else(|_| {
            let sentence = "loading modules stumbled; the line above says where";
            Err(Halt::new(Stage::Modules, Code::Internal, sentence))
        })
    }

    /// Waits until all is loaded: the initramfs is about to go.
    pub fn finish(self) {
        drop(self.wanted);
        // A thread that stumbled has said so; what is missing is loaded from the root.
        let _ = self.rest.join();
    }
}

fn load_rest(release: &str, processors: Option<String>, batches: &Receiver<Vec<String>>) {
    let root = Path::new("/");
    let Ok(mut loader) = Loader::open(root, release) else { return };
    loader.leave(processors.clone());
    let mut loaded = loader.coldplug(root, |path| !leads_to_network(path));
    loader.load_for(processors, &mut loaded);
    loaded.tell("hardware");
    tell_refused(&loaded);
    for batch in batches {
        loader.load_for(batch, &mut Loaded::default());
    }
}

fn tell_refused(loaded: &Loaded) {
    for why in &loaded.refused {
        JOURNAL.say("modules", &why.to_string());
    }
}

/// Loads the file systems and what the root stands on. The crypto modules are accelerators: the kernel has its own code.
fn load_ground(release: &str, more: &[&str]) -> Result<(), Halt> {
    let mut loader = open(release)?;
    let cpuinfo = modules::cpuinfo();
    let mut optional = |module: &str| {
        modules::fits_processor(module, &cpuinfo) && loader.load(module).is_ok_and(|is_there| is_there)
    };
    // One that computes it is enough.
    let _ = optional("crc32c_intel") || optional("crc32c_generic");
    optional("sha256_ssse3");
    optional("af_packet");
    if Path::new("/sys/firmware/efi").exists() && optional("efi_pstore") {
        crash::tell(Path::new("/"));
    }
    for module in ["dm_verity", "erofs", "overlay"].iter().chain(more) {
        loader.load(module).map_err(|e| Halt::new(Stage::RootMounted, Code::Module, e.to_string()))?;
    }
    Ok(())
}

/// The modules of the initramfs.
fn open(release: &str) -> Result<Loader, Halt> {
    Loader::open(Path::new("/"), release).map_err(|why| {
        let sentence = format!("the initramfs has no module index for kernel {release}: {why}");
        Halt::new(Stage::Modules, Code::Module, sentence)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_the_network_leads_over_its_cards_and_buses() {
        for path in [
            "kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko",
            "kernel/drivers/usb/host/xhci-pci.ko",
            "kernel/drivers/virtio/virtio_pci.ko",
        ] {
            assert!(leads_to_network(path), "{path}");
        }
        for path in [
            "kernel/drivers/watchdog/iTCO_wdt.ko",
            "kernel/arch/x86/kvm/kvm.ko",
            "kernel/net/bridge/bridge.ko",
            "kernel/drivers/network",
            "",
        ] {
            assert!(!leads_to_network(path), "{path}");
        }
    }

    #[test]
    fn an_initramfs_without_an_index_is_a_failure_with_its_release() {
        let halt = Beside::start("0.0-none", &[]).unwrap_err();
        assert!(halt.sentence.contains("no module index for kernel 0.0-none"), "{}", halt.sentence);
    }
}
