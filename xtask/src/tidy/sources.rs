//! The Rust sources of the repository, read once, and what every one of them owes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub struct Source {
    /// Relative to the top of the repository.
    pub path: String,
    pub text: String,
}

impl Source {
    /// Tests, examples and benches may be long, and need no module doc.
    pub fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs")
            || ["/tests/", "/examples/", "/benches/"].iter().any(|part| self.path.contains(part))
    }

    /// The lines before an inline test module, which rustfmt puts at the left margin.
    pub fn product_lines(&self) -> Vec<&str> {
        let lines: Vec<&str> = self.text.lines().collect();
        let is_tests = |i: &usize| {
            lines[*i] == "#[cfg(test)]" && lines.get(i + 1).is_some_and(|l| l.starts_with("mod ") && l.ends_with('{'))
        };
        let end = (0..lines.len()).find(is_tests).unwrap_or(lines.len());
        lines[..end].to_vec()
    }
}

pub fn read() -> Result<Vec<Source>> {
    let mut found = vec![];
    for top in ["crates", "xtask", "tests"] {
        walk(Path::new(top), &mut found)?;
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn walk(dir: &Path, found: &mut Vec<Source>) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path: PathBuf = entry?.path();
        let skipped = path.file_name().is_some_and(|n| n == "target" || n == "node_modules");
        if path.is_dir() && !skipped {
            walk(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            found.push(Source { path: path.display().to_string(), text });
        }
    }
    Ok(())
}

pub fn check(sources: &[Source]) -> Vec<String> {
    let mut complaints = vec![];
    for source in sources {
        if !source.is_test() && !source.text.starts_with("//!") {
            complaints.push(format!("{}: does not open with a module doc (//!)", source.path));
        }
        for (i, line) in source.text.lines().enumerate() {
            // Split so that this check does not complain about itself.
            if [concat!("TO", "DO"), concat!("FIX", "ME")].iter().any(|mark| line.contains(mark)) {
                complaints.push(format!("{}:{}: something was left behind", source.path, i + 1));
            }
        }
        let name = Path::new(&source.path).file_stem().and_then(|n| n.to_str()).unwrap_or_default();
        if ["util", "utils", "common", "helpers", "misc", "manager"].contains(&name) {
            complaints.push(format!("{}: a room is a noun; `{name}` says nothing", source.path));
        }
    }
    complaints
}
