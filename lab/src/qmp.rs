//! QEMU's machine protocol: one JSON object per line; answers and events come on one stream.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use serde_json::{Value, json};

/// QEMU answers at once; a minute means that it hangs.
const GUARD: Duration = Duration::from_secs(60);

/// A connection to one QEMU.
pub struct Qmp {
    stream: Mutex<(UnixStream, Receiver<Value>)>,
}

/// What QEMU said is not what was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection.
    #[error("talking to QEMU")]
    Io(#[from] io::Error),
    /// QEMU refused.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// QEMU ended or hangs.
    #[error("QEMU gave no answer to {0}")]
    Silent(String),
}

impl Qmp {
    /// Takes a fresh connection over; `events` hears every event until the connection ends.
    pub fn new(stream: UnixStream, events: impl Fn(&str, &Value) + Send + 'static) -> Result<Self, QmpError> {
        let (answers, receive) = channel();
        let reader = BufReader::new(stream.try_clone()?);
        std::thread::spawn(move || read(reader, &answers, events));
        let qmp = Qmp { stream: Mutex::new((stream, receive)) };
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command.
    pub fn call(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let mut guard = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let (stream, answers) = &mut *guard;
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(stream, "{line}")?;
        let mut answer = answers.recv_timeout(GUARD).map_err(|_| QmpError::Silent(command.to_owned()))?;
        if let Some(reason) = answer["error"]["desc"].as_str() {
            return Err(QmpError::Refused { command: command.to_owned(), reason: reason.to_owned() });
        }
        Ok(answer["return"].take())
    }

    /// Runs one command of the human monitor.
    pub fn monitor(&self, line: &str) -> Result<String, QmpError> {
        let text = self.call("human-monitor-command", json!({ "command-line": line }))?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }
}

fn read(reader: impl BufRead, answers: &Sender<Value>, events: impl Fn(&str, &Value)) {
    for line in reader.lines().map_while(Result::ok) {
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        if let Some(event) = message["event"].as_str() {
            events(event, &message["data"]);
        } else if (message.get("return").is_some() || message.get("error").is_some())
            && answers.send(message).is_err()
        {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_events_share_the_stream() {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let qemu = std::thread::spawn(move || {
            let mut out = theirs.try_clone().expect("clone");
            let mut lines = BufReader::new(theirs).lines();
            writeln!(out, "{}", json!({"QMP": {}})).expect("greeting");
            assert!(lines.next().expect("line").expect("text").contains("qmp_capabilities"));
            writeln!(out, "{}\nnot json\n{}", json!({"event": "RESET", "data": {}}), json!({"return": {}}))
                .expect("answer");
            assert!(lines.next().expect("line").expect("text").contains("query-status"));
            writeln!(out, "{}", json!({"error": {"desc": "no"}})).expect("answer");
        });
        let (send, events) = channel();
        let qmp = Qmp::new(ours, move |name, _| drop(send.send(name.to_owned()))).expect("connecting");
        assert!(matches!(qmp.call("query-status", json!({})), Err(QmpError::Refused { .. })));
        assert_eq!(events.recv().expect("event"), "RESET");
        qemu.join().expect("the other end");
    }
}
