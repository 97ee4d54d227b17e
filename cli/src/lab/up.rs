//! `labshift lab up`: from a site file to a running lab.
//!
//! The command runs three times. Outside, it takes the dashboard's port on this machine, makes the namespaces, and starts
//! itself again with `--inside`; that second one is the lab's first process, which takes in orphans; it starts the third, which
//! runs everything.

use std::{
    fs,
    net::TcpListener,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};
use labshift_lab::{Firmware, Hardware, LabClient, Plan, SERVER_INTERFACE, namespace};
use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
    },
    unistd::{Pid, getppid},
};

use super::{disks, firmware};
use crate::{args::LabUp, site};

/// Runs a lab until Ctrl-C.
pub fn run(arguments: LabUp) -> Result<()> {
    match (arguments.inside, std::process::id()) {
        (false, _) => outside(&arguments),
        // The namespace's first process takes in orphans and does nothing else; the lab is its child.
        (true, 1) => {
            namespace::settle()?;
            let mut lab = namespace::this_program();
            lab.args(std::env::args_os().skip(1));
            std::process::exit(namespace::tend(lab)?);
        }
        (true, _) => inside(&arguments),
    }
}

fn outside(arguments: &LabUp) -> Result<()> {
    if let Some(parent) = arguments.end_with {
        prctl::set_pdeathsig(Signal::SIGTERM).context("asking to end with whoever started it")?;
        ensure!(getppid() == Pid::from_raw(parent), "whoever started this lab has ended already");
    }
    // Mistakes are told before anything is made.
    let site = site::read(&arguments.site)?;
    let firmware = firmware(&arguments.firmware)?;
    let disks = disks(&arguments.disk)?;
    let mut said = firmware.keys().map(|n| ("firmware", n)).chain(disks.keys().map(|n| ("disk", n)));
    if let Some((option, stranger)) = said.find(|(_, name)| site.machine(name).is_none()) {
        bail!("--{option} {stranger}=...: {} has no machine of that name", arguments.site.display());
    }
    if !arguments.store.is_dir() {
        bail!("no image store at {}; `labshift image build` makes one", arguments.store.display());
    }
    ensure!(
        !LabClient::new(&arguments.output).is_up(),
        "a lab runs in {dir} already; end it with `labshift lab stop --output {dir}`, or choose another --output",
        dir = arguments.output.display()
    );
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("making {}", arguments.output.display()))?;
    let dashboard = TcpListener::bind(arguments.dashboard).with_context(|| {
        format!("listening on {} for the dashboard (choose another with --dashboard)", arguments.dashboard)
    })?;

    // Waited for one by one: after `leave` this process can have no second thread.
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD].into_iter().for_each(|s| signals.add(s));
    signals.thread_block().context("blocking signals")?;
    namespace::leave()?;
    let mut child = namespace::this_program()
        .args(std::env::args_os().skip(1))
        .arg("--inside")
        .stdin(Stdio::from(OwnedFd::from(dashboard)))
        .spawn()
        .context("starting the lab")?;
    let id = Pid::from_raw(child.id().cast_signed());
    let status = loop {
        match signals.wait().context("waiting for signals")? {
            Signal::SIGCHLD => {
                if let Some(status) = child.try_wait().context("waiting for the lab")? {
                    break status;
                }
            }
            // Ctrl-C reaches both processes, `kill` this one alone: the lab hears of it either way, and ends in order.
            _ => kill(id, Signal::SIGTERM).context("asking the lab to end")?,
        }
    };
    match status.code() {
        Some(0) => Ok(()),
        // It has said why.
        Some(code) => std::process::exit(code),
        None => bail!("the lab was killed ({status}); nothing of it is left"),
    }
}

fn inside(arguments: &LabUp) -> Result<()> {
    let site = site::read(&arguments.site)?;
    let firmware = firmware(&arguments.firmware)?;
    let disks = disks(&arguments.disk)?;
    let directory = absolute(&arguments.output)?;
    let machines = site
        .machines
        .iter()
        .map(|m| Hardware {
            name: m.name.clone(),
            mac: m.mac,
            firmware: firmware.get(&m.name).copied().unwrap_or(Firmware::Bios),
            memory_mib: arguments.memory,
            cpus: 2,
            disk: disks.get(&m.name).cloned(),
        })
        .collect();
    let dashboard = listener_on_standard_input()?;
    let url = format!("http://{}/", dashboard.local_addr().context("reading the dashboard's address")?);
    let text = |path: &Path| path.display().to_string();
    let state = directory.join("state");
    let server = vec![
        text(&program()?),
        "serve".into(),
        "--site".into(),
        text(&absolute(&arguments.site)?),
        "--store".into(),
        text(&absolute(&arguments.store)?),
        "--state".into(),
        text(&state),
        "--interface".into(),
        SERVER_INTERFACE.into(),
        "--clock".into(),
        arguments.clock.clone(),
    ];
    let plan = Plan {
        directory: directory.clone(),
        address: site.server.address,
        prefix: site.server.prefix,
        server_mbit: arguments.server_mbit,
        machines,
        server,
        server_ready: "labshift: dashboard".into(),
        dashboard: Some(dashboard),
    };
    labshift_lab::up(plan, || {
        println!("dashboard    {url}");
        println!("admin token  {}", state.join("admin.token").display());
        println!("logs         {}", directory.display());
        println!("lab is up: {} workstations, all off; Ctrl-C ends it", site.machines.len());
    })?;
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("finding {}", path.display()))
}

fn program() -> Result<PathBuf> {
    std::env::current_exe().context("finding this program")
}

/// The listener that the process outside has passed.
fn listener_on_standard_input() -> Result<TcpListener> {
    use std::os::fd::AsFd;
    let descriptor =
        std::io::stdin().as_fd().try_clone_to_owned().context("taking the dashboard's socket")?;
    Ok(TcpListener::from(descriptor))
}
