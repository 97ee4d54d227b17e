//! A generation that does not come up on a node: the node gets back the last one that did.

use std::net::{IpAddr, Ipv4Addr};

use labshift_model::{
    MacAddr,
    boot::{BootPlaneEvent, BootReport, Failure, Speaker, Stage, StageEvent},
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
    report(lab, mac, Some(answer.attempt), vec![stage(Stage::RootMounted, Some(code))], None);
    answer.generation
}

fn report(lab: &Lab, mac: MacAddr, attempt: Option<u64>, stages: Vec<StageEvent>, crash: Option<&str>) {
    let crash = crash.map(str::to_owned);
    let report = BootReport { mac, attempt, stages, crash, hardware: None, log: String::new() };
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    lab.fleet.journal().record(BootPlaneEvent::Report { peer, report });
}

/// The machine starts, asks what to boot, and is heard of no more.
fn vanish(lab: &Lab, mac: MacAddr) -> String {
    let address = Ipv4Addr::new(10, 77, 0, 11);
    lab.fleet.journal().record(BootPlaneEvent::Offer { mac, address, speaker: Speaker::Uefi });
    lab.answer(mac).expect("an answer").generation
}

/// A lab whose `ws1` was ready once, and the generation that has come since then.
async fn with_a_new_generation(dir: &std::path::Path) -> (Lab, MacAddr, String, String) {
    let lab = Lab::start(dir, "2026-11-23T23:00:00").await;
    let mac = example().machine("ws1").expect("in the site").mac;
    let mut ws1 = lab.boot("ws1").await;
    let good = ws1.answer.generation.clone();
    ws1.say(&FromNode::Stage(stage(Stage::Ready, None))).await;
    let is_ready = |n: &labshift_model::api::NodeView| {
        n.boot.as_ref().is_some_and(|b| b.stages.iter().any(|s| s.stage == Stage::Ready))
    };
    lab.wait_node("ws1", "to be ready", is_ready).await;
    drop(ws1);
    let bad = publish_with(&dir.join("store"), "lab", "broken");
    let seen =
        |s: &labshift_model::api::FleetStatus| s.images.iter().any(|i| i.generation.as_ref() == Some(&bad));
    lab.wait("the new generation", seen).await;
    (lab, mac, good, bad)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_failures_bring_the_last_good_generation_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let (lab, mac, good, bad) = with_a_new_generation(dir.path()).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulled_plugs_do_not_bring_it_back_and_stopped_kernels_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let (lab, mac, good, bad) = with_a_new_generation(dir.path()).await;
    for _ in 0..4 {
        assert_eq!(vanish(&lab, mac), bad);
    }
    // The fourth is not over yet: three silences. From here on each start tells how the one before ended.
    for _ in 0..3 {
        assert_eq!(vanish(&lab, mac), bad);
        report(&lab, mac, None, vec![], Some("Kernel panic - not syncing: Fatal exception"));
    }
    let status = lab.wait("a word about it", |s| s.troubles.iter().any(|t| t.contains("instead of"))).await;
    let why = "it failed 3 times, the last time with Kernel panic - not syncing: Fatal exception";
    assert!(status.troubles.iter().any(|t| t.contains(why)), "{:?}", status.troubles);
    assert_eq!(lab.answer(mac).expect("an answer").generation, good);
    lab.stop().await;
}
