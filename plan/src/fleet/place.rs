//! Which compute node gets which batch guest.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use jiff::Timestamp;
use labshift_model::{
    api::NodeState,
    node::Mode,
    site::{Template, Workstation},
};

use super::{Draft, FleetStep, Node, want};

/// MiB of a node's memory that guests never get: its root lives there, and libvirt.
pub const RESERVED_MIB: u64 = 1024;

/// Which nodes there is work for.
#[derive(Default)]
pub(super) struct Demand {
    /// Nodes that own a guest, or for which one waits.
    busy: BTreeSet<String>,
}

impl Demand {
    pub(super) fn is_for(&self, node: &str) -> bool {
        self.busy.contains(node)
    }

    /// Since when a node has had nothing to do.
    pub(super) fn idle_since(&self, node: &Node) -> Timestamp {
        node.idle_since.unwrap_or(node.since)
    }
}

/// What is free on a node.
struct Free<'s> {
    machine: &'s Workstation,
    attempt: Option<u64>,
    memory_mib: u64,
    vcpus: u64,
    /// When its compute hours end.
    until: Timestamp,
}

/// Gives every guest that waits to the node that will be in compute mode longest. Nodes that are on their way up count
/// as places to come, so that no other node is woken for the same guest.
pub(super) fn place(draft: &mut Draft<'_>) -> Demand {
    let site = draft.inputs.site;
    let mut demand = Demand::default();
    let mut free: Vec<Free<'_>> = site.machines.iter().filter_map(|m| free(draft, m)).collect();
    for guest in draft.world.guests.values() {
        demand.busy.extend(guest.place.as_ref().map(|p| p.node.clone()));
    }
    for guest in &site.guests {
        let Some(record) = draft.world.guests.get(&guest.name) else { continue };
        if record.place.is_some() || record.finished.is_some() {
            continue;
        }
        let Some(template) = site.template(&guest.template) else { continue };
        let restore = record.saved.clone();
        let generation = match &restore {
            Some(_) => record.generation.clone(),
            None => draft.inputs.images.get(&template.image).cloned(),
        };
        let Some(generation) = generation else { continue };
        free.retain(|f| f.memory_mib > 0);
        let best = free
            .iter_mut()
            .filter(|f| {
                f.memory_mib >= u64::from(template.memory_mib) && f.vcpus >= u64::from(template.vcpus)
            })
            .max_by_key(|f| (f.attempt.is_some(), f.until, f.memory_mib, Reverse(&f.machine.name)));
        let Some(best) = best else { continue };
        best.memory_mib -= u64::from(template.memory_mib);
        best.vcpus -= u64::from(template.vcpus);
        demand.busy.insert(best.machine.name.clone());
        let Some(attempt) = best.attempt else { continue };
        let node = best.machine.name.clone();
        let cause = match &restore {
            Some(saved) => format!("{node} is in compute mode; goes on from saved state {}", saved.revision),
            None => format!("{node} is in compute mode and has room"),
        };
        draft.push(FleetStep::Place { guest: guest.name.clone(), node, attempt, generation, restore, cause });
    }
    demand
}

fn free<'s>(draft: &Draft<'s>, machine: &'s Workstation) -> Option<Free<'s>> {
    let inputs = draft.inputs;
    let node = draft.world.nodes.get(&machine.name)?;
    let wanted = want::wanted(inputs.site, machine, node, inputs.moment.now);
    if wanted.mode != Mode::Compute
        || matches!(node.state, NodeState::Failed | NodeState::Lost | NodeState::GoingOff)
    {
        return None;
    }
    let next = want::next_modes(inputs.site, machine, node, inputs.moment.now);
    let until = next.iter().find(|m| m.mode != Mode::Compute).map_or(Timestamp::MAX, |m| m.from);
    let mut used: BTreeMap<&str, &Template> = BTreeMap::new();
    for (name, guest) in &draft.world.guests {
        let here = guest.place.as_ref().is_some_and(|p| p.node == machine.name);
        let template = inputs.site.guest(name).and_then(|g| inputs.site.template(&g.template));
        if let Some(template) = template.filter(|_| here) {
            used.insert(name, template);
        }
    }
    let memory: u64 = used.values().map(|t| u64::from(t.memory_mib)).sum();
    let vcpus: u64 = used.values().map(|t| u64::from(t.vcpus)).sum();
    let (total_memory, total_vcpus) = match &node.facts {
        Some(facts) if !facts.kvm => return None,
        Some(facts) => (facts.memory_mib.saturating_sub(RESERVED_MIB), u64::from(facts.cpus)),
        // Never seen: it will do for any one guest, until it tells what it has.
        None => (u64::from(u32::MAX), u64::from(u32::MAX)),
    };
    Some(Free {
        machine,
        attempt: node.attempt.filter(|_| node.connected),
        memory_mib: total_memory.saturating_sub(memory),
        vcpus: total_vcpus.saturating_sub(vcpus),
        until,
    })
}
