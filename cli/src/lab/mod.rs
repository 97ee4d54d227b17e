//! `labshift lab`: a virtual lab on one machine.

mod day;
mod demo;
mod up;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use labshift_lab::{
    ControlError, Firmware, LabClient,
    control::{Answer, MachineStatus, Request},
};

use crate::{
    args::{Lab, Machine},
    exit::Refusal,
    table::table,
};

/// Carries out a lab command.
pub fn run(command: Lab, json: bool) -> Result<()> {
    match command {
        Lab::Up(arguments) => return up::run(arguments),
        Lab::Demo(arguments) => return demo::demo(&arguments, json),
        Lab::Bench(arguments) => return demo::bench(&arguments, json),
        Lab::Status(control) => return status(&control.output, json),
        Lab::Press(m) => ask(&m, |machine| Request::Press { machine })?,
        Lab::Unplug(m) => ask(&m, |machine| Request::Unplug { machine })?,
        Lab::Cut(m) => ask(&m, |machine| Request::Cut { machine })?,
        Lab::Mend(m) => ask(&m, |machine| Request::Mend { machine })?,
        Lab::Wake(m) => wake(&m)?,
        Lab::Screenshot { machine, file } => {
            let file = std::path::absolute(&file).with_context(|| format!("finding {}", file.display()))?;
            ask(&machine, |machine| Request::Screenshot { machine, file })?;
        }
        Lab::Key { machine, key } => ask(&machine, |machine| Request::Key { machine, key })?,
        Lab::Wait { machine, event, detail, since, guard } => {
            let client = LabClient::new(&machine.control.output);
            let guard = Duration::from_secs(guard);
            let happening = client.wait(since, &machine.machine, &event, &detail, guard).map_err(refused)?;
            if json {
                return crate::print_json(&happening);
            }
            println!("{} {} {} {}", happening.at, happening.machine, happening.event, happening.detail);
            return Ok(());
        }
        Lab::Stop(control) => {
            return LabClient::new(&control.output).ask(&Request::Stop).map(drop).map_err(refused);
        }
    }
    if json {
        return crate::print_json(&serde_json::json!({ "done": true }));
    }
    Ok(())
}

fn ask(machine: &Machine, request: impl FnOnce(String) -> Request) -> Result<()> {
    match LabClient::new(&machine.control.output).ask(&request(machine.machine.clone())).map_err(refused)? {
        Answer::Ok => Ok(()),
        other => bail!("the lab gave an unexpected answer: {other:?}"),
    }
}

/// By name, or by any hardware address.
fn wake(machine: &Machine) -> Result<()> {
    let client = LabClient::new(&machine.control.output);
    let mac = match machine.machine.parse() {
        Ok(mac) => mac,
        Err(_) => client
            .status()
            .map_err(refused)?
            .into_iter()
            .find(|m| m.hardware.name == machine.machine)
            .map(|m| m.hardware.mac)
            .ok_or_else(|| {
                Refusal::NotFound(format!("this lab has no workstation \"{}\"", machine.machine))
            })?,
    };
    client.ask(&Request::Wake { mac }).map(drop).map_err(refused)
}

fn status(output: &Path, json: bool) -> Result<()> {
    let machines = LabClient::new(output).status().map_err(refused)?;
    if json {
        return crate::print_json(&machines);
    }
    let row = |m: &MachineStatus| {
        let power = match (m.power.on, m.power.armed) {
            (true, _) => "on",
            (false, true) => "off, armed",
            (false, false) => "off, not armed",
        };
        let firmware = match m.hardware.firmware {
            Firmware::Bios => "bios",
            Firmware::Uefi => "uefi",
            Firmware::SecureBoot => "secure-boot",
        };
        vec![
            m.hardware.name.clone(),
            m.hardware.mac.to_string(),
            firmware.into(),
            power.into(),
            m.power.starts.to_string(),
        ]
    };
    let rows: Vec<_> = machines.iter().map(row).collect();
    print!("{}", table(&["machine", "mac", "firmware", "power", "starts"], &rows));
    Ok(())
}

fn refused(error: ControlError) -> anyhow::Error {
    let text = match std::error::Error::source(&error) {
        Some(source) => format!("{error} ({source})"),
        None => error.to_string(),
    };
    match error {
        ControlError::NoLab { .. } => Refusal::Unreachable(text).into(),
        _ => anyhow!(text),
    }
}

/// Reads `NAME=PATH`; the path as it is from everywhere.
fn disks(words: &[String]) -> Result<BTreeMap<String, PathBuf>> {
    let read = |word: &String| {
        let (name, path) =
            word.split_once('=').ok_or_else(|| anyhow!("--disk \"{word}\": write NAME=PATH"))?;
        let path = std::fs::canonicalize(path).with_context(|| format!("--disk {word}"))?;
        Ok((name.to_owned(), path))
    };
    words.iter().map(read).collect()
}

/// Reads `NAME=bios`, `NAME=uefi` and `NAME=secure-boot`.
fn firmware(words: &[String]) -> Result<BTreeMap<String, Firmware>> {
    let mut by_name = BTreeMap::new();
    for word in words {
        let (name, firmware) = word.split_once('=').unwrap_or((word, ""));
        let firmware = match firmware {
            "bios" => Firmware::Bios,
            "uefi" => Firmware::Uefi,
            "secure-boot" => Firmware::SecureBoot,
            _ => bail!("--firmware \"{word}\": write NAME=bios, NAME=uefi or NAME=secure-boot"),
        };
        by_name.insert(name.to_owned(), firmware);
    }
    Ok(by_name)
}
