//! The linear run from the kernel to the new root, and the one recovery. Each step ends with a timed stage or a [`Halt`].

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use labshift_model::{
    boot::{BootAnswer, Stage},
    boot_order::BootOrder,
    manifest::{Manifest, short},
    paths,
};
use ureq::Agent;

use crate::{
    adoption,
    beside::Beside,
    blocks::{Blocks, Policy},
    cmdline::{Cmdline, DiskRoot, RootSource},
    crash, disk,
    failure::{Code, Halt, backoff_seconds},
    fetch,
    handover::{self, Handover},
    idle,
    journal::JOURNAL,
    link::{self, Port},
    local_disk,
    modules::Loader,
    mount::{self, Upper},
    nbd, network,
    peers::Swarm,
    rescue,
    server::{self, Asked, Trust},
    source::{FetchError, Source},
    sys,
    verity::Shape,
};

/// Memory that must be left beside the root, in bytes.
const SPARE_MEMORY: u64 = 192 << 20;
/// Threads that fetch in the recorded order: while one checks what has come, the other waits for the server.
const PREFETCHERS: usize = 2;
/// Failures before the machine starts over.
const ATTEMPTS: u32 = 12;

/// What an attempt has learned; a failure is shown and sent with it.
#[derive(Debug, Default)]
struct Known {
    port: Option<Port>,
    server: Option<String>,
    answer: Option<BootAnswer>,
}

impl Known {
    fn report(&self, agent: &Agent) -> bool {
        let attempt = self.answer.as_ref().map(|a| a.attempt);
        match (&self.port, &self.server) {
            (Some(port), Some(server)) => server::report(agent, server, port.mac, attempt),
            _ => false,
        }
    }

    /// The fallback: see [`server::report_by_datagram`].
    fn report_by_datagram(&self) -> usize {
        let attempt = self.answer.as_ref().map(|a| a.attempt);
        let ports = link::ports(Path::new("/"), None);
        let Some(port) = self.port.as_ref().or(ports.first()) else { return 0 };
        server::report_by_datagram(self.server.as_deref(), &ports, port.mac, attempt)
    }
}

/// Boots until there is a new root under us. Returns what the supervisor needs; reboots after too many failures.
pub fn run() -> Handover {
    if let Err(why) = mount::mount_kernel_file_systems() {
        JOURNAL.open_consoles(Path::new("/"));
        JOURNAL.say("init", &format!("{why:#}"));
    }
    JOURNAL.open_consoles(Path::new("/"));
    idle::settle(Path::new("/"));
    let release = kernel_release();
    let memory =
        fs::read_to_string("/proc/meminfo").ok().and_then(|t| mount::available_memory(&t)).unwrap_or(0);
    JOURNAL
        .reached(Stage::Init, &format!("kernel {release}, {} CPUs, {} MiB free", processors(), memory >> 20));
    serve_module_requests();
    crash::show_records();
    crash::tell(Path::new("/"));
    let text = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let parsed = crate::cmdline::parse(&text)
        .map_err(|faults| Halt::new(Stage::Init, Code::Cmdline, faults.join("; ")));
    let retry = parsed.as_ref().ok().and_then(|c| c.retry_seconds);
    let attempts = parsed.as_ref().ok().and_then(|c| c.attempts).unwrap_or(ATTEMPTS);
    let agent = server::agent();
    let mut failures = 0;
    let mut door = rescue::Door::read(Path::new("/"));
    loop {
        JOURNAL.begin_attempt();
        let mut known = Known::default();
        let halt = match parsed.clone().and_then(|c| attempt(&c, &release, &agent, &mut known)) {
            Ok(handover) => return handover,
            Err(halt) => halt,
        };
        failures += 1;
        // A machine that reboots counts from one again: it waits at once for as long as others after some failures.
        let row = if halt.needs_reboot { failures.max(3) } else { failures };
        recover(&halt, &known, &agent, (failures, attempts), backoff_seconds(row, retry), door.as_mut());
    }
}

