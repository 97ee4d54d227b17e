//! Lines for the log. Whoever reads them may have gone: that must not end the server, as `println!` would.

use std::{
    fmt::Display,
    io::{self, Write},
};

/// What happens, on standard output.
pub fn note(line: impl Display) {
    let _ = writeln!(io::stdout(), "rcuda-server: {line}");
}

/// What went wrong, on standard error.
pub fn warn(line: impl Display) {
    let _ = writeln!(io::stderr(), "rcuda-server: {line}");
}
