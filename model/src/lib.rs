//! The nouns of labshift, its file formats and its wire messages. No I/O: everything here parses from
//! bytes or text that somebody else read, and prints to bytes that somebody else writes.
//!
//! | module | noun |
//! |---|---|
//! | [`mac`] | a hardware address |
//! | [`fault`] | what is wrong with a file, where, and what to do: all faults at once |
//! | [`recipe`] | what an image is made of |
//! | [`recipe_reference`] | the page that explains every key of a recipe |
//! | [`rescue`] | the code that opens a broken machine's rescue shell |
//! | [`manifest`] | what an image is: sizes, hashes, root hash, signature |
//! | [`service`] | a program that PID 1 supervises |
//! | [`boot`] | the boot plane's questions (who is this machine?) and its journal |
//! | [`boot_order`] | in which order a boot reads its root |
//! | [`context`] | what init knows and hands to the runtime |
//! | [`guest`] | a virtual machine, and its saved state |
//! | [`node`] | the messages on a node's channel |
//! | [`site`] | the file that an admin edits |
//! | [`api`] | what the server says of its fleet, and what an admin may ask |
//! | [`paths`] | URL paths and file names that two rooms share |

pub mod api;
pub mod boot;
pub mod boot_order;
pub mod context;
pub mod fault;
pub mod guest;
pub mod hardware;
pub mod mac;
pub mod manifest;
pub mod node;
pub mod paths;
pub mod recipe;
pub mod recipe_reference;
pub mod rescue;
pub mod service;
pub mod site;

pub use mac::MacAddr;
