//! Pure decisions: desired and observed state in, steps out.

pub mod fleet;
pub mod node;
pub mod schedule;
