//! `labshift lab demo` and `labshift lab bench`: build the images, start a lab, play [`day`], print what was measured.
//! Everything goes through commands that an admin could type.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use labshift_fleet::client::Client;
use labshift_lab::{LabClient, control::Request, namespace, screen::Picture};
use labshift_model::{
    api::{Boot, FleetStatus},
    boot::Stage as BootStage,
};
use serde::Serialize;

use super::day::{self, Stage, Step};
use crate::{
    args::LabScenario,
    image, node,
    table::{duration, table},
};

/// The demo's site file.
const SITE: &str = include_str!("site.toml");
/// The colour of the desktop guest's wallpaper, and the share of the screen that it must cover at least.
const WALLPAPER: ([u8; 3], f64) = ([0x0f, 0x4c, 0x5c], 0.5);

/// What a demo leaves in `demo.json`.
#[derive(Serialize)]
struct Record {
    images_ms: u64,
    lab_ms: u64,
    steps: Vec<Step>,
    boots: Vec<(String, Vec<Boot>)>,
    fleet: FleetStatus,
}

/// Plays one day and prints its timeline.
pub fn demo(arguments: &LabScenario, json: bool) -> Result<()> {
    let record = play(arguments, json)?;
    if json {
        return crate::print_json(&record);
    }
    println!("\n{}", timeline(&record));
    println!("{}", stages(&record));
    println!("{}", changes(&record));
    println!("screenshots, boot traces and logs: {}", arguments.output.display());
    Ok(())
}

/// Plays one day and prints its figures.
pub fn bench(arguments: &LabScenario, json: bool) -> Result<()> {
    let record = play(arguments, json)?;
    if !json {
        println!("\n{}", stages(&record));
        println!("{}", changes(&record));
    }
    println!(
        "no peer is installed: nothing else boots a room, shows desktops and runs batch guests; goals are docs/design.md's"
    );
    for (name, seconds, goal) in figures(&record) {
        let verdict = if seconds <= goal { "met" } else { "short" };
        println!("figure {name} {seconds:.1} s goal <= {goal} {verdict}");
    }
    Ok(())
}

fn play(arguments: &LabScenario, json: bool) -> Result<Record> {
    let output = &arguments.output;
    clear(output)?;
    let start = Instant::now();
    let recipes =
        ["lab", "guest-desktop", "guest-batch"].map(|name| arguments.recipes.join(format!("{name}.toml")));
    image::build_all(&recipes, &arguments.store, &arguments.sources, json)?;
    let images_ms = milliseconds(start);

    let start = Instant::now();
    let site = output.join("site.toml");
    fs::write(&site, SITE).with_context(|| format!("writing {}", site.display()))?;
    let lab = Running::start(arguments, &site, json)?;
    let lab_ms = milliseconds(start);

    let mut stage = Theatre { lab: LabClient::new(output), output: output.clone(), json };
    let played = day::play(&lab.client, &mut stage);
    let fleet = lab.client.status()?;
    let boots: Vec<(String, Vec<Boot>)> =
        fleet.nodes.iter().filter_map(|n| Some((n.name.clone(), lab.client.boots(&n.name).ok()?))).collect();
    for (node, boots) in &boots {
        let text: String = boots.iter().rev().map(node::stages).collect();
        fs::write(output.join(format!("{node}-boots.txt")), text).context("writing the boot traces")?;
    }
    if let Ok(page) = lab.client.text("/") {
        fs::write(output.join("dashboard.html"), page).context("writing the dashboard's copy")?;
    }
    if played.is_err() {
        tails(output);
    }
    let steps =
        played.with_context(|| format!("the day did not go as planned; logs are in {}", output.display()))?;
    let record = Record { images_ms, lab_ms, steps, boots, fleet };
    let file = File::create(output.join("demo.json")).context("writing demo.json")?;
    serde_json::to_writer_pretty(file, &record).context("writing demo.json")?;
    fs::write(
        output.join("timeline.txt"),
        timeline(&record) + "\n" + &stages(&record) + "\n" + &changes(&record),
    )
    .context("writing timeline.txt")?;
    Ok(record)
}

/// Marks a directory whose content a demo may throw away.
const MARK: &str = ".labshift-demo";

