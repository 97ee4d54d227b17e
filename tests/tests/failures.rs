//! Every failure of a boot, provoked on a real kernel, and what a person then reads: on the screen, on serial, at the server.

use std::net::UdpSocket;

use labshift_model::{
    manifest::{FileEntry, generation_of},
    service::{Limits, Restart, Service},
};
use labshift_tests::{
    bare::{Bare, Behaviour, Cable, MAC, Server, Setup, answer, boot_order, frame_with, image, ordered},
    page_letters, text_screen_letters,
};
use serde_json::json;

/// What every page has: the code, the beginning of the sentence, of the hint, and the machine's address.
#[track_caller]
fn page(machine: &Bare, code: &str, sentence: &str, hint: &str) {
    let serial = machine.says("Trying again in");
    assert!(serial.contains(code) && serial.contains(sentence), "{serial}");
    machine
        .shows(&text_screen_letters(), &[code, sentence, &format!("What to do: {hint}"), "Trying again in"]);
}

fn server(behaviour: Behaviour) -> Server {
    Server::start(Behaviour { root: image("guest-batch").join("root.erofs"), ..behaviour })
}

fn service(name: &str, exec: &[&str]) -> Service {
    Service {
        name: name.into(),
        exec: exec.iter().map(|&word| word.to_owned()).collect(),
        after: vec![],
        restart: Restart::Always,
        environment: vec![],
        user: None,
        ready: None,
        listen: None,
        tty: None,
        limits: Default::default(),
    }
}

fn arguments(server: &Server) -> String {
    format!("labshift.server={} labshift.retry=600", server.url())
}

#[test]
fn no_card() {
    let setup = Setup { cable: Cable::NoCard, arguments: "labshift.retry=600".into(), ..Setup::default() };
    let machine = Bare::start("no-card", setup);
    page(&machine, "NO-LINK", "this machine has no network port", "Check the cable and the switch port");
}

/// A small image, built as an admin would: these lines after those that every recipe has.
fn small_image(name: &str, lines: &str) -> std::path::PathBuf {
    let directory = labshift_tests::root().join("target/test-lab").join(name);
    std::fs::create_dir_all(&directory).expect("making the directory");
    let base = labshift_tests::root().join("recipes/base.toml");
    let recipe = format!("name = \"{name}\"\nkind = \"host\"\nextends = \"{}\"\n{lines}", base.display());
    let file = directory.join("recipe.toml");
    std::fs::write(&file, recipe).expect("writing the recipe");
    let store = directory.join("store");
    let mut build = std::process::Command::new(labshift_tests::labshift());
    let output = build.args(["image", "build"]).arg(&file).arg("-o").arg(&store).output();
    let output = output.expect("starting labshift image build");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let generation = std::fs::read_to_string(store.join("channels").join(name)).expect("reading the channel");
    store.join("images").join(name).join(generation.trim())
}

