//! The example site is good; each rule of the format has one way to break it, with the message an admin sees.

use labshift_model::site::Site;

const EXAMPLE: &str = include_str!("../../docs/examples/site.toml");

/// What to replace in the example, by what, and the first line of the fault without its position.
const BROKEN: &[(&str, &str, &str)] = &[
    ("name = \"science-building\"", "", "\"name\" is missing"),
    ("\"Europe/Budapest\"", "\"Europe/Atlantis\"", "\"Europe/Atlantis\" is not a known time zone"),
    ("10.77.0.1/24", "10.77.0.1", "\"10.77.0.1\" is not an address with a prefix length from 8 to 30"),
    ("10.77.0.1/24", "10.77.0.255/24", "10.77.0.255 is not a host's address in its own subnet"),
    (
        "gateway = \"10.77.0.1\"",
        "gateway = \"10.78.0.1\"",
        "gateway 10.78.0.1 is outside the subnet of the server's address",
    ),
    ("gateway = \"10.77.0.1\"", "dns = [\"ns\"]", "\"ns\" is not an IPv4 address"),
    ("10.77.0.100-10.77.0.199", "10.77.0.100", "\"10.77.0.100\" is not a range of addresses"),
    ("10.77.0.100-10.77.0.199", "10.77.0.199-10.77.0.100", "the pool ends before it begins"),
    (
        "10.77.0.100-10.77.0.199",
        "10.77.0.100-10.77.1.9",
        "the pool is not inside the subnet of the server's address",
    ),
    ("10.77.0.100-10.77.0.199", "10.77.0.1-10.77.0.10", "the pool holds the server's own address 10.77.0.1"),
    ("lease = \"1h\"", "lease = \"soon\"", "\"soon\" is not a duration"),
    ("lease = \"1h\"", "lease = \"5s\"", "\"lease\" must be from 1m to 720h, but this is 5s"),
    (
        "in_flight = 4 ",
        "in_flight = 0",
        "\"in_flight\" must be a whole number from 1 to 10000, but this is 0",
    ),
    (
        "role = \"batch\"",
        "role = \"work\"",
        "\"role\" must be \"desktop\" or \"batch\", but this is \"work\"",
    ),
    (
        "[power]",
        "[unknown]\npolicy = \"adopt\"\n[power]",
        "\"policy\" must be \"ignore\", \"discover\" or \"boot\", but this is \"adopt\"",
    ),
    ("[power]", "[unknown]\npolicy = \"discover\"\n[power]", "\"image\" is missing"),
    ("[power]", "[unknown]\nimage = \"lab\"\n[power]", "\"policy\" is missing"),
    (
        "[power]",
        "[[interface]]\nname = \"eth 2\"\naddress = \"10.78.0.1/24\"\n[power]",
        "\"eth 2\" is no name of an interface",
    ),
    (
        "[power]",
        "[[interface]]\nname = \"eth2\"\ndhcp = \"on\"\naddress = \"10.78.0.1/24\"\n[power]",
        "\"dhcp\" must be \"authoritative\", \"proxy\" or \"off\", but this is \"on\"",
    ),
    (
        "[power]",
        "[[interface]]\nname = \"eth2\"\naddress = \"10.77.0.9/28\"\n[power]",
        "the networks 10.77.0.1/24 and 10.77.0.9/28 overlap",
    ),
    (
        "[power]",
        "[[relayed]]\nsubnet = \"10.79.0.0/24\"\npool = \"10.80.0.1-10.80.0.9\"\n[power]",
        "the pool is not inside this subnet",
    ),
    (
        "[power]",
        "[[relayed]]\nsubnet = \"10.79.0.0/24\"\ninterface = \"eth7\"\n[power]",
        "there is no [[interface]] \"eth7\"",
    ),
    (
        "10.77.0.12\"",
        "10.79.0.12\"\n[[relayed]]\nsubnet = \"10.78.0.0/24\"",
        "10.79.0.12 is outside the lab's subnets 10.77.0.1/24, 10.78.0.0/24",
    ),
    ("memory_mib = 256\n", "", "\"memory_mib\" is missing"),
    ("vcpus = 1", "vcpus = \"1\"", "\"vcpus\" must be a whole number from 1 to 512, but this is a string"),
    ("schedule = \"mornings\"", "schedule = \"morning\"", "there is no schedule \"morning\""),
    ("desktop = \"student\"", "desktop = \"studnt\"", "there is no template \"studnt\""),
    ("desktop = \"student\"", "desktop = \"worker\"", "template \"worker\" does not have role = \"desktop\""),
    (
        "template = \"worker\"",
        "template = \"student\"",
        "template \"student\" does not have role = \"batch\"",
    ),
    ("image = \"lab\"", "image = \"lab\"\ngeneration = \"12ab\"", "\"12ab\" is not a generation"),
    ("grace = \"2m\"", "grace = \"2h\"", "\"grace\" must be from 0s to 1h, but this is 2h"),
    ("room = \"room-b\"", "room = \"room-c\"", "there is no room \"room-c\""),
    (
        "52:54:00:77:00:02",
        "52:54:00:77:00",
        "\"mac\": \"52:54:00:77:00\" is not a MAC address; write six bytes like 52:54:00:12:34:56",
    ),
    ("52:54:00:77:00:02", "52:54:00:77:00:01", "52:54:00:77:00:01 belongs to machine \"ws1\" already"),
    ("52:54:00:77:00:02", "01:00:5e:00:00:02", "01:00:5e:00:00:02 is a group address, not one machine's"),
    ("10.77.0.12", "10.78.0.12", "10.78.0.12 is outside the lab's subnet 10.77.0.1/24"),
    ("10.77.0.12", "10.77.0.11", "10.77.0.11 belongs to machine \"ws1\" already"),
    ("10.77.0.12", "10.77.0.1\"#", "10.77.0.1 is the server's or the gateway's own address"),
    ("10.77.0.12", "10.77.0.150", "10.77.0.150 is inside the pool for guests"),
    ("name = \"ws2\"", "name = \"ws1\"", "there is a machine \"ws1\" already"),
    ("name = \"ws2\"", "name = \"WS 2\"", "\"WS 2\" can't be a name"),
    (
        "name = \"primes\"",
        "name = \"desktop-x\"",
        "names that begin with \"desktop-\" are kept for the workstations' own desktops",
    ),
    (
        "outside = \"compute\"",
        "outside = \"desktop\"",
        "\"outside\" must be \"compute\" or \"off\", but this is \"desktop\"",
    ),
    ("mode = \"off\"\n", "", "\"mode\" is missing"),
    ("title = \"Algorithms\"", "title = \"\"", "\"title\" is empty or not printable"),
    ("days = [\"mon-fri\"]\n", "", "\"days\" is missing"),
    ("days = [\"mon-fri\"]", "days = [\"monday\"]", "\"monday\" is not a day"),
    ("start = \"08:00\"", "start = \"8\"", "\"8\" is not a time of day"),
    ("end = \"10:00\"", "end = \"08:00\"", "this session begins and ends at the same time"),
    ("2026-09-07..2026-12-18", "2026-12-18..2026-09-07", "\"2026-12-18..2026-09-07\" ends before it begins"),
    ("\"2026-10-23\"", "\"23.10.2026\"", "\"23.10.2026\" is not a date"),
    ("except = ", "expect = ", "unknown key \"expect\""),
];

