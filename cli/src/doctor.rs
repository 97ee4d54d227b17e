//! `labshift doctor`: what is wrong with network boot here? Watches an interface, or reads a capture.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use labshift_pxe::doctor::{Finding, Observations, live, pcap};
use serde_json::json;

use crate::args::Doctor;

/// Judges what is seen, and prints it.
pub fn run(arguments: Doctor, json: bool) -> Result<()> {
    let seen = match (&arguments.capture, &arguments.interface) {
        (Some(file), _) => read(file)?,
        (None, Some(interface)) => watch(interface, arguments.seconds, json)?,
        (None, None) => unreachable!("the command line asks for one of the two"),
    };
    let findings = seen.findings();
    if json {
        return crate::print_json(&json!({
            "frames": seen.frames(), "machines": seen.clients(), "findings": findings
        }));
    }
    if arguments.capture.is_some() {
        findings.iter().for_each(print);
    }
    println!(
        "{} frames, {} machines asking for an address: {}",
        seen.frames(),
        seen.clients(),
        match findings.len() {
            0 => "no known trouble".to_owned(),
            1 => "1 trouble".to_owned(),
            many => format!("{many} troubles"),
        }
    );
    Ok(())
}

fn read(file: &Path) -> Result<Observations> {
    let bytes = std::fs::read(file).with_context(|| format!("reading capture {}", file.display()))?;
    let (seen, fault) = pcap::read(&bytes);
    match fault {
        Some(fault @ pcap::BadCapture::Damaged(_)) if seen.frames() > 0 => {
            eprintln!("labshift: {}: {fault}", file.display());
            Ok(seen)
        }
        Some(fault) => Err(fault).with_context(|| format!("reading capture {}", file.display())),
        None => Ok(seen),
    }
}

fn watch(interface: &str, seconds: Option<u64>, json: bool) -> Result<Observations> {
    let end = seconds.map(Duration::from_secs);
    let until = end.map_or("until Ctrl-C".to_owned(), |end| format!("for {} s", end.as_secs()));
    eprintln!("labshift: watching {interface} {until}; switch a machine on that does not boot");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
    let news = |finding: &Finding| {
        if !json {
            print(finding);
        }
    };
    let seen = runtime.block_on(async {
        let interrupted = async {
            // Without a handler Ctrl-C simply ends the program.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        live::watch(interface, end, interrupted, news).await
    });
    let (seen, gone) = seen.map_err(|e| match e.kind() {
        std::io::ErrorKind::PermissionDenied => crate::exit::Refusal::NoPermission(format!(
            "no permission to watch {interface}: run as root, or give CAP_NET_RAW"
        ))
        .into(),
        std::io::ErrorKind::NotFound => crate::exit::Refusal::NotFound(e.to_string()).into(),
        _ => anyhow::Error::new(e).context(format!("watching {interface}")),
    })?;
    if gone {
        eprintln!("labshift: {interface} is gone; what was seen until then is judged");
    }
    Ok(seen)
}

fn print(finding: &Finding) {
    println!("{}: {}", finding.client, finding.problem);
    for evidence in &finding.evidence {
        println!("  {:9.3} s  {}", evidence.seconds, evidence.text);
    }
    for (n, line) in finding.fix.lines().enumerate() {
        println!("  {} {line}", if n == 0 { "fix:" } else { "    " });
    }
    println!();
}
