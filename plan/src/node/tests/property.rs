//! A property: performing any plan on a simple model of a node reaches the desired state, and the next plan is empty.

use proptest::prelude::*;

use super::*;

/// What a step does on a node where everything works.
fn perform(observed: &mut NodeObserved, step: &Step, desired: &NodeDesired) {
    let spec_of =
        |name: &str| desired.desktop.iter().chain(&desired.batch).find(|s| s.name == name).expect("wanted");
    match step {
        Step::EnsureBridge => observed.bridge = true,
        Step::FetchImage { generation, .. } => {
            observed.images.insert(generation.clone());
        }
        Step::WarnPerson { .. } => observed.warned_seconds_ago = Some(0),
        Step::AwaitGrace { seconds, .. } => {
            let ago = observed.warned_seconds_ago.expect("nobody waits without a warning");
            observed.warned_seconds_ago = Some(ago + seconds);
        }
        Step::WithdrawWarning => observed.warned_seconds_ago = None,
        Step::ShutDownGuest { guest, .. } => {
            let g = observed.guests.get_mut(guest).expect("there");
            assert_eq!(g.role, Role::Desktop, "work is never ended");
            assert!(
                observed.warned_seconds_ago.is_some_and(|s| s >= u64::from(desired.grace_seconds))
                    || desired.grace_seconds == 0
            );
            g.domain = Domain::Ended { orderly: true };
            if observed.screen == Screen::Guest(guest.clone()) {
                observed.screen = Screen::Status;
            }
        }
        Step::HideGuest => observed.screen = Screen::Status,
        Step::SaveGuest { guest, revision } => {
            let g = observed.guests.get_mut(guest).expect("there");
            assert!(*revision > g.revision && g.saved.is_none_or(|s| *revision > s.revision));
            g.domain = Domain::Ended { orderly: true };
            g.saved = Some(SavedCopy { revision: *revision, stored: false });
        }
        Step::UploadSaved { guest, revision } => {
            let g = observed.guests.get_mut(guest).expect("there");
            assert_eq!(g.saved, Some(SavedCopy { revision: *revision, stored: false }));
            g.saved = Some(SavedCopy { revision: *revision, stored: true });
        }
        Step::StopRcuda => observed.rcuda = Rcuda::Stopped,
        Step::StartRcuda => observed.rcuda = Rcuda::Serving,
        Step::StartGuest { guest } | Step::RestoreGuest { guest, .. } => {
            let spec = spec_of(guest);
            assert!(observed.images.contains(&spec.generation), "no start without its image");
            assert!(observed.bridge, "no start without the network");
            let revision = if let Step::RestoreGuest { revision, .. } = step { *revision } else { 0 };
            let old = observed.guests.get(guest).and_then(|g| g.saved).map_or(0, |s| s.revision);
            assert!(revision >= old, "saved work is lost");
            observed.guests.insert(
                guest.clone(),
                GuestObserved {
                    role: spec.role,
                    domain: Domain::Running,
                    generation: spec.generation.clone(),
                    revision,
                    saved: None,
                    silent_seconds: None,
                    resets: 0,
                },
            );
        }
        Step::ResetGuest { guest } => {
            let guest = observed.guests.get_mut(guest).expect("there");
            assert!(guest.domain == Domain::Running && guest.silent_seconds.is_some(), "a guest that lives");
            guest.silent_seconds = None;
            guest.resets += 1;
            observed.screen = Screen::Status;
        }
        Step::ResumeGuest { guest } => {
            observed.guests.get_mut(guest).expect("there").domain = Domain::Running;
        }
        Step::ShowGuest { guest } => {
            assert_eq!(observed.guests[guest].domain, Domain::Running);
            observed.screen = Screen::Guest(guest.clone());
        }
        Step::ForgetGuest { guest } => {
            let g = observed.guests.remove(guest).expect("there");
            assert!(matches!(g.domain, Domain::None | Domain::Ended { .. }) && g.saved.is_none());
        }
        Step::DropImage { generation } => {
            assert!(observed.images.remove(generation));
        }
        Step::Reboot | Step::Kexec | Step::PowerOff => {
            let unsaved = observed.guests.values().any(|g| {
                matches!(g.domain, Domain::Running | Domain::Paused) || g.saved.is_some_and(|s| !s.stored)
            });
            assert!(!unsaved, "power goes while something lives only here");
        }
    }
}

