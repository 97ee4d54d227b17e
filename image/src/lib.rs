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
mod build;
pub mod cache;
pub mod cpio;
pub mod deb;
pub mod elf;
pub mod error;
pub mod glob;
pub mod index;
pub mod initramfs;
mod inspect;
pub mod kernel;
pub mod lock;
pub mod progress;
pub mod recipe_file;
pub mod relation;
pub mod release;
pub mod resolve;
pub mod root;
mod scratch;
pub mod scripts;
pub mod store;
pub mod tools;
pub mod tree;
pub mod uki;
pub mod verity;
#[cfg(test)]
mod world;

pub use build::{BuildOptions, Built, Sources, build, lock};
pub use error::BuildError;
pub use inspect::{Inspected, inspect};
pub use progress::{Progress, Stage};
pub use store::{Published, Store};
