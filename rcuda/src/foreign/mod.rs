//! Calls into the kernel and into the driver's library that the compiler can't check. The only unsafe code of
//! this crate: a C library has no other door, and the kernel's accept() hands out a bare number.
#![allow(unsafe_code)]

pub mod libcuda;

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::sys::socket::{SockFlag, accept4};

/// Takes the next connection of a listening socket.
pub fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
