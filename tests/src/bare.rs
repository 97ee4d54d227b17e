//! A machine without a lab around it, for boots that must fail: QEMU starts kernel and initramfs of the built image itself, and a
//! small server that does as it is told stands behind QEMU's own network. Such a boot takes a few seconds.
//!
//! The network is QEMU's user network: its DHCP server knows no labshift, and 10.0.2.2 is this machine's loopback.

mod server;

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::UdpSocket,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use labshift_image::cpio::Archive;
use labshift_lab::{
    qmp::Qmp,
    screen::{Letters, Picture},
    workstation::EMULATION,
};
use labshift_model::{
    boot::BootAnswer,
    manifest::{Manifest, generation_of, public, sign, sign_with_order},
    paths,
};
use serde_json::json;

pub use self::server::{Behaviour, Server};
use crate::{GUARD, root, store};

/// The machine's hardware address.
pub const MAC: &str = "52:54:00:99:00:01";

/// The key that these boots trust.
pub fn key() -> SigningKey {
    SigningKey::from_bytes(&[42; 32])
}

/// The key with which [`Server`] signs its answers.
pub fn server_key() -> SigningKey {
    SigningKey::from_bytes(&[43; 32])
}

/// Directory of an image's current generation.
pub fn image(name: &str) -> PathBuf {
    let channel = fs::read_to_string(store().join("channels").join(name)).expect("reading the channel");
    store().join("images").join(name).join(channel.trim())
}

/// The time when these images are signed; their machines boot 40 minutes later.
pub const SIGNED: &str = "2026-11-23T07:00:00Z";

/// An answer for a small node image: the batch guest's root under the lab's kernel. `change` may alter the manifest before it is
/// signed.
pub fn answer(change: impl FnOnce(&mut Manifest)) -> BootAnswer {
    let read = |name: &str| {
        let bytes = fs::read(image(name).join("manifest.json")).expect("reading a manifest");
        Manifest::from_bytes(&bytes).expect("a manifest")
    };
    let mut manifest = read("lab");
    manifest.root = read("guest-batch").root;
    manifest.services.clear();
    manifest.modules.clear();
    change(&mut manifest);
    let bytes = manifest.to_bytes();
    BootAnswer {
        node: "ws-77".into(),
        room: "room".into(),
        image: manifest.name.clone(),
        generation: generation_of(&bytes),
        signature: sign(&bytes, &key(), SIGNED.parse().expect("a time"), manifest.valid_days),
        manifest: String::from_utf8(bytes).expect("JSON is text"),
        attempt: 7,
        token: "token".into(),
        now: "2026-11-23T07:40:00Z".parse().expect("a time"),
        nonce: String::new(),
        peers: vec![],
    }
}

/// The answer with a boot order beside its manifest.
pub fn ordered(answer: BootAnswer, order: &str) -> BootAnswer {
    let valid_days = Manifest::from_bytes(answer.manifest.as_bytes()).expect("a manifest").valid_days;
    let signed = SIGNED.parse().expect("a time");
    let signature = sign_with_order(answer.manifest.as_bytes(), &key(), signed, valid_days, order.to_owned());
    BootAnswer { signature, ..answer }
}

/// The boot order that a serial log tells, if it does.
pub fn boot_order(serial: &str) -> Option<String> {
    let parts = serial.lines().filter_map(|line| line.split_once(" boot-order ")?.1.trim().split_once(' '));
    let order: String = parts.map(|(_, part)| part).collect();
    (!order.is_empty()).then_some(order)
}

/// An archive that goes over the image's initramfs: it trusts [`key`] and [`server_key`], and holds these files besides.
pub fn overlay(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Archive::default();
    for (file, key) in [(paths::TRUSTED_KEYS, key()), (paths::SERVER_KEYS, server_key())] {
        archive.file(&file[1..], 0o644, format!("{}\n", public(&key)).as_bytes());
    }
    for (path, content) in files {
        archive.file(path, 0o755, content);
    }
    archive.finish()
}

/// The lab image's initramfs with an [`overlay`].
pub fn initrd(files: &[(&str, &[u8])]) -> Vec<u8> {
    initrd_of(&image("lab"), files)
}

fn initrd_of(image: &Path, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut initrd = fs::read(image.join(paths::INITRD)).expect("reading the initramfs");
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(overlay(files));
    initrd
}

/// What a machine's network card is plugged into.
pub enum Cable {
    /// There is no card.
    NoCard,
    /// A card without a cable.
    Unplugged,
    /// A cable with nobody at its other end; frames arrive at this socket.
    Deaf(UdpSocket),
    /// QEMU's user network.
    User,
}

