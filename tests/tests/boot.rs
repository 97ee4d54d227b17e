//! Single boots: who wakes, and what a damaged image says.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use jiff::Timestamp;
use labshift_image::Store;
use labshift_model::{
    api::{AdoptRequest, BootRequest, BootTarget, NodeView, RebootRequest},
    boot::Stage,
    boot_order::BootOrder,
    manifest::Signature,
    paths,
};
use labshift_tests::{
    TestLab, descendants, labshift, page_letters, root, store, text_screen_letters, wait_for_end_of,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SITE: &str = include_str!("../../cli/src/lab/site.toml");
const MORNING: &str = "manual:2026-11-23T07:40:00";

/// A magic packet wakes its own machine, and no other; one for a stranger wakes nobody.
#[test]
fn a_machine_wakes_to_its_own_packet_only() {
    let lab = TestLab::up("wake", store(), SITE, MORNING, &["--firmware", "ws2=uefi"]);
    lab.lab(&["wake", "52:54:00:99:99:99"]);
    lab.lab(&["wait", "ws1", "magic-packet-ignored", "52:54:00:99:99:99"]);
    lab.lab(&["wake", "ws2"]);
    lab.lab(&["wait", "ws2", "powered-on", "magic packet"]);
    lab.lab(&["wait", "ws1", "magic-packet-ignored", "52:54:00:77:00:02"]);
    let status = lab.lab(&["status"]);
    let of =
        |name: &str| status.lines().find(|l| l.starts_with(name)).expect("a line per machine").to_owned();
    assert!(of("ws1").contains("off, armed"), "{status}");
    assert!(of("ws2").contains(" on "), "{status}");
    // A pulled plug leaves no standby power: the next packet is not heard.
    lab.lab(&["unplug", "ws2"]);
    lab.lab(&["wake", "ws2"]);
    lab.lab(&["wait", "ws2", "magic-packet-ignored", "not armed"]);
}

/// Two machines start at once where the site allows peers: each takes from the other what that one has fetched, and the server sends much less
/// than two roots.
#[test]
fn machines_that_start_at_once_share_the_root() {
    let site = SITE.replace("grace = \"5s\"", "grace = \"5s\"\npeers = true");
    // Compute hours without work: nothing happens but the boot.
    let site = site.replace("[[guest]]\nname = \"primes\"\ntemplate = \"worker\"\n", "");
    let lab = TestLab::up("peers", store(), &site, "manual:2026-11-23T15:00:00", &[]);
    for machine in ["ws1", "ws2"] {
        lab.lab(&["press", machine]);
    }
    let mut told = 0;
    for machine in ["ws1", "ws2"] {
        lab.lab(&["wait", machine, "serial", "MiB are here now; the server may go away"]);
        let serial = lab.serial(machine);
        let line = serial.lines().rfind(|line| line.contains("the server may go away")).unwrap_or_default();
        println!("{machine}: {line}");
        assert!(line.contains(" MiB from 1 peers") && !serial.contains("sent other bytes"), "{serial}");
        // The server gets the log while the node runs.
        lab.logs(machine, "MiB are here now; the server may go away");
        let before = line.split(" MiB from the server").next().and_then(|text| text.rsplit(' ').next());
        told += before.and_then(|mib| mib.parse::<u64>().ok()).expect("how much came from the server") << 20;
    }
    let size = |image: &str, names: &[&str]| -> u64 {
        let generation =
            fs::read_to_string(store().join("channels").join(image)).expect("reading the channel");
        let directory = store().join("images").join(image).join(generation.trim());
        names.iter().map(|name| fs::metadata(directory.join(name)).expect("reading a size").len()).sum()
    };
    let root = size("lab", &["root.erofs"]);
    // The server's own count holds what else each of the two has fetched, and the heads of all frames.
    let guest = size("guest-desktop", &["vmlinuz", "initrd.img", "root.erofs"]);
    let others = 2 * (size("lab", &["vmlinuz", "initrd.img"]) + guest);
    let sent = lab.server_sent();
    println!(
        "the server has sent {} MiB, others {} MiB; a root has {} MiB",
        sent >> 20,
        others >> 20,
        root >> 20
    );
    assert!(
        told < root * 16 / 10 && sent < (others + root * 16 / 10) * 106 / 100,
        "{told} {sent} {others} {root}"
    );
}

/// One flipped byte in the root: the nodes, one with a text screen and one with a graphics screen, refuse the image, and say
/// which on the screen, on serial and at the server.
#[test]
fn a_flipped_byte_is_refused_by_name() {
    let damaged = root().join("target/test-lab/damaged-store");
    drop(fs::remove_dir_all(&damaged));
    copy(store(), &damaged);
    let generation = fs::read_to_string(damaged.join("channels/lab")).expect("reading the channel");
    let file = damaged.join("images/lab").join(generation.trim()).join("root.erofs");
    let file = OpenOptions::new().read(true).write(true).open(file).expect("opening the root");
    let mut byte = [0];
    // In the first block: every mount reads it.
    file.read_exact_at(&mut byte, 3_000).expect("reading a byte");
    file.write_all_at(&[byte[0] ^ 1], 3_000).expect("flipping a bit");

    let lab = TestLab::up("flipped", &damaged, SITE, MORNING, &["--firmware", "ws2=uefi"]);
    lab.lab(&["wake", "ws1"]);
    lab.lab(&["wake", "ws2"]);
    let image = format!("image lab generation {}", &generation[..12]);
    for (name, mac, letters) in
        [("ws1", "52:54:00:77:00:01", text_screen_letters()), ("ws2", "52:54:00:77:00:02", page_letters())]
    {
        lab.wait_node(name, "to have its failure at the server", |n| {
            let failure = n.boot.as_ref().and_then(|b| b.failure.as_ref());
            failure.is_some_and(|f| f.code == "ROOT-HASH" && f.sentence.contains(&image))
        });
        let serial = lab.serial(name);
        assert!(serial.contains("ROOT-HASH") && serial.contains(&image), "{serial}");
        assert!(!serial.contains("running from the new root"), "a damaged root was mounted");
        let texts = ["ROOT-HASH", &image, "What to do: ", mac, &format!("Node: {name} ")];
        let picture = lab.reads(name, &format!("{name}-refused"), &letters, &texts);
        assert!(picture.find("ROOT-HUSH", &letters).is_none(), "the reader finds what is not there");
    }
}

/// Firmware with Secure Boot starts a kernel image that `image sign` signed with its key, and refuses the same one unsigned.
#[test]
fn secure_boot_starts_what_is_signed_only() {
    let (signed, unsigned, _) = signed_store("signed-store");
    let pinned = format!("name = \"room-b\"\nimage = \"lab\"\ngeneration = \"{unsigned}\"");
    let site = SITE.replace("name = \"room-b\"\nimage = \"lab\"", &pinned);
    let firmware = ["--firmware", "ws1=secure-boot", "--firmware", "ws2=secure-boot"];
    let lab = TestLab::up("secure-boot", &signed, &site, MORNING, &firmware);
    lab.lab(&["wake", "ws2"]);
    lab.lab(&["wait", "ws2", "firmware", "Access Denied"]);
    lab.lab(&["unplug", "ws2"]);
    assert!(!lab.serial("ws2").contains("Linux version"), "an unsigned kernel was started");
    lab.lab(&["wake", "ws1"]);
    lab.lab(&["wait", "ws1", "serial", "running from the new root"]);
}

/// Machines that are told to start their own disks do: the firmware takes an address, finds nothing to boot, and goes on.
#[test]
fn a_machine_that_is_told_so_starts_its_own_disk() {
    let disks = root().join("target/test-lab/disks");
    drop(fs::remove_dir_all(&disks));
    // A BIOS runs the first sector of a disk. This one sends a sentence to the serial port and halts.
    const SENTENCE: &[u8] = b"\nlabshift: this is the disk's own system\n\0";
    // cli; xor ax, ax; mov ds, ax; mov si, sentence; cld; mov dx, 0x3f8; 1: lodsb; test al, al; jz 2; out dx, al; jmp 1; 2: hlt; jmp 2
    const CODE: &[u8] = &[
        0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x1a, 0x7c, 0xfc, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03,
        0xee, 0xeb, 0xf8, 0xf4, 0xeb, 0xfd, 0x90, 0x90, 0x90,
    ];
    let mut sector = [CODE, SENTENCE].concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    // UEFI runs a program of the disk's FAT file system. Here it is our own image: what starts it is the disk all the same, and
    // init says why it does not go on.
    let programs = disks.join("uefi/EFI/BOOT");
    fs::create_dir_all(&programs).expect("a directory for disks");
    fs::write(disks.join("bios.img"), sector).expect("a disk");
    let generation = fs::read_to_string(store().join("channels/lab")).expect("reading the channel");
    let uki = store().join("images/lab").join(generation.trim()).join("uki.efi");
    fs::copy(uki, programs.join("BOOTX64.EFI")).expect("a program on the disk");

    let of = |name: &str, file: &str| format!("{name}={}", disks.join(file).display());
    let (ws1, ws2) = (of("ws1", "bios.img"), of("ws2", "uefi"));
    let hardware = ["--firmware", "ws2=uefi", "--disk", &ws1, "--disk", &ws2];
    let lab = TestLab::up("own-disks", store(), SITE, MORNING, &hardware);
    for node in ["ws1", "ws2"] {
        let request =
            BootRequest { target: BootTarget::Disk, once: false, cause: "its own system".to_owned() };
        lab.client.ask(node, "boot", &request).expect("told");
        lab.lab(&["press", node]);
    }
    lab.lab(&["wait", "ws1", "serial", "this is the disk's own system"]);
    lab.lab(&["wait", "ws2", "serial", "labshift node boot ws2 room"]);
    for node in ["ws1", "ws2"] {
        let serial = lab.serial(node);
        assert!(!serial.contains("running from the new root"), "{serial}");
    }
    let serial = lab.serial("ws1");
    assert!(!serial.contains("Linux version"), "{serial}");
}

/// A demo that is ended from outside, not by Ctrl-C in its terminal, takes its lab along.
#[test]
fn an_ended_demo_leaves_nothing() {
    let output = root().join("target/test-lab/ended");
    let mut demo =
        labshift_tests::demo(&output).stdout(Stdio::piped()).spawn().expect("starting labshift lab demo");
    let lines = BufReader::new(demo.stdout.take().expect("its output")).lines();
    let up = lines.map_while(Result::ok).any(|line| line.contains("lab is up"));
    assert!(up, "the demo did not bring its lab up");
    let processes = descendants(demo.id());
    assert!(processes.len() >= 3, "{processes:?}");
    demo.kill().expect("ending the demo");
    demo.wait().expect("waiting for its end");
    processes.iter().for_each(|(id, _)| wait_for_end_of(*id));
}

/// A store of its own with the smallest host.
fn compute() -> PathBuf {
    let store = root().join("target/test-lab/compute/store");
    let mut build = Command::new(labshift());
    build.args(["image", "build"]).arg(root().join("recipes/compute.toml")).arg("-o").arg(&store);
    assert!(build.status().expect("a build").success());
    store
}

/// The smallest host by itself, as its maker looks at it: `image run` ends when its runtime is ready.
#[test]
fn image_run_boots_the_compute_recipe_to_its_end() {
    let store = compute();
    let guard = labshift_tests::GUARD.as_secs().to_string();
    let mut run = Command::new("timeout");
    run.arg(guard).arg(labshift()).args(["image", "run", "compute", "--until", "labshift-runtime ready kvm"]);
    let ended = run.arg("--output").arg(store.with_file_name("lab")).arg("-o").arg(&store);
    let ended = ended.output().expect("starting it");
    let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    println!("{said}");
    assert!(ended.status.success() && said.contains("running from the new root"), "{}", ended.status);
    assert!(said.contains("labshift-runtime ready kvm ok"), "no runtime with KVM");
}

/// A recording that is interrupted is no success, leaves the order that the image had, and takes its lab along.
#[test]
fn an_interrupted_recording_loses_nothing() {
    let directory = compute();
    let store = Store::open(&directory).expect("the store");
    let (name, generation) = store.find("compute").expect("the image");
    let image = (name.as_str(), generation.as_str());
    let signed = store.generation(&name, &generation).join(paths::SIGNATURE);
    let order = || {
        let signature = fs::read_to_string(&signed).expect("the signature");
        serde_json::from_str::<Signature>(&signature).expect("a signature").boot_order
    };
    store
        .set_boot_order(image, &BootOrder::parse("0+32,7").expect("an order"), Timestamp::now())
        .expect("signed");

    let mut run = Command::new(labshift());
    run.args(["image", "run", "compute", "--record", "-o"]).arg(&directory);
    run.arg("--output").arg(directory.with_file_name("lab")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut run = run.spawn().expect("starting it");
    let mut lines = BufReader::new(run.stdout.take().expect("its output")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains(" init kernel ")), "no boot");
    std::thread::spawn(move || lines.for_each(drop));
    assert_eq!(order(), "");
    let processes = descendants(run.id());
    assert!(processes.iter().any(|(_, command)| command.starts_with("qemu-system")), "{processes:?}");
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGTERM).expect("ending it");
    let ended = run.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(
        !ended.status.success() && said.contains("the order of before stays"),
        "{}: {said}",
        ended.status
    );
    assert_eq!(order(), "0+32,7");
    processes.iter().for_each(|(id, _)| wait_for_end_of(*id));
    store.set_boot_order(image, &BootOrder::default(), Timestamp::now()).expect("signed");
}

