//! A read-only TFTP server for firmware (RFC 1350, 2347, 2348, 2349, 7440; RFC 1123 section 4.2).
//!
//! ```text
//! request on port 69 -> path (what is it?) -> terms (options agreed) -> one thread and one port for each transfer
//!                                                                        window (pure) <-> socket, file by pread
//! ```
//!
//! Files are virtual: see [`path`]. A transfer keeps one read-ahead buffer, never the file.

pub mod line;
pub mod packet;
pub mod path;
pub mod server;
pub mod source;
pub mod transfer;
pub mod window;
