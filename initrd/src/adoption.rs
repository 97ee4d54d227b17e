//! A machine that nobody knows: it says what it is made of, shows how it is made known, and asks until it is.
//!
//! ```text
//!   ask --202--> report hardware, show the page --> wait, ask again --202--> ...
//!                                                        | an answer        | half the lease is over, or the server is silent
//!                                                        v                  v
//!                                      an address anew (its own, now), and on with the boot
//! ```

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use labshift_model::boot::Stage;
use ureq::Agent;

use crate::{
    dhcp::Lease,
    hardware,
    journal::{JOURNAL, stage_name},
    link::Port,
    page::Page,
    server::{self, Asked, Trust},
};

/// Between two questions.
const PAUSE: Duration = Duration::from_secs(3);
/// How often the hardware is told: a server that was started anew knows it soon.
const TELL: Duration = Duration::from_secs(60);

/// Returns when the machine is known, when its lease needs care, or when the server does not answer: in each case the address
/// is asked for anew.
pub fn wait(agent: &Agent, (server, trust): (&str, &Trust), port: &Port, lease: &Lease, sentence: &str) {
    let hardware = hardware::read(Path::new("/"));
    let begin = Instant::now();
    let mut told: Option<Instant> = None;
    JOURNAL.say("adoption", &format!("{sentence}; {}", hardware.summary()));
    JOURNAL.show(&page(port, sentence, &hardware.summary()));
    while begin.elapsed() < Duration::from_secs(u64::from(lease.seconds) / 2) {
        if told.is_none_or(|at| at.elapsed() >= TELL) {
            if !server::report_hardware(agent, server, port.mac, hardware.clone()) {
                JOURNAL.say("adoption", "the server did not take the report");
            }
            told = Some(Instant::now());
        }
        thread::sleep(PAUSE);
        match server::ask(agent, server, port.mac, trust) {
            Ok(Asked::Unknown(_)) => {}
            Ok(Asked::Answer(answer)) => {
                JOURNAL.say("adoption", &format!("this machine is {} now", answer.node));
                return;
            }
            Err(why) => {
                JOURNAL.say("adoption", &why.to_string());
                return;
            }
        }
    }
}

fn page(port: &Port, sentence: &str, summary: &str) -> Page {
    Page {
        title: "NOT KNOWN YET",
        code: "NEW MACHINE".to_owned(),
        stage: stage_name(Stage::Manifest),
        sentence: format!("{sentence}: {summary}"),
        hint: format!("on the server: labshift node adopt {} NAME ROOM", port.mac),
        node: "not known yet".to_owned(),
        mac: port.mac.to_string(),
        next: "The machine goes on by itself once it is adopted.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use labshift_model::MacAddr;

    use super::*;

    #[test]
    fn the_page_says_what_to_type() {
        let mac = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
        let port = Port { name: "eth0".into(), index: 2, mac, driver: "e1000e".into() };
        let block =
            page(&port, "it is no machine of site \"x\"", "Maker Desk 7, 8 x Core 5, 16000 MiB").block();
        assert!(block.contains("NEW MACHINE") && block.contains("Maker Desk 7"), "{block}");
        let words = block.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("labshift node adopt 52:54:00:01:02:03 NAME ROOM"), "{block}");
        assert!(!block.contains("FAILED"), "{block}");
    }
}
