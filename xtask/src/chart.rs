//! `cargo xtask chart`: writes the Helm chart, which the command line itself renders.

use std::process::Command;

use anyhow::{Context, Result, ensure};

const FOLDER: &str = "charts/dhow";

pub fn run() -> Result<std::path::PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--quiet", "--package", "dhow", "--", "install", "--chart", FOLDER])
        .status()
        .context("cargo")?;
    ensure!(status.success(), "the chart was not written");
    Ok(FOLDER.into())
}
