//! Every seed, and a fixed number of mutations of each: the same inputs in every run, on any toolchain.

use std::{fs, panic, path::Path};

use labshift_fuzz::{TARGETS, Target};

/// Mutated inputs for each target.
const ROUNDS: usize = 20_000;

/// Splitmix64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }
}

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..random.below(6) {
        let at = random.below(bytes.len());
        let Some(byte) = bytes.get_mut(at) else { continue };
        *byte = match random.below(4) {
            0 => 0,
            1 => 255,
            2 => *byte ^ (1 << random.below(8)),
            _ => random.below(256) as u8,
        };
    }
    match random.below(8) {
        0 => bytes.truncate(random.below(bytes.len() + 1)),
        1 => {
            let other = &seeds[random.below(seeds.len())];
            bytes.extend(&other[random.below(other.len())..]);
        }
        2 => {
            let (at, end) = (random.below(bytes.len()), random.below(bytes.len() + 1));
            bytes.drain(at.min(end)..end.max(at).min(bytes.len()));
        }
        _ => {}
    }
    bytes
}

#[test]
fn seeds_and_their_mutations_break_nothing() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, run) in TARGETS {
        let directory = corpus.join(name);
        let mut files: Vec<_> = fs::read_dir(&directory)
            .unwrap_or_else(|e| panic!("{}: {e}; each target has seeds", directory.display()))
            .map(|entry| entry.expect("an entry").path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{} is empty; each target has seeds", directory.display());
        let seeds: Vec<Vec<u8>> = files.iter().map(|f| fs::read(f).expect("a seed")).collect();
        for (file, seed) in files.iter().zip(&seeds) {
            tried(name, run, seed, &file.display().to_string());
        }
        let mut random = Random(1);
        for round in 0..ROUNDS {
            tried(name, run, &mutate(&mut random, &seeds), &format!("mutation {round}"));
        }
    }
}

fn tried(name: &str, run: &Target, bytes: &[u8], what: &str) {
    if panic::catch_unwind(|| run(bytes)).is_err() {
        let kept = std::env::temp_dir().join(format!("labshift-fuzz-{name}"));
        drop(fs::write(&kept, bytes));
        panic!("{name}: {what} broke it; the input is {}", kept.display());
    }
}
