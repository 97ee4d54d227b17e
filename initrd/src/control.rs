//! The socket on which PID 1 takes requests: one JSON object per line, one reply line each. Root only.

use std::{
    io::{BufRead, Write},
    path::Path,
};

use anyhow::{Context, Result};
use labshift_model::context::{InitReply, InitRequest};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use crate::activation;

/// Longest request line, in bytes.
const LONGEST: u64 = 64 * 1024;

/// A request and the way back.
pub type Asked = (InitRequest, oneshot::Sender<InitReply>);

/// Opens the socket at `path`, mode 0600.
pub fn listen(path: &Path) -> Result<UnixListener> {
    let listener = activation::open(path)?;
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
}

/// Serves the socket for life.
pub async fn serve(listener: UnixListener, requests: mpsc::Sender<Asked>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(converse(stream, requests.clone()))),
            // Out of descriptors, most likely: others will close some.
            Err(_) => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
        }
    }
}

async fn converse(stream: UnixStream, requests: mpsc::Sender<Asked>) {
    let (read, mut write) = stream.into_split();
    let mut reader = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(LONGEST).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let reply = match serde_json::from_slice::<InitRequest>(&line) {
            Ok(request) => ask(&requests, request).await,
            Err(why) => InitReply::Failed { reason: format!("the request is not readable: {why}") },
        };
        let mut bytes = serde_json::to_vec(&reply).unwrap_or_default();
        bytes.push(b'\n');
        if write.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Asks the init that runs, from another process; returns its reply line.
pub fn ask_init(socket: &Path, request: &str) -> Result<String> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket)
        .with_context(|| format!("asking on {}", socket.display()))?;
    stream.write_all(format!("{request}\n").as_bytes()).context("sending the request")?;
    let mut reply = String::new();
    std::io::BufReader::new(stream).read_line(&mut reply).context("reading the reply")?;
    Ok(reply.trim_end().to_owned())
}

async fn ask(requests: &mpsc::Sender<Asked>, request: InitRequest) -> InitReply {
    let gone = || InitReply::Failed { reason: "init is going down".to_owned() };
    let (reply, answer) = oneshot::channel();
    match requests.send((request, reply)).await {
        Ok(()) => answer.await.unwrap_or_else(|_| gone()),
        Err(_) => gone(),
    }
}
