//! The patterns. Each looks at one machine and says what is wrong, or nothing.
//!
//! A trouble often shows by what does not happen; what may still come is waited for: a repetition, or some seconds of
//! silence.

mod files;
mod program;

use std::collections::BTreeMap;

use labshift_model::MacAddr;

use super::{
    finding::{Evidence, Finding, Pattern},
    observe::{Machine, Message, Observations, kind},
    transfer::Transfer,
};
use crate::dhcp::client::Client;

/// Seconds of silence after which firmware has given up.
const PATIENCE: f64 = 8.0;
/// Repetitions that are no accident.
const OFTEN: usize = 3;
/// Bytes that an Ethernet carries.
const ETHERNET: usize = 1500;

/// All findings, machine by machine.
pub(super) fn findings(seen: &Observations) -> Vec<Finding> {
    let patterns: [(Pattern, Judge); 12] = [
        (Pattern::TwoServers, two_servers),
        (Pattern::LoaderLoop, loader_loop),
        (Pattern::ArchitectureMismatch, program::architecture),
        (Pattern::Class60Without43, class_60),
        (Pattern::SplitOffers, split_offers),
        (Pattern::WrongNextServer, files::next_server),
        (Pattern::FileMissing, files::file_missing),
        (Pattern::Mtu, files::mtu),
        (Pattern::TftpBlocked, files::tftp_blocked),
        (Pattern::RelayRepliesLost, relay),
        (Pattern::NoAnswer, no_answer),
        (Pattern::Refused, refused),
    ];
    let judge = |(client, machine): (&MacAddr, &Machine)| {
        let client = *client;
        let case = Case { seen, machine };
        patterns
            .iter()
            .filter_map(move |(pattern, judge)| {
                let Opinion { problem, evidence, fix } = judge(&case)?;
                Some(Finding { pattern: *pattern, client, problem, evidence, fix })
            })
            .collect::<Vec<_>>()
    };
    seen.machines.iter().flat_map(judge).collect()
}

type Judge = fn(&Case<'_>) -> Option<Opinion>;

struct Opinion {
    problem: String,
    evidence: Vec<Evidence>,
    fix: String,
}

struct Case<'a> {
    seen: &'a Observations,
    machine: &'a Machine,
}

impl<'a> Case<'a> {
    fn transfers(&self) -> impl Iterator<Item = &'a Transfer> {
        self.machine.transfers.iter().filter_map(|number| self.seen.transfers.get(*number))
    }

    fn replies(&self) -> impl Iterator<Item = &'a Message> {
        self.machine.messages.iter().filter(|m| matches!(m.kind, kind::OFFER | kind::ACK))
    }

    /// The firmware has stopped, or begun anew.
    fn gave_up(&self, since: f64) -> bool {
        let anew = self.machine.of_kind(kind::DISCOVER).filter(|m| m.seconds > since).count();
        anew > 0 || self.seen.clock() - since > PATIENCE
    }

    /// Somebody on port 4011 told it the file.
    fn boot_service_answered(&self) -> bool {
        self.machine.of_kind(kind::ACK).any(|m| m.is_boot_service() && m.file.is_some())
    }

    /// Firmware that speaks, before iPXE or a system took over: the time when that happens.
    fn firmware_until(&self) -> f64 {
        let other = |m: &&Message| m.speaker.is_some_and(|s| !matches!(s, Client::Firmware(_)));
        self.machine.messages.iter().find(other).map_or(f64::INFINITY, |m| m.seconds)
    }
}

fn saw(seconds: f64, text: String) -> Evidence {
    // Captures keep microseconds at most; milliseconds are what a person compares.
    Evidence { seconds: (seconds * 1e3).round() / 1e3, text }
}

fn told(message: &Message) -> Evidence {
    let kind = match message.kind {
        kind::DISCOVER => "DISCOVER",
        kind::OFFER => "OFFER",
        kind::REQUEST => "REQUEST",
        kind::ACK => "ACK",
        kind::NAK => "NAK",
        _ => "message",
    };
    let mut text = format!("{kind} from {} to {}", message.from, message.to);
    if !message.yiaddr.is_unspecified() {
        text += &format!(", address {}", message.yiaddr);
    }
    if let Some(file) = &message.file {
        text += &format!(", file {file}, next server {}", message.siaddr);
    }
    if let Some(class) = &message.class {
        text += &format!(", class {class}");
    }
    if !message.giaddr.is_unspecified() {
        text += &format!(", relay {}", message.giaddr);
    }
    if let Some(reason) = &message.text {
        text += &format!(", \"{reason}\"");
    }
    saw(message.seconds, text)
}

