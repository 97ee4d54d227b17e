//! PID 1 of a node and of its guests: boots the machine, then supervises it for life.
//!
//! ```text
//! boot::run ── stages: init, modules, link, address, manifest, root-fetched, root-mounted ──> handover
//!     ^                             │ Halt                                                        │
//!     └── wait, grow ── recovery <──┘ (screen, serial, server; after N failures reboot)           v
//!                                                     supervisor: services, requests, renewals, power
//! ```
//!
//! | module | noun |
//! |---|---|
//! | [`cmdline`] | what the kernel command line tells |
//! | [`console`], [`journal`] | where people look; what happened |
//! | [`failure`], [`page`], [`screen`] | what went wrong; how it is shown; on which screen |
//! | [`modules`], [`glob`], [`beside`] | kernel modules; depmod's patterns; what loads beside the boot |
//! | [`hotplug`], [`nodes`] | devices that come later; those that bring their module |
//! | [`link`], [`netlink`] | ports, their addresses |
//! | [`network`] | the boot's steps to the server |
//! | [`dhcp`], [`lease`] | the client's decisions; its sockets and clocks |
//! | [`server`], [`source`], [`fetch`], [`verity`] | the boot answer; the root as a stream, whole, and its hash tree |
//! | [`rescue`] | a shell for whoever knows the password, when the boot has failed |
//! | [`hardware`], [`adoption`] | what the machine is made of; how it becomes known |
//! | [`blocks`], [`nbd`] | a root that comes as it is read; the device it is read from |
//! | [`peers`] | the same root on machines around: blocks taken and given |
//! | [`disk`], [`local_disk`] | the local disk that a recipe names: blocks for the next boot, encrypted swap; what a boot makes of it |
//! | [`mount`], [`handover`] | the new root; what init leaves in it |
//! | [`boot`] | the linear run |
//! | [`order`], [`process`], [`ready`], [`supervisor`], [`control`] | services |
//! | [`activation`] | services that start when somebody connects |
//! | [`clock`] | a guest's time after a pause |
//! | [`life`] | all of it, in order; [`plan`] says it without doing it |
//! | [`power`], [`button`], [`kexec`] | the end; the next kernel without firmware |
//! | [`idle`] | what the kernel does when nobody wants anything |
//! | [`watchdog`], [`crash`] | the end of a machine that hangs; what its kernel said last |
//! | [`sys`] | the crate's unsafe code |

pub mod activation;
pub mod adoption;
pub mod beside;
pub mod blocks;
pub mod boot;
pub mod button;
pub mod clock;
pub mod cmdline;
pub mod console;
pub mod control;
pub mod crash;
pub mod dhcp;
pub mod disk;
pub mod failure;
pub mod fetch;
#[cfg(test)]
mod fixture;
pub mod glob;
pub mod handover;
pub mod hardware;
pub mod hotplug;
pub mod idle;
pub mod journal;
pub mod kexec;
pub mod lease;
pub mod life;
pub mod link;
pub mod local_disk;
pub mod modules;
pub mod mount;
pub mod nbd;
pub mod netlink;
pub mod network;
pub mod nodes;
pub mod order;
pub mod page;
pub mod peers;
pub mod plan;
pub mod power;
pub mod process;
pub mod ready;
pub mod rescue;
pub mod screen;
pub mod server;
pub mod source;
pub mod supervisor;
pub mod sys;
pub mod verity;
pub mod watchdog;
