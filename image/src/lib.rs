//! From a recipe to a verified, reproducible image, without root rights.
//!
//! ```text
//! recipe.toml --recipe_file--> Recipe (with its bases)
//!                                |  apt: mirrors; archive, release: signed lists; index
//!                                v
//!                     resolve -> Lock (exact packages and tools)
//!                                |  cache: downloads by hash
//!                                v
//!                     deb -> root, accounts, scripts -> Tree --tools: mkfs.erofs--> root.erofs + verity
//!                       \-> kernel -> initramfs (cpio) -> uki
//!                                                              \-> manifest, signature -> store
//! ```
//!
//! The parts are pure where they can be: texts and bytes in, values out. [`build()`] joins them.

pub mod accounts;
pub mod apt;
pub mod archive;
pub mod authenticode;
mod build;
pub mod cache;
pub mod channel;
mod choose;
pub mod collect;
pub mod configure;
pub mod contents;
pub mod cpio;
pub mod data;
pub mod deb;
pub mod elf;
pub mod error;
mod fetch;
pub mod glob;
pub mod index;
pub mod initramfs;
mod inspect;
mod isolated;
pub mod kernel;
mod layer;
pub mod lock;
pub mod look;
mod pack;
pub mod progress;
pub mod provenance;
pub mod push;
pub mod receive;
pub mod recipe_file;
mod record;
pub mod relation;
pub mod release;
pub mod resolve;
pub mod root;
pub mod s3;
pub mod sbom;
mod scratch;
pub mod script_report;
pub mod scripts;
mod shelf;
pub mod sign;
pub mod store;
pub mod tools;
pub mod tree;
pub mod uki;
pub mod verify;
pub mod verity;
#[cfg(test)]
mod world;

pub use build::{BuildOptions, Built, Sources, build, lock, lock_fits};
pub use error::BuildError;
pub use inspect::{Inspected, inspect};
pub use progress::{Progress, Stage};
pub use scratch::write_whole_file as write_whole;
pub use store::{Published, Store};
