//! Two namespaces joined by a cable: `server0` with 10.77.0.1 on this side, `client0` on the other.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use labshift_lab::tap;
use nix::sched::{CloneFlags, unshare};

use crate::cable::{Cable, Properties};

/// What hangs for so long, hangs.
const GUARD: Duration = Duration::from_secs(120);

/// What `serve` is started with, and where it keeps things.
pub struct Server {
    pub scratch: tempfile::TempDir,
    child: Option<Child>,
    log: Arc<(Mutex<String>, Condvar)>,
}

/// A site of so many batch guests on 10.77.0.0/16, and a workstation.
pub fn site(guests: usize, pool: &str) -> String {
    format!(
        "name = \"test\"\ntimezone = \"UTC\"\n[server]\naddress = \"10.77.0.1/16\"\npool = \"{pool}\"\nlease = \"1h\"\n\
         [[template]]\nname = \"student\"\nimage = \"guest-desktop\"\nrole = \"desktop\"\nmemory_mib = 512\nvcpus = 1\n\
         [[template]]\nname = \"worker\"\nimage = \"guest-batch\"\nrole = \"batch\"\nmemory_mib = 256\nvcpus = 1\n\
         disk_mib = 256\n\
         [[room]]\nname = \"room-a\"\nimage = \"lab\"\nschedule = \"always\"\ndesktop = \"student\"\n\
         [[machine]]\nname = \"ws1\"\nroom = \"room-a\"\nmac = \"52:54:00:77:00:01\"\naddress = \"10.77.0.11\"\n\
         [[schedule]]\nname = \"always\"\noutside = \"compute\"\n\
         [[guest]]\nname = \"work\"\ntemplate = \"worker\"\ncount = {guests}\n"
    )
}