/// What a machine is made of and started with.
pub struct Setup<'a> {
    /// MiB of memory.
    pub memory: u32,
    /// Its network.
    pub cable: Cable,
    /// Files over the initramfs: see [`overlay`].
    pub overlay: &'a [(&'a str, &'a [u8])],
    /// Kernel arguments besides the consoles.
    pub arguments: String,
    /// More of QEMU's arguments.
    pub more: &'a [&'a str],
    /// Directory of another `vmlinuz` and `initrd.img`; nothing goes over them when the overlay is empty.
    pub foreign: Option<PathBuf>,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Setup {
            memory: 768,
            cable: Cable::User,
            overlay: &[],
            arguments: String::new(),
            more: &[],
            foreign: None,
        }
    }
}

/// A running machine.
pub struct Bare {
    child: Child,
    qmp: Qmp,
    serial: Arc<(Mutex<Said>, Condvar)>,
    /// The serial line, for typing.
    keys: Mutex<UnixStream>,
    directory: PathBuf,
}

/// What the serial line has said.
#[derive(Default)]
struct Said {
    text: String,
    /// QEMU has closed the line: it is gone.
    ended: bool,
}

/// Emulated processors hang before the kernel's first word once in some hundred starts; a kernel that starts takes seconds.
const FIRST_WORD: Duration = Duration::from_secs(180);

impl Bare {
    /// Starts a machine; its files go to `target/test-lab/bare-NAME`. One that says nothing at all is switched off and on again: none
    /// of our code has run in it.
    pub fn start(name: &str, setup: Setup<'_>) -> Bare {
        for _ in 0..2 {
            let machine = Bare::switch_on(name, &setup);
            if machine.wait_for(FIRST_WORD, |said| !said.is_empty()).is_ok() {
                return machine;
            }
            println!("{name} said nothing in {} s; it is started again", FIRST_WORD.as_secs());
            machine.tell_state();
        }
        Bare::switch_on(name, &setup)
    }

    fn switch_on(name: &str, setup: &Setup<'_>) -> Bare {
        let directory = root().join("target/test-lab").join(format!("bare-{name}"));
        drop(fs::remove_dir_all(&directory));
        fs::create_dir_all(&directory).expect("making the machine's directory");
        let from = setup.foreign.clone().unwrap_or_else(|| image("lab"));
        let initrd = match setup.foreign {
            Some(_) if setup.overlay.is_empty() => {
                fs::read(from.join("initrd.img")).expect("reading the initramfs")
            }
            Some(_) => initrd_of(&from, setup.overlay),
            None => initrd(setup.overlay),
        };
        fs::write(directory.join("initrd.img"), initrd).expect("writing the initramfs");
        let listen =
            |what: &str| UnixListener::bind(short(&directory).join(what)).expect("listening for QEMU");
        let (qmp, serial) = (listen("qmp"), listen("serial"));
        // A machine does not outlive whoever started it, not even one that was killed.
        let mut command = Command::new("setpriv");
        command
            .args("--pdeathsig KILL qemu-system-x86_64".split(' '))
            .args("-nodefaults -no-user-config -smp 2 -display none -S".split(' '))
            .args(EMULATION.split(' '))
            .args("-device virtio-vga,xres=1280,yres=800 -device virtio-rng-pci -chardev socket,id=s,path=serial".split(' '))
            .args("-serial chardev:s -chardev socket,id=q,path=qmp -mon chardev=q,mode=control".split(' '))
            .args(["-m", &setup.memory.to_string(), "-initrd", "initrd.img", "-kernel"])
            .arg(from.join("vmlinuz"))
            .args(["-append", &format!("no_timer_check console=tty0 console=ttyS0 quiet loglevel=3 {}", setup.arguments)])
            .args(setup.more)
            .current_dir(&directory)
            .stdin(Stdio::null());
        let netdev = match &setup.cable {
            Cable::NoCard => None,
            Cable::Unplugged => Some("hubport,id=net0,hubid=0".to_owned()),
            Cable::User => Some("user,id=net0".to_owned()),
            Cable::Deaf(socket) => {
                let port = socket.local_addr().expect("its address").port();
                Some(format!(
                    "dgram,id=net0,local.type=inet,local.host=127.0.0.1,local.port=0,remote.type=inet,remote.host=127.0.0.1,remote.port={port}"
                ))
            }
        };
        if let Some(netdev) = &netdev {
            command.args([
                "-netdev",
                netdev,
                "-device",
                &format!("virtio-net-pci,netdev=net0,mac={MAC},id=nic0"),
            ]);
        }
        let child = command.spawn().expect("starting qemu-system-x86_64 (run `make deps`)");
        let (line, _) = serial.accept().expect("QEMU's serial line");
        let keys = Mutex::new(line.try_clone().expect("the same line"));
        let serial = follow(line, directory.join("serial.log"));
        let (stream, _) = qmp.accept().expect("QEMU's control connection");
        let qmp = Qmp::new(stream, |_, _| ()).expect("QEMU's greeting");
        if matches!(setup.cable, Cable::Unplugged) {
            qmp.call("set_link", json!({ "name": "nic0", "up": false })).expect("pulling the cable");
        }
        qmp.call("cont", json!({})).expect("starting the machine");
        Bare { child, qmp, serial, keys, directory }
    }

