//! What parses bytes of others: each target is a function over any bytes, which must not panic, hang or take memory
//! without bound, and whose other promises are asserted in it.
//!
//! `make fuzz FUZZ=dhcp_server` searches with coverage (cargo-fuzz); every test run replays `corpus/` and a fixed
//! number of mutations of it (tests/replay.rs). A finding is fixed by adding its input to the corpus.

mod boot;
mod files;
mod wire;

pub use boot::{
    capture, dhcp_client, dhcp_server, ethernet_frame, kernel_cmdline, lease_ledger, module_index,
    peer_request, tftp,
};
pub use files::{authenticode, deb, lock, manifest, package_index, push, recipe, release, site};
pub use wire::{ptx, rcuda, rfb};

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All targets by name; each has a directory of this name in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("authenticode", authenticode),
    ("capture", capture),
    ("deb", deb),
    ("dhcp_client", dhcp_client),
    ("dhcp_server", dhcp_server),
    ("ethernet_frame", ethernet_frame),
    ("kernel_cmdline", kernel_cmdline),
    ("lease_ledger", lease_ledger),
    ("lock", lock),
    ("manifest", manifest),
    ("module_index", module_index),
    ("package_index", package_index),
    ("peer_request", peer_request),
    ("ptx", ptx),
    ("push", push),
    ("rcuda", rcuda),
    ("recipe", recipe),
    ("release", release),
    ("rfb", rfb),
    ("site", site),
    ("tftp", tftp),
];

/// The main program of a target under cargo-fuzz; without it, a word on how to run it.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| labshift_fuzz::$name(bytes));

        #[cfg(not(fuzzing))]
        fn main() {
            eprintln!("run it with: make fuzz FUZZ={}", stringify!($name));
            std::process::exit(2);
        }
    };
}
