//! PID 1's life: boot, then supervise, then the end. A panic anywhere is printed and told; it never ends the process.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use labshift_model::{boot::Stage, context::Network, paths};
use tokio::sync::mpsc;

use crate::{
    blocks::Blocks,
    boot, button, clock, control,
    failure::{Code, Halt},
    handover::{self, Handover},
    journal::JOURNAL,
    lease::{self, Due, Renewal},
    order,
    power::{self, End},
    process::Cgroups,
    source::FetchError,
    supervisor::{Event, Supervisor, Surroundings, note_up},
    sys, watchdog,
};

/// Seconds between a fault of init itself and the reboot.
const FAULT_PAUSE: Duration = Duration::from_secs(30);

/// How long the services' start comes before drivers that the way to the root did not need. One may wait for such a driver.
const SERVICES_FIRST: Duration = Duration::from_secs(5);
/// After the services are up the machine gets some time for itself before the rest of the root is fetched.
const QUIET: Duration = Duration::from_secs(5);
/// The same when the order of the boot's reading is to be known: slow services still read after they are up.
const RECORDING: Duration = Duration::from_secs(15);
/// Bytes of a recorded order in one line.
const ORDER_LINE: usize = 900;
/// What is said meanwhile goes to the server in one report.
const SHIPMENT: Duration = Duration::from_secs(10);
/// How long a server that takes no reports is left alone, at most.
const SILENCE: Duration = Duration::from_secs(300);
/// How long one round of asking for an address takes.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(75);

/// Everything PID 1 does. Never returns.
pub fn live() -> ! {
    sys::return_memory();
    std::panic::set_hook(Box::new(|panic| JOURNAL.say("init", &format!("fault in init: {panic}"))));
    spawn_for_life("watchdog", || watchdog::feed(Path::new("/")));
    let end = catch_unwind(|| {
        let handover = boot::run();
        match supervise(&handover) {
            Ok(end) => end,
            Err(why) => {
                let halt = Halt::new(Stage::Services, Code::Services, format!("{why:#}"));
                give_up(&halt, Some(&handover))
            }
        }
    });
    power::finish(end.unwrap_or_else(|_| {
        give_up(
            &Halt::new(Stage::Init, Code::Internal, "init stumbled over itself; the line above says where"),
            None,
        )
    }))
}

/// Shows and tells a failure after hand-over, waits, and chooses to reboot.
fn give_up(halt: &Halt, handover: Option<&Handover>) -> End {
    let mac = handover.and_then(|h| h.network.as_ref()).map(|n| n.mac);
    let next = format!("The machine reboots in {} s.", FAULT_PAUSE.as_secs());
    JOURNAL.failed(
        halt.stage,
        &halt.failure(),
        Some(&halt.page(handover.and_then(|h| h.node.as_deref()), mac, &next)),
    );
    if let Some(reporter) = handover.and_then(|h| h.reporter.as_ref()) {
        reporter.report();
    }
    std::thread::sleep(FAULT_PAUSE);
    End::Reboot
}

