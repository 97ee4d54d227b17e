//! What an admin told one machine to boot, whatever its room boots: from now on, or once.
//!
//! ```text
//! once:  told ──its firmware asks──> begun ──its init asks──> answered ──ready, or the firmware asks again──> over
//!                                      └── ten minutes without its init ──> over: the room's image again
//! ```
//!
//! A machine that boots its own disk is not ours: nobody wakes it, and nobody waits for it. Once means for ten minutes from its
//! first request: firmware asks several times, and an installer restarts.

use jiff::{SignedDuration, Timestamp};
use labshift_model::api::BootTarget;
use serde::{Deserialize, Serialize};

/// How long what holds once is told to firmware, from its first request on.
const ONCE: SignedDuration = SignedDuration::from_mins(10);

/// An admin's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What it boots.
    pub target: BootTarget,
    /// For one boot only.
    pub once: bool,
    /// First request of its firmware since, by the machine's own clock.
    pub begun_real: Option<Timestamp>,
    /// Its init was answered.
    pub answered: bool,
}

impl Told {
    /// Not begun.
    pub fn new(target: BootTarget, once: bool) -> Told {
        Told { target, once, begun_real: None, answered: false }
    }

    /// What firmware and loaders are told; `None` when it is over.
    pub fn for_firmware(&self, real: Timestamp) -> Option<&BootTarget> {
        let late = self.begun_real.is_some_and(|begun| real.duration_since(begun) > ONCE);
        (!self.once || (!self.answered && !late)).then_some(&self.target)
    }

    /// What the machine's own init is told: the image whose kernel runs already. An init that runs although the disk was meant
    /// for once gets the room's image.
    pub fn for_init(&self) -> Option<&BootTarget> {
        (!self.once || self.target != BootTarget::Disk).then_some(&self.target)
    }

    /// Firmware asks. False when this is over: the boot that begins is not the one that was meant.
    pub fn asked(&mut self, real: Timestamp) -> bool {
        self.begun_real.get_or_insert(real);
        self.for_firmware(real).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::UNIX_EPOCH;

    fn at(minutes: i64) -> Timestamp {
        START + SignedDuration::from_mins(minutes)
    }

    fn image() -> BootTarget {
        BootTarget::Image { name: "lab".into(), generation: Some("ab".repeat(32)) }
    }

    #[test]
    fn once_is_one_boot_also_when_it_fails() {
        let mut told = Told::new(image(), true);
        assert_eq!(told.for_firmware(at(500)), Some(&image()), "it waits for the machine");
        assert!(told.asked(at(500)) && told.asked(at(501)), "ROM and iPXE are one boot");
        told.answered = true;
        assert_eq!(told.for_init(), Some(&image()), "its init may ask again");
        assert_eq!(told.for_firmware(at(502)), None);
        assert!(!told.asked(at(502)), "the next boot");
    }

    #[test]
    fn a_kernel_that_never_comes_to_its_init_is_not_tried_for_ever() {
        let mut told = Told::new(image(), true);
        assert!(told.asked(at(0)) && told.asked(at(4)) && told.asked(at(10)));
        assert_eq!(told.for_firmware(at(11)), None);
        assert!(!told.asked(at(11)));
    }

    #[test]
    fn the_disk_once_is_for_firmware_only() {
        let mut told = Told::new(BootTarget::Disk, true);
        assert!(told.asked(at(0)) && told.asked(at(9)), "an installer restarts");
        assert_eq!(told.for_init(), None);
        assert!(!told.asked(at(60)));
    }

    #[test]
    fn for_good_is_for_good() {
        for target in [BootTarget::Disk, image()] {
            let mut told = Told::new(target.clone(), false);
            assert!(told.asked(at(0)));
            told.answered = true;
            assert!(told.asked(at(5000)));
            assert_eq!((told.for_firmware(at(5000)), told.for_init()), (Some(&target), Some(&target)));
        }
    }
}
