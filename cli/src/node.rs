//! `labshift node` and `labshift status`: the fleet as a running server sees it.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};
use labshift_fleet::client::{Client, ClientError};
use labshift_model::{
    api::{
        AdoptRequest, Boot, BootRequest, BootTarget, FleetStatus, LogPart, ModeRequest, NodeView,
        RebootRequest, Stranger, WakeRequest,
    },
    manifest::short,
    node::Mode,
};

use crate::{
    args::{Node, Server},
    exit::Refusal,
    table::{duration, table},
};

/// Carries out a node command.
pub fn run(command: Node, json: bool) -> Result<()> {
    match command {
        Node::List(server) => {
            let status = ask(&server, Client::status)?;
            if json {
                return crate::print_json(&status.nodes);
            }
            print!("{}", nodes(&status));
        }
        Node::Explain { node, server } => {
            let explanation = ask(&server, |c| c.explain(&node))?;
            if json {
                return crate::print_json(&explanation);
            }
            println!("{}: {}\n", explanation.node, explanation.summary);
            println!(
                "wanted  {} since {}: {}",
                explanation.wanted.mode, explanation.wanted.from, explanation.wanted.cause
            );
            for next in &explanation.upcoming {
                println!("next    {} from {}: {}", next.mode, next.from, next.cause);
            }
            println!("\nhow it came to this, newest first:");
            for event in &explanation.history {
                let because =
                    if event.cause.is_empty() { String::new() } else { format!(" — {}", event.cause) };
                println!("  {}  {}{because}", event.at, event.text);
            }
        }
        Node::Boots { node, server } => {
            let boots = ask(&server, |c| c.boots(&node))?;
            if json {
                return crate::print_json(&boots);
            }
            boots.iter().for_each(|boot| print!("{}", stages(boot)));
        }
        Node::Log { node, all, server } => {
            let mut parts = ask(&server, |c| c.log(&node))?;
            if let Some(newest) = parts.last().map(|part| part.begun_real).filter(|_| !all) {
                parts.retain(|part| part.begun_real == newest);
            }
            if json {
                return crate::print_json(&parts);
            }
            print!("{}", log(&node, &parts));
        }
        Node::Wake { node, server } => {
            let request = WakeRequest { cause: "asked on the command line".into(), seconds: None };
            done(ask(&server, |c| c.ask(&node, "wake", &request))?, json)?;
        }
        Node::Mode { node, mode, server } => {
            let mode = mode_named(&mode)?;
            let request = ModeRequest { mode, until: None, cause: "asked on the command line".into() };
            done(ask(&server, |c| c.ask(&node, "mode", &request))?, json)?;
        }
        Node::Boot { node, target, once, server } => {
            let cause = "asked on the command line".into();
            let request = BootRequest { target: target_named(&target), once, cause };
            done(ask(&server, |c| c.ask(&node, "boot", &request))?, json)?;
        }
        Node::Strangers(server) => {
            let strangers = ask(&server, Client::status)?.strangers;
            if json {
                return crate::print_json(&strangers);
            }
            print!("{}", self::strangers(&strangers));
        }
        Node::Adopt { mac, name, room, address, server } => {
            let request = AdoptRequest { mac, room, address };
            done(ask(&server, |c| c.ask(&name, "adopt", &request))?, json)?;
        }
        Node::Forget { node, server } => {
            done(ask(&server, |c| c.ask(&node, "forget", &serde_json::json!({})))?, json)?;
        }
        Node::Reboot { node, kexec, server } => {
            let request = RebootRequest { cause: "asked on the command line".into(), kexec };
            done(ask(&server, |c| c.ask(&node, "reboot", &request))?, json)?;
        }
        Node::Rescue { challenge, key } => return crate::rescue::code(&challenge.concat(), key, json),
    }
    Ok(())
}

/// A node's log as text, boot by boot. A line that came twice, by datagram first, is printed once.
fn log(node: &str, parts: &[LogPart]) -> String {
    let mut text = String::new();
    for boot in parts.chunk_by(|a, b| a.begun_real == b.begun_real) {
        let begun = boot[0].begun_real.strftime("%Y-%m-%d %H:%M:%S UTC");
        text += &format!("{node}, the boot of {begun}:\n");
        let mut seen = HashSet::new();
        for line in boot.iter().flat_map(|part| part.text.lines()).filter(|line| seen.insert(*line)) {
            text += &format!("{}\n", line.strip_prefix("labshift: ").unwrap_or(line));
        }
    }
    text
}

/// Prints the whole fleet.
pub fn status(server: &Server, json: bool) -> Result<()> {
    let status = ask(server, Client::status)?;
    if json {
        return crate::print_json(&status);
    }
    println!(
        "{} · {}\n",
        status.site,
        status.now.in_tz(&status.timezone).map_or_else(|_| status.now.to_string(), |t| t.to_string())
    );
    println!("{}", nodes(&status));
    if !status.guests.is_empty() {
        let rows: Vec<_> = status
            .guests
            .iter()
            .map(|g| {
                let report = g.report.as_ref().map(|r| r.body.to_string()).unwrap_or_default();
                vec![g.name.clone(), g.phase.to_string(), g.node.clone().unwrap_or_default(), report]
            })
            .collect();
        println!("{}", table(&["guest", "phase", "node", "last report"], &rows));
    }
    if !status.strangers.is_empty() {
        println!(
            "wait to be adopted (labshift node adopt MAC NAME ROOM):\n\n{}",
            strangers(&status.strangers)
        );
    }
    status.troubles.iter().for_each(|t| println!("trouble: {t}"));
    Ok(())
}

