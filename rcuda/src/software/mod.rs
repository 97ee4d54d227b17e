//! A CUDA device in software: it runs a PTX subset, for tests, demonstrations and machines without a GPU.
//!
//! ```text
//! PTX text --ptx::parser--> Module --launch--> machine (blocks, one after the other)
//!                                                |  warps of 32 threads; barrier, shuffle, vote, atomics
//!                                                v
//!                             memory (allocations) : every access is bounds-checked
//! ```
//!
//! Blocks run one after the other, and so do the threads of a block between two points where they wait for each
//! other. So the results of a correct program are those of a GPU, in an order that is always the same.

pub mod alu;
pub mod convert;
pub mod device;
mod lane;
pub mod machine;
pub mod memory;
