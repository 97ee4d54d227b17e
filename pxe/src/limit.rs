//! How often somebody may ask: a bucket of tokens for each, refilled by time.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Keys remembered. Beyond them the limit is for all others together.
const MOST: usize = 8192;

/// What a bucket holds and how fast it fills.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// Requests that may come at once.
    pub burst: f64,
    /// Requests a second after that.
    pub each_second: f64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// Buckets by key: an address, a network card.
#[derive(Debug)]
pub(crate) struct Limiter<K> {
    rate: Rate,
    crowd: K,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash + Copy> Limiter<K> {
    /// Full buckets for everybody. `crowd` stands for all others once too many are known.
    pub fn new(rate: Rate, crowd: K) -> Self {
        Limiter { rate, crowd, buckets: Mutex::default() }
    }

    /// Takes a token of this key, if it has one left.
    pub fn allows(&self, key: K, now: Instant) -> bool {
        let Rate { burst, each_second } = self.rate;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let full = Duration::from_secs_f64(burst / each_second);
        if buckets.len() >= MOST && !buckets.contains_key(&key) {
            buckets.retain(|_, b| now.duration_since(b.filled) < full);
        }
        let crowded = buckets.len() >= MOST && !buckets.contains_key(&key);
        let key = if crowded { self.crowd } else { key };
        let bucket = buckets.entry(key).or_insert(Bucket { tokens: burst, filled: now });
        let gained = now.duration_since(bucket.filled).as_secs_f64() * each_second;
        *bucket = Bucket { tokens: (bucket.tokens + gained).min(burst), filled: now };
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

    const RATE: Rate = Rate { burst: 40.0, each_second: 4.0 };

    #[test]
    fn a_burst_passes_a_flood_does_not_and_others_are_not_hurt() {
        let (limiter, start) = (Limiter::new(RATE, u32::MAX), Instant::now());
        let [loud, quiet] = [1, 2];
        let passed = (0..1000).filter(|_| limiter.allows(loud, start)).count();
        assert_eq!(passed, 40);
        assert!(limiter.allows(quiet, start));
        assert!(limiter.allows(loud, start + Duration::from_secs(1)));
    }

    #[test]
    fn memory_is_bounded() {
        let (limiter, start) = (Limiter::new(RATE, u32::MAX), Instant::now());
        for n in 0..20_000u32 {
            limiter.allows(n, start);
        }
        assert!(limiter.buckets.lock().expect("the buckets").len() <= MOST + 1);
    }
}
