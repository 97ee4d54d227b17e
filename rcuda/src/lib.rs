//! Remote CUDA: protocol, node server, software device.
//!
//! ```text
//! program -> client -> unix socket or vsock -> rcuda-server -> worker process -> device
//!                                                  |   one per client, re-exec'd with the accepted socket
//!                                                  +-- ledger: bytes that each worker uses
//! ```
//!
//! The protocol ([`wire`]) speaks at the level of the CUDA driver API. A worker ([`server`]) enforces quotas and
//! hands what is left to a [`device`]: the real driver ([`driver`]) or the [`software`] device, which runs the
//! PTX subset of [`ptx`]. [`client`] is the other end.

pub mod client;
pub mod device;
pub mod driver;
mod foreign;
pub mod ptx;
pub mod selftest;
pub mod server;
pub mod software;
pub mod wire;