fn supervise(handover: &Handover) -> Result<End> {
    order::check(&handover.services).map_err(|faults| anyhow::anyhow!(faults.join("; ")))?;
    if let Some(network) = handover.network.clone() {
        spawn_for_life("lease", move || keep_lease(network.clone()));
    }
    match handover.reporter.clone() {
        Some(reporter) => spawn_for_life("log", move || ship_log(&reporter)),
        None => spawn_for_life("clock", || clock::follow(Path::new("/"))),
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the supervisor")?;
    runtime.block_on(async {
        let surroundings = Surroundings {
            cgroups: Cgroups::at(Path::new("/")),
            is_pid_1: true,
            show_output: handover.show_output,
            sysroot: PathBuf::from("/"),
            wake: handover.reporter.as_ref().and(handover.network.as_ref()).map(|n| n.interface.clone()),
            who: (handover.node.clone(), handover.network.as_ref().map(|n| n.mac)),
            reporter: handover.reporter.clone(),
            next: handover.next.clone(),
            arm: power::arm,
        };
        let mut supervisor = Supervisor::new(handover.services.clone(), surroundings);
        let (events, named) = (supervisor.events(), handover.modules.clone());
        let (all_up, services_up) = std::sync::mpsc::channel();
        let services_up = Mutex::new(services_up);
        // Services start meanwhile, except those that wait for it.
        spawn_for_life("modules", move || {
            let release = boot::kernel_release();
            handover::load_modules(&release, &named);
            let _ = events.send(Event::Modules);
            // Screens and keyboards must not hold up the services.
            sys::give_way();
            let _ = services_up.lock().map(|up| up.recv_timeout(SERVICES_FIRST));
            handover::serve_hardware(&release);
            wait_for_ever();
        });
        let events = supervisor.events();
        spawn_for_life("button", move || match button::wait(Path::new("/")) {
            Ok(()) => drop(events.send(Event::Button)),
            Err(why) => {
                JOURNAL.say("button", &format!("not listened to: {why:#}"));
                wait_for_ever();
            }
        });
        let (asking, requests) = mpsc::channel(16);
        let listener = control::listen(Path::new(paths::INIT_SOCKET))?;
        tokio::spawn(control::serve(listener, asking));
        if let Some(blocks) = handover.blocks.clone() {
            let reporter = handover.reporter.clone();
            spawn_for_life("root", move || tell_of_fault(&blocks.next_fault(), reporter.clone()));
        }
        let blocks = handover.blocks.clone();
        let shares = handover.blocks.clone();
        let (count, reporter) = (handover.services.len(), handover.reporter.clone());
        handover::report(reporter.clone());
        let up = move || {
            let _ = all_up.send(());
            if let Some(blocks) = &blocks {
                blocks.note_up();
            }
            note_up(count, &shares.map(|blocks| blocks.shares()).unwrap_or_default());
            handover::report(reporter);
            if let Some(blocks) = blocks {
                std::thread::spawn(move || settle(&blocks));
            }
        };
        supervisor.run(requests, up).await.context("listening for the end of processes")
    })
}

/// Sends the log to the server as it grows, for life. What a silent server misses is kept, the newest of it, and sent later.
fn ship_log(reporter: &handover::Reporter) {
    let mut pause = SHIPMENT;
    loop {
        JOURNAL.wait_for_lines();
        std::thread::sleep(pause);
        pause = if reporter.report() { SHIPMENT } else { (pause * 2).min(SILENCE) };
    }
}

/// A block of the running root is not what was signed, or can't be had: the programs that read it get an error.
fn tell_of_fault(why: &FetchError, reporter: Option<handover::Reporter>) {
    let halt = Halt::new(Stage::RootMounted, Code::of_fetch(why), format!("the running root: {why}"));
    JOURNAL.failed(halt.stage, &halt.failure(), None);
    handover::report(reporter);
}

/// When the machine is up: tells what it has read, if no order is recorded yet, and fetches what it did not need, if all is to be here.
fn settle(blocks: &Blocks) {
    let (needed, shares) = (blocks.fetched() >> 20, blocks.shares());
    if blocks.is_ordered() {
        std::thread::sleep(QUIET);
    } else {
        std::thread::sleep(RECORDING);
        tell_order(&blocks.order().to_string());
    }
    if !blocks.is_full() {
        JOURNAL.say("root", &format!("the boot needed {needed} MiB{shares}"));
        return;
    }
    if blocks.fetch_rest(Duration::from_millis(20)) {
        blocks.sync();
        let (all, shares) = (blocks.size() >> 20, blocks.shares());
        JOURNAL.say(
            "root",
            &format!(
                "the boot needed {needed} MiB, all {all} MiB are here now; the server may go away{shares}"
            ),
        );
    }
}

/// Says the order of the boot's reading on serial lines and in the log, where `labshift image run --record` reads it.
fn tell_order(order: &str) {
    let parts: Vec<&[u8]> = order.as_bytes().chunks(ORDER_LINE).collect();
    for (number, part) in (1..).zip(&parts) {
        let text = String::from_utf8_lossy(part);
        JOURNAL.output("boot-order", &format!("{number}/{} {text}", parts.len()), true);
    }
}

fn wait_for_ever() {
    loop {
        std::thread::park();
    }
}

/// Runs a task on a thread of its own, again and again: one that stumbles is picked up.
fn spawn_for_life(name: &'static str, task: impl Fn() + Send + 'static) {
    let forever = move || {
        loop {
            if catch_unwind(AssertUnwindSafe(&task)).is_err() {
                JOURNAL.say(name, "stumbled; begins anew");
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    };
    if let Err(why) = std::thread::Builder::new().name(name.to_owned()).spawn(forever) {
        JOURNAL.say(name, &format!("has no thread: {why}"));
    }
}

/// Renews the lease for life. A silent server changes nothing: the address stays, and is asked for again.
fn keep_lease(mut network: Network) {
    let mut since = Instant::now();
    loop {
        let renewal = match lease::due(network.lease_seconds, since.elapsed().as_secs()) {
            Due::In(seconds) => {
                std::thread::sleep(Duration::from_secs(seconds.max(1)));
                continue;
            }
            Due::Renew => lease::renew(&network, false),
            Due::Rebind | Due::Expired => lease::renew(&network, true),
        };
        match renewal {
            Ok(Renewal::Extended(lease)) => {
                match handover::readdress(&network, &lease) {
                    Ok(renewed) if renewed != network => {
                        network = renewed;
                        note_network(&network);
                    }
                    Ok(_) => {}
                    Err(why) => JOURNAL.say("lease", &format!("{why:#}")),
                }
                since = Instant::now();
            }
            Ok(Renewal::Refused) => {
                JOURNAL.say("lease", &format!("the server takes {} back", network.address));
                match handover::begin_anew(&network, ADDRESS_PATIENCE) {
                    Ok(anew) => network = anew,
                    Err(why) => JOURNAL.say("lease", &format!("{why:#}")),
                }
                note_network(&network);
                since = Instant::now();
            }
            Ok(Renewal::Silence) => pause_between_tries(&network),
            Err(why) => {
                JOURNAL.say("lease", &format!("{why:#}"));
                pause_between_tries(&network);
            }
        }
    }
}

/// A guest has no runtime and no context.
fn note_network(network: &Network) {
    let context = Path::new(paths::NODE_CONTEXT);
    if context.exists()
        && let Err(why) = handover::note_network(context, network)
    {
        JOURNAL.say("lease", &format!("{why:#}"));
    }
}

fn pause_between_tries(network: &Network) {
    std::thread::sleep(Duration::from_secs(u64::from(network.lease_seconds / 16).clamp(5, 600)));
}
