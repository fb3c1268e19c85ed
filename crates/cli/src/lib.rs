//! The command line: everything a person does with Dhow.
//!
//! Owns: flags, help, what is printed and the exit code. Must not know: any other room; it talks to the Kubernetes API,
//! the platform API and the gateway, like every other client. Data goes to stdout, words to stderr. The surprise: `up`,
//! the launcher and what opens data files are only parsed here; the composition root runs them.

mod archive;
pub mod args;
mod commands;
mod connect;
mod door;
mod export;
mod failure;
mod http;
mod install;
mod instances;
mod names;
mod output;
mod packing;
mod progress;
pub mod roles;
mod size;
mod templates;

use std::process::ExitCode;

pub use args::{BackupArgs, CheckArgs, Cli, Command, DbCommand, Format, LauncherArgs, RestoreArgs, UpArgs};
pub use connect::default_data_dir;
pub use failure::{Code, Failure};

use crate::output::Output;

pub type Result<T> = std::result::Result<T, Failure>;

/// What every command gets.
pub(crate) struct Context {
    pub global: args::Global,
    pub output: Output,
    pub clock: api::Clock,
}

/// Runs every command but those that are only parsed here.
pub async fn run(cli: Cli, clock: api::Clock) -> ExitCode {
    let context = Context { global: cli.global, output: Output, clock };
    let result = tokio::select! {
        // A command that has more to say about being interrupted says it.
        biased;
        result = commands::run(&context, cli.command) => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::interrupted()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            context.output.words(&failure.to_string());
            ExitCode::from(failure.code as u8)
        }
    }
}