fn strangers(strangers: &[Stranger]) -> String {
    let row = |s: &Stranger| {
        let address = s.address.map(|a| a.to_string()).unwrap_or_default();
        let ports = s.hardware.ports.iter().map(|p| format!("{} {}", p.mac, p.speed).trim().to_owned());
        let ports = ports.collect::<Vec<_>>().join(", ");
        vec![s.mac.to_string(), address, s.hardware.serial.clone(), s.hardware.summary(), ports]
    };
    let rows: Vec<_> = strangers.iter().map(row).collect();
    table(&["mac", "address", "serial", "hardware", "ports"], &rows)
}

fn nodes(status: &FleetStatus) -> String {
    let rows: Vec<_> = status.nodes.iter().map(row).collect();
    table(&["node", "room", "state", "image", "address", "why"], &rows)
}

fn row(node: &NodeView) -> Vec<String> {
    let state = match &node.transition {
        Some(t) => format!("{} ({}/{} {})", node.state, t.done, t.total, t.phase),
        None => node.state.to_string(),
    };
    let image = node
        .generation
        .as_deref()
        .map_or_else(|| node.image.clone(), |g| format!("{}@{}", node.image, short(g)));
    let image = match &node.told {
        Some(BootTarget::Disk) if !node.connected => BootTarget::Disk.to_string(),
        _ => image,
    };
    vec![node.name.clone(), node.room.clone(), state, image, node.address.to_string(), node.cause.clone()]
}

/// One boot, stage by stage, as text.
pub fn stages(boot: &Boot) -> String {
    let mut text =
        format!("boot {} of {}@{}, {}\n", boot.attempt, boot.image, short(&boot.generation), boot.begun_real);
    let mut before = 0;
    for stage in &boot.stages {
        let name = serde_json::to_value(stage.stage)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default();
        let step = duration(stage.ms.saturating_sub(before));
        text.push_str(&format!("  {:>10}  +{step:<10} {name:<14} {}\n", duration(stage.ms), stage.detail));
        before = stage.ms;
    }
    for exchange in &boot.exchanges {
        let mark = if exchange.fault { "!" } else { " " };
        text.push_str(&format!("  {:>10} {mark} {}\n", duration(exchange.ms), exchange.text));
    }
    if let Some((ms, trouble)) = boot.first_trouble() {
        text.push_str(&format!("  first trouble, at {}: {trouble}\n", duration(ms)));
    }
    if let Some(failure) = &boot.failure {
        text.push_str(&format!(
            "  failed: {} {}\n  help: {}\n",
            failure.code, failure.sentence, failure.hint
        ));
    }
    text
}

fn done(done: labshift_model::api::Done, json: bool) -> Result<()> {
    if json {
        return crate::print_json(&done);
    }
    println!("{}", done.done);
    Ok(())
}

fn target_named(text: &str) -> BootTarget {
    match text.split_once('@') {
        None if text == "room" => BootTarget::Room,
        None if text == "disk" => BootTarget::Disk,
        None => BootTarget::Image { name: text.to_owned(), generation: None },
        Some((name, generation)) => {
            BootTarget::Image { name: name.to_owned(), generation: Some(generation.to_owned()) }
        }
    }
}

fn mode_named(name: &str) -> Result<Option<Mode>> {
    Ok(Some(match name {
        "schedule" => return Ok(None),
        "desktop" => Mode::Desktop,
        "compute" => Mode::Compute,
        "maintenance" => Mode::Maintenance,
        "off" => Mode::Off,
        _ => bail!("\"{name}\" is no mode; choose desktop, compute, maintenance, off or schedule"),
    }))
}

/// Asks the server, with errors that carry an exit code.
fn ask<T>(server: &Server, question: impl FnOnce(&Client) -> Result<T, ClientError>) -> Result<T> {
    let client = Client::new(&server.server, &server.token_file).context("preparing to ask the server")?;
    question(&client).map_err(|e| {
        let text = e.to_string();
        match e {
            ClientError::Unreachable { .. } | ClientError::HangGuard { .. } => {
                Refusal::Unreachable(text).into()
            }
            ClientError::Refused { status: 404, .. } => Refusal::NotFound(text).into(),
            ClientError::Refused { status: 401 | 403, .. } => Refusal::NoPermission(text).into(),
            other => anyhow::Error::new(other),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_printed_boot_by_boot() {
        let part = |begun: &str, text: &str| LogPart {
            begun_real: begun.parse().expect("a time"),
            at_real: "2026-11-23T10:00:00Z".parse().expect("a time"),
            text: text.to_owned(),
        };
        let parts = [
            part("2026-11-23T07:00:00Z", "labshift: [   1.000] link eth0\n"),
            // A datagram first, then the whole by HTTP.
            part("2026-11-23T09:00:00Z", "labshift: [   2.000] address none\n"),
            part(
                "2026-11-23T09:00:00Z",
                "labshift: [   1.500] link eth0\nlabshift: [   2.000] address none\n",
            ),
        ];
        assert_eq!(
            log("ws1", &parts),
            "ws1, the boot of 2026-11-23 07:00:00 UTC:\n[   1.000] link eth0\n\
             ws1, the boot of 2026-11-23 09:00:00 UTC:\n[   2.000] address none\n[   1.500] link eth0\n"
        );
        assert_eq!(log("ws1", &[]), "");
    }
}
