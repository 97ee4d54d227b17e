//! The workstation's screen: the kiosk as a child process, so that a fault in drawing or decoding does not end
//! the daemon.
//!
//! ```text
//! engine --status, guest (socket), warning--> kiosk --screen, first-frame, closed, input--> engine
//! ```
//!
//! The kiosk lives as long as the node; when it dies it is started again and told the newest status and warning.

mod kiosk;

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use labshift_plan::node as plan;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use crate::{
    clock::since_boot,
    kiosk::control::{Command, Event, Status},
};
use kiosk::Kiosk;

/// From the connection to the first whole picture.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between the end of a kiosk and the start of the next.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// What is known of the screen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// What is on it.
    pub shows: plan::Screen,
    /// A screen was found.
    pub present: bool,
    /// When a person last touched a key or the mouse, counted from the kernel's start; zero until somebody does.
    /// `None` without a kiosk.
    pub touched: Option<Duration>,
}

enum Request {
    Page(Status),
    Guest { name: String, socket: OwnedFd, reply: oneshot::Sender<Result<(), String>> },
    Hide,
    Warning(Option<String>),
}

/// The screen.
#[derive(Clone)]
pub struct Screen {
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<State>,
}

impl Screen {
    /// Starts the task that owns the kiosk; `page` is its first status.
    pub fn spawn(page: Status) -> Self {
        let (requests, receiver) = mpsc::channel(8);
        let (state, watched) = watch::channel(State::default());
        tokio::spawn(
            Owner { page, warning: None, pending: None, touched: Duration::ZERO, state }.run(receiver),
        );
        Screen { requests, state: watched }
    }

    /// What is known now; wakes when it changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Sets the status page; it is seen while no guest is shown.
    pub async fn set_page(&self, page: Status) {
        // Without the task there is no screen, and nothing to tell.
        let _ = self.requests.send(Request::Page(page)).await;
    }

    /// Gives the screen back to the status page.
    pub async fn hide(&self) {
        let _ = self.requests.send(Request::Hide).await;
    }

    /// Shows or removes a warning over whatever is shown.
    pub async fn warn(&self, text: Option<String>) {
        let _ = self.requests.send(Request::Warning(text)).await;
    }

    /// Connects the screen to a guest and waits until a whole picture of it is there.
    pub async fn show(&self, guest: &str, socket: OwnedFd) -> Result<(), String> {
        let gone = || "the task of the screen has ended".to_owned();
        let (reply, answer) = oneshot::channel();
        let request = Request::Guest { name: guest.to_owned(), socket, reply };
        self.requests.send(request).await.map_err(|_| gone())?;
        match timeout(PATIENCE, answer).await {
            Ok(result) => result.unwrap_or_else(|_| Err(gone())),
            Err(_) => Err(format!("no picture of {guest} within {} s", PATIENCE.as_secs())),
        }
    }
}

struct Owner {
    page: Status,
    warning: Option<String>,
    /// A guest whose first picture is awaited.
    pending: Option<(String, oneshot::Sender<Result<(), String>>)>,
    touched: Duration,
    state: watch::Sender<State>,
}

impl Owner {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            let reason = match Kiosk::spawn(&self.page) {
                Ok(mut kiosk) => {
                    if let Some(text) = self.warning.clone() {
                        kiosk.send(&Command::Warning { text });
                    }
                    self.state.send_modify(|s| s.touched = Some(self.touched));
                    match self.serve(&mut kiosk, &mut requests).await {
                        Some(reason) => reason,
                        None => return kiosk.stop().await,
                    }
                }
                Err(error) => error,
            };
            tracing::warn!(reason, "the kiosk ended; it is started again");
            self.lost(&reason);
            self.state.send_modify(|s| *s = State::default());
            sleep(RESTART_AFTER).await;
        }
    }

    /// Serves one life of the kiosk; returns how it ended, `None` when the daemon ends.
    async fn serve(&mut self, kiosk: &mut Kiosk, requests: &mut mpsc::Receiver<Request>) -> Option<String> {
        loop {
            tokio::select! {
                request = requests.recv() => match request? {
                    Request::Page(page) => {
                        // The status command drops the guest's connection; while one is shown the page is only kept.
                        self.page = page;
                        if self.state.borrow().shows == plan::Screen::Status && self.pending.is_none() {
                            kiosk.send(&Command::Status(self.page.clone()));
                        }
                    }
                    Request::Hide => {
                        self.lost("the screen is given back");
                        kiosk.send(&Command::Status(self.page.clone()));
                    }
                    Request::Warning(text) => {
                        self.warning = text;
                        kiosk.send(&match self.warning.clone() {
                            Some(text) => Command::Warning { text },
                            None => Command::NoWarning,
                        });
                    }
                    Request::Guest { name, socket, reply } => {
                        self.lost("another guest is shown");
                        match kiosk.send_guest(socket.as_fd()) {
                            Ok(()) => self.pending = Some((name, reply)),
                            Err(error) => drop(reply.send(Err(format!("telling the kiosk: {error}")))),
                        }
                    }
                },
                event = kiosk.next() => match event {
                    Ok(event) => self.note(event, kiosk),
                    Err(reason) => return Some(reason),
                },
            }
        }
    }

    fn note(&mut self, event: Event, kiosk: &mut Kiosk) {
        match event {
            Event::Screen { card, width, height } => {
                tracing::info!(card, width, height, "screen");
                self.state.send_modify(|s| s.present = true);
            }
            Event::NoScreen { reason } => {
                tracing::info!(reason, "no screen");
                self.state.send_modify(|s| s.present = false);
            }
            Event::Connected { name, width, height } => tracing::info!(name, width, height, "guest's screen"),
            Event::FirstFrame => {
                if let Some((name, reply)) = self.pending.take() {
                    self.state.send_modify(|s| s.shows = plan::Screen::Guest(name));
                    // Whoever asked may have given up; the picture is there all the same.
                    let _ = reply.send(Ok(()));
                }
            }
            Event::Input => {
                self.touched = since_boot();
                self.state.send_modify(|s| s.touched = Some(self.touched));
            }
            Event::Closed { reason } => {
                tracing::info!(reason, "the guest's picture is gone");
                self.lost(&reason);
                kiosk.send(&Command::Status(self.page.clone()));
            }
            Event::Trouble { reason } => tracing::warn!(reason, "kiosk"),
        }
    }

    /// No guest is shown any more, nor about to be.
    fn lost(&mut self, reason: &str) {
        if let Some((_, reply)) = self.pending.take() {
            let _ = reply.send(Err(reason.to_owned()));
        }
        self.state.send_if_modified(|s| std::mem::take(&mut s.shows) != plan::Screen::Status);
    }
}
