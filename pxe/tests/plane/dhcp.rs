//! DHCP by the packet.

use std::{collections::HashSet, net::Ipv4Addr};

use dhcproto::v4::MessageType;
use jiff::SignedDuration;
use labshift_model::{
    MacAddr,
    boot::{BootPlaneEvent, Speaker},
};
use labshift_pxe::{
    NO_POOL, Subnet,
    dhcp::{
        answer::{Answer, Port},
        reply::Destination,
        request::overheard_server,
    },
};

use crate::fake::{
    Ask, Bench, DISK, FIXED, FIXED_ADDRESS, GUEST, NEW, POOLED, REFUSED, SERVER, STRANGER, boot_file, kind,
    raw, read,
};

const SCRIPT: &str = "http://10.77.0.1:8080/boot/script.ipxe?mac=";

fn uki() -> String {
    format!("images/lab/{}/uki.efi", "ab".repeat(32))
}

#[test]
fn case_01_05_06_07_every_client_gets_address_and_boot_file_in_one_reply() {
    let tftp = |path: &str| Some(path.to_owned());
    let script = |mac: MacAddr| Some(format!("{SCRIPT}{mac}"));
    for (ask, file, class) in [
        (Ask::discover(FIXED).firmware(0), tftp("undionly.kpxe"), Some("PXEClient")),
        (Ask::discover(FIXED).firmware(7), tftp(&uki()), Some("PXEClient")),
        (Ask::discover(FIXED).firmware(9), tftp(&uki()), Some("PXEClient")),
        (
            Ask::discover(FIXED).firmware(16),
            Some(format!("http://10.77.0.1:8080/{}", uki())),
            Some("HTTPClient"),
        ),
        (Ask::discover(FIXED).firmware(6), None, None),
        (Ask::discover(FIXED).firmware(10), None, None),
        (Ask::discover(FIXED).firmware(11), None, None),
        (Ask::discover(FIXED).ipxe(), script(FIXED), None),
        (Ask::discover(FIXED).firmware(7).with(175, &[0xb1, 1, 1]), script(FIXED), None),
        (Ask::discover(FIXED).firmware(0).with(77, b"\x04iPXE"), script(FIXED), None),
        (Ask::discover(FIXED).init(), Some("http://10.77.0.1:8080".to_owned()), None),
        (Ask::discover(REFUSED).ipxe(), script(REFUSED), None),
        (Ask::discover(REFUSED).firmware(7), tftp("snponly.efi"), Some("PXEClient")),
        (Ask::discover(DISK).firmware(0), None, None),
        (Ask::discover(GUEST).firmware(0), None, None),
        (Ask::discover(GUEST), None, None),
        (Ask::discover(STRANGER).firmware(7), None, None),
        (Ask::discover(STRANGER).ipxe(), None, None),
        (Ask::discover(NEW).firmware(7), Some(uki()), Some("PXEClient")),
        (Ask::discover(NEW).ipxe(), script(NEW), None),
        (Ask::discover(NEW), None, None),
    ] {
        let offer = Bench::new().reply(&ask);
        assert_eq!(kind(&offer), MessageType::Offer);
        assert!(!offer.yiaddr().is_unspecified());
        assert_eq!(boot_file(&offer), file, "{:?}", ask.options);
        assert_eq!(raw(&offer, 60), class.map(|c| c.as_bytes().to_vec()), "{:?}", ask.options);
        assert_eq!(raw(&offer, 54), Some(SERVER.octets().to_vec()));
        let next = if file.is_some() { SERVER } else { Ipv4Addr::UNSPECIFIED };
        assert_eq!(offer.siaddr(), next);
    }
}

