//! Machines that nobody knows: what they tell of themselves, and how an admin makes them known.
//!
//! The site file stays the admin's own. What is adopted by a command lies in the registry, beside the file's machines, until the
//! file names the card; then the file's word holds.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use labshift_model::{
    MacAddr,
    api::{AdoptRequest, EventKind, Stranger},
    boot::BootReport,
    hardware::Hardware,
    site::{Site, Unknown, Workstation},
};

use super::{Engine, Refusal, unknown};

/// Strangers that are remembered; the one not heard for longest makes room.
const MOST: usize = 256;
/// How long a stranger is shown after its last word.
const SHOWN: Duration = Duration::from_secs(24 * 3600);

impl Engine {
    /// The site as the file has it now, with the machines that were adopted.
    pub(super) fn follow_site(&mut self, file: Arc<Site>) {
        let moment = self.moment();
        self.adopted.retain(|mac, _| file.machine_by_mac(*mac).is_none());
        let (site, refused) = file.with_adopted(self.adopted.values());
        self.unadopted = refused
            .into_iter()
            .map(|(m, why)| format!("adopted machine {} is left out: {why}", m.name))
            .collect();
        for trouble in &self.unadopted {
            tracing::warn!("{trouble}");
        }
        (self.site, self.file) = (Arc::new(site), file);
        self.world.follow(&self.site.clone(), moment);
        let discovers = matches!(self.site.unknown, Unknown::Discover(_));
        let site = &self.site;
        self.strangers.retain(|mac, _| discovers && site.machine_by_mac(*mac).is_none());
    }

    /// A machine that is in no site file says what it is made of.
    pub(super) fn stranger_told(&mut self, from: IpAddr, report: &BootReport, hardware: Hardware) {
        if !matches!(self.site.unknown, Unknown::Discover(_))
            || self.site.machine_by_mac(report.mac).is_some()
        {
            return;
        }
        let (real, mac) = (self.moment().real, report.mac);
        self.strangers.retain(|_, s| since(s, real) < SHOWN);
        let address = match from {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        let hardware = hardware.bounded();
        let first_seen_real = match self.strangers.get(&mac) {
            Some(known) => known.first_seen_real,
            None => {
                let oldest = self.strangers.values().min_by_key(|s| s.last_seen_real).map(|s| s.mac);
                if let Some(oldest) = oldest.filter(|_| self.strangers.len() >= MOST) {
                    self.strangers.remove(&oldest);
                }
                let text = format!("a machine that nobody knows: {mac}, {}", hardware.summary());
                let cause = format!("labshift node adopt {mac} NAME ROOM makes it known");
                self.note(EventKind::Trouble, &mac.to_string(), "", text, &cause);
                real
            }
        };
        self.strangers
            .insert(mac, Stranger { mac, address, first_seen_real, last_seen_real: real, hardware });
    }

    /// Makes a machine known.
    pub(super) fn adopt(&mut self, name: &str, request: &AdoptRequest) -> Result<String, Refusal> {
        let near = self.strangers.get(&request.mac).and_then(|s| s.address);
        let address = match request.address.or_else(|| self.site.free_address(near)) {
            Some(address) => address,
            None => {
                return Err(Refusal::Conflict(
                    "no address outside the pool is free; make the pool smaller".into(),
                ));
            }
        };
        let machine =
            Workstation { name: name.into(), room: request.room.clone(), mac: request.mac, address };
        self.site.fits(&machine).map_err(Refusal::Bad)?;
        self.adopted.insert(machine.mac, machine.clone());
        self.follow_site(self.file.clone());
        let text = format!("{name} is adopted: {} in {}, address {address}", machine.mac, machine.room);
        self.note(EventKind::Admin, name, "", text, "an admin");
        Ok(format!("{name} is known now; to keep it in the site file, add:\n\n{}", in_file(&machine)))
    }

    /// Takes an adoption back.
    pub(super) fn forget(&mut self, name: &str) -> Result<String, Refusal> {
        if self.file.machine(name).is_some() {
            return Err(Refusal::Conflict(format!("{name} is in the site file; take it out there")));
        }
        let mac = self.adopted.values().find(|m| m.name == name).map(|m| m.mac);
        self.adopted.remove(&mac.ok_or_else(|| unknown(name))?);
        self.follow_site(self.file.clone());
        let site = self.site.clone();
        self.channels.retain(|node, _| site.machine(node).is_some());
        self.note(EventKind::Admin, name, "", format!("{name} is forgotten"), "an admin");
        Ok(format!("{name} is not known any more"))
    }

    /// Whether a machine is known by a command only.
    pub(crate) fn is_adopted(&self, mac: MacAddr) -> bool {
        self.adopted.contains_key(&mac)
    }
}

fn since(stranger: &Stranger, now: Timestamp) -> Duration {
    now.duration_since(stranger.last_seen_real).unsigned_abs()
}

/// The lines of a site file.
fn in_file(machine: &Workstation) -> String {
    let Workstation { name, room, mac, address } = machine;
    let address: &Ipv4Addr = address;
    format!("[[machine]]\nname = \"{name}\"\nroom = \"{room}\"\nmac = \"{mac}\"\naddress = \"{address}\"\n")
}
