//! What must not be possible: every refusal of the API, and what broken uploads leave behind.

use crate::support::{Lab, guest};
use labshift_model::{
    api::{GuestPhase, NodeState},
    guest::{GuestState, Role},
    node::{FromNode, Mode},
    paths,
};
use serde_json::json;
use tokio::io::AsyncWriteExt;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_told_or_done_without_the_right_token() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), "2026-11-23T23:00:00").await;
    let node = lab.boot("ws1").await;
    let gets = [
        "/v1/status",
        "/v1/events",
        "/v1/nodes/ws1/explain",
        "/v1/nodes/ws1/boots",
        "/v1/nodes/ws1/log",
        paths::NODE_CHANNEL,
    ];
    let posts = ["wake", "mode", "reboot", "fence"].map(|verb| format!("/v1/nodes/ws1/{verb}"));
    for path in gets {
        for token in [None, Some("wrong"), Some("")] {
            let mut request = lab.http.get(lab.url(path));
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            assert_eq!(request.send().await.expect("answered").status(), 401, "{path} {token:?}");
        }
    }
    for path in posts.iter().map(String::as_str).chain(["/v1/lab/clock"]) {
        // A node's token is not an admin's.
        let request = lab.http.post(lab.url(path)).bearer_auth(&node.answer.token).json(&json!({}));
        assert_eq!(request.send().await.expect("answered").status(), 401, "{path}");
    }
    // An admin's token is not a node's.
    assert_eq!(lab.channel(&lab.admin).await.err(), Some(401));
    assert_eq!(lab.channel("wrong").await.err(), Some(401));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_make_no_sense_get_a_sentence() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), "2026-11-23T23:00:00").await;
    lab.wait("a start", |s| !s.nodes.is_empty()).await;
    let cases = [
        ("/v1/nodes/ws9/wake", json!({}), 404, "there is no machine \"ws9\" in the site file"),
        ("/v1/nodes/ws1/mode", json!({"mode": "dance"}), 400, "the request's JSON is not understood"),
        (
            "/v1/nodes/ws1/mode",
            json!({"mode": "off", "until": "2026-11-23T20:00:00Z"}),
            400,
            "\"until\" is not after",
        ),
        ("/v1/nodes/ws1/reboot", json!({}), 409, "ws1 is off, it can't be asked to reboot"),
        ("/v1/lab/clock", json!({"now": "2026-11-23T22:00:00"}), 409, "the clock only goes forward"),
        ("/v1/lab/clock", json!({"now": "tomorrow"}), 400, "\"tomorrow\" is not a time"),
    ];
    for (path, body, status, sentence) in cases {
        let (code, answer) = lab.post(path, body).await;
        let problem = answer["problem"].as_str().unwrap_or_default();
        assert!(code == status && problem.contains(sentence), "{path}: {code} {answer}");
    }
    let large = lab.http.post(lab.url("/v1/lab/clock")).bearer_auth(&lab.admin).body("x".repeat(100_000));
    assert_eq!(large.send().await.expect("answered").status(), 413);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_steers_a_node_and_takes_it_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), "2026-11-23T23:00:00").await;
    let (status, body) = lab.post("/v1/nodes/ws1/wake", json!({"cause": "to look at its fan"})).await;
    assert_eq!(status, 200, "{body}");
    lab.wait_node("ws1", "to be woken", |n| n.state == NodeState::Waking).await;
    let mut ws1 = lab.boot("ws1").await;
    let desired = ws1.follow(Mode::Maintenance).await;
    assert_eq!(desired.current.cause, "woken by an admin: to look at its fan");
    lab.wait_node("ws1", "to be in maintenance", |n| n.state == NodeState::Maintenance).await;
    let (status, _) = lab.post("/v1/nodes/ws1/mode", json!({"mode": "desktop", "cause": "exam"})).await;
    assert_eq!(status, 200);
    assert_eq!(ws1.follow(Mode::Desktop).await.current.cause, "an admin's override: exam");
    lab.wait_node("ws1", "to show its desktop", |n| {
        n.state == NodeState::Desktop && n.override_mode.is_some()
    })
    .await;
    lab.post("/v1/nodes/ws1/mode", json!({"mode": null})).await;
    ws1.follow(Mode::Maintenance).await;
    let (status, body) = lab.post("/v1/nodes/ws1/fence", json!({})).await;
    assert_eq!(status, 409, "a connected node has power: {body}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_owner_stores_and_only_whole_files_are_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), "2026-11-23T10:30:00").await;
    let mut ws1 = lab.boot("ws1").await;
    let mut ws2 = lab.boot("ws2").await;
    ws1.follow(Mode::Compute).await;
    ws2.follow(Mode::Compute).await;
    let status = lab.wait("a place", |s| s.guests[0].node.is_some()).await;
    assert_eq!(status.guests[0].node.as_deref(), Some("ws1"));

    assert_eq!(ws2.put(&lab, "primes", 1, "memory", "x").await, Err(403), "not the owner");
    assert_eq!(ws1.put(&lab, "other", 1, "memory", "x").await, Err(403), "no such guest");
    assert_eq!(ws1.put(&lab, "primes", 1, "screen", "x").await, Err(404), "no such part");
    assert_eq!(ws1.put(&lab, "..%2F..%2Fetc", 1, "memory", "x").await, Err(403), "no way out");
    let url = lab.url("/v1/saved/primes/1/memory");
    assert_eq!(lab.http.put(&url).body("x").send().await.expect("answered").status(), 401);

    // A connection that breaks half-way leaves nothing.
    let revision = lab.state.join("saved/primes/1");
    {
        let mut raw = tokio::net::TcpStream::connect(lab.address).await.expect("connected");
        let head = format!(
            "PUT /v1/saved/primes/1/memory HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 1000\r\n\r\nhalf",
            ws1.answer.token
        );
        raw.write_all(head.as_bytes()).await.expect("sent");
        let begun = async {
            while std::fs::read_dir(&revision).map_or(0, |d| d.count()) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(crate::support::GUARD, begun).await.expect("the upload begins");
    }
    let gone = async {
        while std::fs::read_dir(&revision).map_or(0, |d| d.count()) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::support::GUARD, gone).await.expect("the half is removed");

    // A node that says it saved what the store does not hold is not believed.
    let entry = labshift_model::manifest::FileEntry { size: 4, sha256: "00".repeat(32) };
    let claim =
        labshift_model::guest::SavedState { revision: 1, memory: entry, disk: None, node: "ws1".into() };
    ws1.reach(vec![guest("primes", Role::Batch, GuestState::Saved { saved: claim })]).await;
    let status = lab.wait("the claim", |s| s.guests[0].phase == GuestPhase::Saving).await;
    assert_eq!(status.guests[0].saved, None);
    assert!(status.guests[0].cause.contains("the store does not hold it yet"));

    // What is kept is not overwritten.
    ws1.reach(vec![guest("primes", Role::Batch, GuestState::Running)]).await;
    ws1.save(&lab, "primes", 1, "whole").await;
    lab.wait("the save", |s| s.guests[0].saved.is_some()).await;
    assert_eq!(ws1.put(&lab, "primes", 1, "memory", "other").await, Err(409));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_talks_nonsense_loses_its_channel() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), "2026-11-23T10:30:00").await;
    let mac = crate::support::example().machines[0].mac;
    let nonsense: Vec<Vec<Message>> = vec![
        vec![Message::text("{}")],
        vec![Message::text("{\"message\":\"status\"}")],
        vec![Message::binary(vec![0_u8; 10])],
        vec![Message::text("x".repeat(2 << 20))],
    ];
    for frames in nonsense {
        let answer = lab.answer(mac).expect("an answer");
        let mut socket = lab.channel(&answer.token).await.expect("a channel");
        for frame in frames {
            let _ = socket.send(frame).await;
        }
        let closed = async {
            while let Some(Ok(frame)) = socket.next().await {
                if matches!(frame, Message::Close(_)) {
                    break;
                }
            }
        };
        tokio::time::timeout(crate::support::GUARD, closed).await.expect("the server closes the channel");
    }
    // A hello of another boot than the token's.
    let answer = lab.answer(mac).expect("an answer");
    let mut socket = lab.channel(&answer.token).await.expect("a channel");
    let facts = labshift_model::node::Facts { cpus: 1, memory_mib: 1, kvm: true, cpu_model: String::new() };
    let hello =
        FromNode::Hello { attempt: answer.attempt + 1, version: String::new(), facts, stages: vec![] };
    socket.send(Message::text(serde_json::to_string(&hello).expect("JSON"))).await.expect("sent");
    let frame = tokio::time::timeout(crate::support::GUARD, socket.next()).await.expect("an end");
    assert!(matches!(frame, Some(Ok(Message::Close(Some(_))))), "{frame:?}");
    // The server goes on.
    let mut ws1 = lab.boot("ws1").await;
    ws1.follow(Mode::Compute).await;
    lab.wait_node("ws1", "to compute", |n| n.state == NodeState::Compute).await;
    lab.stop().await;
}
