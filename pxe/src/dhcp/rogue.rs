//! Other DHCP servers on our network: heard on the client port, or named in a REQUEST that is not for us. Each is reported
//! once in a while.

use std::{collections::HashMap, net::Ipv4Addr};

use jiff::{SignedDuration, Timestamp};

/// How often one foreign server is reported.
const ROGUE_EVERY: SignedDuration = SignedDuration::from_mins(10);
/// A liar can invent server addresses without end.
const MOST: usize = 64;

/// Which foreign servers were reported lately.
#[derive(Debug, Default)]
pub(super) struct Rogues(HashMap<Ipv4Addr, Timestamp>);

impl Rogues {
    /// Whether a report of this server is due; counts as reported from now on.
    pub fn is_news(&mut self, address: Ipv4Addr, now: Timestamp) -> bool {
        self.0.retain(|_, since| now.duration_since(*since) < ROGUE_EVERY);
        let news = self.0.len() < MOST && !self.0.contains_key(&address);
        if news {
            self.0.insert(address, now);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_16_each_server_is_reported_once_in_a_while() {
        let (mut rogues, now) = (Rogues::default(), Timestamp::UNIX_EPOCH);
        let [one, two] = [[10, 0, 0, 66], [10, 0, 0, 67]].map(Ipv4Addr::from);
        assert_eq!([one, one, two, one].map(|a| rogues.is_news(a, now)), [true, false, true, false]);
        assert!(rogues.is_news(one, now + ROGUE_EVERY));
        let reported = (0..1000u32).filter(|n| rogues.is_news((*n).into(), now + ROGUE_EVERY)).count();
        assert!(reported < MOST);
    }
}