/// Whatever ends a lab, nothing of it stays, and the next one finds its place free.
#[test]
fn a_killed_lab_leaves_nothing() {
    let mut lab = TestLab::up("killed", store(), SITE, MORNING, &[]);
    lab.lab(&["press", "ws1"]);
    lab.lab(&["wait", "ws1", "powered-on", ""]);
    let processes = lab.kill();
    for part in ["qemu-system", "labshift"] {
        assert!(processes.iter().any(|(_, command)| command.starts_with(part)), "no {part}: {processes:?}");
    }
    processes.iter().for_each(|(id, _)| wait_for_end_of(*id));
    drop(lab);
    TestLab::up("killed", store(), SITE, MORNING, &[]);
}

/// `labshift node reboot --kexec` on a running node: it comes up in the generation that it was told, ready for its server, and neither
/// firmware nor boot program had a part in it.
#[test]
fn a_node_goes_into_another_generation_without_firmware() {
    let (store, old, new) = signed_store("kexec-store");
    let pinned = format!("name = \"room-a\"\nimage = \"lab\"\ngeneration = \"{old}\"");
    let site = SITE.replace("name = \"room-a\"\nimage = \"lab\"", &pinned);
    assert_ne!(site, SITE, "the site has a room-a");
    // Both rooms compute at this time, and nobody has work for them.
    let guest = site.find("[[guest]]").expect("a guest");
    let end = site[guest + 1..].find("[[").expect("what follows") + guest + 1;
    let site =
        [&site[..guest], &site[end..]].concat().replace("schedule = \"room-b\"", "schedule = \"room-a\"");
    let lab = TestLab::up("kexec-live", &store, &site, "manual:2026-11-23T10:30:00", &[]);
    lab.lab(&["press", "ws1"]);
    let runs = |n: &NodeView, generation: &str| {
        let boot = n.boot.as_ref().filter(|b| b.generation == generation);
        n.connected && boot.is_some_and(|b| b.stages.iter().any(|s| s.stage == Stage::Ready))
    };
    let before = lab.wait_node("ws1", "to be ready", |n| runs(n, &old));
    assert!(before.boot.is_some_and(|b| b.stages.iter().any(|s| s.stage == Stage::Firmware)));
    let target = BootTarget::Image { name: "lab".into(), generation: Some(new.clone()) };
    let request = BootRequest { target, once: false, cause: String::new() };
    lab.client.ask("ws1", "boot", &request).expect("told what to boot");
    let request = RebootRequest { cause: "a test".into(), kexec: true };
    lab.client.ask("ws1", "reboot", &request).expect("asked to reboot");
    let after = lab.wait_node("ws1", "to be ready in the new generation", |n| runs(n, &new));
    let stages: Vec<_> = after.boot.iter().flat_map(|b| b.stages.iter().map(|s| s.stage)).collect();
    assert!(!stages.contains(&Stage::Firmware) && !stages.contains(&Stage::Loader), "{stages:?}");
    let serial = lab.serial("ws1");
    let next = serial.split("starting the next kernel").nth(1).expect("a kernel that starts the next one");
    assert!(!next.contains("iPXE") && next.contains(&format!("generation {}", &new[..12])), "{next}");
}