/// A day begins with nothing saved and nothing learnt. Only what an earlier demo left is removed.
fn clear(output: &Path) -> Result<()> {
    ensure!(
        !LabClient::new(output).is_up(),
        "a lab runs in {dir} already; end it with `labshift lab stop --output {dir}`, or choose another --output",
        dir = output.display()
    );
    let clearing = || format!("clearing {}", output.display());
    match fs::read_dir(output).map(|mut entries| entries.next().is_none()) {
        Ok(false) => {
            ensure!(
                output.join(MARK).exists(),
                "{} holds files that no demo has made; remove it, or choose another --output",
                output.display()
            );
            fs::remove_dir_all(output).with_context(clearing)?;
        }
        Ok(true) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(clearing),
    }
    fs::create_dir_all(output).with_context(|| format!("making {}", output.display()))?;
    fs::write(output.join(MARK), "").with_context(|| format!("writing into {}", output.display()))
}

/// `labshift lab up` as a child; ends with this value.
struct Running {
    child: Child,
    output: PathBuf,
    client: Client,
}

impl Running {
    fn start(arguments: &LabScenario, site: &Path, json: bool) -> Result<Self> {
        let output = &arguments.output;
        let mut child = namespace::this_program()
            .args([
                "lab",
                "up",
                "--clock",
                "manual:2026-11-23T07:40:00",
                "--firmware",
                "ws1=bios",
                "--firmware",
                "ws2=uefi",
            ])
            .args(["--dashboard", &arguments.dashboard.to_string()])
            .args(["--end-with", &std::process::id().to_string()])
            .arg("--site")
            .arg(site)
            .arg("--store")
            .arg(&arguments.store)
            .arg("--output")
            .arg(output)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting labshift lab up")?;
        let lines = child.stdout.take().map(BufReader::new).context("listening to labshift lab up")?;
        let mut url = None;
        let mut lines = lines.lines();
        let mut up = false;
        for line in lines.by_ref().map_while(Result::ok) {
            if !json {
                println!("  {line}");
            }
            if let Some(word) = line.split_whitespace().find(|w| w.starts_with("http://")) {
                url = Some(word.trim_end_matches('/').to_owned());
            }
            if line.starts_with("lab is up") {
                up = true;
                break;
            }
        }
        if !up {
            let status = child.wait().context("waiting for labshift lab up")?;
            bail!("labshift lab up ended with {status}");
        }
        std::thread::spawn(move || lines.for_each(drop));
        let url = url.context("labshift lab up did not name its dashboard")?;
        fs::write(output.join("dashboard.url"), format!("{url}/\n"))
            .context("writing the dashboard's address")?;
        let client = Client::new(&url, &output.join("state/admin.token"))?;
        Ok(Running { child, output: output.clone(), client })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if LabClient::new(&self.output).ask(&Request::Stop).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

struct Theatre {
    lab: LabClient,
    output: PathBuf,
    json: bool,
}

impl Stage for Theatre {
    fn say(&mut self, step: &Step) {
        if self.json {
            return;
        }
        println!("  {}  {} ({})", step.clock, step.what, duration(step.took_ms));
        let _ = std::io::stdout().flush();
    }

    /// The first picture may come while the guest still paints: looks again each second.
    fn see_desktop(&mut self, node: &str, name: &str) -> Result<()> {
        let file =
            std::path::absolute(self.output.join(format!("{name}.png"))).context("naming the screenshot")?;
        let begun = Instant::now();
        loop {
            self.lab.ask(&Request::Screenshot { machine: node.to_owned(), file: file.clone() })?;
            let share = Picture::read(&file)?.share_of(WALLPAPER.0, 12);
            if share >= WALLPAPER.1 {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < day::GUARD,
                "{node}'s screen does not show the desktop: its wallpaper covers {:.0} % of {}",
                share * 100.0,
                file.display()
            );
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn is_off_and_armed(&mut self, node: &str) -> Result<()> {
        let guard = Duration::from_secs(300);
        let off = self.lab.wait(0, node, "powered-off", "", guard)?;
        ensure!(off.detail.starts_with("armed"), "{node} is off, but {}", off.detail);
        Ok(())
    }
}

/// Prints the ends of all logs, for a day that went wrong.
fn tails(output: &Path) {
    for entry in fs::read_dir(output).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "log") {
            continue;
        }
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("---- the end of {} ----", path.display());
        lines[lines.len().saturating_sub(30)..].iter().for_each(|line| eprintln!("{line}"));
    }
}

fn timeline(record: &Record) -> String {
    let mut rows = vec![
        vec!["".to_owned(), "images built (or found unchanged)".to_owned(), duration(record.images_ms)],
        vec![
            "Mon 07:40".to_owned(),
            "the lab is up, all machines are off".to_owned(),
            duration(record.lab_ms),
        ],
    ];
    rows.extend(record.steps.iter().map(|s| vec![s.clock.clone(), s.what.clone(), duration(s.took_ms)]));
    table(&["lab time", "what happened", "took"], &rows)
}

/// Firmware to first picture, one column a machine: its first boot.
fn stages(record: &Record) -> String {
    let named = [
        (BootStage::Firmware, "firmware asks for an address"),
        (BootStage::Loader, "kernel is fetched"),
        (BootStage::Init, "PID 1 runs"),
        (BootStage::Address, "node has an address"),
        (BootStage::RootMounted, "verified root is mounted"),
        (BootStage::Ready, "runtime is ready"),
        (BootStage::GuestVisible, "first guest is visible"),
    ];
    let mut header = vec!["first boot, since the magic packet"];
    header.extend(record.boots.iter().map(|(node, _)| node.as_str()));
    let rows: Vec<_> = named
        .iter()
        .map(|(stage, words)| {
            let at = |boots: &Vec<Boot>| {
                let reached = boots.last().and_then(|b| b.stages.iter().find(|s| s.stage == *stage));
                reached.map_or_else(|| "-".to_owned(), |s| duration(s.ms))
            };
            std::iter::once((*words).to_owned())
                .chain(record.boots.iter().map(|(_, boots)| at(boots)))
                .collect()
        })
        .collect();
    table(&header, &rows)
}

/// Every mode change of the day with its phases.
fn changes(record: &Record) -> String {
    let mut rows = vec![];
    for step in &record.steps {
        for (node, change) in &step.changes {
            let from = change.from.map_or_else(|| "boot".to_owned(), |m| m.to_string());
            let phases: Vec<_> =
                change.phases.iter().map(|(what, ms)| format!("{what} {}", duration(*ms))).collect();
            rows.push(vec![
                step.clock.clone(),
                node.clone(),
                format!("{from} -> {}", change.to),
                duration(change.took_ms),
                phases.join(", "),
            ]);
        }
    }
    table(&["lab time", "node", "mode change", "took", "phases"], &rows)
}

/// Name, seconds, goal in seconds. Goals: a host's boot as in the minimalist KVM host of Virtual Organization Clusters
/// (160 s, on real hardware); a mode change within a break of lessons.
fn figures(record: &Record) -> Vec<(String, f64, f64)> {
    let mut figures = vec![];
    for (node, boots) in &record.boots {
        let stages = boots.last().map(|b| b.stages.as_slice()).unwrap_or_default();
        let reached = |stage| stages.iter().find(|s| s.stage == stage).map(|s| s.ms as f64 / 1000.0);
        for (stage, name, goal) in
            [(BootStage::Ready, "ready", 160.0), (BootStage::GuestVisible, "first_guest_visible", 240.0)]
        {
            figures.extend(reached(stage).map(|s| (format!("boot_{node}_{name}"), s, goal)));
        }
    }
    let goals = [("compute", 300.0), ("save", 300.0), ("resume", 300.0), ("off", 300.0)];
    for step in &record.steps {
        if let Some((_, goal)) = goals.iter().find(|(name, _)| *name == step.name) {
            figures.push((
                format!("step_{}", step.name.replace('-', "_")),
                step.took_ms as f64 / 1000.0,
                *goal,
            ));
        }
    }
    figures
}

fn milliseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_demo_left_is_cleared() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let output = scratch.path().join("demo");
        clear(&output).expect("a new directory");
        fs::write(output.join("state"), "of the day before").expect("writing");
        clear(&output).expect("an earlier demo's");
        assert!(!output.join("state").exists());

        let own = scratch.path().join("own");
        fs::create_dir(&own).expect("making");
        fs::write(own.join("site.toml"), "an admin's").expect("writing");
        let refused = clear(&own).expect_err("somebody's files").to_string();
        assert!(refused.contains("no demo has made"), "{refused}");
        assert!(own.join("site.toml").exists());
    }
}
