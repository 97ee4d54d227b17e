//! Services that end, want too much, or say something late.

use labshift_model::service::{Limits, Restart, Service};
use labshift_tests::{
    bare::{Bare, Behaviour, MAC, Setup, answer},
    page_letters,
};

use super::{arguments, server, service};

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
