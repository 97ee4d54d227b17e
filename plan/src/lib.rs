//! Pure decisions: desired and observed state in, steps out.

pub mod fallback;
pub mod fleet;
pub mod node;
pub mod schedule;
pub mod told;
