//! `labshift serve` as an ordinary user with the three capabilities of the systemd unit.

use crate::{
    arena::{Server, lease_script, on_a_cable, run, sh, site},
    clients::content,
};

/// The capabilities that the unit gives.
fn capabilities() -> Vec<String> {
    let unit = include_str!("../../../packaging/labshift.service");
    let line = unit.lines().find_map(|l| l.strip_prefix("AmbientCapabilities=")).expect("capabilities");
    line.split(' ').map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase())).collect()
}

#[test]
fn three_capabilities_are_enough() {
    on_a_cable(
        |ready, done| {
            let mut server = Server::prepare(&site(1, "10.77.1.0-10.77.1.200"));
            std::fs::write(server.path("loaders/undionly.kpxe"), content(100_000)).expect("a file for TFTP");
            sh(&format!("chown -R nobody:nogroup {}", server.scratch.path().display()));
            let caps = capabilities().join(",");
            server.start_as(
                &[
                    "setpriv",
                    "--reuid=nobody",
                    "--regid=nogroup",
                    "--clear-groups",
                    "--no-new-privs",
                    &format!("--bounding-set=-all,{caps}"),
                    &format!("--inh-caps=-all,{caps}"),
                    &format!("--ambient-caps=-all,{caps}"),
                ],
                &[],
            );
            ready.send(()).expect("the client waits");
            let _ = done.recv();
            let log = server.log();
            assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
        },
        || {
            sh("ip link set client0 address 52:54:00:77:00:01");
            sh("ip link set client0 up");
            let scratch = tempfile::tempdir().expect("a directory");
            let script = lease_script(scratch.path());
            // Without the broadcast flag: the reply needs a neighbour entry.
            let lease = ["udhcpc", "-i", "client0", "-f", "-n", "-q", "-t", "20", "-s", &script];
            let said = String::from_utf8(run("busybox", &lease).stdout).expect("text");
            assert!(said.contains("ip='10.77.0.11'"), "{said}");
            sh("ip address add 10.77.0.11/16 dev client0");
            let file = scratch.path().join("file");
            sh(&format!("busybox tftp -g -r undionly.kpxe -l {} 10.77.0.1", file.display()));
            assert!(std::fs::read(file).expect("the file") == content(100_000));
        },
    );
}
