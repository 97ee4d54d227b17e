//! Magic packets: to whom, how often, by which means, and when to give up.
//!
//! A node counts as awake only when it is heard (DHCP, then the check-in of its runtime). Until then the packet is sent
//! again with growing pauses, first by UDP broadcast, then as a bare Ethernet frame.

use jiff::{Timestamp, ToSpan};
use labshift_model::{
    api::{NodeState, WakeMeans},
    node::Mode,
};

use super::{Draft, FleetStep, Node, place::Demand, want};

/// Seconds after the first packet at which each goes out, with its means.
const PACKETS: [(i64, WakeMeans); 6] = [
    (0, WakeMeans::Udp),
    (10, WakeMeans::Udp),
    (30, WakeMeans::Udp),
    (60, WakeMeans::Ethernet),
    (100, WakeMeans::Ethernet),
    (160, WakeMeans::Ethernet),
];
/// Seconds after the first packet at which the node is given up.
const GIVE_UP_SECONDS: i64 = 300;
/// Seconds after a failure at which a node that is still wanted is tried again.
const TRY_AGAIN_SECONDS: i64 = 1800;
/// Seconds that a lost node gets to come back by itself.
const LOST_SECONDS: i64 = 120;

pub(super) fn wake(draft: &mut Draft<'_>, demand: &Demand) {
    let site = draft.inputs.site;
    let real = draft.inputs.moment.real;
    let flying = |n: &&Node| matches!(n.state, NodeState::Waking | NodeState::Booting);
    let mut in_flight = draft.world.nodes.values().filter(flying).count();
    let recent = |n: &&Node| n.wake.as_ref().is_some_and(|w| !passed(w.begun_real, 60, real));
    let mut in_minute = draft.world.nodes.values().filter(recent).count();

    for machine in &site.machines {
        let Some(node) = draft.world.nodes.get(&machine.name) else { continue };
        let wanted = want::wanted_for_work(draft.inputs, machine, node, demand);
        let send = |number: usize, cause: &str| FleetStep::Wake {
            node: machine.name.clone(),
            means: PACKETS[number - 1].1,
            number: number as u32,
            cause: cause.to_owned(),
        };
        let step = match node.state {
            NodeState::Waking if wanted.mode == Mode::Off => {
                let cause = format!("no longer wanted: {}", wanted.cause);
                Some(FleetStep::StopWaking { node: machine.name.clone(), cause })
            }
            NodeState::Waking => match &node.wake {
                None => Some(send(1, &wanted.cause)),
                Some(wake) if passed(wake.begun_real, GIVE_UP_SECONDS, real) => {
                    Some(FleetStep::MarkFailed { node: machine.name.clone(), cause: no_answer() })
                }
                Some(wake) => {
                    let due = PACKETS
                        .get(wake.sent as usize)
                        .is_some_and(|(at, _)| passed(wake.begun_real, *at, real));
                    due.then(|| send(wake.sent as usize + 1, &wake.cause))
                }
            },
            state => {
                let ready = match state {
                    NodeState::Off => true,
                    NodeState::Failed => passed(node.since_real, TRY_AGAIN_SECONDS, real),
                    NodeState::Lost => passed(node.since_real, LOST_SECONDS, real),
                    _ => false,
                };
                let room =
                    in_flight < site.power.in_flight as usize && in_minute < site.power.per_minute as usize;
                if ready && room && wanted.mode != Mode::Off {
                    in_flight += 1;
                    in_minute += 1;
                    Some(send(1, &wanted.cause))
                } else {
                    None
                }
            }
        };
        if let Some(step) = step {
            draft.push(step);
        }
    }
}

fn passed(since: Timestamp, seconds: i64, real: Timestamp) -> bool {
    since.checked_add(seconds.seconds()).is_ok_and(|due| due <= real)
}

fn no_answer() -> String {
    let of = |means| PACKETS.iter().filter(|(_, m)| *m == means).count();
    format!(
        "not heard {} min after the first of {} magic packets ({} by {}, {} as {}); check its power, its cable and \
         Wake-on-LAN in its firmware",
        GIVE_UP_SECONDS / 60,
        PACKETS.len(),
        of(WakeMeans::Udp),
        WakeMeans::Udp,
        of(WakeMeans::Ethernet),
        WakeMeans::Ethernet
    )
}
