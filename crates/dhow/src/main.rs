//! The one binary: it parses, and then it is the platform, its launcher, or a client.
//!
//! Owns: which of the three this process is, and the runtime it gets. The launcher must start before any thread does.

mod data;
mod role;
mod up;

use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Parser;

/// Takes a tenth less CPU than glibc's for a request of the API, and no more memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What the platform re-executes itself with.
const LAUNCHER: &str = "internal-launcher";

fn main() -> ExitCode {
    // Before clap, since the launcher must stay small and single-threaded.
    if std::env::args().nth(1).as_deref() == Some(LAUNCHER) {
        return match std::io::stdin().as_fd().try_clone_to_owned() {
            Ok(control) => runtime::launcher::main(control),
            Err(error) => {
                eprintln!("dhow {LAUNCHER} is started by dhow up: {error}");
                ExitCode::from(2)
            }
        };
    }
    let cli = cli::Cli::parse();
    daemon::tls::install_provider();
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("dhow: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match &cli.command {
        cli::Command::Up(args) => exit("up", runtime.block_on(up::run(args))),
        cli::Command::BuildStep(args) => ended(runtime.block_on(role::build_step(args))),
        cli::Command::Role(args) => exit("role", runtime.block_on(role::run(args, cli.global.kubeconfig.as_deref()))),
        cli::Command::Backup(args) if let Some(folder) = &args.data_dir => exit("backup", data::backup(args, folder)),
        cli::Command::Restore(args) => exit("restore", data::restore(args, daemon::system_clock()())),
        cli::Command::Db(cli::DbCommand::Check(args)) => exit("db check", data::check(args)),
        _ => runtime.block_on(cli::run(cli, daemon::system_clock())),
    };
    // A read of stdin or a name lookup may still block a thread; nobody waits for it any more.
    runtime.shutdown_background();
    code
}

/// By the code of a process that other programs read.
fn ended(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn exit(command: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dhow {command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