/// Reads option 43 as PXE 2.1 says: a menu whose first item is boot server type 0, the disk, taken without waiting.
#[test]
fn firmware_that_boots_its_own_disk_need_not_wait_for_a_boot_file() {
    let mut bench = Bench::new();
    let offer = bench.reply(&Ask::discover(DISK).firmware(7));
    assert_eq!(raw(&offer, 60), Some(b"PXEClient".to_vec()));
    assert_eq!(boot_file(&offer), None);
    let options = raw(&offer, 43).expect("a menu");
    let (mut left, mut found) = (&options[..], vec![]);
    while let [code, length, rest @ ..] = left {
        let (value, rest) = rest.split_at(usize::from(*length));
        found.push((*code, value));
        left = rest;
    }
    assert_eq!(left, [255], "it ends in its end");
    let of = |code| found.iter().find(|(c, _)| *c == code).expect("a sub-option").1;
    let [0, 0, length, name @ ..] = of(9) else { panic!("{:?}", of(9)) };
    assert_eq!(usize::from(*length), name.len());
    assert_eq!(of(10)[0], 0, "seconds to wait");
    assert_eq!(of(6)[0] & 8, 0, "the menu is looked at");

    let by_http = bench.reply(&Ask::discover(DISK).firmware(16));
    assert_eq!(boot_file(&by_http).as_deref(), Some("http://10.77.0.1:8080/boot/own-disk"));
}

#[test]
fn case_02_firmware_is_told_to_look_for_no_boot_server() {
    let offer = Bench::new().reply(&Ask::discover(FIXED).firmware(7));
    assert_eq!(raw(&offer, 43), Some(vec![6, 1, 8, 255]));
}

#[test]
fn case_03_a_proxy_offer_names_us_and_gives_no_address() {
    let mut bench = Bench::proxy();
    let answer = bench.send(&Ask::discover(FIXED).firmware(7));
    let offer = read(&answer.replies[0].bytes);
    assert_eq!((kind(&offer), offer.yiaddr()), (MessageType::Offer, Ipv4Addr::UNSPECIFIED));
    assert_eq!((raw(&offer, 54), offer.siaddr()), (Some(SERVER.octets().to_vec()), SERVER));
    assert_eq!((raw(&offer, 43), raw(&offer, 51)), (Some(vec![6, 1, 8, 255]), None));
    assert_eq!(boot_file(&offer), Some(uki()));
    assert_eq!(answer.replies[0].to, Destination::Broadcast, "it has no address to send to");
    for silent in [
        Ask::discover(GUEST).firmware(7),
        Ask::discover(STRANGER).firmware(7),
        Ask::discover(FIXED),
        Ask::request(FIXED, FIXED_ADDRESS).firmware(7),
    ] {
        assert_eq!(bench.send(&silent), Answer::default(), "{:?}", silent.options);
    }
}

#[test]
fn case_02_04_port_4011_answers_to_the_port_it_was_asked_from() {
    for mut bench in [Bench::new(), Bench::proxy()] {
        for source in ["10.77.0.11:4011", "10.77.0.11:68"] {
            let mut ask = Ask::of(3, FIXED).firmware(7);
            ask.ciaddr = FIXED_ADDRESS;
            let answer = bench.feed(&ask.bytes(), source, Port::BootServer);
            assert_eq!(answer.replies[0].to, Destination::Socket(source.parse().expect("an address")));
            let ack = read(&answer.replies[0].bytes);
            assert_eq!((kind(&ack), boot_file(&ack)), (MessageType::Ack, Some(uki())));
            assert_eq!((ack.yiaddr(), raw(&ack, 51)), (Ipv4Addr::UNSPECIFIED, None));
        }
        for silent in [Ask::of(3, FIXED), Ask::of(3, STRANGER).firmware(7), Ask::of(4, FIXED).firmware(7)] {
            assert_eq!(bench.feed(&silent.bytes(), "10.77.0.11:4011", Port::BootServer), Answer::default());
        }
    }
}

