//! Real clients on a bad cable: 1 % of the frames are lost, the others take 15 ms, 5 more or less.

use std::{fs, time::Duration};

use crate::{
    arena::{Server, lease_script, on_a_cable_with, run, sh, site},
    cable::Properties,
    clients::content,
};

const BAD: Properties =
    Properties { lost_of_1000: 10, delay: Duration::from_millis(15), jitter: Duration::from_millis(5) };

#[test]
fn a_lossy_cable_slows_clients_and_stops_none() {
    on_a_cable_with(
        Some(BAD),
        |ready, done| {
            let mut server = Server::prepare(&site(1, "10.77.1.0-10.77.1.200"));
            fs::write(server.path("loaders/undionly.kpxe"), content(1_500_001)).expect("a file for TFTP");
            fs::write(server.path("loaders/snponly.efi"), content(80_000)).expect("a file for TFTP");
            server.start(&[]);
            ready.send(()).expect("the client waits");
            let _ = done.recv();
        },
        || {
            sh("ip link set client0 address 52:54:00:77:00:01");
            sh("ip link set client0 up");
            let scratch = tempfile::tempdir().expect("a directory");
            let file = |name: &str| scratch.path().join(name).display().to_string();
            let script = lease_script(scratch.path());
            for _ in 0..5 {
                let lease =
                    ["udhcpc", "-i", "client0", "-f", "-n", "-q", "-t", "20", "-T", "1", "-s", &script];
                let said = String::from_utf8(run("busybox", &lease).stdout).expect("text");
                assert!(said.contains("ip='10.77.0.11'"), "{said}");
            }
            sh("ip address add 10.77.0.11/16 dev client0");
            let windows =
                ["--option", "blksize 1428", "--option", "windowsize 16", "--get", "-r", "undionly.kpxe"];
            run("atftp", &[&windows[..], &["-l", &file("windows"), "10.77.0.1"]].concat());
            assert!(fs::read(file("windows")).expect("the file") == content(1_500_001));
            sh(&format!("busybox tftp -g -b 1468 -r snponly.efi -l {} 10.77.0.1", file("single")));
            assert!(fs::read(file("single")).expect("the file") == content(80_000));
            for _ in 0..20 {
                sh("curl -sS -f http://10.77.0.1:8080/boot/script.ipxe?mac=52:54:00:77:00:01");
            }
        },
    );
}
