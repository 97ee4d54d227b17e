//! What the boot plane must be told: where it listens, which addresses it gives, where the files lie.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

/// Where Debian's package `ipxe` keeps its loaders.
pub const DEBIAN_LOADERS: &str = "/usr/lib/ipxe";

/// Answers to ARP come within milliseconds on a LAN; what sleeps may take longer.
const PROBE: Duration = Duration::from_millis(250);

/// The pool of a network whose addresses are all fixed: it lends none.
pub const NO_POOL: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED);

/// How the boot plane takes part in DHCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// It gives addresses and boot files: the only DHCP server of the network.
    #[default]
    Authoritative,
    /// Another server gives the addresses; we add the boot files (proxyDHCP).
    Proxy,
    /// No DHCP at all: TFTP and HTTP only.
    Off,
}

/// One IPv4 network that clients sit on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// Any address of the network.
    pub network: Ipv4Addr,
    /// Prefix length, 1 to 30.
    pub prefix: u8,
    /// First and last address given to machines without a fixed one; or [`NO_POOL`].
    pub pool: (Ipv4Addr, Ipv4Addr),
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
}

/// Settings of the boot plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Network interface that faces the machines.
    pub interface: String,
    /// Our address on it.
    pub server_address: Ipv4Addr,
    /// Prefix length of its network.
    pub prefix: u8,
    /// First and last address given to machines without a fixed one.
    pub pool: (Ipv4Addr, Ipv4Addr),
    /// Default gateway for clients.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers for clients.
    pub dns: Vec<Ipv4Addr>,
    /// Seconds a lease lasts.
    pub lease_seconds: u32,
    /// Port on which the caller serves [`crate::BootPlane::http_router`].
    pub http_port: u16,
    /// Image store: `images/NAME/GENERATION/`.
    pub store: PathBuf,
    /// Directory for the lease journal.
    pub state: PathBuf,
    /// Directory with `undionly.kpxe` and `snponly.efi`.
    pub loaders: PathBuf,
    /// Whether TFTP is served over IPv6 as well, on all addresses of the interface.
    pub tftp_ipv6: bool,
    /// Part taken in DHCP.
    pub mode: Mode,
    /// Networks behind DHCP relays.
    pub relayed: Vec<Subnet>,
    /// Wait before a reply to firmware: some ROMs miss one that comes at once. Zero for nearly all.
    pub reply_delay: Duration,
    /// How long the wire is listened to before an address is offered to a machine that never had it; zero to ask nobody.
    pub probe: Duration,
}

impl Config {
    /// Settings for one network with usual values: authoritative, leases of an hour, Debian's loaders.
    pub fn new(
        interface: &str,
        server_address: Ipv4Addr,
        prefix: u8,
        store: PathBuf,
        state: PathBuf,
    ) -> Self {
        let pool = default_pool(server_address, prefix);
        Config {
            interface: interface.to_owned(),
            server_address,
            prefix,
            pool,
            gateway: None,
            dns: vec![],
            lease_seconds: 3600,
            http_port: labshift_model::paths::HTTP_PORT,
            store,
            state,
            loaders: PathBuf::from(DEBIAN_LOADERS),
            tftp_ipv6: false,
            mode: Mode::Authoritative,
            relayed: vec![],
            reply_delay: Duration::ZERO,
            probe: PROBE,
        }
    }

    /// The network that the interface itself is on.
    pub fn local(&self) -> Subnet {
        Subnet { network: self.server_address, prefix: self.prefix, pool: self.pool, gateway: self.gateway }
    }

    /// The network that an address lies on.
    pub fn subnet_of(&self, address: Ipv4Addr) -> Option<Subnet> {
        std::iter::once(self.local()).chain(self.relayed.iter().copied()).find(|s| s.contains(address))
    }

    /// `http://ADDRESS:PORT`, without a trailing slash.
    pub fn base_url(&self) -> String {
        format!("http://{}:{}", self.server_address, self.http_port)
    }

    /// Every fault of the settings, each a sentence.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = vec![];
        let networks = std::iter::once(self.local()).chain(self.relayed.iter().copied());
        for subnet in networks {
            let name = format!("network {}/{}", subnet.network, subnet.prefix);
            if !(1..=30).contains(&subnet.prefix) {
                faults.push(format!("{name}: the prefix must be 1 to 30"));
                continue;
            }
            if self.mode != Mode::Authoritative || subnet.pool == NO_POOL {
                continue;
            }
            let (first, last) = subnet.pool;
            if first > last {
                faults.push(format!("{name}: the pool ends ({last}) before it starts ({first})"));
            }
            for end in [first, last] {
                if !subnet.is_host(end) {
                    faults.push(format!("{name}: pool address {end} is not a host address of this network"));
                }
            }
        }
        if self.mode == Mode::Authoritative && self.lease_seconds < 60 {
            faults.push(format!("leases of {} s are too short; give at least 60", self.lease_seconds));
        }
        faults
    }
}

