//! The sender's side of one transfer (RFC 1350, RFC 7440), pure: which blocks go out after which ACK.
//!
//! ```text
//!            acked          sent
//!   ...#######|xxxxxxxxxxxxxx|..............   # acknowledged   x in flight   . not yet sent
//!
//!   ACK(sent)             next window
//!   ACK(inside)           a gap: go back to the block after it
//!   ACK(acked) again      window > 1: the first block of the window was lost: go back at once
//!                         window = 1: nothing, or every block would be sent twice for ever after (RFC 1123, 4.2.3.1)
//!   no ACK in time        go back
//! ```

use std::ops::RangeInclusive;

/// What to do after an ACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send these blocks, counted from 1 without wrapping.
    Send(RangeInclusive<u64>),
    /// Nothing: old, doubled, or nonsense.
    Wait,
    /// Every block is acknowledged.
    Done,
}

/// Progress of one transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    blocks: u64,
    width: u64,
    acked: u64,
    sent: u64,
    /// ACKs of `acked` that blocks already in flight may still cause; they say nothing new.
    echoes: u64,
}

impl Window {
    /// A file of `size` bytes in blocks of `block` bytes; the last block is short, or empty.
    pub fn new(size: u64, block: usize, width: usize) -> Self {
        let blocks = size / block.max(1) as u64 + 1;
        Window { blocks, width: width.max(1) as u64, acked: 0, sent: 0, echoes: 0 }
    }

    /// Blocks acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Whether every block has left at least once.
    pub fn all_sent(&self) -> bool {
        self.sent == self.blocks
    }

    /// Whether a block has left yet: before that, only the OACK has.
    pub fn is_open(&self) -> bool {
        self.sent > 0
    }

    /// The blocks to send first, or again after a time without ACK.
    pub fn again(&mut self) -> RangeInclusive<u64> {
        self.echoes = 0;
        self.forward()
    }

    fn forward(&mut self) -> RangeInclusive<u64> {
        self.sent = (self.acked + self.width).min(self.blocks);
        self.acked + 1..=self.sent
    }

    /// Takes an ACK; its number wraps at 65536.
    pub fn take(&mut self, number: u16) -> Step {
        let step = u64::from(number.wrapping_sub(self.acked as u16));
        if step > self.sent - self.acked {
            return Step::Wait;
        }
        if step == 0 {
            return if !self.is_open() {
                Step::Send(self.forward())
            } else if self.width == 1 {
                Step::Wait
            } else if self.echoes > 0 {
                self.echoes -= 1;
                Step::Wait
            } else {
                self.echoes = self.sent - self.acked;
                Step::Send(self.forward())
            };
        }
        self.acked += step;
        self.echoes = self.sent - self.acked;
        if self.acked == self.blocks { Step::Done } else { Step::Send(self.forward()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(size: u64, width: usize) -> Window {
        let mut window = Window::new(size, 10, width);
        assert!(matches!(window.take(0), Step::Send(_)), "the ACK of our OACK");
        window
    }

    #[test]
    fn case_20_a_gap_resends_from_the_last_ack() {
        let mut window = open(95, 4);
        assert_eq!(window.take(4), Step::Send(5..=8));
        assert_eq!(window.take(6), Step::Send(7..=10), "7 was lost");
        assert_eq!(window.take(9), Step::Send(10..=10), "10 was lost");
        assert_eq!(window.take(10), Step::Done);
    }

    #[test]
    fn case_20_the_first_block_of_a_window_lost_is_resent_once_for_all_its_echoes() {
        let mut window = open(1000, 4);
        assert_eq!(window.take(4), Step::Send(5..=8));
        assert_eq!(window.take(4), Step::Send(5..=8), "5 was lost; 6, 7 and 8 each cause an ACK of 4");
        assert_eq!(window.take(4), Step::Wait);
        assert_eq!(window.take(4), Step::Wait);
        assert_eq!(window.take(8), Step::Send(9..=12));
        assert_eq!(window.take(4), Step::Wait, "late");
        assert_eq!(window.again(), 9..=12);
    }

    #[test]
    fn case_20_no_sorcerers_apprentice() {
        let mut window = open(1000, 1);
        assert_eq!(window.take(1), Step::Send(2..=2));
        assert_eq!(window.take(1), Step::Wait);
        assert_eq!(window.take(0), Step::Wait);
        assert_eq!(window.take(7), Step::Wait, "never sent");
        assert_eq!(window.again(), 2..=2);
    }

    #[test]
    fn case_19_block_numbers_roll_over() {
        let size = 512 * 70_000;
        let mut window = Window::new(size, 512, 1);
        assert_eq!(window.again(), 1..=1);
        for block in 1..70_000u64 {
            assert_eq!(window.take(block as u16), Step::Send(block + 1..=block + 1));
        }
        assert_eq!(window.take(70_000u64 as u16), Step::Send(70_001..=70_001), "an empty last block");
        assert!(window.all_sent());
        assert_eq!(window.take(70_001u64 as u16), Step::Done);
    }

    /// A lossy line between this sender and a plain receiver: every transfer ends, and with bounded repetition.
    #[test]
    fn any_pattern_of_loss_ends() {
        let mut seed = 9u64;
        let mut lost = |percent: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % 100 < percent
        };
        for width in [1usize, 2, 4, 16, 64] {
            for percent in [0, 5, 30] {
                let blocks = 400u64;
                let mut window = Window::new(blocks * 10 - 1, 10, width);
                let (mut got, mut packets, mut line) = (0u64, 0u64, vec![]);
                line.extend(window.again());
                'transfer: for _ in 0..blocks * 100 {
                    let mut acks = vec![];
                    let (mut fresh, mut gap) = (0, false);
                    for block in line.drain(..) {
                        packets += 1;
                        if lost(percent) {
                            continue;
                        }
                        if block == got + 1 {
                            (got, fresh, gap) = (block, fresh + 1, false);
                            if fresh == width || got == blocks {
                                fresh = 0;
                                acks.push(got);
                            }
                        } else if !gap {
                            // A gap, or something it has: it says once how far it is.
                            (fresh, gap) = (0, true);
                            acks.push(got);
                        }
                    }
                    for ack in acks.into_iter().filter(|_| !lost(percent)) {
                        match window.take(ack as u16) {
                            Step::Send(range) => line.extend(range),
                            Step::Wait => {}
                            Step::Done => break 'transfer,
                        }
                    }
                    if line.is_empty() {
                        line.extend(window.again());
                    }
                }
                assert_eq!(got, blocks);
                assert!(packets < blocks * (2 + width as u64 * percent / 2), "{width} {percent}: {packets}");
            }
        }
    }
}
