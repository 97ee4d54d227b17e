//! The root: how its blocks come, where they are kept, and what is wrong with them.

use labshift_tests::bare::{Bare, Behaviour, Server, Setup, answer, boot_order, ordered};
use serde_json::json;

use super::{arguments, page, server, service, small_image};

#[test]
fn a_flipped_byte_of_the_root() {
    let answer = answer(|_| ());
    let server = server(Behaviour { answer: Some(Ok(answer)), flip: Some(5_000_000), ..Default::default() });
    let machine = Bare::start("flipped", Setup { arguments: arguments(&server), ..Setup::default() });
    page(&machine, "ROOT-HASH", "image lab generation ", "The image in the store is damaged");
    let failure = server.failure();
    assert!(failure.sentence.contains(&format!("block {} of", 5_000_000 / 4096)), "{failure:?}");
}

/// The same when the root comes as it is read: the block that the mount needs is wrong.
#[test]
fn a_flipped_byte_of_a_root_that_comes_as_it_is_read() {
    let answer = answer(|_| ());
    let server = server(Behaviour { answer: Some(Ok(answer)), flip: Some(3_000), ..Default::default() });
    let arguments = format!("labshift.server={} labshift.retry=2 labshift.policy=lazy", server.url());
    let machine = Bare::start("flipped-lazy", Setup { arguments, ..Setup::default() });
    page(&machine, "ROOT-HASH", "image lab generation ", "The image in the store is damaged");
    assert!(server.failure().sentence.contains("block 0 of"));
    // The next attempt finds the devices as the first one did.
    let serial = machine.says("Failure 3 of 12");
    // The third one's own line comes after its page, and may have come while this was read.
    let before = serial.split("Failure 3 of 12").next().unwrap_or_default();
    assert_eq!(before.matches("failed: ROOT-HASH image lab").count(), 2, "{serial}");
}

/// A root that comes as it is read: the server dies while programs start, and they go on when it is back; in the end everything is
/// here and the server may die for good.
#[test]
fn a_root_that_comes_as_it_is_read() {
    let answer = answer(|manifest| {
        manifest.services = vec![service("last", &["/usr/bin/sh", "-c", "exec /usr/bin/busybox sleep 1000"])];
    });
    // Within the first blocks that are read once the root is mounted.
    let server =
        server(Behaviour { answer: Some(Ok(answer)), die_after: vec![1_500_000], ..Default::default() });
    let arguments = format!("{} labshift.policy=full", arguments(&server));
    let machine = Bare::start("lazy", Setup { arguments, ..Setup::default() });
    server.died();
    server.revive();
    let serial = machine.says("MiB are here now; the server may go away");
    assert!(serial.contains("1 services are up") && serial.contains("come as they are read"), "{serial}");
    assert!(!serial.contains("BOOT FAILED"), "{serial}");
}

/// The server dies twice in the middle of the root, once for longer than one try; the boot goes on where it was.
#[test]
fn a_server_that_dies_and_comes_back() {
    let service = service("done", &["/usr/bin/busybox", "sleep", "1000"]);
    let answer = answer(|manifest| manifest.services = vec![service]);
    let die_after = vec![2_000_000, 4_000_000];
    let server = server(Behaviour { answer: Some(Ok(answer)), die_after, ..Default::default() });
    let machine = Bare::start("dies", Setup { arguments: arguments(&server), ..Setup::default() });
    for _ in 0..2 {
        server.died();
        server.revive();
    }
    let serial = machine.says("1 services are up");
    assert!(serial.contains("resumed ") && serial.contains("root-mounted"), "{serial}");
    assert!(!serial.contains("BOOT FAILED"), "{serial}");
}

/// A boot tells in which order it reads its root. Signed with the manifest, this order is what the next boot fetches ahead, and it does not
/// tell again. How many bytes that saves, the unit tests count: here it depends on the moment at which one looks.
#[test]
fn a_boot_order_is_recorded_and_followed() {
    let with_service = |manifest: &mut labshift_model::manifest::Manifest| {
        manifest.services = vec![service("last", &["/usr/bin/sh", "-c", "exec /usr/bin/busybox sleep 1000"])];
    };
    let boot = |name: &str, order: &str| {
        let server = server(Behaviour {
            answer: Some(Ok(ordered(answer(with_service), order))),
            ..Default::default()
        });
        let arguments = format!("{} labshift.policy=full", arguments(&server));
        let machine = Bare::start(name, Setup { arguments, ..Setup::default() });
        machine.says("MiB are here now; the server may go away")
    };
    let serial = boot("order-recorded", "");
    let order = boot_order(&serial).unwrap_or_else(|| panic!("no boot order was told: {serial}"));
    let serial = boot("order-followed", &order);
    assert!(serial.contains("in the recorded order before") && boot_order(&serial).is_none(), "{serial}");
    assert!(serial.contains("1 services are up"), "{serial}");
}

