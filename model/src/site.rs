//! The site file: the one file that an admin edits. Rooms, machines, templates, schedules, power, batch guests.
//!
//! ```toml
//! name = "science-building"
//! timezone = "Europe/Budapest"      # all times of day below are local times there
//!
//! [server]
//! address = "10.77.0.1/24"          # this server, and the subnet of the lab
//! pool = "10.77.0.100-10.77.0.199"  # addresses for guests
//!
//! [[template]]
//! name = "student"
//! image = "guest-desktop"
//! role = "desktop"
//! memory_mib = 2048
//!
//! [[room]]
//! name = "room-a"
//! image = "lab"
//! schedule = "weekdays"
//! desktop = "student"
//!
//! [[machine]]
//! name = "ws1"
//! room = "room-a"
//! mac = "52:54:00:00:00:01"
//! address = "10.77.0.11"
//!
//! [[schedule]]
//! name = "weekdays"
//!
//! [[schedule.session]]
//! title = "Algorithms"
//! days = ["mon-fri"]
//! start = "08:00"
//! end = "10:00"
//! ```
//!
//! [`Site::parse`] reports every mistake of the file at once, each with its line and column. What the times mean
//! on a given day is decided in `plan::schedule`.

mod adopt;
mod calendar;
mod network;
mod read;

use std::net::Ipv4Addr;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::{
    calendar::{DateSpan, Days, Hours, Schedule, Session, Window},
    network::{Dhcp, Interface, Link, Relayed, Subnet, Way},
    read::is_name,
};
use crate::{fault::Faults, guest::Role, mac::MacAddr};

/// Everything the site file says, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// `name`: shown in the dashboard and in logs.
    pub name: String,
    /// `timezone`: IANA name (`Europe/Budapest`). Every time of day in the file is local time there; changes
    /// between summer and winter time are followed.
    pub timezone: TimeZone,
    /// `[server]`: addresses of the lab's network.
    pub server: Server,
    /// `[[interface]]`: further network cards of this server, each with a lab's network.
    pub interfaces: Vec<Interface>,
    /// `[[relayed]]`: networks that DHCP relays join with this server.
    pub relayed: Vec<Relayed>,
    /// `[unknown]`: what becomes of machines that are in no `[[machine]]`.
    pub unknown: Unknown,
    /// `[power]`: how many machines may be woken at once.
    pub power: Power,
    /// `[[room]]`, in file order.
    pub rooms: Vec<Room>,
    /// `[[machine]]`, in file order.
    pub machines: Vec<Workstation>,
    /// `[[schedule]]`, in file order.
    pub schedules: Vec<Schedule>,
    /// `[[template]]`, in file order.
    pub templates: Vec<Template>,
    /// `[[guest]]`, in file order; an entry with a count gives several.
    pub guests: Vec<BatchGuest>,
}

/// `[server]`: the server's place in the lab's network, and what DHCP tells the machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `address = "10.77.0.1/24"`: the server's own address.
    pub address: Ipv4Addr,
    /// The prefix length of `address`.
    pub prefix: u8,
    /// `pool = "10.77.0.100-10.77.0.199"`: first and last address for guests and strangers. Without it only
    /// machines with their own `address` get one.
    pub pool: Option<(Ipv4Addr, Ipv4Addr)>,
    /// `gateway`: default router of the lab; none when absent.
    pub gateway: Option<Ipv4Addr>,
    /// `dns`: name servers; none when absent.
    pub dns: Vec<Ipv4Addr>,
    /// `lease = "1h"`: how long an address is lent, from `1m` to `720h`, in seconds. A node that could not renew its
    /// lease for so long is taken for dead, and its guests may be resumed elsewhere.
    pub lease_seconds: u32,
}

/// `[unknown]`: what a machine gets that nobody knows and that asks for something to boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Unknown {
    /// `policy = "ignore"`: an address from the pool, and nothing to boot.
    #[default]
    Ignore,
    /// `policy = "discover"` with `image`: it boots the image's kernel and init, reports its hardware, and waits until an admin
    /// adopts it (`labshift node adopt`).
    Discover(String),
    /// `policy = "boot"` with `image`: it boots this image, as a machine of no room that keeps no schedule.
    Boot(String),
}

impl Unknown {
    /// The image that strangers boot.
    pub fn image(&self) -> Option<&str> {
        match self {
            Unknown::Ignore => None,
            Unknown::Discover(image) | Unknown::Boot(image) => Some(image),
        }
    }
}

/// `[power]`: limits against inrush current and boot storms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Power {
    /// `in_flight = 8`: machines between magic packet and check-in at one time.
    pub in_flight: u32,
    /// `per_minute = 30`: machines woken in any minute.
    pub per_minute: u32,
    /// `on_demand = false`: when true, a compute hour alone wakes nobody; a machine is woken for it when a batch
    /// guest has no place, and goes off when it has had no guest for `idle_off`.
    pub on_demand: bool,
    /// `idle_off = "30m"`, in seconds; only with `on_demand`.
    pub idle_off_seconds: u32,
}

