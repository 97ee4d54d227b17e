//! The remote-CUDA server as a child process: a crash of a driver stays outside this daemon.
//!
//! ```text
//! stopped --start--> silent --answers--> serving --stop, exit--> stopped
//! ```

use std::{process::Stdio, time::Duration};

use labshift_model::{node::CudaDevice, paths};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, oneshot, watch},
    time::{Instant, interval, sleep, timeout},
};

/// The server's program.
const SERVER: &str = "/usr/lib/labshift/rcuda-server";
/// Asks the server for its devices.
const CLIENT: &str = "/usr/lib/labshift/rcuda-smi";
/// From start to the first answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a server that answers.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

/// What is known of the service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// The process runs.
    pub process: bool,
    /// Its devices, while it answers.
    pub devices: Option<Vec<CudaDevice>>,
    /// How often the process ended by itself.
    pub exits: u32,
}

enum Request {
    Start(oneshot::Sender<Result<(), String>>),
    Stop(oneshot::Sender<Result<(), String>>),
}

/// The service.
#[derive(Clone)]
pub struct Rcuda {
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<State>,
}

impl Rcuda {
    /// Starts the task that owns the child; the child itself waits for [`Rcuda::start`].
    pub fn spawn() -> Self {
        let (requests, receiver) = mpsc::channel(4);
        let (state, watched) = watch::channel(State::default());
        tokio::spawn(run(receiver, state));
        Rcuda { requests, state: watched }
    }

    /// What is known now; wakes when it changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Starts the server unless it runs, and waits until it answers.
    pub async fn start(&self) -> Result<(), String> {
        self.ask(Request::Start).await
    }

    /// Stops the server.
    pub async fn stop(&self) -> Result<(), String> {
        self.ask(Request::Stop).await
    }

    async fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Request,
    ) -> Result<(), String> {
        let gone = || "the task of remote CUDA has ended".to_owned();
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

async fn run(mut requests: mpsc::Receiver<Request>, state: watch::Sender<State>) {
    let mut child: Option<Child> = None;
    let mut looks = interval(LOOK_AGAIN);
    loop {
        tokio::select! {
            request = requests.recv() => match request {
                None => break,
                Some(Request::Start(reply)) => {
                    let _ = reply.send(start(&mut child, &state).await);
                }
                Some(Request::Stop(reply)) => {
                    stop(&mut child).await;
                    state.send_modify(|s| (s.process, s.devices) = (false, None));
                    let _ = reply.send(Ok(()));
                }
            },
            status = ended(&mut child) => {
                tracing::warn!(status, "the remote-CUDA server ended");
                child = None;
                state.send_modify(|s| (s.process, s.devices, s.exits) = (false, None, s.exits + 1));
            }
            _ = looks.tick() => if child.is_some() {
                let devices = ask_devices().await;
                if let Err(reason) = &devices {
                    tracing::warn!(reason, "the remote-CUDA server does not answer");
                }
                let devices = devices.ok();
                state.send_if_modified(|s| std::mem::replace(&mut s.devices, devices.clone()) != devices);
            },
        }
    }
    stop(&mut child).await;
}

async fn start(child: &mut Option<Child>, state: &watch::Sender<State>) -> Result<(), String> {
    if child.is_none() {
        let mut command = Command::new(SERVER);
        command.args(["--unix", paths::RCUDA_SOCKET]);
        // Opening the node loads what guests' sockets to the host stand on, if it is not there yet.
        if tokio::fs::File::open("/dev/vhost-vsock").await.is_ok() {
            command.args(["--vsock-port", &paths::RCUDA_VSOCK_PORT.to_string()]);
        }
        let started = command.stdin(Stdio::null()).kill_on_drop(true).spawn();
        *child = Some(started.map_err(|e| format!("{SERVER}: {e}"))?);
        state.send_modify(|s| s.process = true);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask_devices().await {
            Ok(devices) => {
                state.send_modify(|s| s.devices = Some(devices));
                return Ok(());
            }
            Err(reason) if Instant::now() > deadline => return Err(reason),
            Err(_) => {}
        }
        tokio::select! {
            // The socket appears when it appears; a look is cheap.
            () = sleep(Duration::from_millis(200)) => {}
            status = ended(child) => {
                *child = None;
                state.send_modify(|s| (s.process, s.devices) = (false, None));
                return Err(format!("the remote-CUDA server ended at its start: {status}"));
            }
        }
    }
}

/// The child's end, in words; waits for ever when there is none.
async fn ended(child: &mut Option<Child>) -> String {
    match child {
        None => std::future::pending().await,
        Some(child) => child.wait().await.map_or_else(|e| e.to_string(), |s| s.to_string()),
    }
}

async fn stop(child: &mut Option<Child>) {
    let Some(mut child) = child.take() else { return };
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) {
        let pid = nix::unistd::Pid::from_raw(pid);
        // It may have ended meanwhile, which is what we want.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    }
    if timeout(GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

async fn ask_devices() -> Result<Vec<CudaDevice>, String> {
    let connect = format!("unix:{}", paths::RCUDA_SOCKET);
    let mut command = Command::new(CLIENT);
    command.args(["--json", "--connect", &connect]).stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(Duration::from_secs(20), command.output()).await {
        Err(_) => return Err(format!("{CLIENT} does not come to an end")),
        Ok(output) => output.map_err(|e| format!("{CLIENT}: {e}"))?,
    };
    if !output.status.success() {
        let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(300).collect();
        return Err(format!("{CLIENT}: {}: {said}", output.status));
    }
    parse_devices(&output.stdout)
}

/// What `rcuda-smi --json` prints.
fn parse_devices(stdout: &[u8]) -> Result<Vec<CudaDevice>, String> {
    serde_json::from_slice(stdout).map_err(|e| format!("{CLIENT} printed no list of devices: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_client_prints() {
        let line = br#"[{"index":0,"name":"software device","memory_total":1,"memory_free":1,
            "compute_capability":"7.5","software":true}]"#;
        assert_eq!(parse_devices(line).unwrap().len(), 1);
        assert!(parse_devices(b"no devices").unwrap_err().contains("no list of devices"));
    }

    #[tokio::test]
    async fn a_missing_server_is_named_and_stopping_nothing_is_fine() {
        let rcuda = Rcuda::spawn();
        assert!(rcuda.start().await.unwrap_err().starts_with(SERVER));
        assert!(rcuda.stop().await.is_ok());
        assert_eq!(*rcuda.state().borrow(), State::default());
    }
}
