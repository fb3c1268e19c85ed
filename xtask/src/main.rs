//! The repository's own checks and chores: `cargo xtask tidy` keeps the documents and the code saying the same.

mod cargo;
mod chart;
mod cluster;
mod image;
mod tidy;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some("tidy") => tidy::run(),
        Some("chart") => return made(chart::run().map(|path| path.display().to_string())),
        Some("cluster") => return cluster::run(&arguments[1..]),
        Some("image") => {
            let profile = match arguments.get(1).map(String::as_str) {
                None => image::Profile::Release,
                Some("--dev") => image::Profile::Dev,
                Some(_) => return usage(),
            };
            return made(image::run(profile).map(|(path, name)| format!("{}\n{name}", path.display())));
        }
        _ => return usage(),
    };
    match result {
        Ok(complaints) if complaints.is_empty() => {
            println!("tidy: nothing to complain about");
            ExitCode::SUCCESS
        }
        Ok(complaints) => {
            for complaint in &complaints {
                eprintln!("tidy: {complaint}");
            }
            eprintln!("tidy: {} complaint(s)", complaints.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tidy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: cargo xtask tidy|chart|image [--dev]|cluster");
    ExitCode::from(2)
}

/// Where the result is, for scripts.
fn made(what: anyhow::Result<String>) -> ExitCode {
    match what {
        Ok(what) => {
            println!("{what}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
