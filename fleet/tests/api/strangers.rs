//! Machines that nobody knows: ignored, discovered and adopted, or given a default image.

use std::net::{IpAddr, Ipv4Addr};

use labshift_model::{
    MacAddr,
    boot::{BootChoice, BootPlaneEvent, BootReport, NoAnswer},
    hardware::Hardware,
    site::{Site, Unknown},
};
use serde_json::json;

use crate::support::{Lab, example};

const NEW: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x77]);
const FROM: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 100);

fn with(unknown: Unknown) -> Site {
    Site { unknown, ..example() }
}

fn told(lab: &Lab) {
    let hardware = Hardware { product: "Desk 7<script>".into(), cpus: 8, ..Hardware::default() };
    let report = BootReport {
        mac: NEW,
        attempt: None,
        stages: vec![],
        crash: None,
        log: String::new(),
        hardware: Some(hardware.into()),
    };
    lab.fleet.journal().record(BootPlaneEvent::Report { peer: IpAddr::V4(FROM), report });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_discovered_where_strangers_are_ignored() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), "2026-11-23T10:30:00").await;
    assert_eq!(lab.fleet.directory().boot(NEW), BootChoice::Ignore);
    assert!(
        matches!(lab.answer(NEW), Err(NoAnswer::Refused(why)) if why.contains("add it to the site file"))
    );
    told(&lab);
    let _ws1 = lab.boot("ws1").await;
    lab.wait_node("ws1", "to be connected", |n| n.connected).await;
    assert!(lab.fleet.status().strangers.is_empty());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_discovered_adopted_and_known_for_good() {
    let dir = tempfile::tempdir().expect("a directory");
    let site = with(Unknown::Discover("lab".into()));
    let lab = Lab::start_with(dir.path(), "2026-11-23T10:30:00", site.clone()).await;
    lab.wait("a start", |s| !s.nodes.is_empty()).await;
    assert!(matches!(lab.fleet.directory().boot(NEW), BootChoice::Image { name, .. } if name == "lab"));
    assert!(matches!(lab.answer(NEW), Err(NoAnswer::Unknown(_))));
    let guest = MacAddr::for_guest("primes");
    assert_eq!(lab.fleet.directory().boot(guest), BootChoice::Ignore, "a guest is no stranger");
    assert!(matches!(lab.answer(guest), Err(NoAnswer::Refused(_))));

    told(&lab);
    let status = lab.wait("the stranger", |s| !s.strangers.is_empty()).await;
    let stranger = &status.strangers[0];
    assert_eq!((stranger.mac, stranger.address, stranger.hardware.cpus), (NEW, Some(FROM), 8));
    let page = lab.http.get(lab.url("/")).send().await.expect("answered").text().await.expect("text");
    assert!(page.contains("02:00:00:00:00:77") && page.contains("Desk 7&lt;script&gt;"), "{page}");

    for (name, body, wanted) in [
        ("ws1", json!({"mac": NEW, "room": "room-a"}), "the name \"ws1\" is taken already"),
        ("ws3", json!({"mac": NEW, "room": "attic"}), "there is no room \"attic\""),
        ("ws3", json!({"mac": NEW, "room": "room-a", "address": "127.77.0.150"}), "inside the pool"),
    ] {
        let (status, answer) = lab.post(&format!("/v1/nodes/{name}/adopt"), body).await;
        let problem = answer["problem"].as_str().unwrap_or_default();
        assert!(status == 400 && problem.contains(wanted), "{status} {answer}");
    }
    let (status, answer) = lab.post("/v1/nodes/ws3/adopt", json!({"mac": NEW, "room": "room-b"})).await;
    assert!(status == 200 && answer["done"].as_str().is_some_and(|d| d.contains("[[machine]]")), "{answer}");
    let adopted = lab.wait_node("ws3", "to be adopted", |n| n.adopted).await;
    assert!(adopted.strangers.is_empty(), "it is known");
    let answer = lab.answer(NEW).expect("an answer");
    assert_eq!((answer.node.as_str(), answer.room.as_str()), ("ws3", "room-b"));
    let address = lab.fleet.directory().machine(NEW).and_then(|m| m.address);
    lab.stop().await;

    // The server is started anew: it remembers.
    let lab = Lab::start_with(dir.path(), "2026-11-23T10:30:00", site.clone()).await;
    lab.wait_node("ws3", "to be there again", |n| n.adopted && Some(n.address) == address).await;
    // The file's word counts more.
    let mut named = site.clone();
    let mut machine = named.machines[0].clone();
    (machine.name, machine.mac, machine.address) = ("desk".into(), NEW, Ipv4Addr::new(127, 77, 0, 44));
    named.machines.push(machine);
    lab.fleet.reload(named).await.expect("taken over");
    lab.wait_node("desk", "to have the file's name", |n| !n.adopted).await;
    lab.fleet.reload(site.clone()).await.expect("taken over");
    lab.wait("the end of it", |s| s.nodes.iter().all(|n| n.mac != NEW)).await;
    let (status, _) = lab.post("/v1/nodes/ws4/adopt", json!({"mac": NEW, "room": "room-b"})).await;
    assert_eq!(status, 200);
    let (status, answer) = lab.post("/v1/nodes/ws1/forget", json!({})).await;
    assert_eq!(status, 409, "{answer}");
    assert_eq!(lab.post("/v1/nodes/ws4/forget", json!({})).await.0, 200);
    assert_eq!(lab.post("/v1/nodes/ws4/forget", json!({})).await.0, 404);
    assert!(matches!(lab.answer(NEW), Err(NoAnswer::Unknown(_))));
    lab.stop().await;
    let lab = Lab::start_with(dir.path(), "2026-11-23T10:30:00", site).await;
    let status = lab.wait("a start", |s| !s.nodes.is_empty()).await;
    assert!(status.nodes.iter().all(|n| n.mac != NEW), "forgotten is forgotten");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_boot_a_default_image_without_a_session() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start_with(dir.path(), "2026-11-23T10:30:00", with(Unknown::Boot("lab".into()))).await;
    let answer = lab.answer(NEW).expect("an answer");
    assert_eq!((answer.node.as_str(), answer.room.as_str(), answer.attempt), ("pc-020000000077", "", 0));
    assert_eq!(lab.channel(&answer.token).await.err(), Some(401), "no machine of the site");
    lab.stop().await;
    let missing =
        Lab::start_with(dir.path(), "2026-11-23T10:30:00", with(Unknown::Boot("rescue".into()))).await;
    assert!(matches!(missing.fleet.directory().boot(NEW), BootChoice::Refuse(why) if why.contains("rescue")));
    missing.stop().await;
}
