//! Where a server listens and a client connects: `unix:PATH` or `vsock:CID:PORT`. There is no TCP.

use std::{
    fmt,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use nix::sys::{
    socket::{
        self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrLike, UnixAddr, VsockAddr,
        sockopt::{ReceiveTimeout, SendTimeout},
    },
    time::{TimeVal, TimeValLike},
};
use thiserror::Error;

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Unix socket.
    Unix(PathBuf),
    /// Socket between a virtual machine and its host.
    Vsock {
        /// Context: 2 is the host, 0xffffffff means any when listening.
        cid: u32,
        /// Port.
        port: u32,
    },
}

/// A text is no [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no address: write unix:PATH or vsock:CID:PORT (the host is CID 2)")]
pub struct BadEndpoint(String);

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let bad = || BadEndpoint(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("vsock", rest)) => {
                let (cid, port) = rest.split_once(':').ok_or_else(bad)?;
                Ok(Self::Vsock {
                    cid: cid.parse().map_err(|_| bad())?,
                    port: port.parse().map_err(|_| bad())?,
                })
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

impl Endpoint {
    fn socket(&self) -> io::Result<OwnedFd> {
        let family = match self {
            Self::Unix(_) => AddressFamily::Unix,
            Self::Vsock { .. } => AddressFamily::Vsock,
        };
        Ok(socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
    }

    fn address(&self) -> io::Result<Box<dyn SockaddrLike>> {
        Ok(match self {
            Self::Unix(path) => Box::new(UnixAddr::new(path)?),
            Self::Vsock { cid, port } => Box::new(VsockAddr::new(*cid, *port)),
        })
    }

    /// Connects.
    pub fn connect(&self) -> io::Result<Connection> {
        let fd = self.socket()?;
        socket::connect(fd.as_raw_fd(), &*self.address()?)?;
        Ok(Connection { fd })
    }

    /// Listens. A Unix socket that nobody serves any more is replaced; one that is served is left alone.
    pub fn listen(&self) -> io::Result<OwnedFd> {
        if let Self::Unix(path) = self
            && std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
        {
            match self.connect() {
                Ok(_) => {
                    let text = format!("another server listens on {}", path.display());
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
                }
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                Err(e) => return Err(e),
            }
        }
        let fd = self.socket()?;
        socket::bind(fd.as_raw_fd(), &*self.address()?)?;
        if let Self::Unix(path) = self {
            // Before listen(): nobody can have connected with the wider mode that the umask gave.
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        }
        socket::listen(&fd, Backlog::new(64)?)?;
        Ok(fd)
    }
}

/// A connected stream socket of any family. Writing to a closed one is an error, never a signal.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
}

impl Connection {
    /// Limits how long a read or write may wait; zero waits for ever.
    pub fn set_timeout(&self, limit: Duration) -> io::Result<()> {
        let limit = TimeVal::milliseconds(limit.as_millis() as i64);
        socket::setsockopt(&self.fd, ReceiveTimeout, &limit)?;
        socket::setsockopt(&self.fd, SendTimeout, &limit)?;
        Ok(())
    }
}

impl From<OwnedFd> for Connection {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> Self {
        connection.fd
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(socket::recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty())?)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(socket::send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, endpoint) in [
            ("unix:/run/x.sock", Endpoint::Unix("/run/x.sock".into())),
            ("vsock:2:9700", Endpoint::Vsock { cid: 2, port: 9700 }),
        ] {
            assert_eq!(text.parse(), Ok(endpoint.clone()));
            assert_eq!(endpoint.to_string(), text);
        }
        for text in ["", "unix:", "tcp:1.2.3.4:5", "vsock:2", "vsock:host:9700", "/run/x.sock"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let endpoint = Endpoint::Unix(folder.path().join("s"));
        let first = endpoint.listen()?;
        assert_eq!(endpoint.listen().err().map(|e| e.kind()), Some(io::ErrorKind::AddrInUse));
        drop(first);
        endpoint.listen()?;
        Ok(())
    }
}
