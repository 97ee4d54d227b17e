//! One interface of the server gives out addresses, another one speaks beside a DHCP server that is not ours.

use std::{
    fs::{self, File},
    net::UdpSocket,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use crate::{
    arena::{Server, lease_script, on_a_cable, run, sh, site},
    beyond::Namespace,
};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x78, 0, 1];

/// What BIOS firmware sends, as DISCOVER (1) or REQUEST (3).
fn firmware(kind: u8, address: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0; 236];
    packet[..4].copy_from_slice(&[1, 1, 6, 0]);
    packet[4..8].copy_from_slice(&MAC[2..]);
    packet[10] = 0x80;
    packet[12..16].copy_from_slice(&address);
    packet[28..34].copy_from_slice(&MAC);
    packet.extend([99, 130, 83, 99, 53, 1, kind, 93, 2, 0, 0, 94, 3, 1, 2, 1, 60, 32]);
    packet.extend(b"PXEClient:Arch:00000:UNDI:002001");
    packet.push(255);
    packet
}

/// Replies from 10.78.0.1 to what is sent to `to` until one comes; firmware repeats itself, too.
fn reply(socket: &UdpSocket, packet: &[u8], to: &str) -> Vec<u8> {
    let mut buffer = [0; 1500];
    for _ in 0..60 {
        socket.send_to(packet, to).expect("sending");
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if from.ip().to_string() == "10.78.0.1" {
                return buffer[..length].to_vec();
            }
        }
    }
    panic!("the proxy is silent at {to}");
}

fn holds(packet: &[u8], part: &[u8]) -> bool {
    packet.windows(part.len()).any(|window| window == part)
}

/// Plays firmware in the namespace of that process.
fn boots_beside(process: u32) {
    let namespace = File::open(Path::new("/proc").join(process.to_string()).join("ns/net")).expect("there");
    let firmware_plays = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering it");
        let socket = UdpSocket::bind("0.0.0.0:68").expect("the client's port");
        socket.set_broadcast(true).expect("broadcasts");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a pause before the next try");
        let offer = reply(&socket, &firmware(1, [0; 4]), "255.255.255.255:67");
        assert_eq!(offer[16..20], [0; 4], "the address is the other server's business");
        assert!(holds(&offer, &[53, 1, 2]) && holds(&offer, b"\x3c\x09PXEClient"), "{offer:?}");
        let boot = reply(&socket, &firmware(3, [10, 78, 0, 50]), "10.78.0.1:4011");
        assert!(holds(&boot, &[53, 1, 5]) && holds(&boot, b"undionly.kpxe"), "{boot:?}");
        assert!(holds(&boot, &[54, 4, 10, 78, 0, 1]), "its server is the interface's address: {boot:?}");
    };
    thread::spawn(firmware_plays).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn a_further_interface_speaks_beside_the_dhcp_server_of_its_network() {
    on_a_cable(
        |ready, done| {
            let [foreign, machine] = [Namespace::new(), Namespace::new()];
            foreign.cable("server1", "10.78.0.1/24", "port1");
            foreign.sh("ip link add switch type bridge");
            foreign.sh("ip link set port1 master switch");
            foreign.sh("ip address add 10.78.0.2/24 dev switch");
            foreign.sh("ip link set switch up");
            foreign.sh(&format!("ip link add port2 type veth peer name card netns {}", machine.id()));
            foreign.sh("ip link set port2 master switch");
            foreign.sh("ip link set port2 up");
            machine.sh("ip link set card address 52:54:00:78:00:01");
            machine.sh("ip link set card up");

            let more = "[[machine]]\nname = \"ws2\"\nroom = \"room-a\"\nmac = \"52:54:00:78:00:01\"\naddress = \"10.78.0.50\"\n\
                        [[interface]]\nname = \"server1\"\naddress = \"10.78.0.1/24\"\ndhcp = \"proxy\"\n";
            let mut server = Server::prepare(&(site(1, "10.77.1.0-10.77.1.200") + more));
            fs::write(server.path("loaders/undionly.kpxe"), "loader").expect("a file for TFTP");
            server.start(&[]);
            let enter = machine.enter();
            let dnsmasq = Command::new("nsenter")
                .args(foreign.enter())
                .args(
                    "dnsmasq --keep-in-foreground --port=0 --user=root --conf-file=/dev/null --no-ping"
                        .split(' '),
                )
                .args("--log-facility=- --pid-file= --interface=switch --dhcp-authoritative".split(' '))
                .arg("--dhcp-range=10.78.0.50,10.78.0.50,255.255.255.0,1h")
                .arg(format!("--dhcp-leasefile={}", server.path("foreign.leases").display()))
                .stderr(Stdio::null())
                .spawn()
                .expect("starting dnsmasq; `make deps` installs it");
            let dnsmasq = Namespace::of(dnsmasq);
            // A system without interest in network boot gets nothing from us, and its address from them.
            let script = lease_script(server.scratch.path());
            let mut words: Vec<&str> = enter.iter().map(String::as_str).collect();
            words.extend("busybox udhcpc -i card -f -n -q -t 60 -T 1 -s".split(' '));
            words.push(&script);
            let lease = String::from_utf8_lossy(&run("nsenter", &words).stdout).into_owned();
            assert!(lease.contains("ip='10.78.0.50'") && lease.contains("serverid='10.78.0.2'"), "{lease}");
            machine.sh("ip address add 10.78.0.50/24 dev card");
            machine.sh("ip route add default dev card");
            boots_beside(machine.id());
            drop(dnsmasq);
            ready.send(()).expect("the client waits");
            let _ = done.recv();
        },
        || {
            sh("ip link set client0 address 52:54:00:77:00:01");
            sh("ip link set client0 up");
            let scratch = tempfile::tempdir().expect("a directory");
            let script = lease_script(scratch.path());
            let lease = sh(&format!("busybox udhcpc -i client0 -f -n -q -t 20 -s {script}"));
            let lease = String::from_utf8_lossy(&lease.stdout).into_owned();
            assert!(lease.contains("ip='10.77.0.11'"), "{lease}");
        },
    );
}
