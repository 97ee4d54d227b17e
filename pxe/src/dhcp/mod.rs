//! DHCP for workstations that boot from the network (RFC 2131, RFC 2132, PXE 2.1).
//!
//! ```text
//! bytes -> options -> request (who speaks: client) -> answer / proxy -> reply bytes -> socket
//!                                     |    ^
//!                          Directory, boot |  lease <-> ledger (disk)
//! ```
//!
//! [`answer::answer`] is pure: `(packet, source, port, config, leases, directory, now) -> replies, events`. Only
//! [`socket`], `sender` and [`neighbour`] touch the network, only [`ledger`] the disk.

pub mod answer;
pub mod boot;
pub mod client;
pub mod elsewhere;
mod flood;
pub mod lease;
pub mod ledger;
pub mod neighbour;
pub mod options;
mod probe;
pub mod proxy;
pub mod reply;
pub mod request;
mod rogue;
mod sender;
pub mod socket;
