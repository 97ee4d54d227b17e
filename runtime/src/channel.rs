//! The node's channel to the server: a WebSocket (RFC 6455) that the node opens and keeps open.
//!
//! ```text
//!            +--------- refused, broken, silent ---------+
//!            v                                           |
//!   waiting (back-off) --> connecting --> hello sent --> open: status and stages out, desired state in
//!            ^                 |
//!            +---- failed -----+
//! ```
//!
//! Level-triggered: what goes out is always the newest [`Outgoing`], so a message lost with a connection does no
//! harm. What comes in is bounded in size and refused when it is not a message of ours.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use labshift_model::{
    boot::StageEvent,
    node::{FromNode, NodeStatus, ToNode},
    paths,
};
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        http::header::{AUTHORIZATION, HeaderValue},
        protocol::WebSocketConfig,
    },
};

/// The largest message that a server may send.
pub const LARGEST_MESSAGE: usize = 1 << 20;
/// A ping goes out after so much silence.
const PING_AFTER: Duration = Duration::from_secs(15);
/// After so much silence the connection counts as dead.
const DEAD_AFTER: Duration = Duration::from_secs(60);
/// To connect, or to get a message out.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the server should know.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outgoing {
    /// Newest status; nothing is sent before the first.
    pub status: Option<NodeStatus>,
    /// All stages of this boot.
    pub stages: Vec<StageEvent>,
}

/// What the channel tells the engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// The hello was sent.
    Open,
    /// A message came.
    Message(ToNode),
    /// The connection is over, with the reason.
    Closed(String),
}

