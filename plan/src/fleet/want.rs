//! What is wanted of each node: its schedule, an admin's word, and work that needs a place.

use jiff::{Timestamp, ToSpan};
use labshift_model::{
    MacAddr,
    api::NodeState,
    guest::{GuestSpec, Role, SavedState},
    node::{Mode, ModeFrom, NodeDesired},
    site::{Room, Site, Template, Workstation, context_id},
};

use super::{Draft, FleetStep, Inputs, Node, place::Demand};
use crate::schedule;

/// How many coming changes a node is told, so that it can follow its schedule alone.
const UPCOMING: usize = 6;

/// What is wanted of a node now, whether or not there is work for it.
pub fn wanted(site: &Site, machine: &Workstation, node: &Node, now: Timestamp) -> ModeFrom {
    if node.own_disk && !node.connected {
        let cause = "it boots its own disk, as an admin said".to_owned();
        return ModeFrom { from: node.since, mode: Mode::Off, cause };
    }
    if let Some((over, since)) = &node.override_mode
        && over.until.is_none_or(|until| now < until)
    {
        return ModeFrom { from: *since, mode: over.mode, cause: over.cause.clone() };
    }
    let Some(room) = site.room(&machine.room) else {
        return ModeFrom { from: now, mode: Mode::Off, cause: format!("there is no room {}", machine.room) };
    };
    let scheduled = schedule::mode_at(site, room, now);
    match &node.hold {
        Some(hold) if scheduled.mode == Mode::Off && now < hold.until => ModeFrom {
            from: hold.from.max(scheduled.from),
            mode: Mode::Maintenance,
            cause: hold.cause.clone(),
        },
        _ => scheduled,
    }
}

/// What will be wanted of a node after now.
pub fn next_modes(site: &Site, machine: &Workstation, node: &Node, now: Timestamp) -> Vec<ModeFrom> {
    let Some(room) = site.room(&machine.room) else { return vec![] };
    match &node.override_mode {
        Some((over, _)) if over.until.is_none() => vec![],
        Some((over, _)) if over.until.is_some_and(|u| now < u) => {
            let until = over.until.unwrap_or(now);
            let mut next = vec![ModeFrom { from: until, ..schedule::mode_at(site, room, until) }];
            next.extend(schedule::upcoming(site, room, until, 14, UPCOMING - 1));
            next
        }
        _ => schedule::upcoming(site, room, now, 14, UPCOMING),
    }
}

/// As [`wanted`], and off where compute hours alone are no reason to run.
pub(super) fn wanted_for_work(
    inputs: &Inputs<'_>,
    machine: &Workstation,
    node: &Node,
    demand: &Demand,
) -> ModeFrom {
    let wanted = wanted(inputs.site, machine, node, inputs.moment.now);
    let power = &inputs.site.power;
    let overridden = node.override_mode.as_ref().is_some_and(|(o, _)| o.mode == wanted.mode);
    if !power.on_demand || wanted.mode != Mode::Compute || overridden || demand.is_for(&machine.name) {
        return wanted;
    }
    let idle_since = demand.idle_since(node).max(wanted.from);
    let over = idle_since.checked_add(i64::from(power.idle_off_seconds).seconds()).unwrap_or(idle_since);
    if node.connected && inputs.moment.now < over {
        return wanted;
    }
    let cause = format!("no batch guest needs it ({})", wanted.cause);
    ModeFrom { from: if node.connected { over } else { wanted.from }, mode: Mode::Off, cause }
}

/// Tells every connected node what is wanted, if that is new to it.
pub(super) fn desire(draft: &mut Draft<'_>, demand: &Demand) {
    for machine in &draft.inputs.site.machines {
        let Some(node) = draft.world.nodes.get(&machine.name).filter(|n| n.connected) else { continue };
        let Some(room) = draft.inputs.site.room(&machine.room) else { continue };
        let fresh = desired(draft, machine, node, room, demand);
        let told = node.desired.as_ref().filter(|_| node.sent);
        let same =
            told.is_some_and(|t| NodeDesired { revision: t.revision, now: t.now, ..fresh.clone() } == *t);
        if !same && node.state != NodeState::Off {
            let desired = Box::new(fresh);
            draft.push(FleetStep::Desire { node: machine.name.clone(), desired });
        }
    }
}

fn desired(
    draft: &Draft<'_>,
    machine: &Workstation,
    node: &Node,
    room: &Room,
    demand: &Demand,
) -> NodeDesired {
    let Inputs { site, images, moment, .. } = *draft.inputs;
    let desktop = site.template(&room.desktop).and_then(|template| {
        let generation = images.get(&template.image)?;
        Some(spec(draft.inputs, &machine.desktop_guest(), Role::Desktop, template, generation, None))
    });
    let batch = draft.world.guests.iter().filter_map(|(name, guest)| {
        let place = guest.place.as_ref().filter(|p| p.node == machine.name && !p.revoked)?;
        let template = site.template(&site.guest(name)?.template)?;
        let generation = guest.generation.as_ref()?;
        Some(spec(draft.inputs, name, Role::Batch, template, generation, place.restore.clone()))
    });
    NodeDesired {
        revision: node.revision + 1,
        now: moment.now,
        current: wanted_for_work(draft.inputs, machine, node, demand),
        upcoming: next_modes(site, machine, node, moment.now),
        grace_seconds: room.grace_seconds,
        desktop,
        batch: batch.collect(),
        rcuda: room.rcuda,
    }
}

fn spec(
    inputs: &Inputs<'_>,
    name: &str,
    role: Role,
    template: &Template,
    generation: &str,
    restore: Option<SavedState>,
) -> GuestSpec {
    GuestSpec {
        name: name.to_owned(),
        role,
        image: template.image.clone(),
        generation: generation.to_owned(),
        memory_mib: template.memory_mib,
        vcpus: template.vcpus,
        disk_mib: template.disk_mib,
        mac: MacAddr::for_guest(name),
        cid: context_id(name),
        token: (inputs.token)(name),
        restore,
    }
}