#[test]
fn case_08_a_uuid_of_an_allowed_length_comes_back() {
    for (uuid, back) in [(vec![], true), (vec![0; 17], true), (vec![1; 16], false), (vec![1; 40], false)] {
        let offer = Bench::new().reply(&Ask::discover(FIXED).firmware(7).with(97, &uuid));
        assert_eq!(raw(&offer, 97), back.then_some(uuid));
    }
    let mut bench = Bench::new();
    let [one, two] =
        [POOLED, STRANGER].map(|mac| bench.reply(&Ask::discover(mac).with(97, &[3; 17])).yiaddr());
    assert_ne!(one, two, "two machines, one UUID");
}

#[test]
fn case_09_rom_ipxe_and_system_share_one_lease() {
    let mut bench = Bench::new();
    let mut addresses = HashSet::new();
    for (ask, client_id) in [
        (Ask::discover(POOLED).firmware(0), &b"\x00rom"[..]),
        (Ask::discover(POOLED).ipxe(), b"\x01\x02\0\0\0\0\x02"),
        (Ask::discover(POOLED), b"\xffsystem"),
    ] {
        let offer = bench.reply(&ask.with(61, client_id));
        assert_eq!(raw(&offer, 61), Some(client_id.to_vec()), "RFC 6842");
        addresses.insert(offer.yiaddr());
        bench.reply(&Ask::request(POOLED, offer.yiaddr()).with(61, client_id));
    }
    assert_eq!(addresses.len(), 1);
}

#[test]
fn case_10_a_room_that_wakes_at_once_gets_no_nak() {
    let mut bench = Bench::new();
    let macs: Vec<MacAddr> = (0..120).map(|n| MacAddr([2, 1, 0, 0, 0, n])).collect();
    let offers: Vec<Ipv4Addr> = macs.iter().map(|m| bench.reply(&Ask::discover(*m)).yiaddr()).collect();
    assert_eq!(offers.iter().collect::<HashSet<_>>().len(), macs.len());
    for (mac, address) in macs.iter().zip(&offers).rev() {
        let ack = bench.reply(&Ask::request(*mac, *address));
        assert_eq!((kind(&ack), ack.yiaddr()), (MessageType::Ack, *address));
    }
}

#[test]
fn case_11_firmware_gets_its_file_in_both_places_and_ended_by_nul() {
    let offer = Bench::new().reply(&Ask::discover(FIXED).firmware(0));
    assert_eq!(raw(&offer, 67), Some(b"undionly.kpxe\0".to_vec()));
    assert_eq!(boot_file(&offer), Some("undionly.kpxe".to_owned()));
    let offer = Bench::new().reply(&Ask::discover(FIXED).init());
    assert_eq!(raw(&offer, 67), Some(b"http://10.77.0.1:8080".to_vec()), "init reads its length");
}

#[test]
fn case_12_relayed_clients_get_an_address_of_their_network() {
    let mut bench = Bench::new();
    let relay = Ipv4Addr::new(10, 78, 0, 1);
    bench.config.relayed.push(Subnet {
        network: [10, 78, 0, 0].into(),
        prefix: 24,
        pool: ([10, 78, 0, 1].into(), [10, 78, 0, 9].into()),
        gateway: Some([10, 78, 0, 2].into()),
    });
    // Sub-options out of order, one of them twice: a relay gets back what it sent.
    let information = [2, 3, 9, 9, 9, 1, 2, 0, 7, 1, 1, 5];
    let mut ask = Ask::discover(POOLED).with(82, &information);
    ask.giaddr = relay;
    let answer = bench.feed(&ask.bytes(), "10.78.0.1:67", Port::Dhcp);
    assert_eq!(answer.replies[0].to, Destination::Socket("10.78.0.1:67".parse().expect("an address")));
    let bytes = &answer.replies[0].bytes;
    let offer = read(bytes);
    assert!(bench.config.relayed[0].pools(offer.yiaddr()) && offer.yiaddr() != relay, "{}", offer.yiaddr());
    assert_eq!(offer.giaddr(), relay);
    assert_eq!(raw(&offer, 3), Some(vec![10, 78, 0, 2]));
    let echo = [&[82, information.len() as u8][..], &information].concat();
    assert!(bytes.windows(echo.len()).any(|w| w == echo), "option 82 unchanged");

    ask.giaddr = [192, 168, 9, 1].into();
    let foreign = bench.feed(&ask.bytes(), "192.168.9.1:67", Port::Dhcp);
    assert_eq!(foreign, Answer::default(), "no pool for this network");
    let link = Ask { giaddr: [192, 168, 9, 1].into(), ..ask.clone() }.with(82, &[5, 4, 10, 78, 0, 0]);
    let answer = bench.feed(&link.bytes(), "192.168.9.1:67", Port::Dhcp);
    assert!(bench.config.relayed[0].pools(read(&answer.replies[0].bytes).yiaddr()), "RFC 3527");

    let nak = Ask { giaddr: relay, ..Ask::of(3, POOLED).with(50, &[10, 77, 0, 140]) };
    let answer = bench.feed(&nak.bytes(), "10.78.0.1:67", Port::Dhcp);
    let nak = read(&answer.replies[0].bytes);
    assert_eq!(kind(&nak), MessageType::Nak);
    assert!(nak.flags().broadcast(), "the relay must broadcast it");
}