    /// Waits until the serial line has said this text so many times; returns everything it said.
    #[track_caller]
    pub fn says_times(&self, text: &str, times: usize) -> String {
        match self.wait_for(GUARD, |said| said.matches(text).count() >= times) {
            Ok(said) => said,
            Err(why) => panic!("never said {text:?}: {why}"),
        }
    }

    /// Waits until what it said is as wanted; returns everything it said.
    fn wait_for(&self, guard: Duration, wanted: impl Fn(&str) -> bool) -> Result<String, &'static str> {
        let begin = Instant::now();
        let (said, grown) = &*self.serial;
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        while !wanted(&said.text) {
            if said.ended {
                return Err("QEMU has ended");
            }
            let left = guard.checked_sub(begin.elapsed()).ok_or("the time is over")?;
            said = grown.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(said.text.clone())
    }

    /// Prints what the processors do, for whoever looks for the reason of a hang.
    fn tell_state(&self) {
        for _ in 0..2 {
            let registers = json!({ "command-line": "info registers -a" });
            match self.qmp.call("human-monitor-command", registers) {
                Ok(registers) => println!("{}", registers.as_str().unwrap_or_default()),
                Err(error) => println!("QEMU does not answer: {error}"),
            }
        }
    }

    /// Waits until the serial line has said this text.
    #[track_caller]
    pub fn says(&self, text: &str) -> String {
        self.says_times(text, 1)
    }

    /// Types a line on the serial line.
    pub fn types(&self, line: &str) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.write_all(format!("{line}\r").as_bytes()).expect("typing on the serial line");
    }

    /// Types a line once a second until the serial line has said this text so many times.
    #[track_caller]
    pub fn types_until(&self, line: &str, text: &str, times: usize) {
        let begin = Instant::now();
        loop {
            self.types(line);
            match self.wait_for(Duration::from_secs(1), |said| said.matches(text).count() >= times) {
                Ok(_) => return,
                Err(why) => assert!(begin.elapsed() < GUARD, "never said {text:?}: {why}"),
            }
        }
    }

    /// Waits until the screen shows all these texts.
    #[track_caller]
    pub fn shows(&self, letters: &Letters, texts: &[&str]) {
        let file = self.directory.join("screen.png");
        let begin = Instant::now();
        loop {
            let arguments = json!({ "filename": file.display().to_string(), "format": "png" });
            self.qmp.call("screendump", arguments).expect("taking a picture");
            let picture = Picture::read(&file).expect("reading the picture");
            let missing: Vec<_> = texts.iter().filter(|t| picture.find(t, letters).is_none()).collect();
            if missing.is_empty() {
                return;
            }
            assert!(begin.elapsed() < GUARD, "the screen does not show {missing:?}: {}", file.display());
        }
    }

    /// Runs a command of QEMU's protocol.
    pub fn qmp(&self, command: &str) {
        self.qmp_with(command, json!({}));
    }

    /// Runs a command of QEMU's protocol with arguments.
    pub fn qmp_with(&self, command: &str, arguments: serde_json::Value) {
        self.qmp.call(command, arguments).expect("steering QEMU");
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = self.serial.0.lock().unwrap_or_else(PoisonError::into_inner);
            let lines: Vec<&str> = said.text.lines().collect();
            println!("---- the end of {} ----", self.directory.join("serial.log").display());
            println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A socket's path may have 107 bytes only: through the directory's descriptor, which stays open.
fn short(directory: &Path) -> PathBuf {
    use std::os::fd::IntoRawFd;
    let held = File::open(directory).expect("opening the directory").into_raw_fd();
    PathBuf::from(format!("/proc/self/fd/{held}"))
}

fn follow(mut stream: UnixStream, log: PathBuf) -> Arc<(Mutex<Said>, Condvar)> {
    let said = Arc::new((Mutex::new(Said::default()), Condvar::new()));
    let heard = said.clone();
    std::thread::spawn(move || {
        let mut log = File::create(log).expect("writing the serial log");
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            drop(log.write_all(&buffer[..length]));
            let text = String::from_utf8_lossy(&buffer[..length]);
            heard.0.lock().unwrap_or_else(PoisonError::into_inner).text.push_str(&text);
            heard.1.notify_all();
        }
        heard.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        heard.1.notify_all();
    });
    said
}

/// Waits for a frame that holds this text.
pub fn frame_with(socket: &UdpSocket, text: &str) -> Vec<u8> {
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a pause");
    let begin = Instant::now();
    let mut frame = vec![0; 65536];
    while begin.elapsed() < GUARD {
        if let Ok(length) = socket.recv(&mut frame)
            && frame[..length].windows(text.len()).any(|w| w == text.as_bytes())
        {
            return frame[..length].to_vec();
        }
    }
    panic!("no frame with {text:?} came");
}
