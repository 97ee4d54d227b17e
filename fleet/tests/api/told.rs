//! What an admin tells one machine to boot: another image or generation, or its own disk, once or from now on.

use labshift_model::{
    api::BootTarget,
    boot::{BootChoice, BootPlaneEvent, NoAnswer, Speaker, Stage, StageEvent},
    node::{FromNode, Mode},
};
use serde_json::json;

use crate::support::{Lab, example, publish_with};

/// Nobody is woken.
const NIGHT: &str = "2026-11-23T23:00:00";
/// Every machine computes.
const NOON: &str = "2026-11-23T12:00:00";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_generation_for_one_boot() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = publish_with(&dir.path().join("store"), "lab", "old");
    let lab = Lab::start(dir.path(), NIGHT).await;
    let mac = example().machine("ws1").expect("in the site").mac;
    let stable = lab.answer(mac).expect("an answer").generation;
    assert_ne!(stable, old);

    let target = json!({"image": {"name": "lab", "generation": old[..8]}});
    let (status, answer) = lab.post("/v1/nodes/ws1/boot", json!({"target": target, "once": true})).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["done"].as_str().unwrap_or_default().contains("once"), "{answer}");
    let image = Some(BootTarget::Image { name: "lab".into(), generation: Some(old.clone()) });
    let told =
        lab.wait_node("ws1", "to be told", |n| n.told == image && n.generation.as_ref() == Some(&old)).await;
    assert!(told.troubles.is_empty(), "{:?}", told.troubles);
    // `image gc` leaves it alone, also while the node still runs another one.
    let kept = told.in_use.iter().find(|u| u.generation == old).map(|u| u.why.as_str());
    assert_eq!(kept, Some("node ws1 was told to boot it"));
    // It outlives the server.
    lab.stop().await;
    let lab = Lab::reopen(dir.path(), NIGHT).await;
    lab.wait_node("ws1", "to be told still", |n| n.told == image).await;
    let boots = |generation: &str| BootChoice::Image {
        name: "lab".into(),
        generation: generation.to_owned(),
        arguments: String::new(),
    };
    assert_eq!(lab.fleet.directory().boot(mac), boots(&old));
    let other = example().machine("ws2").expect("in the site").mac;
    assert_eq!(lab.fleet.directory().boot(other), boots(&stable), "nobody else");

    let mut ws1 = lab.boot("ws1").await;
    assert_eq!(ws1.answer.generation, old);
    lab.wait_node("ws1", "to have begun its one boot", |n| n.told.is_none()).await;
    assert_eq!(lab.fleet.directory().boot(mac), boots(&stable), "its firmware, which is the next boot");
    let ready =
        FromNode::Stage(StageEvent { stage: Stage::Ready, at_ms: 1, failure: None, detail: String::new() });
    ws1.say(&ready).await;
    let is_ready = |n: &labshift_model::api::NodeView| {
        n.boot.as_ref().is_some_and(|b| b.stages.iter().any(|s| s.stage == Stage::Ready))
    };
    lab.wait_node("ws1", "to be ready", is_ready).await;
    assert_eq!(lab.answer(mac).expect("an answer").generation, stable);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_with_its_own_disk_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), NOON).await;
    let machine = example().machine("ws1").expect("in the site").clone();
    let (mac, address) = (machine.mac, machine.address);
    let (status, answer) = lab.post("/v1/nodes/ws1/boot", json!({"target": "disk"})).await;
    assert_eq!(status, 200, "{answer}");
    let left = |n: &labshift_model::api::NodeView| {
        n.told == Some(BootTarget::Disk) && n.wanted.mode == Mode::Off && n.wanted.cause.contains("own disk")
    };
    lab.wait_node("ws1", "to be left alone", left).await;
    assert_eq!(lab.fleet.directory().boot(mac), BootChoice::LocalDisk);
    let Err(NoAnswer::Refused(why)) = lab.answer(mac) else { panic!("its init gets an answer") };
    assert!(why.contains("labshift node boot ws1 room"), "{why}");
    let (status, answer) = lab.post("/v1/nodes/ws1/wake", json!({})).await;
    assert_eq!(status, 409, "{answer}");

    // Its firmware is heard, and nobody waits for its init; the other machine is what shows that both were heard.
    let other = example().machine("ws2").expect("in the site").clone();
    lab.fleet.journal().record(BootPlaneEvent::Lease { mac, address, speaker: Speaker::BiosRom });
    let (mac_2, address_2) = (other.mac, other.address);
    lab.fleet.journal().record(BootPlaneEvent::Lease {
        mac: mac_2,
        address: address_2,
        speaker: Speaker::BiosRom,
    });
    let booting = |n: &labshift_model::api::NodeView| n.state == labshift_model::api::NodeState::Booting;
    let status = lab.wait_node("ws2", "to be heard", booting).await;
    let ws1 = status.nodes.iter().find(|n| n.name == "ws1").expect("in the site");
    assert!(!booting(ws1) && left(ws1), "{ws1:?}");

    let (status, _) = lab.post("/v1/nodes/ws1/boot", json!({"target": "room"})).await;
    assert_eq!(status, 200);
    lab.wait_node("ws1", "to be ours again", |n| n.told.is_none() && n.wanted.mode == Mode::Compute).await;
    assert!(matches!(lab.fleet.directory().boot(mac), BootChoice::Image { .. }));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_booted_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), NIGHT).await;
    for (node, target, status, word) in [
        ("ws9", json!("disk"), 404, "ws9"),
        ("ws1", json!({"image": {"name": "attic"}}), 404, "not in the store"),
        ("ws1", json!({"image": {"name": "../lab"}}), 404, "no image name"),
        ("ws1", json!({"image": {"name": "guest-batch"}}), 404, "a guest's"),
        ("ws1", json!({"image": {"name": "lab", "generation": "0000"}}), 404, "no generation 0000"),
        ("ws1", json!({"image": {"name": "lab", "generation": "x"}}), 404, "4 to 64 hex digits"),
        ("ws1", json!("floppy"), 400, "not understood"),
    ] {
        let path = format!("/v1/nodes/{node}/boot");
        let (found, answer) = lab.post(&path, json!({"target": target})).await;
        let problem = answer["problem"].as_str().unwrap_or_default();
        assert!(found == status && problem.contains(word), "{target}: {found} {answer}");
    }
    let (found, answer) = lab.post("/v1/nodes/ws1/boot", json!({"target": "room", "once": true})).await;
    assert_eq!(found, 400, "{answer}");
    lab.stop().await;
}
