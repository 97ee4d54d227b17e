//! Asks PID 1: power off, reboot. One JSON line each way over its Unix socket.

use std::{io, path::Path, time::Duration};

use labshift_model::context::{InitReply, InitRequest};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

/// PID 1 stops services and arms Wake-on-LAN before it answers.
const PATIENCE: Duration = Duration::from_secs(90);
/// No answer is longer.
const LONGEST_REPLY: u64 = 4 << 20;

/// PID 1 refused, or can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The socket.
    #[error("asking init on {socket}")]
    Socket {
        /// Its path.
        socket: String,
        /// Why.
        source: io::Error,
    },
    /// Its answer.
    #[error("init refuses: {0}")]
    Refused(String),
}

/// Sends a request and waits for `Ok`.
pub async fn ask(socket: &Path, request: &InitRequest) -> Result<(), InitError> {
    let failed = |source| InitError::Socket { socket: socket.display().to_string(), source };
    let reply = timeout(PATIENCE, exchange(socket, request)).await;
    match reply.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)? {
        InitReply::Ok => Ok(()),
        InitReply::Failed { reason } => Err(InitError::Refused(reason)),
        other => Err(InitError::Refused(format!("an answer to another question: {other:?}"))),
    }
}

async fn exchange(socket: &Path, request: &InitRequest) -> io::Result<InitReply> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut reply = String::new();
    BufReader::new(stream.take(LONGEST_REPLY)).read_line(&mut reply).await?;
    Ok(serde_json::from_str(&reply)?)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    async fn answered(reply: &'static str) -> (Result<(), InitError>, String) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("init.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let init = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut asked = String::new();
            stream.read_line(&mut asked).await.unwrap();
            stream.write_all(reply.as_bytes()).await.unwrap();
            asked
        };
        let request = InitRequest::PowerOff { interface: "eth0".into() };
        tokio::join!(ask(&socket, &request), init)
    }

    #[tokio::test]
    async fn one_line_each_way() {
        let (result, asked) = answered("{\"reply\":\"ok\"}\n").await;
        assert!(result.is_ok());
        assert_eq!(asked, "{\"request\":\"power-off\",\"interface\":\"eth0\"}\n");
        let (result, _) = answered("{\"reply\":\"failed\",\"reason\":\"no such port\"}\n").await;
        assert_eq!(result.unwrap_err().to_string(), "init refuses: no such port");
        assert!(answered("rubbish\n").await.0.is_err());
        assert!(answered("").await.0.is_err());
    }
}