#[test]
fn case_13_ipxe_is_told_not_to_wait_for_a_proxy() {
    for mac in [FIXED, STRANGER, DISK] {
        let offer = Bench::new().reply(&Ask::discover(mac).ipxe());
        assert_eq!(raw(&offer, 175), Some(vec![0xb0, 1, 1]));
    }
    assert_eq!(raw(&Bench::new().reply(&Ask::discover(FIXED).firmware(7)), 175), None);
}

#[test]
fn case_15_nonsense_gets_silence() {
    let mut bench = Bench::new();
    let good = Ask::discover(FIXED).firmware(7).bytes();
    let changed = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    for (packet, why) in [
        (vec![], "empty"),
        (good[..200].to_vec(), "short"),
        (changed(0, 2), "a reply"),
        (changed(1, 6), "not Ethernet"),
        (changed(2, 16), "a long hardware address"),
        (changed(2, 0), "no hardware address"),
        (changed(3, 17), "too many hops"),
        (changed(28, 3), "a multicast hardware address"),
        (changed(236, 0), "no cookie"),
        (changed(12, 127), "a loopback ciaddr"),
        (changed(24, 224), "a multicast giaddr"),
        (Ask::of(3, FIXED).with(50, &[]).bytes(), "an empty option 50"),
        (Ask::of(3, FIXED).with(50, &[10, 77]).bytes(), "half an address"),
        (Ask::of(3, FIXED).bytes(), "a request for nothing"),
        (Ask::of(0, FIXED).bytes(), "no such type"),
        (Ask::of(2, FIXED).bytes(), "an OFFER"),
        (Ask::of(5, FIXED).bytes(), "an ACK"),
        (Ask::of(200, FIXED).bytes(), "an unknown type"),
        (Ask::discover(FIXED).with(53, &[]).bytes(), "an empty type"),
        (Ask::of(8, FIXED).bytes(), "INFORM without an address"),
    ] {
        assert_eq!(bench.feed(&packet, "0.0.0.0:68", Port::Dhcp), Answer::default(), "{why}");
    }
    assert!(bench.leases.is_empty());
    let mut unicast = Ask::of(3, POOLED).with(55, &[1, 3]);
    unicast.ciaddr = [172, 16, 0, 9].into();
    assert_eq!(
        bench.feed(&unicast.bytes(), "172.16.0.9:68", Port::Dhcp),
        Answer::default(),
        "no such network"
    );
}

