//! What init leaves in the new root before the services start: who the machine is, its modules, its devices.

use std::{
    fs::{self, File},
    io::Write,
    net::Ipv4Addr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use labshift_model::{
    MacAddr,
    boot::BootAnswer,
    context::{Network, NodeContext},
    manifest::Manifest,
    paths,
    service::Service,
};
use sha2::{Digest, Sha256};
use ureq::Agent;

use crate::{
    blocks::Blocks,
    cmdline::{Cmdline, GuestIdentity},
    dhcp::Lease,
    hotplug,
    journal::JOURNAL,
    kexec::Next,
    lease,
    link::Port,
    modules::{self, Loader},
    netlink, nodes, process,
    server::{self, Trust},
    sys,
};

/// Where a guest finds its identity, as shell variables.
const GUEST_ENVIRONMENT: &str = "/run/labshift/guest.env";
/// Services of a guest, in its verified root.
const GUEST_SERVICES: &str = "/etc/labshift/services.json";

/// What the supervisor takes over.
#[derive(Debug)]
pub struct Handover {
    /// Host name of a node.
    pub node: Option<String>,
    /// Programs to run.
    pub services: Vec<Service>,
    /// The lease to keep.
    pub network: Option<Network>,
    /// A node shows services' output on serial lines; a guest's console belongs to its services.
    pub show_output: bool,
    /// Where to report.
    pub reporter: Option<Reporter>,
    /// Where the next kernel comes from; none in a guest.
    pub next: Option<Next>,
    /// Where the root's blocks come from, when they are not all here.
    pub blocks: Option<Arc<Blocks>>,
    /// Modules to load besides what the hardware asks for.
    pub modules: Vec<String>,
}

/// A way to the server's journal.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// HTTP client.
    pub agent: Agent,
    /// Base URL.
    pub server: String,
    /// This machine.
    pub mac: MacAddr,
    /// Boot attempt.
    pub attempt: u64,
}

impl Reporter {
    /// Sends what the journal holds.
    pub fn report(&self) -> bool {
        server::report(&self.agent, &self.server, self.mac, Some(self.attempt))
    }
}

/// Reports in the background; what can't be delivered is tried again for a while.
pub fn report(reporter: Option<Reporter>) {
    let Some(reporter) = reporter else { return };
    std::thread::spawn(move || {
        for pause in [1, 5, 25, 125] {
            if reporter.report() {
                return;
            }
            std::thread::sleep(Duration::from_secs(pause));
        }
    });
}

/// Prepares a node's root.
pub fn for_node(
    answer: &BootAnswer,
    manifest: &Manifest,
    server: &str,
    trust: &Trust,
    network: Network,
    agent: Agent,
) -> Handover {
    let context = NodeContext {
        node: answer.node.clone(),
        room: answer.room.clone(),
        server: server.to_owned(),
        image: answer.image.clone(),
        generation: answer.generation.clone(),
        attempt: answer.attempt,
        token: answer.token.clone(),
        network: network.clone(),
        trusted_keys: trust
            .images
            .lines()
            .filter_map(|l| l.split('#').next())
            .map(str::trim)
            .filter(|k| !k.is_empty())
            .map(str::to_owned)
            .collect(),
        minimum: trust.minimum,
        clock_offset_ms: sys::realtime_ms() - sys::boottime_ms() as i64,
        stages: JOURNAL.stages(),
        ports: manifest.ports.clone(),
    };
    let json = serde_json::to_vec_pretty(&context).unwrap_or_default();
    say_failure("node.json", write_secret(Path::new(paths::NODE_CONTEXT), &json));
    name_machine(&answer.node, &machine_id(&network.mac.to_string()), &network.dns);
    Handover {
        node: Some(answer.node.clone()),
        services: manifest.services.clone(),
        next: Some(Next {
            agent: agent.clone(),
            server: server.to_owned(),
            mac: network.mac,
            trust: trust.clone(),
        }),
        reporter: Some(Reporter {
            agent,
            server: server.to_owned(),
            mac: network.mac,
            attempt: answer.attempt,
        }),
        network: Some(network),
        show_output: true,
        blocks: None,
        modules: manifest.modules.clone(),
    }
}

