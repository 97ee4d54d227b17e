//! Networks besides the one of `[server]`: another interface of the server, with its own part in DHCP, and a network behind a relay.

use std::{
    fs,
    process::{Child, Command, Output, Stdio},
};

use crate::{
    arena::{Server, lease_script, on_a_cable, run, sh, site},
    clients::content,
};

/// A network namespace that lives as long as this.
pub struct Namespace(Child);

impl Namespace {
    pub fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting unshare");
        let mut said = [0; 6];
        let output = child.stdout.as_mut().expect("its output");
        std::io::Read::read_exact(output, &mut said).expect("the namespace is there");
        Namespace(child)
    }

    /// One that this process lives in; it ends with the value.
    pub fn of(process: Child) -> Self {
        Namespace(process)
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// A cable from here to there: `near` with an address here, `far` up there.
    pub fn cable(&self, near: &str, address: &str, far: &str) {
        sh(&format!("ip link add {near} type veth peer name {far} netns {}", self.id()));
        sh(&format!("ip address add {address} dev {near}"));
        sh(&format!("ip link set {near} up"));
        self.sh(&format!("ip link set {far} up"));
    }

    pub fn enter(&self) -> [String; 3] {
        ["-t".into(), self.id().to_string(), "-n".into()]
    }

    #[track_caller]
    pub fn sh(&self, line: &str) -> Output {
        let enter = self.enter();
        let words: Vec<&str> = enter.iter().map(String::as_str).chain(line.split(' ')).collect();
        run("nsenter", &words)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn each_interface_has_its_own_network_and_its_own_part_in_dhcp() {
    on_a_cable(
        |ready, done| {
            let [second, third] = [Namespace::new(), Namespace::new()];
            second.cable("server1", "10.78.0.1/24", "client1");
            third.cable("server2", "10.79.0.1/24", "client2");
            let more = "[[machine]]\nname = \"ws2\"\nroom = \"room-a\"\nmac = \"52:54:00:77:00:02\"\naddress = \"10.78.0.20\"\n\
                        [[interface]]\nname = \"server1\"\naddress = \"10.78.0.1/24\"\npool = \"10.78.0.100-10.78.0.109\"\n\
                        [[interface]]\nname = \"server2\"\naddress = \"10.79.0.1/24\"\ndhcp = \"off\"\n";
            let mut server = Server::prepare(&(site(1, "10.77.1.0-10.77.1.200") + more));
            fs::write(server.path("loaders/undionly.kpxe"), content(100_000)).expect("a file for TFTP");
            server.start(&[]);
            let script = lease_script(server.scratch.path());
            let ask = |who: &Namespace, card: &str, tries: &str| {
                let enter = who.enter();
                let mut words: Vec<&str> = enter.iter().map(String::as_str).collect();
                words.extend(["busybox", "udhcpc", "-f", "-n", "-q", "-T", "1", "-O", "bootfile", "-V"]);
                words.extend(["PXEClient:Arch:00000:UNDI:002001", "-i", card, "-t", tries, "-s", &script]);
                Command::new("nsenter").args(words).output().expect("starting nsenter")
            };
            let pooled = said(&ask(&second, "client1", "20"));
            assert!(pooled.contains("ip='10.78.0.10"), "{pooled}");
            second.sh("ip link set client1 address 52:54:00:77:00:02");
            let fixed = said(&ask(&second, "client1", "20"));
            for wanted in ["ip='10.78.0.20'", "serverid='10.78.0.1'", "siaddr='10.78.0.1'", "'undionly.kpxe'"]
            {
                assert!(fixed.contains(wanted), "no {wanted} in:\n{fixed}");
            }
            second.sh("ip address add 10.78.0.20/24 dev client1");
            let url = "/boot/script.ipxe?mac=52:54:00:77:00:02";
            let text = said(&second.sh(&format!("curl -sS -f http://10.78.0.1:8080{url}")));
            assert!(text.contains(&format!("http://10.78.0.1:8080{url}")), "its own address: {text}");
            let file = server.path("fetched").display().to_string();
            second.sh(&format!("busybox tftp -g -r undionly.kpxe -l {file} 10.78.0.1"));
            assert!(fs::read(&file).expect("the file") == content(100_000));
            let leases = fs::read_to_string(server.path("state/interfaces/server1/leases")).expect("leases");
            assert!(leases.contains("10.78.0.20 52:54:00:77:00:02 bound"), "{leases}");

            let refused = ask(&third, "client2", "3");
            assert!(!refused.status.success(), "DHCP is off there: {}", said(&refused));
            third.sh("ip address add 10.79.0.2/24 dev client2");
            let text = said(&third.sh(&format!("curl -sS http://10.79.0.1:8080{url}")));
            assert!(text.starts_with("#!ipxe"), "{text}");
            ready.send(()).expect("the client waits");
            let _ = done.recv();
        },
        || {
            sh("ip link set client0 address 52:54:00:77:00:01");
            sh("ip link set client0 up");
            let scratch = tempfile::tempdir().expect("a directory");
            let script = lease_script(scratch.path());
            let output = sh(&format!("busybox udhcpc -i client0 -f -n -q -t 20 -s {script}"));
            assert!(said(&output).contains("ip='10.77.0.11'"), "{}", said(&output));
        },
    );
}

#[test]
fn case_12_a_machine_behind_a_real_relay_gets_address_and_files() {
    on_a_cable(
        |ready, done| {
            let more = "[[machine]]\nname = \"ws3\"\nroom = \"room-a\"\nmac = \"52:54:00:77:00:03\"\naddress = \"10.90.0.20\"\n\
                        [[relayed]]\nsubnet = \"10.90.0.0/24\"\npool = \"10.90.0.50-10.90.0.59\"\ngateway = \"10.90.0.1\"\n";
            let mut server = Server::prepare(&(site(1, "10.77.1.0-10.77.1.200") + more));
            fs::write(server.path("loaders/undionly.kpxe"), content(300_000)).expect("a file for TFTP");
            sh("ip route add 10.90.0.0/24 via 10.77.0.254");
            server.start(&[]);
            ready.send(()).expect("the client waits");
            let _ = done.recv();
        },
        || {
            // This side is the router with the relay; the machine is behind it.
            sh("ip address add 10.77.0.254/16 dev client0");
            sh("ip link set client0 up");
            let machine = Namespace::new();
            machine.cable("lan0", "10.90.0.1/24", "far0");
            run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
            let relay = Command::new("dnsmasq")
                .args(
                    "--keep-in-foreground --port=0 --user=root --conf-file=/dev/null --log-facility=-"
                        .split(' '),
                )
                .args("--pid-file= --interface=lan0 --interface=client0 --bind-interfaces".split(' '))
                .arg("--dhcp-relay=10.90.0.1,10.77.0.1")
                .stderr(Stdio::null())
                .spawn()
                .expect("starting dnsmasq; `make deps` installs it");
            let relay = Namespace::of(relay);
            let scratch = tempfile::tempdir().expect("a directory");
            let script = lease_script(scratch.path());
            let ask = format!(
                "busybox udhcpc -i far0 -f -n -q -t 60 -T 1 -O bootfile -V PXEClient:Arch:00000:UNDI:002001 -s {script}"
            );
            let pooled = said(&machine.sh(&ask));
            assert!(pooled.contains("ip='10.90.0.5") && pooled.contains("mask='24'"), "{pooled}");
            machine.sh("ip link set far0 address 52:54:00:77:00:03");
            let fixed = said(&machine.sh(&ask));
            for wanted in ["ip='10.90.0.20'", "serverid='10.77.0.1'", "siaddr='10.77.0.1'", "'undionly.kpxe'"]
            {
                assert!(fixed.contains(wanted), "no {wanted} in:\n{fixed}");
            }
            machine.sh("ip address add 10.90.0.20/24 dev far0");
            machine.sh("ip route add default via 10.90.0.1");
            let file = scratch.path().join("file").display().to_string();
            machine.sh(&format!("busybox tftp -g -b 1468 -r undionly.kpxe -l {file} 10.77.0.1"));
            assert!(fs::read(&file).expect("the file") == content(300_000));
            // The secret of a node goes to the address that it has, also behind a router.
            let answer = "http://10.77.0.1:8080/v1/boot/answer?mac=52:54:00:77:00:03";
            let text = said(&machine.sh(&format!("curl -sS {answer}")));
            assert!(
                text.contains("image \"lab\" is not in the store") || text.contains("channels/lab"),
                "{text}"
            );
            machine.sh("ip address add 10.90.0.21/24 dev far0");
            let text = said(&machine.sh(&format!("curl -sS --interface 10.90.0.21 {answer}")));
            assert!(text.contains("10.90.0.21 is not leased by this server"), "{text}");
            drop(relay);
        },
    );
}
