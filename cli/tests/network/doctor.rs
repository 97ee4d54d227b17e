//! `labshift doctor` on a live interface.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
};

use crate::arena::{on_a_cable, sh};

#[test]
fn the_doctor_sees_that_nobody_answers_though_the_interface_goes_away() {
    on_a_cable(
        |ready, done| {
            let mut doctor = Command::new(env!("CARGO_BIN_EXE_labshift"))
                .args(["doctor", "--interface", "server0", "--json"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("starting the doctor");
            let mut said = String::new();
            let mut stderr = BufReader::new(doctor.stderr.take().expect("stderr"));
            stderr.read_line(&mut said).expect("reading");
            assert!(said.contains("watching server0"), "{said}");
            ready.send(()).expect("the client waits");
            // Ends with the client, whose namespace takes the cable along: the doctor judges what it saw.
            let _ = done.recv();
            let mut said = String::new();
            stderr.read_line(&mut said).expect("reading");
            assert!(said.contains("server0 is gone"), "{said}");
            let mut found = String::new();
            doctor.stdout.take().expect("stdout").read_to_string(&mut found).expect("reading");
            assert!(doctor.wait().expect("its end").success(), "{found}");
            let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
            let finding = &found["findings"][0];
            assert_eq!(finding["pattern"], "no-answer", "{found:#}");
            assert_eq!(finding["client"], "52:54:00:77:00:01");
        },
        || {
            sh("ip link set client0 address 52:54:00:77:00:01");
            sh("ip link set client0 up");
            // Fails, of course; what it sent before the link was up is lost.
            let asked = Command::new("busybox")
                .args(["udhcpc", "-i", "client0", "-f", "-n", "-q", "-t", "8", "-T", "1", "-s", "/bin/true"])
                .output()
                .expect("starting udhcpc; `make deps` installs it");
            assert!(!asked.status.success());
        },
    );
}

#[test]
fn an_interface_that_is_not_there() {
    let output = Command::new(env!("CARGO_BIN_EXE_labshift"))
        .args(["doctor", "--interface", "nothing0"])
        .output()
        .expect("starting the doctor");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("no network interface nothing0; `ip link` lists them"), "{said}");
}
