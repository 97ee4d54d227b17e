//! The kernel calls that no safe crate wraps: modules, loop devices, device-mapper, Wake-on-LAN, and the steps between fork
//! and exec. The crate's only unsafe code; everything else passes plain values in and gets plain values out.
#![allow(unsafe_code)] // ioctl and finit_module take raw pointers; pre_exec runs in a forked child.

use std::{
    ffi::{CStr, CString},
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    errno::Errno,
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
    unistd::Pid,
};

/// Milliseconds since the kernel started, suspend included.
pub fn boottime_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(|t| t.tv_sec() as u64 * 1000 + t.tv_nsec() as u64 / 1_000_000)
        .unwrap_or_default()
}

/// Milliseconds since the epoch, by this machine's clock.
pub fn realtime_ms() -> i64 {
    clock_gettime(ClockId::CLOCK_REALTIME)
        .map(|t| t.tv_sec() * 1000 + t.tv_nsec() / 1_000_000)
        .unwrap_or_default()
}

/// Sets the wall clock, in milliseconds since the epoch.
pub fn set_realtime_ms(ms: i64) -> io::Result<()> {
    let time = TimeSpec::new(ms.div_euclid(1000), ms.rem_euclid(1000) * 1_000_000);
    Ok(clock_settime(ClockId::CLOCK_REALTIME, time)?)
}

/// `finit_module(2)`.
pub fn load_module(file: &File, compressed: bool, parameters: &CStr) -> io::Result<()> {
    const MODULE_INIT_COMPRESSED_FILE: libc::c_int = 4;
    let flags = if compressed { MODULE_INIT_COMPRESSED_FILE } else { 0 };
    // SAFETY: descriptor and parameter string live through the call.
    let rc = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), flags) };
    Errno::result(rc)?;
    Ok(())
}

/// Large pieces of memory, other than the root's chunks, come from the kernel one by one and go back to it as soon as they are free: a process
/// that lives for months must not keep the holes that its first seconds left, in one heap for each of its threads (`mallopt(3)`).
pub fn return_memory() {
    const LARGE: libc::c_int = 2 * crate::blocks::CHUNK as libc::c_int;
    // SAFETY: plain numbers, before there is another thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives way to everybody else: this thread gets the processors when nobody wants them (`setpriority(2)`).
pub fn give_way() {
    const LOWEST: libc::c_int = 19;
    // SAFETY: plain numbers; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST) };
}

/// Takes a thread's giving way back.
pub fn take_turn(thread: Pid) {
    // SAFETY: plain numbers; a thread that has ended is none.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, thread.as_raw() as libc::id_t, 0) };
}

fn ioctl(fd: RawFd, request: u64, argument: *mut libc::c_void) -> io::Result<i32> {
    // SAFETY: every caller in this module passes what `request` documents: a buffer that lives through the call, or a plain
    // number in the pointer's place.
    let rc = unsafe { libc::ioctl(fd, request as libc::Ioctl, argument) };
    Ok(Errno::result(rc)?)
}

/// Puts a file behind a free loop device, read-only; the device goes away with its last user. Returns its
/// path, and a descriptor to keep until another user has it open.
///
/// `linux/loop.h`: `struct loop_config` is fd, block size, `struct loop_info64` (232 bytes), 64 reserved bytes.
pub fn attach_loop(dev: &Path, backing: &File, block_size: u32) -> io::Result<(PathBuf, File)> {
    const LOOP_CTL_GET_FREE: u64 = 0x4C82;
    const LOOP_CONFIGURE: u64 = 0x4C0A;
    const LO_FLAGS_READ_ONLY: u32 = 1;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    const FLAGS_AT: usize = 15; // in 32-bit words: after fd, block size, five u64 and three u32
    let control = OpenOptions::new().read(true).write(true).open(dev.join("loop-control"))?;
    loop {
        let number = ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE, std::ptr::null_mut())?;
        let path = dev.join(format!("loop{number}"));
        let device = OpenOptions::new().read(true).open(&path)?;
        let mut config = [0u32; 304 / 4];
        config[0] = backing.as_raw_fd() as u32;
        config[1] = block_size;
        config[FLAGS_AT] = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
        match ioctl(device.as_raw_fd(), LOOP_CONFIGURE, config.as_mut_ptr().cast()) {
            // Another process took this number in between.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => continue,
            Err(e) => return Err(e),
            Ok(_) => {
                return Ok((path, device));
            }
        }
    }
}

