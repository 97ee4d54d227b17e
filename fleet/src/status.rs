//! The fleet as people and programs see it.

use std::{sync::Arc, time::Duration};

use labshift_model::{
    api::{BootTarget, FleetStatus, GuestView, InUse, NodeView, RoomStatus},
    manifest::short,
    site::Site,
};
use labshift_plan::{
    fleet::{self, Moment},
    schedule,
};
use tokio::sync::watch;

use crate::{clock::Clock, engine::Engine};

/// Before the engine's first turn.
pub(crate) fn empty(site: &Site, clock: &Clock) -> FleetStatus {
    let Moment { now, real } = clock.moment();
    FleetStatus {
        site: site.name.clone(),
        timezone: zone_name(site),
        now,
        now_real: real,
        manual_clock: clock.is_manual(),
        version: 0,
        event: 0,
        rooms: vec![],
        nodes: vec![],
        guests: vec![],
        images: vec![],
        in_use: vec![],
        strangers: vec![],
        troubles: vec![],
    }
}

fn zone_name(site: &Site) -> String {
    site.timezone.iana_name().unwrap_or("UTC").to_owned()
}

pub(crate) fn build(engine: &Engine) -> FleetStatus {
    let site = &engine.site;
    let Moment { now, real } = engine.moment();
    let rooms = site.rooms.iter().map(|room| RoomStatus {
        name: room.name.clone(),
        schedule: room.schedule.clone(),
        current: schedule::mode_at(site, room, now),
        upcoming: schedule::upcoming(site, room, now, 7, 6),
    });
    let mut status = empty(site, &engine.shared().options.clock);
    status.event = engine.event;
    status.rooms = rooms.collect();
    status.nodes = site.machines.iter().filter_map(|m| node(engine, &m.name)).collect();
    status.guests = site.guests.iter().filter_map(|g| guest(engine, &g.name)).collect();
    status.images = engine.images.views(site);
    status.in_use = in_use(engine, &status.nodes);
    status.strangers = engine.strangers.values().cloned().collect();
    status.strangers.sort_by_key(|s| s.first_seen_real);
    let recent = |at: jiff::Timestamp| real.duration_since(at).unsigned_abs() < Duration::from_secs(3600);
    let rogues = engine.rogues.iter().filter(|(_, at)| recent(**at));
    status.troubles.extend(rogues.map(|(a, _)| format!("another DHCP server answers on this network: {a}")));
    status.troubles.extend(engine.unadopted.iter().cloned());
    status.troubles.extend(engine.images.troubles.values().cloned());
    let gone_back = site.machines.iter().filter_map(|m| {
        let told = engine.told.get(&m.name).and_then(|told| told.for_firmware(real));
        let (image, wanted) = engine.images.wanted(site.room(&m.room)?, told);
        let (good, why) = engine.trials.get(&m.name)?.instead_of(image, wanted?)?;
        let (wanted, good) = (short(wanted?), short(good));
        Some(format!("{} boots generation {good} of {image} instead of {wanted}: {why}", m.name))
    });
    status.troubles.extend(gone_back);
    status
}

/// Publishes a status if it says anything new; the passing of time is not new.
pub(crate) fn publish(to: &watch::Sender<Arc<FleetStatus>>, mut status: FleetStatus) {
    to.send_if_modified(|current| {
        status.version = current.version;
        let same =
            FleetStatus { now: current.now, now_real: current.now_real, ..status.clone() } == **current;
        status.version += u64::from(!same);
        *current = Arc::new(status);
        !same
    });
}

/// Generations that somebody needs: a reason each, the strongest where there are several.
fn in_use(engine: &Engine, nodes: &[NodeView]) -> Vec<InUse> {
    let mut found: Vec<InUse> = vec![];
    let mut add = |image: &str, generation: &str, why: String| {
        let known = found.iter().any(|u| u.image == image && u.generation == generation);
        if !known && !generation.is_empty() {
            found.push(InUse { image: image.to_owned(), generation: generation.to_owned(), why });
        }
    };
    for node in nodes {
        if let Some(boot) = &node.boot {
            add(&boot.image, &boot.generation, format!("node {} runs it", node.name));
        }
    }
    for room in &engine.site.rooms {
        if let Some(generation) = &room.generation {
            add(&room.image, generation, format!("room {} is pinned to it", room.name));
        }
    }
    for (node, told) in &engine.told {
        if let BootTarget::Image { name, generation: Some(generation) } = &told.target {
            add(name, generation, format!("node {node} was told to boot it"));
        }
    }
    for node in nodes {
        if let Some((image, good)) = engine.trials.get(&node.name).and_then(|t| t.good.as_ref()) {
            add(image, good, format!("node {} goes back to it if a newer one fails", node.name));
        }
        if let Some(generation) = &node.generation {
            add(&node.image, generation, format!("node {} boots it next", node.name));
        }
    }
    found
}

fn node(engine: &Engine, name: &str) -> Option<NodeView> {
    let site = &engine.site;
    let machine = site.machine(name)?;
    let room = site.room(&machine.room)?;
    let node = engine.world.nodes.get(name)?;
    let Moment { now, real } = engine.moment();
    let status = node.status.clone();
    let boot = engine.boots.get(name).map(|log| log.boot.clone());
    let runs =
        boot.as_ref().filter(|b| node.attempt.is_some_and(|a| a == b.attempt)).map(|b| b.generation.clone());
    let told = engine.told.get(name).and_then(|told| told.for_firmware(real));
    let (image, would_boot) = engine.images.wanted(room, told);
    let image = boot.as_ref().filter(|_| runs.is_some()).map_or(image, |boot| &boot.image).to_owned();
    let over = node.override_mode.as_ref().map(|(o, _)| o).filter(|o| o.until.is_none_or(|u| now < u));
    Some(NodeView {
        name: name.to_owned(),
        room: machine.room.clone(),
        mac: machine.mac,
        address: machine.address,
        state: node.state,
        since: node.since,
        cause: node.cause.clone(),
        connected: node.connected,
        last_seen_real: node.last_seen_real,
        wanted: match &node.desired {
            Some(told) if node.connected && node.sent => told.current.clone(),
            _ => fleet::wanted(site, machine, node, now),
        },
        override_mode: over.cloned(),
        mode: status.as_ref().and_then(|s| s.mode),
        transition: status.as_ref().and_then(|s| s.transition.clone()),
        completed: status.as_ref().map(|s| s.completed.clone()).unwrap_or_default(),
        guests: status.as_ref().map(|s| s.guests.clone()).unwrap_or_default(),
        rcuda: status.as_ref().and_then(|s| s.rcuda.clone()),
        idle_seconds: status.as_ref().and_then(|s| s.idle_seconds),
        trouble: status.and_then(|s| s.trouble),
        told: told.cloned(),
        adopted: engine.is_adopted(machine.mac),
        facts: node.facts.clone(),
        image,
        generation: runs.or(would_boot.cloned()),
        boot,
        wakes: engine.wakes.get(name).cloned().unwrap_or_default(),
    })
}

fn guest(engine: &Engine, name: &str) -> Option<GuestView> {
    let guest = engine.world.guests.get(name)?;
    let (phase, cause) = fleet::phase(name, guest, &engine.world.nodes);
    let (report, reports) = match engine.reports.get(name) {
        Some((report, count)) => (Some(report.clone()), *count),
        None => (None, 0),
    };
    Some(GuestView {
        name: name.to_owned(),
        template: engine.site.guest(name)?.template.clone(),
        phase,
        cause,
        node: guest.place.as_ref().map(|p| p.node.clone()),
        saved: guest.saved.clone(),
        report,
        reports,
    })
}
