//! The labshift server as init sees it: the boot answer, and reports. HTTP without TLS: the answer is believed for what its
//! signature covers, and the rest (name, token) is worth no more than the network it came over.

use std::{
    io::Read,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use labshift_model::{
    MacAddr,
    boot::{BootAnswer, BootReport, Stage},
    hardware::Hardware,
    manifest::{Manifest, short, trusted_keys},
    paths,
};
use ureq::{Agent, http::StatusCode};

use crate::{
    failure::{Code, Halt},
    journal::JOURNAL,
    lease,
    link::Port,
};

/// Largest answer that is read, in bytes.
const LARGEST_ANSWER: u64 = 4 << 20;

/// An HTTP client for one boot attempt. No redirects, no proxies.
pub fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .user_agent(crate::dhcp::VENDOR_CLASS)
        .timeout_connect(Some(Duration::from_secs(5)))
        .timeout_recv_response(Some(Duration::from_secs(20)))
        .input_buffer_size(1 << 20)
        .build()
        .new_agent()
}

/// What the server says to the question what to boot.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// This.
    Answer(Box<BootAnswer>),
    /// Nobody knows the machine yet: it may be adopted. With a sentence for the screen.
    Unknown(String),
}

/// Asks what to boot.
pub fn ask(agent: &Agent, server: &str, mac: MacAddr) -> Result<Asked, Halt> {
    let url = format!("{server}{}?mac={mac}", paths::BOOT_ANSWER);
    let silent =
        |why: String| Halt::new(Stage::Manifest, Code::NoServer, format!("{server} did not answer: {why}"));
    let response = agent.get(&url).call().map_err(|e| silent(e.to_string()))?;
    let status = response.status();
    let mut text = String::new();
    let body = response.into_body().into_reader().take(LARGEST_ANSWER).read_to_string(&mut text);
    body.map_err(|e| silent(e.to_string()))?;
    read_answer(status, &text)
}

/// Reads the answer's status and body.
fn read_answer(status: StatusCode, text: &str) -> Result<Asked, Halt> {
    let first: String =
        text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(300).collect();
    if status == StatusCode::ACCEPTED {
        Ok(Asked::Unknown(first))
    } else if status.is_success() {
        serde_json::from_str(text).map(Asked::Answer).map_err(|e| {
            Halt::new(
                Stage::Manifest,
                Code::NoServer,
                format!("the server's boot answer is not readable: {e}"),
            )
        })
    } else if status.is_client_error() {
        let reason = if first.is_empty() { status.to_string() } else { first };
        Err(Halt::new(
            Stage::Manifest,
            Code::Refused,
            format!("the server refuses to boot this machine: {reason}"),
        ))
    } else {
        Err(Halt::new(Stage::Manifest, Code::NoServer, format!("the server is in trouble: {status} {first}")))
    }
}

/// Verifies the answer's manifest: signature, generation, name, and the root hash of the command line when there is one.
pub fn verify(answer: &BootAnswer, keys: &str, root_hash: Option<&str>) -> Result<Manifest, Halt> {
    let refuse = |why: String| {
        let image = format!("image {} generation {}", answer.image, short(&answer.generation));
        Halt::new(Stage::Manifest, Code::Manifest, format!("{image}: {why}"))
    };
    let bytes = answer.manifest.as_bytes();
    let manifest = Manifest::verify(bytes, &answer.signature, &trusted_keys(keys), Some(&answer.generation))
        .map_err(|why| refuse(why.to_string()))?;
    if manifest.name != answer.image {
        return Err(refuse(format!("the signed manifest is of image {}", manifest.name)));
    }
    match root_hash {
        Some(wanted) if !wanted.eq_ignore_ascii_case(&manifest.root.root_hash) => Err(refuse(format!(
            "the kernel command line wants root hash {wanted}, the manifest has {}",
            manifest.root.root_hash
        ))),
        _ => Ok(manifest),
    }
}

/// Sends what the journal holds. A report that can't be delivered goes with the next one.
pub fn report(agent: &Agent, server: &str, mac: MacAddr, attempt: Option<u64>) -> bool {
    let (report, mark) = JOURNAL.report(mac, attempt);
    let delivered = send(agent, server, &report);
    if delivered {
        JOURNAL.delivered(mark);
    }
    delivered
}

/// Tells what the machine is made of, with what the journal holds.
pub fn report_hardware(agent: &Agent, server: &str, mac: MacAddr, hardware: Hardware) -> bool {
    let (report, mark) = JOURNAL.report(mac, None);
    let delivered = send(agent, server, &BootReport { hardware: Some(hardware.into()), ..report });
    if delivered {
        JOURNAL.delivered(mark);
    }
    delivered
}

/// Most bytes of a report in a datagram: it must arrive in one piece.
const DATAGRAM: usize = 1200;