/// Prepares a guest's root; its services come from the root itself.
pub fn for_guest(cmdline: &Cmdline, found: Option<(Port, Lease)>) -> Result<Handover> {
    let identity = cmdline.guest.clone().unwrap_or_default();
    write_secret(Path::new(GUEST_ENVIRONMENT), guest_environment(&identity).as_bytes())?;
    let network = found.map(|(port, lease)| (lease.network(&port.name, port.mac), lease.hostname));
    let dns = network.as_ref().map(|(n, _)| n.dns.clone()).unwrap_or_default();
    let given = network.as_ref().and_then(|(_, name)| name.clone());
    let name = Some(identity.name).filter(|n| crate::dhcp::is_host_name(n)).or(given);
    let name = name.as_deref().unwrap_or("guest");
    name_machine(name, &machine_id(name), &dns);
    let text = fs::read_to_string(GUEST_SERVICES).with_context(|| format!("reading {GUEST_SERVICES}"))?;
    let services = serde_json::from_str(&text).with_context(|| format!("reading {GUEST_SERVICES}"))?;
    Ok(Handover {
        node: None,
        services,
        network: network.map(|(n, _)| n),
        show_output: true,
        reporter: None,
        next: None,
        blocks: None,
        modules: vec![],
    })
}

/// `NAME='value'` lines that a POSIX shell can read with `.`.
fn guest_environment(identity: &GuestIdentity) -> String {
    [("GUEST", &identity.name), ("REPORT", &identity.report), ("TOKEN", &identity.token)]
        .iter()
        .map(|(key, value)| format!("LABSHIFT_{key}='{}'\n", value.replace('\'', "'\\''")))
        .collect()
}

/// Writes a file that only root may read.
fn write_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    let shown = path.display();
    let _ = fs::remove_file(path);
    let mut file: File = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("creating {shown}"))?;
    file.write_all(bytes).with_context(|| format!("writing {shown}"))
}

/// A machine id (`machine-id(5)`) that is the same at every boot: libvirt and D-Bus want one, and nothing is kept on a disk.
fn machine_id(of: &str) -> String {
    hex::encode(&Sha256::digest(format!("labshift machine {of}"))[..16])
}

/// Host name, machine id and name servers, for the kernel and for programs.
fn name_machine(name: &str, id: &str, dns: &[Ipv4Addr]) {
    say_failure("host name", fs::write("/proc/sys/kernel/hostname", name).context("setting it"));
    let resolv: String = dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost\n");
    let id = format!("{id}\n");
    for (path, text) in [
        ("/etc/hostname", format!("{name}\n")),
        ("/etc/machine-id", id),
        ("/etc/hosts", hosts),
        ("/etc/resolv.conf", resolv),
    ] {
        // A link in an image points to where another init would write.
        let _ = fs::remove_file(path);
        say_failure(path, fs::write(path, text).context("writing it"));
    }
}

fn say_failure(what: &str, result: Result<()>) {
    if let Err(why) = result {
        JOURNAL.say("handover", &format!("{what}: {why:#}"));
    }
}

/// Loads those of the image's modules that did not come from the initramfs, and makes the device nodes that bring their modules, when a guest
/// wants one. A module that refuses is named and stops nothing.
pub fn load_modules(release: &str, named: &[String]) {
    let root = Path::new("/");
    let cpuinfo = modules::cpuinfo();
    let wanted = named.iter().filter(|m| modules::fits_processor(m, &cpuinfo));
    let (mut there, missing): (Vec<_>, Vec<_>) = wanted.partition(|m| modules::is_live(m));
    if !missing.is_empty() {
        match Loader::open(root, release) {
            Ok(mut loader) => there.extend(missing.into_iter().filter(|m| match loader.load(m) {
                Ok(is_module) => is_module,
                Err(why) => {
                    JOURNAL.say("modules", &format!("not loaded: {why}"));
                    false
                }
            })),
            Err(why) => JOURNAL.say("modules", &no_index(release, &why)),
        }
    }
    if !there.is_empty() {
        let names: Vec<&str> = there.iter().map(|m| m.as_str()).collect();
        JOURNAL.say("modules", &format!("named by the image: {}", names.join(" ")));
    }
    open_devices();
    let made = nodes::make(Path::new("/dev"), &modules::directory(root, release));
    say_failure("device nodes", made.context("making them"));
}

