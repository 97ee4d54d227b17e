//! The server is killed in the middle of a burst, again and again: no address is given twice afterwards.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, UdpSocket},
    sync::mpsc,
    time::Duration,
};

use labshift_model::MacAddr;

use crate::arena::{Server, on_a_cable, sh, site};

const GUESTS: usize = 400;
/// ACKs after which the server is killed, round by round.
const KILLS: [usize; 5] = [1, 40, 77, 130, 333];

/// A relay in front of many clients: no raw sockets are needed to play them.
struct Relay(UdpSocket);

impl Relay {
    fn new() -> Self {
        let socket = UdpSocket::bind("10.77.0.2:67").expect("the relay's port");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a pause before the next try");
        Relay(socket)
    }

    fn send(&self, kind: u8, mac: MacAddr, address: Option<Ipv4Addr>) {
        let mut packet = vec![0; 236];
        packet[..4].copy_from_slice(&[1, 1, 6, 1]);
        packet[4..8].copy_from_slice(&mac.0[2..]);
        packet[24..28].copy_from_slice(&[10, 77, 0, 2]);
        packet[28..34].copy_from_slice(&mac.0);
        packet.extend([99, 130, 83, 99, 53, 1, kind]);
        if let Some(address) = address {
            packet.extend([54, 4, 10, 77, 0, 1, 50, 4]);
            packet.extend(address.octets());
        }
        packet.push(255);
        // Nobody listens while the server is dead: the kernel says so at the next send.
        drop(self.0.send_to(&packet, "10.77.0.1:67"));
    }

    /// Kind, card and address of the next reply.
    fn receive(&self) -> Option<(u8, MacAddr, Ipv4Addr)> {
        let mut packet = [0; 1500];
        let length = self.0.recv(&mut packet).ok()?;
        let reply = &packet[..length];
        let address: [u8; 4] = reply.get(16..20)?.try_into().ok()?;
        let kind = reply.windows(3).skip(240).find(|option| option[..2] == [53, 1])?[2];
        Some((kind, MacAddr(reply[28..34].try_into().ok()?), address.into()))
    }

    /// DISCOVER and REQUEST for everybody, until so many have an address, or all.
    fn burst(&self, clients: &[MacAddr], enough: usize, told: &mut HashMap<Ipv4Addr, MacAddr>) -> usize {
        let mut served = HashMap::new();
        for _ in 0..60 {
            let waiting = clients.iter().filter(|mac| !served.contains_key(*mac));
            waiting.for_each(|mac| self.send(1, *mac, None));
            while let Some((kind, mac, address)) = self.receive() {
                match kind {
                    2 => self.send(3, mac, Some(address)),
                    5 => {
                        let owner = *told.entry(address).or_insert(mac);
                        assert_eq!(owner, mac, "{address} was given to both");
                        served.insert(mac, address);
                    }
                    other => panic!("{mac} got message type {other}"),
                }
                if served.len() >= enough.min(clients.len()) {
                    return served.len();
                }
            }
        }
        panic!("{} of {} clients served", served.len(), enough);
    }
}

#[test]
fn killed_in_a_burst_no_address_is_given_twice() {
    let (kill, killed) = mpsc::channel::<()>();
    let (started, restarted) = mpsc::channel::<()>();
    on_a_cable(
        move |ready, _| {
            let mut server = Server::prepare(&site(GUESTS, "10.77.1.0-10.77.2.200"));
            server.start(&[]);
            ready.send(()).expect("the client waits");
            for () in killed {
                server.kill();
                server.start(&[]);
                started.send(()).expect("the client waits");
            }
        },
        move || {
            sh("ip address add 10.77.0.2/16 dev client0");
            sh("ip link set client0 up");
            let relay = Relay::new();
            let clients: Vec<MacAddr> =
                (1..=GUESTS).map(|n| MacAddr::for_guest(&format!("work-{n}"))).collect();
            let mut told = HashMap::new();
            for (round, enough) in KILLS.into_iter().enumerate() {
                // Everybody asks anew, in another order, so that whose address was forgotten would go to the next.
                let mut order = clients.clone();
                order.rotate_left(round * 97);
                relay.burst(&order, enough, &mut told);
                kill.send(()).expect("the server waits");
                restarted.recv().expect("a new server");
            }
            assert_eq!(relay.burst(&clients, GUESTS, &mut told), GUESTS);
            assert_eq!(told.len(), GUESTS, "everybody kept the first address");
        },
    );
}
