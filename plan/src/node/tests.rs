//! Whole plans for every transition.

mod property;

use labshift_model::{
    MacAddr,
    guest::{GuestSpec, SavedState},
    manifest::FileEntry,
    node::ModeFrom,
};

use super::*;

const NOON: i64 = 1_795_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOON + seconds).expect("in range")
}

fn spec(name: &str, role: Role) -> GuestSpec {
    GuestSpec {
        name: name.into(),
        role,
        image: match role {
            Role::Desktop => "desk".into(),
            Role::Batch => "work".into(),
        },
        generation: match role {
            Role::Desktop => "d1".into(),
            Role::Batch => "w1".into(),
        },
        memory_mib: 512,
        vcpus: 1,
        disk_mib: 0,
        mac: MacAddr::for_guest(name),
        cid: 10,
        token: "t".into(),
        restore: None,
    }
}

fn saved(revision: u64) -> SavedState {
    SavedState {
        revision,
        memory: FileEntry { size: 1, sha256: "00".into() },
        disk: None,
        node: "ws-02".into(),
    }
}

fn desired(mode: Mode) -> NodeDesired {
    NodeDesired {
        revision: 1,
        now: at(0),
        current: ModeFrom { from: at(-60), mode, cause: "schedule".into() },
        upcoming: vec![],
        grace_seconds: 60,
        desktop: Some(spec("desk-1", Role::Desktop)),
        batch: vec![spec("batch-1", Role::Batch), spec("batch-2", Role::Batch)],
        rcuda: true,
    }
}

fn guest(role: Role, domain: Domain) -> GuestObserved {
    let generation = if role == Role::Desktop { "d1" } else { "w1" };
    GuestObserved {
        role,
        domain,
        generation: generation.into(),
        revision: 0,
        saved: None,
        silent_seconds: None,
        resets: 0,
    }
}

fn booted() -> NodeObserved {
    NodeObserved { server_reachable: true, ..Default::default() }
}

fn at_desktop() -> NodeObserved {
    NodeObserved {
        server_reachable: true,
        bridge: true,
        guests: [("desk-1".to_owned(), guest(Role::Desktop, Domain::Running))].into(),
        images: ["d1".to_owned(), "w1".to_owned()].into(),
        screen: Screen::Guest("desk-1".into()),
        idle_seconds: Some(5),
        ..Default::default()
    }
}

fn at_compute() -> NodeObserved {
    NodeObserved {
        server_reachable: true,
        bridge: true,
        guests: [
            ("batch-1".to_owned(), guest(Role::Batch, Domain::Running)),
            ("batch-2".to_owned(), guest(Role::Batch, Domain::Running)),
        ]
        .into(),
        images: ["d1".to_owned(), "w1".to_owned()].into(),
        rcuda: Rcuda::Serving,
        ..Default::default()
    }
}

fn fetch(image: &str, generation: &str) -> Step {
    Step::FetchImage { image: image.into(), generation: generation.into() }
}
fn start(guest: &str) -> Step {
    Step::StartGuest { guest: guest.into() }
}
fn restore(guest: &str, revision: u64) -> Step {
    Step::RestoreGuest { guest: guest.into(), revision }
}
fn save(guest: &str, revision: u64) -> Step {
    Step::SaveGuest { guest: guest.into(), revision }
}
fn upload(guest: &str, revision: u64) -> Step {
    Step::UploadSaved { guest: guest.into(), revision }
}
fn show(guest: &str) -> Step {
    Step::ShowGuest { guest: guest.into() }
}
fn forget(guest: &str) -> Step {
    Step::ForgetGuest { guest: guest.into() }
}
fn warn(guest: &str, seconds: u64) -> Step {
    Step::WarnPerson { guest: guest.into(), seconds }
}
fn wait_grace(guest: &str, seconds: u64) -> Step {
    Step::AwaitGrace { guest: guest.into(), seconds }
}
fn shut_down(guest: &str) -> Step {
    Step::ShutDownGuest { guest: guest.into(), grace: SHUTDOWN_GRACE_SECONDS }
}

