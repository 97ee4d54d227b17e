//! `labshift serve` on a network of its own: two network namespaces joined by a cable, real clients, a server that is
//! killed. Needs root; without it a test says so and checks nothing.

mod arena;
mod beyond;
mod cable;
mod clients;
mod crash;
mod doctor;
mod elsewhere;
mod keep;
mod lossy;
mod proxy;
mod push;
mod reload;
mod rootless;
