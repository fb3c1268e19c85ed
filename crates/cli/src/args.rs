//! The flags, their help and their environment variables.

use std::net::SocketAddr;
use std::path::PathBuf;

use api::names::SYSTEM_NAMESPACE;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::install::{InstallCommand, UninstallCommand};
use crate::roles::{BuildStepArgs, RoleArgs};
use crate::size;

/// From a folder to a URL: functions on one machine.
#[derive(Clone, Debug, Parser)]
#[command(name = "dhow", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The namespace; the kubeconfig's when absent
    #[arg(long, short, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// How to reach the platform; else DHOW_KUBECONFIG, KUBECONFIG, and the default data directory's
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Dhow's own namespace on a cluster
    #[arg(long, global = true, env = "DHOW_SYSTEM_NAMESPACE", default_value = SYSTEM_NAMESPACE, hide_default_value = true, value_name = "NAME")]
    pub system_namespace: String,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Start the platform on this machine
    Up(Box<UpArgs>),
    /// Make the folder of a new function
    New(NewArgs),
    /// Upload a folder, build it and serve it
    Deploy(DeployArgs),
    /// The functions of a namespace
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Everything about one function
    Describe(NameArgs),
    /// Call a function
    Invoke(InvokeArgs),
    /// What a function's instances print
    Logs(LogsArgs),
    /// Ask for a number of instances, once
    Scale(ScaleArgs),
    /// Remove a function and everything made from it
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
    /// What was made for a function or a service, as plain objects that run without Dhow
    Export(ExportArgs),
    /// Copy everything that the platform knows into a file, while it runs
    Backup(BackupArgs),
    /// Put a backup in the place of what a stopped platform knows
    Restore(RestoreArgs),
    /// The data file of this machine's platform
    #[command(subcommand)]
    Db(DbCommand),
    /// How the platform is
    Status(FormatArgs),
    /// Which version this is
    Version(FormatArgs),
    /// Put Dhow on a Kubernetes cluster, or bring it up to date
    Install(Box<InstallCommand>),
    /// Remove Dhow from a Kubernetes cluster
    Uninstall(UninstallCommand),
    /// One part of the platform as a process of its own, on a cluster
    Role(Box<RoleArgs>),
    /// A step of a build on a cluster; started by the builder
    #[command(hide = true)]
    BuildStep(BuildStepArgs),
    /// Makes sandboxes for a running platform; started by it
    #[command(hide = true)]
    InternalLauncher(LauncherArgs),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct FormatArgs {
    /// What is printed to stdout
    #[arg(long = "output", short = 'o', value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Where everything is kept [default: /var/lib/dhow as root, else $XDG_DATA_HOME/dhow]
    #[arg(long, env = "DHOW_DATA_DIR", value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// The Kubernetes API; port 0 picks a free one
    #[arg(long, env = "DHOW_API_LISTEN", default_value = "127.0.0.1:6440", value_name = "ADDRESS")]
    pub api_listen: SocketAddr,
    /// Where functions are called
    #[arg(long, env = "DHOW_GATEWAY_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub gateway_listen: SocketAddr,
    /// The same over TLS, for hosts that have a certificate
    #[arg(long, env = "DHOW_GATEWAY_TLS_LISTEN", default_value = "127.0.0.1:8443", value_name = "ADDRESS")]
    pub gateway_tls_listen: SocketAddr,
    /// The platform API
    #[arg(long, env = "DHOW_CONSOLE_LISTEN", default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    pub console_listen: SocketAddr,
    /// Metrics and health
    #[arg(long, env = "DHOW_METRICS_LISTEN", default_value = "127.0.0.1:9090", value_name = "ADDRESS")]
    pub metrics_listen: SocketAddr,
    /// The built-in image registry
    #[arg(long, env = "DHOW_REGISTRY_LISTEN", default_value = "127.0.0.1:5000", value_name = "ADDRESS")]
    pub registry_listen: SocketAddr,
    /// Where functions call functions [default: the sandbox network's own address]
    #[arg(long, env = "DHOW_GATEWAY_INTERNAL_LISTEN", value_name = "ADDRESS")]
    pub gateway_internal_listen: Option<SocketAddr>,
    /// The addresses of instances [default: a free part of 10.201.0.0/16]
    #[arg(long, env = "DHOW_POD_CIDR", value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    /// The first user id that instances get [default: 200000]
    #[arg(long, env = "DHOW_UID_BASE", value_name = "UID")]
    pub uid_base: Option<u32>,
    /// The domain of public hosts: {name}.{namespace}.{domain}
    #[arg(long, env = "DHOW_DOMAIN", default_value = "localhost", value_name = "DOMAIN")]
    pub domain: String,
    /// The largest source that may be uploaded
    #[arg(long, env = "DHOW_MAX_SOURCE", default_value = "256MiB", value_parser = size::parse, value_name = "SIZE")]
    pub max_source: u64,
    /// Print the configuration as JSON and end
    #[arg(long)]
    pub print_config: bool,
}

#[derive(Clone, Debug, Args)]
pub struct NewArgs {
    /// python or node
    #[arg(value_name = "LANG")]
    pub language: String,
    /// The function's name, and its folder's
    pub name: String,
}