/// Blocks that one boot has left on the local disk are not fetched by the next one, not either when the disk comes late, except those that somebody
/// has changed. What programs write reaches the disk as encrypted swap only.
#[test]
fn a_local_disk_serves_the_next_boot() {
    let lines = "[modules]\ninitrd = [\"virtio_pci\", \"virtio_net\"]\n[disk]\nserial = \"LAB-DISK\"\n";
    let image = small_image("disk", lines);
    let own = std::fs::read(image.join("manifest.json")).expect("reading the manifest");
    let answer = answer(|manifest| {
        *manifest = labshift_model::manifest::Manifest::from_bytes(&own).expect("a manifest");
        let script = "/usr/bin/busybox cat /proc/swaps; exec /usr/bin/busybox sleep 1000";
        manifest.services = vec![service("last", &["/usr/bin/sh", "-c", script])];
    });
    let disk = image.join("../../../../disk.img");
    let file = std::fs::File::create(&disk).expect("making the disk");
    file.set_len(512 << 20).expect("giving it its size");
    let drive = format!("file={},format=raw,if=none,id=disk", disk.display());
    let more = ["-drive", &drive, "-device", "virtio-blk-pci,drive=disk,serial=LAB-DISK"];
    let late = ["-drive", &drive, "-device", "pcie-root-port,id=late,chassis=1"];
    let boot = |name: &str| {
        let behaviour = Behaviour {
            answer: Some(Ok(answer.clone())),
            root: image.join("root.erofs"),
            ..Default::default()
        };
        let server = Server::start(behaviour);
        let arguments = format!("{} labshift.policy=disk", arguments(&server));
        let overlay: [(&str, &[u8]); 1] = [("etc/labshift/of-the-test", b"")];
        let more: &[&str] = if name == "disk-late" { &late } else { &more };
        let foreign = Some(image.clone());
        let setup = Setup { arguments, more, overlay: &overlay, foreign, ..Setup::default() };
        let machine = Bare::start(name, setup);
        if name == "disk-late" {
            machine.says("no disk is the one with serial number \"LAB-DISK\"; looking on for up to 10 s");
            let device =
                json!({ "driver": "virtio-blk-pci", "bus": "late", "drive": "disk", "serial": "LAB-DISK" });
            machine.qmp_with("device_add", device);
        }
        let serial = machine.says("MiB are here now; the server may go away");
        assert!(serial.contains("MiB of encrypted swap") && serial.contains("/dev/dm-"), "{serial}");
        assert!(!serial.contains("BOOT FAILED"), "{serial}");
        (server.sent(), serial)
    };
    let (first, serial) = boot("disk-cold");
    assert!(serial.contains("/dev/vda holds nothing of this root"), "{serial}");
    for name in ["disk-warm", "disk-late"] {
        let (fetched, serial) = boot(name);
        assert!(fetched == 0 && serial.contains("/dev/vda holds blocks of this root"), "{serial}");
    }
    use std::os::unix::fs::FileExt;
    for megabyte in [1_u64, 3] {
        file.write_all_at(b"somebody was here", megabyte << 20).expect("changing the disk");
    }
    let (third, _) = boot("disk-changed");
    println!("bytes fetched: {first} first, none then, {third} after two changes on the disk");
    assert_eq!(third, 2 * 128 * 1024);
    assert!(first > 4 << 20);
}

#[test]
fn too_little_memory() {
    let answer = answer(|manifest| manifest.root.data_size = 8 << 30);
    let server = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let machine = Bare::start("memory", Setup { arguments: arguments(&server), ..Setup::default() });
    page(&machine, "MEMORY", "image lab generation ", "Use a machine with more memory");
    let failure = server.failure();
    assert!(failure.sentence.contains("192 MiB to work in"), "{failure:?}");
}

#[test]
fn a_module_that_does_not_load() {
    let release = answer(|_| ());
    let manifest: serde_json::Value = serde_json::from_str(&release.manifest).expect("JSON");
    let release = manifest["kernel_release"].as_str().expect("a release").to_owned();
    let path = format!("lib/modules/{release}/kernel/drivers/md/dm-verity.ko");
    let server = server(Behaviour { answer: Some(Ok(answer(|_| ()))), ..Default::default() });
    let overlay: [(&str, &[u8]); 1] = [(&path, b"not a module")];
    let setup = Setup { overlay: &overlay, arguments: arguments(&server), ..Setup::default() };
    let machine = Bare::start("module", setup);
    page(&machine, "MODULE", "dm-verity.ko: Exec", "Kernel and modules must come from one build");
}
