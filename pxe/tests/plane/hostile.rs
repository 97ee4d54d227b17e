//! Changed, cut and joined packets: no panic, no reply that names nobody, never one address for two machines.

use std::{collections::HashMap, net::Ipv4Addr};

use dhcproto::v4::MessageType;
use jiff::SignedDuration;
use labshift_model::MacAddr;
use labshift_pxe::dhcp::{answer::Port, reply::Destination};

use crate::fake::{Ask, Bench, FIXED, FIXED_ADDRESS, POOLED, kind, read};

/// Splitmix64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let relayed = Ask {
        giaddr: [10, 77, 0, 9].into(),
        ..Ask::discover(POOLED).with(82, &[1, 2, 0, 7, 5, 4, 10, 77, 0, 0])
    };
    let renewing = Ask { ciaddr: FIXED_ADDRESS, ..Ask::of(3, FIXED) };
    [
        Ask::discover(FIXED).firmware(0),
        Ask::discover(FIXED).firmware(7).with(57, &[5, 192]).with(55, &[1, 3, 6, 43, 60, 66, 67]),
        Ask::discover(FIXED).firmware(16),
        Ask::discover(POOLED).ipxe(),
        Ask::request(FIXED, FIXED_ADDRESS).init(),
        Ask::of(3, POOLED).with(50, &[10, 77, 0, 140]),
        Ask::discover(POOLED).with(52, &[3]).with(61, &[9; 200]),
        Ask::of(4, POOLED).with(50, &[10, 77, 0, 140]),
        Ask::of(7, POOLED),
        Ask::of(8, FIXED),
        renewing,
        relayed,
    ]
    .iter()
    .map(Ask::bytes)
    .collect()
}

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut packet = seeds[random.below(seeds.len())].clone();
    for _ in 0..random.below(6) {
        // Most changes go where the meaning is: into the options.
        let start = if random.below(4) == 0 { 0 } else { 240.min(packet.len()) };
        let at = start + random.below(packet.len().saturating_sub(start).max(1));
        let Some(byte) = packet.get_mut(at) else { continue };
        *byte = match random.below(4) {
            0 => 0,
            1 => 255,
            2 => *byte ^ (1 << random.below(8)),
            _ => random.below(256) as u8,
        };
    }
    match random.below(8) {
        0 => packet.truncate(random.below(packet.len() + 1)),
        1 => {
            let other = &seeds[random.below(seeds.len())];
            packet.extend(&other[random.below(other.len())..]);
        }
        _ => {}
    }
    packet
}

#[test]
fn case_15_no_packet_breaks_the_server_or_gets_a_senseless_answer() {
    let (seeds, mut random) = (seeds(), Random(1));
    for mut bench in [Bench::new(), Bench::proxy()] {
        let mut told: HashMap<Ipv4Addr, (MacAddr, i64)> = HashMap::new();
        for round in 0..60_000i64 {
            bench.now += SignedDuration::from_secs(random.below(30) as i64);
            let now = bench.now.as_second();
            let packet = mutate(&mut random, &seeds);
            let source = ["0.0.0.0:68", "10.77.0.11:68", "192.168.1.1:67"][random.below(3)];
            let port = if random.below(5) == 0 { Port::BootServer } else { Port::Dhcp };
            let answer = bench.feed(&packet, source, port);
            assert!(answer.replies.len() <= 1);
            for reply in &answer.replies {
                let message = read(&reply.bytes);
                assert!(reply.bytes.len() <= 1472, "{round}");
                assert_eq!(message.chaddr(), &packet[28..34]);
                assert_eq!(message.xid().to_be_bytes(), packet[4..8]);
                if let Destination::Card(address, _) = reply.to {
                    assert!(bench.config.local().is_host(address), "{round}: {address}");
                }
                if kind(&message) == MessageType::Ack && !message.yiaddr().is_unspecified() {
                    let (mac, address) =
                        (MacAddr(packet[28..34].try_into().expect("six bytes")), message.yiaddr());
                    let before = told.insert(address, (mac, now + 3600));
                    let taken = before.filter(|(owner, until)| *owner != mac && *until > now);
                    assert_eq!(taken, None, "{round}: {address} was given to {mac} too");
                }
            }
            // What a client gave back, declined, or left for another address is free again.
            told.retain(|address, (mac, _)| bench.leases.holder(*address, bench.now) == Some(*mac));
        }
        assert!(bench.leases.len() <= 256);
    }
}
