//! What is printed: data to stdout, words to stderr.
//!
//! A reader that goes away (`dhow list | head -1`) is no error.

use std::io::Write as _;

use jiff::Timestamp;
use serde_json::Value;

#[derive(Clone, Copy)]
pub struct Output;

impl Output {
    /// One line, or several, of data.
    pub fn data(&self, text: &str) {
        self.raw(format!("{text}\n").as_bytes());
    }

    /// Whether anybody still reads it.
    pub fn raw(&self, bytes: &[u8]) -> bool {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).is_ok()
    }

    pub fn json(&self, value: &Value) {
        self.data(&format!("{value:#}"));
    }

    pub fn words(&self, text: &str) {
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(format!("{text}\n").as_bytes());
    }
}

/// Columns as wide as their widest cell, three spaces apart.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|h| (*h).to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&header).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &&Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// How long ago, in one or two units, as kubectl shows it.
pub fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    let Some(since) = since else { return "-".into() };
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => format!("{}m{}s", seconds / 60, seconds % 60).replace("m0s", "m"),
        600..10_800 => format!("{}m", seconds / 60),
        10_800..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Nothing that a function or a stranger wrote may steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(table(&["N", "REASON"], &rows), "N      REASON\na      b\nlong");
    }

    #[test]
    fn ages() {
        let at = |second| Timestamp::from_second(second).unwrap();
        for (seconds, want) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (3600, "60m"), (7200 * 2, "4h"), (864_000, "10d")]
        {
            assert_eq!(age(Some(at(0)), at(seconds)), want);
        }
        assert_eq!((age(None, at(0)), age(Some(at(9)), at(0))), ("-".into(), "0s".into()));
    }

    #[test]
    fn terminals_are_safe() {
        assert_eq!(printable("a\x1b[31mb\n"), "a\u{fffd}[31mb\n");
    }
}
