//! The servers that have the root, as one stream of bytes: ranges over HTTP.
//!
//! A connection that breaks is taken up again where it broke, with back-off, as long as something arrives; a server that brings nothing
//! is left for the next. Nothing is verified here: who reads the stream does that.

use std::{
    io::{self, Read},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use ureq::{Agent, http::StatusCode};

use crate::verity::Mismatch;

/// Tries without a single new byte before the fetch gives up.
pub const BARREN_TRIES: u32 = 6;

/// Why a root could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The bytes are not what was signed.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The server answered something else.
    #[error("{url}: the server answered {status}")]
    Status {
        /// What was asked.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// No byte came in spite of several tries.
    #[error("{url} broke off at byte {at} of {total}, {tries} times in a row: {why}")]
    Broken {
        /// What was asked.
        url: String,
        /// Bytes that had come.
        at: u64,
        /// Bytes wanted.
        total: u64,
        /// Tries.
        tries: u32,
        /// The last reason.
        why: String,
    },
    /// The file could not be written.
    #[error("writing the root to memory: {0}")]
    Write(io::Error),
}

/// Where the root is and how patient to be.
#[derive(Debug)]
pub struct Source {
    /// HTTP client.
    pub agent: Agent,
    /// URLs of the file, the preferred one first. One that brings nothing is left for the next.
    pub urls: Vec<String>,
    /// Which of them is used now.
    pub current: AtomicUsize,
    /// Unit of the back-off between tries; a second in real life.
    pub pause: Duration,
    /// Worker threads.
    pub workers: usize,
}

impl Source {
    /// Streams bytes `from..to` into `take`, over as many connections as it needs; returns how often it resumed. `take` returns
    /// false to stop.
    pub(crate) fn stream(
        &self,
        from: u64,
        to: u64,
        take: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<u32, FetchError> {
        let (mut at, mut resumed, mut barren) = (from, 0, 0);
        loop {
            let before = at;
            let why = match self.stream_once(&mut at, to, take) {
                Ok(true) => return Ok(resumed),
                Ok(false) => return Err(self.broken(at, to, barren, "stopped".to_owned())),
                Err(Interrupted::Final(why)) => return Err(why),
                Err(Interrupted::Again(why)) => why,
            };
            barren = if at > before { 0 } else { barren + 1 };
            if barren > 0 {
                self.current.fetch_add(1, Ordering::Relaxed);
            }
            if barren >= BARREN_TRIES {
                return Err(self.broken(at, to, barren, why));
            }
            std::thread::sleep(self.pause * (1 << barren.min(4)));
            resumed += 1;
        }
    }

    fn url(&self) -> &str {
        let current = self.current.load(Ordering::Relaxed) % self.urls.len().max(1);
        self.urls.get(current).map(String::as_str).unwrap_or_default()
    }

    fn broken(&self, at: u64, total: u64, tries: u32, why: String) -> FetchError {
        FetchError::Broken { url: self.url().to_owned(), at, total, tries, why }
    }

    /// One connection. `Ok(true)`: all bytes are there.
    fn stream_once(
        &self,
        at: &mut u64,
        to: u64,
        take: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<bool, Interrupted> {
        let again = |e: &dyn std::fmt::Display| Interrupted::Again(e.to_string());
        let range = format!("bytes={}-{}", *at, to - 1);
        let request = self.agent.get(self.url()).header("range", range).config();
        let response = request.timeout_per_read(Some(Duration::from_secs(20))).build().call();
        let response = response.map_err(|e| again(&e))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            status if status.is_server_error() => return Err(again(&status)),
            status => {
                return Err(Interrupted::Final(FetchError::Status { url: self.url().to_owned(), status }));
            }
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = [0; 32 * 1024];
        while *at < to {
            let room = buffer.len().min((to - *at) as usize);
            match body.read(&mut buffer[..room]) {
                Ok(0) => return Err(again(&"the connection ended early")),
                Ok(length) => {
                    *at += length as u64;
                    if !take(&buffer[..length]) {
                        return Ok(false);
                    }
                }
                Err(e) => return Err(again(&e)),
            }
        }
        Ok(true)
    }
}

enum Interrupted {
    /// Worth another try.
    Again(String),
    /// It will not get better.
    Final(FetchError),
}