/// The recipe allows a rescue shell: after the page, the code for the machine's challenge opens it, or the password, and nothing else. When it
/// ends the boot goes on.
#[test]
fn a_rescue_shell_for_whoever_has_the_key_or_the_password() {
    let password = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$6JlLzEdKMvGk83Zgd3owplAejssJr2SFlJFlOc7i54A";
    let rescue = format!("[rescue]\npassword = \"{password}\"\nkeys = [\"{ADMIN}\"]\n");
    let setup = Setup {
        cable: Cable::NoCard,
        arguments: "labshift.retry=600".into(),
        foreign: Some(small_image("rescue", &rescue)),
        ..Setup::default()
    };
    let key = labshift_tests::root().join("target/test-lab/rescue/id_ed25519");
    std::fs::write(&key, ADMINS_KEY).expect("writing the admin's key");
    let machine = Bare::start("rescue", setup);
    let serial = machine.says("Enter opens the rescue shell");
    assert!(serial.contains("NO-LINK"), "{serial}");
    let asks = "Code or password of the rescue shell: ";
    // What is typed before the line is listened to is not meant.
    machine.types_until("", asks, 1);
    machine.types("letmein");
    let serial = machine.says_times(asks, 2);
    assert!(serial.contains("wrong code or password on ttyS0") && !serial.contains("rescue# "), "{serial}");
    let challenge = serial.rsplit("labshift node rescue ").next().and_then(|t| t.split_whitespace().next());
    let mut command = std::process::Command::new(labshift_tests::labshift());
    let output =
        command.args(["node", "rescue", challenge.expect("a challenge"), "--key"]).arg(&key).output();
    let code = String::from_utf8(output.expect("starting labshift node rescue").stdout).expect("text");
    machine.types(&code.trim().to_lowercase());
    machine.says("rescue# ");
    machine.types("echo $((6 * 7)) $(ls /etc/labshift | wc -l); ip link | grep -c LOOPBACK");
    let serial = machine.says("42 ");
    assert!(serial.contains("the shell is open on ttyS0"), "{serial}");
    machine.types("exit");
    let serial = machine.says_times("NO-LINK", serial.matches("NO-LINK").count() + 1);
    assert!(serial.contains("the shell has ended; trying again"), "{serial}");
    let typed = serial.contains("letmein") || serial.to_uppercase().contains(code.trim());
    assert!(!typed, "what is typed is not echoed: {serial}");
    machine.types_until("", asks, serial.matches(asks).count() + 1);
    let shells = serial.matches("rescue# ").count();
    machine.types("open sesame");
    let serial = machine.says_times("rescue# ", shells + 1);
    assert!(!serial.contains("sesame"), "{serial}");
}

/// An admin's key for the tests, without a passphrase.
const ADMIN: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINYuIu7w3Vy0HwIzdd502gnGe3qwIzRGQxTqjJY7EoNp admin@pc";
const ADMINS_KEY: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n\
    b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n\
    QyNTUxOQAAACDWLiLu8N1ctB8CM3XedNoJxnt6sCM0RkMU6oyWOxKDaQAAAJAjgdheI4HY\n\
    XgAAAAtzc2gtZWQyNTUxOQAAACDWLiLu8N1ctB8CM3XedNoJxnt6sCM0RkMU6oyWOxKDaQ\n\
    AAAEDx4Yu+GAXf721nlJfjaXFck9OrSen7/GCSwsw67HIjTNYuIu7w3Vy0HwIzdd502gnG\n\
    e3qwIzRGQxTqjJY7EoNpAAAACGFkbWluQHBjAQIDBAU=\n\
    -----END OPENSSH PRIVATE KEY-----\n";

/// No `[rescue]` in the recipe: nothing is offered, and whatever is typed opens nothing.
#[test]
fn no_rescue_shell_without_a_word_in_the_recipe() {
    let setup = Setup { cable: Cable::NoCard, arguments: "labshift.retry=5".into(), ..Setup::default() };
    let machine = Bare::start("no-rescue", setup);
    machine.says("Failure 1 of 12. Trying again in");
    for line in ["", "open sesame", "id"] {
        machine.types(line);
    }
    let serial = machine.says("Failure 2 of 12. Trying again in");
    assert!(!serial.contains("rescue") && !serial.contains("uid="), "{serial}");
}

#[test]
fn no_link() {
    let setup = Setup { cable: Cable::Unplugged, arguments: "labshift.retry=600".into(), ..Setup::default() };
    let machine = Bare::start("no-link", setup);
    page(
        &machine,
        "NO-LINK",
        &format!("no port has a link: eth0 {MAC}"),
        "Check the cable and the switch port",
    );
    machine.shows(&text_screen_letters(), &[&format!("MAC: {MAC}")]);
}

