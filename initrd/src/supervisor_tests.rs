use std::{fs, os::unix::fs::PermissionsExt};

use labshift_model::boot::BootReport;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::*;
use crate::control;

/// A directory of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("labshift-sup-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn shell(name: &str, script: &str, after: &[&str], restart: Restart, ready: Option<&str>) -> Service {
    Service {
        name: name.into(),
        exec: vec!["/bin/sh".into(), "-c".into(), script.into()],
        after: after.iter().map(|a| (*a).into()).collect(),
        restart,
        environment: vec!["WORD=hello".into()],
        user: None,
        ready: ready.map(Into::into),
        tty: None,
        limits: Default::default(),
    }
}

fn surroundings(scratch: &Scratch, arm: fn(&Path, &str) -> anyhow::Result<Vec<String>>) -> Surroundings {
    Surroundings {
        cgroups: Cgroups::at(&scratch.0),
        is_pid_1: false,
        show_output: false,
        sysroot: scratch.0.clone(),
        wake: None,
        who: (None, None),
        reporter: None,
        next: None,
        arm,
    }
}

async fn ask(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.write_all(b"\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}

async fn until(path: &Path, what: impl Fn(&str) -> bool) -> String {
    let hang_guard = Instant::now();
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if what(&text) {
            return text;
        }
        assert!(hang_guard.elapsed() < Duration::from_secs(120), "still {text:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn services_start_in_order_restart_answer_and_stop_in_reverse() {
    let scratch = Scratch::new("life");
    let at = scratch.0.display().to_string();
    let log = scratch.0.join("log");
    let services = vec![
        shell(
            "late",
            &format!(
                "echo late >> {at}/log; trap 'echo late-end >> {at}/log; exit 0' TERM; while :; do sleep 0.05; done"
            ),
            &["early", "once"],
            Restart::Always,
            None,
        ),
        shell(
            "early",
            &format!(
                "[ ! -e {at}/sock ] || echo stale >> {at}/log; echo early $WORD >> {at}/log; trap 'echo early-end >> {at}/log; exit 0' TERM; touch {at}/sock; while :; do sleep 0.05; done"
            ),
            &[],
            Restart::Always,
            Some("/sock"),
        ),
        shell(
            "once",
            &format!("echo once >> {at}/log; echo spoken output"),
            &["early"],
            Restart::Never,
            None,
        ),
        shell("crash", &format!("echo crash >> {at}/log; exit 3"), &[], Restart::OnFailure, None),
    ];
    order::check(&services).unwrap();
    // Left by an earlier run: it must not make "early" ready.
    fs::write(scratch.0.join("sock"), "").unwrap();
    let socket = scratch.0.join("init.sock");
    let listener = control::listen(&socket).unwrap();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let (asking, requests) = mpsc::channel(4);
    tokio::spawn(control::serve(listener, asking));

    fn arm(_: &Path, interface: &str) -> anyhow::Result<Vec<String>> {
        if interface == "eth0" { Ok(vec!["eth0".into()]) } else { anyhow::bail!("{interface} can't wake") }
    }
    let mut supervisor = Supervisor::new(services, surroundings(&scratch, arm));
    let local = tokio::spawn(async move { supervisor.run(requests, || ()).await.unwrap() });

    let text = until(&log, |t| t.contains("late\n") && t.matches("crash").count() >= 2).await;
    assert!(!text.contains("stale"), "{text}");
    let at_line = |word: &str| text.lines().position(|l| l.starts_with(word)).unwrap();
    assert!(at_line("early hello") < at_line("once") && at_line("once") < at_line("late"), "{text}");

    let reply: InitReply = serde_json::from_str(&ask(&socket, r#"{"request":"services"}"#).await).unwrap();
    let InitReply::Services { services } = reply else { panic!("{reply:?}") };
    let of = |name: &str| services.iter().find(|s| s.name == name).unwrap();
    assert!(of("early").ready && of("late").ready && of("late").pid.is_some());
    assert!(of("crash").restarts >= 1 && of("crash").last_exit.as_deref() == Some("ended with exit code 3"));
    assert_eq!(of("once").last_exit.as_deref(), Some("ended with exit code 0"));

    assert!(ask(&socket, "{nonsense").await.contains("not readable"));
    assert!(ask(&socket, r#"{"request":"log","lines":500}"#).await.contains("once spoken output"));
    let refused = ask(&socket, r#"{"request":"power-off","interface":"wlan0"}"#).await;
    assert!(refused.contains("wlan0 can't wake"), "{refused}");
    assert!(!fs::read_to_string(&log).unwrap().contains("end"), "a refusal stops nothing");

    assert_eq!(
        ask(&socket, r#"{"request":"power-off","interface":"eth0"}"#).await.trim(),
        r#"{"reply":"ok"}"#
    );
    assert_eq!(local.await.unwrap(), End::PowerOff { wake: vec!["eth0".into()] });
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.find("late-end").unwrap() < text.find("early-end").unwrap(), "{text}");
}

#[tokio::test]
async fn the_button_ends_it_and_a_program_that_is_not_there_is_named() {
    let scratch = Scratch::new("button");
    let mut missing = shell("missing", "", &[], Restart::Always, None);
    missing.exec = vec!["/nowhere/program".into()];
    let mut supervisor = Supervisor::new(vec![missing], surroundings(&scratch, |_, _| Ok(vec![])));
    let (_asking, requests) = mpsc::channel(1);
    supervisor.events().send(Event::Button).unwrap();
    assert_eq!(supervisor.run(requests, || ()).await.unwrap(), End::PowerOff { wake: vec![] });
    assert!(supervisor.statuses()[0].last_exit.as_deref().unwrap().contains("/nowhere/program"));
    let (BootReport { log, .. }, _) = JOURNAL.report(MacAddr([2; 6]), None);
    assert!(log.contains("power button"));
}

#[tokio::test]
async fn a_service_that_ends_again_and_again_is_a_failure_that_is_told_once() {
    let scratch = Scratch::new("loop");
    let services = vec![shell("looping-service", "exit 4", &[], Restart::Always, None)];
    let mut supervisor = Supervisor::new(services, surroundings(&scratch, |_, _| Ok(vec![])));
    let (_asking, requests) = mpsc::channel(1);
    let events = supervisor.events();
    let running = tokio::spawn(async move { supervisor.run(requests, || ()).await.unwrap() });
    let told = || {
        let stages = JOURNAL.stages();
        let ours = stages
            .iter()
            .filter_map(|s| s.failure.clone())
            .filter(|f| f.sentence.contains("looping-service"));
        ours.collect::<Vec<_>>()
    };
    let hang_guard = Instant::now();
    while told().is_empty() {
        assert!(hang_guard.elapsed() < Duration::from_secs(120));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    events.send(Event::Button).unwrap();
    running.await.unwrap();
    let told = told();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].code, "SERVICES");
    assert!(
        told[0].sentence.contains("ended 5 times in a row") && told[0].sentence.contains("exit code 4"),
        "{told:?}"
    );
}
