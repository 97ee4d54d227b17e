//! One card per workstation, one per batch guest.

use labshift_model::{
    api::{Boot, FleetStatus, GuestPhase, GuestView, NodeState, NodeView, Stranger},
    guest::GuestState,
    manifest::short,
};
use maud::{Markup, html};

use super::words::{self, Zone};

/// Width of a boot's line, in units of its drawing.
const LINE: u64 = 1000;

pub(super) fn node(node: &NodeView, status: &FleetStatus, zone: &Zone) -> Markup {
    let tone = words::tone(node.state);
    html! {
        article class={ "card " (tone) } {
            div .top {
                span class={ "lamp " (tone) } {}
                h3 { (node.name) }
                span class={ "pill " (tone) } { (node.state) }
            }
            p .why { (node.cause) }
            @if node.wanted.mode.to_string() != node.state.to_string()
                && node.transition.as_ref().is_none_or(|t| t.to != node.wanted.mode) {
                p .wanted {
                    "wanted: " span class={ "pill " (words::mode_tone(node.wanted.mode)) } { (node.wanted.mode) }
                    @if !node.cause.contains(&node.wanted.cause) { " " span .faint { (node.wanted.cause) } }
                }
            }
            @if let Some(over) = &node.override_mode {
                p .wanted {
                    "an admin's word"
                    @if let Some(until) = over.until { ", until " (zone.when(until, status.now)) }
                }
            }
            @if let Some(t) = &node.transition {
                div .transition {
                    progress max=(t.total.max(1)) value=(t.done) {}
                    p {
                        @if let Some(from) = t.from { (from) " → " } (t.to) ": " b { (t.phase) }
                        " " span .faint { (t.done) "/" (t.total) ", " (words::milliseconds(t.elapsed_ms)) }
                    }
                }
            } @else if let Some(last) = node.completed.last().filter(|_| node.connected) {
                p .faint {
                    @if let Some(from) = last.from { (from) } @else { "boot" }
                    " → " (last.to) " took " b { (words::milliseconds(last.took_ms)) }
                }
            }
            @if let Some(trouble) = &node.trouble { p .trouble { (trouble) } }
            @if !node.guests.is_empty() {
                ul .guests {
                    @for guest in &node.guests {
                        li {
                            b { (guest.name) } " " (guest_state(&guest.state))
                            @if guest.visible { " · on the screen" }
                            @if let Some(address) = guest.address { " " span .faint { (address) } }
                        }
                    }
                }
            }
            @for device in node.rcuda.iter().flatten() {
                p .device {
                    "remote CUDA: " (device.name) " "
                    span .faint { (words::bytes(device.memory_free)) " free of " (words::bytes(device.memory_total)) }
                }
            }
            @if node.state == NodeState::Waking {
                @if let Some(wake) = node.wakes.last() {
                    p .faint { "magic packet " (wake.number) " by " (wake.means) }
                    @if let Some(failure) = &wake.failure { p .trouble { (failure) } }
                }
            }
            @if let Some(boot) = &node.boot { (boot_line(boot)) }
            dl .facts {
                dt { "address" } dd { (node.address) " " span .faint { (node.mac) } }
                @if let Some(facts) = &node.facts {
                    dt { "machine" } dd {
                        (facts.cpus) " CPUs, " (facts.memory_mib) " MiB"
                        @if !facts.kvm { " " span .bad { "no KVM" } }
                    }
                }
                dt { "image" } dd {
                    (node.image) " "
                    @if let Some(generation) = &node.generation { code { (short(generation)) } }
                }
                @if let Some(idle) = node.idle_seconds.filter(|_| node.state == NodeState::Desktop) {
                    dt { "keyboard" } dd { "idle " (idle / 60) " min" }
                }
            }
        }
    }
}

pub(super) fn stranger(stranger: &Stranger, zone: &Zone) -> Markup {
    let hardware = &stranger.hardware;
    html! {
        article .card.moving {
            div .top {
                span .lamp.moving {}
                h3 { (stranger.mac) }
                span .pill.moving { "waits" }
            }
            p .why { (hardware.summary()) }
            dl .facts {
                @if let Some(address) = stranger.address { dt { "address" } dd { (address) } }
                @if !hardware.serial.is_empty() { dt { "serial" } dd { (hardware.serial) } }
                dt { "firmware" } dd { @if hardware.uefi { "UEFI " } @else { "BIOS " } (hardware.firmware) }
                @for port in &hardware.ports {
                    dt { "port" } dd { (port.name) " " (port.mac) " " span .faint { (port.driver) " " (port.speed) } }
                }
                @for disk in &hardware.disks {
                    dt { "disk" } dd { (disk.name) " " (words::bytes(disk.bytes)) " " span .faint { (disk.model) } }
                }
                @for display in &hardware.displays { dt { "display" } dd { code { (display) } } }
                dt { "seen" } dd { (zone.clock(stranger.first_seen_real)) }
            }
        }
    }
}