/// The settings in force. Who answers a packet looks them up for that packet.
#[derive(Debug, Clone)]
pub struct Control(Arc<RwLock<Arc<Config>>>);

/// New settings that can't take the place of the old ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("boot plane settings: {}", .0.join("; "))]
pub struct NotReloaded(pub Vec<String>);

impl Control {
    pub(crate) fn new(config: Arc<Config>) -> Self {
        Control(Arc::new(RwLock::new(config)))
    }

    /// The settings now.
    pub fn now(&self) -> Arc<Config> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes new settings over.
    pub fn reload(&self, new: Config) -> Result<(), NotReloaded> {
        self.check(&new)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(())
    }

    /// Whether new settings can be taken over. What sockets and transfers hang on can't change while they are open.
    pub fn check(&self, new: &Config) -> Result<(), NotReloaded> {
        let (old, mut faults) = (self.now(), new.faults());
        let fixed = [
            ("the interface", old.interface != new.interface),
            ("the server's address", (old.server_address, old.prefix) != (new.server_address, new.prefix)),
            ("the HTTP port", old.http_port != new.http_port),
            ("the DHCP mode", old.mode != new.mode),
            ("TFTP over IPv6", old.tftp_ipv6 != new.tftp_ipv6),
            ("the image store", old.store != new.store),
            ("the state directory", old.state != new.state),
        ];
        let changed = fixed.into_iter().filter(|(_, changed)| *changed);
        faults
            .extend(changed.map(|(what, _)| format!("{what} changes only when the server is started anew")));
        if faults.is_empty() { Ok(()) } else { Err(NotReloaded(faults)) }
    }
}

impl Subnet {
    /// The network mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(mask(self.prefix))
    }

    /// The network's broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | !mask(self.prefix))
    }

    /// Whether the address lies on this network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (u32::from(address) ^ u32::from(self.network)) & mask(self.prefix) == 0
    }

    /// Whether the address lies on this network and may be a machine's.
    pub fn is_host(&self, address: Ipv4Addr) -> bool {
        let host = u32::from(address) & !mask(self.prefix);
        self.contains(address) && host != 0 && host != !mask(self.prefix)
    }

    /// Whether the address is one that the pool gives.
    pub fn pools(&self, address: Ipv4Addr) -> bool {
        (self.pool.0..=self.pool.1).contains(&address) && self.is_host(address)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

/// The upper half of the network.
fn default_pool(address: Ipv4Addr, prefix: u8) -> (Ipv4Addr, Ipv4Addr) {
    let mask = mask(prefix.clamp(1, 30));
    let network = u32::from(address) & mask;
    let size = !mask;
    ((network + size / 2 + 1).into(), (network + size - 1).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new("lab0", [10, 77, 0, 1].into(), 24, "/s".into(), "/t".into())
    }

    #[test]
    fn usual_values_are_sound() {
        assert_eq!(config().faults(), Vec::<String>::new());
        assert_eq!(config().pool, ([10, 77, 0, 128].into(), [10, 77, 0, 254].into()));
        assert_eq!(config().local().broadcast(), Ipv4Addr::new(10, 77, 0, 255));
        assert_eq!(config().base_url(), "http://10.77.0.1:8080");
    }

    #[test]
    fn every_fault_is_named() {
        let mut bad = config();
        bad.pool = ([10, 77, 0, 200].into(), [10, 77, 0, 100].into());
        bad.lease_seconds = 5;
        bad.relayed.push(Subnet {
            network: [10, 78, 0, 0].into(),
            prefix: 24,
            pool: ([10, 78, 0, 1].into(), [10, 78, 0, 255].into()),
            gateway: None,
        });
        let faults = bad.faults();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[0].contains("ends"), "{faults:?}");
        assert!(faults[1].contains("10.78.0.255"), "{faults:?}");
        bad.mode = Mode::Proxy;
        assert!(bad.faults().is_empty());
    }

    #[test]
    fn a_bad_reload_changes_nothing() {
        let control = Control::new(config().into());
        let mut new = config();
        new.pool = ([10, 77, 0, 20].into(), [10, 77, 0, 30].into());
        new.dns = vec![[9, 9, 9, 9].into()];
        assert_eq!(control.reload(new.clone()), Ok(()));
        assert_eq!(*control.now(), new);
        let mut bad = config();
        bad.pool = ([10, 77, 0, 200].into(), [10, 77, 0, 100].into());
        bad.server_address = [10, 77, 0, 2].into();
        let fault = control.reload(bad).expect_err("two faults").to_string();
        assert!(
            fault.contains("the pool ends") && fault.contains("the server's address changes only"),
            "{fault}"
        );
        assert_eq!(*control.now(), new, "the old ones stay");
    }

    #[test]
    fn masks_at_the_edges() {
        for (prefix, wanted) in [(0, 0), (1, 0x8000_0000), (24, 0xffff_ff00), (32, u32::MAX)] {
            assert_eq!(mask(prefix), wanted, "{prefix}");
        }
    }
}
