//! End-to-end tests on real firmware and real libvirt: launch a lab, wait for what should happen, assert.
//!
//! A [`TestLab`] is `labshift lab up` as a user starts it, steered with `labshift lab ...` and the admin API. Tests wait on
//! events; the only times in them are hang guards. When one fails, the tails of all logs are printed with their paths.

pub mod bare;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::Duration,
};

use labshift_fleet::client::Client;
use labshift_lab::screen::{Letters, Picture};
use labshift_model::api::{FleetStatus, NodeView};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

/// Only against hanging for ever: machines without KVM on two busy cores are slow.
pub const GUARD: Duration = Duration::from_secs(15 * 60);

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// The command under test, as `make build` leaves it.
pub fn labshift() -> PathBuf {
    root().join("target/release/labshift")
}

/// The store that demo and tests share; the images are built once per run, which is quick when nothing changed.
pub fn store() -> &'static Path {
    static STORE: OnceLock<PathBuf> = OnceLock::new();
    STORE.get_or_init(|| {
        let store = root().join("target/lab/store");
        let recipes =
            ["lab", "guest-desktop", "guest-batch"].map(|r| root().join(format!("recipes/{r}.toml")));
        let output =
            Command::new(labshift()).args(["image", "build"]).args(recipes).arg("-o").arg(&store).output();
        let output = output.expect("starting labshift image build");
        assert!(output.status.success(), "building the images: {}", said(&output));
        store
    })
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A running lab.
pub struct TestLab {
    child: Child,
    directory: PathBuf,
    /// The admin API of its server.
    pub client: Client,
}

impl TestLab {
    /// Starts a lab with its own state. `clock` is where its clock stands; `extra` are more arguments of `lab up`.
    pub fn up(name: &str, store: &Path, site: &str, clock: &str, extra: &[&str]) -> TestLab {
        let directory = root().join("target/test-lab").join(name);
        drop(fs::remove_dir_all(&directory));
        fs::create_dir_all(&directory).expect("making the lab's directory");
        let site_file = directory.join("site.toml");
        fs::write(&site_file, site).expect("writing the site file");
        let mut child = Command::new(labshift())
            .args(["lab", "up", "--dashboard", "127.0.0.1:0", "--clock", clock])
            .arg("--site")
            .arg(&site_file)
            .arg("-o")
            .arg(store)
            .arg("--output")
            .arg(&directory)
            .args(extra)
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting labshift lab up");
        let output = child.stdout.take().expect("its output");
        let mut dashboard = None;
        let mut lines = BufReader::new(output).lines();
        for line in lines.by_ref().map_while(Result::ok) {
            println!("  {name}: {line}");
            if let Some(url) = line.split_whitespace().find(|w| w.starts_with("http://127.")) {
                dashboard = Some(url.trim_end_matches('/').to_owned());
            }
            if line.contains("lab is up") {
                break;
            }
        }
        // Whatever it says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let dashboard = dashboard.expect("lab up must print its dashboard's address");
        let client =
            Client::new(&dashboard, &directory.join("state/admin.token")).expect("reading the token");
        TestLab { child, directory, client }
    }

    /// Runs `labshift lab VERB ARGUMENTS` on this lab and returns its output.
    pub fn lab(&self, arguments: &[&str]) -> String {
        let output = Command::new(labshift())
            .arg("lab")
            .args(arguments)
            .arg("--output")
            .arg(&self.directory)
            .output()
            .expect("starting labshift lab");
        assert!(output.status.success(), "labshift lab {arguments:?}: {}", said(&output));
        said(&output)
    }

    /// A file of the lab's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Moves the clock, local time of the site.
    pub fn clock(&self, now: &str) {
        self.client.set_clock(now).expect("moving the clock");
    }

    /// Waits until the fleet is as wanted.
    #[track_caller]
    pub fn wait(&self, what: &str, done: impl FnMut(&FleetStatus) -> bool) -> FleetStatus {
        println!("  waiting for {what}");
        match self.client.wait_until(what, GUARD, done) {
            Ok(status) => status,
            Err(e) => panic!("{e}"),
        }
    }

    /// Waits until one node is as wanted.
    #[track_caller]
    pub fn wait_node(&self, name: &str, what: &str, mut done: impl FnMut(&NodeView) -> bool) -> NodeView {
        let status = self.wait(&format!("{name} {what}"), |s| node(s, name).is_some_and(&mut done));
        node(&status, name).cloned().expect("it was there")
    }

    /// Ends the command as the kernel ends one: it can do nothing about it. Returns the lab's processes of that moment.
    pub fn kill(&mut self) -> Vec<(u32, String)> {
        let processes = descendants(self.child.id());
        self.child.kill().expect("killing labshift lab up");
        self.child.wait().expect("waiting for its end");
        processes
    }

