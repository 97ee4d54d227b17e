//! Is the boot program one for this machine? Judged by its first bytes where they were seen, else by its name.

use super::{Case, Opinion, saw, told};
use crate::{
    dhcp::client::{Client, Platform},
    doctor::observe::Message,
};

/// What a program's first bytes say it is made for.
fn program(head: &[u8]) -> Option<&'static str> {
    if !head.starts_with(b"MZ") {
        return (head.len() >= 64).then_some("a BIOS");
    }
    let at = head.get(60..64).and_then(<[u8]>::first_chunk::<4>)?;
    let at = usize::try_from(u32::from_le_bytes(*at)).ok()?;
    match head.get(at..at.checked_add(6)?)? {
        [b'P', b'E', 0, 0, 0x64, 0x86] => Some("x86-64 UEFI"),
        [b'P', b'E', 0, 0, 0x4c, 0x01] => Some("32-bit UEFI"),
        [b'P', b'E', 0, 0, 0x64, 0xaa] => Some("Arm64 UEFI"),
        _ => None,
    }
}

/// What a program's name says it is made for.
fn named(file: &str) -> Option<&'static str> {
    let name = file.rsplit(['/', '\\']).next().unwrap_or(file).to_ascii_lowercase();
    let ends = |list: &[&str]| list.iter().any(|end| name.ends_with(end));
    if ends(&["aa64.efi", "arm64.efi"]) {
        Some("Arm64 UEFI")
    } else if ends(&["ia32.efi"]) {
        Some("32-bit UEFI")
    } else if ends(&[".efi"]) {
        Some("x86-64 UEFI")
    } else {
        ends(&[".kpxe", ".kkpxe", ".pxe", ".0"]).then_some("a BIOS")
    }
}

pub(super) fn architecture(case: &Case<'_>) -> Option<Opinion> {
    let ask = case.machine.messages.iter().find(|m| matches!(m.speaker, Some(Client::Firmware(_))))?;
    let own = match case.machine.firmware()? {
        Platform::Bios => "a BIOS",
        Platform::Uefi => "x86-64 UEFI",
        Platform::UefiHttp => return http_boot(case, ask),
        Platform::Foreign(6) => "32-bit UEFI",
        Platform::Foreign(11) => "Arm64 UEFI",
        Platform::Foreign(_) => return None,
    };
    let until = case.firmware_until();
    let loaded = case.transfers().filter(|t| t.asked.iter().all(|at| *at < until)).find_map(|t| {
        let made_for = program(&t.head).filter(|m| *m != own)?;
        let at = t.answered.map_or(0.0, |(at, _)| at);
        let text = format!("{} of {} begins like a program for {made_for}", t.request.path, t.server.ip());
        Some((t.request.path.clone(), made_for, saw(at, text)))
    });
    let offered = || {
        case.replies().filter(|m| m.seconds < until).find_map(|m| {
            let file = m.file.as_deref().filter(|f| !f.contains("://"))?;
            let made_for = named(file).filter(|m| *m != own)?;
            Some((file.to_owned(), made_for, told(m)))
        })
    };
    let (file, made_for, evidence) = loaded.or_else(offered)?;
    let number = ask.architecture.map_or("none".to_owned(), |n| n.to_string());
    Some(Opinion {
        problem: format!("the machine boots by {own}, but {file} is a program for {made_for}"),
        evidence: vec![saw(ask.seconds, format!("the firmware says architecture {number} (option 93)")), evidence],
        fix: "Choose the file by option 93: 0 is BIOS (undionly.kpxe), 7 and 9 are x86-64 UEFI (snponly.efi), 6 is 32-bit \
              UEFI, 11 is Arm64.\n\
              dnsmasq: dhcp-match=set:efi,option:client-arch,7 and dhcp-match=set:efi,option:client-arch,9, then \
              dhcp-boot=tag:efi,snponly.efi and dhcp-boot=tag:!efi,undionly.kpxe\n\
              ISC dhcpd: option arch code 93 = unsigned integer 16; if option arch = 00:07 or option arch = 00:09 { filename \
              \"snponly.efi\"; } else { filename \"undionly.kpxe\"; }\n\
              Kea: client classes with test \"option[93].hex == 0x0007\" and their boot-file-name"
            .to_owned(),
    })
}

fn http_boot(case: &Case<'_>, ask: &Message) -> Option<Opinion> {
    let offer = case.replies().find(|m| m.file.is_some() || m.class.is_some())?;
    let url = offer.file.as_deref().is_some_and(|f| f.starts_with("http://") || f.starts_with("https://"));
    let class = offer.class.as_deref().is_some_and(|c| c.starts_with("HTTPClient"));
    if url && class {
        return None;
    }
    let lacks = match (url, class) {
        (true, _) => "without the class HTTPClient (option 60), so it is ignored",
        (false, _) => "that is no URL",
    };
    Some(Opinion {
        problem: format!("UEFI HTTP boot is offered a boot file {lacks}"),
        evidence: vec![told(ask), told(offer)],
        fix: "For architecture 16 send option 60 = HTTPClient and option 67 = http://SERVER/FILE.efi.\n\
              dnsmasq: dhcp-match=set:http,option:client-arch,16 and dhcp-option-force=tag:http,60,HTTPClient and \
              dhcp-boot=tag:http,http://SERVER/FILE.efi"
            .to_owned(),
    })
}