/// Gives a network block device its sockets, its size in blocks, and makes it read-only (`linux/nbd.h`).
pub fn configure_nbd(device: &File, sockets: &[OwnedFd], block: u64, blocks: u64) -> io::Result<()> {
    const NBD_SET_SOCK: u64 = 0xAB00;
    const NBD_SET_BLKSIZE: u64 = 0xAB01;
    const NBD_SET_SIZE_BLOCKS: u64 = 0xAB07;
    const NBD_SET_FLAGS: u64 = 0xAB0A;
    const HAS_FLAGS: u64 = 1;
    const READ_ONLY: u64 = 1 << 1;
    const MULTI_CONN: u64 = 1 << 8;
    let set = |request, value: u64| ioctl(device.as_raw_fd(), request, value as *mut libc::c_void).map(drop);
    set(NBD_SET_BLKSIZE, block)?;
    set(NBD_SET_SIZE_BLOCKS, blocks)?;
    set(NBD_SET_FLAGS, HAS_FLAGS | READ_ONLY | MULTI_CONN)?;
    sockets.iter().try_for_each(|socket| set(NBD_SET_SOCK, socket.as_raw_fd() as u64))
}

/// Runs a configured network block device; returns when it is stopped.
pub fn run_nbd(device: &File) -> io::Result<()> {
    const NBD_DO_IT: u64 = 0xAB03;
    ioctl(device.as_raw_fd(), NBD_DO_IT, std::ptr::null_mut()).map(drop)
}

/// Stops a network block device, if it runs.
pub fn stop_nbd(device: &File) -> io::Result<()> {
    const NBD_DISCONNECT: u64 = 0xAB08;
    const NBD_CLEAR_SOCK: u64 = 0xAB04;
    ioctl(device.as_raw_fd(), NBD_DISCONNECT, std::ptr::null_mut())?;
    ioctl(device.as_raw_fd(), NBD_CLEAR_SOCK, std::ptr::null_mut()).map(drop)
}

/// What may be done with a device-mapper device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write it, too.
    Write,
}

/// Creates a device-mapper device with one target over the whole of it and starts it. Returns its path.
///
/// `linux/dm-ioctl.h`: `struct dm_ioctl` is 312 bytes, then `struct dm_target_spec` (40 bytes), then the parameters.
pub fn create_mapping(
    dev: &Path,
    name: &str,
    target: &str,
    sectors: u64,
    parameters: &str,
    access: Access,
) -> io::Result<PathBuf> {
    const DEV_CREATE: u64 = 3;
    const DEV_SUSPEND: u64 = 6; // without the suspend flag: resume
    const TABLE_LOAD: u64 = 9;
    const SPEC: usize = 40;
    if name.len() > 100 || target.len() > 15 || parameters.len() > 8192 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let control = OpenOptions::new().read(true).write(true).open(dev.join("mapper/control"))?;
    let number = MappingRequest::of(name, 0, access).send(&control, DEV_CREATE)?;
    let mut table = MappingRequest::of(name, SPEC + parameters.len() + 1, access);
    table.put(20, &1u32.to_le_bytes());
    let spec = MappingRequest::HEADER;
    table.put(spec + 8, &sectors.to_le_bytes());
    table.put(spec + 24, target.as_bytes());
    table.put(spec + SPEC, parameters.as_bytes());
    table.send(&control, TABLE_LOAD)?;
    MappingRequest::of(name, 0, access).send(&control, DEV_SUSPEND)?;
    let minor = (number & 0xff) | ((number >> 12) & 0xf_ff00);
    Ok(dev.join(format!("dm-{minor}")))
}

/// Removes a device-mapper device by name.
pub fn remove_mapping(dev: &Path, name: &str) -> io::Result<()> {
    const DEV_REMOVE: u64 = 4;
    let control = OpenOptions::new().read(true).write(true).open(dev.join("mapper/control"))?;
    let mut request = MappingRequest::new(name, 0);
    request.send(&control, DEV_REMOVE).map(drop)
}

/// `struct dm_ioctl` and what follows it, as 64-bit words.
struct MappingRequest(Vec<u64>);

impl MappingRequest {
    const HEADER: usize = 312;

    fn new(name: &str, after: usize) -> Self {
        Self::of(name, after, Access::Read)
    }

    fn of(name: &str, after: usize, access: Access) -> Self {
        const READONLY: u32 = 1;
        let flags = if access == Access::Read { READONLY } else { 0 };
        let size = (Self::HEADER + after).next_multiple_of(8);
        let mut request = MappingRequest(vec![0; size / 8]);
        request.put(0, &4u32.to_le_bytes()); // interface version 4.0.0
        request.put(12, &(size as u32).to_le_bytes());
        request.put(16, &(Self::HEADER as u32).to_le_bytes());
        request.put(28, &flags.to_le_bytes());
        request.put(48, name.as_bytes());
        request
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (i, byte) in (at..).zip(bytes) {
            self.0[i / 8] |= u64::from(*byte) << (8 * (i % 8));
        }
    }

