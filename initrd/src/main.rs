//! `init`: PID 1. Started by anyone else it explains itself or loads a module for the kernel.

use std::{path::Path, process::ExitCode};

use labshift_initrd::{boot, control, life, plan};
use labshift_model::paths;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match (std::process::id(), words.get(1..).unwrap_or_default()) {
        (1, ..) => life::live(),
        (_, ["--ask", request]) => match control::ask_init(Path::new(paths::INIT_SOCKET), request) {
            Ok(reply) => {
                println!("{reply}");
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("init: {why:#}");
                ExitCode::FAILURE
            }
        },
        // As the kernel asks (`call_modprobe`).
        (_, ["-q", "--", alias]) => match boot::modprobe(alias) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(why) => {
                eprintln!("modprobe: {why:#}");
                ExitCode::FAILURE
            }
        },
        (_, ["--sysroot", sysroot, "--cmdline", text]) => plan::print(Path::new(sysroot), text),
        _ => {
            eprintln!(
                "init runs as PID 1 of a labshift machine.\n\
                 init --sysroot DIR --cmdline TEXT   says what it would do with this command line and these modules\n\
                 init --ask JSON                     asks the init that runs: a request such as {{\"request\": \"services\"}}"
            );
            ExitCode::from(2)
        }
    }
}