fn steps(desired: &NodeDesired, observed: &NodeObserved) -> Vec<Step> {
    plan(desired, observed, at(0)).steps
}

/// A guest that hangs before its PID 1 says nothing on its console.
#[test]
fn a_silent_guest_is_reset_with_growing_patience() {
    let silent = |seconds, resets| {
        let mut observed = at_desktop();
        let desk = observed.guests.get_mut("desk-1").expect("there");
        (desk.silent_seconds, desk.resets) = (Some(seconds), resets);
        steps(&desired(Mode::Desktop), &observed)
    };
    let reset = [Step::ResetGuest { guest: "desk-1".into() }, show("desk-1")];
    for (resets, patience) in [(0, 60), (1, 120), (2, 240)] {
        assert_eq!(silent(patience - 1, resets), []);
        assert_eq!(silent(patience, resets), reset);
    }
    assert_eq!(silent(100_000, 3), [], "left for a person to look at");

    let mut observed = at_compute();
    observed.guests.get_mut("batch-2").expect("there").silent_seconds = Some(60);
    assert_eq!(steps(&desired(Mode::Compute), &observed), [Step::ResetGuest { guest: "batch-2".into() }]);
}

#[test]
fn from_boot_to_desktop() {
    let plan = plan(&desired(Mode::Desktop), &booted(), at(0));
    assert_eq!(plan.steps, [Step::EnsureBridge, fetch("desk", "d1"), start("desk-1"), show("desk-1")]);
    assert_eq!(plan.afterwards, [fetch("work", "w1")]);
    assert!(!plan.reached());
}

#[test]
fn from_boot_to_compute() {
    let mut desired = desired(Mode::Compute);
    desired.batch[1].restore = Some(saved(4));
    assert_eq!(
        steps(&desired, &booted()),
        [Step::EnsureBridge, fetch("work", "w1"), start("batch-1"), restore("batch-2", 4), Step::StartRcuda]
    );
}

#[test]
fn from_desktop_to_compute() {
    assert_eq!(
        steps(&desired(Mode::Compute), &at_desktop()),
        [
            warn("desk-1", 60),
            wait_grace("desk-1", 60),
            shut_down("desk-1"),
            Step::WithdrawWarning,
            Step::HideGuest,
            forget("desk-1"),
            start("batch-1"),
            start("batch-2"),
            Step::StartRcuda,
        ]
    );
}

#[test]
fn from_compute_to_desktop() {
    let mut observed = at_compute();
    observed.guests.get_mut("batch-2").expect("there").revision = 7;
    assert_eq!(
        steps(&desired(Mode::Desktop), &observed),
        [
            save("batch-1", 1),
            upload("batch-1", 1),
            save("batch-2", 8),
            upload("batch-2", 8),
            Step::StopRcuda,
            start("desk-1"),
            show("desk-1"),
        ]
    );
}

#[test]
fn to_maintenance_starts_nothing() {
    assert_eq!(
        steps(&desired(Mode::Maintenance), &at_desktop()),
        [
            warn("desk-1", 60),
            wait_grace("desk-1", 60),
            shut_down("desk-1"),
            Step::WithdrawWarning,
            Step::HideGuest,
            forget("desk-1")
        ]
    );
    assert_eq!(steps(&desired(Mode::Maintenance), &booted()), [Step::EnsureBridge]);
}

#[test]
fn to_off_from_compute_and_desktop() {
    assert_eq!(
        steps(&desired(Mode::Off), &at_compute()),
        [
            save("batch-1", 1),
            upload("batch-1", 1),
            save("batch-2", 1),
            upload("batch-2", 1),
            Step::StopRcuda,
            Step::PowerOff
        ]
    );
    let plan = plan(&desired(Mode::Off), &at_desktop(), at(0));
    assert_eq!(plan.steps.last(), Some(&Step::PowerOff));
    assert_eq!(plan.steps[0], warn("desk-1", 60));
    assert_eq!(plan.afterwards, []);
}