/// Shows and sends a failure, then waits for the next attempt, or reboots after the last.
fn recover(
    halt: &Halt,
    known: &Known,
    agent: &Agent,
    (failures, attempts): (u32, u32),
    wait: u64,
    door: Option<&mut rescue::Door>,
) {
    let mut door = door.filter(|door| !door.is_shut());
    if let Some(door) = &mut door {
        door.offer();
    }
    let last = failures >= attempts || halt.needs_reboot;
    let mut next = if halt.needs_reboot {
        format!("Failure {failures}. The machine reboots in {wait} s.")
    } else if last {
        format!("Failure {failures} of {attempts}. The machine reboots in {wait} s.")
    } else {
        format!("Failure {failures} of {attempts}. Trying again in {wait} s.")
    };
    if door.is_some() {
        next.push_str(" Enter opens the rescue shell, for its admins.");
    }
    let node = known.answer.as_ref().map(|a| a.node.as_str());
    let mac = known.port.as_ref().or(link::ports(Path::new("/"), None).first()).map(|p| p.mac);
    JOURNAL.failed(halt.stage, &halt.failure(), Some(&halt.page(node, mac, &next)));
    if known.report(agent) {
        JOURNAL.say("recovery", "the server has the report");
    } else if known.report_by_datagram() > 0 {
        JOURNAL.say("recovery", "the report went out by datagram");
    }
    let wait = Duration::from_secs(wait);
    match door {
        None => std::thread::sleep(wait),
        Some(door) => rescue::wait(door, Path::new("/"), wait, || {
            known.report(agent);
        }),
    }
    if last {
        crate::power::finish(crate::power::End::Reboot);
    }
    mount::clean_up();
}

fn attempt(cmdline: &Cmdline, release: &str, agent: &Agent, known: &mut Known) -> Result<Handover, Halt> {
    let ground: &[_] = match &cmdline.root {
        RootSource::Network if cmdline.policy == Policy::Whole => &["loop"],
        RootSource::Network => &["nbd"],
        RootSource::Disk(_) => &["virtio_blk", "ext4"],
    };
    let mut beside = Beside::start(release, ground)?;
    beside.network();
    match &cmdline.root {
        RootSource::Network => from_network(cmdline, release, agent, known, beside),
        RootSource::Disk(disk) => from_disk(cmdline, disk, beside),
    }
}

fn from_network(
    cmdline: &Cmdline,
    release: &str,
    agent: &Agent,
    known: &mut Known,
    mut beside: Beside,
) -> Result<Handover, Halt> {
    let ports = network::raise(cmdline)?;
    network::wait_for_link(&ports)?;
    let trust = Trust::read(Path::new("/"));
    let mut was_unknown = false;
    let (port, lease, server, answer) = loop {
        let (port, lease) = network::get_address(&ports, cmdline)?;
        known.port = Some(port.clone());
        known.server = network::server(cmdline, &lease).map(str::to_owned);
        let server = known.server.clone().ok_or_else(|| network::no_server(&lease))?;
        match network::ask_servers(agent, server, cmdline, &port, &trust)? {
            (server, Asked::Answer(answer)) => break (port, lease, server, *answer),
            (server, Asked::Unknown(sentence)) => {
                adoption::wait(agent, (&server, &trust), &port, &lease, &sentence);
            }
        }
        was_unknown = true;
    };
    known.server = Some(server.clone());
    known.answer = Some(answer.clone());
    set_clock(&answer);
    let wanted = cmdline.root_hash.as_deref();
    let manifest = server::verify(&answer, &trust, wanted.filter(|_| !was_unknown))?;
    let other_root = wanted.is_some_and(|hash| !hash.eq_ignore_ascii_case(&manifest.root.root_hash));
    if was_unknown && (other_root || manifest.kernel_release != release) {
        JOURNAL.say("adoption", &format!("{} boots another image: the machine starts anew", answer.node));
        crate::power::finish(crate::power::End::Reboot);
    }
    if manifest.kernel_release != release {
        let sentence = format!(
            "image {} generation {} is built for kernel {}, this machine runs {release}",
            answer.image,
            short(&answer.generation),
            manifest.kernel_release
        );
        return Err(Halt::new(Stage::Manifest, Code::Changed, sentence).that_needs_reboot());
    }
    JOURNAL.reached(
        Stage::Manifest,
        &format!(
            "{} boots {} generation {}, signature good",
            answer.node,
            answer.image,
            short(&answer.generation)
        ),
    );
    beside.load(manifest.modules.clone());
    let blocks = std::thread::scope(|scope| {
        // The first report travels while the root comes.
        scope.spawn(|| known.report(agent));
        fetch_and_mount(agent, (&server, lease.address), &answer, &manifest, cmdline, &mut beside)
    })?;
    enter_root(beside)?;
    if let Some(blocks) = &blocks {
        blocks.be_patient();
    }
    let handover = handover::for_node(
        &answer,
        &manifest,
        &server,
        &trust,
        lease.network(&port.name, port.mac),
        agent.clone(),
    );
    Ok(Handover { blocks, ..handover })
}