fn two_servers(case: &Case<'_>) -> Option<Opinion> {
    let mut origins: BTreeMap<_, &Message> = BTreeMap::new();
    for offer in case.machine.of_kind(kind::OFFER).filter(|m| !m.is_proxy()) {
        origins.entry(offer.origin()).or_insert(offer);
    }
    if origins.len() < 2 {
        return None;
    }
    let names: Vec<String> = origins
        .iter()
        .map(|(address, offer)| match offer.card {
            Some(card) if offer.giaddr.is_unspecified() => format!("{address} (card {card})"),
            _ => address.to_string(),
        })
        .collect();
    Some(Opinion {
        problem: format!("{} DHCP servers offer addresses: {}", origins.len(), names.join(", ")),
        evidence: origins.values().map(|offer| told(offer)).collect(),
        fix: "Leave one of them on. Look the other's card up in the switch (`show mac address-table address CARD`) and \
              switch its DHCP off there, or turn DHCP snooping on for all ports but the server's. If both belong \
              together (failover), give both the same boot options."
            .to_owned(),
    })
}

fn loader_loop(case: &Case<'_>) -> Option<Opinion> {
    let asked: Vec<&Message> =
        case.machine.of_kind(kind::DISCOVER).filter(|m| m.speaker == Some(Client::Ipxe)).collect();
    let offered = case.replies().find(|reply| {
        let loader = reply.file.as_deref().is_some_and(|file| {
            let name = file.rsplit(['/', '\\']).next().unwrap_or(file).to_ascii_lowercase();
            ["undionly", "snponly", "ipxe"].iter().any(|word| name.starts_with(word))
                && [".kpxe", ".kkpxe", ".pxe", ".efi", ".lkrn"].iter().any(|end| name.ends_with(end))
        });
        loader && asked.iter().any(|ask| ask.xid == reply.xid)
    })?;
    let file = offered.file.as_deref().unwrap_or_default();
    Some(Opinion {
        problem: format!("iPXE is told to load itself again ({file}): it goes round for ever"),
        evidence: asked.first().map(|ask| told(ask)).into_iter().chain([told(offered)]).collect(),
        fix: format!(
            "Give iPXE its script instead of the loader; it is known by user class (option 77) \"iPXE\", or by option 175.\n\
             dnsmasq: dhcp-match=set:ipxe,175 and dhcp-boot=tag:ipxe,http://SERVER/script.ipxe and \
             dhcp-boot=tag:!ipxe,{file}\n\
             ISC dhcpd: if exists user-class and option user-class = \"iPXE\" {{ filename \"http://SERVER/script.ipxe\"; }} \
             else {{ filename \"{file}\"; }}\n\
             Kea: a client class with test \"option[77].hex == 'iPXE' or option[175].exists\" and its own boot-file-name"
        ),
    })
}

fn class_60(case: &Case<'_>) -> Option<Opinion> {
    case.machine.firmware()?;
    let until = case.firmware_until();
    let pxe = |m: &&Message| {
        m.seconds < until
            && m.class.as_deref().is_some_and(|c| c.starts_with("PXEClient"))
            && !m.is_boot_service()
    };
    let reply = case.replies().filter(pxe).find(|m| !m.uses_file)?;
    // Another reply may have said it; what went on in the end is no trouble.
    let went_on = case.transfers().next().is_some() || case.boot_service_answered();
    let asked = case.machine.of_kind(kind::REQUEST).find(|m| m.to.port() == 4011);
    let since = asked.map_or(reply.seconds, |m| m.seconds);
    if went_on || case.replies().filter(pxe).any(|m| m.uses_file) || !case.gave_up(since) {
        return None;
    }
    let server = reply.origin();
    let mut evidence = vec![told(reply)];
    evidence.extend(asked.map(|m| saw(m.seconds, format!("the firmware asks {} and hears nothing", m.to))));
    Some(Opinion {
        problem: format!(
            "{server} sends option 60 = PXEClient without option 43: UEFI firmware then asks a boot service on port 4011 \
             instead of loading the file"
        ),
        evidence,
        fix: format!(
            "On {server} send option 43 with sub-option 6 = 8 (\"use the file of this reply\"), or answer on UDP port 4011, \
             or leave option 60 away.\n\
             dnsmasq: dhcp-option-force=43,06:01:08:ff\n\
             ISC dhcpd: option vendor-encapsulated-options 06:01:08:ff;\n\
             Kea: {{ \"name\": \"vendor-encapsulated-options\", \"data\": \"060108FF\", \"csv-format\": false }}"
        ),
    })
}

