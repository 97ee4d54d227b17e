//! Which generation a node boots when the one that it should boot does not come up: the last one that did.
//!
//! ```text
//! failures(wanted) = 3, or as much in silence ──> instead_of(wanted) = the last that was ready
//! the channel moves, or wanted becomes ready ──> back to what is wanted
//! ```
//!
//! A boot that says what failed, or whose kernel left its last words, is a *failure*. One that was told what to boot and then was never
//! heard of again is a *silence*: the kernel hung, or a hand was at the plug, and nobody can tell which. Hands pull a plug once or twice; a machine
//! that restarts by itself goes on until it is stopped. So three silences weigh as much as one failure: pulled plugs change nothing, and a
//! boot loop without a word still ends.

use serde::{Deserialize, Serialize};

/// Failures of one generation on one node before it gets another.
pub const FAILURES: u32 = 3;
/// Silences that weigh as much as one failure.
pub const SILENCES: u32 = 3;

/// Codes of failures that say something about an image. The others are the network's, the server's or the site file's: an older
/// image would fail, too.
const OF_IMAGE: [&str; 9] =
    ["MANIFEST", "VERSION", "EXPIRED", "ROOT-HASH", "MEMORY", "MODULE", "MOUNT", "SERVICES", "INTERNAL"];

/// Whether a failure counts against the image.
pub fn is_of_image(code: &str) -> bool {
    OF_IMAGE.contains(&code)
}

/// How a boot ended that was never ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End<'a> {
    /// It said why.
    Failed(&'a str),
    /// Nothing more was heard of it.
    Silent,
}

/// A generation that did not come up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bad {
    /// Full generation.
    pub generation: String,
    /// Boots in a row that said why they failed.
    pub failures: u32,
    /// Boots in a row that were never heard of again.
    pub silences: u32,
    /// Why, the last time that a reason was known.
    pub why: String,
    /// The last one was silent: its kernel's last words may still come.
    pub unexplained: bool,
}

impl Bad {
    fn is_enough(&self) -> bool {
        self.failures.saturating_mul(SILENCES).saturating_add(self.silences) >= FAILURES * SILENCES
    }

    /// For people.
    fn text(&self) -> String {
        let failed = format!("it failed {} times, the last time with {}", self.failures, self.why);
        let silent = format!("was never heard of again {} times", self.silences);
        match (self.failures, self.silences) {
            (_, 0) => failed,
            (0, _) => format!("it {silent}"),
            _ => format!("{failed}, and {silent}"),
        }
    }
}

/// What one node has seen of its images.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Trials {
    /// Image and generation that were ready last.
    pub good: Option<(String, String)>,
    /// A generation that did not come up.
    pub bad: Option<Bad>,
}

impl Trials {
    /// A boot of this generation ended before it was ready. Returns why, when the node goes back from here on.
    pub fn ended(&mut self, generation: &str, end: End<'_>) -> Option<String> {
        let fresh = || Bad {
            generation: generation.to_owned(),
            failures: 0,
            silences: 0,
            why: String::new(),
            unexplained: false,
        };
        let before = self.bad.take().filter(|bad| bad.generation == generation).unwrap_or_else(fresh);
        let was_enough = before.is_enough();
        let now = match end {
            End::Failed(why) => Bad {
                failures: before.failures.saturating_add(1),
                why: why.to_owned(),
                unexplained: false,
                ..before
            },
            End::Silent => Bad { silences: before.silences.saturating_add(1), unexplained: true, ..before },
        };
        self.tell(now, was_enough)
    }

    /// The kernel's last words were found: a silence that has no reason yet was a failure. Returns as [`Trials::ended`].
    pub fn explained(&mut self, why: &str) -> Option<String> {
        let before = self.bad.take_if(|bad| bad.unexplained)?;
        let was_enough = before.is_enough();
        let now = Bad {
            failures: before.failures.saturating_add(1),
            silences: before.silences.saturating_sub(1),
            why: why.to_owned(),
            unexplained: false,
            ..before
        };
        self.tell(now, was_enough)
    }

