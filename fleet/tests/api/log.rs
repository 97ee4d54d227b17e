//! What nodes log reaches whoever asks for it, and cannot fill the server.

use std::net::{IpAddr, Ipv4Addr};

use labshift_model::{
    MacAddr,
    api::LogPart,
    boot::{BootPlaneEvent, BootReport},
};

use crate::support::{GUARD, Lab, example};

fn report(lab: &Lab, mac: MacAddr, attempt: Option<u64>, log: &str) {
    let report =
        BootReport { mac, attempt, stages: vec![], crash: None, hardware: None, log: log.to_owned() };
    lab.fleet.journal().record(BootPlaneEvent::Report { peer: IpAddr::V4(Ipv4Addr::LOCALHOST), report });
}

/// Asks until the log is as wanted: it comes by way of the engine and the registry.
async fn log(lab: &Lab, node: &str, done: impl Fn(&[LogPart]) -> bool) -> Vec<LogPart> {
    let begin = std::time::Instant::now();
    loop {
        let request = lab.http.get(lab.url(&format!("/v1/nodes/{node}/log"))).bearer_auth(&lab.admin);
        let parts: Vec<LogPart> = request.send().await.expect("answered").json().await.expect("parts");
        if done(&parts) {
            return parts;
        }
        assert!(begin.elapsed() < GUARD, "{parts:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_runs_is_heard_as_one_that_boots() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), "2026-11-23T23:00:00").await;
    lab.wait("a start", |s| !s.nodes.is_empty()).await;
    let mac = example().machine("ws1").expect("in the site").mac;
    let early = lab.answer(mac).expect("an answer").attempt;
    report(&lab, mac, Some(early), "labshift: [   1.000] link eth0\n");
    log(&lab, "ws1", |parts| parts.len() == 1).await;
    // Its channel is open from here on.
    let ws1 = lab.boot("ws1").await;
    let attempt = Some(ws1.answer.attempt);
    report(&lab, mac, Some(early), "too late\n");
    report(&lab, mac, attempt, "labshift: [   9.000] libvirtd \x1b[2Jready\n");
    report(&lab, MacAddr([2; 6]), attempt, "of nobody that we know\n");
    report(&lab, mac, attempt, "labshift: [  90.000] libvirtd is tired\n");
    let parts = log(&lab, "ws1", |parts| parts.len() == 3).await;
    let text: String = parts.iter().map(|part| part.text.as_str()).collect();
    let wanted = "labshift: [   1.000] link eth0\nlabshift: [   9.000] libvirtd  [2Jready\nlabshift: [  90.000] libvirtd is tired\n";
    assert_eq!(text, wanted);
    assert!(log(&lab, "ws2", |_| true).await.is_empty());
    let request = lab.http.get(lab.url("/v1/nodes/ws9/log")).bearer_auth(&lab.admin);
    assert_eq!(request.send().await.expect("answered").status(), 404);

    lab.stop().await;
    let lab = Lab::reopen(dir.path(), "2026-11-23T23:00:00").await;
    lab.wait("a start", |s| !s.nodes.is_empty()).await;
    assert_eq!(log(&lab, "ws1", |_| true).await, parts, "it outlives the server");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_pushes_out_its_own_oldest_lines_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), "2026-11-23T23:00:00").await;
    lab.wait("a start", |s| !s.nodes.is_empty()).await;
    let mac = |name: &str| example().machine(name).expect("in the site").mac;
    report(&lab, mac("ws2"), None, "of the quiet one\n");
    let line = "x".repeat(64 * 1023);
    for i in 0..40 {
        report(&lab, mac("ws1"), None, &format!("{i} {line}\n"));
    }
    let parts = log(&lab, "ws1", |parts| parts.last().is_some_and(|p| p.text.starts_with("39 "))).await;
    let bytes: usize = parts.iter().map(|part| part.text.len()).sum();
    assert!((15 << 16..=1 << 20).contains(&bytes), "{bytes}");
    assert_eq!(log(&lab, "ws2", |_| true).await[0].text, "of the quiet one\n");
    lab.stop().await;
}