#[test]
fn case_16_another_server_is_noticed() {
    let mut bench = Bench::new();
    let offered = bench.reply(&Ask::discover(POOLED)).yiaddr();
    let rogue = Ipv4Addr::new(10, 77, 0, 66);
    let choice = Ask::of(3, POOLED).with(50, &[10, 77, 0, 200]).with(54, &rogue.octets());
    let answer = bench.send(&choice);
    assert_eq!(answer.events, [BootPlaneEvent::RogueServer { address: rogue }]);
    assert!(answer.replies.is_empty());
    assert!(bench.leases.is_free_for(STRANGER, offered, bench.now), "our offer is let go");

    let mut offer = bench.send(&Ask::discover(POOLED)).replies.remove(0).bytes;
    assert_eq!(overheard_server(&offer), Some(SERVER));
    assert_eq!(overheard_server(&Ask::discover(POOLED).bytes()), None);
    offer.truncate(230);
    assert_eq!(overheard_server(&offer), None);
}

#[test]
fn replies_go_where_the_client_can_hear_them() {
    let mut bench = Bench::new();
    let to = |bench: &mut Bench, ask: &Ask| bench.send(ask).replies[0].to;
    let plain = Ask::discover(FIXED);
    assert_eq!(to(&mut bench, &plain), Destination::Card(FIXED_ADDRESS, FIXED));
    let deaf = Ask { broadcast: true, ..plain };
    assert_eq!(to(&mut bench, &deaf), Destination::Broadcast);
    bench.boot(FIXED);
    let stray = bench.feed(&Ask::discover(POOLED).bytes(), "192.168.200.1:68", Port::Dhcp);
    assert_eq!(stray.replies.len(), 1, "on our wire, with an address of another network still set");
    let renewing = Ask { ciaddr: FIXED_ADDRESS, ..Ask::of(3, FIXED) };
    assert_eq!(to(&mut bench, &renewing), Destination::Socket("10.77.0.11:68".parse().expect("an address")));
    let wrong = Ask::of(3, POOLED).with(50, &FIXED_ADDRESS.octets());
    assert_eq!(to(&mut bench, &wrong), Destination::Broadcast);
}

#[test]
fn requests_are_granted_or_refused_by_the_rules() {
    let mut bench = Bench::new();
    let address = bench.boot(POOLED);
    let answer = |bench: &mut Bench, ask: Ask| kind(&bench.reply(&ask));
    let restarted = |address: [u8; 4]| Ask::of(3, POOLED).with(50, &address);
    let renewing = |mac, ciaddr: Ipv4Addr| Ask { ciaddr, ..Ask::of(3, mac) };
    for (ask, wanted, why) in [
        (restarted(address.octets()), MessageType::Ack, "restarted with its own address"),
        (renewing(POOLED, address), MessageType::Ack, "renewing"),
        (restarted([192, 168, 0, 5]), MessageType::Nak, "comes from another network"),
        (restarted([10, 77, 0, 5]), MessageType::Nak, "outside the pool"),
        (restarted([10, 77, 0, 255]), MessageType::Nak, "the broadcast address"),
        (restarted(SERVER.octets()), MessageType::Nak, "our own address"),
        (renewing(STRANGER, address), MessageType::Nak, "another machine's"),
        (Ask::request(STRANGER, address), MessageType::Nak, "another machine's"),
        (renewing(STRANGER, [10, 77, 0, 222].into()), MessageType::Ack, "ours, free: our ledger was lost"),
    ] {
        assert_eq!(answer(&mut bench, ask), wanted, "{why}");
    }
    let nak = bench.reply(&restarted([192, 168, 0, 5]));
    assert_eq!((nak.yiaddr(), raw(&nak, 51)), (Ipv4Addr::UNSPECIFIED, None));
    assert!(raw(&nak, 56).is_some(), "says why");
}