/// A boot as a line of its stages, each as long as it took.
fn boot_line(boot: &Boot) -> Markup {
    let total = boot.stages.last().map_or(0, |s| s.ms).max(1);
    let mut before = 0;
    let bars: Vec<_> = boot
        .stages
        .iter()
        .map(|stage| {
            let took = stage.ms.saturating_sub(before);
            let bar = (before * LINE / total, (took * LINE / total).max(3), stage, took);
            before = stage.ms;
            bar
        })
        .collect();
    html! {
        details .boot {
            summary {
                svg viewBox={ "0 0 " (LINE) " 24" } preserveAspectRatio="none" role="img" aria-label="Boot timeline" {
                    @for (x, width, stage, took) in &bars {
                        rect x=(x) y="0" height="24" width=(width)
                            class={ "s" (stage.stage as usize) @if stage.failure.is_some() { " failed" } } {
                            title { (words::stage(stage.stage)) ": " (words::milliseconds(*took)) }
                        }
                    }
                }
                span {
                    "boot " @if boot.attempt > 0 { (boot.attempt) " " }
                    "· " (words::milliseconds(total))
                }
            }
            table {
                @for (_, _, stage, took) in &bars {
                    tr {
                        td { span class={ "key s" (stage.stage as usize) } {} (words::stage(stage.stage)) }
                        td .number { "+" (words::milliseconds(*took)) }
                        td .number { (words::milliseconds(stage.ms)) }
                        td .faint { (stage.detail) }
                    }
                }
            }
            @if let Some(f) = &boot.failure { p .trouble { b { (f.code) } " " (f.sentence) " " (f.hint) } }
        }
    }
}

fn guest_state(state: &GuestState) -> String {
    match state {
        GuestState::Fetching => "fetching".into(),
        GuestState::Starting => "starting".into(),
        GuestState::Running => "running".into(),
        GuestState::Stopping => "shutting down".into(),
        GuestState::Saving => "being saved".into(),
        GuestState::Saved { saved } => format!("saved (state {})", saved.revision),
        GuestState::Stopped => "stopped".into(),
        GuestState::Failed { reason } => format!("failed: {reason}"),
    }
}

pub(super) fn guest(guest: &GuestView, status: &FleetStatus, zone: &Zone) -> Markup {
    let tone = match guest.phase {
        GuestPhase::Running => "compute",
        GuestPhase::Placed | GuestPhase::Saving => "moving",
        GuestPhase::Saved | GuestPhase::Finished => "maintenance",
        GuestPhase::Waiting => "off",
        GuestPhase::Failed | GuestPhase::Unknown => "bad",
    };
    html! {
        article class={ "card " (tone) } {
            div .top {
                span class={ "lamp " (tone) } {}
                h3 { (guest.name) }
                span class={ "pill " (tone) } { (guest.phase) }
                @if let Some(node) = &guest.node { span .faint { "on " b { (node) } } }
            }
            p .why { (guest.cause) }
            @if let Some(report) = &guest.report {
                dl .counters {
                    @for (key, value) in report.body.as_object().into_iter().flatten().take(8) {
                        div { dt { (key) } dd { (counter(value)) } }
                    }
                    div { dt { "reports" } dd { (words::grouped(guest.reports)) } }
                }
                p .faint {
                    "last report " (zone.clock(report.at))
                    @if let Some(node) = &report.node { " from " (node) }
                }
            }
            @if let Some(saved) = &guest.saved {
                p .faint {
                    "saved state " (saved.revision) " from " (saved.node) ", "
                    (words::bytes(saved.memory.size + saved.disk.as_ref().map_or(0, |d| d.size)))
                    @if status.nodes.iter().any(|n| Some(&n.name) == guest.node.as_ref()) { " in the store" }
                }
            }
        }
    }
}

/// A figure of a report, short enough for a card.
fn counter(value: &serde_json::Value) -> String {
    let text = match value {
        serde_json::Value::Number(n) => n.as_u64().map_or_else(|| n.to_string(), words::grouped),
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) => {
            let names: Vec<_> = items.iter().filter_map(|i| i.get("name")?.as_str()).collect();
            if names.is_empty() { format!("{} items", items.len()) } else { names.join(", ") }
        }
        other => other.to_string(),
    };
    text.chars().take(60).collect()
}
