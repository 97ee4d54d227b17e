//! The boot doctor: watches how machines boot on a network, whoever serves them, recognises the usual troubles, and says for
//! each what it saw and what to change.
//!
//! ```text
//!   capture file --pcap-->  frame --observe--> Observations --symptoms--> findings
//!   interface  ---live-->
//! ```
//!
//! Reading and judging are pure: a capture gives the same findings wherever it is read. The patterns are those that labs
//! meet with real firmware: split offers, option 60 without option 43, a wrong next server, replies that a relay does not
//! pass on, packets larger than the path takes, a loader for another machine, blocked TFTP, two DHCP servers.

mod finding;
mod frame;
pub mod live;
mod observe;
pub mod pcap;
mod symptoms;
mod transfer;

pub use self::{
    finding::{Evidence, Finding, Pattern},
    observe::Observations,
};