    /// Bytes that the server has sent into the lab's network, as its kernel counts them.
    pub fn server_sent(&self) -> u64 {
        let counted = descendants(self.child.id()).into_iter().find_map(|(process, _)| {
            let devices = fs::read_to_string(format!("/proc/{process}/net/dev")).ok()?;
            let line = devices.lines().find_map(|line| line.trim().strip_prefix("lab0:"))?;
            line.split_whitespace().nth(8)?.parse().ok()
        });
        counted.expect("a process in the lab's network")
    }

    /// What a workstation wrote on its serial line so far.
    pub fn serial(&self, machine: &str) -> String {
        let bytes = fs::read(self.path(&format!("{machine}.serial.log"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the server holds a text in a workstation's log.
    #[track_caller]
    pub fn logs(&self, machine: &str, text: &str) {
        let begin = std::time::Instant::now();
        loop {
            let log = self.client.log(machine).expect("asking for the log");
            if log.iter().any(|part| part.text.contains(text)) {
                return;
            }
            assert!(begin.elapsed() < GUARD, "{machine} did not log {text:?}: {log:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until a workstation's screen shows all these texts in these letters; pictures are taken until it does.
    #[track_caller]
    pub fn reads(&self, machine: &str, name: &str, letters: &Letters, texts: &[&str]) -> Picture {
        let begin = std::time::Instant::now();
        loop {
            let file = self.screenshot(machine, name);
            let picture = Picture::read(&file).expect("reading the screen");
            let missing: Vec<_> = texts.iter().filter(|t| picture.find(t, letters).is_none()).collect();
            if missing.is_empty() {
                return picture;
            }
            assert!(
                begin.elapsed() < GUARD,
                "{machine}'s screen does not show {missing:?}: {}",
                file.display()
            );
        }
    }

    /// The workstation's screen.
    pub fn screenshot(&self, machine: &str, name: &str) -> PathBuf {
        let file = self.path(&format!("{name}.png"));
        self.lab(&["screenshot", machine, &file.display().to_string()]);
        file
    }
}

/// The letters of a text screen, from the firmware of the lab's display card.
pub fn text_screen_letters() -> Letters {
    let rom = ["/usr/share/seabios/vgabios-virtio.bin", "/usr/share/qemu/vgabios-virtio.bin"];
    let rom = rom.iter().find_map(|file| fs::read(file).ok()).expect("reading the display card's firmware");
    Letters::of_vga_bios(&rom).expect("finding its font")
}

/// The letters of the page that init paints on a graphics screen.
pub fn page_letters() -> Letters {
    let (weight, height) = (FontWeight::Bold, RasterHeight::Size32);
    Letters::new(get_raster_width(weight, height), height.val(), |c| {
        get_raster(c, weight, height).map(|r| r.pixels().to_vec()).expect("a shape for every letter")
    })
}

/// `labshift lab demo` into a directory that is cleared first, not started yet.
pub fn demo(output: &Path) -> Command {
    drop(fs::remove_dir_all(output));
    let mut command = Command::new(labshift());
    command.args(["lab", "demo", "--dashboard", "127.0.0.1:0", "--recipes"]).arg(root().join("recipes"));
    command.arg("--store").arg(store()).arg("--output").arg(output);
    command
}

/// Processes that a process has started, and those that they have: id and command.
pub fn descendants(ancestor: u32) -> Vec<(u32, String)> {
    let mut parents = vec![];
    for entry in fs::read_dir("/proc").expect("reading /proc").flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // `ID (COMMAND) STATE PARENT ...`; a process may end while it is looked at.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
        let command = head.split_once('(').map_or("", |(_, command)| command).to_owned();
        let parent = tail.split(' ').nth(1).and_then(|p| p.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (id, parent, command)));
    }
    let mut found: Vec<(u32, String)> = vec![];
    let mut wanted = vec![ancestor];
    while let Some(one) = wanted.pop() {
        for (id, _, command) in parents.iter().filter(|(_, parent, _)| *parent == one) {
            found.push((*id, command.clone()));
            wanted.push(*id);
        }
    }
    found
}

/// Waits until a process that is not ours has ended.
pub fn wait_for_end_of(process: u32) {
    let guard = GUARD.as_secs().to_string();
    let status = Command::new("timeout")
        .args([&guard, "tail", &format!("--pid={process}"), "-f", "/dev/null"])
        .status()
        .expect("starting tail");
    assert!(status.success(), "process {process} still runs");
}

/// A node of a status.
pub fn node<'s>(status: &'s FleetStatus, name: &str) -> Option<&'s NodeView> {
    status.nodes.iter().find(|n| n.name == name)
}

impl Drop for TestLab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|e| e == "log") {
                    let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
                    let lines: Vec<&str> = text.lines().collect();
                    let tail = &lines[lines.len().saturating_sub(40)..];
                    println!("---- the end of {} ----\n{}", path.display(), tail.join("\n"));
                }
            }
            println!("---- everything of this lab is in {} ----", self.directory.display());
        }
        drop(Command::new(labshift()).args(["lab", "stop", "--output"]).arg(&self.directory).output());
        drop(self.child.wait());
    }
}