/// How to reach the server.
pub struct Channel {
    /// `http://ADDRESS:PORT`.
    pub server: String,
    /// Bearer token.
    pub token: String,
    /// What goes out.
    pub outgoing: watch::Receiver<Outgoing>,
    /// What came in.
    pub incoming: mpsc::Sender<Incoming>,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl Channel {
    /// Keeps the channel open; ends when the engine is gone. `hello` makes the first message of a connection
    /// from the stages so far.
    pub async fn run(mut self, hello: impl Fn(Vec<StageEvent>) -> FromNode) {
        let mut backoff = Backoff::default();
        loop {
            let reason = match timeout(PATIENCE, self.connect()).await {
                Err(_) => "the server does not answer".to_owned(),
                Ok(Err(error)) => said(error),
                Ok(Ok(socket)) => {
                    let reason = self.talk(socket, &hello, &mut backoff).await;
                    if self.incoming.send(Incoming::Closed(reason.clone())).await.is_err() {
                        return;
                    }
                    reason
                }
            };
            let wait = backoff.next(jitter());
            tracing::warn!(reason, wait_ms = wait.as_millis() as u64, "no channel to the server");
            tokio::select! {
                () = sleep(wait) => {}
                () = self.incoming.closed() => return,
            }
        }
    }

    async fn connect(&self) -> Result<Socket, tungstenite::Error> {
        let url = format!("{}{}", self.server.replacen("http", "ws", 1), paths::NODE_CHANNEL);
        let mut request = url.into_client_request()?;
        let bearer = HeaderValue::try_from(format!("Bearer {}", self.token))
            .map_err(|e| tungstenite::Error::HttpFormat(e.into()))?;
        request.headers_mut().insert(AUTHORIZATION, bearer);
        let mut config = WebSocketConfig::default();
        config.max_message_size = Some(LARGEST_MESSAGE);
        config.max_frame_size = Some(LARGEST_MESSAGE);
        Ok(connect_async_with_config(request, Some(config), true).await?.0)
    }

    /// Talks until something breaks; returns the reason.
    async fn talk(
        &mut self,
        mut socket: Socket,
        hello: &impl Fn(Vec<StageEvent>) -> FromNode,
        backoff: &mut Backoff,
    ) -> String {
        let mut told = self.outgoing.borrow_and_update().clone();
        if let Err(reason) = send(&mut socket, &hello(told.stages.clone())).await {
            return reason;
        }
        if self.incoming.send(Incoming::Open).await.is_err() {
            return "the daemon ends".into();
        }
        told.status = None;
        // The status that was there before the connection counts as news.
        self.outgoing.mark_changed();
        let mut alive = Liveness::new(Instant::now());
        loop {
            let next_look = alive.next_look();
            tokio::select! {
                changed = self.outgoing.changed() => {
                    if changed.is_err() {
                        return "the daemon ends".into();
                    }
                    let news = self.outgoing.borrow_and_update().clone();
                    for message in messages(&told, &news) {
                        if let Err(reason) = send(&mut socket, &message).await {
                            return reason;
                        }
                    }
                    told = news;
                }
                received = socket.next() => {
                    alive.heard(Instant::now());
                    match received {
                        None => return "the server closed the connection".into(),
                        Some(Err(error)) => return said(error),
                        Some(Ok(Message::Close(_))) => return "the server closed the connection".into(),
                        Some(Ok(Message::Text(text))) => match parse(&text) {
                            Ok(message) => {
                                backoff.reset();
                                if self.incoming.send(Incoming::Message(message)).await.is_err() {
                                    return "the daemon ends".into();
                                }
                            }
                            Err(reason) => tracing::warn!(reason, "a message from the server is not understood"),
                        },
                        Some(Ok(_)) => {}
                    }
                }
                () = sleep_until(next_look) => match alive.look(Instant::now()) {
                    Pulse::Fine => {}
                    Pulse::Ask => {
                        let ping = socket.send(Message::Ping(Default::default()));
                        if !matches!(timeout(PATIENCE, ping).await, Ok(Ok(()))) {
                            return "the connection takes no more data".into();
                        }
                    }
                    Pulse::Dead => return format!("the server said nothing for {} s", DEAD_AFTER.as_secs()),
                },
            }
        }
    }
}

/// A message from its text.
pub fn parse(text: &str) -> Result<ToNode, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

/// What has to be said, now that `news` is known and `told` was said.
fn messages(told: &Outgoing, news: &Outgoing) -> Vec<FromNode> {
    let later = news.stages.iter().filter(|s| !told.stages.contains(s)).cloned().map(FromNode::Stage);
    let status = news.status.clone().filter(|s| told.status.as_ref() != Some(s)).map(FromNode::Status);
    later.chain(status).collect()
}

async fn send(socket: &mut Socket, message: &FromNode) -> Result<(), String> {
    let text = serde_json::to_string(message).map_err(|e| e.to_string())?;
    match timeout(PATIENCE, socket.send(Message::text(text))).await {
        Ok(result) => result.map_err(said),
        Err(_) => Err("the connection takes no more data".into()),
    }
}

fn said(error: tungstenite::Error) -> String {
    match error {
        tungstenite::Error::Http(response) => format!("the server answers {}", response.status()),
        error => error.to_string(),
    }
}

/// Between 0 and 1, different on each node; quality does not matter.
fn jitter() -> f64 {
    f64::from(crate::clock::since_boot().subsec_nanos() % 1000) / 1000.0
}

/// How long to wait before the next attempt: doubles from half a second to half a minute; a random part keeps a
/// room of nodes from coming back all at once.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure; `jitter` is between 0 and 1.
    fn next(&mut self, jitter: f64) -> Duration {
        let longest = 0.5 * f64::from(1u32 << self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
        Duration::from_secs_f64(longest.min(30.0) * (0.5 + 0.5 * jitter.clamp(0.0, 1.0)))
    }

    /// The server is really there: it sent a message.
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// What silence means.
#[derive(Debug, PartialEq)]
enum Pulse {
    Fine,
    Ask,
    Dead,
}

/// Watches the silence on a connection.
struct Liveness {
    heard: Instant,
    asked: Option<Instant>,
}

impl Liveness {
    fn new(now: Instant) -> Self {
        Liveness { heard: now, asked: None }
    }

    fn heard(&mut self, now: Instant) {
        (self.heard, self.asked) = (now, None);
    }

    fn next_look(&self) -> Instant {
        let ask = self.asked.unwrap_or(self.heard) + PING_AFTER;
        ask.min(self.heard + DEAD_AFTER)
    }

    fn look(&mut self, now: Instant) -> Pulse {
        if now >= self.heard + DEAD_AFTER {
            Pulse::Dead
        } else if now >= self.asked.unwrap_or(self.heard) + PING_AFTER {
            self.asked = Some(now);
            Pulse::Ask
        } else {
            Pulse::Fine
        }
    }
}

#[cfg(test)]
mod tests;
