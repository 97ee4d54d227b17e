//! What admins tell machines to boot.

use jiff::Timestamp;
use labshift_model::{
    api::{BootRequest, BootTarget, EventKind},
    boot::Stage,
};
use labshift_plan::told::Told;

use super::{Engine, Refusal, json, request::reason};
use crate::{
    registry::records::Write,
    store::{Besides, Images},
};

impl Engine {
    /// Takes an admin's word. An image's generation is whole and in the store.
    pub(super) fn tell(&mut self, node: &str, request: BootRequest) -> Result<String, Refusal> {
        let BootRequest { target, once, cause } = request;
        let cause = reason("an admin says so", &cause);
        let text = match (&target, once) {
            (BootTarget::Room, true) => {
                return Err(Refusal::Bad("its room's image is what it boots anyhow, not once".into()));
            }
            (target, true) => format!("{node} boots {target} once"),
            (target, false) => format!("{node} boots {target} from now on"),
        };
        match target {
            BootTarget::Room => drop(self.told.remove(node)),
            target => drop(self.told.insert(node.to_owned(), Told::new(target, once))),
        }
        self.write_told(node);
        self.read_store_now();
        self.note(EventKind::Admin, node, "", text.clone(), &cause);
        let runs = self.world.nodes.get(node).is_some_and(|n| n.connected);
        let hint = if runs { format!("; now: labshift node reboot {node}") } else { String::new() };
        Ok(text + &hint)
    }

    /// Firmware or a loader asks. False when the machine is not ours.
    pub(super) fn is_ours(&mut self, node: &str, real: Timestamp) -> bool {
        let Some(told) = self.told.get_mut(node) else { return true };
        let before = told.clone();
        if !told.asked(real) {
            self.told_is_over(node, "it was for one boot");
            return true;
        }
        let disk = told.target == BootTarget::Disk;
        if *told != before {
            self.write_told(node);
        }
        !disk
    }

    /// Its init was answered.
    pub(super) fn told_answered(&mut self, node: &str) {
        if let Some(told) = self.told.get_mut(node).filter(|told| told.once && !told.answered) {
            told.answered = true;
            self.write_told(node);
        }
    }

    /// A boot ended well at this stage.
    pub(super) fn told_reached(&mut self, node: &str, stage: Stage) {
        if stage == Stage::Ready && self.told.get(node).is_some_and(|told| told.once && told.answered) {
            self.told_is_over(node, "it was for one boot, which is ready");
        }
    }

    fn told_is_over(&mut self, node: &str, cause: &str) {
        if let Some(told) = self.told.remove(node) {
            self.write_told(node);
            let text = format!("{node} boots its room's image again, not {}", told.target);
            self.note(EventKind::Node, node, "", text, cause);
        }
    }

    /// Lets the planner know which machines are not ours now.
    pub(super) fn see_own_disks(&mut self) {
        let real = self.moment().real;
        for (name, node) in &mut self.world.nodes {
            let told = self.told.get(name).and_then(|told| told.for_firmware(real));
            node.own_disk = told == Some(&BootTarget::Disk);
        }
    }

    fn write_told(&mut self, node: &str) {
        let json = self.told.get(node).map(json);
        self.writes.push(Write::Record { kind: "told", name: node.to_owned(), json });
    }

    /// Images that are needed besides those of the site.
    pub(super) fn besides(&self) -> Besides {
        let target = |told: &Told| match &told.target {
            BootTarget::Image { name, generation } => Some((name.clone(), generation.clone())),
            BootTarget::Room | BootTarget::Disk => None,
        };
        Besides {
            told: self.told.values().filter_map(target).collect(),
            good: self.trials.values().filter_map(|t| t.good.clone()).collect(),
        }
    }

    /// Reads the store at once: what was just named is there at the next question.
    pub(super) fn read_store_now(&mut self) {
        let store = &self.shared.options.store;
        self.images = Images::read(store, &self.site, &self.besides(), &self.images).into();
    }
}
