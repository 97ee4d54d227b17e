//! How often one address may write to the journal: a bucket of tokens for each, refilled by time.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Requests that may come at once: a boot reports about a dozen stages.
const BURST: f64 = 40.0;
/// Requests a second after that.
const RATE: f64 = 4.0;
/// Addresses remembered. Beyond them the limit is for all others together.
const MOST: usize = 8192;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// Buckets by address.
#[derive(Debug, Default)]
pub(crate) struct Limiter(Mutex<HashMap<IpAddr, Bucket>>);

impl Limiter {
    /// Takes a token of this address, if it has one left.
    pub fn allows(&self, peer: IpAddr) -> bool {
        self.allows_at(peer, Instant::now())
    }

    fn allows_at(&self, peer: IpAddr, now: Instant) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = Duration::from_secs_f64(BURST / RATE);
        if buckets.len() >= MOST {
            buckets.retain(|_, b| now.duration_since(b.filled) < full);
        }
        let crowded = buckets.len() >= MOST && !buckets.contains_key(&peer);
        let key = if crowded { IpAddr::from([0, 0, 0, 0]) } else { peer };
        let bucket = buckets.entry(key).or_insert(Bucket { tokens: BURST, filled: now });
        let gained = now.duration_since(bucket.filled).as_secs_f64() * RATE;
        *bucket = Bucket { tokens: (bucket.tokens + gained).min(BURST), filled: now };
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_a_flood_does_not_and_others_are_not_hurt() {
        let (limiter, start) = (Limiter::default(), Instant::now());
        let [loud, quiet] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
        let passed = (0..1000).filter(|_| limiter.allows_at(loud, start)).count();
        assert_eq!(passed, 40);
        assert!(limiter.allows_at(quiet, start));
        assert!(limiter.allows_at(loud, start + Duration::from_secs(1)));
    }

    #[test]
    fn memory_is_bounded() {
        let (limiter, start) = (Limiter::default(), Instant::now());
        for n in 0..20_000u32 {
            limiter.allows_at(IpAddr::from(n.to_be_bytes()), start);
        }
        assert!(limiter.0.lock().expect("the buckets").len() <= MOST + 1);
    }
}
