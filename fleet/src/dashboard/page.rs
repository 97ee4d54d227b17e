//! The page around the cards.

use labshift_model::api::{Event, EventKind, FleetStatus, NodeState};
use maud::{DOCTYPE, Markup, html};

use super::{
    cards,
    words::{self, Zone},
};

/// The whole page; its middle is renewed by the script.
pub(super) fn whole(site: &str, middle: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (site) " · labshift" }
                link rel="icon" type="image/svg+xml" href="/dashboard/icon.svg";
                link rel="stylesheet" href="/dashboard/style.css";
                script src="/dashboard/live.js" defer {}
            }
            body { main id="now" { (middle) } }
        }
    }
}

/// Everything that changes.
pub(super) fn middle(status: &FleetStatus, events: &[Event]) -> Markup {
    let zone = Zone::new(&status.timezone);
    html! {
        header {
            div .brand {
                img src="/dashboard/icon.svg" alt="" width="36" height="36";
                div {
                    h1 { (status.site) }
                    p .clock {
                        (zone.day_and_time(status.now))
                        @if status.manual_clock { " " span .pill.moving title="This clock is moved by hand" { "lab clock" } }
                    }
                }
            }
            ul .tally { @for (tone, word, count) in tally(status) { li { b class=(tone) { (count) } " " (word) } } }
        }
        @for trouble in &status.troubles { p .trouble role="alert" { (trouble) } }
        @if !status.strangers.is_empty() {
            section {
                div .heading {
                    h2 { "Machines that nobody knows" }
                    span .why { "labshift node adopt MAC NAME ROOM makes one known" }
                }
                div .cards { @for stranger in &status.strangers { (cards::stranger(stranger, &zone)) } }
            }
        }
        div .rooms {
            @for room in &status.rooms {
            section .wide[cards_of(status, &room.name) > 2] {
                div .heading {
                    h2 { (room.name) }
                    span class={ "pill " (words::mode_tone(room.current.mode)) } { (room.current.mode) }
                    span .why { (room.current.cause) }
                }
                @if let Some(next) = room.upcoming.first() {
                    ol .upcoming aria-label="Next changes" {
                        @for change in room.upcoming.iter().take(4) {
                            li title=(change.cause) {
                                b { (zone.when(change.from, status.now)) }
                                " " span class={ "pill " (words::mode_tone(change.mode)) } { (change.mode) }
                                @if change == next { " " span .faint { (words::until(change.from, status.now)) } }
                            }
                        }
                    }
                }
                div .cards {
                    @for node in status.nodes.iter().filter(|n| n.room == room.name) {
                        (cards::node(node, status, &zone))
                    }
                }
            }
        }
        }
        @if !status.guests.is_empty() {
            section {
                div .heading { h2 { "Batch guests" } }
                div .cards { @for guest in &status.guests { (cards::guest(guest, status, &zone)) } }
            }
        }
        section {
            div .heading { h2 { "What happened, and why" } }
            ol .events {
                @for event in events {
                    li class=(kind(event.kind)) {
                        time { (zone.clock(event.at)) }
                        span .what { (event.text) }
                        @if !event.cause.is_empty() { span .why { (event.cause) } }
                    }
                }
            }
        }
        footer {
            @for image in &status.images {
                span title=(image.trouble.as_deref().or(image.generation.as_deref()).unwrap_or_default()) {
                    (image.name) " "
                    @match &image.generation {
                        Some(generation) => code { (labshift_model::manifest::short(generation)) },
                        None => span .bad { "missing" },
                    }
                }
            }
            span id="live" .faint { "live" }
        }
    }
}

fn cards_of(status: &FleetStatus, room: &str) -> usize {
    status.nodes.iter().filter(|n| n.room == room).count()
}

fn tally(status: &FleetStatus) -> Vec<(&'static str, &'static str, usize)> {
    let count = |tone: &str| status.nodes.iter().filter(|n| words::tone(n.state) == tone).count();
    let mut tally = vec![
        ("desktop", "desktop", count("desktop")),
        ("compute", "compute", count("compute")),
        ("moving", "on the way", count("moving")),
        ("off", "off", count("off")),
    ];
    let bad = status.nodes.iter().filter(|n| matches!(n.state, NodeState::Lost | NodeState::Failed)).count();
    if bad > 0 {
        tally.push(("bad", "in trouble", bad));
    }
    tally
}

fn kind(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Node => "node",
        EventKind::Wanted | EventKind::Clock | EventKind::Site | EventKind::Admin => "wanted",
        EventKind::Wake | EventKind::Stage => "stage",
        EventKind::Mode => "mode",
        EventKind::Guest => "guest",
        EventKind::Trouble => "bad",
    }
}
