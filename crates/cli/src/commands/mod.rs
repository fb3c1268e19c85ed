//! One module per command.

mod backup;
mod delete;
mod deploy;
mod describe;
mod export;
mod invoke;
mod list;
mod logs;
mod new;
mod scale;
mod status;
mod upload;

use api::condition;
use api::function::Function;
use serde_json::json;

use crate::args::{Command, Format, FormatArgs};
use crate::connect::{self, Platform};
use crate::{Context, Failure, Result};

/// The field manager of what people deploy with this command line.
const MANAGER: &str = "dhow-cli";

pub async fn run(context: &Context, command: Command) -> Result<()> {
    match command {
        Command::New(args) => new::run(context, &args),
        Command::Deploy(args) => deploy::run(context, args).await,
        Command::List(args) => list::run(context, &args).await,
        Command::Describe(args) => describe::run(context, &args).await,
        Command::Invoke(args) => invoke::run(context, args).await,
        Command::Logs(args) => logs::run(context, &args).await,
        Command::Scale(args) => scale::run(context, &args).await,
        Command::Delete(args) => delete::run(context, &args).await,
        Command::Export(args) => export::run(context, &args).await,
        Command::Backup(args) => backup::run(context, &args).await,
        Command::Status(args) => status::run(context, args).await,
        Command::Install(args) => crate::install::install(context, *args).await,
        Command::Uninstall(args) => crate::install::uninstall(context, args).await,
        Command::Version(args) => {
            version(context, args);
            Ok(())
        }
        Command::Restore(_) | Command::Db(_) => Err(Failure::usage("this program cannot open data files")),
        Command::Up(_) | Command::Role(_) | Command::BuildStep(_) | Command::InternalLauncher(_) => {
            Err(Failure::usage("this program cannot run the platform"))
        }
    }
}

fn version(context: &Context, FormatArgs { format }: FormatArgs) {
    let version = env!("CARGO_PKG_VERSION");
    match format {
        Format::Text => context.output.data(&format!("dhow {version}")),
        Format::Json => context.output.json(&json!({"version": version})),
    }
}

async fn connect(context: &Context) -> Result<Platform> {
    connect::platform(&context.global).await
}

/// A function that must be there.
async fn function(platform: &Platform, name: &str) -> Result<Function> {
    let found = platform.api::<Function>().get_opt(name).await;
    found.map_err(|e| Failure::api(&format!("reading function {name}"), &e))?.ok_or_else(|| unknown(platform, name))
}

fn unknown(platform: &Platform, name: &str) -> Failure {
    Failure::failed(format!("there is no function {name} in the namespace {}", platform.namespace)).next("dhow list")
}

/// A function's condition, as `(status, reason, message)`; empty where there is none.
fn condition<'a>(function: &'a Function, type_: &str) -> (&'a str, &'a str, &'a str) {
    let conditions = function.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    condition::find(conditions, type_).map_or(("", "", ""), |c| (&c.status, &c.reason, &c.message))
}