    /// Sends the request; returns the device number of the answer.
    fn send(&mut self, control: &File, command: u64) -> io::Result<u64> {
        let request = 0xC000_0000 | ((Self::HEADER as u64) << 16) | 0xFD00 | command;
        ioctl(control.as_raw_fd(), request, self.0.as_mut_ptr().cast())?;
        Ok(self.0[5]) // dev, at byte 40
    }
}

/// Swaps to a device that has a swap header (`swapon(2)`).
pub fn swap_on(device: &Path) -> io::Result<()> {
    let path = CString::new(device.as_os_str().as_encoded_bytes())?;
    // SAFETY: a NUL-terminated path that lives through the call.
    Errno::result(unsafe { libc::swapon(path.as_ptr(), 0) })?;
    Ok(())
}

/// A file that exists in memory only.
pub fn memory_file() -> io::Result<File> {
    // SAFETY: a constant name; the descriptor that comes back is owned by nobody else.
    unsafe {
        let descriptor = Errno::result(libc::memfd_create(c"labshift".as_ptr(), libc::MFD_CLOEXEC))?;
        Ok(File::from_raw_fd(descriptor))
    }
}

/// Loads a kernel to be started by [`start_loaded_kernel`] (`kexec_file_load(2)`).
pub fn load_kernel(kernel: &File, initrd: &File, command_line: &str) -> io::Result<()> {
    let text = CString::new(command_line)?;
    let length = text.as_bytes_with_nul().len();
    // SAFETY: open descriptors, and a NUL-terminated text with its length; the kernel copies all of it.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            length,
            text.as_ptr(),
            0_u64,
        )
    };
    Errno::result(loaded)?;
    Ok(())
}

/// Starts the loaded kernel. Comes back only with the reason why not.
pub fn start_loaded_kernel() -> Errno {
    // SAFETY: a plain system call.
    unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    Errno::last()
}

/// What a port says about Wake-on-LAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeOnLan {
    /// The hardware can wake on a magic packet.
    pub supported: bool,
    /// It will.
    pub armed: bool,
}

const WAKE_MAGIC: u32 = 1 << 5;

/// Reads a port's Wake-on-LAN setting (`ETHTOOL_GWOL`).
pub fn wake_on_lan(interface: &str) -> io::Result<WakeOnLan> {
    const ETHTOOL_GWOL: u32 = 5;
    let [_, supported, options, ..] = ethtool(interface, [ETHTOOL_GWOL, 0, 0, 0, 0])?;
    Ok(WakeOnLan { supported: supported & WAKE_MAGIC != 0, armed: options & WAKE_MAGIC != 0 })
}

/// Arms Wake-on-LAN by magic packet (`ETHTOOL_SWOL`).
pub fn arm_wake_on_lan(interface: &str) -> io::Result<()> {
    const ETHTOOL_SWOL: u32 = 6;
    ethtool(interface, [ETHTOOL_SWOL, 0, WAKE_MAGIC, 0, 0]).map(drop)
}

/// `struct ethtool_wolinfo`: command, supported, options, six bytes of password.
fn ethtool(interface: &str, mut info: [u32; 5]) -> io::Result<[u32; 5]> {
    const SIOCETHTOOL: u64 = 0x8946;
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        data: *mut libc::c_void,
        rest: [u64; 2],
    }
    let mut name = [0; 16];
    if interface.len() >= name.len() || interface.is_empty() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    name[..interface.len()].copy_from_slice(interface.as_bytes());
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut request = Request { name, data: info.as_mut_ptr().cast(), rest: [0; 2] };
    ioctl(socket.as_raw_fd(), SIOCETHTOOL, (&raw mut request).cast())?;
    Ok(info)
}

/// What a service's process becomes between fork and exec.
#[derive(Debug, Default)]
pub struct Birth {
    /// An open `cgroup.procs` to join.
    pub cgroup: Option<File>,
    /// Standard input is a terminal: make it the controlling one.
    pub terminal: bool,
    /// User, group and supplementary groups; stays root without.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// Directory that becomes its root.
    pub root: Option<CString>,
    /// A listening socket that becomes its descriptor 3, with `LISTEN_PID` in its environment (sd_listen_fds(3)).
    pub socket: Option<OwnedFd>,
}

