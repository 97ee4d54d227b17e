//! A node's channel: a WebSocket that the node opens with the token of its boot.
//!
//! The first message must be a hello of the same boot as the token's. A channel without a word for a minute is closed;
//! pings make a living node answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::{
        State,
        ws::{CloseFrame, Message as Frame, WebSocket, WebSocketUpgrade, close_code},
    },
    response::Response,
};
use labshift_model::node::{FromNode, ToNode};
use tokio::{sync::mpsc, time::Instant};

use super::NodeIdentity;
use crate::{Shared, engine::Message};

/// Largest message of a node, in bytes.
const LIMIT: usize = 1 << 20;
/// A node that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// How often it is asked for a sign of life.
const PING: Duration = Duration::from_secs(15);
/// Messages that may wait for a slow node.
const QUEUE: usize = 64;

static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

pub(super) async fn channel(
    node: NodeIdentity,
    State(shared): State<Arc<Shared>>,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgrade
        .max_message_size(LIMIT)
        .max_frame_size(LIMIT)
        .on_upgrade(move |socket| async move { serve(socket, shared, node).await })
}

async fn serve(mut socket: WebSocket, shared: Arc<Shared>, node: NodeIdentity) {
    let hello = match tokio::time::timeout(SILENCE, socket.recv()).await {
        Ok(Some(Ok(Frame::Text(text)))) => read(&text),
        _ => Err("the first message must be a hello".into()),
    };
    let hello = match hello {
        Ok(hello @ FromNode::Hello { .. }) => hello,
        Ok(_) => return refuse(socket, "the first message must be a hello").await,
        Err(problem) => return refuse(socket, &problem).await,
    };
    if !matches!(&hello, FromNode::Hello { attempt, .. } if *attempt == node.attempt) {
        return refuse(socket, "the hello is of another boot than the token").await;
    }
    let connection = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let (to, mut outbox) = mpsc::channel::<ToNode>(QUEUE);
    let opened = Message::Opened { node: node.name.clone(), connection, hello, to };
    if shared.inbox.send(opened).await.is_err() {
        return;
    }
    let problem = converse(&mut socket, &shared, &node.name, connection, &mut outbox).await;
    let _ = shared.inbox.send(Message::Closed { node: node.name.clone(), connection }).await;
    if let Some(problem) = problem {
        tracing::warn!(node = node.name, problem, "channel closed");
        refuse(socket, &problem).await;
    }
}

/// Passes messages both ways until one side ends it; a sentence when the node did something wrong.
async fn converse(
    socket: &mut WebSocket,
    shared: &Shared,
    node: &str,
    connection: u64,
    outbox: &mut mpsc::Receiver<ToNode>,
) -> Option<String> {
    let mut ping = tokio::time::interval(PING);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            message = outbox.recv() => {
                // The engine lets go of a channel that a newer one has replaced.
                let message = message?;
                let Ok(text) = serde_json::to_string(&message) else { continue };
                let sent = tokio::time::timeout(SILENCE, socket.send(Frame::text(text))).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return None;
                }
            }
            frame = socket.recv() => {
                heard = Instant::now();
                match frame? {
                    Ok(Frame::Text(text)) => match read(&text) {
                        Ok(message) => {
                            let said = Message::Said { node: node.to_owned(), connection, message };
                            shared.inbox.send(said).await.ok()?;
                        }
                        Err(problem) => return Some(problem),
                    },
                    Ok(Frame::Binary(_)) => return Some("messages are JSON text".into()),
                    Ok(Frame::Ping(_) | Frame::Pong(_)) => {}
                    Ok(Frame::Close(_)) => return None,
                    Err(e) => return Some(e.to_string()),
                }
            }
            _ = ping.tick() => {
                if heard.elapsed() > SILENCE {
                    return Some(format!("nothing was heard for {} s", SILENCE.as_secs()));
                }
                socket.send(Frame::Ping(Default::default())).await.ok()?;
            }
        }
    }
}

fn read(text: &str) -> Result<FromNode, String> {
    serde_json::from_str(text).map_err(|e| format!("a message is not understood: {e}"))
}

async fn refuse(mut socket: WebSocket, problem: &str) {
    // A close frame holds 123 bytes of reason at most.
    let mut end = problem.len().min(120);
    while !problem.is_char_boundary(end) {
        end -= 1;
    }
    let frame = CloseFrame { code: close_code::POLICY, reason: problem[..end].to_owned().into() };
    let _ = tokio::time::timeout(Duration::from_secs(5), socket.send(Frame::Close(Some(frame)))).await;
}