fn split_offers(case: &Case<'_>) -> Option<Opinion> {
    case.machine.firmware()?;
    let address = case.machine.of_kind(kind::OFFER).find(|m| !m.is_proxy() && m.file.is_none())?;
    let proxy = case.machine.of_kind(kind::OFFER).find(|m| m.is_proxy() && m.file.is_some())?;
    let file = case.replies().any(|m| !m.is_proxy() && m.file.is_some());
    let went_on = case.transfers().next().is_some() || case.boot_service_answered();
    let since = address.seconds.max(proxy.seconds);
    let asks = case.machine.of_kind(kind::REQUEST).any(|m| m.to.port() == 4011);
    if file
        || went_on
        || asks
        || address.origin() == proxy.origin()
        || !proxy.uses_file
        || !case.gave_up(since)
    {
        return None;
    }
    let (server, booter, name) = (address.origin(), proxy.origin(), proxy.file.clone().unwrap_or_default());
    Some(Opinion {
        problem: format!(
            "{server} offers the address and {booter} the boot file, and this firmware does not put the two together"
        ),
        evidence: vec![told(address), told(proxy)],
        fix: format!(
            "Let one server give both. Either {booter} serves DHCP itself (labshift: `labshift serve --dhcp authoritative`, \
             and {server} off for this network), or {server} names the file: next server {booter}, file {name}.\n\
             dnsmasq: dhcp-boot={name},,{booter}\n\
             ISC dhcpd: next-server {booter}; filename \"{name}\";\n\
             Kea: \"next-server\": \"{booter}\", \"boot-file-name\": \"{name}\""
        ),
    })
}

fn relay(case: &Case<'_>) -> Option<Opinion> {
    let relayed: Vec<&Message> =
        case.machine.of_kind(kind::DISCOVER).filter(|m| !m.giaddr.is_unspecified()).collect();
    let first = relayed.first()?;
    let answered = |m: &&Message| m.kind == kind::OFFER && m.giaddr == first.giaddr;
    let offers: Vec<&Message> = case.machine.messages.iter().filter(answered).collect();
    let requested = case.machine.of_kind(kind::REQUEST).next().is_some();
    if relayed.len() < OFTEN || offers.len() < OFTEN || requested {
        return None;
    }
    let (relay, server) = (first.giaddr, offers[0].origin());
    let astray = offers.iter().find(|m| *m.to.ip() != relay);
    let problem = match astray {
        Some(offer) => format!("{server} answers {} instead of the relay {relay}", offer.to),
        None => format!("{server} answers the relay {relay}, but the client does not hear it"),
    };
    let fix = match astray {
        Some(_) => {
            format!("Have {server} send replies for relayed clients to the relay's address, {relay} port 67.")
        }
        None => format!(
            "Check the way back from {server} to {relay}: `ip route get {relay}` on {server}, and that every firewall on the \
             way lets UDP from port 67 to port 67 through. On the relay: it must take replies on the interface towards \
             {server} (ISC dhcrelay: -i for that interface too; a switch: the server's VLAN in the helper's VRF)."
        ),
    };
    let mut evidence = vec![told(first), told(offers[0])];
    let last = relayed[relayed.len() - 1];
    evidence.push(saw(
        last.seconds,
        format!("the relay passes on DISCOVER number {}, no REQUEST came", relayed.len()),
    ));
    Some(Opinion { problem, evidence, fix })
}

fn no_answer(case: &Case<'_>) -> Option<Opinion> {
    let asked: Vec<&Message> = case.machine.of_kind(kind::DISCOVER).collect();
    let first = asked.first()?;
    let answered = case.machine.messages.iter().any(|m| m.speaker.is_none());
    if answered || asked.len() < OFTEN {
        return None;
    }
    let last = asked[asked.len() - 1];
    let relayed = !first.giaddr.is_unspecified();
    let (problem, fix) = if relayed {
        (
            format!("no DHCP server answers what the relay {} passes on", first.giaddr),
            format!(
                "Is {} the DHCP server, and has it a pool for the network of {}? Is UDP port 67 open there?",
                first.to.ip(),
                first.giaddr
            ),
        )
    } else {
        (
            "no DHCP server answers".to_owned(),
            "Is a DHCP server running on this network, or a relay (ip helper-address) on its router? If one is, look for a \
             filter: DHCP snooping must trust the server's port. labshift answers machines of its site file: `labshift \
             site check`, and the log of `labshift serve`."
                .to_owned(),
        )
    };
    let evidence = vec![
        told(first),
        saw(last.seconds, format!("DISCOVER number {}, and no reply was seen", asked.len())),
    ];
    Some(Opinion { problem, evidence, fix })
}

fn refused(case: &Case<'_>) -> Option<Opinion> {
    let refusals: Vec<&Message> = case.machine.of_kind(kind::NAK).collect();
    if refusals.len() < 2 {
        return None;
    }
    let server = refusals[0].origin();
    Some(Opinion {
        problem: format!("{server} refuses the address that the machine asks for, {} times", refusals.len()),
        evidence: refusals.iter().take(OFTEN).map(|m| told(m)).collect(),
        fix: format!(
            "One NAK after a move to another network is normal; several mean that two servers disagree, or that {server} has \
             no pool for the network that the machine is on. Compare the pools of all servers, and delete the machine's old \
             lease."
        ),
    })
}
