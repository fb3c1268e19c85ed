//! Bytes that nobody would send, for one parser at a time: `tests/corpus/parsers` holds a folder for each, with examples of
//! what it takes and what once brought it down. A thousand damaged ones are tried always, a hundred times as many with `DHOW_LONG=1`.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

#[path = "../tests/corpus/damage.rs"]
mod damage;

use damage::{Random, damage, rounds, seeds};

const ALWAYS: u64 = 1_000;
const LONG: u64 = 100_000;
const MOST_BYTES: usize = 16 << 10;

/// Tries everything that there is for a parser; whatever `check` panics over is shown first.
pub fn try_all(parser: &str, check: impl Fn(&[u8])) {
    let seeds = seeds(&format!("parsers/{parser}"));
    assert!(!seeds.is_empty(), "there are no examples of {parser}");
    let shown = |name: &str, bytes: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(bytes))) {
            eprintln!("{parser}, from {name}: {:?}", bytes.escape_ascii().to_string());
            resume_unwind(panic);
        }
    };
    for (name, bytes) in &seeds {
        shown(name, bytes);
    }
    let mut random = Random(Random::SEED);
    for _ in 0..rounds(ALWAYS, LONG) {
        let (name, mut bytes) = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(4) {
            let other = &seeds[random.below(seeds.len())].1;
            damage(&mut bytes, other, true, &mut random);
        }
        bytes.truncate(MOST_BYTES);
        shown(&name, &bytes);
    }
}
