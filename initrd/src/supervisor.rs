//! Keeps the services running, for life. One task owns their state; everything else sends it events.
//!
//! ```text
//!          dependencies up           ready path there
//! Waiting ----------------> Starting ----------------> Up
//!              ^                |  exit                 |  exit
//!              | pause          v                       v
//!              +------------- Down <--------------------+      Down stays for a service that does not start again
//! ```
//!
//! A service that listens is up, without a process, when its socket is open ([`activation`]): the first connection starts its program, and
//! after an orderly end the next one does.

use std::{
    collections::HashMap,
    os::{fd::AsFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use labshift_model::{
    MacAddr,
    boot::Stage,
    context::{InitReply, InitRequest, ServiceStatus},
    service::{Restart, Service},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};

use crate::{
    activation,
    control::Asked,
    failure::{Code, Halt},
    handover::{self, Reporter},
    journal::JOURNAL,
    kexec::Next,
    order::{self, Phase},
    power::End,
    process::{self, Cgroups},
    ready,
};

/// Time between SIGTERM and SIGKILL for one service.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// A service that ran this long has recovered.
const RECOVERED: Duration = Duration::from_secs(60);
/// Ends in a row that are told as a failure.
const LOOP: u32 = 5;

/// What wakes the supervisor.
#[derive(Debug)]
pub enum Event {
    /// A service's ready path appeared; the number is the process it was waited for.
    Ready(usize, u32),
    /// Somebody has connected to a service's socket.
    Connected(usize),
    /// A pause before a new start is over.
    StartAgain(usize),
    /// The power button was pressed.
    Button,
    /// The modules that the image names are loaded.
    Modules,
    /// The next kernel is loaded, or can't be; with the way back to who asked.
    Loaded(anyhow::Result<String>, oneshot::Sender<InitReply>),
}

/// What differs between PID 1 and a test.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// cgroups of the services.
    pub cgroups: Cgroups,
    /// Whether everybody's orphans are ours to reap.
    pub is_pid_1: bool,
    /// Whether services' output goes to serial lines.
    pub show_output: bool,
    /// Prefix of ready paths.
    pub sysroot: PathBuf,
    /// Port to arm when the button is pressed; none in a guest.
    pub wake: Option<String>,
    /// Name and hardware address of this machine, for the page of a failure.
    pub who: (Option<String>, Option<MacAddr>),
    /// Where failures are told.
    pub reporter: Option<Reporter>,
    /// Where the next kernel comes from.
    pub next: Option<Next>,
    /// Arms Wake-on-LAN on a port and names the ports that were armed.
    pub arm: fn(&Path, &str) -> anyhow::Result<Vec<String>>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    pid: Option<u32>,
    since: Instant,
    restarts: u32,
    in_a_row: u32,
    last_exit: Option<String>,
    /// Times that the kernel had ended something of it for want of memory, before this run.
    out_of_memory: u64,
    /// Its socket, once open.
    listener: Option<Arc<UnixListener>>,
    /// Waits for the ready path of the run under way, or for a connection.
    watch: Option<tokio::task::JoinHandle<()>>,
}

/// The services and their states.
#[derive(Debug)]
pub struct Supervisor {
    services: Vec<Service>,
    states: Vec<State>,
    surroundings: Surroundings,
    events: mpsc::UnboundedSender<Event>,
    inbox: mpsc::UnboundedReceiver<Event>,
    stopping: bool,
    all_up: bool,
    modules: bool,
}

impl Supervisor {
    /// Takes over a checked list of services.
    pub fn new(services: Vec<Service>, surroundings: Surroundings) -> Self {
        let fresh = |_: &Service| State {
            phase: Phase::Waiting,
            pid: None,
            since: Instant::now(),
            restarts: 0,
            in_a_row: 0,
            last_exit: None,
            out_of_memory: 0,
            listener: None,
            watch: None,
        };
        let (events, inbox) = mpsc::unbounded_channel();
        let states = services.iter().map(fresh).collect();
        Supervisor {
            services,
            states,
            surroundings,
            events,
            inbox,
            stopping: false,
            all_up: false,
            modules: false,
        }
    }

    /// A way to send events.
    pub fn events(&self) -> mpsc::UnboundedSender<Event> {
        self.events.clone()
    }

    /// Runs until the machine is to go down; then all services are stopped. `up` is called once, when all are up.
    pub async fn run(
        &mut self,
        mut requests: mpsc::Receiver<Asked>,
        up: impl FnOnce(),
    ) -> std::io::Result<End> {
        let mut children = signal(SignalKind::child())?;
        let mut up = Some(up);
        self.start_what_can();
        loop {
            if self.all_up
                && let Some(up) = up.take()
            {
                up();
            }
            let end = tokio::select! {
                _ = children.recv() => { self.reap(); None }
                Some(event) = self.inbox.recv() => self.take(event),
                Some((request, reply)) = requests.recv() => self.answer(request, reply),
            };
            if let Some(end) = end {
                // Lets the reply leave before the asker is stopped.
                tokio::time::sleep(Duration::from_millis(50)).await;
                self.stop_all(&mut children).await;
                return Ok(end);
            }
            self.start_what_can();
        }
    }

    fn take(&mut self, event: Event) -> Option<End> {
        match event {
            Event::Ready(i, pid) if self.states[i].pid == Some(pid) => self.rise(i),
            Event::StartAgain(i) if self.states[i].phase == Phase::Down => {
                self.states[i].phase = Phase::Waiting
            }
            Event::Connected(i) if self.listening(i) => self.start(i),
            Event::Ready(..) | Event::StartAgain(_) | Event::Connected(_) => {}
            Event::Modules => self.modules = true,
            Event::Loaded(Ok(what), reply) => {
                JOURNAL.say("power", &format!("{what} is loaded"));
                let _ = reply.send(InitReply::Ok);
                return Some(End::Kexec);
            }
            Event::Loaded(Err(why), reply) => {
                JOURNAL.say("power", &format!("the next kernel is not loaded: {why:#}"));
                let _ = reply.send(InitReply::Failed { reason: format!("{why:#}") });
            }
            Event::Button => {
                JOURNAL.say("power", "the power button was pressed");
                let wake = self.surroundings.wake.as_deref();
                let armed = wake.map(|port| (self.surroundings.arm)(&self.surroundings.sysroot, port));
                if let Some(Err(why)) = &armed {
                    JOURNAL.say("power", &format!("wake-on-lan: {why:#}"));
                }
                return Some(End::PowerOff { wake: armed.and_then(Result::ok).unwrap_or_default() });
            }
        }
        None
    }

    fn answer(&self, request: InitRequest, reply: oneshot::Sender<InitReply>) -> Option<End> {
        let (answer, end) = match request {
            InitRequest::PowerOff { interface } => {
                match (self.surroundings.arm)(&self.surroundings.sysroot, &interface) {
                    Ok(wake) => (InitReply::Ok, Some(End::PowerOff { wake })),
                    Err(why) => (InitReply::Failed { reason: format!("{why:#}") }, None),
                }
            }
            InitRequest::Reboot => (InitReply::Ok, Some(End::Reboot)),
            InitRequest::Kexec => {
                self.load_next(reply);
                return None;
            }
            InitRequest::Services => (InitReply::Services { services: self.statuses() }, None),
            InitRequest::Log { lines } => (InitReply::Log { lines: JOURNAL.tail(lines) }, None),
        };
        let _ = reply.send(answer);
        end
    }

    /// Loads the next kernel while everything goes on. Nothing is stopped before it is there.
    fn load_next(&self, reply: oneshot::Sender<InitReply>) {
        let (next, events) = (self.surroundings.next.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let loaded = match next {
                Some(next) => next.load(),
                None => Err(anyhow::anyhow!("a guest has no boot server to ask")),
            };
            let _ = events.send(Event::Loaded(loaded, reply));
        });
    }

    fn statuses(&self) -> Vec<ServiceStatus> {
        let order = order::stop_order(&self.services).into_iter().rev();
        order
            .map(|i| {
                let state = &self.states[i];
                ServiceStatus {
                    name: self.services[i].name.clone(),
                    pid: state.pid,
                    ready: state.phase == Phase::Up,
                    listening: self.listening(i),
                    restarts: state.restarts,
                    last_exit: state.last_exit.clone(),
                }
            })
            .collect()
    }

    fn start_what_can(&mut self) {
        for i in order::startable(&self.services, self.modules, |i| self.states[i].phase) {
            match &self.services[i].listen {
                Some(path) => self.listen(i, &self.inside(path)),
                None => self.start(i),
            }
        }
    }

    /// A path that a recipe names, where it is.
    fn inside(&self, path: &str) -> PathBuf {
        self.surroundings.sysroot.join(path.trim_start_matches('/'))
    }

    /// Whether a connection would start its program.
    fn listening(&self, i: usize) -> bool {
        let state = &self.states[i];
        state.listener.is_some() && state.phase == Phase::Up && state.pid.is_none()
    }

    /// Waits for somebody to connect. The socket is opened once.
    fn listen(&mut self, i: usize, path: &Path) {
        let name = &self.services[i].name;
        let state = &mut self.states[i];
        state.since = Instant::now();
        let open = match &state.listener {
            Some(listener) => Ok(listener.clone()),
            None => activation::open(path).map(Arc::new),
        };
        match open {
            Ok(listener) => {
                JOURNAL.say("service", &format!("{name} listens at {}", path.display()));
                state.listener = Some(listener.clone());
                let events = self.events.clone();
                state.watch = Some(tokio::spawn(async move {
                    activation::connected(&listener).await;
                    let _ = events.send(Event::Connected(i));
                }));
                self.rise(i);
            }
            Err(why) => {
                JOURNAL.say("service", &format!("{name}: {why:#}"));
                state.last_exit = Some(format!("{why:#}"));
                self.fall(i, false);
            }
        }
    }

    fn start(&mut self, i: usize) {
        let service = &self.services[i];
        self.states[i].since = Instant::now();
        let ready = service.ready.as_ref().map(|p| self.inside(p));
        if let Some(path) = &ready {
            // What an earlier run left says nothing about this one.
            let _ = std::fs::remove_file(path);
        }
        let socket = self.states[i].listener.as_ref().map(|l| l.as_fd());
        match process::start(service, &self.surroundings.cgroups, socket) {
            Ok(started) => {
                JOURNAL.say("service", &format!("{} started, pid {}", service.name, started.pid));
                self.states[i].pid = Some(started.pid);
                self.states[i].phase = Phase::Starting;
                if let Some(output) = started.output {
                    let show = self.surroundings.show_output;
                    tokio::spawn(process::carry_output(service.name.clone(), output, show));
                }
                match ready {
                    Some(path) => {
                        let watch = wait_ready(path, i, started.pid, self.events.clone());
                        self.states[i].watch = Some(tokio::spawn(watch));
                    }
                    None if service.restart == Restart::Never => {}
                    None => self.rise(i),
                }
            }
            Err(why) => {
                JOURNAL.say("service", &format!("{}: {why:#}", service.name));
                self.states[i].last_exit = Some(format!("{why:#}"));
                self.fall(i, false);
            }
        }
    }

    /// A service is ready.
    fn rise(&mut self, i: usize) {
        if self.states[i].phase != Phase::Up {
            self.states[i].phase = Phase::Up;
            if self.services[i].ready.is_some() {
                JOURNAL.say("service", &format!("{} ready", self.services[i].name));
            }
        }
        if !self.all_up && self.states.iter().all(|s| s.phase == Phase::Up) {
            self.all_up = true;
            JOURNAL.leave_page();
        }
    }

    /// A service ended; decides whether it starts again.
    fn fall(&mut self, i: usize, success: bool) {
        let state = &mut self.states[i];
        state.pid = None;
        state.phase = Phase::Down;
        if let Some(watch) = state.watch.take() {
            watch.abort();
        }
        let wanted = state.listener.as_ref().is_some_and(|l| activation::wanted(l.as_fd()));
        match order::next(&self.services[i], success, wanted) {
            order::Next::Done => return self.rise(i),
            _ if self.stopping => return,
            order::Next::Stays => return,
            order::Next::Listens => {
                (state.phase, state.in_a_row) = (Phase::Waiting, 0);
                return;
            }
            order::Next::Again => {}
        }
        state.in_a_row = if state.since.elapsed() >= RECOVERED { 0 } else { state.in_a_row };
        self.tell_of_a_loop(i);
        let state = &mut self.states[i];
        let pause = Duration::from_millis(order::pause_ms(state.in_a_row));
        state.restarts += 1;
        state.in_a_row += 1;
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _ = events.send(Event::StartAgain(i));
        });
    }

    /// A service that ends again and again is a failed boot: told once per row of failures. While the machine has never been ready
    /// the page is shown; later the screen belongs to whoever works at it.
    fn tell_of_a_loop(&self, i: usize) {
        let state = &self.states[i];
        if state.in_a_row + 1 != LOOP {
            return;
        }
        let sentence = format!(
            "service {} ended {LOOP} times in a row, the last time: {}",
            self.services[i].name,
            state.last_exit.as_deref().unwrap_or("unknown")
        );
        let halt = Halt::new(Stage::Services, Code::Services, sentence);
        let (node, mac) = &self.surroundings.who;
        let next = "It is started again and again, at least every 30 s.";
        let page = (!self.all_up).then(|| halt.page(node.as_deref(), *mac, next));
        JOURNAL.failed(halt.stage, &halt.failure(), page.as_ref());
        handover::report(self.surroundings.reporter.clone());
    }

    /// Takes in every child that has ended, ours or an orphan of somebody's.
    fn reap(&mut self) {
        let pids: HashMap<u32, usize> =
            self.states.iter().enumerate().filter_map(|(i, s)| Some((s.pid?, i))).collect();
        if self.surroundings.is_pid_1 {
            while let Some((pid, exit)) = process::reap(None) {
                if let Some(&i) = pids.get(&pid) {
                    self.ended(i, pid, exit);
                }
            }
        } else {
            for (&pid, &i) in &pids {
                if let Some((_, exit)) = process::reap(Some(pid)) {
                    self.ended(i, pid, exit);
                }
            }
        }
    }

    fn ended(&mut self, i: usize, pid: u32, (success, mut words): (bool, String)) {
        let times = self.surroundings.cgroups.out_of_memory(&self.services[i].name);
        if std::mem::replace(&mut self.states[i].out_of_memory, times) < times {
            words += &match self.services[i].limits.memory_mib {
                Some(limit) => format!(": it needed more than its {limit} MiB of memory"),
                None => ": the machine had no memory left".to_owned(),
            };
        }
        JOURNAL.say("service", &format!("{} {words}", self.services[i].name));
        self.states[i].last_exit = Some(words);
        if !self.stopping {
            self.surroundings.cgroups.clear(&self.services[i].name, pid);
        }
        self.fall(i, success);
    }

    /// Stops all services, dependants first; each gets SIGTERM, and SIGKILL when its time is over.
    async fn stop_all(&mut self, children: &mut tokio::signal::unix::Signal) {
        self.stopping = true;
        JOURNAL.say("power", "stopping services");
        for i in order::stop_order(&self.services) {
            let Some(pid) = self.states[i].pid else { continue };
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGTERM);
            if self.services[i].tty.is_some() {
                // A shell at a terminal ignores the polite signal; it takes the terminal's end.
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGHUP);
            }
            let deadline = tokio::time::Instant::now() + STOP_PATIENCE;
            while self.states[i].pid.is_some() {
                if tokio::time::timeout_at(deadline, children.recv()).await.is_err() {
                    JOURNAL.say("power", &format!("{} does not stop: killed", self.services[i].name));
                    let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
                    let _ = tokio::time::timeout(Duration::from_secs(2), children.recv()).await;
                    self.reap();
                    break;
                }
                self.reap();
            }
            self.surroundings.cgroups.kill(&self.services[i].name);
        }
    }
}

/// Tells when a ready path has appeared.
async fn wait_ready(path: PathBuf, service: usize, pid: u32, events: mpsc::UnboundedSender<Event>) {
    match ready::appears(&path).await {
        Ok(()) => drop(events.send(Event::Ready(service, pid))),
        Err(why) => JOURNAL.say("service", &format!("can't wait for {}: {why}", path.display())),
    }
}

/// Notes that all services are up, and where the root came from.
pub fn note_up(count: usize, root: &str) {
    JOURNAL.reached(Stage::Services, &format!("{count} services are up{root}"));
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
