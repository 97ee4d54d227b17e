//! A changed site file is taken over while machines fetch; a wrong one is not; an interface may go down and come back.

use std::{fs, net::UdpSocket, sync::mpsc, time::Duration};

use crate::{
    arena::{Server, dhcpcd, on_a_cable, sh, site},
    clients::content,
};

/// Fetches a file block by block; between the first block and the second, `meanwhile` happens.
fn fetch(meanwhile: impl FnOnce()) -> Vec<u8> {
    let socket = UdpSocket::bind("10.77.0.11:0").expect("a port");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a guard");
    socket.send_to(b"\0\x01snponly.efi\0octet\0", "10.77.0.1:69").expect("sending");
    let (mut file, mut next, mut meanwhile) = (vec![], 1u16, Some(meanwhile));
    let mut packet = [0; 600];
    loop {
        let (length, from) = socket.recv_from(&mut packet).expect("a block");
        let [0, 3, high, low, ref data @ ..] = packet[..length] else { panic!("{:?}", &packet[..length]) };
        if let Some(meanwhile) = meanwhile.take() {
            meanwhile();
        }
        if u16::from_be_bytes([high, low]) == next {
            file.extend(data);
            next += 1;
        }
        socket.send_to(&[&[0, 4][..], &(next - 1).to_be_bytes()].concat(), from).expect("sending");
        if data.len() < 512 {
            return file;
        }
    }
}

/// The lease time that a client is given.
fn lease_time() -> String {
    let output = dhcpcd();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said.lines().find(|l| l.contains("new_dhcp_lease_time")).expect("a lease time");
    line.rsplit('=').next().unwrap_or_default().trim_matches('\'').to_owned()
}

#[test]
fn a_reload_drops_no_transfer_and_a_bad_one_changes_nothing() {
    let (change, changes) = mpsc::channel::<&str>();
    let (changed, taken) = mpsc::channel::<()>();
    on_a_cable(
        move |ready, _| {
            let good = site(1, "10.77.1.0-10.77.1.200");
            let mut server = Server::prepare(&good);
            fs::write(server.path("loaders/snponly.efi"), content(5000)).expect("a file for TFTP");
            server.start(&[]);
            ready.send(()).expect("the client waits");
            let write = |text: String| fs::write(server.path("site.toml"), text).expect("the site");
            for what in changes {
                match what {
                    "longer leases" => {
                        write(good.replace("lease = \"1h\"", "lease = \"2h\""));
                        server.wait_for("read again");
                    }
                    "a mistake" => {
                        write(good.replace("lease = \"1h\"", "lease = \"soon\""));
                        server.wait_for("the old site stays in force");
                    }
                    "another address" => {
                        write(good.replace("address = \"10.77.0.1/16\"", "address = \"10.77.0.2/16\""));
                        server.wait_for("the server's address changes only when the server is started anew");
                    }
                    _ => {
                        server.hang_up();
                        server.wait_for("the old site stays in force");
                    }
                }
                changed.send(()).expect("the client waits");
            }
        },
        move || {
            sh("ip link set client0 address 52:54:00:77:00:01");
            sh("ip address add 10.77.0.11/16 dev client0");
            sh("ip link set client0 up");
            let happen = |what| {
                change.send(what).expect("the server waits");
                taken.recv().expect("it happens");
            };
            assert_eq!(lease_time(), "3600");
            let file = fetch(|| happen("longer leases"));
            assert!(file == content(5000), "{} bytes", file.len());
            assert_eq!(lease_time(), "7200");
            for wrong in ["a mistake", "another address", "SIGHUP"] {
                happen(wrong);
                assert_eq!(lease_time(), "7200", "{wrong}");
            }
        },
    );
}

#[test]
fn an_interface_that_was_down_serves_on() {
    on_a_cable(
        |ready, done| {
            let mut server = Server::prepare(&site(1, "10.77.1.0-10.77.1.200"));
            server.start(&[]);
            sh("ip link set server0 down");
            sh("ip link set server0 up");
            ready.send(()).expect("the client waits");
            let _ = done.recv();
        },
        || {
            sh("ip link set client0 address 52:54:00:77:00:01");
            sh("ip link set client0 up");
            assert_eq!(lease_time(), "3600");
        },
    );
}