/// Nobody answers: the page names the time; everybody on the segment gets a datagram.
#[test]
fn no_address() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let cable = Cable::Deaf(socket.try_clone().expect("the same port"));
    let machine = Bare::start(
        "no-address",
        Setup { cable, arguments: "labshift.retry=600".into(), ..Setup::default() },
    );
    page(&machine, "NO-ADDRESS", "no DHCP server answered in 75 s", "Check that the labshift server runs");
    let frame = frame_with(&socket, "NO-ADDRESS");
    assert_eq!(frame[..6], [0xff; 6], "to everybody");
    let text = String::from_utf8_lossy(&frame);
    assert!(
        text.contains(MAC) && text.contains("no DHCP server answered") && text.contains("eth0"),
        "{text}"
    );
}

/// Nobody listens at the server's port: the report goes to the same port as a datagram.
#[test]
fn no_server() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = socket.local_addr().expect("its number").port();
    let arguments = format!("labshift.server=http://10.0.2.2:{port} labshift.retry=600");
    let machine = Bare::start("no-server", Setup { arguments, ..Setup::default() });
    page(
        &machine,
        "NO-SERVER",
        &format!("http://10.0.2.2:{port} did not answer"),
        "Check that `labshift serve`",
    );
    frame_with(&socket, "NO-SERVER");
}

#[test]
fn a_server_that_says_no() {
    let server =
        server(Behaviour { answer: Some(Err("ws-77 is in maintenance".into())), ..Default::default() });
    let machine = Bare::start("refused", Setup { arguments: arguments(&server), ..Setup::default() });
    page(
        &machine,
        "REFUSED",
        "the server refuses to boot this machine: ws-77",
        "Look the machine up in site.toml",
    );
    assert_eq!(server.failure().code, "REFUSED");
}

#[test]
fn a_manifest_that_nobody_trusted_signed() {
    let mut answer = answer(|_| ());
    answer.signature.key = "11".repeat(32);
    let server = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let machine = Bare::start("key", Setup { arguments: arguments(&server), ..Setup::default() });
    page(&machine, "MANIFEST", "image lab generation ", "Publish the image again with the key");
    let failure = server.failure();
    assert!(failure.code == "MANIFEST" && failure.sentence.contains("does not trust"), "{failure:?}");
}

#[test]
fn a_manifest_that_was_changed() {
    let mut answer = answer(|_| ());
    answer.manifest = answer.manifest.replacen("amd64", "amd65", 1);
    let server = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let machine = Bare::start("changed", Setup { arguments: arguments(&server), ..Setup::default() });
    page(&machine, "MANIFEST", "image lab generation ", "Publish the image again with the key");
    assert!(server.failure().sentence.contains("changed after it was signed"));
}

/// The answer of another day, played back: signed by the right server, but not to this question.
#[test]
fn an_answer_that_was_recorded() {
    let answer = Some(Ok(answer(|_| ())));
    let server = server(Behaviour { answer, recorded: true, ..Default::default() });
    let machine = Bare::start("recorded", Setup { arguments: arguments(&server), ..Setup::default() });
    page(&machine, "ANSWER", "the answer of http://10.0.2.2:", "Build the image again in the");
    assert!(server.failure().sentence.contains("it was given to an earlier question"));
}

/// An image from before the minimum: its signature is good, and it is refused.
#[test]
fn an_image_older_than_the_minimum() {
    let server = server(Behaviour { answer: Some(Ok(answer(|_| ()))), ..Default::default() });
    let overlay: [(&str, &[u8]); 1] = [("etc/labshift/minimum", b"2026-11-23T07:00:01Z\n")];
    let setup = Setup { overlay: &overlay, arguments: arguments(&server), ..Setup::default() };
    let machine = Bare::start("older", setup);
    page(&machine, "VERSION", "image lab generation ", "Build or publish the image again");
    let failure = server.failure();
    assert!(failure.sentence.contains("signed at 2026-11-23T07:00:00Z; this machine takes"), "{failure:?}");
}

