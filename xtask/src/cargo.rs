//! Cargo, started by a program that cargo started.

use std::process::Command;

/// Without what cargo told this program about itself: build scripts that look at it would run again, and everything
/// after them be compiled again, now for the one and then for the other.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let about = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(about) {
            command.env_remove(name);
        }
    }
    command
}
