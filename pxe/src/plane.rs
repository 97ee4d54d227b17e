//! Brings the boot plane up: takes the ports, or says exactly why it can't, and runs the tasks.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{Arc, Mutex},
};

use axum::Router;
use labshift_model::{
    MacAddr,
    boot::{Directory, Journal},
};
use nix::{
    errno::Errno,
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, setsockopt, socket,
        sockopt::{
            BindToDevice, Broadcast, Ipv4PacketInfo, Ipv6RecvPacketInfo, Ipv6V6Only, RcvBuf, RcvBufForce,
            ReuseAddr,
        },
    },
};
use tokio::{net::UdpSocket as AsyncSocket, sync::oneshot};

use crate::{
    config::{Config, Control, Mode},
    dhcp::{
        self,
        lease::Leases,
        ledger::{Ledger, LedgerError},
        neighbour::mtu,
        reply::{CLIENT_PORT, SERVER_PORT},
        socket::{Server as DhcpServer, Sockets, Table},
    },
    http, solicitation,
    tftp::server::Server as TftpServer,
    wire::{ARP, AsyncWire, Wire},
};

const TFTP_PORT: u16 = 69;
const BOOT_SERVER_PORT: u16 = 4011;
/// Bytes of messages that a socket keeps for us: a few thousand DHCP messages.
const QUEUE: usize = 4 << 20;
/// When the interface does not say.
const ETHERNET_MTU: usize = 1500;

/// Why the boot plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Settings that can't work.
    #[error("boot plane settings: {}", .0.join("; "))]
    Config(Vec<String>),
    /// No such interface.
    #[error("no network interface {0}; `ip link` lists them")]
    NoInterface(String),
    /// Our address is not there.
    #[error(
        "{address} is not an address of interface {interface}; add it: ip address add {address}/{prefix} dev {interface}"
    )]
    NoAddress {
        /// The address.
        address: Ipv4Addr,
        /// Its prefix length.
        prefix: u8,
        /// Where it should be.
        interface: String,
    },
    /// Another program has the port.
    #[error("UDP port {port} is in use by another program; `ss -lunp sport = :{port}` shows which")]
    InUse {
        /// The port.
        port: u16,
    },
    /// We may not.
    #[error(
        "no permission to open UDP port {port} on {interface}; run as root, or give CAP_NET_BIND_SERVICE, CAP_NET_RAW and CAP_NET_ADMIN"
    )]
    Permission {
        /// The port.
        port: u16,
        /// The interface.
        interface: String,
    },
    /// The ledger can't be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Something else.
    #[error("opening UDP port {port} on {interface}")]
    Socket {
        /// The port.
        port: u16,
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
}

/// DHCP, TFTP and the HTTP routes of one interface.
pub struct BootPlane {
    config: Arc<Config>,
    control: Control,
    directory: Arc<dyn Directory>,
    journal: Arc<dyn Journal>,
    interface: u32,
    tftp: UdpSocket,
    tftp_ipv6: Option<UdpSocket>,
    reports: UdpSocket,
    dhcp: Option<Dhcp>,
    leases: Table,
}

struct Dhcp {
    port: UdpSocket,
    boot_server: UdpSocket,
    overheard: Option<UdpSocket>,
    solicitations: Option<UdpSocket>,
    arp: Option<(Wire, MacAddr)>,
    ledger: Ledger,
}

