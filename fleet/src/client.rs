//! The admin API from the other side: what the `labshift` command, the demo and the end-to-end tests speak to a
//! running server. Blocking, one call at a time; waiting is done by the server, never by polling a clock.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use labshift_model::api::{
    self, Boot, ClockRequest, Done, Event, Explanation, FleetStatus, LogPart, Problem,
};
use serde::{Serialize, de::DeserializeOwned};

/// A request did not get what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("no server answers at {server} ({reason}); is `labshift serve` running there?")]
    Unreachable {
        /// Address that was tried.
        server: String,
        /// Why, in the network's words.
        reason: String,
    },
    /// The server refused.
    #[error("{problem}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The server's sentence.
        problem: String,
    },
    /// The answer can't be read.
    #[error("{server} gave an answer that is not labshift's: {reason}")]
    Strange {
        /// Address.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The token file can't be read.
    #[error("reading the admin's token from {}", path.display())]
    Token {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Waited in vain.
    #[error("waited {} s in vain for {what}; last: {last}", guard.as_secs())]
    HangGuard {
        /// What was waited for.
        what: String,
        /// The guard.
        guard: Duration,
        /// The fleet at the end.
        last: String,
    },
}

/// A running server and the right to ask it.
#[derive(Clone)]
pub struct Client {
    server: String,
    token: String,
    http: reqwest::blocking::Client,
}

impl Client {
    /// `server` is `http://ADDRESS:PORT`; the token is read from a file.
    pub fn new(server: &str, token_file: &Path) -> Result<Self, ClientError> {
        let token = std::fs::read_to_string(token_file)
            .map_err(|source| ClientError::Token { path: token_file.to_owned(), source })?;
        let server = server.trim_end_matches('/').to_owned();
        let http = reqwest::blocking::Client::builder()
            .no_proxy()
            .timeout(None)
            .connect_timeout(Duration::from_secs(10))
            .build()
            .map_err(|e| ClientError::Unreachable { server: server.clone(), reason: e.to_string() })?;
        Ok(Client { server, token: token.trim().to_owned(), http })
    }

    /// The whole fleet.
    pub fn status(&self) -> Result<FleetStatus, ClientError> {
        self.get(api::STATUS)
    }

    /// Why a node is as it is.
    pub fn explain(&self, node: &str) -> Result<Explanation, ClientError> {
        self.get(&format!("{}/{node}/explain", api::NODES))
    }

    /// A node's boots, newest first.
    pub fn boots(&self, node: &str) -> Result<Vec<Boot>, ClientError> {
        self.get(&format!("{}/{node}/boots", api::NODES))
    }

    /// What the server keeps of a node's log, oldest first.
    pub fn log(&self, node: &str) -> Result<Vec<LogPart>, ClientError> {
        self.get(&format!("{}/{node}/log", api::NODES))
    }

    /// One of a node's requests: `wake`, `mode`, `reboot`, `fence`.
    pub fn ask(&self, node: &str, verb: &str, request: &impl Serialize) -> Result<Done, ClientError> {
        self.post(&format!("{}/{node}/{verb}", api::NODES), request)
    }

    /// Moves a lab clock forward; see [`ClockRequest::now`] for the forms of `now`.
    pub fn set_clock(&self, now: &str) -> Result<Done, ClientError> {
        self.post(api::LAB_CLOCK, &ClockRequest { now: now.to_owned() })
    }

    /// Any page of the server as text (the dashboard's, for a snapshot).
    pub fn text(&self, path: &str) -> Result<String, ClientError> {
        let response = self.http.get(format!("{}{path}", self.server)).bearer_auth(&self.token);
        let response = self.sent(response.timeout(Duration::from_secs(60)))?;
        response.text().map_err(|e| self.strange(e))
    }

    /// Events after number `since`, as they come.
    pub fn events(&self, since: u64) -> Result<Events, ClientError> {
        let url = format!("{}{}?since={since}", self.server, api::EVENTS);
        let response = self.sent(self.http.get(url).bearer_auth(&self.token))?;
        let (send, receive) = mpsc::channel();
        // The thread ends when the server closes the stream or nobody listens any more.
        std::thread::spawn(move || {
            for line in BufReader::new(response).lines() {
                let Ok(line) = line else { break };
                let Ok(event) = serde_json::from_str::<Event>(&line) else { continue };
                if send.send(event).is_err() {
                    break;
                }
            }
        });
        Ok(Events { receive })
    }

    /// Waits until `done` is satisfied by the fleet's status, looking again at every change: the server answers when
    /// there is one. `guard` is only against hanging for ever.
    pub fn wait_until(
        &self,
        what: &str,
        guard: Duration,
        mut done: impl FnMut(&FleetStatus) -> bool,
    ) -> Result<FleetStatus, ClientError> {
        let deadline = Instant::now() + guard;
        let mut status = self.status()?;
        while !done(&status) {
            if Instant::now() > deadline {
                let nodes = status.nodes.iter().map(|n| format!("{} is {} ({})", n.name, n.state, n.cause));
                let guests = status.guests.iter().map(|g| format!("{} is {} ({})", g.name, g.phase, g.cause));
                let last = nodes.chain(guests).collect::<Vec<_>>().join("; ");
                return Err(ClientError::HangGuard { what: what.to_owned(), guard, last });
            }
            status = self.get(&format!("{}?newer={}", api::STATUS, status.version))?;
        }
        Ok(status)
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = self.http.get(format!("{}{path}", self.server)).bearer_auth(&self.token);
        self.sent(request.timeout(Duration::from_secs(60)))?.json().map_err(|e| self.strange(e))
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let request = self.http.post(format!("{}{path}", self.server)).bearer_auth(&self.token).json(body);
        self.sent(request.timeout(Duration::from_secs(60)))?.json().map_err(|e| self.strange(e))
    }

    fn sent(
        &self,
        request: reqwest::blocking::RequestBuilder,
    ) -> Result<reqwest::blocking::Response, ClientError> {
        let response = request
            .send()
            .map_err(|e| ClientError::Unreachable { server: self.server.clone(), reason: root_cause(&e) })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.text().unwrap_or_default();
        let problem = serde_json::from_str::<Problem>(&body)
            .map_or_else(|_| format!("{} answered {status}", self.server), |p| p.problem);
        Err(ClientError::Refused { status: status.as_u16(), problem })
    }

    fn strange(&self, e: reqwest::Error) -> ClientError {
        ClientError::Strange { server: self.server.clone(), reason: root_cause(&e) }
    }
}

/// A stream of events.
pub struct Events {
    receive: mpsc::Receiver<Event>,
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.receive.recv().ok()
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
