//! What init would do, for people and tests: reads a command line and a tree, changes nothing.

use std::{path::Path, process::ExitCode};

use crate::{cmdline, modules};

/// Prints how a command line is understood and which modules the tree's devices ask for.
pub fn print(sysroot: &Path, text: &str) -> ExitCode {
    let cmdline = match cmdline::parse(text) {
        Ok(cmdline) => cmdline,
        Err(faults) => {
            for fault in faults {
                eprintln!("init: {fault}");
            }
            return ExitCode::FAILURE;
        }
    };
    println!("{cmdline:#?}");
    let directory = sysroot.join("lib/modules");
    for release in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
        let release = release.file_name().to_string_lossy().into_owned();
        match modules::Loader::open(sysroot, &release) {
            Ok(mut loader) => {
                for alias in modules::modaliases(sysroot) {
                    let index = loader.index();
                    for module in index.wanted(&alias) {
                        println!("{alias}: {}", index.order(&module).join(" "));
                    }
                }
            }
            Err(why) => {
                eprintln!("init: reading the module index of {release}: {why}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