    fn tell(&mut self, now: Bad, was_enough: bool) -> Option<String> {
        let other = self.good.as_ref().is_some_and(|(_, good)| *good != now.generation);
        let news = (now.is_enough() && !was_enough && other).then(|| now.text());
        self.bad = Some(now);
        news
    }

    /// This generation is ready. True when that is news.
    pub fn ready(&mut self, image: &str, generation: &str) -> bool {
        let before = self.clone();
        self.good = Some((image.to_owned(), generation.to_owned()));
        self.bad = self.bad.take().filter(|bad| bad.generation != generation);
        *self != before
    }

    /// The generation to boot instead, and why.
    pub fn instead_of(&self, image: &str, wanted: &str) -> Option<(&str, String)> {
        let (bad, (of, good)) = (self.bad.as_ref()?, self.good.as_ref()?);
        let goes_back = bad.generation == wanted && bad.is_enough() && of == image && good != wanted;
        goes_back.then(|| (good.as_str(), bad.text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Trials {
        Trials { good: Some(("lab".into(), "old".into())), bad: None }
    }

    #[test]
    fn three_failures_bring_the_last_good_one_back_until_something_new_comes() {
        let mut trials = Trials::default();
        assert!(trials.ready("lab", "old") && !trials.ready("lab", "old"));
        for _ in 0..2 {
            assert_eq!(trials.ended("new", End::Failed("MODULE x")), None);
        }
        assert_eq!(trials.instead_of("lab", "new"), None);
        let why = trials.ended("new", End::Failed("MODULE y"));
        assert_eq!(why.as_deref(), Some("it failed 3 times, the last time with MODULE y"));
        assert_eq!(trials.ended("new", End::Failed("MODULE y")), None, "told once");
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
            assert_eq!(trials.ended("new", End::Failed("MOUNT")), None);
        }
        assert_eq!(trials.instead_of("lab", "new"), None);
        trials.ready("lab", "new");
        trials.ended("new", End::Failed("MOUNT"));
        assert_eq!(trials.bad.as_ref().map(|bad| (bad.failures, bad.silences)), Some((1, 0)));
        assert!(is_of_image("ROOT-HASH") && !is_of_image("NO-LINK") && !is_of_image("ROOT-FETCH"));
    }

    #[test]
    fn pulled_plugs_change_nothing_and_an_endless_silent_loop_ends() {
        let mut trials = good();
        for _ in 0..FAILURES * SILENCES - 1 {
            assert_eq!(trials.ended("new", End::Silent), None);
            assert_eq!(trials.instead_of("lab", "new"), None);
        }
        // A boot that gets through shows that the generation is well: the count begins anew.
        let mut well = trials.clone();
        well.ready("lab", "new");
        assert_eq!((well.ended("new", End::Silent), well.instead_of("lab", "new")), (None, None));
        let why = trials.ended("new", End::Silent);
        assert_eq!(why.as_deref(), Some("it was never heard of again 9 times"));
        assert_eq!(trials.instead_of("lab", "new").map(|(good, _)| good), Some("old"));
    }

    #[test]
    fn a_kernels_last_words_make_a_failure_of_a_silence() {
        let mut trials = good();
        assert_eq!(trials.explained("Kernel panic"), None, "there was no silence");
        assert_eq!(trials.bad, None);
        for _ in 0..2 {
            trials.ended("new", End::Silent);
            assert_eq!(trials.explained("Kernel panic"), None);
            assert_eq!(trials.explained("Kernel panic"), None, "each silence has one reason");
        }
        trials.ended("new", End::Silent);
        let why = trials.explained("Kernel panic");
        assert_eq!(why.as_deref(), Some("it failed 3 times, the last time with Kernel panic"));
        // Two that said why, and three pulled plugs.
        let mut mixed = good();
        for end in [End::Failed("MOUNT"), End::Silent, End::Failed("MOUNT"), End::Silent] {
            assert_eq!(mixed.ended("new", end), None);
        }
        let why = mixed.ended("new", End::Silent);
        assert_eq!(
            why.as_deref(),
            Some("it failed 2 times, the last time with MOUNT, and was never heard of again 3 times")
        );
    }
}
