//! One workstation: a QEMU process behind a switch port, with a power button.
//!
//! ```text
//!            magic packet for its MAC, and armed      guest powers off
//!   off  ------------------------------------> on -------------------> off (armed as the guest left it)
//!    ^          a person presses the button     |   plug pulled
//!    +------------------------------------------+-------------------> off (not armed: no standby power was kept)
//! ```
//!
//! A fresh machine is armed, as machines come from the factory. What the guest left is read from the network card itself
//! (`wake::is_armed`).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc::Receiver},
    time::Instant,
};

use labshift_model::MacAddr;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    frame,
    journal::Journal,
    qmp::{Qmp, QmpError},
    switch::{Cable, PortId, Queued, Switch},
    wake,
};

/// Which firmware a workstation has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// SeaBIOS with the network card's PXE ROM.
    Bios,
    /// OVMF.
    Uefi,
    /// OVMF with Secure Boot on, which trusts the test key that Debian's ovmf package brings (`PkKek-1-snakeoil`) and no other.
    SecureBoot,
}

/// What a workstation is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Name.
    pub name: String,
    /// Hardware address of its network card.
    pub mac: MacAddr,
    /// Firmware.
    pub firmware: Firmware,
    /// MiB of RAM.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// Its own disk, which firmware starts when the network gives it nothing: a disk image, or a directory, which it sees as
    /// a FAT disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<PathBuf>,
}

/// How a workstation is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Power {
    /// Has power.
    pub on: bool,
    /// While off: reacts to a magic packet.
    pub armed: bool,
    /// Times it was switched on.
    pub starts: u32,
}

/// Something a workstation was asked for can't be done.
#[derive(Debug, thiserror::Error)]
pub enum WorkstationError {
    /// It has no power.
    #[error("{0} is off")]
    Off(String),
    /// QEMU.
    #[error("workstation {name}")]
    Qmp {
        /// Workstation.
        name: String,
        /// Why.
        source: QmpError,
    },
    /// A file or process.
    #[error("workstation {name}: {doing}")]
    Io {
        /// Workstation.
        name: String,
        /// What was tried.
        doing: String,
        /// Why not.
        source: io::Error,
    },
}

/// A workstation of a running lab.
pub struct Workstation {
    /// What it is made of.
    pub hardware: Hardware,
    /// The cable between it and the switch.
    pub cable: Arc<Cable>,
    directory: PathBuf,
    switch: Arc<Switch>,
    port: PortId,
    journal: Arc<Journal>,
    state: Mutex<State>,
}

struct State {
    power: Power,
    machine: Option<Machine>,
}

/// A workstation that has power.
struct Machine {
    child: Child,
    qmp: Arc<Qmp>,
    wire: UnixStream,
}

/// The emulated machine. Its processor has what QEMU emulates, but not SHA-NI: one of those instructions costs the emulator more than the
/// plain ones that do its work.
pub const EMULATION: &str = "-machine q35 -accel tcg,thread=multi -cpu max,sha-ni=off";

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const SECURE_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
const SECURE_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd";

impl Workstation {
    /// Puts a workstation, off and armed, behind a port of the switch. Its files go to `directory`.
    pub fn new(
        hardware: Hardware,
        directory: &Path,
        switch: &Arc<Switch>,
        journal: &Arc<Journal>,
    ) -> Arc<Self> {
        let (port, frames, cable) = switch.plug();
        let workstation = Arc::new(Workstation {
            hardware,
            cable,
            directory: directory.to_owned(),
            switch: switch.clone(),
            port,
            journal: journal.clone(),
            state: Mutex::new(State { power: Power { on: false, armed: true, starts: 0 }, machine: None }),
        });
        let receiver = workstation.clone();
        std::thread::spawn(move || receiver.receive(&frames));
        workstation
    }

    /// How it is doing.
    pub fn power(&self) -> Power {
        self.lock().power.clone()
    }

    /// A person presses the power button: switches it on, or asks the running system to shut down.
    pub fn press(self: &Arc<Self>) -> Result<(), WorkstationError> {
        let state = self.lock();
        if let Some(machine) = &state.machine {
            return machine.qmp.call("system_powerdown", json!({})).map(drop).map_err(|e| self.qmp_failed(e));
        }
        drop(state);
        self.start("a person pressed the power button")
    }