impl BootPlane {
    /// Takes the ports and reads the leases. Nothing is answered before [`BootPlane::serve`].
    pub fn bind(
        config: Config,
        directory: Arc<dyn Directory>,
        journal: Arc<dyn Journal>,
    ) -> Result<Self, BindError> {
        let faults = config.faults();
        if !faults.is_empty() {
            return Err(BindError::Config(faults));
        }
        let interface = if_nametoindex(config.interface.as_str())
            .map_err(|_| BindError::NoInterface(config.interface.clone()))?;
        if !has_address(&config) {
            let (address, prefix) = (config.server_address, config.prefix);
            return Err(BindError::NoAddress { address, prefix, interface: config.interface });
        }
        let tftp = open(&config, config.server_address, TFTP_PORT, false)?;
        let tftp_ipv6 = config.tftp_ipv6.then(|| open_ipv6(&config, TFTP_PORT)).transpose()?;
        let reports = open(&config, Ipv4Addr::UNSPECIFIED, config.http_port, false)?;
        let leases = Table::default();
        let dhcp = match config.mode {
            Mode::Off => None,
            Mode::Authoritative | Mode::Proxy => {
                let any = Ipv4Addr::UNSPECIFIED;
                let port = open(&config, any, SERVER_PORT, false)?;
                let boot_server = open(&config, any, BOOT_SERVER_PORT, false)?;
                let overheard = open(&config, any, CLIENT_PORT, true)
                    .inspect_err(|e| tracing::warn!("other DHCP servers will not be noticed: {e}"))
                    .ok();
                let solicitations = solicitation::open(&config.interface, interface)
                    .inspect_err(|e| tracing::info!("iPXE will wait 16 s for IPv6 routers ({e})"))
                    .ok()
                    .filter(|_| config.mode == Mode::Authoritative);
                let arp = (config.mode == Mode::Authoritative && !config.probe.is_zero())
                    .then(|| Ok((Wire::open(interface, ARP)?, card(&config.interface)?)))
                    .transpose()
                    .inspect_err(|e: &io::Error| {
                        tracing::warn!("addresses are offered without asking the wire who has them: {e}");
                    })
                    .unwrap_or_default();
                let (ledger, entries) = Ledger::open(&config.state)?;
                *dhcp::socket::now(&leases) = Leases::from_ledger(entries);
                Some(Dhcp { port, boot_server, overheard, solicitations, arp, ledger })
            }
        };
        let config = Arc::new(config);
        let control = Control::new(config.clone());
        Ok(BootPlane {
            config,
            control,
            directory,
            journal,
            interface,
            tftp,
            tftp_ipv6,
            reports,
            dhcp,
            leases,
        })
    }

    /// The HTTP routes. They need the peer's address: serve them with
    /// `into_make_service_with_connect_info::<SocketAddr>()`.
    pub fn http_router(&self) -> Router {
        let leases = self.leases.clone();
        http::router(self.config.clone(), self.directory.clone(), self.journal.clone(), leases)
    }

    /// The server for the HTTP port, which sends images without the detour through the router.
    pub fn http_front(&self) -> http::Front {
        let leases = self.leases.clone();
        http::Front::new(self.config.clone(), self.directory.clone(), self.journal.clone(), leases)
    }

    /// Changes the settings while it runs.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Where the caller should listen for HTTP.
    pub fn http_address(&self) -> SocketAddr {
        (self.config.server_address, self.config.http_port).into()
    }

