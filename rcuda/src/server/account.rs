//! What a client may use, what it uses, and the shared ledger where that is written down.

use super::ledger::{DEVICES, Ledger, Totals};
use crate::{
    device::{DeviceError, Outcome, Status},
    wire::message::Ordinal,
};

/// Bytes are counted in units of this, as a device hands them out.
const UNIT: u64 = 512;

/// One client's account.
#[derive(Debug)]
pub struct Account {
    limit: Option<u64>,
    ledger: Ledger,
    slot: usize,
    used: [u64; DEVICES],
}

fn rounded(bytes: u64) -> u64 {
    bytes.div_ceil(UNIT).saturating_mul(UNIT)
}

fn broken(error: std::io::Error) -> DeviceError {
    DeviceError::new(Status::Other(999), format!("the server's ledger can't be used: {error}"))
}

impl Account {
    /// An account without debts: `limit` bytes of each device, or all of it; `slot` of the ledger.
    pub fn new(limit: Option<u64>, ledger: Ledger, slot: usize) -> Self {
        Self { limit, ledger, slot, used: [0; DEVICES] }
    }

    /// What all clients use together.
    pub fn totals(&self) -> Outcome<Totals> {
        self.ledger.totals().map_err(broken)
    }

    /// Bytes of a device that this client may use in all.
    pub fn share(&self, device_total: u64) -> u64 {
        self.limit.map_or(device_total, |limit| limit.min(device_total))
    }

    /// Bytes of a device that this client uses.
    pub fn used(&self, device: Ordinal) -> u64 {
        self.used[device as usize % DEVICES]
    }

    fn set(&mut self, device: Ordinal, used: u64, device_total: u64) -> Outcome<bool> {
        let device = device as usize % DEVICES;
        let fits = self.ledger.set_used(self.slot, device, used, device_total).map_err(broken)?;
        if fits {
            self.used[device] = used;
        }
        Ok(fits)
    }

    /// Counts bytes that are about to be allocated, or refuses.
    pub fn charge(&mut self, device: Ordinal, bytes: u64, device_total: u64) -> Outcome<()> {
        let (before, share) = (self.used(device), self.share(device_total));
        let after = before.saturating_add(rounded(bytes));
        let message = if after > share {
            format!(
                "{bytes} bytes are more than the {} left of this client's {share}",
                share.saturating_sub(before)
            )
        } else if !self.set(device, after, device_total)? {
            format!("other clients use the device: {bytes} bytes are not free")
        } else {
            return Ok(());
        };
        Err(DeviceError::new(Status::OutOfMemory, message))
    }

    /// Takes bytes off that were charged in one piece and are free again.
    pub fn refund(&mut self, device: Ordinal, bytes: u64, device_total: u64) -> Outcome<()> {
        let after = self.used(device).saturating_sub(rounded(bytes));
        self.set(device, after, device_total).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_charged_is_refunded() -> std::io::Result<()> {
        let ledger = Ledger::create()?;
        let slot = ledger.enter(1)?.unwrap_or(0);
        let mut account = Account::new(Some(2048), ledger, slot);
        let refused = |outcome: Outcome<()>| outcome.err().map(|e| (e.status, e.message));
        assert_eq!(refused(account.charge(0, 513, 1 << 20)), None);
        assert_eq!(account.used(0), 1024);
        assert_eq!(
            refused(account.charge(0, 1025, 1 << 20)),
            Some((
                Status::OutOfMemory,
                "1025 bytes are more than the 1024 left of this client's 2048".into()
            ))
        );
        assert_eq!(refused(account.charge(0, 1024, 1 << 20)), None);
        assert!(refused(account.charge(0, u64::MAX, 1 << 20)).is_some());
        assert_eq!(refused(account.charge(1, 2048, 1 << 20)), None);
        assert_eq!(refused(account.refund(0, 513, 1 << 20)), None);
        assert_eq!((account.used(0), account.totals().map(|t| t.used[0])), (1024, Ok(1024)));
        Ok(())
    }
}
