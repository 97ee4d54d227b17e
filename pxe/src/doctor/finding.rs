//! What the doctor says: a finding, why he thinks so, and what to do.

use labshift_model::MacAddr;
use serde::Serialize;

/// A known trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Several DHCP servers offer addresses.
    TwoServers,
    /// Address and boot file come from two servers, and the firmware does not put them together.
    SplitOffers,
    /// Option 60 is `PXEClient`, option 43 does not say where the boot file is.
    Class60Without43,
    /// The server named for the boot file is none.
    WrongNextServer,
    /// The boot program is for another kind of machine.
    ArchitectureMismatch,
    /// iPXE is given the loader again.
    LoaderLoop,
    /// Replies for a relayed client do not reach it.
    RelayRepliesLost,
    /// Packets are larger than the path takes.
    Mtu,
    /// TFTP requests, or what answers them, do not get through.
    TftpBlocked,
    /// The file is not there.
    FileMissing,
    /// Nobody answers.
    NoAnswer,
    /// The DHCP server refuses.
    Refused,
}

/// Something that was seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evidence {
    /// Seconds since the first frame.
    pub seconds: f64,
    /// What it was.
    pub text: String,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What kind of trouble.
    pub pattern: Pattern,
    /// The machine that has it.
    pub client: MacAddr,
    /// What is wrong, in a sentence.
    pub problem: String,
    /// What shows it.
    pub evidence: Vec<Evidence>,
    /// What to change, ready to use.
    pub fix: String,
}