    /// Takes its power away at once.
    pub fn unplug(&self) -> Result<(), WorkstationError> {
        let mut state = self.lock();
        let Some(mut machine) = state.machine.take() else { return Err(self.is_off()) };
        machine
            .child
            .kill()
            .and_then(|()| machine.child.wait())
            .map_err(|e| self.io_failed("ending QEMU", e))?;
        state.power.on = false;
        state.power.armed = false;
        drop(state);
        self.note("powered-off", "the plug was pulled");
        Ok(())
    }

    /// Cuts or mends its network cable; the card sees the link go down or up.
    pub fn set_cable(&self, cut: bool) -> Result<(), WorkstationError> {
        self.cable.set_cut(cut);
        self.note(if cut { "cable-cut" } else { "cable-mended" }, "");
        self.switch.forget(self.port);
        self.set_link(!cut)
    }

    fn set_link(&self, up: bool) -> Result<(), WorkstationError> {
        let Some(qmp) = self.qmp() else { return Ok(()) };
        qmp.call("set_link", json!({ "name": "net0", "up": up })).map(drop).map_err(|e| self.qmp_failed(e))
    }

    /// Saves what its screen shows as a PNG file.
    pub fn screenshot(&self, file: &Path) -> Result<(), WorkstationError> {
        let qmp = self.qmp().ok_or_else(|| self.is_off())?;
        let arguments = json!({ "filename": file.display().to_string(), "format": "png" });
        qmp.call("screendump", arguments).map(drop).map_err(|e| self.qmp_failed(e))
    }

    /// Presses and releases one key, by QEMU's key name (`ret`, `a`, `ctrl`).
    pub fn press_key(&self, key: &str) -> Result<(), WorkstationError> {
        let qmp = self.qmp().ok_or_else(|| self.is_off())?;
        let keys = json!({ "keys": [{ "type": "qcode", "data": key }] });
        qmp.call("send-key", keys).map(drop).map_err(|e| self.qmp_failed(e))
    }