#[derive(Clone, Debug, Args)]
pub struct DeployArgs {
    /// The folder of the source
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// The function's name; the folder's when absent
    #[arg(long)]
    pub name: Option<String>,
    /// python or node; found out from the files when absent
    #[arg(long)]
    pub runtime: Option<String>,
    /// What to call, such as main.handle
    #[arg(long)]
    pub handler: Option<String>,
    /// A variable of the function's environment; NAME- removes one. Those not named stay as they are
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// End as soon as the platform has taken it
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait for it, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub timeout: u64,
    /// Refuse a larger source before it is uploaded
    #[arg(long, env = "DHOW_MAX_SOURCE", default_value = "256MiB", value_parser = size::parse, value_name = "SIZE")]
    pub max_source: u64,
}

#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Of every namespace
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Clone, Debug, Args)]
pub struct NameArgs {
    /// The function
    pub name: String,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Clone, Debug, Args)]
pub struct InvokeArgs {
    /// The function
    pub name: String,
    /// The body: text, @FILE, or - for stdin
    #[arg(long, short, value_name = "DATA")]
    pub data: Option<String>,
    /// The method [default: POST with data, else GET]
    #[arg(long, short = 'X')]
    pub method: Option<String>,
    /// A header, such as 'content-type: application/json'
    #[arg(long, short = 'H', value_name = "NAME: VALUE")]
    pub header: Vec<String>,
    /// The path, and perhaps a query
    #[arg(long, default_value = "/")]
    pub path: String,
}

#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// The function
    pub name: String,
    /// Go on with what is printed from now on, by new instances too
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last lines of each instance
    #[arg(long, value_name = "LINES")]
    pub tail: Option<i64>,
    /// Of the runs before the last restart
    #[arg(long, short)]
    pub previous: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Clone, Debug, Args)]
pub struct ScaleArgs {
    /// The function
    pub name: String,
    /// How many instances; 0 drains the idle ones now
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(0..=10_000))]
    pub to: i32,
    /// Do not wait until there are as many
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    #[default]
    Yaml,
    Json,
}

#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// The function, or the Knative service
    pub name: String,
    /// Also what only Dhow and Knative understand: the service, its revisions, routes and their scaling
    #[arg(long)]
    pub all: bool,
    /// What is printed to stdout
    #[arg(long = "output", short = 'o', value_enum, default_value_t, value_name = "FORMAT")]
    pub format: ExportFormat,
}

#[derive(Clone, Debug, Args)]
pub struct DeleteArgs {
    /// The function
    pub name: String,
    /// Do not wait until it is gone
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Clone, Debug, Args)]
pub struct BackupArgs {
    /// The file to make; one that is there is not overwritten
    pub file: PathBuf,
    /// Copy from this folder, of a platform that need not run, instead of asking the platform
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    /// What `dhow backup` made
    pub file: PathBuf,
    /// Where the stopped platform keeps everything [default: as of dhow up]
    #[arg(long, env = "DHOW_DATA_DIR", value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum DbCommand {
    /// Look for damage in the data file, or in a backup; the platform may run meanwhile
    Check(CheckArgs),
}

#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// A backup, or another data file [default: the one in the data directory]
    pub file: Option<PathBuf>,
    /// Where the platform keeps everything [default: as of dhow up]
    #[arg(long, env = "DHOW_DATA_DIR", value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Clone, Debug, Args)]
pub struct LauncherArgs {
    /// The socket to the platform
    #[arg(long, default_value_t = 0)]
    pub fd: i32,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lines() {
        for (line, fine) in [
            ("up --data-dir /x --api-listen 127.0.0.1:0 --max-source 1GiB --print-config", true),
            ("up --api-listen nonsense", false),
            ("up --max-source lots", false),
            ("new python hello", true),
            ("new python", false),
            ("deploy ./hello --name x --runtime node --handler a.b --env A=b --env B=c --no-wait", true),
            ("deploy", false),
            ("list -A -o json", true),
            ("ls -n other", true),
            ("list -o yaml", false),
            ("describe hello -o json --namespace x", true),
            ("invoke hello --data @file -X PUT -H a:b --path /x?y=z", true),
            ("logs hello -f --tail 5", true),
            ("scale hello --to 3", true),
            ("scale hello --to -1", false),
            ("scale hello", false),
            ("delete hello --no-wait", true),
            ("export hello -o json --all", true),
            ("status -o json --kubeconfig /x", true),
            ("backup dhow.db --data-dir /x", true),
            ("backup", false),
            ("restore dhow.db --data-dir /x", true),
            ("db check dhow.db -o json", true),
            ("db check --data-dir /x", true),
            ("db", false),
            ("version", true),
            ("internal-launcher --fd 3", true),
            ("nonsense", false),
            ("", false),
        ] {
            let words = std::iter::once("dhow").chain(line.split_whitespace());
            assert_eq!(Cli::try_parse_from(words).is_ok(), fine, "{line}");
        }
    }

    #[test]
    fn defaults_of_up() {
        let cli = Cli::try_parse_from(["dhow", "up"]).unwrap();
        let Command::Up(up) = cli.command else { panic!("not up") };
        assert_eq!((up.api_listen.port(), up.gateway_listen.port(), up.max_source), (6440, 8080, 256 << 20));
        assert!(up.api_listen.ip().is_loopback() && up.gateway_internal_listen.is_none() && up.domain == "localhost");
    }
}
