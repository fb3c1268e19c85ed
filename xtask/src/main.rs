//! The repository's own checks and chores: `cargo xtask tidy` keeps the documents and the code saying the same.

mod image;
mod tidy;

use std::process::ExitCode;

fn main() -> ExitCode {
    let task = std::env::args().nth(1);
    let result = match task.as_deref() {
        Some("tidy") => tidy::run(),
        Some("image") => return made(image::run()),
        _ => {
            eprintln!("usage: cargo xtask tidy|image");
            return ExitCode::from(2);
        }
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

/// Where the result is, for scripts.
fn made(path: anyhow::Result<std::path::PathBuf>) -> ExitCode {
    match path {
        Ok(path) => {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
