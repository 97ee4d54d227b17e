//! The control plane over real HTTP on loopback: a manual clock, and nodes that speak the real protocol.

mod dashboard;
mod day;
mod fallback;
mod log;
mod refusals;
mod strangers;
mod support;
mod told;
