//! Everything that a machine can hold true about the house: its crate table, its layers, its lengths, its plans
//! and the paths that its documents name. Each check returns complaints; none stops at the first.

mod crates;
mod lengths;
mod plans;
mod sources;

use anyhow::{Context, Result};

pub fn run() -> Result<Vec<String>> {
    let architecture = std::fs::read_to_string("ARCHITECTURE.md").context("run it at the top of the repository")?;
    let sources = sources::read()?;
    let mut complaints = crates::check(&architecture)?;
    complaints.extend(lengths::check(&sources)?);
    complaints.extend(plans::check(&sources));
    complaints.extend(sources::check(&sources));
    complaints.extend(named_paths(&architecture));
    Ok(complaints)
}

/// Every path that ARCHITECTURE.md names in backticks exists; a placeholder such as `<kind>` names none.
fn named_paths(architecture: &str) -> Vec<String> {
    const ROOTS: [&str; 9] =
        ["crates/", "docs/", "runtimes/", "templates/", "tests/", "bench/", "xtask/", ".ci/", "console/"];
    let named = architecture.split('`').skip(1).step_by(2).filter(|token| {
        !token.contains(['<', '*', ' ', '\n'])
            && (ROOTS.iter().any(|root| token.starts_with(root)) || (token.ends_with(".md") && !token.contains('/')))
    });
    named
        .filter(|path| !std::path::Path::new(path.trim_end_matches('/')).exists())
        .map(|path| format!("ARCHITECTURE.md names `{path}`, which does not exist"))
        .collect()
}
