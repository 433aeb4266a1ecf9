//! Every format of outside bytes against random changes of nearly sound texts, on a stable compiler:
//! `make fuzz FUZZER=stable`. libFuzzer, which looks where it goes, runs the same functions.
//!
//! Each target gets `SECONDS_EACH` seconds (1 unless set), those named in `LONGER` get `SECONDS_LONGER`
//! (60 unless set); two run at a time. Bytes that made one fail are printed as hex.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "fuzz/targets.rs"]
#[allow(unreachable_pub, reason = "the libFuzzer targets include the same file")]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use targets::TARGETS;

#[test]
fn no_parser_of_outside_bytes_panics() {
    let seconds = |name: &str, unless_set| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(unless_set)
    };
    let (each, longer) = (seconds("SECONDS_EACH", 1), seconds("SECONDS_LONGER", 60));
    let named = std::env::var("LONGER").unwrap_or_default();
    let named: Vec<_> = named.split_whitespace().collect();
    let known = |name: &str| TARGETS.iter().any(|(known, ..)| *known == name);
    assert!(named.iter().all(|name| known(name)), "LONGER={named:?} names no target");
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((name, run, seeds)) = TARGETS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let seconds = if named.contains(name) { longer } else { each };
            let tries = fuzz(name, *run, seeds, Duration::from_secs(seconds));
            println!("{name}: {tries} inputs in {seconds} s");
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(work);
        }
    });
}

const THREADS: usize = 2;

/// How many inputs were tried.
fn fuzz(name: &str, run: fn(&[u8]), seeds: &[&[u8]], limit: Duration) -> u64 {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut corpus: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.to_vec()).collect();
    let deadline = Instant::now() + limit;
    let mut tries = 0;
    while Instant::now() < deadline {
        let bytes = dice.change(&corpus);
        let result = catch_unwind(AssertUnwindSafe(|| run(&bytes)));
        let hex = || bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert!(result.is_ok(), "{name} panics at {}", hex());
        // A walk away from the seeds, of bounded length.
        if dice.below(8) == 0 {
            let kept = corpus.len();
            if kept < 256 {
                corpus.push(bytes)
            } else {
                corpus[seeds.len() + dice.below(kept - seeds.len())] = bytes
            }
        }
        tries += 1;
    }
    tries
}

/// xorshift64*: the same throws each run.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.throw() >> 33).unwrap() % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.throw().to_be_bytes()[0]
    }

    /// A member of the corpus with up to eight changes.
    fn change(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len() + 1);
            match self.below(7) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.byte()),
                2 if at < bytes.len() => bytes[at] = self.byte(),
                3 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                4 if at < bytes.len() => drop(bytes.remove(at)),
                5 => {
                    // A piece of another member.
                    let other = &corpus[self.below(corpus.len())];
                    let from = self.below(other.len() + 1);
                    let to = from + self.below(other.len() - from + 1);
                    bytes.splice(at..at, other[from..to].iter().copied());
                }
                _ => {
                    // A piece of itself again, or many of the same.
                    let piece = bytes[at..].iter().copied().take(16).collect::<Vec<_>>();
                    bytes.splice(at..at, piece);
                }
            }
        }
        bytes.truncate(1 << 16);
        bytes
    }
}
