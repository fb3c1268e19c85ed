//! Damage, the same for the same seed everywhere: what the corpus becomes before it is tried.
//!
//! A part of the tests of requests (`tests/server/fuzz.rs`) and of those of parsers (`src/fuzz.rs`).

use std::fs;
use std::path::Path;

/// Xorshift: the same cases for the same seed.
pub struct Random(pub u64);

impl Random {
    pub const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// The files of a folder by name, without those that have an extension.
pub fn seeds(folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(folder);
    let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.is_file() && path.extension().is_none());
    paths.sort();
    paths
        .iter()
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap()))
        .collect()
}

pub fn rounds(always: u64, long: u64) -> u64 {
    if std::env::var_os("DHOW_LONG").is_some() { long } else { always }
}

const TOKENS: [&[u8]; 30] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"null",
    b"-1",
    b"1e400",
    b"99999999999999999999",
    b"\0",
    "\u{fffd}".as_bytes(),
    b"\\u0000",
    b"$patch",
    b"x-kubernetes-",
    b"self.",
    b"(",
    b"*",
    b"\n- ",
    b"&a",
    b"true",
    b"%00",
    b"..",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x80\x03\0\x01",
    b"\x7f",
    b"==",
    b"!",
];

/// Damages one place. A piece may come from `other`; `bits` says whether single bits may change.
pub fn damage(bytes: &mut Vec<u8>, other: &[u8], bits: bool, random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    match random.below(6) {
        0 if at < bytes.len() && bits => bytes[at] ^= 1 << random.below(8),
        1 => bytes.truncate(at),
        2 => {
            let end = (at + random.below(16)).min(bytes.len());
            bytes.drain(at..end);
        }
        3 => {
            let end = (at + random.below(32)).min(bytes.len());
            let piece: Vec<u8> = bytes[at..end].repeat(1 + random.below(40));
            bytes.splice(at..at, piece);
        }
        4 => {
            let from = random.below(other.len() + 1);
            let end = (from + random.below(64)).min(other.len());
            bytes.splice(at..at, other[from..end].iter().copied());
        }
        _ => {
            let token = TOKENS[random.below(TOKENS.len())].repeat(1 + random.below(3));
            bytes.splice(at..at, token);
        }
    }
}