fn domains() -> impl Strategy<Value = Domain> {
    prop_oneof![
        Just(Domain::None),
        Just(Domain::Running),
        Just(Domain::Paused),
        Just(Domain::Ended { orderly: true }),
        Just(Domain::Ended { orderly: false }),
    ]
}

fn guests() -> impl Strategy<Value = BTreeMap<String, GuestObserved>> {
    let names = prop::sample::subsequence(vec!["desk-1", "desk-0", "batch-1", "batch-2", "batch-9"], 0..=5);
    names.prop_flat_map(|names| {
        let each = names.into_iter().map(|name| {
            let silence = (prop::option::of(0u64..600), 0u32..5);
            (domains(), 0u64..3, prop::option::of((0u64..4, any::<bool>())), silence).prop_map(
                move |(domain, revision, copy, (silent_seconds, resets))| {
                    let role = if name.starts_with("desk") { Role::Desktop } else { Role::Batch };
                    let runs = matches!(domain, Domain::Running | Domain::Paused);
                    let saved = copy
                        .filter(|_| role == Role::Batch && !runs)
                        .map(|(over, stored)| SavedCopy { revision: revision + over + 1, stored });
                    let guest = guest(role, domain);
                    let silent_seconds = silent_seconds.filter(|_| domain == Domain::Running);
                    (name.to_owned(), GuestObserved { revision, saved, silent_seconds, resets, ..guest })
                },
            )
        });
        each.collect::<Vec<_>>().prop_map(|v| v.into_iter().collect())
    })
}

fn nodes() -> impl Strategy<Value = NodeObserved> {
    let images = prop::sample::subsequence(vec!["d1", "w1", "old"], 0..=3);
    let screen = prop_oneof![Just(Screen::Status), Just(Screen::Guest("desk-1".into()))];
    let rcuda = prop_oneof![Just(Rcuda::Stopped), Just(Rcuda::Silent), Just(Rcuda::Serving)];
    (
        any::<bool>(),
        guests(),
        images,
        screen,
        rcuda,
        prop::option::of(0u64..200),
        prop::option::of(0u64..2000),
    )
        .prop_map(|(bridge, guests, images, screen, rcuda, warned, idle)| NodeObserved {
            server_reachable: true,
            bridge,
            // A guest that is over has no picture.
            screen: match guests.get("desk-1").map(|g: &GuestObserved| g.domain) {
                Some(Domain::Running | Domain::Paused) => screen,
                _ => Screen::Status,
            },
            guests,
            images: images.into_iter().map(str::to_owned).collect(),
            rcuda,
            warned_seconds_ago: warned,
            idle_seconds: idle,
            ..Default::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_plan_reaches_the_desired_state(
        mut observed in nodes(),
        mode in prop_oneof![Just(Mode::Desktop), Just(Mode::Compute), Just(Mode::Maintenance), Just(Mode::Off)],
        grace in prop_oneof![Just(0u32), Just(60)],
        rcuda: bool,
        server_revision in prop::option::of(1u64..6),
    ) {
        let mut desired = desired(mode);
        desired.grace_seconds = grace;
        desired.rcuda = rcuda;
        desired.batch[0].restore = server_revision.map(saved);

        let first = plan(&desired, &observed, at(0));
        prop_assert!(!first.held_up);
        for step in &first.steps {
            perform(&mut observed, step, &desired);
        }
        let second = plan(&desired, &observed, at(0));
        let off = first.steps.last() == Some(&Step::PowerOff);
        prop_assert!(off == (mode == Mode::Off));
        prop_assert!(off || second.reached(), "{:?} then {:?}", first.steps, second.steps);

        // Step by step the same end is reached, tidying included; the number of steps is bounded.
        let mut left = 40;
        while let Some(step) = plan(&desired, &observed, at(0)).next().cloned() {
            if step == Step::PowerOff {
                break;
            }
            perform(&mut observed, &step, &desired);
            left -= 1;
            prop_assert!(left > 0, "the plan never ends: {step:?}");
        }
        for spec in desired.batch.iter().filter(|_| mode == Mode::Compute) {
            let g = &observed.guests[&spec.name];
            let done = Domain::Ended { orderly: true };
            prop_assert!(g.domain == Domain::Running || g.domain == done);
        }
        prop_assert_eq!(observed.rcuda == Rcuda::Serving, mode == Mode::Compute && rcuda);
        prop_assert_eq!(observed.screen != Screen::Status, mode == Mode::Desktop);
    }
}