/// A store of its own with two generations of the lab image that differ in a signature for Secure Boot only: the store, the unsigned one,
/// and the signed one, to which the channel points.
fn signed_store(name: &str) -> (PathBuf, String, String) {
    let signed = root().join("target/test-lab").join(name);
    drop(fs::remove_dir_all(&signed));
    copy(store(), &signed);
    let channel =
        || fs::read_to_string(signed.join("channels/lab")).expect("reading the channel").trim().to_owned();
    let unsigned = channel();
    // The test key that Debian's OVMF trusts has a passphrase; image sign takes keys without one.
    let key = signed.join("snakeoil.key");
    let openssl = Command::new("openssl")
        .args(["pkey", "-in", "/usr/share/ovmf/PkKek-1-snakeoil.key", "-passin", "pass:snakeoil", "-out"])
        .arg(&key)
        .status();
    assert!(openssl.expect("starting openssl (run `make deps`)").success());
    let sign = Command::new(labshift())
        .args(["image", "sign", "lab", "--cert", "/usr/share/ovmf/PkKek-1-snakeoil.pem", "--key"])
        .arg(&key)
        .arg("-o")
        .arg(&signed)
        .output()
        .expect("starting labshift image sign");
    assert!(sign.status.success(), "{}", String::from_utf8_lossy(&sign.stderr));
    let now = channel();
    (signed, unsigned, now)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("making the copy");
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().expect("starting cp");
    assert!(status.success());
}