#[test]
fn the_example_is_a_good_site() {
    let site = Site::parse("site.toml", EXAMPLE).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(site.machines.len(), 2);
    assert_eq!(site.guests.len(), 1);
    assert_eq!(site.schedules[0].sessions[0].hours.to_string(), "08:00-10:00");
}

#[test]
fn every_rule_has_its_message() {
    let mut wrong = vec![];
    for (from, to, expected) in BROKEN {
        assert!(EXAMPLE.contains(from), "the example does not contain {from:?}");
        let text = EXAMPLE.replacen(from, to, 1);
        match Site::parse("site.toml", &text) {
            Ok(_) => wrong.push(format!("{to:?} was accepted, expected: {expected}")),
            Err(faults) => {
                if !faults.faults.iter().any(|f| f.message == *expected && f.line > 0 && f.column > 0) {
                    wrong.push(format!("{to:?} gave:\n{faults}\nexpected: {expected}\n"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Peers are machines of rooms that allow it, in the same network, with the same image; in large sites each names those that name it.
#[test]
fn peers_are_named_where_rooms_allow_it() {
    let site = |text: &str| Site::parse("site.toml", text).unwrap_or_else(|faults| panic!("{faults}"));
    let example = site(EXAMPLE);
    assert!(example.machines.iter().all(|m| example.peers_of(m).is_empty()), "nobody, unless it is said");
    let allowed = EXAMPLE.replace("desktop = \"student\"", "desktop = \"student\"\npeers = true");
    let both = site(&allowed);
    assert_eq!(both.peers_of(&both.machines[0]), [both.machines[1].address]);
    assert_eq!(both.peers_of(&both.machines[1]), [both.machines[0].address]);
    let other_image = site(&allowed.replacen("image = \"lab\"", "image = \"compute\"", 1));
    assert!(other_image.peers_of(&other_image.machines[0]).is_empty());
    let one_room = site(&allowed.replacen("peers = true", "peers = false", 1));
    assert!(one_room.machines.iter().all(|m| one_room.peers_of(m).is_empty()));

    let machine = |n: u32| {
        format!(
            "[[machine]]\nname = \"pc-{n}\"\nroom = \"room-a\"\nmac = \"52:54:00:01:00:{n:02x}\"\naddress = \"10.78.0.{n}\"\n"
        )
    };
    let network = "\n[[interface]]\nname = \"eth2\"\naddress = \"10.78.0.254/24\"\n";
    let large = [&allowed, network, &(1..=100).map(machine).collect::<String>()].concat();
    let large = site(&large);
    assert_eq!(large.peers_of(&large.machines[0]).len(), 1, "the new ones are in another network");
    let pcs = &large.machines[2..];
    let named: Vec<_> = pcs.iter().map(|m| large.peers_of(m)).collect();
    for (pc, peers) in pcs.iter().zip(&named) {
        assert_eq!(peers.len(), 62);
        for (other, theirs) in pcs.iter().zip(&named) {
            assert_eq!(peers.contains(&other.address), theirs.contains(&pc.address));
        }
        assert!(!peers.contains(&pc.address));
    }
}

#[test]
fn all_mistakes_are_reported_at_once_where_they_are() {
    let text =
        EXAMPLE.replace("Europe/Budapest", "Mars").replace("room-b", "b!").replace("\"22:00\"", "\"late\"");
    let faults = Site::parse("site.toml", &text).unwrap_err();
    let lines: Vec<_> = faults.faults.iter().map(|f| f.line).collect();
    assert!(lines.len() >= 5, "{faults}");
    assert!(lines.is_sorted(), "{faults}");
}

#[test]
fn a_count_gives_numbered_guests() {
    let text = EXAMPLE.replace("name = \"primes\"", "name = \"primes\"\ncount = 3");
    let site = Site::parse("site.toml", &text).unwrap_or_else(|faults| panic!("{faults}"));
    let names: Vec<_> = site.guests.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(names, ["primes-1", "primes-2", "primes-3"]);
}

#[test]
fn cut_and_mangled_text_is_never_a_panic() {
    let bytes = EXAMPLE.as_bytes();
    let mut state = 0x9e37_79b9_u32;
    for _ in 0..600 {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let mut mangled = bytes[..state as usize % bytes.len()].to_vec();
        let len = mangled.len().max(1);
        if let Some(byte) = mangled.get_mut((state >> 8) as usize % len) {
            *byte = (state >> 20) as u8;
        }
        let _ = Site::parse("site.toml", &String::from_utf8_lossy(&mangled));
    }
}