/// Loads what the hardware asks for, from the new root, for life.
pub fn serve_hardware(release: &str) {
    let served = match Loader::open(Path::new("/"), release) {
        Ok(mut loader) => hotplug::serve(&mut loader, Path::new("/"), || {
            open_devices();
            JOURNAL.show_again();
        }),
        Err(why) => Err(anyhow::anyhow!(no_index(release, &why))),
    };
    if let Err(why) = served {
        JOURNAL.say("modules", &format!("{why:#}"));
    }
}

fn no_index(release: &str, why: &std::io::Error) -> String {
    format!("the root has no module index for kernel {release}: {why}")
}

/// libvirt's QEMU user reaches /dev/kvm by its group; without it libvirt takes KVM for broken.
pub fn open_devices() {
    let kvm = Path::new("/dev/kvm");
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    if let (true, Some(gid)) = (kvm.exists(), process::group_id(&groups, "kvm")) {
        let set = chown(kvm, Some(0), Some(gid))
            .and_then(|()| fs::set_permissions(kvm, fs::Permissions::from_mode(0o660)));
        say_failure("/dev/kvm", set.context("giving it to group kvm"));
    }
}

/// Keeps a lease that begins anew: sets a changed address and takes the old one away.
pub fn readdress(old: &Network, lease: &Lease) -> Result<Network> {
    let index = netlink::carrier_of(old.address)?.context("finding the port that carries the address")?;
    netlink::configure(index, lease.address, lease.prefix, lease.gateway)?;
    if lease.address != old.address {
        netlink::remove_address(old.address)?;
    }
    Ok(lease.network(&old.interface, old.mac))
}

/// Gives an address back that its server refused (RFC 2131 section 4.4.5) and asks for another, for as long as it takes. The port
/// is the one that carries the address now, bridge or not.
pub fn begin_anew(old: &Network, patience: Duration) -> Result<Network> {
    let index = netlink::carrier_of(old.address)?.context("finding the port that carries the address")?;
    let name = nix::net::if_::if_indextoname(index).context("naming the port that carries the address")?;
    let name = name.to_string_lossy().into_owned();
    netlink::remove_address(old.address)?;
    let port = Port { name, index, mac: old.mac, driver: String::new() };
    let ports = [port];
    loop {
        let heard = |_: &Port, what: &str| JOURNAL.say("lease", what);
        // Asked whether there is a link or not: the packets cost nothing, and the cable may come back any moment.
        if let Some((_, lease)) = lease::acquire(&ports, patience, |_| true, heard)? {
            netlink::configure(index, lease.address, lease.prefix, lease.gateway)?;
            JOURNAL.say("lease", &format!("the address is {}/{} now", lease.address, lease.prefix));
            return Ok(lease.network(&old.interface, old.mac));
        }
        JOURNAL.say("lease", &format!("no DHCP server answered in {} s; asking on", patience.as_secs()));
    }
}

/// Writes a changed network into the runtime's context: the next start of the runtime reads it.
pub fn note_network(path: &Path, network: &Network) -> Result<()> {
    let shown = path.display();
    let text = fs::read(path).with_context(|| format!("reading {shown}"))?;
    let mut context: NodeContext =
        serde_json::from_slice(&text).with_context(|| format!("reading {shown}"))?;
    context.network = network.clone();
    write_secret(path, &serde_json::to_vec_pretty(&context).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_ids_are_stable_and_of_the_documented_form() {
        let id = machine_id("52:54:00:12:34:56");
        assert_eq!(id, machine_id("52:54:00:12:34:56"));
        assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()));
        assert_ne!(id, machine_id("52:54:00:12:34:57"));
    }

    #[test]
    fn a_shell_reads_the_guest_environment() {
        let identity = GuestIdentity {
            name: "batch-1".into(),
            report: "http://10.0.0.1:8080/v1/guests/batch-1/report".into(),
            token: "it's $(x)".into(),
        };
        let path = std::env::temp_dir().join(format!("labshift-guest-{}", std::process::id()));
        write_secret(&path, guest_environment(&identity).as_bytes()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let out = std::process::Command::new("sh")
            .args(["-c", ". \"$0\"; printf '%s|%s' \"$LABSHIFT_GUEST\" \"$LABSHIFT_TOKEN\""])
            .arg(&path)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "batch-1|it's $(x)");
        fs::remove_file(&path).unwrap();
    }
}
