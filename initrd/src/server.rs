//! The labshift server as init sees it: the boot answer, and reports. HTTP without TLS: an answer is believed when it is signed by a
//! server that the initramfs knows, and names the random number that was asked with. So is its time: the board's clock is not.

use std::{
    fs,
    io::Read,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use labshift_model::{
    MacAddr,
    boot::{BootAnswer, BootReport, SignedAnswer, Stage},
    hardware::Hardware,
    manifest::{Manifest, Stale, short, trusted_keys},
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
        .input_buffer_size(128 << 10)
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

/// Whom init believes: files of the initramfs, read while they are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// Keys that may sign manifests, one in hex per line.
    pub images: String,
    /// Keys that may sign boot answers.
    pub servers: String,
    /// Manifests that were signed earlier are refused.
    pub minimum: Option<Timestamp>,
}

impl Trust {
    /// Reads it. What can't be read is not trusted; a minimum that can't be read is the end of time.
    pub fn read(sysroot: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(sysroot.join(path.trim_start_matches('/')));
        Trust {
            images: text(paths::TRUSTED_KEYS).unwrap_or_default(),
            servers: text(paths::SERVER_KEYS).unwrap_or_default(),
            minimum: text(paths::MINIMUM).ok().map(|t| t.trim().parse().unwrap_or(Timestamp::MAX)),
        }
    }
}

/// Asks what to boot, and believes only an answer to this very question.
pub fn ask(agent: &Agent, server: &str, mac: MacAddr, trust: &Trust) -> Result<Asked, Halt> {
    let nonce = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let nonce = nonce.trim().replace('-', "");
    let url = format!("{server}{}?mac={mac}&nonce={nonce}", paths::BOOT_ANSWER);
    let silent =
        |why: String| Halt::new(Stage::Manifest, Code::NoServer, format!("{server} did not answer: {why}"));
    let response = agent.get(&url).call().map_err(|e| silent(e.to_string()))?;
    let status = response.status();
    let mut text = String::new();
    let body = response.into_body().into_reader().take(LARGEST_ANSWER).read_to_string(&mut text);
    body.map_err(|e| silent(e.to_string()))?;
    if status == StatusCode::ACCEPTED {
        return Ok(Asked::Unknown(first_line(&text)));
    }
    let signed = read_answer(status, &text)?;
    let opened = signed.open(&trusted_keys(&trust.servers), &nonce);
    opened.map(|answer| Asked::Answer(Box::new(answer))).map_err(|why| {
        Halt::new(Stage::Manifest, Code::Answer, format!("the answer of {server} is not believed: {why}"))
    })
}

/// What a server says in a sentence, fit for the screen.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Reads the answer's status and body.
fn read_answer(status: StatusCode, text: &str) -> Result<SignedAnswer, Halt> {
    let first = first_line(text);
    if status.is_success() {
        serde_json::from_str(text).map_err(|e| {
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

/// Verifies the answer's manifest: signature and its time, generation, name, and the root hash of the command line when there is
/// one.
pub fn verify(answer: &BootAnswer, trust: &Trust, root_hash: Option<&str>) -> Result<Manifest, Halt> {
    let halt = |code, why: String| {
        let image = format!("image {} generation {}", answer.image, short(&answer.generation));
        Halt::new(Stage::Manifest, code, format!("{image}: {why}"))
    };
    let refuse = |why| halt(Code::Manifest, why);
    let bytes = answer.manifest.as_bytes();
    let keys = trusted_keys(&trust.images);
    let manifest = Manifest::verify(bytes, &answer.signature, &keys, Some(&answer.generation))
        .map_err(|why| refuse(why.to_string()))?;
    answer.signature.is_fresh(answer.now, trust.minimum).map_err(|why| match why {
        Stale::Older { .. } => halt(Code::Version, why.to_string()),
        Stale::Expired { .. } => halt(Code::Expired, why.to_string()),
    })?;
    if manifest.name != answer.image {
        return Err(refuse(format!("the signed manifest is of image {}", manifest.name)));
    }
    match root_hash {
        Some(wanted) if !wanted.eq_ignore_ascii_case(&manifest.root.root_hash) => {
            let why = format!(
                "the kernel command line wants root hash {wanted}, the manifest has {}",
                manifest.root.root_hash
            );
            Err(halt(Code::Changed, why).that_needs_reboot())
        }
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
            valid_days: None,
            disk: None,
        };
        let bytes = manifest.to_bytes();
        BootAnswer {
            node: "ws-01".into(),
            room: "r1".into(),
            image: "lab".into(),
            generation: generation_of(&bytes),
            manifest: String::from_utf8(bytes).unwrap(),
            signature: Signature {
                key: "11".repeat(32),
                signed: Timestamp::UNIX_EPOCH,
                expires: None,
                boot_order: String::new(),
                ed25519: "22".repeat(64),
            },
            attempt: 1,
            token: "t".into(),
            now: "2026-11-23T07:40:00Z".parse().unwrap(),
            nonce: "n".into(),
            peers: vec![],
        }
    }

    #[test]
    fn an_unsigned_manifest_names_image_and_generation() {
        let answer = answer();
        let halt = verify(&answer, &Trust::default(), None).unwrap_err();
        assert_eq!(halt.code, Code::Manifest);
        assert!(halt.sentence.contains("image lab generation") && halt.sentence.contains("does not trust"));
    }

    #[test]
    fn what_cant_be_read_is_not_trusted() {
        let dir = std::env::temp_dir().join(format!("labshift-trust-{}", std::process::id()));
        fs::create_dir_all(dir.join("etc/labshift")).unwrap();
        assert_eq!(Trust::read(&dir), Trust::default());
        for (text, minimum) in
            [("2026-10-01T00:00:00Z\n", "2026-10-01T00:00:00Z".parse().unwrap()), ("x", Timestamp::MAX)]
        {
            fs::write(dir.join("etc/labshift/minimum"), text).unwrap();
            assert_eq!(Trust::read(&dir).minimum, Some(minimum));
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_datagram_holds_the_failure_and_the_end_of_the_log() {
        use labshift_model::boot::{Failure, StageEvent};
        let stage = |stage, failure| StageEvent { stage, at_ms: 1, failure, detail: String::new() };
        let failure = Failure { code: "NO-SERVER".into(), sentence: "silent".into(), hint: "look".into() };
        let log: String = (0..2_000).map(|i| format!("line {i} \"quoted\"\n")).collect();
        let stages =
            vec![stage(Stage::Init, None), stage(Stage::Manifest, Some(failure)), stage(Stage::Link, None)];
        let report =
            BootReport { mac: MacAddr([2; 6]), attempt: None, stages, crash: None, log, hardware: None };
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
        let answer = serde_json::to_string(&answer()).unwrap();
        let signed = SignedAnswer { answer, key: "11".repeat(32), ed25519: "22".repeat(64) };
        let good = serde_json::to_string(&signed).unwrap();
        assert_eq!(read_answer(StatusCode::OK, &good).unwrap(), signed);
        let no = read_answer(StatusCode::FORBIDDEN, "ws-01 is in maintenance\nmore").unwrap_err();
        assert_eq!(no.code, Code::Refused);
        assert!(no.sentence.ends_with("ws-01 is in maintenance"));
        assert_eq!(read_answer(StatusCode::BAD_GATEWAY, "").unwrap_err().code, Code::NoServer);
        assert_eq!(read_answer(StatusCode::OK, "{}").unwrap_err().code, Code::NoServer);
    }
}
