//! The server's port: a TAP device in the lab's own network namespace.
#![allow(
    unsafe_code,
    reason = "TUNSETIFF has no safe wrapper; it is called once, on a file we opened, with a zeroed ifreq"
)]

use std::{
    fs::{File, OpenOptions},
    io,
    net::Ipv4Addr,
    os::fd::AsRawFd,
};

use futures_util::TryStreamExt;

mod ioctl {
    nix::ioctl_write_ptr_bad!(tunsetiff, 0x4004_54ca, libc::ifreq);
}

/// Creates the TAP device `name`; it lives as long as the file.
pub fn create(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an all-zero ifreq is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is /dev/net/tun and the pointer is to a live ifreq, as TUNSETIFF wants.
    unsafe { ioctl::tunsetiff(file.as_raw_fd(), &request) }?;
    Ok(file)
}

/// Brings up loopback and the TAP device with its address.
pub fn configure(name: &str, address: Ipv4Addr, prefix: u8) -> Result<(), ConfigureError> {
    let failed =
        |doing: &'static str| move |reason: String| ConfigureError { name: name.to_owned(), doing, reason };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| failed("starting netlink for")(e.to_string()))?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| failed("opening netlink for")(e.to_string()))?;
        tokio::spawn(connection);
        for (link, address) in [("lo", None), (name, Some(address))] {
            let mut found = handle.link().get().match_name(link.to_owned()).execute();
            let index = found
                .try_next()
                .await
                .map_err(|e| failed("looking for")(e.to_string()))?
                .ok_or_else(|| failed("looking for")("it is not there".into()))?
                .header
                .index;
            if let Some(address) = address {
                let add = handle.address().add(index, address.into(), prefix).execute();
                add.await.map_err(|e| failed("giving an address to")(e.to_string()))?;
            }
            let up = rtnetlink::LinkUnspec::new_with_index(index).up().build();
            handle.link().set(up).execute().await.map_err(|e| failed("bringing up")(e.to_string()))?;
        }
        Ok(())
    })
}

/// The server's port could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {name}: {reason}")]
pub struct ConfigureError {
    name: String,
    doing: &'static str,
    reason: String,
}
