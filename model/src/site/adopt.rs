//! Machines that an admin adopted with a command, beside those of the file: the same rules hold for both, and the file wins.

use std::net::Ipv4Addr;

use super::{Site, Workstation, read};

impl Site {
    /// The site with these machines besides. Those that the file names by now (by MAC address) are left out; those that do not
    /// fit come back with the reason.
    pub fn with_adopted<'m>(
        &self,
        adopted: impl IntoIterator<Item = &'m Workstation>,
    ) -> (Site, Vec<(&'m Workstation, String)>) {
        let (mut site, mut refused) = (self.clone(), vec![]);
        for machine in adopted.into_iter().filter(|m| self.machine_by_mac(m.mac).is_none()) {
            match site.fits(machine) {
                Ok(()) => site.machines.push(machine.clone()),
                Err(why) => refused.push((machine, why)),
            }
        }
        (site, refused)
    }

    /// Whether one more machine fits in; `Err` says what is in the way.
    pub fn fits(&self, machine: &Workstation) -> Result<(), String> {
        let Workstation { name, room, mac, address } = machine;
        if !read::is_name(name) {
            return Err(format!(
                "\"{name}\" can't be a name: use up to 48 lower-case letters, digits and inner hyphens"
            ));
        }
        if mac.0[0] & 1 == 1 {
            return Err(format!("{mac} is a group address, not one machine's"));
        }
        if let Some(other) = self.machine_by_mac(*mac) {
            return Err(format!("{mac} belongs to machine \"{}\" already", other.name));
        }
        if self.machine(name).is_some() || self.guest(name).is_some() {
            return Err(format!("the name \"{name}\" is taken already"));
        }
        if self.room(room).is_none() {
            let rooms: Vec<_> = self.rooms.iter().map(|r| r.name.as_str()).collect();
            return Err(format!("there is no room \"{room}\"; the rooms are {}", rooms.join(", ")));
        }
        self.is_free(*address)
    }

    /// The first address that no machine has and no pool lends, on the network of `near` if that is on one, else on the server's
    /// own.
    pub fn free_address(&self, near: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let networks = self.networks();
        let there = near.and_then(|near| networks.0.iter().find(|s| s.contains(near)));
        let mut addresses = there.or(networks.0.first())?.addresses();
        addresses.find(|a| self.is_free(*a).is_ok())
    }

    fn is_free(&self, address: Ipv4Addr) -> Result<(), String> {
        self.networks().give(address)?;
        let servers = [&self.server].into_iter().chain(self.interfaces.iter().map(|i| &i.server));
        if servers.flat_map(|s| &s.dns).any(|dns| *dns == address) {
            return Err(format!("{address} is the address of a name server"));
        }
        match self.machines.iter().find(|m| m.address == address) {
            Some(other) => Err(format!("{address} belongs to machine \"{}\" already", other.name)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mac::MacAddr;

    fn site() -> Site {
        Site::parse("site.toml", include_str!("../../../docs/examples/site.toml")).expect("the example")
    }

    fn machine(name: &str, last: u8) -> Workstation {
        let mac = MacAddr([2, 0, 0, 0, 0, last]);
        Workstation { name: name.into(), room: "room-b".into(), mac, address: [10, 77, 0, last].into() }
    }

    #[test]
    fn adopted_machines_obey_the_rules_of_the_file() {
        let site = site();
        let good = machine("ws3", 13);
        for (change, wanted) in [
            (Workstation { name: "WS".into(), ..good.clone() }, "can't be a name"),
            (Workstation { name: "ws1".into(), ..good.clone() }, "is taken already"),
            (Workstation { name: "primes".into(), ..good.clone() }, "is taken already"),
            (Workstation { room: "attic".into(), ..good.clone() }, "the rooms are room-a, room-b"),
            (Workstation { mac: site.machines[0].mac, ..good.clone() }, "belongs to machine \"ws1\""),
            (Workstation { mac: MacAddr([1; 6]), ..good.clone() }, "group address"),
            (
                Workstation { address: [10, 77, 0, 1].into(), ..good.clone() },
                "is the server's or the gateway's",
            ),
            (Workstation { address: [10, 77, 0, 150].into(), ..good.clone() }, "inside the pool"),
            (Workstation { address: [10, 78, 0, 13].into(), ..good.clone() }, "outside the lab's subnet"),
            (Workstation { address: [10, 77, 0, 12].into(), ..good.clone() }, "belongs to machine \"ws2\""),
        ] {
            let (with, refused) = site.with_adopted([&change]);
            let known = site.machine_by_mac(change.mac).is_some();
            assert_eq!(with, site, "{change:?}");
            assert!(known || refused[0].1.contains(wanted), "{refused:?}");
            assert!(site.fits(&change).is_err_and(|why| why.contains(wanted)), "{change:?}");
        }
        let twin = Workstation { name: "ws4".into(), mac: MacAddr([2; 6]), ..good.clone() };
        let (with, refused) = site.with_adopted([&good, &twin]);
        assert_eq!((with.machines.len(), refused.len()), (3, 1), "one address for two");
        assert_eq!(with.machine_by_mac(good.mac).map(|m| m.name.as_str()), Some("ws3"));
    }

    #[test]
    fn the_next_free_address_skips_what_is_taken() {
        let mut site = site();
        assert_eq!(site.free_address(None), Some([10, 77, 0, 2].into()));
        site.server.prefix = 30;
        site.server.dns = vec![[10, 77, 0, 2].into()];
        assert_eq!(site.free_address(None), None);
    }
}