/// An image whose time is over. The board believes that it is 1999: only the server's signed time counts.
#[test]
fn an_expired_image_and_a_dead_clock() {
    let mut expired = answer(|manifest| manifest.valid_days = Some(1));
    expired.now = "2026-11-24T07:00:00Z".parse().expect("a time");
    let server = server(Behaviour { answer: Some(Ok(expired)), ..Default::default() });
    let more = ["-rtc", "base=1999-01-01"];
    let setup = Setup { arguments: arguments(&server), more: &more, ..Setup::default() };
    let machine = Bare::start("expired", setup);
    page(&machine, "EXPIRED", "image lab generation ", "Publish the image again (labshift image publish)");
    assert!(server.failure().sentence.contains("good until 2026-11-24T07:00:00Z"));
}

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

#[test]
fn a_kernel_argument_that_is_wrong() {
    let setup = Setup {
        arguments: "labshift.root=nfs labshift.retry=600".into(),
        cable: Cable::NoCard,
        ..Setup::default()
    };
    let machine = Bare::start("cmdline", setup);
    page(&machine, "CMDLINE", "labshift.root=nfs is not", "Correct the kernel arguments");
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

/// The runtime ends again and again: a failure of the boot, shown and told, and tried on.
#[test]
fn a_runtime_that_crashes_in_a_loop() {
    let service = Service {
        ready: Some("/run/never".into()),
        ..service("labshift-runtime", &["/usr/bin/busybox", "false"])
    };
    let answer = answer(|manifest| manifest.services = vec![service]);
    let server = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let machine = Bare::start("loop", Setup { arguments: arguments(&server), ..Setup::default() });
    let failure = server.failure();
    assert_eq!(failure.code, "SERVICES");
    let sentence = "service labshift-runtime ended 5 times in a row";
    assert!(failure.sentence.contains(sentence) && failure.sentence.contains("exit code 1"), "{failure:?}");
    // The root's own driver brings a graphics screen, before or after: the page is there, too.
    machine.says("virtio_gpu");
    machine.shows(&page_letters(), &["SERVICES", sentence, "Node: ws-77 ", &format!("MAC: {MAC}")]);
}

/// Long after the boot a service says a word: the server has it, and what PID 1 says of the service's end.
#[test]
fn what_a_service_says_later_reaches_the_server() {
    let script = "/usr/bin/busybox sleep 20; echo a late word; exit 7";
    let answer = answer(|manifest| {
        let speaker = service("speaker", &["/usr/bin/sh", "-c", script]);
        manifest.services = vec![Service { restart: Restart::Never, ..speaker }];
    });
    let server = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let _machine = Bare::start("late", Setup { arguments: arguments(&server), ..Setup::default() });
    server.log("] speaker a late word");
    server.log("service speaker ended with exit code 7");
}

/// A service that takes more memory than its recipe gives it: the kernel ends it with all that it started, nobody else, and it is told by
/// name with its limit. Processor and process limits are in force, too.
#[test]
fn a_service_that_wants_too_much_memory() {
    let limits = Limits { memory_mib: Some(16), cpu_weight: Some(20), processes: Some(8) };
    // tail keeps what has no line end: here, everything.
    let script = "cd /sys/fs/cgroup/labshift/greedy; echo limits $(/usr/bin/busybox cat cpu.weight pids.max memory.max); \
                  /usr/bin/busybox tail -n 1 /dev/zero & wait; exec /usr/bin/busybox sleep 1000";
    let answer = answer(|manifest| {
        let greedy = Service { limits, ..service("greedy", &["/usr/bin/sh", "-c", script]) };
        manifest.services = vec![greedy, service("modest", &["/usr/bin/busybox", "sleep", "1000"])];
    });
    let server = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let machine = Bare::start("greedy", Setup { arguments: arguments(&server), ..Setup::default() });
    let serial = machine.says("greedy was ended by SIGKILL: it needed more than its 16 MiB of memory");
    assert!(serial.contains("limits 20 8 16777216"), "{serial}");
    assert!(!serial.contains("modest was ended"), "{serial}");
    assert!(server.failure().sentence.contains("greedy ended 5 times in a row"));
}

/// The server does not answer: the next one is asked, and told.
#[test]
fn the_next_server_answers() {
    let service = service("done", &["/usr/bin/busybox", "sleep", "1000"]);
    let answer = answer(|manifest| manifest.services = vec![service]);
    let silent = server(Behaviour { dead: true, ..Default::default() });
    let next = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let arguments = format!("{} labshift.mirror={}", arguments(&silent), next.url());
    let machine = Bare::start("next-server", Setup { arguments, ..Setup::default() });
    let serial = machine.says("1 services are up");
    assert!(
        serial.contains(&format!("asking {}", next.url())) && !serial.contains("BOOT FAILED"),
        "{serial}"
    );
    next.log("1 services are up");
}

/// The server wants another generation than the one whose kernel runs (its channel moved, or the node goes back): only a restart helps,
/// and it comes without twelve tries.
#[test]
fn a_generation_that_changed_under_way() {
    let server = server(Behaviour { answer: Some(Ok(answer(|_| ()))), ..Default::default() });
    let arguments =
        format!("labshift.server={} labshift.retry=1 labshift.roothash={}", server.url(), "ab".repeat(32));
    let machine = Bare::start("generation", Setup { arguments, ..Setup::default() });
    let failure = server.failure();
    assert!(failure.code == "CHANGED" && failure.sentence.contains("wants root hash abab"), "{failure:?}");
    let serial = machine.says_times(" init kernel ", 2);
    assert!(serial.contains("Failure 1. The machine reboots in 1 s."), "{serial}");
}

/// PID 1 is gone: a service writes over its code. The kernel stops and restarts the machine, and the next boot tells how the last one
/// ended, from memory that outlives a restart.
#[test]
fn a_dead_pid_1_restarts_the_machine_and_is_told() {
    dies_and_tells(
        "pid1",
        &["-object", "memory-backend-ram,id=erst,size=64K", "-device", "acpi-erst,memdev=erst"],
    );
}

/// The same where only the firmware's variables outlive it, as on most workstations: their driver is a module.
#[test]
fn a_dead_pid_1_is_told_by_the_variables_of_uefi() {
    let directory = labshift_tests::root().join("target/test-lab/pid1-uefi");
    std::fs::create_dir_all(&directory).expect("making the directory");
    let variables = directory.join("variables.fd");
    std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables).expect("copying the variables");
    let code = "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd";
    let variables = format!("if=pflash,format=raw,unit=1,file={}", variables.display());
    dies_and_tells("pid1-uefi", &["-drive", code, "-drive", &variables]);
}

