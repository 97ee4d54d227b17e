use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net},
};

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
        listen: None,
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

/// The failures of a service, once there is one.
async fn told_of_a_loop(service: &str) -> Vec<labshift_model::boot::Failure> {
    let hang_guard = Instant::now();
    loop {
        let failures = JOURNAL.stages().into_iter().filter_map(|s| s.failure);
        let told: Vec<_> = failures.filter(|f| f.sentence.contains(service)).collect();
        if !told.is_empty() {
            return told;
        }
        assert!(hang_guard.elapsed() < Duration::from_secs(900));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_service_that_ends_again_and_again_is_a_failure_that_is_told_once() {
    let scratch = Scratch::new("loop");
    let services = vec![shell("looping-service", "exit 4", &[], Restart::Always, None)];
    let mut supervisor = Supervisor::new(services, surroundings(&scratch, |_, _| Ok(vec![])));
    let (_asking, requests) = mpsc::channel(1);
    let events = supervisor.events();
    let running = tokio::spawn(async move { supervisor.run(requests, || ()).await.unwrap() });
    told_of_a_loop("looping-service").await;
    events.send(Event::Button).unwrap();
    running.await.unwrap();
    let told = told_of_a_loop("looping-service").await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].code, "SERVICES");
    assert!(
        told[0].sentence.contains("ended 5 times in a row") && told[0].sentence.contains("exit code 4"),
        "{told:?}"
    );
}

const WHERE: &str = "LABSHIFT_TEST_ACTIVATED";

/// Not a test, but the program of the service in those below, when it runs as one: it takes one client from descriptor 3, tells it what it
/// was given, and ends in order. A file `fail` makes it fail before it takes anybody; it writes a line to `log` at each start.
#[test]
fn the_program_of_an_activated_service() {
    let Ok(directory) = std::env::var(WHERE) else { return };
    let directory = Path::new(&directory);
    let mut log = fs::File::options().create(true).append(true).open(directory.join("log")).unwrap();
    writeln!(log, "started").unwrap();
    if fs::remove_file(directory.join("fail")).is_ok() {
        std::process::exit(3);
    }
    let client = nix::sys::socket::accept(3).unwrap();
    let given = |name| std::env::var(name).unwrap_or_default();
    let told = format!(
        "{} {} {} {}",
        given("LISTEN_PID") == std::process::id().to_string(),
        given("LISTEN_FDS"),
        given("LISTEN_FDNAMES"),
        given("WORD")
    );
    nix::sys::socket::send(client, told.as_bytes(), nix::sys::socket::MsgFlags::empty()).unwrap();
    std::process::exit(0);
}

fn activated(name: &str, scratch: &Scratch) -> Service {
    let program = std::env::current_exe().unwrap().display().to_string();
    let test = "supervisor::tests::the_program_of_an_activated_service";
    Service {
        exec: vec![program, "--exact".into(), test.into(), "--nocapture".into()],
        environment: vec!["WORD=hello".into(), format!("{WHERE}={}", scratch.0.display())],
        listen: Some(format!("/run/deep/{name}.sock")),
        ..shell(name, "", &[], Restart::Always, None)
    }
}

/// Connects, and reads until the program has ended.
async fn converse(socket: PathBuf) -> String {
    let talk = move || {
        let mut client = net::UnixStream::connect(socket).unwrap();
        let mut told = String::new();
        client.read_to_string(&mut told).unwrap();
        told
    };
    tokio::task::spawn_blocking(talk).await.unwrap()
}

