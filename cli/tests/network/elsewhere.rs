//! DHCP is off here: a dnsmasq with what `labshift site dhcp` prints sends machines to us.

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::arena::{Server, lease_script, on_a_cable, run, sh, site};

#[test]
fn a_foreign_dnsmasq_sends_machines_here() {
    on_a_cable(
        |ready, done| {
            let mut server = Server::prepare(&site(1, "10.77.1.0-10.77.1.200"));
            fs::write(server.path("loaders/snponly.efi"), "loader").expect("a file for TFTP");
            server.start(&["--dhcp", "off"]);
            let file = server.path("site.toml").display().to_string();
            let text =
                run(env!("CARGO_BIN_EXE_labshift"), &["site", "dhcp", &file, "--for", "dnsmasq"]).stdout;
            let text = String::from_utf8(text).expect("text");
            let settings = format!(
                "port=0\ninterface=server0\nbind-interfaces\nuser=root\nno-ping\ndhcp-authoritative\n\
                 dhcp-range=10.77.2.0,10.77.2.200,255.255.0.0,1h\ndhcp-leasefile={}\n{text}",
                server.path("dnsmasq.leases").display()
            );
            let path = server.path("dnsmasq.conf");
            fs::write(&path, settings).expect("its settings");
            let mut dnsmasq = Command::new("dnsmasq")
                .args(["--keep-in-foreground", "--log-facility=-"])
                .arg(format!("--conf-file={}", path.display()))
                .stderr(Stdio::null())
                .spawn()
                .expect("starting dnsmasq; `make deps` installs it");
            ready.send(()).expect("the client waits");
            let _ = done.recv();
            drop(dnsmasq.kill());
            drop(dnsmasq.wait());
        },
        || {
            sh("ip link set client0 address 52:54:00:77:00:01");
            sh("ip link set client0 up");
            let scratch = tempfile::tempdir().expect("a directory");
            let script = lease_script(scratch.path());
            let ask = |class: &str, extra: &[&str]| {
                let lease = [
                    "-i", "client0", "-f", "-n", "-q", "-t", "20", "-O", "bootfile", "-s", &script, "-V",
                    class,
                ];
                let output = run("busybox", &[&["udhcpc"], &lease[..], extra].concat());
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            let file = "http://10.77.0.1:8080/boot/script.ipxe";
            for (class, extra, wanted) in [
                ("PXEClient:Arch:00000:UNDI:002001", &["-x", "0x5d:0000"][..], "undionly.kpxe"),
                ("PXEClient:Arch:00007:UNDI:003016", &["-x", "0x5d:0007"], "snponly.efi"),
                ("PXEClient:Arch:00007:UNDI:003016", &["-x", "0x5d:0007", "-x", "0xaf:b10101"], file),
            ] {
                let said = ask(class, extra);
                assert!(said.contains(&format!("boot_file='{wanted}'")), "no {wanted} in:\n{said}");
                assert!(wanted == file || said.contains("siaddr='10.77.0.1'"), "{said}");
            }
            sh("ip address add 10.77.0.11/16 dev client0");
            let script = String::from_utf8(sh(&format!("curl -sS {file}")).stdout).expect("text");
            assert!(script.contains("script.ipxe?mac=${netX/mac}"), "{script}");
        },
    );
}