#[test]
fn release_decline_and_inform() {
    let mut bench = Bench::new();
    let address = bench.boot(POOLED);
    let silent = |bench: &mut Bench, ask: Ask| assert_eq!(bench.send(&ask), Answer::default());
    silent(&mut bench, Ask { ciaddr: address, ..Ask::of(7, STRANGER) });
    assert_eq!(bench.leases.holder(address, bench.now), Some(POOLED), "only its owner gives it back");
    silent(&mut bench, Ask { ciaddr: address, ..Ask::of(7, POOLED).with(54, &SERVER.octets()) });
    assert_eq!(bench.leases.holder(address, bench.now), None);
    assert_eq!(bench.boot(POOLED), address, "and gets it again");
    silent(&mut bench, Ask::of(4, POOLED).with(50, &address.octets()).with(54, &SERVER.octets()));
    assert_ne!(bench.boot(POOLED), address, "somebody else answers there");

    let inform = Ask { ciaddr: address, ..Ask::of(8, POOLED) };
    let ack = bench.reply(&inform);
    assert_eq!((kind(&ack), ack.yiaddr(), raw(&ack, 51)), (MessageType::Ack, Ipv4Addr::UNSPECIFIED, None));
    assert_eq!(raw(&ack, 1), Some(vec![255, 255, 255, 0]));
}

#[test]
fn a_lease_says_all_that_a_client_needs() {
    let mut bench = Bench::new();
    bench.config.gateway = Some([10, 77, 0, 254].into());
    bench.config.dns = vec![[10, 77, 0, 1].into(), [9, 9, 9, 9].into()];
    let offer = bench.reply(&Ask::discover(FIXED).with(61, b"\x01id"));
    assert_eq!(offer.yiaddr(), FIXED_ADDRESS);
    assert_eq!((offer.xid(), offer.chaddr()), (0x1234_5678, &FIXED.0[..]));
    for (code, value) in [
        (1, vec![255, 255, 255, 0]),
        (3, vec![10, 77, 0, 254]),
        (6, vec![10, 77, 0, 1, 9, 9, 9, 9]),
        (12, b"lab-01".to_vec()),
        (51, 3600u32.to_be_bytes().to_vec()),
        (58, 1800u32.to_be_bytes().to_vec()),
        (59, 3150u32.to_be_bytes().to_vec()),
    ] {
        assert_eq!(raw(&offer, code), Some(value), "option {code}");
    }
}

#[test]
fn the_journal_hears_who_asked() {
    let mut bench = Bench::new();
    for (ask, speaker) in [
        (Ask::discover(FIXED).firmware(0), Speaker::BiosRom),
        (Ask::discover(FIXED).firmware(7), Speaker::Uefi),
        (Ask::discover(FIXED).firmware(16), Speaker::Uefi),
        (Ask::discover(FIXED).ipxe(), Speaker::Ipxe),
        (Ask::discover(FIXED).init(), Speaker::Init),
        (Ask::discover(FIXED), Speaker::Other),
    ] {
        let address = FIXED_ADDRESS;
        assert_eq!(bench.send(&ask).events, [BootPlaneEvent::Offer { mac: FIXED, address, speaker }]);
    }
    let events = bench.send(&Ask::request(FIXED, FIXED_ADDRESS).ipxe()).events;
    assert_eq!(
        events,
        [BootPlaneEvent::Lease { mac: FIXED, address: FIXED_ADDRESS, speaker: Speaker::Ipxe }]
    );
}

#[test]
fn a_lapsed_lease_goes_to_the_next() {
    let mut bench = Bench::new();
    bench.config.pool = ([10, 77, 0, 200].into(), [10, 77, 0, 200].into());
    let address = bench.boot(POOLED);
    assert_eq!(bench.send(&Ask::discover(STRANGER)), Answer::default(), "the pool is used up");
    let mut fixed = Bench::new();
    fixed.config.pool = NO_POOL;
    assert!(fixed.config.faults().is_empty());
    assert_eq!(fixed.send(&Ask::discover(STRANGER)), Answer::default(), "there is no pool");
    assert_eq!(fixed.boot(FIXED), FIXED_ADDRESS);
    bench.now += SignedDuration::from_secs(3600);
    assert_eq!(bench.boot(STRANGER), address);
    let late = Ask { ciaddr: address, ..Ask::of(3, POOLED) };
    assert_eq!(kind(&bench.reply(&late)), MessageType::Nak);
}
