//! `cargo xtask chart`: writes the Helm chart, which the command line itself renders.

use anyhow::{Context, Result, ensure};

use crate::cargo::cargo;

const FOLDER: &str = "charts/dhow";

pub fn run() -> Result<std::path::PathBuf> {
    let status = cargo()
        .args(["run", "--quiet", "--package", "dhow", "--", "install", "--chart", FOLDER])
        .status()
        .context("cargo")?;
    ensure!(status.success(), "the chart was not written");
    Ok(FOLDER.into())
}
