//! DHCP, TFTP and HTTP clients that people really use, against `labshift serve`.

use std::fs;

use crate::arena::{Server, lease_script, on_a_cable, run, sh, site};

/// A file whose bytes tell where they are.
pub fn content(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn serving(client: impl FnOnce() + Send + 'static) {
    on_a_cable(
        |ready, done| {
            let mut server = Server::prepare(&site(1, "10.77.1.0-10.77.1.200"));
            fs::write(server.path("loaders/undionly.kpxe"), content(3_000_001)).expect("a file for TFTP");
            fs::write(server.path("loaders/snponly.efi"), content(70)).expect("a file for TFTP");
            server.start(&[]);
            ready.send(()).expect("the client waits");
            // Ends with the client.
            let _ = done.recv();
        },
        move || {
            sh("ip link set client0 address 52:54:00:77:00:01");
            sh("ip link set client0 up");
            client();
        },
    );
}

#[test]
fn udhcpc_gets_its_address_and_says_what_firmware_would_boot() {
    serving(|| {
        let scratch = tempfile::tempdir().expect("a directory");
        let script = lease_script(scratch.path());
        for (class, file) in [
            ("PXEClient:Arch:00000:UNDI:002001", "undionly.kpxe"),
            ("PXEClient:Arch:00007:UNDI:003016", "snponly.efi"),
        ] {
            let lease =
                ["-i", "client0", "-f", "-n", "-q", "-t", "20", "-O", "bootfile", "-V", class, "-s", &script];
            let output = run("busybox", &[&["udhcpc"], &lease[..]].concat());
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let wanted =
                ["ip='10.77.0.11'", "mask='16'", "hostname='ws1'", "serverid='10.77.0.1'", "lease='3600'"];
            for wanted in wanted.into_iter().map(str::to_owned).chain([format!("boot_file='{file}'")]) {
                assert!(said.contains(&wanted), "no {wanted} in:\n{said}");
            }
        }
    });
}

#[test]
fn dhcpcd_gets_its_address_and_keeps_it() {
    serving(|| {
        for _ in 0..2 {
            // `--test` asks, prints what it would set, and changes nothing.
            let output = run("dhcpcd", &["-4", "--test", "--noarp", "-t", "60", "client0"]);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            for wanted in
                ["new_ip_address='10.77.0.11'", "new_subnet_cidr='16'", "new_dhcp_lease_time='3600'"]
            {
                assert!(said.contains(wanted), "no {wanted} in:\n{said}");
            }
        }
    });
}

#[test]
fn tftp_clients_fetch_whole_files() {
    serving(|| {
        sh("ip address add 10.77.0.11/16 dev client0");
        let scratch = tempfile::tempdir().expect("a directory");
        let file = |name: &str| scratch.path().join(name).display().to_string();
        let get = |name: &str| format!("{} 10.77.0.1", file(name));
        let wanted = content(3_000_001);
        let same = |name: &str| assert!(fs::read(file(name)).expect("the file") == wanted, "{name}");

        run("tftp", &["-m", "binary", "10.77.0.1", "-c", "get", "undionly.kpxe", &file("hpa")]);
        same("hpa");
        sh(&format!("atftp --get -r undionly.kpxe -l {}", get("atftp")));
        same("atftp");
        let windows =
            ["--option", "blksize 1428", "--option", "windowsize 16", "--get", "-r", "undionly.kpxe"];
        run("atftp", &[&windows[..], &["-l", &file("windows"), "10.77.0.1"]].concat());
        same("windows");
        sh(&format!("busybox tftp -g -b 1468 -r undionly.kpxe -l {}", get("busybox")));
        same("busybox");
        sh(&format!("curl -sS --tftp-blksize 1468 -o {} tftp://10.77.0.1/undionly.kpxe", file("curl")));
        same("curl");
    });
}

#[test]
fn curl_gets_scripts_and_clear_refusals() {
    serving(|| {
        sh("ip address add 10.77.0.11/16 dev client0");
        let text = |url: &str| {
            let output = run("curl", &["-sS", "-w", " %{http_code} %{num_redirects}", url]);
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let script = text("http://10.77.0.1:8080/boot/script.ipxe?mac=52:54:00:77:00:01");
        assert!(script.starts_with("#!ipxe\n") && script.ends_with(" 200 0"), "{script}");
        let stranger = text("http://10.77.0.1:8080/boot/script.ipxe?mac=52:54:00:77:00:99");
        assert!(stranger.contains("no machine in site.toml has MAC address 52:54:00:77:00:99"), "{stranger}");
        let answer = text("http://10.77.0.1:8080/v1/boot/answer?mac=52:54:00:77:00:01");
        assert!(answer.contains("must ask DHCP first") && answer.ends_with(" 403 0"), "{answer}");
    });
}
