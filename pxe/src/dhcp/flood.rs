//! Keeps a flood of DHCP messages from using up the pool and the server: one card asks a few times a second at most, and
//! cards that nobody knows share one bucket. Machines of the site are served all the same.

use std::time::{Duration, Instant};

use labshift_model::MacAddr;

use crate::limit::{Limiter, Rate};

/// One card: firmware, loader and init of one boot send a dozen messages; far more is a program gone wild.
const CARD: Rate = Rate { burst: 200.0, each_second: 50.0 };
/// All unknown cards together: a hall of visitors' laptops, but not a program that invents a card for each message.
const STRANGERS: Rate = Rate { burst: 512.0, each_second: 32.0 };
/// How often a flood is worth a line in the log.
const WORD: Duration = Duration::from_secs(60);

/// Lets messages in, or not.
#[derive(Debug)]
pub(super) struct Gate {
    cards: Limiter<MacAddr>,
    strangers: Limiter<()>,
    dropped: u64,
    said: Option<Instant>,
}

impl Gate {
    pub fn new() -> Self {
        Gate {
            cards: Limiter::new(CARD, MacAddr([0; 6])),
            strangers: Limiter::new(STRANGERS, ()),
            dropped: 0,
            said: None,
        }
    }

    /// Whether a message is worth an answer. `known`: the card is in the directory, or has a lease.
    pub fn admits(&mut self, packet: &[u8], known: impl FnOnce(MacAddr) -> bool, now: Instant) -> bool {
        // What is too short for a card's address gets no answer anyway.
        let Some(card) = packet.get(28..34).and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) else {
            return true;
        };
        let card = MacAddr(card);
        let admitted =
            if known(card) { self.cards.allows(card, now) } else { self.strangers.allows((), now) };
        if !admitted {
            self.dropped += 1;
            if self.said.is_none_or(|at| now.duration_since(at) >= WORD) {
                let dropped = std::mem::take(&mut self.dropped);
                tracing::warn!(
                    "a flood of DHCP messages: {dropped} not answered so far, the last from {card}; machines of the \
                     site are served"
                );
                self.said = Some(now);
            }
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(n: u32) -> Vec<u8> {
        let mut packet = vec![0; 300];
        packet[28..34].copy_from_slice(&[&[2, 9][..], &n.to_be_bytes()].concat());
        packet
    }

    #[test]
    fn a_flood_of_invented_cards_is_cut_and_known_machines_are_served() {
        let (mut gate, start) = (Gate::new(), Instant::now());
        let admitted = (0..20_000).filter(|n| gate.admits(&packet(*n), |_| false, start)).count();
        assert_eq!(admitted, STRANGERS.burst as usize);
        let room = (0..400).filter(|n| gate.admits(&packet(*n), |_| true, start)).count();
        assert_eq!(room, 400);
        assert!(
            gate.admits(&packet(9), |_| false, start + Duration::from_secs(1)),
            "strangers may come back"
        );
    }

    #[test]
    fn one_machine_gone_wild_hurts_nobody_else() {
        let (mut gate, start) = (Gate::new(), Instant::now());
        let wild = (0..5000).filter(|_| gate.admits(&packet(1), |_| true, start)).count();
        assert_eq!(wild, CARD.burst as usize);
        assert!(gate.admits(&packet(2), |_| true, start));
        assert!(gate.admits(&[0; 20], |_| panic!("no card"), start));
    }
}
