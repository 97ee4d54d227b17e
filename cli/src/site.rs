//! `labshift site`: check a site file, and see its schedule before a room does.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use jiff::{Timestamp, ToSpan, civil::DateTime};
use labshift_model::site::Site as SiteFile;
use labshift_plan::schedule;
use labshift_pxe::dhcp::elsewhere::Elsewhere;
use serde_json::json;

use crate::{
    args::{self, Site},
    serve,
    table::table,
};

/// Carries out a site command.
pub fn run(command: Site, json: bool) -> Result<()> {
    match command {
        Site::Check { file } => {
            let site = read(&file)?;
            let (rooms, machines, guests) = (site.rooms.len(), site.machines.len(), site.guests.len());
            if json {
                return crate::print_json(&json!({
                    "site": site.name, "rooms": rooms, "machines": machines, "guests": guests
                }));
            }
            println!(
                "{}: no mistakes · {rooms} rooms, {machines} machines, {guests} batch guests",
                file.display()
            );
        }
        Site::Dhcp { file, kind, http_port } => print_elsewhere(&read(&file)?, kind, http_port, json)?,
        Site::Schedule { file, from, days } => print_schedule(&read(&file)?, from.as_deref(), days, json)?,
    }
    Ok(())
}

fn print_elsewhere(site: &SiteFile, kind: Option<args::Elsewhere>, port: u16, json: bool) -> Result<()> {
    let mut config = serve::config(site, "-", Path::new(""), Path::new(""));
    config.http_port = port;
    let wanted: Vec<Elsewhere> = match kind {
        None => Elsewhere::ALL.to_vec(),
        Some(args::Elsewhere::Dnsmasq) => vec![Elsewhere::Dnsmasq],
        Some(args::Elsewhere::Isc) => vec![Elsewhere::Isc],
        Some(args::Elsewhere::Kea) => vec![Elsewhere::Kea],
        Some(args::Elsewhere::Windows) => vec![Elsewhere::Windows],
    };
    if json {
        let all = wanted.iter().map(|e| json!({ "server": e.title(), "text": e.text(&config) }));
        return crate::print_json(&all.collect::<Vec<_>>());
    }
    match &wanted[..] {
        // One alone can go straight into a file.
        [one] => print!("{}", one.text(&config)),
        all => all.iter().for_each(|e| println!("# {}\n{}", e.title(), e.text(&config))),
    }
    Ok(())
}

/// Reads a site file; its mistakes are the error.
pub fn read(file: &Path) -> Result<SiteFile> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("reading site file {}", file.display()))?;
    Ok(SiteFile::parse(&file.display().to_string(), &text)?)
}

#[allow(clippy::disallowed_methods, reason = "the command line is the edge of the program")]
fn print_schedule(site: &SiteFile, from: Option<&str>, days: u16, json: bool) -> Result<()> {
    let from = match from {
        None => Timestamp::now(),
        Some(text) => {
            let local: DateTime = text.parse().map_err(|e| {
                anyhow!("--from \"{text}\" is no time ({e}); write one like 2026-11-23T07:00")
            })?;
            local.to_zoned(site.timezone.clone()).context("reading --from")?.timestamp()
        }
    };
    let until = from.checked_add((i64::from(days) * 24).hours()).context("adding --days")?;
    let mut rows = vec![];
    let mut rooms = vec![];
    for room in &site.rooms {
        let line = schedule::timeline(site, room, from, until);
        for change in &line {
            let local = change.from.to_zoned(site.timezone.clone());
            rows.push(vec![
                room.name.clone(),
                local.strftime("%a %Y-%m-%d %H:%M").to_string(),
                change.mode.to_string(),
                change.cause.clone(),
            ]);
        }
        rooms.push(json!({ "room": room.name, "changes": line }));
    }
    if json {
        return crate::print_json(&rooms);
    }
    print!("{}", table(&["room", "from", "mode", "why"], &rows));
    Ok(())
}