/// `[[room]]`: machines that share an image and a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// `name`: host-name rules (lower-case letters, digits, `-`).
    pub name: String,
    /// `image`: the host image its machines boot.
    pub image: String,
    /// `generation`: pins the image to one generation (64 hex digits); the image's `stable` channel when absent.
    pub generation: Option<String>,
    /// `schedule`: name of a `[[schedule]]`.
    pub schedule: String,
    /// `desktop`: name of the `[[template]]` that students get in desktop hours; must have role `desktop`.
    pub desktop: String,
    /// `rcuda = true`: serve remote CUDA in compute hours.
    pub rcuda: bool,
    /// `peers = false`: when true, its machines give blocks of their root to others of their network that boot the same image, and take
    /// theirs from them. They listen at port 8098 then, for these machines only.
    pub peers: bool,
    /// `grace = "2m"`: time a person gets between the warning and the end of the desktop, in seconds.
    pub grace_seconds: u32,
}

/// `[[machine]]`: one workstation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workstation {
    /// `name`: its host name; unique.
    pub name: String,
    /// `room`: name of a `[[room]]`.
    pub room: String,
    /// `mac`: hardware address of the port it boots from; unique.
    pub mac: MacAddr,
    /// `address`: the address it always gets; unique, inside one of the site's networks, outside its pool.
    pub address: Ipv4Addr,
}

/// `[[template]]`: the shape of a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// `name`: unique among templates.
    pub name: String,
    /// `image`: guest image it boots.
    pub image: String,
    /// `role`: `desktop` (a student's machine) or `batch` (work).
    pub role: Role,
    /// `memory_mib`: MiB of RAM, 64 at least.
    pub memory_mib: u32,
    /// `vcpus = 1`: virtual CPUs.
    pub vcpus: u32,
    /// `disk_mib = 0`: MiB of writable disk; 0 keeps changes in RAM only.
    pub disk_mib: u32,
}

/// `[[guest]]`: a virtual machine with work, placed on whichever compute node is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchGuest {
    /// `name`, unique in the site. With `count = 3` there are `name-1`, `name-2` and `name-3`.
    pub name: String,
    /// `template`: name of a `[[template]]` with role `batch`.
    pub template: String,
}

impl Site {
    /// Reads the text of a site file. `file` is the name that faults are reported under.
    pub fn parse(file: &str, text: &str) -> Result<Site, Faults> {
        read::site(file, text)
    }

    /// The room of this name.
    pub fn room(&self, name: &str) -> Option<&Room> {
        self.rooms.iter().find(|r| r.name == name)
    }

    /// The schedule of this name.
    pub fn schedule(&self, name: &str) -> Option<&Schedule> {
        self.schedules.iter().find(|s| s.name == name)
    }

    /// The template of this name.
    pub fn template(&self, name: &str) -> Option<&Template> {
        self.templates.iter().find(|t| t.name == name)
    }

    /// The workstation of this name.
    pub fn machine(&self, name: &str) -> Option<&Workstation> {
        self.machines.iter().find(|m| m.name == name)
    }

    /// The workstation with this hardware address.
    pub fn machine_by_mac(&self, mac: MacAddr) -> Option<&Workstation> {
        self.machines.iter().find(|m| m.mac == mac)
    }

    /// The batch guest of this name.
    pub fn guest(&self, name: &str) -> Option<&BatchGuest> {
        self.guests.iter().find(|g| g.name == name)
    }
}

impl Server {
    /// The subnet's mask.
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0))
    }

    /// Where a frame for everybody on the subnet goes.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.netmask().to_bits())
    }

    /// Whether a host may have this address: inside the subnet, neither its first nor its last.
    pub fn is_host(&self, address: Ipv4Addr) -> bool {
        let mask = self.netmask().to_bits();
        let bits = address.to_bits();
        bits & mask == self.address.to_bits() & mask && bits & !mask != 0 && bits & !mask != !mask
    }
}

impl Workstation {
    /// Name of this workstation's own desktop guest.
    pub fn desktop_guest(&self) -> String {
        format!("desktop-{}", self.name)
    }
}

/// The vsock context id of a guest: derived from its name, so that it stays the same wherever the guest runs.
pub fn context_id(guest: &str) -> u32 {
    let hash = Sha256::digest(guest.as_bytes());
    1000 + (u32::from_be_bytes([hash[4], hash[5], hash[6], hash[7]]) >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnet_arithmetic() {
        let server = Server {
            address: Ipv4Addr::new(10, 77, 1, 1),
            prefix: 23,
            pool: None,
            gateway: None,
            dns: vec![],
            lease_seconds: 3600,
        };
        assert_eq!(server.netmask(), Ipv4Addr::new(255, 255, 254, 0));
        assert_eq!(server.broadcast(), Ipv4Addr::new(10, 77, 1, 255));
        assert!(server.is_host(Ipv4Addr::new(10, 77, 0, 1)));
        assert!(!server.is_host(Ipv4Addr::new(10, 77, 0, 0)));
        assert!(!server.is_host(Ipv4Addr::new(10, 77, 2, 1)));
    }

    #[test]
    fn context_ids_are_valid_and_differ() {
        assert!(context_id("batch-1") >= 1000);
        assert_ne!(context_id("batch-1"), context_id("batch-2"));
    }
}