#[test]
fn a_reboot_leaves_in_order_and_then_reboots() {
    let observed = NodeObserved { reboot: true, ..at_compute() };
    assert_eq!(steps(&desired(Mode::Compute), &observed).last(), Some(&Step::Reboot));
    let observed = NodeObserved { kexec: true, ..observed };
    assert_eq!(steps(&desired(Mode::Compute), &observed).last(), Some(&Step::Kexec));
    let failed = [("power".to_owned(), Trouble { times: 1, seconds_ago: 60 })].into();
    let observed = NodeObserved { troubles: failed, ..observed };
    assert_eq!(steps(&desired(Mode::Compute), &observed).last(), Some(&Step::Reboot), "the firmware's way");
}

#[test]
fn a_mode_that_is_reached_has_an_empty_plan() {
    for (mode, observed) in [(Mode::Desktop, at_desktop()), (Mode::Compute, at_compute())] {
        let plan = plan(&desired(mode), &observed, at(0));
        assert!(plan.reached() && plan.next().is_none(), "{plan:?}");
    }
}

#[test]
fn restarts_half_way_go_on_from_what_is_there() {
    // The grace was half over when the daemon looked again.
    let warned = NodeObserved { warned_seconds_ago: Some(25), ..at_desktop() };
    assert_eq!(steps(&desired(Mode::Compute), &warned)[0], wait_grace("desk-1", 35));
    let over = NodeObserved { warned_seconds_ago: Some(90), ..at_desktop() };
    assert_eq!(steps(&desired(Mode::Compute), &over)[0], shut_down("desk-1"));

    // One guest was saved but not uploaded, the other was left paused by a save that broke off.
    let mut observed = at_compute();
    let one = observed.guests.get_mut("batch-1").expect("there");
    one.domain = Domain::Ended { orderly: true };
    one.saved = Some(SavedCopy { revision: 3, stored: false });
    observed.guests.get_mut("batch-2").expect("there").domain = Domain::Paused;
    assert_eq!(
        steps(&desired(Mode::Desktop), &observed)[..3],
        [upload("batch-1", 3), save("batch-2", 1), upload("batch-2", 1)]
    );
    // The same, but the node shall compute after all: the local copy comes back, the paused guest goes on.
    assert_eq!(
        steps(&desired(Mode::Compute), &observed),
        [restore("batch-1", 3), Step::ResumeGuest { guest: "batch-2".into() }]
    );

    // A desktop that was defined but never started, and one that runs unseen.
    let mut half = at_desktop();
    half.screen = Screen::Status;
    assert_eq!(steps(&desired(Mode::Desktop), &half), [show("desk-1")]);
    half.guests.get_mut("desk-1").expect("there").domain = Domain::None;
    assert_eq!(steps(&desired(Mode::Desktop), &half), [start("desk-1"), show("desk-1")]);
}

#[test]
fn a_session_that_stays_after_all_loses_its_warning() {
    let warned = NodeObserved { warned_seconds_ago: Some(25), ..at_desktop() };
    assert_eq!(steps(&desired(Mode::Desktop), &warned), [Step::WithdrawWarning]);
}

#[test]
fn guests_that_end() {
    let mut observed = at_compute();
    let one = observed.guests.get_mut("batch-1").expect("there");
    one.domain = Domain::Ended { orderly: true };
    assert_eq!(steps(&desired(Mode::Compute), &observed), [], "work that ended by itself is done");
    observed.guests.get_mut("batch-1").expect("there").domain = Domain::Ended { orderly: false };
    assert_eq!(steps(&desired(Mode::Compute), &observed), [start("batch-1")], "a crash is not an end");
    let mut desired = desired(Mode::Compute);
    desired.batch[0].restore = Some(saved(2));
    assert_eq!(
        steps(&desired, &observed),
        [restore("batch-1", 2)],
        "it comes back from its last saved state"
    );
}

#[test]
fn work_newer_than_the_servers_knowledge_is_not_lost() {
    let mut observed = at_compute();
    let one = observed.guests.get_mut("batch-1").expect("there");
    one.domain = Domain::None;
    one.saved = Some(SavedCopy { revision: 5, stored: true });
    let mut desired = desired(Mode::Compute);
    desired.batch[0].restore = Some(saved(4));
    assert_eq!(steps(&desired, &observed), [restore("batch-1", 5)]);
}