    /// Answers DHCP and TFTP, and hears reports by datagram, until `shutdown` completes; then open transfers end. Fails when a
    /// socket does.
    ///
    /// DHCP has a thread to itself: a room that wakes at once is answered whatever else the server is busy with.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> io::Result<()> {
        let mtu = mtu(&self.config.interface).await.unwrap_or(ETHERNET_MTU);
        let serve_files = |socket| {
            let server = TftpServer { config: self.config.clone(), journal: self.journal.clone(), mtu };
            io::Result::Ok(tokio::spawn(server.run(asynchronous(socket)?)))
        };
        let tftp = serve_files(self.tftp)?;
        let tftp_ipv6 = self.tftp_ipv6.map(serve_files).transpose()?;
        let aborts =
            [Some(&tftp), tftp_ipv6.as_ref()].map(|task| task.map(|t| AbortOnDrop(t.abort_handle())));
        let tftp_ipv6 = async {
            match tftp_ipv6 {
                Some(task) => task.await,
                None => std::future::pending().await,
            }
        };
        let reports = http::report::hear_datagrams(asynchronous(self.reports)?, self.journal.clone());
        let (config, directory, journal) = (self.control, self.directory, self.journal);
        let (leases, interface) = (self.leases, self.interface);
        let (stop, stopped) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel();
        let dhcp = self.dhcp.is_some();
        if let Some(parts) = self.dhcp {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new().name("dhcp".to_owned()).spawn(move || {
                let listening = directory.clone();
                let ledger = Arc::new(Mutex::new(parts.ledger));
                let server = DhcpServer { config, directory, journal, leases, ledger, interface };
                let dhcp = async {
                    let solicitations = parts.solicitations.map(asynchronous).transpose()?;
                    let sockets = Sockets {
                        dhcp: asynchronous(parts.port)?,
                        boot_server: asynchronous(parts.boot_server)?,
                        overheard: parts.overheard.map(asynchronous).transpose()?,
                        arp: parts
                            .arp
                            .map(|(wire, mac)| io::Result::Ok((AsyncWire::new(wire)?, mac)))
                            .transpose()?,
                    };
                    let solicitations = async {
                        match solicitations {
                            Some(socket) => solicitation::run(socket, listening).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::try_join!(server.run(sockets), solicitations).map(drop)
                };
                let result = runtime.block_on(async {
                    tokio::select! {
                        result = dhcp => result,
                        _ = stopped => Ok(()),
                    }
                });
                drop(end.send(result));
            })?;
        }
        let result = tokio::select! {
            ended = tftp => ended.map_err(io::Error::other)?,
            ended = tftp_ipv6 => ended.map_err(io::Error::other)?,
            ended = reports => ended,
            ended = ended, if dhcp => ended.unwrap_or_else(|_| Err(io::Error::other("the DHCP thread broke down"))),
            () = shutdown => Ok(()),
        };
        drop((stop, aborts));
        result
    }
}

/// A task that ends with whoever waits for it.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asked of the interface itself: the kernel may let a socket take an address that is elsewhere, or nowhere.
fn has_address(config: &Config) -> bool {
    let own = |address: InterfaceAddress| {
        let ip = address.address.as_ref()?.as_sockaddr_in()?.ip();
        Some(address.interface_name == config.interface && ip == config.server_address)
    };
    getifaddrs().is_ok_and(|mut all| all.any(|address| own(address) == Some(true)))
}

/// The hardware address of an interface.
fn card(interface: &str) -> io::Result<MacAddr> {
    let own = |address: InterfaceAddress| {
        address.address.as_ref()?.as_link_addr().filter(|_| address.interface_name == interface)?.addr()
    };
    getifaddrs()?
        .find_map(own)
        .map(MacAddr)
        .ok_or_else(|| io::Error::other("the interface has no hardware address"))
}

fn asynchronous(socket: UdpSocket) -> io::Result<AsyncSocket> {
    socket.set_nonblocking(true)?;
    AsyncSocket::from_std(socket)
}

/// A UDP socket of this interface alone, so that a server on another interface of the same machine is not in the way.
/// `shared` ports are ours only to listen on beside a DHCP client.
fn open(config: &Config, address: Ipv4Addr, port: u16, shared: bool) -> Result<UdpSocket, BindError> {
    let opened = || -> nix::Result<UdpSocket> {
        let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, BindToDevice, &config.interface.clone().into())?;
        setsockopt(&fd, Broadcast, &true)?;
        setsockopt(&fd, Ipv4PacketInfo, &true)?;
        // While a batch of leases goes to the disk, the next messages wait here. Without CAP_NET_ADMIN the system's limit holds.
        if setsockopt(&fd, RcvBufForce, &QUEUE).is_err() {
            setsockopt(&fd, RcvBuf, &QUEUE)?;
        }
        if shared {
            setsockopt(&fd, ReuseAddr, &true)?;
        }
        bind(fd.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(address, port)))?;
        Ok(fd.into())
    };
    opened().map_err(|errno| refusal(errno, config, address, port))
}

/// The same for IPv6, on every address of the interface. A packet comes with the address that it was sent to.
fn open_ipv6(config: &Config, port: u16) -> Result<UdpSocket, BindError> {
    let opened = || -> nix::Result<UdpSocket> {
        let fd = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, BindToDevice, &config.interface.clone().into())?;
        setsockopt(&fd, Ipv6V6Only, &true)?;
        setsockopt(&fd, Ipv6RecvPacketInfo, &true)?;
        let any = std::net::SocketAddrV6::new(std::net::Ipv6Addr::UNSPECIFIED, port, 0, 0);
        bind(fd.as_raw_fd(), &SockaddrIn6::from(any))?;
        Ok(fd.into())
    };
    opened().map_err(|errno| refusal(errno, config, Ipv4Addr::UNSPECIFIED, port))
}

fn refusal(errno: Errno, config: &Config, address: Ipv4Addr, port: u16) -> BindError {
    let interface = || config.interface.clone();
    match errno {
        Errno::EADDRINUSE => BindError::InUse { port },
        Errno::EPERM | Errno::EACCES => BindError::Permission { port, interface: interface() },
        Errno::EADDRNOTAVAIL => {
            BindError::NoAddress { address, prefix: config.prefix, interface: interface() }
        }
        other => BindError::Socket { port, interface: interface(), source: other.into() },
    }
}
