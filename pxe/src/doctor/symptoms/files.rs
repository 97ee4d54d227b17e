//! Troubles of the file transfer: who is asked, and whether the answers arrive.

use super::{Case, ETHERNET, Evidence, OFTEN, Opinion, saw, told};
use crate::doctor::transfer::Transfer;

pub(super) fn next_server(case: &Case<'_>) -> Option<Opinion> {
    let fix = |server: &str| {
        format!(
            "Name the server that has the files.\n\
             dnsmasq: dhcp-boot=FILE,,{server}\n\
             ISC dhcpd: next-server {server}; filename \"FILE\";\n\
             Kea: \"next-server\": \"{server}\", \"boot-file-name\": \"FILE\"\n\
             Windows DHCP: scope option 066 = {server}, 067 = FILE"
        )
    };
    // Port unreachable: the machine is there, and no TFTP server on it.
    let refused = case.transfers().find_map(|t| match t.unreachable {
        Some((at, by, 3, true)) if t.answered.is_none() => Some((t, at, by)),
        _ => None,
    });
    if let Some((transfer, at, by)) = refused {
        let server = transfer.server.ip();
        let named = case.replies().find(|m| m.siaddr == *server);
        let mut evidence: Vec<Evidence> = named.map(told).into_iter().collect();
        evidence.push(saw(
            transfer.asked[0],
            format!("the firmware asks {server} for {}", transfer.request.path),
        ));
        evidence.push(saw(at, format!("{by} answers: port unreachable")));
        return Some(Opinion {
            problem: format!("the next server {server} runs no TFTP server"),
            evidence,
            fix: format!("{}\nOr start TFTP on {server}.", fix("TFTP-SERVER")),
        });
    }
    case.machine.firmware()?;
    if case.transfers().next().is_some() {
        return None;
    }
    let lacking = case.replies().find(|m| {
        let path = m.file.as_deref().is_some_and(|f| !f.contains("://"));
        path && m.siaddr.is_unspecified() && m.server_name.is_none()
    })?;
    if !case.gave_up(lacking.seconds) {
        return None;
    }
    let server = lacking.origin();
    Some(Opinion {
        problem: format!("{server} names a boot file, but no server that has it (next server is 0.0.0.0)"),
        evidence: vec![told(lacking)],
        fix: fix("TFTP-SERVER"),
    })
}

pub(super) fn file_missing(case: &Case<'_>) -> Option<Opinion> {
    let (transfer, (at, code, text, _)) = case
        .transfers()
        .filter(|t| !t.request.path.ends_with("autoexec.ipxe"))
        .find_map(|t| Some((t, t.error.as_ref().filter(|(_, _, _, client)| !client)?)))?;
    let (server, path) = (transfer.server.ip(), &transfer.request.path);
    Some(Opinion {
        problem: format!("{server} does not send {path}: {text} (error {code})"),
        evidence: vec![
            saw(transfer.asked[0], format!("the client asks {server} for {path}")),
            saw(*at, format!("{server} answers: error {code}, {text}")),
        ],
        fix: format!(
            "Put the file where the TFTP server looks for it, readable for everybody, or correct the boot file name of the \
             DHCP server. Names are case-sensitive; some servers want no leading slash. Try it from another machine: \
             `tftp -m binary {server} -c get {path}`"
        ),
    })
}

/// The server sends, and the client hears none of it.
fn unheard(transfer: &Transfer) -> bool {
    let repeats = transfer.again as usize >= OFTEN || transfer.asked.len() >= OFTEN;
    let heard = transfer.acked.is_some_and(|block| block > 0 && block == transfer.block);
    transfer.answered.is_some() && repeats && !heard && !transfer.done
}

