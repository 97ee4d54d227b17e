//! The `labshift` command: parses arguments, calls one function, prints. Everything it does lives in the rooms
//! below; this crate joins them.

mod args;
mod doctor;
mod exit;
mod image;
mod lab;
mod node;
mod receive;
mod rescue;
mod serve;
mod site;
mod table;

use std::process::ExitCode;

use args::{Arguments, Command};
use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log(arguments.verbose);
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            exit::code(&error)
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let json = arguments.json;
    match arguments.command {
        Command::Image(command) => image::run(command, json),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Site(command) => site::run(command, json),
        Command::Doctor(arguments) => doctor::run(arguments, json),
        Command::Node(command) => node::run(command, json),
        Command::Status(server) => node::status(&server, json),
        Command::Lab(command) => lab::run(command, json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "labshift", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Warnings go to standard error, as the journal of systemd wants them; `-v` adds what happens, `-vv` everything.
fn log(verbose: u8) {
    let level = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let ours = ["labshift", "labshift_pxe", "labshift_fleet", "labshift_image", "labshift_lab"];
    let levels = ours.map(|room| format!("{room}={level}")).join(",");
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| format!("warn,{levels}").into());
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

/// Prints an error and its causes once, each on a line of its own.
fn report(error: &anyhow::Error) {
    let mut said = error.to_string();
    eprintln!("labshift: {said}");
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        // A library that prints its source within its own text must not be heard twice.
        if !said.contains(&text) {
            eprintln!("  because: {text}");
        }
        said = text;
    }
}

/// Prints one JSON document.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
