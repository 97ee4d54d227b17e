//! `labshift image run`: one workstation of a virtual lab boots an image at once, and its serial line is shown. With `--record`
//! the order in which the boot reads its root is taken from there and signed with the image.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use labshift_image::Store;
use labshift_lab::{ControlError, LabClient, control::Request, namespace};
use labshift_model::{
    boot_order::BootOrder,
    mac::MacAddr,
    manifest::{ImageKind, Manifest, short},
    paths,
};
use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};

use super::{existing, refused};
use crate::args::ImageRun;

/// The lab's only workstation.
const MACHINE: &str = "ws1";
const MAC: MacAddr = MacAddr([0x52, 0x54, 0x00, 0x77, 0x00, 0x01]);

/// Boots an image until Ctrl-C, or until its serial line says what was waited for.
pub fn run(arguments: &ImageRun) -> Result<()> {
    let store = existing(&arguments.store)?;
    let (name, generation) = store.find(&arguments.image).map_err(refused)?;
    let file = store.generation(&name, &generation).join(paths::MANIFEST);
    let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    let manifest = Manifest::from_bytes(&bytes).with_context(|| format!("reading {}", file.display()))?;
    ensure!(
        manifest.kind == ImageKind::Host,
        "image {name} is a guest's; run it on a host: `labshift image run HOST --desktop {name}`"
    );
    // Waited for by a thread: this one has a lab to end and an order to put back.
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM].into_iter().for_each(|s| signals.add(s));
    signals.thread_block().context("blocking signals")?;
    let image = (name.as_str(), generation.as_str());
    let mut recording = arguments.record.then(|| Recording::begin(&store, image)).transpose()?;
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("making {}", arguments.output.display()))?;
    let site = arguments.output.join("site.toml");
    fs::write(&site, site_of(&name, &generation, arguments.desktop.as_deref()))
        .with_context(|| format!("writing {}", site.display()))?;
    println!("{name}@{}: one workstation with {} firmware", short(&generation), arguments.firmware);

    let mut lab = Lab { child: start(arguments, &site)?, client: LabClient::new(&arguments.output) };
    let id = Pid::from_raw(lab.child.id().cast_signed());
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            flag.store(true, Ordering::Release);
            // Gone already, at worst.
            let _ = kill(id, Signal::SIGTERM);
        }
    });
    let lines = lab.child.stdout.take().map(BufReader::new).context("listening to labshift lab up")?;
    let mut lines = lines.lines().map_while(Result::ok);
    let up = lines.by_ref().any(|line| {
        println!("  {line}");
        line.starts_with("lab is up")
    });
    if !up {
        let status = lab.child.wait().context("waiting for labshift lab up")?;
        bail!("labshift lab up ended with {status}");
    }
    std::thread::spawn(move || lines.for_each(drop));
    lab.client.ask(&Request::Wake { mac: MAC }).context("waking the workstation")?;
    let (mut last, mut parts) = (0, Parts::default());
    loop {
        match lab.client.wait(last, MACHINE, "serial", "", Duration::from_secs(3600)) {
            Ok(happening) => {
                last = happening.id;
                println!("{}", happening.detail);
                if let Some(order) = parts.take(&happening.detail)
                    && let Some(recording) = recording.take()
                {
                    return recording.finish(&BootOrder::parse(&order).context("reading the boot order")?);
                }
                if arguments.until.as_ref().is_some_and(|text| happening.detail.contains(text)) {
                    return Ok(());
                }
            }
            Err(ControlError::NoLab { .. }) => break,
            Err(_) if interrupted.load(Ordering::Acquire) => break,
            Err(error) => return Err(error).context("reading the workstation's serial line"),
        }
    }
    ensure!(
        recording.is_none(),
        "the lab ended before the boot's order was known; the order of before stays"
    );
    if let Some(text) = &arguments.until {
        bail!("the lab ended before its serial line said {text:?}");
    }
    Ok(())
}

/// A generation without a boot order, for as long as its boot is recorded: an image that has one does not tell another. Ended early, it
/// gets the order of before again.
struct Recording<'a> {
    store: &'a Store,
    image: (&'a str, &'a str),
    before: Option<BootOrder>,
}

impl<'a> Recording<'a> {
    fn begin(store: &'a Store, image: (&'a str, &'a str)) -> Result<Self> {
        let before = store.set_boot_order(image, &BootOrder::default(), Timestamp::now()).map_err(refused)?;
        ensure!(
            before.is_some(),
            "{}@{} was pushed here from another store, whose key signs it: record it there",
            image.0,
            short(image.1)
        );
        Ok(Recording { store, image, before })
    }

