//! Which generation a node boots when the one that it should boot does not come up: the last one that did.
//!
//! ```text
//! failed(wanted) x 3 ──> instead_of(wanted) = the last that was ready
//! the channel moves, or wanted becomes ready ──> back to what is wanted
//! ```

use serde::{Deserialize, Serialize};

/// Failures of one generation on one node before it gets another.
pub const FAILURES: u32 = 3;

/// Codes of failures that say something about an image. The others are the network's, the server's or the site file's: an older
/// image would fail, too.
const OF_IMAGE: [&str; 9] =
    ["MANIFEST", "VERSION", "EXPIRED", "ROOT-HASH", "MEMORY", "MODULE", "MOUNT", "SERVICES", "INTERNAL"];

/// Whether a failure counts against the image.
pub fn is_of_image(code: &str) -> bool {
    OF_IMAGE.contains(&code)
}

/// What one node has seen of its images.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Trials {
    /// Image and generation that were ready last.
    pub good: Option<(String, String)>,
    /// A generation that failed, how often in a row, and why the last time.
    pub bad: Option<(String, u32, String)>,
}

impl Trials {
    /// A boot of this generation failed. True when the node goes back from here on.
    pub fn failed(&mut self, generation: &str, why: &str) -> bool {
        let before = self.bad.take().filter(|(g, ..)| g == generation).map_or(0, |(_, count, _)| count);
        self.bad = Some((generation.to_owned(), before.saturating_add(1), why.to_owned()));
        before + 1 == FAILURES && self.good.as_ref().is_some_and(|(_, good)| good != generation)
    }

    /// This generation is ready. True when that is news.
    pub fn ready(&mut self, image: &str, generation: &str) -> bool {
        let before = self.clone();
        self.good = Some((image.to_owned(), generation.to_owned()));
        self.bad = self.bad.take().filter(|(g, ..)| g != generation);
        *self != before
    }

    /// The generation to boot instead, and why.
    pub fn instead_of(&self, image: &str, wanted: &str) -> Option<(&str, String)> {
        let (bad, count, why) = self.bad.as_ref()?;
        let (of, good) = self.good.as_ref()?;
        let goes_back = bad == wanted && *count >= FAILURES && of == image && good != wanted;
        goes_back.then(|| (good.as_str(), format!("it failed {count} times, the last time with {why}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_bring_the_last_good_one_back_until_something_new_comes() {
        let mut trials = Trials::default();
        assert!(trials.ready("lab", "old") && !trials.ready("lab", "old"));
        assert!(!trials.failed("new", "MODULE x") && !trials.failed("new", "MODULE x"));
        assert_eq!(trials.instead_of("lab", "new"), None);
        assert!(trials.failed("new", "MODULE y"));
        assert!(!trials.failed("new", "MODULE y"), "told once");
        let (instead, why) = trials.instead_of("lab", "new").unwrap();
        assert_eq!((instead, why.as_str()), ("old", "it failed 4 times, the last time with MODULE y"));
        // That the old one is ready does not bring the new one back.
        trials.ready("lab", "old");
        assert!(trials.instead_of("lab", "new").is_some());
        assert_eq!(trials.instead_of("lab", "newer"), None, "the channel moved");
        assert_eq!(trials.instead_of("other", "new"), None, "the room got another image");
        trials.ready("lab", "new");
        assert_eq!(trials.instead_of("lab", "new"), None);
    }

    #[test]
    fn a_single_success_counts_the_failures_anew_and_without_a_good_one_nothing_changes() {
        let mut trials = Trials::default();
        for _ in 0..10 {
            assert!(!trials.failed("new", "MOUNT"));
        }
        assert_eq!(trials.instead_of("lab", "new"), None);
        trials.ready("lab", "new");
        assert!(!trials.failed("new", "MOUNT"));
        assert_eq!(trials.bad, Some(("new".into(), 1, "MOUNT".into())));
        assert!(is_of_image("ROOT-HASH") && !is_of_image("NO-LINK") && !is_of_image("ROOT-FETCH"));
    }
}
