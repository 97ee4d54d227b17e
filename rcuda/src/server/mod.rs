//! The node's server.
//!
//! ```text
//!            accept        re-exec: socket = stdin, ledger = stdout
//!  listener -------> spawn -------------------------------------> worker --> session --> Device
//!     |                                                             |
//!     |  reaper (one per worker): waits for its end, frees its slot |  watcher: client gone -> exit
//!     +-------------------- ledger (memfd): bytes used, per worker -+
//! ```
//!
//! A worker belongs to one client. It has its own user, no new privileges, no core dumps, and dies with its
//! client or with the server; the kernel and the driver then free whatever it had.

pub mod account;
pub mod handles;
pub mod ledger;
pub mod listener;
pub mod platform;
pub mod report;
pub mod session;
pub mod worker;
