//! The boot plane: DHCP, TFTP and HTTP for machines that boot from the network, as a library that `labshift serve` runs.
//!
//! ```text
//!   firmware          server                                      asks / tells
//!   DISCOVER   -----> dhcp   address, and what to load            Directory: who is this, what does it boot?
//!   ICMPv6 RS  -----> solicitation   no router here: don't wait
//!   RRQ        -----> tftp   loader or UKI                        Journal: what was offered, sent, broken
//!   iPXE GET   -----> http   script, kernel, initrd               store: manifest and files of a generation
//!   init GET   -----> http   answer, root; POST reports
//! ```
//!
//! It keeps no state but the lease ledger. Who a machine is and what it boots comes from a
//! [`Directory`](labshift_model::boot::Directory); what happened goes to a [`Journal`](labshift_model::boot::Journal).
//!
//! ```no_run
//! # async fn run(config: labshift_pxe::Config, directory: std::sync::Arc<dyn labshift_model::boot::Directory>,
//! #     journal: std::sync::Arc<dyn labshift_model::boot::Journal>) -> Result<(), Box<dyn std::error::Error>> {
//! let plane = labshift_pxe::BootPlane::bind(config, directory, journal)?;
//! let routes = plane.http_router(); // merged with others, on a listener of the caller's
//! plane.serve(async { drop(tokio::signal::ctrl_c().await) }).await?;
//! # Ok(()) }
//! ```

pub mod config;
pub mod dhcp;
pub mod doctor;
pub mod http;
mod limit;
mod plane;
pub mod script;
mod solicitation;
pub mod store;
pub mod tftp;
mod wire;
mod workers;

pub use config::{Config, Control, DEBIAN_LOADERS, Mode, NO_POOL, NotReloaded, Subnet};
pub use plane::{BindError, BootPlane};
