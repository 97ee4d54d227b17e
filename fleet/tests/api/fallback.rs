//! A generation that does not come up on a node: the node gets back the last one that did.

use std::net::{IpAddr, Ipv4Addr};

use labshift_model::{
    MacAddr,
    boot::{BootPlaneEvent, BootReport, Failure, Stage, StageEvent},
    node::FromNode,
};

use crate::support::{Lab, example, publish_with};

fn stage(stage: Stage, code: Option<&str>) -> StageEvent {
    let failure = code.map(|code| Failure {
        code: code.into(),
        sentence: "dm-verity.ko does not load".into(),
        hint: "build it again".into(),
    });
    StageEvent { stage, at_ms: 3000, failure, detail: String::new() }
}

/// One attempt of a node's init that fails.
fn fail(lab: &Lab, mac: MacAddr, code: &str) -> String {
    let answer = lab.answer(mac).expect("an answer");
    let report = BootReport {
        mac,
        attempt: Some(answer.attempt),
        stages: vec![stage(Stage::RootMounted, Some(code))],
        crash: None,
        hardware: None,
        log: String::new(),
    };
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    lab.fleet.journal().record(BootPlaneEvent::Report { peer, report });
    answer.generation
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_failures_bring_the_last_good_generation_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), "2026-11-23T23:00:00").await;
    let mac = example().machine("ws1").expect("in the site").mac;
    let mut ws1 = lab.boot("ws1").await;
    let good = ws1.answer.generation.clone();
    ws1.say(&FromNode::Stage(stage(Stage::Ready, None))).await;
    let is_ready = |n: &labshift_model::api::NodeView| {
        n.boot.as_ref().is_some_and(|b| b.stages.iter().any(|s| s.stage == Stage::Ready))
    };
    lab.wait_node("ws1", "to be ready", is_ready).await;
    drop(ws1);

    let bad = publish_with(&dir.path().join("store"), "lab", "broken");
    let seen =
        |s: &labshift_model::api::FleetStatus| s.images.iter().any(|i| i.generation.as_ref() == Some(&bad));
    lab.wait("the new generation", seen).await;
    // What the network does is not the image's fault.
    for _ in 0..4 {
        assert_eq!(fail(&lab, mac, "ROOT-FETCH"), bad);
    }
    for _ in 0..3 {
        assert_eq!(fail(&lab, mac, "MODULE"), bad);
    }
    let status = lab.wait("a word about it", |s| s.troubles.iter().any(|t| t.contains("instead of"))).await;
    let wanted =
        format!("ws1 boots generation {} of lab instead of {}: it failed 3 times", &good[..12], &bad[..12]);
    assert!(status.troubles.iter().any(|t| t.starts_with(&wanted)), "{:?}", status.troubles);
    assert_eq!(lab.answer(mac).expect("an answer").generation, good);
    // The others get what the channel says.
    let other = example().machine("ws2").expect("in the site").mac;
    assert_eq!(lab.answer(other).expect("an answer").generation, bad);

    // It outlives the server, and ends when the channel moves.
    lab.stop().await;
    let lab = Lab::reopen(dir.path(), "2026-11-23T23:00:00").await;
    lab.wait("what it knew", |s| s.troubles.iter().any(|t| t.starts_with(&wanted))).await;
    let fixed = publish_with(&dir.path().join("store"), "lab", "fixed");
    lab.wait("the next generation", |s| s.images.iter().any(|i| i.generation.as_ref() == Some(&fixed))).await;
    assert_eq!(lab.answer(mac).expect("an answer").generation, fixed);
    lab.stop().await;
}