/// Arranges for `command` to start in its own session, as `birth` says. With a socket, `command` is to be complete, and to name its
/// program by an absolute path and its whole environment.
pub fn prepare(command: &mut Command, birth: Birth) {
    let mut activated = birth.socket.is_some().then(|| Activated::of(command));
    let steps = move || -> io::Result<()> {
        if let Some(procs) = &birth.cgroup {
            // SAFETY: write(2) of a constant to an open descriptor; nothing is allocated.
            Errno::result(unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) })?;
        }
        // SAFETY: plain system calls with values that were prepared before the fork.
        unsafe {
            Errno::result(libc::setsid())?;
            if let Some(root) = &birth.root {
                Errno::result(libc::chroot(root.as_ptr()))?;
                Errno::result(libc::chdir(c"/".as_ptr()))?;
            }
            if birth.terminal {
                Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 1))?;
            }
            if let Some((uid, gid, groups)) = &birth.user {
                Errno::result(libc::setgroups(groups.len(), groups.as_ptr()))?;
                Errno::result(libc::setgid(*gid))?;
                Errno::result(libc::setuid(*uid))?;
            }
        }
        match (&birth.socket, &mut activated) {
            (Some(socket), Some(activated)) => Err(activated.exec(socket.as_raw_fd()).into()),
            _ => Ok(()),
        }
    };
    // SAFETY: the closure makes system calls only: no allocation, no locks.
    unsafe { command.pre_exec(steps) };
}

/// A program with its arguments and its environment, laid out before the fork. `LISTEN_PID` is known only after it, when nothing may be
/// allocated any more, and [`Command`] has fixed its environment by then: so the child calls `execve(2)` by itself.
struct Activated {
    program: CString,
    /// `LISTEN_PID=`, then room for the number and a NUL.
    pid: [u8; 24],
    argv: Vec<*const libc::c_char>,
    /// The first is `pid`, once it is known.
    envp: Vec<*const libc::c_char>,
    /// What `argv` and the rest of `envp` point to.
    _texts: Vec<CString>,
}

// SAFETY: the pointers are into texts that the value owns and nobody else knows.
unsafe impl Send for Activated {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for Activated {}

impl Activated {
    const PID: &[u8] = b"LISTEN_PID=";

    fn of(command: &Command) -> Self {
        // A text with a NUL is missing here, and then Command refuses to spawn.
        let text = |bytes: &[u8]| CString::new(bytes).ok();
        let program = text(command.get_program().as_bytes()).unwrap_or_default();
        let arguments = std::iter::once(command.get_program()).chain(command.get_args());
        let arguments: Vec<CString> = arguments.filter_map(|a| text(a.as_bytes())).collect();
        let variables = command
            .get_envs()
            .filter_map(|(name, value)| text(&[name.as_bytes(), b"=", value?.as_bytes()].concat()));
        let variables: Vec<CString> = variables.collect();
        let mut pid = [0; 24];
        pid[..Self::PID.len()].copy_from_slice(Self::PID);
        let end = std::iter::once(std::ptr::null());
        let argv = arguments.iter().map(|a| a.as_ptr()).chain(end.clone()).collect();
        let envp = end.clone().chain(variables.iter().map(|v| v.as_ptr())).chain(end).collect();
        Activated { program, pid, argv, envp, _texts: arguments.into_iter().chain(variables).collect() }
    }

    /// Becomes the program, with `socket` as descriptor 3. Comes back only with the reason why not.
    ///
    /// [`Command`] tells such a reason over a descriptor of its own. That is never 3: `socket` itself, or whatever kept it from
    /// being 3, was open before.
    fn exec(&mut self, socket: RawFd) -> Errno {
        const FIRST: RawFd = 3; // SD_LISTEN_FDS_START
        // SAFETY: plain system calls.
        let (pid, moved) = unsafe {
            // A descriptor that is 3 already is not made anew, and would be closed by the exec.
            let moved = if socket == FIRST {
                libc::fcntl(FIRST, libc::F_SETFD, 0)
            } else {
                libc::dup2(socket, FIRST)
            };
            (libc::getpid(), moved)
        };
        if let Err(why) = Errno::result(moved) {
            return why;
        }
        let (mut rest, mut digits) = (pid, 1);
        while rest >= 10 {
            (rest, digits) = (rest / 10, digits + 1);
        }
        rest = pid;
        for at in (0..digits).rev() {
            self.pid[Self::PID.len() + at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.envp[0] = self.pid.as_ptr().cast();
        // SAFETY: NUL-terminated texts, and lists of them that end with a null pointer; all live until the program is another.
        unsafe { libc::execve(self.program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        Errno::last()
    }
}