    fn finish(mut self, order: &BootOrder) -> Result<()> {
        self.store.set_boot_order(self.image, order, Timestamp::now()).map_err(refused)?;
        self.before = None;
        let blocks: u64 = order.ranges().iter().map(|(_, count)| count).sum();
        println!(
            "{}@{}: its boot reads {} MiB, in an order that is known now",
            self.image.0,
            short(self.image.1),
            (blocks * 4096) >> 20
        );
        Ok(())
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take().filter(|b| !b.is_empty())
            && let Err(why) = self.store.set_boot_order(self.image, &before, Timestamp::now())
        {
            eprintln!("labshift: {} has lost its boot order: {why}", self.image.0);
        }
    }
}

/// The parts of a boot order, as init says them line by line: `boot-order 1/3 0+32,...`.
#[derive(Default)]
struct Parts(Vec<String>);

impl Parts {
    /// Takes a line of the serial log; gives the order when it was the last part.
    fn take(&mut self, line: &str) -> Option<String> {
        let (_, rest) = line.split_once(" boot-order ")?;
        let (place, part) = rest.trim().split_once(' ')?;
        let (number, of) = place.split_once('/')?;
        let (number, of): (usize, usize) = (number.parse().ok()?, of.parse().ok()?);
        if number == 1 {
            self.0.clear();
        }
        if number == self.0.len() + 1 {
            self.0.push(part.to_owned());
        }
        (number == of && self.0.len() == of).then(|| std::mem::take(&mut self.0).concat())
    }
}

fn start(arguments: &ImageRun, site: &std::path::Path) -> Result<Child> {
    namespace::this_program()
        .args(["lab", "up", "--dashboard", "127.0.0.1:0", "--clock", "manual:2026-11-23T09:00:00"])
        .args(["--firmware", &format!("{MACHINE}={}", arguments.firmware)])
        .args(["--memory", &arguments.memory.to_string()])
        .args(["--end-with", &std::process::id().to_string()])
        .arg("--site")
        .arg(site)
        .arg("--store")
        .arg(&arguments.store)
        .arg("--output")
        .arg(&arguments.output)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting labshift lab up")
}

/// Ends the lab, whatever happens here.
struct Lab {
    child: Child,
    client: LabClient,
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.client.ask(&Request::Stop).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// A room of one machine, pinned to the generation: with a desktop it has a lesson all day.
fn site_of(name: &str, generation: &str, desktop: Option<&str>) -> String {
    let session = "[[schedule.session]]\ntitle = \"image run\"\ndays = [\"mon-fri\"]\nstart = \"08:00\"\nend = \"20:00\"\n";
    format!(
        "name = \"image-run\"\ntimezone = \"UTC\"\n\n[server]\naddress = \"10.77.0.1/24\"\npool = \"10.77.0.100-10.77.0.199\"\n\n\
         [[template]]\nname = \"desktop\"\nimage = \"{}\"\nrole = \"desktop\"\nmemory_mib = 512\nvcpus = 1\n\n\
         [[room]]\nname = \"room\"\nimage = \"{name}\"\ngeneration = \"{generation}\"\nschedule = \"always\"\ndesktop = \"desktop\"\n\n\
         [[machine]]\nname = \"{MACHINE}\"\nroom = \"room\"\nmac = \"{MAC}\"\naddress = \"10.77.0.11\"\n\n\
         [[schedule]]\nname = \"always\"\noutside = \"compute\"\n{}",
        desktop.unwrap_or("none"),
        if desktop.is_some() { session } else { "" },
    )
}

#[cfg(test)]
mod tests {
    use labshift_model::site::Site;

    use super::*;

    #[test]
    fn an_order_is_put_together_from_its_lines() {
        let mut parts = Parts::default();
        let lines = [
            "labshift: [  20.100] root-mounted verity",
            "labshift: [  30.100] boot-order 2/2 lost beginning",
            "labshift: [  30.100] boot-order 1/2 0+32,6",
            "labshift: [  30.101] runtime something else",
        ];
        assert!(lines.iter().all(|line| parts.take(line).is_none()));
        assert_eq!(parts.take("labshift: [  30.102] boot-order 2/2 4+32\r").as_deref(), Some("0+32,64+32"));
        assert_eq!(parts.take("labshift: [  30.102] boot-order 1/1 7").as_deref(), Some("7"));
    }

    #[test]
    fn the_site_is_right() {
        for desktop in [None, Some("guest-desktop")] {
            let site =
                Site::parse("site.toml", &site_of("lab", &"ab".repeat(32), desktop)).expect("a right site");
            assert_eq!(site.machines[0].mac, MAC);
            assert_eq!(site.rooms[0].generation.as_deref(), Some(&*"ab".repeat(32)));
        }
    }
}