/// What the supervisor says of a service, once it says what is wanted.
async fn status(socket: &Path, name: &str, what: impl Fn(&ServiceStatus) -> bool) -> ServiceStatus {
    let hang_guard = Instant::now();
    loop {
        let reply: InitReply = serde_json::from_str(&ask(socket, r#"{"request":"services"}"#).await).unwrap();
        let InitReply::Services { services } = reply else { panic!("{reply:?}") };
        let service = services.into_iter().find(|s| s.name == name).unwrap();
        if what(&service) {
            return service;
        }
        assert!(hang_guard.elapsed() < Duration::from_secs(900), "still {service:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_service_that_ran_well_begins_a_new_row() {
    let scratch = Scratch::new("recovered");
    let services = vec![shell("recovered-service", "exit 4", &[], Restart::Always, None)];
    let mut supervisor = Supervisor::new(services, surroundings(&scratch, |_, _| Ok(vec![])));
    supervisor.states[0].in_a_row = LOOP - 1;
    supervisor.states[0].since = Instant::now() - RECOVERED;
    supervisor.fall(0, false);
    assert_eq!(supervisor.states[0].in_a_row, 1);
    assert!(
        JOURNAL
            .stages()
            .iter()
            .filter_map(|s| s.failure.as_ref())
            .all(|f| !f.sentence.contains("recovered-service"))
    );
}

#[tokio::test]
async fn a_connection_starts_a_service_that_listens_and_the_next_one_starts_it_again() {
    let scratch = Scratch::new("listen");
    let at = scratch.0.display().to_string();
    let (log, socket) = (scratch.0.join("log"), scratch.0.join("run/deep/called.sock"));
    // Left by an earlier owner.
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    fs::write(&socket, "").unwrap();
    let mut missing = activated("missing", &scratch);
    missing.exec = vec!["/nowhere/program".into()];
    let services = vec![
        activated("called", &scratch),
        missing,
        shell(
            "dependant",
            &format!("touch {at}/dependant; exec sleep 1000"),
            &["called"],
            Restart::Always,
            None,
        ),
    ];
    let (asking, requests) = mpsc::channel(4);
    let control = scratch.0.join("init.sock");
    tokio::spawn(control::serve(control::listen(&control).unwrap(), asking));
    let mut supervisor = Supervisor::new(services, surroundings(&scratch, |_, _| Ok(vec![])));
    let (all_up, up) = oneshot::channel();
    let events = supervisor.events();
    let running =
        tokio::spawn(async move { supervisor.run(requests, || all_up.send(()).unwrap()).await.unwrap() });

    // Up and listening, with nobody connected: nothing runs, and its dependant does.
    up.await.unwrap();
    let called = status(&control, "called", |_| true).await;
    assert!(called.ready && called.listening && called.pid.is_none(), "{called:?}");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    until(&scratch.0.join("dependant"), |_| scratch.0.join("dependant").exists()).await;
    assert!(!log.exists());

    // Each client gets a program of its own here: this one ends after it.
    for runs in 1..=3 {
        assert_eq!(converse(socket.clone()).await, "true 1 called.socket hello");
        let called = status(&control, "called", |s| s.listening).await;
        assert_eq!((called.restarts, called.last_exit.as_deref()), (0, Some("ended with exit code 0")));
        assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), runs);
    }

    // A failing end: the client that waits is taken by the next run.
    fs::write(scratch.0.join("fail"), "").unwrap();
    assert_eq!(converse(socket.clone()).await, "true 1 called.socket hello");
    let called = status(&control, "called", |s| s.listening).await;
    assert_eq!(called.restarts, 1);
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 5);

    // A program that can't be started says why, like any other, and tries again for whoever waits.
    let _waiting = net::UnixStream::connect(scratch.0.join("run/deep/missing.sock")).unwrap();
    let missing = status(&control, "missing", |s| s.restarts >= 2).await;
    let why = missing.last_exit.unwrap();
    assert!(why.contains("starting /nowhere/program") && why.contains("No such file"), "{why}");

    events.send(Event::Button).unwrap();
    running.await.unwrap();
}

#[tokio::test]
async fn a_program_that_leaves_its_clients_waiting_is_a_failure_whatever_its_exit_code() {
    let scratch = Scratch::new("leaves");
    let service = Service {
        listen: Some("/leaves.sock".into()),
        ..shell("leaves-clients", "exit 0", &[], Restart::OnFailure, None)
    };
    let mut supervisor = Supervisor::new(vec![service], surroundings(&scratch, |_, _| Ok(vec![])));
    let (_asking, requests) = mpsc::channel(1);
    let (all_up, up) = oneshot::channel();
    let events = supervisor.events();
    let running =
        tokio::spawn(async move { supervisor.run(requests, || all_up.send(()).unwrap()).await.unwrap() });
    up.await.unwrap();
    let _waiting = net::UnixStream::connect(scratch.0.join("leaves.sock")).unwrap();
    told_of_a_loop("leaves-clients").await;
    events.send(Event::Button).unwrap();
    running.await.unwrap();
}