pub(super) fn mtu(case: &Case<'_>) -> Option<Opinion> {
    let too_large = |t: &&Transfer| {
        let told = matches!(t.unreachable, Some((_, _, 4, _)));
        told || (unheard(t) && (t.fragmented || t.largest > ETHERNET))
    };
    let transfer = case.transfers().find(too_large)?;
    let (at, server) = (transfer.answered.map_or(0.0, |(at, _)| at), transfer.server.ip());
    let asked =
        transfer.request.options.iter().find(|(name, _)| name == "blksize").map(|(_, value)| value.as_str());
    let mut evidence = vec![saw(
        transfer.asked[0],
        format!("the client asks for {} with blksize {}", transfer.request.path, asked.unwrap_or("512")),
    )];
    evidence.push(saw(
        at,
        format!(
            "{server} sends packets of {} bytes{}, block {} {} times",
            transfer.largest,
            if transfer.fragmented { " in fragments" } else { "" },
            transfer.block,
            transfer.again
        ),
    ));
    if let Some((at, by, 4, _)) = transfer.unreachable {
        evidence.push(saw(at, format!("{by} answers: fragmentation needed")));
    }
    Some(Opinion {
        problem: format!("TFTP packets of {} bytes do not get through to the client", transfer.largest),
        evidence,
        fix: "Let the TFTP server grant smaller blocks: 1468 bytes fit an Ethernet, less when there is a tunnel or VPN on the \
              way (its MTU minus 32).\n\
              dnsmasq: tftp-mtu=1500 or tftp-no-blocksize\n\
              tftpd-hpa: TFTP_OPTIONS=\"--secure --blocksize 1468\"\n\
              Or make the MTU the same on every port of the path: `ip link` on the server, the switches' and the relay's \
              settings."
            .to_owned(),
    })
}

pub(super) fn tftp_blocked(case: &Case<'_>) -> Option<Opinion> {
    let forbidden = |t: &&Transfer| matches!(t.unreachable, Some((_, _, 9 | 10 | 13, _)));
    let silent = |t: &&Transfer| {
        t.answered.is_none() && t.unreachable.is_none() && t.error.is_none() && t.asked.len() >= OFTEN
    };
    let deaf =
        |t: &&Transfer| unheard(t) && t.unreachable.is_none() && !t.fragmented && t.largest <= ETHERNET;
    let transfer =
        case.transfers().find(forbidden).or(case.transfers().find(silent)).or(case.transfers().find(deaf))?;
    let (server, client) = (transfer.server.ip(), transfer.client.ip());
    let times = transfer.asked.len();
    let mut evidence = vec![saw(
        transfer.asked[0],
        format!("{client} asks {server} for {}, {times} times", transfer.request.path),
    )];
    if let Some((at, by, code, _)) = transfer.unreachable {
        evidence.push(saw(at, format!("{by} answers: forbidden (ICMP 3/{code})")));
        return Some(Opinion {
            problem: format!("a firewall at {by} refuses TFTP between {client} and {server}"),
            evidence,
            fix: format!(
                "On {by} let UDP from {client}'s network to {server} through, port 69 and 1024 to 65535."
            ),
        });
    }
    let Some((at, port)) = transfer.answered else {
        return Some(Opinion {
            problem: format!("{server} does not answer TFTP requests: they, or its answers, are blocked"),
            evidence,
            fix: format!(
                "On {server}: is TFTP running (`ss -lunp sport = :69`), and does its firewall let UDP port 69 in (`nft list \
                 ruleset`)? To allow it: nft add rule inet filter input udp dport 69 accept. If it runs and allows it, \
                 look for a filter between {client} and {server}."
            ),
        });
    };
    evidence.push(saw(
        at,
        format!(
            "{port} answers, block {} {} times; the client hears nothing",
            transfer.block, transfer.again
        ),
    ));
    Some(Opinion {
        problem: format!("{server} answers TFTP, but the answers do not reach {client}"),
        evidence,
        fix: format!(
            "TFTP answers come from a new port ({} here), which a filter between the two takes for something unasked. Let UDP \
             from {server} to {client}'s network through, or load the filter's TFTP helper (Linux: nf_conntrack_tftp).",
            port.port()
        ),
    })
}
