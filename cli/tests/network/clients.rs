//! DHCP, TFTP and HTTP clients that people really use, against `labshift serve`.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use crate::arena::{Server, dhcpcd, lease_script, on_a_cable, run, sh, site};

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
            let output = dhcpcd();
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
fn case_26_https_with_an_rsa_certificate_for_older_loaders() {
    let scratch = tempfile::tempdir().expect("a directory");
    let authority = scratch.path().join("authority.pem").display().to_string();
    let copy = authority.clone();
    on_a_cable(
        move |ready, done| {
            let mut server = Server::prepare(&site(1, "10.77.1.0-10.77.1.200"));
            let [certificate, key] =
                ["certificate.pem", "key.pem"].map(|f| server.path(f).display().to_string());
            sh(&format!(
                "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=labshift -addext \
                 subjectAltName=IP:10.77.0.1 -out {certificate} -keyout {key}"
            ));
            fs::copy(&certificate, copy).expect("the authority");
            let options = ["--https-port", "8443", "--tls-certificate", &certificate, "--tls-key", &key];
            server.start(&options);
            ready.send(()).expect("the client waits");
            let _ = done.recv();
            assert!(!server.log().contains("not RSA"), "{}", server.log());
        },
        move || {
            sh("ip address add 10.77.0.11/16 dev client0");
            sh("ip link set client0 up");
            let url = "https://10.77.0.1:8443/boot/script.ipxe?mac=52:54:00:77:00:01";
            let get = |version: &str| sh(&format!("curl -sS --cacert {authority} --tls-max {version} {url}"));
            for version in ["1.2", "1.3"] {
                let script = String::from_utf8(get(version).stdout).expect("text");
                assert!(script.starts_with("#!ipxe\n"), "{version}: {script}");
            }
        },
    );
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

#[test]
fn systemd_networkd_sets_its_card_up() {
    serving(|| {
        let scratch = tempfile::tempdir().expect("a directory");
        // It wants directories of its own, and a /sys that nobody but the kernel writes to; udev is not waited for then.
        let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/network && \
            mount -o remount,ro,bind /sys && \
            printf '[Match]\\nName=client0\\n[Network]\\nDHCP=ipv4\\nLinkLocalAddressing=no\\n' \
            > /run/systemd/network/1.network && exec /usr/lib/systemd/systemd-networkd";
        let mut told = Command::new("timeout")
            .args(["900", "ip", "monitor", "address", "dev", "client0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting ip monitor");
        let mut lines = BufReader::new(told.stdout.take().expect("its output")).lines();
        let log = fs::File::create(scratch.path().join("log")).expect("a log");
        let mut networkd = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("starting unshare");
        let set = lines.by_ref().map_while(Result::ok).any(|line| line.contains("inet 10.77.0.11/16"));
        let log = fs::read_to_string(scratch.path().join("log")).unwrap_or_default();
        drop((networkd.kill(), networkd.wait(), told.kill(), told.wait()));
        assert!(set, "{log}");
    });
}

#[test]
fn tftp_clients_fetch_over_ipv6_too() {
    on_a_cable(
        |ready, done| {
            let mut server = Server::prepare(&site(1, "10.77.1.0-10.77.1.200"));
            fs::write(server.path("loaders/undionly.kpxe"), content(300_001)).expect("a file for TFTP");
            sh("ip address add fd77::1/64 dev server0 nodad");
            sh("ip address add fd77::9/64 dev server0 nodad");
            server.start(&["--tftp-ipv6"]);
            ready.send(()).expect("the client waits");
            let _ = done.recv();
        },
        || {
            sh("ip address add fd77::2/64 dev client0 nodad");
            sh("ip link set client0 up");
            let scratch = tempfile::tempdir().expect("a directory");
            let file = |name: &str| scratch.path().join(name).display().to_string();
            // Whichever of the server's addresses is asked, answers.
            for address in ["fd77::1", "fd77::9"] {
                sh(&format!(
                    "curl -sS -g --connect-timeout 600 --tftp-blksize 1428 -o {} tftp://[{address}]/undionly.kpxe",
                    file("curl")
                ));
                assert!(fs::read(file("curl")).expect("the file") == content(300_001), "{address}");
            }
            run("tftp", &["-6", "-m", "binary", "fd77::1", "-c", "get", "undionly.kpxe", &file("hpa")]);
            assert!(fs::read(file("hpa")).expect("the file") == content(300_001));
        },
    );
}
