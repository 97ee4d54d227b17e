//! Pure decisions: desired and observed state in, steps out.

pub mod node;
pub mod schedule;
