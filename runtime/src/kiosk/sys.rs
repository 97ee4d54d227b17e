//! The few calls that the kernel gives no safe face to: adopting file descriptors, and a terminal's graphics mode.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{self, IoSliceMut, Read},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};

nix::ioctl_write_int_bad!(
    /// `KDSETMODE` of `linux/kd.h`.
    kd_set_mode,
    0x4b3a
);

/// Who draws on the screen of a virtual terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawing {
    /// The kernel's text console.
    Text = 0,
    /// A program.
    Graphics = 1,
}

/// Says who draws on the screen of this terminal.
pub fn set_drawing(terminal: &File, drawing: Drawing) -> io::Result<()> {
    // SAFETY: KDSETMODE takes a plain number, and `terminal` is open for the whole call.
    unsafe { kd_set_mode(terminal.as_raw_fd(), drawing as i32) }?;
    Ok(())
}

/// Adopts a descriptor that the parent process left open for us under this number.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "0, 1 and 2 have their own meaning"));
    }
    nix::fcntl::fcntl(
        // SAFETY: only used to ask the kernel whether the number is an open descriptor.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(number) },
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )?;
    // SAFETY: it is open, and nothing else in this process knows of it: it is named on the command line.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Reads bytes and attached descriptors from a socket; plain bytes from a pipe.
#[derive(Debug)]
pub struct Receiver {
    source: File,
    plain: bool,
}

impl Receiver {
    /// Reads from this descriptor.
    pub fn new(source: OwnedFd) -> Self {
        Self { source: File::from(source), plain: false }
    }

    /// Waits for the next bytes and what came with them. No bytes: the other end is closed.
    pub fn receive(&mut self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = vec![0; 4096];
        let mut fds = Vec::new();
        let length = if self.plain {
            self.source.read(&mut bytes)?
        } else {
            let mut space = nix::cmsg_space!([RawFd; 4]);
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.source.as_raw_fd(), &mut slices, Some(&mut space), flags) {
                Ok(message) => {
                    for part in message.cmsgs()? {
                        if let ControlMessageOwned::ScmRights(numbers) = part {
                            // SAFETY: the kernel has just put these descriptors into this process for us alone.
                            fds.extend(numbers.into_iter().map(|n| unsafe { OwnedFd::from_raw_fd(n) }));
                        }
                    }
                    message.bytes
                }
                Err(Errno::ENOTSOCK) => {
                    self.plain = true;
                    self.source.read(&mut bytes)?
                }
                Err(errno) => return Err(errno.into()),
            }
        };
        bytes.truncate(length);
        Ok((bytes, fds))
    }
}

impl std::os::fd::AsFd for Receiver {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.source.as_fd()
    }
}
