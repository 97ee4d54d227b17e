//! Whose address is it? A boot answer carries the secret of one node, so it goes only to the address that this node has.
//!
//! Where we give the addresses, the lease says so. Where another server does, the kernel's neighbour table says which card
//! the request came from. Behind a relay of a network whose addresses another server gives, nobody can tell: there only
//! a fixed address in the site file is checked.

use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;
use labshift_model::MacAddr;

use super::Context;
use crate::{
    config::Mode,
    dhcp::{neighbour::card_of, socket::now},
};

/// `Err` is a sentence for the screen of whoever asked.
pub(super) async fn check(context: &Context, mac: MacAddr, peer: IpAddr) -> Result<(), String> {
    let IpAddr::V4(address) = peer else {
        return Err(format!("{peer} is no IPv4 address; nodes boot over IPv4"));
    };
    match context.config.mode {
        Mode::Authoritative => match now(&context.leases).holder(address, Timestamp::now()) {
            Some(holder) if holder == mac => Ok(()),
            Some(_) => Err(format!("{address} is the address of another machine, not of {mac}")),
            None => Err(format!("{address} is not leased by this server; {mac} must ask DHCP first")),
        },
        Mode::Proxy | Mode::Off if context.config.local().contains(address) => {
            seen(mac, address, card_of(&context.config.interface, address).await)
        }
        Mode::Proxy | Mode::Off => {
            let fixed = context.directory.machine(mac).and_then(|machine| machine.address);
            match fixed.filter(|fixed| *fixed != address) {
                None => Ok(()),
                Some(fixed) => Err(format!("{mac} has the address {fixed} in the site file, not {address}")),
            }
        }
    }
}

fn seen(mac: MacAddr, address: Ipv4Addr, card: Option<MacAddr>) -> Result<(), String> {
    match card {
        Some(card) if card == mac => Ok(()),
        Some(card) => Err(format!("{address} is the address of {card}, not of {mac}")),
        None => Err(format!("nobody knows which card has {address}; ask again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_speaks_for_itself_only() {
        let [own, other] = [1, 2].map(|n| MacAddr([2, 0, 0, 0, 0, n]));
        let address = Ipv4Addr::new(10, 0, 0, 1);
        assert_eq!(seen(own, address, Some(own)), Ok(()));
        assert!(seen(own, address, Some(other)).is_err_and(|e| e.contains("not of 02:00:00:00:00:01")));
        assert!(seen(own, address, None).is_err());
    }
}
