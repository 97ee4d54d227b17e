//! The first process of a lab's namespace takes in every orphan: a lab of a week must not fill up with dead processes.
//!
//! A program without the test harness: signals are waited for in the only thread, as in a lab.

use std::process::Command;

use labshift_lab::namespace;
use nix::sys::prctl;

/// A grandchild loses its parent and ends. Its process entry disappears only when the adopter takes it in; the program waits for
/// that, and says so in its exit code.
fn main() {
    // Adopts orphans as the init of a namespace does.
    prctl::set_child_subreaper(true).expect("becoming an adopter");
    let mut program = Command::new("sh");
    program.args([
        "-c",
        "orphan=$(sh -c 'sleep 0.2 >/dev/null & echo $!'); tries=0
         while [ -e /proc/$orphan ]; do tries=$((tries + 1)); [ $tries -lt 600 ] || exit 1; sleep 0.1; done; exit 7",
    ]);
    assert_eq!(namespace::tend(program).expect("tending"), 7);
    let mut killed = Command::new("sh");
    killed.args(["-c", "kill -KILL $$"]);
    assert_eq!(namespace::tend(killed).expect("tending"), 137);
    println!("orphans are taken in, and the program's code comes back: ok");
}