fn dies_and_tells(name: &str, more: &[&str]) {
    let script = "b=/usr/bin/busybox; $b sleep 2; \
        set -- $($b grep -m1 r-xp /proc/1/maps); from=$((0x${1%-*} / 4096)); to=$((0x${1#*-} / 4096)); \
        $b dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$from count=$((to - from)) conv=notrunc";
    let answer = answer(|manifest| manifest.services = vec![service("axe", &["/usr/bin/sh", "-c", script])]);
    let server = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let arguments = format!("{} panic=1", arguments(&server));
    let machine = Bare::start(name, Setup { arguments, more, ..Setup::default() });
    let serial =
        machine.says("crash the last run ended: Kernel panic - not syncing: Attempted to kill init!");
    assert!(serial.contains("1 services are up") && serial.matches(" init kernel ").count() == 2, "{serial}");
    assert!(server.crash().contains("Attempted to kill init!"));
}

/// The plug is pulled at ten moments of a boot, each drawn by lot (always the same lot). The next boot is as clean as the first.
#[test]
fn a_plug_pulled_at_any_moment() {
    let service = service("done", &["/usr/bin/busybox", "sleep", "1000"]);
    let answer = answer(|manifest| manifest.services = vec![service]);
    let server = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let arguments = format!("{} labshift.policy=full", arguments(&server));
    let start = || Bare::start("plug", Setup { arguments: arguments.clone(), ..Setup::default() });
    let whole = start().says("the server may go away").matches("labshift: [").count();
    let mut lot = 20_261_123_u32;
    for _ in 0..10 {
        lot = lot.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let moment = 1 + (lot >> 8) as usize % whole;
        let serial = start().says_times("labshift: [", moment);
        assert!(!serial.contains("BOOT FAILED"), "{serial}");
    }
    let serial = start().says("the server may go away");
    assert!(serial.contains("1 services are up") && !serial.contains("BOOT FAILED"), "{serial}");
}