    /// Moves frames from the switch to the machine, or to its power button while it is off.
    fn receive(self: Arc<Self>, frames: &Receiver<Queued>) {
        let mut batch = Vec::with_capacity(256 * 1024);
        while let Ok(first) = frames.recv() {
            let wire = self.lock().machine.as_ref().and_then(|m| m.wire.try_clone().ok());
            let Some(mut wire) = wire else {
                self.listen_for_magic(&first.bytes);
                continue;
            };
            let due = first.at + self.cable.delay();
            if let Some(wait) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(wait);
            }
            batch.clear();
            append(&mut batch, &first.bytes);
            while batch.len() < 192 * 1024 && self.cable.delay().is_zero() {
                let Ok(next) = frames.try_recv() else { break };
                append(&mut batch, &next.bytes);
            }
            self.cable.leave(batch.len());
            // A machine that lost its power in between takes nothing; its frames are gone, as on a real cable.
            drop(wire.write_all(&batch));
        }
    }

    fn listen_for_magic(self: &Arc<Self>, bytes: &[u8]) {
        let Some(woken) = frame::magic_packet(bytes) else { return };
        if woken != self.hardware.mac {
            return self.note("magic-packet-ignored", &format!("it was for {woken}"));
        }
        if !self.power().armed {
            return self.note("magic-packet-ignored", "the network card was not armed at the last power-off");
        }
        if let Err(e) = self.start("magic packet") {
            self.note("start-failed", &e.to_string());
        }
    }

    fn start(self: &Arc<Self>, cause: &str) -> Result<(), WorkstationError> {
        let mut state = self.lock();
        if state.machine.is_some() {
            return Ok(());
        }
        let machine = self.launch()?;
        let mut input = machine.wire.try_clone().map_err(|e| self.io_failed("using its network", e))?;
        state.machine = Some(machine);
        state.power.on = true;
        state.power.starts += 1;
        let start = state.power.starts;
        drop(state);
        self.note("powered-on", cause);
        let workstation = self.clone();
        std::thread::spawn(move || {
            drop(transmit(&mut input, &workstation.switch, workstation.port));
            workstation.lost(start);
        });
        if self.cable.is_cut() { self.set_link(false) } else { Ok(()) }
    }

    /// Starts QEMU. It connects to sockets that already listen, so there is nothing to wait for.
    fn launch(self: &Arc<Self>) -> Result<Machine, WorkstationError> {
        let name = &self.hardware.name;
        let listen = |what: &str| {
            let file = format!("{name}.{what}");
            drop(fs::remove_file(self.directory.join(&file)));
            // Through the directory's descriptor: a socket's path may have 107 bytes only.
            File::open(&self.directory)
                .and_then(|held| UnixListener::bind(format!("/proc/self/fd/{}/{file}", held.as_raw_fd())))
                .map_err(|e| self.io_failed("listening for QEMU", e))
        };
        let (wire, qmp, serial) = (listen("wire")?, listen("qmp")?, listen("serial")?);
        let log = File::create(self.directory.join(format!("{name}.qemu.log")))
            .map_err(|e| self.io_failed("writing its log", e))?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(self.arguments()?).current_dir(&self.directory).process_group(0);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|e| self.io_failed("writing its log", e))?)
            .stderr(log);
        let mut child = command
            .spawn()
            .map_err(|e| self.io_failed("starting qemu-system-x86_64 (run `make deps`)", e))?;
        let mut accept = |listener: &UnixListener| {
            accept_or_exit(listener, &mut child).map_err(|e| {
                let said =
                    fs::read_to_string(self.directory.join(format!("{name}.qemu.log"))).unwrap_or_default();
                self.io_failed(&format!("QEMU did not start: {}", said.trim()), e)
            })
        };
        let serial = accept(&serial)?;
        let wire = accept(&wire)?;
        let qmp = accept(&qmp)?;
        for what in ["wire", "qmp", "serial"] {
            drop(fs::remove_file(self.directory.join(format!("{name}.{what}"))));
        }
        self.clone().follow_serial(serial);
        let heard = self.clone();
        let qmp =
            Qmp::new(qmp, move |event, data| heard.hear(event, data)).map_err(|e| self.qmp_failed(e))?;
        Ok(Machine { child, qmp: Arc::new(qmp), wire })
    }

    fn arguments(&self) -> Result<Vec<String>, WorkstationError> {
        let Hardware { name, mac, firmware, memory_mib, cpus, disk } = &self.hardware;
        let slot = wake::SLOT;
        fs::write(self.directory.join(format!("{name}.wake.aml")), wake::ssdt())
            .map_err(|e| self.io_failed("writing its ACPI table", e))?;
        let mut text = format!(
            "-name {name} -nodefaults -no-user-config {EMULATION} -smp {cpus} -m {memory_mib} \
             -display none -device virtio-vga,xres=1280,yres=800 -device virtio-rng-pci \
             -netdev stream,id=net0,server=off,addr.type=unix,addr.path={name}.wire \
             -device e1000e,netdev=net0,mac={mac},bootindex=1,id=nic0,bus=pcie.0,addr={slot:#x} -acpitable file={name}.wake.aml \
             -device virtio-keyboard-pci -device virtio-tablet-pci \
             -chardev socket,id=serial0,server=off,path={name}.serial -serial chardev:serial0 \
             -chardev socket,id=qmp0,server=off,path={name}.qmp -mon chardev=qmp0,mode=control \
             -no-shutdown -msg timestamp=on"
        );
        let flash = match firmware {
            Firmware::Bios => None,
            Firmware::Uefi => Some((OVMF_CODE, OVMF_VARS)),
            Firmware::SecureBoot => {
                // Its variables are written in system management mode only: nothing that boots can turn the checks off.
                text = text.replace("-machine q35", "-machine q35,smm=on");
                text.push_str(
                    " -global driver=cfi.pflash01,property=secure,value=on -global ICH9-LPC.disable_s3=1",
                );
                // The ROM of the other card is iPXE, which would start our kernel by itself: here the firmware's own PXE does.
                text = text.replace("-device e1000e,netdev", "-device virtio-net-pci,romfile=,netdev");
                Some((SECURE_CODE, SECURE_VARS))
            }
        };
        if let Some((code, known)) = flash {
            let vars = format!("{name}.vars.fd");
            let path = self.directory.join(&vars);
            if !path.exists() {
                fs::copy(known, &path)
                    .map_err(|e| self.io_failed("copying OVMF's variables (run `make deps`)", e))?;
            }
            text.push_str(&format!(
                " -drive if=pflash,unit=0,format=raw,readonly=on,file={code} -drive if=pflash,unit=1,format=raw,file={vars}"
            ));
        }
        let mut arguments: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        if let Some(disk) = disk {
            // QEMU reads a comma in a value as two of them.
            let path = disk.display().to_string().replace(',', ",,");
            let file = if disk.is_dir() { format!("fat:{path},snapshot=on") } else { path };
            arguments.extend(["-drive".into(), format!("if=none,id=disk0,format=raw,file={file}")]);
            arguments.extend(["-device", "ide-hd,drive=disk0,bootindex=2"].map(str::to_owned));
        }
        Ok(arguments)
    }

    fn follow_serial(self: Arc<Self>, serial: UnixStream) {
        let path = self.directory.join(format!("{}.serial.log", self.hardware.name));
        std::thread::spawn(move || {
            let Ok(mut log) = OpenOptions::new().create(true).append(true).open(path) else { return };
            let mut reader = BufReader::new(serial);
            let mut line = vec![];
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                drop(log.write_all(&line));
                let text = String::from_utf8_lossy(&line);
                if let Some(at) = text.find("labshift: ") {
                    self.note("serial", text[at..].trim_end());
                } else if let Some(at) = text.find("BdsDxe: failed") {
                    self.note("firmware", text[at..].trim_end());
                }
                line.clear();
            }
        });
    }

    fn hear(self: &Arc<Self>, event: &str, data: &serde_json::Value) {
        match event {
            "RESET" => self.note("reset", data["reason"].as_str().unwrap_or_default()),
            // The power must be taken away outside of the reader's thread: it talks to the same QEMU.
            "SHUTDOWN" if data["reason"] == "guest-shutdown" => {
                let workstation = self.clone();
                std::thread::spawn(move || workstation.power_off());
            }
            "GUEST_PANICKED" => self.note("guest-panicked", ""),
            _ => {}
        }
    }

    /// The guest has powered off: the mainboard looks what the card was left with.
    fn power_off(&self) {
        let Some(qmp) = self.qmp() else { return };
        let armed = wake::is_armed(&qmp);
        let mut state = self.lock();
        let Some(mut machine) = state.machine.take() else { return };
        drop(machine.child.kill());
        drop(machine.child.wait());
        state.power.on = false;
        state.power.armed = *armed.as_ref().unwrap_or(&false);
        drop(state);
        let words = match armed {
            Ok(true) => "armed for a magic packet".to_owned(),
            Ok(false) => "not armed for a magic packet".to_owned(),
            Err(reason) => format!("the network card can't be read: {reason}"),
        };
        self.note("powered-off", &words);
    }

    /// QEMU has hung up. When nobody took the power of this start away, QEMU has failed.
    fn lost(&self, start: u32) {
        self.switch.forget(self.port);
        let mut state = self.lock();
        if state.power.starts != start {
            return;
        }
        let Some(mut machine) = state.machine.take() else { return };
        drop(machine.child.kill());
        let status = machine.child.wait();
        state.power.on = false;
        state.power.armed = false;
        drop(state);
        let log = self.directory.join(format!("{}.qemu.log", self.hardware.name));
        let said = fs::read_to_string(log).unwrap_or_default();
        let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
        let last = said.lines().last().unwrap_or("it said nothing");
        self.note("powered-off", &format!("QEMU failed ({status}): {last}"));
    }

    fn qmp(&self) -> Option<Arc<Qmp>> {
        self.lock().machine.as_ref().map(|m| m.qmp.clone())
    }

    fn note(&self, event: &str, detail: &str) {
        self.journal.note(&self.hardware.name, event, detail);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_off(&self) -> WorkstationError {
        WorkstationError::Off(self.hardware.name.clone())
    }

    fn qmp_failed(&self, source: QmpError) -> WorkstationError {
        WorkstationError::Qmp { name: self.hardware.name.clone(), source }
    }

    fn io_failed(&self, doing: &str, source: io::Error) -> WorkstationError {
        WorkstationError::Io { name: self.hardware.name.clone(), doing: doing.to_owned(), source }
    }
}

/// One frame in QEMU's stream framing: length as 32 bits, big-endian, then the frame.
fn append(batch: &mut Vec<u8>, frame: &[u8]) {
    batch.extend(u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes());
    batch.extend(frame);
}

/// Moves frames from the machine to the switch until the machine is gone.
fn transmit(input: &mut UnixStream, switch: &Switch, port: PortId) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(256 * 1024, input);
    let mut frame = vec![];
    loop {
        let mut length = [0; 4];
        reader.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        // QEMU's largest frame is 64 KiB and a header; more is a broken stream.
        if length > 128 * 1024 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        frame.resize(length, 0);
        reader.read_exact(&mut frame)?;
        switch.forward(port, &frame);
    }
}

/// Accepts QEMU's connection, or fails when QEMU ends without one.
fn accept_or_exit(listener: &UnixListener, child: &mut Child) -> io::Result<UnixStream> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(200u16))? > 0 {
            return listener.accept().map(|(stream, _)| stream);
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("it ended with {status}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_qemus_framing() {
        let mut batch = vec![];
        append(&mut batch, &[1, 2, 3]);
        assert_eq!(batch, [0, 0, 0, 3, 1, 2, 3]);
    }
}
