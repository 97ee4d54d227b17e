//! Machines that end as nobody meant, or start anew.

use labshift_model::{
    manifest::{FileEntry, generation_of},
    service::{Restart, Service},
};
use labshift_tests::bare::{Bare, Behaviour, Setup, answer, image};

use super::{arguments, server, service};

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
    // One processor: the second that this firmware has started gets no interrupts now and then in emulation ("rcu_preempt detected stalls
    // on CPUs/tasks", no tick on CPU 1), and the kernel waits for it without end.
    dies_and_tells("pid1-uefi", &["-smp", "1", "-drive", code, "-drive", &variables]);
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