/// `labshift node reboot --kexec`: init loads the next generation's kernel while services run, stops them, and starts it. QEMU ends at
/// any restart through the firmware here.
#[test]
fn another_generation_without_firmware() {
    let ask = r#"/usr/bin/busybox sleep 2; exec /proc/1/exe --ask '{"request":"kexec"}'"#;
    let first = answer(|manifest| {
        manifest.services = vec![
            service("old", &["/usr/bin/busybox", "sleep", "1000"]),
            Service { restart: Restart::Never, ..service("asks", &["/usr/bin/sh", "-c", ask]) },
        ];
    });
    let directory = labshift_tests::root().join("target/test-lab/kexec");
    std::fs::create_dir_all(&directory).expect("making the directory");
    let (vmlinuz, initrd) = (image("lab").join("vmlinuz"), directory.join("initrd.img"));
    std::fs::write(&initrd, labshift_tests::bare::initrd(&[])).expect("writing the initramfs");
    let entry = |file: &std::path::Path| {
        let bytes = std::fs::read(file).expect("reading it");
        FileEntry { size: bytes.len() as u64, sha256: generation_of(&bytes) }
    };
    let (kernel_entry, initrd_entry) = (entry(&vmlinuz), entry(&initrd));
    let then = answer(|manifest| {
        manifest.services = vec![service("new", &["/usr/bin/busybox", "sleep", "1000"])];
        manifest.files.insert("vmlinuz".into(), kernel_entry);
        manifest.files.insert("initrd.img".into(), initrd_entry);
    });
    let at = format!("/images/lab/{}", then.generation);
    let files = vec![(format!("{at}/vmlinuz"), vmlinuz), (format!("{at}/initrd.img"), initrd)];
    let behaviour = Behaviour { answer: Some(Ok(first)), then: Some(then), files, ..Default::default() };
    let server = server(behaviour);
    let setup = Setup { arguments: arguments(&server), more: &["-no-reboot"], ..Setup::default() };
    let machine = Bare::start("kexec", setup);
    let serial = machine.says("service new started");
    let order =
        ["old started", "is loaded", "stopping services", "starting the next kernel", " init kernel "];
    let mut rest = &serial[..];
    for text in order {
        let at = rest.find(text).unwrap_or_else(|| panic!("no {text:?} in its place: {serial}"));
        rest = &rest[at..];
    }
}

/// The kernel is stopped for good (a panic that waits for ever): the board's watchdog, which PID 1 fed until then, starts the machine
/// anew, and the next boot tells the server.
#[test]
fn a_kernel_that_hangs_is_started_anew_by_the_watchdog() {
    let crash = "/usr/bin/busybox sleep 3; echo c > /proc/sysrq-trigger";
    let answer = answer(|manifest| manifest.services = vec![service("crash", &["/usr/bin/sh", "-c", crash])]);
    let server = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let arguments = format!("{} panic=0", arguments(&server));
    let more = ["-device", "i6300esb", "-action", "watchdog=reset"];
    let machine = Bare::start("watchdog", Setup { arguments, more: &more, ..Setup::default() });
    let serial = machine.says("1 services are up");
    assert!(serial.contains("watchdog i6300ESB timer fed"), "{serial}");
    machine.says_times(" init kernel ", 2);
    assert!(server.crash().contains("the watchdog restarted the machine"));
}