fn set_clock(answer: &BootAnswer) {
    if let Err(why) = sys::set_realtime_ms(answer.now.as_millisecond()) {
        JOURNAL.say("clock", &format!("not set: {why}"));
    }
}

/// Mounts the root. Returns where its blocks come from, when they are not all here.
fn fetch_and_mount(
    agent: &Agent,
    (server, own): (&str, Ipv4Addr),
    answer: &BootAnswer,
    manifest: &Manifest,
    cmdline: &Cmdline,
    beside: &mut Beside,
) -> Result<Option<Arc<Blocks>>, Halt> {
    let image = format!("image {} generation {}", answer.image, short(&answer.generation));
    let halt = |code, why: String| Halt::new(Stage::RootFetched, code, format!("{image}: {why}"));
    let shape = Shape::of(&manifest.root).map_err(|why| halt(Code::Manifest, why.to_string()))?;
    let bytes = shape.data_size() + shape.tree_size();
    let free =
        fs::read_to_string("/proc/meminfo").ok().and_then(|t| mount::available_memory(&t)).unwrap_or(0);
    let (policy, found) = local_disk::choose(cmdline.policy, manifest, &shape, &mut beside.loader);
    let kept = if matches!(policy, Policy::Lazy | Policy::Disk) { shape.tree_size() } else { bytes };
    if free < kept + SPARE_MEMORY {
        let sentence = format!(
            "the root needs {} MiB and {} MiB to work in, {} MiB are free",
            kept >> 20,
            SPARE_MEMORY >> 20,
            free >> 20
        );
        return Err(halt(Code::Memory, sentence));
    }
    let servers = [server].into_iter().chain(cmdline.mirrors.iter().map(String::as_str));
    let path = format!("{}/{}/{}/{}", paths::IMAGES, answer.image, answer.generation, paths::ROOT);
    let source = Source {
        agent: agent.clone(),
        urls: servers.map(|server| format!("{server}{path}")).collect(),
        current: AtomicUsize::new(0),
        pause: Duration::from_secs(1),
        workers: processors(),
    };
    if policy != Policy::Whole {
        // Signed with the manifest. One that can't be read costs time, not the boot.
        let order = BootOrder::parse(&answer.signature.boot_order).unwrap_or_else(|why| {
            JOURNAL.say("root", &why.to_string());
            BootOrder::default()
        });
        let (cache, found) = found.map_or((None, None), |(cache, found)| (cache, Some(found)));
        let peers = (!answer.peers.is_empty())
            .then(|| Swarm::new(own, &answer.peers, paths::PEER_PORT, shape.root_hash()));
        let blocks =
            mount_as_it_comes(source, shape.clone(), (policy, cache), peers, (&order, beside), &image)?;
        local_disk::swap(found.as_ref(), (policy == Policy::Disk).then_some(&shape));
        return Ok(Some(blocks));
    }
    let file = mount::root_file(bytes).map_err(|why| halt(Code::Memory, format!("{why:#}")))?;
    JOURNAL.say(
        "root",
        &format!("fetching {} MiB from {server}, {} MiB of memory are free", bytes >> 20, free >> 20),
    );
    let fetched = fetch::fetch(&source, shape.clone(), &file)
        .map_err(|why| halt(Code::of_fetch(&why), why.to_string()))?;
    let seconds = fetched.took.as_secs_f64().max(0.001);
    let rate = fetched.bytes as f64 / 1e6 / seconds;
    let resumed =
        if fetched.resumed > 0 { format!(", resumed {} times", fetched.resumed) } else { String::new() };
    JOURNAL.reached(
        Stage::RootFetched,
        &format!("{} MiB verified in {seconds:.1} s, {rate:.0} MB/s{resumed}", fetched.bytes >> 20),
    );
    beside.ground()?;
    let mounted = mount::verified_file(&file, &shape).and_then(|d| mount::mount_root(&d));
    mounted.map_err(|why| Halt::new(Stage::RootMounted, Code::Mount, format!("{image}: {why:#}")))?;
    local_disk::swap(found.as_ref().map(|(_, found)| found), None);
    Ok(None)
}

