//! The dashboard: open to look at, closed to everything else, and nothing that a guest says becomes part of the page.

use futures_util::StreamExt;
use labshift_model::{
    boot::{Stage, StageEvent},
    guest::{GuestState, Role},
    node::{FromNode, Mode, Transition},
};
use serde_json::json;

use crate::support::{GUARD, Lab, guest};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shows_the_fleet_and_lets_nothing_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let lab = Lab::start(dir.path(), "2026-11-23T10:30:00").await;
    let mut ws1 = lab.boot("ws1").await;
    let stage = |stage, at_ms| StageEvent { stage, at_ms, failure: None, detail: "a detail".into() };
    ws1.say(&FromNode::Stage(stage(Stage::RootMounted, 4200))).await;
    let desired = ws1.desired("its guest", |d| d.current.mode == Mode::Compute && !d.batch.is_empty()).await;
    ws1.status.trouble = Some("<img src=x onerror=alert(1)>".into());
    ws1.status.transition = Some(Transition {
        from: None,
        to: Mode::Compute,
        phase: "starting primes".into(),
        done: 2,
        total: 5,
        since: desired.now,
        elapsed_ms: 2500,
    });
    ws1.reach(vec![guest("primes", Role::Batch, GuestState::Running)]).await;
    let report = json!({"nonce": "<script>alert(2)</script>", "primes": 1234567});
    let request = lab.http.post(lab.url("/v1/guests/primes/report")).bearer_auth(&desired.batch[0].token);
    assert_eq!(request.json(&report).send().await.expect("answered").status(), 204);
    lab.wait("the report and the status", |s| s.guests[0].reports == 1 && s.nodes[0].transition.is_some())
        .await;

    let page = lab.http.get(lab.url("/")).send().await.expect("answered");
    let policy = page.headers()["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let text = page.text().await.expect("text");
    for shown in
        ["ws1", "room-a", "starting primes", "1,234,567", "&lt;script&gt;alert(2)", "&lt;img src=x", "2/5"]
    {
        assert!(text.contains(shown), "{shown} is missing in {text}");
    }
    assert!(
        !text.contains("<script>alert") && !text.contains("<img src=x") && !text.contains("style=\""),
        "{text}"
    );
    assert!(!text.contains(&desired.batch[0].token) && !text.contains(&lab.admin), "no token is shown");
    for (path, kind) in [
        ("/dashboard/style.css", "text/css"),
        ("/dashboard/live.js", "text/javascript"),
        ("/dashboard/icon.svg", "image/svg+xml"),
        ("/dashboard/now", "text/html"),
    ] {
        let response = lab.http.get(lab.url(path)).send().await.expect("answered");
        assert!(response.headers()["content-type"].to_str().expect("text").starts_with(kind), "{path}");
    }
    assert_eq!(lab.http.post(lab.url("/")).send().await.expect("answered").status(), 405);

    // A change is told at once.
    let mut changes =
        lab.http.get(lab.url("/dashboard/changes")).send().await.expect("answered").bytes_stream();
    let next = async {
        loop {
            let text = changes.next().await.expect("open").expect("readable");
            if text.starts_with(b"data: ") {
                return text;
            }
        }
    };
    tokio::pin!(next);
    tokio::time::timeout(GUARD, &mut next).await.expect("the first word");
    lab.clock("2026-11-23T14:00:00").await;
    let mut again = String::new();
    while !again.contains("data: ") {
        let chunk = tokio::time::timeout(GUARD, changes.next()).await.expect("a word").expect("open");
        again += &String::from_utf8_lossy(&chunk.expect("readable"));
    }
    lab.stop().await;
}