/// A machine that is in no site file boots the discovery image by PXE, says what it is made of, waits on a page, and goes on by
/// itself once it is adopted.
#[test]
fn a_stranger_is_discovered_and_adopted() {
    let lab = TestLab::up("stranger", store(), SITE, MORNING, &[]);
    let ws1 = SITE.find("[[machine]] # BIOS").expect("a machine");
    let end = SITE[ws1 + 1..].find("[[").expect("what follows") + ws1 + 1;
    let without =
        [&SITE[..ws1], "[unknown]\npolicy = \"discover\"\nimage = \"lab\"\n\n", &SITE[end..]].concat();
    lab.wait("ws1 to be known", |s| s.nodes.iter().any(|n| n.name == "ws1"));
    fs::write(lab.path("site.toml"), without).expect("a site without it");
    lab.wait("ws1 to be forgotten", |s| s.nodes.iter().all(|n| n.name != "ws1"));
    lab.lab(&["press", "ws1"]);
    let status = lab.wait("a stranger", |s| !s.strangers.is_empty());
    let stranger = &status.strangers[0];
    let hardware = &stranger.hardware;
    assert_eq!(stranger.mac.to_string(), "52:54:00:77:00:01");
    assert!(hardware.cpus >= 1 && hardware.memory_mib > 500 && hardware.vendor == "QEMU", "{hardware:?}");
    assert!(!hardware.uefi && hardware.ports[0].mac == stranger.mac, "{hardware:?}");
    let texts = ["NEW MACHINE", "labshift node adopt 52:54:00:77:00:01", "goes on by itself"];
    lab.reads("ws1", "stranger", &text_screen_letters(), &texts);
    let request = AdoptRequest { mac: stranger.mac, room: "room-a".into(), address: None };
    let done = lab.client.ask("ws3", "adopt", &request).expect("adopted");
    assert!(done.done.contains("[[machine]]\nname = \"ws3\""), "{}", done.done);
    let node = lab.wait_node("ws3", "to be connected", |n| n.connected);
    assert!(node.adopted && node.room == "room-a", "{node:?}");
    let serial = lab.serial("ws1");
    assert!(serial.contains("this machine is ws3 now"), "{serial}");
    assert_eq!(serial.matches(" init kernel ").count(), 1, "it goes on without a restart: {serial}");
}
