//! Shows the CUDA devices that a server shares, and tests them.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use labshift_model::{node::CudaDevice, paths};
use labshift_rcuda::{
    client::Client,
    selftest,
    wire::{endpoint::Endpoint, message::DeviceInfo},
};

const MIB: u64 = 1 << 20;

/// Lists remote CUDA devices.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Server: unix:PATH or vsock:CID:PORT [default: this node's socket if it exists, else the host by vsock].
    #[arg(long, value_name = "ADDRESS")]
    connect: Option<Endpoint>,
    /// Print JSON: a list with one object per device.
    #[arg(long)]
    json: bool,
    /// Add two vectors on each device and check the result.
    #[arg(long)]
    selftest: bool,
}

fn main() -> ExitCode {
    run(&Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("rcuda-smi: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let endpoint = arguments.connect.clone().unwrap_or_else(usual);
    let mut client = Client::connect(&endpoint)?;
    if arguments.selftest {
        return test(&mut client, &endpoint);
    }
    let devices: Vec<_> =
        (0..).zip(client.devices()).map(|(index, device)| describe(index, device)).collect();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&devices).context("writing JSON")?);
    } else {
        print!("{}", table(&endpoint, client.clients(), &devices));
    }
    Ok(ExitCode::SUCCESS)
}

fn usual() -> Endpoint {
    if Path::new(paths::RCUDA_SOCKET).exists() {
        Endpoint::Unix(paths::RCUDA_SOCKET.into())
    } else {
        Endpoint::Vsock { cid: 2, port: paths::RCUDA_VSOCK_PORT }
    }
}

fn describe(index: u32, device: &DeviceInfo) -> CudaDevice {
    let [major, minor] = device.capability;
    CudaDevice {
        index,
        name: device.name.clone(),
        memory_total: device.device_total,
        memory_free: device.device_total.saturating_sub(device.device_used),
        compute_capability: format!("{major}.{minor}"),
        software: device.software,
    }
}

fn table(endpoint: &Endpoint, clients: u32, devices: &[CudaDevice]) -> String {
    let width = devices.iter().map(|d| d.name.chars().count()).max().unwrap_or(0).max(4);
    let plural = if clients == 1 { "" } else { "s" };
    let mut text = format!("{endpoint}: {clients} client{plural}, this one included\n\n");
    text += &format!(
        "{:>3}  {:width$}  {:>21}  {:>10}  KIND\n",
        "GPU", "NAME", "MEMORY USED / TOTAL", "CAPABILITY"
    );
    for device in devices {
        let used = (device.memory_total - device.memory_free) / MIB;
        let memory = format!("{used} / {} MiB", device.memory_total / MIB);
        let kind = if device.software { "software" } else { "GPU" };
        text += &format!(
            "{:>3}  {:width$}  {memory:>21}  {:>10}  {kind}\n",
            device.index, device.name, device.compute_capability
        );
    }
    if devices.is_empty() {
        text += "no devices\n";
    }
    text
}

fn test(client: &mut Client, endpoint: &Endpoint) -> Result<ExitCode> {
    let names: Vec<_> = client.devices().iter().map(|d| d.name.clone()).collect();
    let mut good = !names.is_empty();
    for (ordinal, name) in (0..).zip(names) {
        let outcome =
            selftest::vector_add(client, ordinal).with_context(|| format!("testing device {ordinal}"))?;
        match outcome.wrong {
            None => {
                println!("{endpoint}: device {ordinal} ({name}) added {} pairs: all right", outcome.elements)
            }
            Some((place, value, expected)) => {
                good = false;
                println!(
                    "{endpoint}: device {ordinal} ({name}) is WRONG: sum {place} is {value}, not {expected}"
                );
            }
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_for_people() {
        let device = CudaDevice {
            index: 0,
            name: "labshift software device".into(),
            memory_total: 512 * MIB,
            memory_free: 500 * MIB,
            compute_capability: "7.0".into(),
            software: true,
        };
        let text = table(&Endpoint::Vsock { cid: 2, port: 9700 }, 1, &[device]);
        assert_eq!(
            text,
            "vsock:2:9700: 1 client, this one included\n\n\
             GPU  NAME                        MEMORY USED / TOTAL  CAPABILITY  KIND\n  \
             0  labshift software device           12 / 512 MiB         7.0  software\n"
        );
    }
}
