//! What travels between client and server.
//!
//! ```text
//! client                                   worker (one per client)
//!   Hello  {magic, version, hash, release} ->
//!                                          <- Hello, with "accepted" or the reason for a refusal
//!   frame  {length, Request}               ->   posted requests get no reply: their errors wait
//!   frame  {length, Request}               ->   called requests get exactly one reply, in order
//!                                          <- frame {length, Reply}
//! ```
//!
//! All integers are little-endian. A frame is refused by its length before anything is allocated for it, and
//! nothing inside a frame can ask for more memory than the frame itself has bytes. No host pointer and no path
//! ever appears: device memory is named by device addresses, everything else by opaque handles.

pub mod codec;
pub mod endpoint;
pub mod frame;
pub mod hello;
pub mod message;
