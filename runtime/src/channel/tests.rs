//! The channel against a real WebSocket server in the test.

use labshift_model::{
    boot::Stage,
    node::{Facts, Mode, ModeFrom, NodeDesired},
};
use tokio::net::TcpListener;
use tokio_tungstenite::accept_hdr_async;

use super::*;

fn desired(revision: u64) -> ToNode {
    let now = jiff::Timestamp::UNIX_EPOCH;
    ToNode::Desired(Box::new(NodeDesired {
        revision,
        now,
        current: ModeFrom { from: now, mode: Mode::Compute, cause: "test".into() },
        upcoming: vec![],
        grace_seconds: 60,
        desktop: None,
        batch: vec![],
        rcuda: false,
    }))
}

fn status(revision: u64) -> NodeStatus {
    NodeStatus {
        revision,
        mode: None,
        transition: None,
        completed: vec![],
        guests: vec![],
        rcuda: None,
        idle_seconds: None,
        trouble: None,
    }
}

fn stage(stage: Stage) -> StageEvent {
    StageEvent { stage, at_ms: 1, failure: None, detail: String::new() }
}

fn hello(stages: Vec<StageEvent>) -> FromNode {
    let facts = Facts { cpus: 1, memory_mib: 1, kvm: true, cpu_model: "test".into() };
    FromNode::Hello { attempt: 7, version: "1".into(), facts, stages }
}

struct Bench {
    listener: TcpListener,
    outgoing: watch::Sender<Outgoing>,
    incoming: mpsc::Receiver<Incoming>,
    task: tokio::task::JoinHandle<()>,
}

type Accepted = WebSocketStream<TcpStream>;

impl Bench {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let (outgoing, receiver) = watch::channel(Outgoing::default());
        let (sender, incoming) = mpsc::channel(16);
        let channel = Channel { server, token: "s3cret".into(), outgoing: receiver, incoming: sender };
        Bench { listener, outgoing, incoming, task: tokio::spawn(channel.run(hello)) }
    }

    async fn accept(&self) -> Accepted {
        let (stream, _) = self.listener.accept().await.unwrap();
        #[allow(clippy::result_large_err)]
        let check = |request: &tungstenite::handshake::server::Request, response| {
            assert_eq!(request.uri().path(), paths::NODE_CHANNEL);
            assert_eq!(request.headers()["authorization"], "Bearer s3cret");
            Ok(response)
        };
        accept_hdr_async(stream, check).await.unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn next(socket: &mut Accepted) -> FromNode {
    loop {
        if let Message::Text(text) = socket.next().await.unwrap().unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

#[tokio::test]
async fn says_hello_then_news_and_comes_back_after_a_break() {
    let mut bench = Bench::new().await;
    bench.outgoing.send_modify(|o| o.stages.push(stage(Stage::Ready)));
    let mut socket = bench.accept().await;
    assert_eq!(next(&mut socket).await, hello(vec![stage(Stage::Ready)]));
    assert_eq!(bench.incoming.recv().await, Some(Incoming::Open));

    bench.outgoing.send_modify(|o| {
        o.status = Some(status(1));
        o.stages.push(stage(Stage::GuestVisible));
    });
    assert_eq!(next(&mut socket).await, FromNode::Stage(stage(Stage::GuestVisible)));
    assert_eq!(next(&mut socket).await, FromNode::Status(status(1)));
    socket.send(Message::text(serde_json::to_string(&desired(2)).unwrap())).await.unwrap();
    assert_eq!(bench.incoming.recv().await, Some(Incoming::Message(desired(2))));

    drop(socket);
    assert!(matches!(bench.incoming.recv().await, Some(Incoming::Closed(_))));
    let mut socket = bench.accept().await;
    assert_eq!(next(&mut socket).await, hello(vec![stage(Stage::Ready), stage(Stage::GuestVisible)]));
    assert_eq!(next(&mut socket).await, FromNode::Status(status(1)), "the last status is told again");
}

#[tokio::test]
async fn rubbish_is_dropped_and_too_much_ends_the_connection() {
    let mut bench = Bench::new().await;
    let mut socket = bench.accept().await;
    assert_eq!(bench.incoming.recv().await, Some(Incoming::Open));
    for rubbish in ["", "{}", "[", "{\"message\":\"format-disk\"}", "\u{0}"] {
        socket.send(Message::text(rubbish)).await.unwrap();
    }
    socket.send(Message::binary(vec![0xff; 9])).await.unwrap();
    socket.send(Message::text(serde_json::to_string(&desired(3)).unwrap())).await.unwrap();
    assert_eq!(bench.incoming.recv().await, Some(Incoming::Message(desired(3))));

    // The write may fail half-way: the node hangs up on it.
    let _ = socket.send(Message::text("x".repeat(LARGEST_MESSAGE + 1))).await;
    let Some(Incoming::Closed(reason)) = bench.incoming.recv().await else { panic!("still open") };
    assert!(reason.to_lowercase().contains("long") || reason.contains("size"), "{reason}");
}

#[test]
fn mutated_messages_never_panic_and_stay_messages_or_errors() {
    let seed = serde_json::to_string(&desired(9)).unwrap().into_bytes();
    let mut state = 0x9e37_79b9_u32;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as usize % below
    };
    let mut understood = 0;
    for _ in 0..20_000 {
        let mut bytes = seed.clone();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, b"{}[],:\"0\\"[random(9)]),
            }
        }
        understood += usize::from(parse(&String::from_utf8_lossy(&bytes)).is_ok());
    }
    assert!(understood < 20_000);
}

#[test]
fn the_wait_doubles_has_a_limit_and_a_random_part() {
    let mut backoff = Backoff::default();
    let waits: Vec<_> = (0..9).map(|_| backoff.next(1.0).as_secs_f64()).collect();
    assert_eq!(waits, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
    assert_eq!(backoff.next(0.0).as_secs_f64(), 15.0);
    backoff.reset();
    assert_eq!(backoff.next(0.0).as_secs_f64(), 0.25);
}

#[test]
fn silence_is_asked_about_and_then_believed() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut alive = Liveness::new(start);
    assert_eq!(alive.next_look(), at(15));
    assert_eq!(alive.look(at(14)), Pulse::Fine);
    assert_eq!(alive.look(at(15)), Pulse::Ask);
    assert_eq!(alive.look(at(16)), Pulse::Fine);
    alive.heard(at(17));
    assert_eq!(alive.look(at(31)), Pulse::Fine);
    assert_eq!(alive.look(at(32)), Pulse::Ask);
    assert_eq!(alive.look(at(47)), Pulse::Ask);
    assert_eq!(alive.look(at(77)), Pulse::Dead);
}