#[test]
fn alone_the_node_follows_its_schedule_but_spares_a_desktop_in_use() {
    let mut desired = desired(Mode::Desktop);
    desired.upcoming = vec![
        ModeFrom { from: at(100), mode: Mode::Compute, cause: "night".into() },
        ModeFrom { from: at(900), mode: Mode::Off, cause: "weekend".into() },
    ];
    let alone = |idle| NodeObserved { server_reachable: false, idle_seconds: idle, ..at_desktop() };
    let mode = |idle, seconds| mode_wanted(&desired, &alone(idle), at(seconds));
    assert_eq!(mode(None, 0), (Mode::Desktop, "schedule".into(), Some(100)));
    assert_eq!(mode(None, 100), (Mode::Compute, "night".into(), Some(800)));
    assert_eq!(mode(None, 901), (Mode::Off, "weekend".into(), None));
    assert_eq!(mode(Some(590), 200), (Mode::Desktop, "somebody uses the desktop".into(), Some(10)));
    assert_eq!(mode(Some(600), 200).0, Mode::Compute);
    // With the server there, its word counts.
    assert_eq!(mode_wanted(&desired, &at_desktop(), at(901)).0, Mode::Desktop);
}

#[test]
fn alone_the_desktop_comes_but_saved_work_stays_and_power_off_waits() {
    let mut desired = desired(Mode::Compute);
    desired.upcoming = vec![ModeFrom { from: at(0), mode: Mode::Desktop, cause: "lab".into() }];
    let alone = NodeObserved { server_reachable: false, ..at_compute() };
    assert_eq!(
        steps(&desired, &alone),
        [save("batch-1", 1), save("batch-2", 1), Step::StopRcuda, start("desk-1"), show("desk-1")]
    );
    desired.upcoming[0].mode = Mode::Off;
    let plan = plan(&desired, &alone, at(0));
    assert_eq!(plan.steps, [save("batch-1", 1), save("batch-2", 1), Step::StopRcuda]);
    assert!(plan.held_up && !plan.reached());
}

#[test]
fn a_failed_step_waits_and_the_others_go_on() {
    let mut observed = at_compute();
    observed.troubles.insert("batch-1".into(), Trouble { times: 2, seconds_ago: 3 });
    let plan = plan(&desired(Mode::Desktop), &observed, at(0));
    assert_eq!(
        plan.steps,
        [save("batch-2", 1), upload("batch-2", 1), Step::StopRcuda, start("desk-1"), show("desk-1")]
    );
    assert_eq!((plan.held_up, plan.look_again), (true, Some(7)));
    assert_eq!([1, 2, 3, 6, 99].map(retry_after), [5, 10, 20, 120, 120]);

    // An image that can't be had holds its guest, not the others; power stays on while work is unsaved.
    let mut observed = NodeObserved { images: Default::default(), ..booted() };
    observed.troubles.insert("d1".into(), Trouble { times: 1, seconds_ago: 0 });
    assert_eq!(steps(&desired(Mode::Desktop), &observed), [Step::EnsureBridge]);
    let mut observed = at_compute();
    observed.troubles.insert("batch-1".into(), Trouble { times: 1, seconds_ago: 0 });
    assert!(!steps(&desired(Mode::Off), &observed).contains(&Step::PowerOff));
}

#[test]
fn tidies_up_what_nobody_needs() {
    let mut observed = at_desktop();
    observed.images.insert("old".into());
    observed.images.remove("w1");
    observed.guests.insert("batch-9".into(), guest(Role::Batch, Domain::Ended { orderly: true }));
    let plan = plan(&desired(Mode::Desktop), &observed, at(0));
    assert!(plan.reached());
    assert_eq!(
        plan.afterwards,
        [forget("batch-9"), Step::DropImage { generation: "old".into() }, fetch("work", "w1")]
    );
}