impl Server {
    /// A directory with this site, an empty store, and files for TFTP.
    pub fn prepare(site: &str) -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(scratch.path().join("store")).expect("the store");
        fs::create_dir_all(scratch.path().join("loaders")).expect("the loaders");
        fs::write(scratch.path().join("site.toml"), site).expect("the site");
        Server { scratch, child: None, log: Arc::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Starts `labshift serve` in the namespace of the calling thread and returns when it says that it serves.
    pub fn start(&mut self, extra: &[&str]) {
        self.start_as(&[], extra);
    }

    /// The same behind another command.
    pub fn start_as(&mut self, wrapper: &[&str], extra: &[&str]) {
        let path = |name: &str| self.path(name).display().to_string();
        let command = [wrapper, &[env!("CARGO_BIN_EXE_labshift")]].concat();
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .args([
                "serve",
                "--interface",
                "server0",
                "--site",
                &path("site.toml"),
                "--store",
                &path("store"),
            ])
            .args([
                "--state",
                &path("state"),
                "--loaders",
                &path("loaders"),
                "--dashboard",
                "127.0.0.1:8088",
                "-v",
            ])
            .args(extra)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starting labshift serve");
        let mut stdout = BufReader::new(child.stdout.take().expect("its output"));
        let mut errors = BufReader::new(child.stderr.take().expect("its errors"));
        let log = self.log.clone();
        thread::spawn(move || {
            let mut line = String::new();
            while errors.read_line(&mut line).is_ok_and(|n| n > 0) {
                log.0.lock().expect("the log").push_str(&std::mem::take(&mut line));
                log.1.notify_all();
            }
        });
        let mut said = String::new();
        let length = stdout.read_line(&mut said).expect("reading");
        self.child = Some(child);
        assert!(length > 0 && said.contains("serving"), "{said}{}", self.log());
        thread::spawn(move || stdout.read_to_end(&mut vec![]));
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.0.lock().expect("the log").clone()
    }

    /// Waits until it has logged this; the log begins anew.
    pub fn wait_for(&self, text: &str) {
        let log = self.log.0.lock().expect("the log");
        let (mut log, timeout) =
            self.log.1.wait_timeout_while(log, GUARD, |log| !log.contains(text)).expect("the log");
        assert!(!timeout.timed_out(), "no {text:?} in:\n{log}");
        log.clear();
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        let child = self.child.as_ref().expect("a running server");
        sh(&format!("kill -HUP {}", child.id()));
    }

    /// As a power cut does it to a process.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running server");
        child.kill().expect("SIGKILL");
        assert_eq!(child.wait().expect("its end").signal(), Some(9), "{}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Asks for an address with dhcpcd on `client0`: `--test` prints what it would set, and changes nothing.
pub fn dhcpcd() -> Output {
    // Its lock is named after the interface, and knows nothing of namespaces.
    static ONE: Mutex<()> = Mutex::new(());
    let _alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    run("dhcpcd", &["-4", "--test", "--noarp", "-t", "60", "client0"])
}

/// Runs a program to its end; the output is the panic when it fails.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}; `make deps` installs what tests need"));
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{said}", output.status);
    output
}

/// The same with the words of one line.
#[track_caller]
pub fn sh(line: &str) -> Output {
    let words: Vec<&str> = line.split(' ').collect();
    run(words[0], &words[1..])
}

/// A script for udhcpc that says what it was told. The boot file is in the header, or option 67.
pub fn lease_script(directory: &Path) -> String {
    let script = directory.join("script");
    let text = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\n\
                echo \"ip='$ip' mask='$mask' hostname='$hostname' serverid='$serverid' lease='$lease' \
                siaddr='$siaddr' boot_file='${bootfile:-$boot_file}'\"\n";
    fs::write(&script, text).expect("the script");
    let script = script.display().to_string();
    sh(&format!("chmod 755 {script}"));
    script
}

fn namespace_of_this_thread() -> String {
    let task = fs::read_link("/proc/thread-self").expect("the thread");
    Path::new("/proc").join(task).join("ns/net").display().to_string()
}

/// Runs both sides, each on a thread in a namespace of its own. The server's side gets a channel to say that it is ready;
/// the client's side starts then. When the client is done the server's `recv` ends.
pub fn on_a_cable(
    server: impl FnOnce(mpsc::Sender<()>, mpsc::Receiver<()>) + Send + 'static,
    client: impl FnOnce() + Send + 'static,
) {
    on_a_cable_with(None, server, client);
}

/// The same on a cable with these properties, or a plain one.
pub fn on_a_cable_with(
    properties: Option<Properties>,
    server: impl FnOnce(mpsc::Sender<()>, mpsc::Receiver<()>) + Send + 'static,
    client: impl FnOnce() + Send + 'static,
) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let (to_server, from_client) = mpsc::channel::<(String, Option<File>)>();
    let (ready, wait) = mpsc::channel::<()>();
    let (done, finished) = mpsc::channel::<()>();
    let tap = move |name| properties.map(|_| tap::create(name).expect("a TAP device"));
    let client = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
        sh("ip link set lo up");
        to_server.send((namespace_of_this_thread(), tap("client0"))).expect("the server waits");
        // The server side ends early only by its own panic, which is the one to show.
        if wait.recv().is_ok() {
            client();
        }
        drop(done);
    });
    let server = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
        let (peer, far) = from_client.recv().expect("the client's namespace");
        sh("ip link set lo up");
        let cable = match (properties, tap("server0"), far) {
            (Some(properties), Some(near), Some(far)) => Some(Cable::lay(near, far, properties)),
            _ => {
                sh("ip link add server0 type veth peer name client0");
                sh(&format!("ip link set client0 netns {peer}"));
                None
            }
        };
        sh("ip address add 10.77.0.1/16 dev server0");
        sh("ip link set server0 up");
        server(ready, finished);
        drop(cable);
    });
    let sides = [server.join(), client.join()];
    if let Some(panic) = sides.into_iter().find_map(Result::err) {
        std::panic::resume_unwind(panic);
    }
}
