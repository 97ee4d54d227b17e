//! `init`: PID 1. Started by anyone else it explains itself or loads a module for the kernel.

use std::{path::Path, process::ExitCode};

use labshift_initrd::{boot, life, plan};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let called = Path::new(words.first().copied().unwrap_or_default()).file_name();
    match (std::process::id(), called.and_then(|n| n.to_str()), words.get(1..).unwrap_or_default()) {
        (1, ..) => life::live(),
        // The kernel's own form: modprobe -q -- ALIAS.
        (_, Some("modprobe"), [.., alias]) => match boot::modprobe(alias) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(why) => {
                eprintln!("modprobe: {why:#}");
                ExitCode::FAILURE
            }
        },
        (_, _, ["--sysroot", sysroot, "--cmdline", text]) => plan::print(Path::new(sysroot), text),
        _ => {
            eprintln!(
                "init runs as PID 1 of a labshift machine.\n\
                 init --sysroot DIR --cmdline TEXT   says what it would do with this command line and these modules"
            );
            ExitCode::from(2)
        }
    }
}
