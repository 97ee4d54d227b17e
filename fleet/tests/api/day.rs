//! A day with two nodes over real HTTP: check-in, desktop, compute, save, resume elsewhere, power-off, server restart.

use crate::support::{Lab, guest};
use labshift_model::{
    api::{Event, EventKind, Explanation, GuestPhase, NodeState},
    guest::{GuestState, Role},
    node::{FromNode, Mode, Transition},
};
use serde_json::json;

fn phase(status: &labshift_model::api::FleetStatus, name: &str) -> Option<GuestPhase> {
    status.guests.iter().find(|g| g.name == name).map(|g| g.phase)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_wanders_with_the_hours() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), "2026-11-23T07:30:00").await;

    // Compute hours: both machines are woken.
    let woken =
        lab.wait_node("ws1", "to be woken", |n| n.state == NodeState::Waking && !n.wakes.is_empty()).await;
    assert!(woken.nodes[0].cause.starts_with("woken: outside the sessions and windows of schedule mornings"));
    let mut ws1 = lab.boot("ws1").await;
    ws1.follow(Mode::Compute).await;
    // The guest goes where compute hours last longest: ws2 is not up yet, ws1 is.
    let desired = match ws1.desired.clone() {
        Some(d) if !d.batch.is_empty() => d,
        _ => ws1.desired("its guest", |d| !d.batch.is_empty()).await,
    };
    assert_eq!(desired.batch[0].name, "primes");
    assert_eq!(desired.batch[0].restore, None);
    ws1.reach(vec![guest("primes", Role::Batch, GuestState::Running)]).await;
    lab.wait("primes to run", |s| phase(s, "primes") == Some(GuestPhase::Running)).await;

    // The guest tells of its work, with its own token.
    let token = desired.batch[0].token.clone();
    let report = |token: &str| {
        let request = lab.http.post(lab.url("/v1/guests/primes/report")).bearer_auth(token);
        request.json(&json!({"nonce": "a1", "limit": 1000, "primes": 168})).send()
    };
    assert_eq!(report(&token).await.expect("answered").status(), 204);
    assert_eq!(report("wrong").await.expect("answered").status(), 401);
    let status = lab.wait("its report", |s| s.guests[0].reports == 1).await;
    let told = status.guests[0].report.clone().expect("a report");
    assert_eq!((told.node.as_deref(), &told.body["primes"]), (Some("ws1"), &json!(168)));

    // The session comes: the desktop wins, the guest is saved.
    lab.clock("2026-11-23T08:00:00").await;
    let desired = ws1.desired("the desktop", |d| d.current.mode == Mode::Desktop).await;
    assert_eq!(desired.current.cause, "session \"Algorithms\" 08:00-10:00 of schedule mornings");
    assert_eq!(desired.upcoming[0].mode, Mode::Compute);
    ws1.status.transition = Some(Transition {
        from: Some(Mode::Compute),
        to: Mode::Desktop,
        phase: "saving primes".into(),
        done: 0,
        total: 3,
        since: desired.now,
        elapsed_ms: 10,
    });
    ws1.say(&FromNode::Status(ws1.status.clone())).await;
    lab.wait_node("ws1", "to be changing", |n| n.state == NodeState::Changing).await;
    ws1.status.transition = None;
    let saved = ws1.save(&lab, "primes", 1, "memory of primes").await;
    ws1.desired("its list without the guest", |d| d.batch.is_empty()).await;
    ws1.reach(vec![guest("desktop-ws1", Role::Desktop, GuestState::Running)]).await;
    let status = lab.wait("primes to be free", |s| s.guests[0].node.is_none()).await;
    assert_eq!(phase(&status, "primes"), Some(GuestPhase::Saved));
    assert_eq!(status.guests[0].saved.as_ref(), Some(&saved));
    assert_eq!(status.nodes[0].state, NodeState::Desktop);
    assert_eq!(ws1.get(&lab, "primes", 1, "memory").await, Err(403), "it is not its owner any more");

    // The other room computes: the guest goes on there, from its saved state.
    let mut ws2 = lab.boot("ws2").await;
    let desired = ws2.desired("its guest", |d| !d.batch.is_empty()).await;
    assert_eq!(desired.batch[0].restore.as_ref(), Some(&saved));
    assert_eq!(desired.batch[0].token, token, "a guest keeps its token for its whole life");
    assert_eq!(ws2.get(&lab, "primes", 1, "memory").await.as_deref(), Ok("memory of primes"));
    ws2.reach(vec![guest("primes", Role::Batch, GuestState::Running)]).await;
    lab.wait("primes to run", |s| phase(s, "primes") == Some(GuestPhase::Running)).await;

    // The server is stopped and started again: nodes come back, nothing is placed twice.
    let (answer1, answer2) = (ws1.answer.clone(), ws2.answer.clone());
    lab.stop().await;
    let lab = Lab::start(dir.path(), "2026-11-23T08:30:00").await;
    let status = lab.wait("the restart", |s| s.nodes.len() == 2).await;
    assert_eq!(status.nodes[1].state, NodeState::Lost);
    assert_eq!(status.guests[0].node.as_deref(), Some("ws2"));
    assert_eq!(status.guests[0].reports, 1);
    drop((ws1, ws2));
    for (name, answer) in [("ws1", answer1), ("ws2", answer2)] {
        let socket = lab.channel(&answer.token).await.expect("its token is still good");
        let status = labshift_model::node::NodeStatus {
            revision: 0,
            mode: None,
            transition: None,
            completed: vec![],
            guests: vec![],
            rcuda: None,
            idle_seconds: None,
            trouble: None,
        };
        let mut node = crate::support::Node { name: name.into(), answer, socket, desired: None, status };
        let facts =
            labshift_model::node::Facts { cpus: 2, memory_mib: 3072, kvm: true, cpu_model: "test".into() };
        let attempt = node.answer.attempt;
        node.say(&FromNode::Hello { attempt, version: "test".into(), facts, stages: vec![] }).await;
        let desired = node.desired("to be told again", |_| true).await;
        assert_eq!(desired.batch.len(), usize::from(name == "ws2"), "{name}");
        if name == "ws2" {
            node.reach(vec![guest("primes", Role::Batch, GuestState::Running)]).await;
            lab.wait("primes to be known", |s| phase(s, "primes") == Some(GuestPhase::Running)).await;
            // Night: saved, then off.
            lab.clock("2026-11-23T22:00:00").await;
            node.desired("the night", |d| d.current.mode == Mode::Off).await;
            node.save(&lab, "primes", 2, "more memory").await;
            lab.wait_node("ws2", "to go off", |n| n.state == NodeState::GoingOff).await;
            node.socket.close(None).await.expect("closed");
        }
    }
    let status = lab.wait_node("ws2", "to be off", |n| n.state == NodeState::Off).await;
    assert_eq!(status.guests[0].saved.as_ref().map(|s| s.revision), Some(2));
    assert_eq!(phase(&status, "primes"), Some(GuestPhase::Saved));

    // Every change has its cause.
    let explain: Explanation = lab
        .http
        .get(lab.url("/v1/nodes/ws2/explain"))
        .bearer_auth(&lab.admin)
        .send()
        .await
        .expect("answered")
        .json()
        .await
        .expect("an explanation");
    assert!(explain.summary.contains("ws2 is off"), "{}", explain.summary);
    assert!(explain.summary.contains("off window 22:00-07:00 of schedule afternoons"), "{}", explain.summary);
    assert!(explain.history.iter().any(|e| e.kind == EventKind::Wake));
    assert!(
        explain.history.iter().all(|e| e.kind == EventKind::Stage || !e.cause.is_empty()),
        "{:#?}",
        explain.history
    );
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_as_lines_and_none_is_missed() {
    use futures_util::StreamExt;
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), "2026-11-23T23:00:00").await;
    lab.wait("a start", |s| !s.nodes.is_empty()).await;
    for minute in 1..=5 {
        lab.clock(&format!("2026-11-23T23:0{minute}:00")).await;
    }
    let request = lab.http.get(lab.url("/v1/events?since=0")).bearer_auth(&lab.admin);
    let mut stream = request.send().await.expect("answered").bytes_stream();
    lab.clock("2026-11-24T07:00:00").await;
    let mut text = String::new();
    let read = async {
        while !text.contains("\"wake\"") {
            text += &String::from_utf8_lossy(&stream.next().await.expect("open").expect("readable"));
        }
    };
    tokio::time::timeout(crate::support::GUARD, read).await.expect("events");
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let events: Vec<Event> = whole.lines().map(|l| serde_json::from_str(l).expect("an event")).collect();
    assert!(events.iter().zip(1..).all(|(e, id)| e.id == id), "{events:#?}");
    assert_eq!(events.iter().filter(|e| e.kind == EventKind::Clock).count(), 6);
    lab.stop().await;
}
