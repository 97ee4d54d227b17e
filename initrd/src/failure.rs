//! What can go wrong before the services run, as an admin sees it: a code to search for, a sentence, a hint.

use labshift_model::{
    MacAddr,
    boot::{Failure, Stage},
};

use crate::{journal::stage_name, page::Page, source::FetchError};

/// Kinds of boot failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A `labshift.` setting on the kernel command line can't be read.
    Cmdline,
    /// No port has a link.
    NoLink,
    /// No DHCP server answered.
    NoAddress,
    /// The server is not known or does not answer.
    NoServer,
    /// The server said no.
    Refused,
    /// The boot answer is not the server's own, or not to our question.
    Answer,
    /// The manifest was signed before the minimum.
    Version,
    /// The manifest's signature is over.
    Expired,
    /// The server wants another generation by now than the one whose kernel runs.
    Changed,
    /// Signature, generation or content of the manifest.
    Manifest,
    /// The root could not be fetched whole.
    RootFetch,
    /// A byte of the root is not what was signed.
    RootHash,
    /// Not enough memory.
    Memory,
    /// A kernel module did not load.
    Module,
    /// A device or file system could not be set up.
    Mount,
    /// The service list can't be started.
    Services,
    /// init itself is at fault.
    Internal,
}

impl Code {
    /// The constant on screen and wire.
    pub fn text(self) -> &'static str {
        match self {
            Code::Cmdline => "CMDLINE",
            Code::NoLink => "NO-LINK",
            Code::NoAddress => "NO-ADDRESS",
            Code::NoServer => "NO-SERVER",
            Code::Refused => "REFUSED",
            Code::Answer => "ANSWER",
            Code::Version => "VERSION",
            Code::Expired => "EXPIRED",
            Code::Changed => "CHANGED",
            Code::Manifest => "MANIFEST",
            Code::RootFetch => "ROOT-FETCH",
            Code::RootHash => "ROOT-HASH",
            Code::Memory => "MEMORY",
            Code::Module => "MODULE",
            Code::Mount => "MOUNT",
            Code::Services => "SERVICES",
            Code::Internal => "INTERNAL",
        }
    }

    /// The kind of a fetch's failure.
    pub fn of_fetch(why: &FetchError) -> Code {
        match why {
            FetchError::Mismatch(_) => Code::RootHash,
            FetchError::Write(_) => Code::Memory,
            FetchError::Status { .. } | FetchError::Broken { .. } => Code::RootFetch,
        }
    }

    /// What to do.
    fn hint(self) -> &'static str {
        match self {
            Code::Cmdline => "Correct the kernel arguments of the image's recipe or of the site.",
            Code::NoLink => {
                "Check the cable and the switch port; if the network card is unusual, add its module to the recipe."
            }
            Code::NoAddress => {
                "Check that the labshift server runs and that this network reaches its DHCP; a switch port with STP may need portfast."
            }
            Code::NoServer => {
                "Check that `labshift serve` runs at this address and that no firewall is in between."
            }
            Code::Refused => "Look the machine up in site.toml and with `labshift node explain`.",
            Code::Answer => {
                "Build the image again in the store that this server uses; if it was good before, look for another machine that answers in the server's place."
            }
            Code::Version => {
                "Build or publish the image again: that signs it anew. If nobody went back to an old image, someone plays one back."
            }
            Code::Expired => "Publish the image again (labshift image publish): that signs it anew.",
            Code::Changed => {
                "Nothing, if it goes away with the restart. Else kernel, initramfs and root that the server sends are not of one build."
            }
            Code::Manifest => {
                "Publish the image again with the key that the boot files trust; if the signature was good before, someone changed the image."
            }
            Code::RootFetch => "Check the network between this machine and the server, and the server's log.",
            Code::RootHash => {
                "The image in the store is damaged or was changed after it was built: build it again and let the channel point to that generation."
            }
            Code::Memory => "Use a machine with more memory, or a smaller image.",
            Code::Module => "Kernel and modules must come from one build: publish the image again.",
            Code::Mount => {
                "The kernel's own messages above say more; kernel and root must come from one build."
            }
            Code::Services => "Correct the services of the image's recipe.",
            Code::Internal => "This is a fault of labshift itself: please report it with the lines above.",
        }
    }
}

/// Why a boot attempt ended.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {sentence}", code.text())]
pub struct Halt {
    /// Kind.
    pub code: Code,
    /// The stage that could not be reached.
    pub stage: Stage,
    /// What is wrong, one sentence.
    pub sentence: String,
    /// Only another kernel helps.
    pub needs_reboot: bool,
}

impl Halt {
    /// A failure at `stage`.
    pub fn new(stage: Stage, code: Code, sentence: impl Into<String>) -> Self {
        Halt { code, stage, sentence: sentence.into(), needs_reboot: false }
    }

    /// The same, to which trying again under this kernel is no answer.
    pub fn that_needs_reboot(self) -> Self {
        Halt { needs_reboot: true, ..self }
    }

    /// The form for the wire.
    pub fn failure(&self) -> Failure {
        Failure {
            code: self.code.text().to_owned(),
            sentence: self.sentence.clone(),
            hint: self.code.hint().to_owned(),
        }
    }

    /// The page that a person reads. `node` is the host name once the server has told it.
    pub fn page(&self, node: Option<&str>, mac: Option<MacAddr>, next: &str) -> Page {
        Page {
            title: "BOOT FAILED",
            code: self.code.text().to_owned(),
            stage: stage_name(self.stage),
            sentence: self.sentence.clone(),
            hint: self.code.hint().to_owned(),
            node: node.unwrap_or("not known yet").to_owned(),
            mac: mac.map_or_else(|| "unknown".to_owned(), |m| m.to_string()),
            next: next.to_owned(),
        }
    }
}

/// Seconds to wait after failure number `failures` (1 is the first): 10, 20, 40 and so on, at most 300, or what the command
/// line says.
pub fn backoff_seconds(failures: u32, fixed: Option<u64>) -> u64 {
    fixed.unwrap_or_else(|| (10u64 << failures.saturating_sub(1).min(5)).min(300))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_five_minutes() {
        let waits: Vec<_> = (1..8).map(|n| backoff_seconds(n, None)).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff_seconds(u32::MAX, None), 300);
        assert_eq!(backoff_seconds(3, Some(1)), 1);
    }
}
