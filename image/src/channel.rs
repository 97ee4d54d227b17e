//! Channels: names that point to a generation, and can be pointed back.
//!
//! ```text
//! STORE/channels/NAME             the stable channel: what machines boot
//! STORE/channels/NAME@CHANNEL     any other (canary)
//! STORE/history/NAME@CHANNEL      generations that it pointed to, oldest first (JSON)
//! ```

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use labshift_model::fault::nearest;
use serde::{Deserialize, Serialize};

use crate::{
    error::{At, BuildError},
    scratch,
    store::{Store, names},
};

/// The channel that machines boot.
pub const STABLE: &str = "stable";

/// How many moves a channel remembers.
const REMEMBERED: usize = 100;

/// A move of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moved {
    /// To which generation.
    pub generation: String,
    /// When.
    pub at: Timestamp,
}

/// A name that a channel can have.
pub fn is_channel(text: &str) -> bool {
    // A generation's prefix must never be one.
    text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !text.bytes().all(|b| b.is_ascii_hexdigit())
}

impl Store {
    fn channel_file(&self, name: &str, channel: &str) -> PathBuf {
        let file = if channel == STABLE { name.to_owned() } else { format!("{name}@{channel}") };
        self.directory().join("channels").join(file)
    }

    fn history_file(&self, name: &str, channel: &str) -> PathBuf {
        self.directory().join("history").join(format!("{name}@{channel}"))
    }

    /// Points a channel of an image to a generation that is there.
    pub fn set_channel(
        &self,
        name: &str,
        channel: &str,
        generation: &str,
        now: Timestamp,
    ) -> Result<(), BuildError> {
        if !is_channel(channel) {
            let reason = "use letters, digits and \"-\", not only hexadecimal digits".to_owned();
            return Err(BuildError::Channel { channel: channel.to_owned(), name: name.to_owned(), reason });
        }
        if self.channel(name, channel).is_ok_and(|current| current == generation) {
            return Ok(());
        }
        let mut history = self.history(name, channel);
        history.push(Moved { generation: generation.to_owned(), at: now });
        history.drain(..history.len().saturating_sub(REMEMBERED));
        self.write_history(name, channel, &history)?;
        self.point(name, channel, generation)
    }

    fn point(&self, name: &str, channel: &str, generation: &str) -> Result<(), BuildError> {
        let path = self.channel_file(name, channel);
        scratch::write_whole(&path, format!("{generation}\n").as_bytes(), 0o644, false).at("writing", &path)
    }

    fn write_history(&self, name: &str, channel: &str, history: &[Moved]) -> Result<(), BuildError> {
        let path = self.history_file(name, channel);
        scratch::write_whole(&path, &serde_json::to_vec(history).unwrap_or_default(), 0o644, false)
            .at("writing", &path)
    }

    /// Where a channel pointed to, oldest first. What can't be read is as absent.
    pub fn history(&self, name: &str, channel: &str) -> Vec<Moved> {
        let bytes = std::fs::read(self.history_file(name, channel)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Points a channel back to where it was before its current generation; returns that.
    pub fn rollback(&self, name: &str, channel: &str) -> Result<String, BuildError> {
        let current = self.channel(name, channel)?;
        let mut history = self.history(name, channel);
        while history.pop().is_some_and(|moved| moved.generation != current) {}
        while let Some(last) = history.last() {
            if last.generation != current && self.is_there(name, &last.generation) {
                let target = last.generation.clone();
                self.point(name, channel, &target)?;
                self.write_history(name, channel, &history)?;
                return Ok(target);
            }
            history.pop();
        }
        let reason = "it has no earlier generation that is still in the store".to_owned();
        Err(BuildError::Channel { channel: channel.to_owned(), name: name.to_owned(), reason })
    }

    /// The generation that a channel of an image points to.
    pub fn channel(&self, name: &str, channel: &str) -> Result<String, BuildError> {
        match std::fs::read_to_string(self.channel_file(name, channel)) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(_) if self.images().iter().any(|n| n == name) => Err(BuildError::Channel {
                channel: channel.to_owned(),
                name: name.to_owned(),
                reason: format!(
                    "there is none; `labshift image publish {name}@GENERATION --channel {channel}` makes it"
                ),
            }),
            Err(_) => {
                let images = self.images();
                Err(BuildError::NoImage {
                    name: name.to_owned(),
                    store: self.directory().to_owned(),
                    near: nearest(name, images.iter().map(String::as_str)).map(str::to_owned),
                })
            }
        }
    }

    /// All channels of an image and where they point to.
    pub fn channels(&self, name: &str) -> BTreeMap<String, String> {
        let files = names(&self.directory().join("channels"));
        let channel_of = |file: &str| match file.split_once('@') {
            None if file == name => Some(STABLE.to_owned()),
            Some((image, channel)) if image == name => Some(channel.to_owned()),
            _ => None,
        };
        files
            .iter()
            .filter_map(|file| channel_of(file))
            .filter_map(|channel| Some((channel.clone(), self.channel(name, &channel).ok()?)))
            .collect()
    }

    /// What `NAME`, `NAME@CHANNEL` or `NAME@GENERATION` (a prefix is enough) means: image and full generation.
    pub fn find(&self, reference: &str) -> Result<(String, String), BuildError> {
        let (name, what) = reference.split_once('@').unwrap_or((reference, STABLE));
        let generation = match what {
            "" => self.channel(name, STABLE)?,
            channel if is_channel(channel) => self.channel(name, channel)?,
            prefix => self.complete(name, prefix)?,
        };
        Ok((name.to_owned(), generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_and_further_back() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let generations: Vec<String> = ["aa", "bb", "cc"].map(|g| g.repeat(32)).to_vec();
        for generation in &generations {
            let path = store.generation("lab", generation);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join(labshift_model::paths::MANIFEST), "{}").unwrap();
            store.set_channel("lab", STABLE, generation, Timestamp::UNIX_EPOCH).unwrap();
        }
        store.set_channel("lab", "canary", &generations[2], Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(store.find("lab@canary").unwrap().1, generations[2]);
        assert_eq!(store.find("lab@aaaa").unwrap().1, generations[0]);
        assert_eq!(store.rollback("lab", STABLE).unwrap(), generations[1]);
        assert_eq!(store.rollback("lab", STABLE).unwrap(), generations[0]);
        let error = store.rollback("lab", STABLE).unwrap_err().to_string();
        assert!(error.contains("no earlier generation"), "{error}");
        assert_eq!(store.find("lab").unwrap().1, generations[0]);
        // A generation that is gone is passed over.
        store.set_channel("lab", STABLE, &generations[1], Timestamp::UNIX_EPOCH).unwrap();
        store.set_channel("lab", STABLE, &generations[2], Timestamp::UNIX_EPOCH).unwrap();
        std::fs::remove_dir_all(store.generation("lab", &generations[1])).unwrap();
        assert_eq!(store.rollback("lab", STABLE).unwrap(), generations[0]);
        assert_eq!(store.channels("lab").len(), 2);
        assert!(store.set_channel("lab", "abc", &generations[0], Timestamp::UNIX_EPOCH).is_err());
        assert!(store.set_channel("lab", "../x", &generations[0], Timestamp::UNIX_EPOCH).is_err());
        assert!(store.find("lab@testing").unwrap_err().to_string().contains("there is none"));
    }
}