/// Mounts a root of which nothing is here but its hash tree; the blocks come as they are read.
fn mount_as_it_comes(
    source: Source,
    shape: Shape,
    (policy, cache): (Policy, Option<disk::Cache>),
    peers: Option<Arc<Swarm>>,
    (order, beside): (&BootOrder, &mut Beside),
    image: &str,
) -> Result<Arc<Blocks>, Halt> {
    let fetch_failed =
        |stage, why: &FetchError| Halt::new(stage, Code::of_fetch(why), format!("{image}: {why}"));
    let blocks = Blocks::open(source, shape.clone(), policy, cache);
    let blocks = blocks.map_err(|why| fetch_failed(Stage::RootFetched, &why))?;
    blocks.follow(order);
    let blocks = match peers {
        Some(peers) => blocks.among(peers),
        None => Arc::new(blocks),
    };
    let mib = blocks.size() >> 20;
    let early = if blocks.is_ordered() { ", in the recorded order before" } else { "" };
    JOURNAL.reached(Stage::RootFetched, &format!("the hash tree; {mib} MiB come as they are read{early}"));
    for _ in 0..if blocks.is_ordered() { PREFETCHERS } else { 0 } {
        let blocks = blocks.clone();
        std::thread::spawn(move || blocks.prefetch());
    }
    beside.ground().inspect_err(|_| blocks.abandon())?;
    let mounted = nbd::attach(Path::new("/dev"), &blocks)
        .context("attaching the network block device")
        .and_then(|device| mount::verified_device(&device, &shape))
        .and_then(|verified| mount::mount_root(&verified));
    match mounted {
        Ok(()) => Ok(blocks),
        Err(why) => {
            blocks.abandon();
            // What the kernel calls an input/output error has a better name.
            Err(match blocks.fault() {
                Some(fault) => fetch_failed(Stage::RootMounted, &fault),
                None => Halt::new(Stage::RootMounted, Code::Mount, format!("{image}: {why:#}")),
            })
        }
    }
}

fn from_disk(cmdline: &Cmdline, disk: &DiskRoot, mut beside: Beside) -> Result<Handover, Halt> {
    beside.ground()?;
    let halt = |code, sentence: String| Halt::new(Stage::RootMounted, code, sentence);
    let device = wait_for_device("/dev/vda")
        .ok_or_else(|| halt(Code::Mount, "no first virtio disk (/dev/vda) came up".to_owned()))?;
    let shape = Shape::new(&disk.root_hash, &disk.salt, disk.data_size, 4096)
        .map_err(|why| halt(Code::Cmdline, why.to_string()))?;
    let writable = PathBuf::from("/dev/vdb");
    let disk = writable.exists().then_some(writable.as_path());
    let upper = mount::verified_device(&device, &shape)
        .and_then(|verified| mount::mount_guest_root(&verified, disk))
        .map_err(|why| halt(Code::Mount, format!("{why:#}")))?;
    JOURNAL.say(
        "root",
        match (&upper, disk) {
            (Upper::Disk(_), _) => "changes go to /dev/vdb",
            (Upper::Memory, None) => "changes stay in memory: there is no second disk",
            (Upper::Memory, Some(_)) => {
                "changes stay in memory: /dev/vdb is blank and the image has no mkfs.ext4"
            }
        },
    );
    // A guest without a network still runs: it says so and goes on.
    let network = network::of_guest(cmdline);
    enter_root(beside)?;
    handover::for_guest(cmdline, network)
        .map_err(|why| Halt::new(Stage::Services, Code::Services, format!("{why:#}")))
}

fn wait_for_device(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(path);
    let begin = Instant::now();
    while !path.exists() {
        if begin.elapsed() > Duration::from_secs(10) {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(path)
}

/// The root is mounted: makes it the root, once nobody loads from the initramfs any more.
fn enter_root(beside: Beside) -> Result<(), Halt> {
    JOURNAL.reached(Stage::RootMounted, "verity, erofs, overlay");
    beside.finish();
    mount::switch_root().map_err(|why| Halt::new(Stage::RootMounted, Code::Mount, format!("{why:#}")))?;
    JOURNAL.open_consoles(Path::new("/"));
    JOURNAL.leave_page();
    JOURNAL.say("root", "running from the new root");
    Ok(())
}

/// The kernel asks for modules by running a program: this one, which outlives the initramfs as long as it runs.
fn serve_module_requests() {
    if let Err(why) = fs::write("/proc/sys/kernel/modprobe", "/proc/1/exe") {
        JOURNAL.say("modules", &format!("the kernel's own module requests stay unanswered: {why}"));
    }
}

/// Loads what the kernel asked for by name or alias (the `modprobe` that it runs).
pub fn modprobe(alias: &str) -> Result<bool> {
    let mut loader = Loader::open(Path::new("/"), &kernel_release()).context("reading the module index")?;
    loader.request(alias).with_context(|| format!("loading modules for {alias}"))
}

/// `uname -r`.
pub fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map(|t| t.trim().to_owned()).unwrap_or_default()
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