/// The fallback when the server does not take reports over HTTP, or is not known yet: what matters most, in one datagram to the
/// server, or to everybody on the segment. Nobody acknowledges it. Returns how many were sent.
pub fn report_by_datagram(server: Option<&str>, ports: &[Port], mac: MacAddr, attempt: Option<u64>) -> usize {
    let (report, _) = JOURNAL.report(mac, attempt);
    let bytes = datagram(report);
    let known = server.and_then(|s| s.strip_prefix("http://")).and_then(|a| a.parse::<SocketAddrV4>().ok());
    if let Some(address) = known {
        let sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(&bytes, address));
        return usize::from(sent.is_ok());
    }
    let everybody = SocketAddrV4::new(Ipv4Addr::BROADCAST, paths::HTTP_PORT);
    let sent = ports.iter().filter(|port| {
        let socket = lease::broadcaster(&port.name);
        socket.and_then(|socket| socket.send_to(&bytes, everybody)).is_ok()
    });
    sent.count()
}

/// A report that fits a datagram: the last failure, and as many of the last lines of the log as there is room for.
fn datagram(full: BootReport) -> Vec<u8> {
    let failure = full.stages.iter().rev().find(|s| s.failure.is_some()).cloned();
    let mut report = BootReport { stages: failure.into_iter().collect(), log: String::new(), ..full };
    let mut bytes = serde_json::to_vec(&report).unwrap_or_default();
    for line in full.log.lines().rev() {
        let log = format!("{line}\n{}", report.log);
        let longer = BootReport { log, ..report.clone() };
        let candidate = serde_json::to_vec(&longer).unwrap_or_default();
        if candidate.len() > DATAGRAM {
            break;
        }
        (report, bytes) = (longer, candidate);
    }
    bytes
}

fn send(agent: &Agent, server: &str, report: &BootReport) -> bool {
    let url = format!("{server}{}", paths::BOOT_REPORT);
    let sent =
        agent.post(&url).config().timeout_global(Some(Duration::from_secs(10))).build().send_json(report);
    sent.is_ok_and(|response| response.status().is_success())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use labshift_model::manifest::{ImageKind, Root, SCHEMA, Signature, generation_of};

    use super::*;

    /// An answer signed by an unknown key: signing needs the builder's key type, which init does not carry.
    fn answer() -> BootAnswer {
        let manifest = Manifest {
            schema: SCHEMA,
            name: "lab".into(),
            kind: ImageKind::Host,
            architecture: "amd64".into(),
            kernel_release: "6.12".into(),
            kernel_arguments: String::new(),
            root: Root { root_hash: "00".repeat(32), salt: String::new(), data_size: 4096, block_size: 4096 },
            files: BTreeMap::new(),
            lock: String::new(),
            services: vec![],
            modules: vec![],
            ports: vec![],
        };
        let bytes = manifest.to_bytes();
        BootAnswer {
            node: "ws-01".into(),
            room: "r1".into(),
            image: "lab".into(),
            generation: generation_of(&bytes),
            manifest: String::from_utf8(bytes).unwrap(),
            signature: Signature { key: "11".repeat(32), ed25519: "22".repeat(64) },
            attempt: 1,
            token: "t".into(),
            now: "2026-11-23T07:40:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn an_unsigned_manifest_names_image_and_generation() {
        let answer = answer();
        let halt = verify(&answer, "# no keys\n", None).unwrap_err();
        assert_eq!(halt.code, Code::Manifest);
        assert!(halt.sentence.contains("image lab generation") && halt.sentence.contains("does not trust"));
    }

    #[test]
    fn a_datagram_holds_the_failure_and_the_end_of_the_log() {
        use labshift_model::boot::{Failure, StageEvent};
        let stage = |stage, failure| StageEvent { stage, at_ms: 1, failure, detail: String::new() };
        let failure = Failure { code: "NO-SERVER".into(), sentence: "silent".into(), hint: "look".into() };
        let log: String = (0..2_000).map(|i| format!("line {i} \"quoted\"\n")).collect();
        let stages =
            vec![stage(Stage::Init, None), stage(Stage::Manifest, Some(failure)), stage(Stage::Link, None)];
        let report = BootReport { mac: MacAddr([2; 6]), attempt: None, stages, log, hardware: None };
        let bytes = datagram(report);
        assert!(bytes.len() <= DATAGRAM && bytes.len() > DATAGRAM - 100, "{}", bytes.len());
        let report: BootReport = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(report.stages.len(), 1);
        assert!(report.stages[0].failure.as_ref().is_some_and(|f| f.code == "NO-SERVER"));
        assert!(report.log.ends_with("line 1999 \"quoted\"\n") && report.log.starts_with("line 19"));
        assert_eq!(JOURNAL.report(MacAddr([2; 6]), None).0.mac, MacAddr([2; 6]));
    }

    #[test]
    fn answers_and_refusals() {
        let good = serde_json::to_string(&answer()).unwrap();
        assert_eq!(read_answer(StatusCode::OK, &good).unwrap(), Asked::Answer(Box::new(answer())));
        let unknown = read_answer(StatusCode::ACCEPTED, "nobody knows it\n").unwrap();
        assert_eq!(unknown, Asked::Unknown("nobody knows it".into()));
        let no = read_answer(StatusCode::FORBIDDEN, "ws-01 is in maintenance\nmore").unwrap_err();
        assert_eq!(no.code, Code::Refused);
        assert!(no.sentence.ends_with("ws-01 is in maintenance"));
        assert_eq!(read_answer(StatusCode::BAD_GATEWAY, "").unwrap_err().code, Code::NoServer);
        assert_eq!(read_answer(StatusCode::OK, "{}").unwrap_err().code, Code::NoServer);
    }
}
