//! Functions of 70 lines, files of 500 without tests, crates of 8000; of the two crates that are tables of kinds and of
//! controllers, each folder of 4000 instead. `xtask/exceptions.txt` lists what is longer,
//! each with its present length; an entry that could be smaller must be made smaller, so the list only shrinks.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::sources::Source;

const FUNCTION: usize = 70;
const FILE: usize = 500;
const CRATE: usize = 8000;
/// They grow with what is served, not with how it is done.
const TABLES: [&str; 2] = ["crates/apiserver", "crates/control"];
const FOLDER: usize = 4000;
const EXCEPTIONS: &str = "xtask/exceptions.txt";

pub fn check(sources: &[Source]) -> Result<Vec<String>> {
    let measured = measure(sources);
    let allowed = exceptions()?;
    let mut complaints = vec![];
    for (what, length) in &measured {
        match allowed.get(what) {
            None => complaints.push(format!("{what}: {length} lines; what in it has a name of its own?")),
            Some(limit) if length > limit => {
                complaints.push(format!("{what}: {length} lines, and its exception allows {limit}"));
            }
            Some(limit) if length < limit => {
                complaints.push(format!("{EXCEPTIONS}: {what} is down to {length} lines; lower its entry"));
            }
            Some(_) => {}
        }
    }
    for what in allowed.keys().filter(|what| !measured.contains_key(*what)) {
        complaints.push(format!("{EXCEPTIONS}: {what} is short enough now; remove its entry"));
    }
    Ok(complaints)
}

/// Everything over its limit, by name.
fn measure(sources: &[Source]) -> BTreeMap<String, usize> {
    let mut over = BTreeMap::new();
    let mut crates: BTreeMap<String, usize> = BTreeMap::new();
    for source in sources.iter().filter(|s| !s.is_test()) {
        let lines = source.product_lines();
        if lines.len() > FILE {
            over.insert(source.path.clone(), lines.len());
        }
        for (name, length) in functions(&lines).into_iter().filter(|(_, length)| *length > FUNCTION) {
            over.insert(format!("{}::{name}", source.path), length);
        }
        *crates.entry(room(&source.path)).or_default() += lines.len();
    }
    let limit = |room: &str| if TABLES.iter().any(|table| room.starts_with(table)) { FOLDER } else { CRATE };
    over.extend(crates.into_iter().filter(|(room, length)| *length > limit(room)));
    over
}

/// The crate of a file, or the folder in it where the crate is a table.
fn room(path: &str) -> String {
    let parts = |n| path.split('/').take(n).collect::<Vec<_>>().join("/");
    let of = parts(2);
    let in_folder = path.split('/').count() > 4;
    if TABLES.contains(&of.as_str()) && in_folder { parts(4) } else { of }
}

/// Each function with its length, by rustfmt's indentation.
fn functions(lines: &[&str]) -> Vec<(String, usize)> {
    let mut found = vec![];
    for (i, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let Some(name) = function_name(trimmed) else { continue };
        let indent = &line[..line.len() - trimmed.len()];
        let (close, declared) = (format!("{indent}}}"), format!("{indent})"));
        let ends = |l: &str| *l == close || (l.starts_with(&declared) && l.ends_with(';'));
        let end = lines[i..].iter().position(|l| ends(l)).filter(|end| lines[i + end] == close);
        if let Some(end) = end.filter(|_| !line.ends_with(';')) {
            found.push((name, end + 1));
        }
    }
    found
}

fn function_name(trimmed: &str) -> Option<String> {
    let (before, after) = trimmed.split_once("fn ")?;
    let words = before.split_whitespace().all(|word| {
        word.starts_with("pub")
            || ["async", "const", "unsafe", "extern", "\"C\""].contains(&word)
            || word.ends_with(')')
    });
    let name: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (words && !name.is_empty()).then_some(name)
}

fn exceptions() -> Result<BTreeMap<String, usize>> {
    let text = match std::fs::read_to_string(EXCEPTIONS) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(e).context(EXCEPTIONS),
    };
    let entries = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    entries
        .map(|line| {
            let (length, what) = line.trim().split_once(' ').with_context(|| format!("{EXCEPTIONS}: {line}"))?;
            Ok((what.trim().to_owned(), length.parse().with_context(|| format!("{EXCEPTIONS}: {line}"))?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms() {
        for (path, want) in [
            ("crates/cli/src/install/mod.rs", "crates/cli"),
            ("crates/apiserver/src/kinds/definitions/mod.rs", "crates/apiserver/src/kinds"),
            ("crates/apiserver/src/watch.rs", "crates/apiserver"),
        ] {
            assert_eq!(room(path), want);
        }
    }

    #[test]
    fn measures_functions_by_indentation() {
        let text = "pub async fn one(\n    a: u8,\n) -> u8 {\n    a\n}\n\nimpl X {\n    fn two() {\n    }\n}\ntrait T {\n    fn none();\n    fn long(\n        a: u8,\n    );\n}\n";
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(functions(&lines), [("one".to_owned(), 5), ("two".to_owned(), 2)]);
    }
}
