//! The node's daemon: network, guests, modes.
//!
//! ```text
//!  server --WebSocket--> channel --+                       +--> bridge    rtnetlink
//!  libvirt events ------ libvirt --+                       +--> images    fetch and verify
//!  picture, input ------ screen ---+--> engine --step--> perform -> libvirt start, save, restore, end
//!  child ended --------- rcuda ----+      |  ^             +--> saved     upload and fetch saved guests
//!  timer --------------------------+      v  |             +--> screen    the kiosk child
//!                                  plan::node              +--> rcuda     the remote-CUDA child
//!                                                          +--> init      power off, reboot
//! ```
//!
//! One task, [`engine`], owns the state. Every event only wakes it: it reads everything again, asks
//! [`labshift_plan::node::plan`], and has the first step performed. Performing decides nothing.
//! Messages and file formats are those of [`labshift_model`].

pub mod bridge;
pub mod channel;
pub mod clock;
pub mod console;
pub mod domain;
pub mod engine;
pub mod facts;
mod ffi;
pub mod images;
pub mod init;
pub mod kiosk;
pub mod libvirt;
pub mod observe;
pub mod perform;
pub mod rcuda;
pub mod record;
pub mod saved;
pub mod screen;
pub mod status;
pub mod timeline;
