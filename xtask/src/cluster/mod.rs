//! `cargo xtask cluster`: a real Kubernetes cluster of one node on this machine, for tests.
//!
//! Owns: the order in which it comes and goes. Must not know: Dhow. The surprise: the whole node, with its control
//! plane, lives in a mount, network and process namespace of its own, so that ending one process leaves nothing.

mod build;
mod check;
mod config;
mod host;
mod init;
mod pki;
mod plan;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

use host::{Process, Record};
use plan::{Layout, NODE, RUNTIME_SOCKET, components};

const USAGE: &str =
    "usage: cargo xtask cluster up|down|check|load IMAGE.tar...|stop COMPONENT|start COMPONENT|signal COMPONENT SIGNAL";
/// For scripts: this machine cannot have a cluster, so tests that need one are skipped.
const UNABLE: u8 = 3;

/// Why this machine cannot have a cluster, as opposed to what went wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unable(String);

pub fn run(arguments: &[String]) -> ExitCode {
    match act(arguments) {
        Ok(done) => done,
        Err(error) if error.is::<Unable>() => {
            eprintln!("cluster: skipped: {error}");
            ExitCode::from(UNABLE)
        }
        Err(error) => {
            eprintln!("cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(arguments: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let (chosen, cache, home) = (variable("DHOW_CLUSTER_DIR"), variable("XDG_CACHE_HOME"), variable("HOME"));
    let layout = Layout::choose(chosen.as_deref(), cache.as_deref(), home.as_deref()).map_err(anyhow::Error::msg)?;
    match words[..] {
        ["up"] => up(&layout)?,
        ["down"] => down(&layout)?,
        ["check"] => check::run(&layout)?,
        ["load", ref images @ ..] if !images.is_empty() => load_all(&layout, images)?,
        ["stop", name] => stop(&layout, name)?,
        ["start", name] => start(&layout, name)?,
        ["signal", name, signal] => send(&layout, known(&layout, name)?, signal)?,
        // Not for people: what `up` starts inside.
        ["init"] => init::run(&layout)?,
        _ => {
            eprintln!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn up(layout: &Layout) -> Result<()> {
    able()?;
    let _lock = lock(layout)?;
    let answers = || kubectl(layout, &["get", "--raw=/readyz"]);
    if live(layout).and_then(|_| answers()).is_err() {
        clean(layout)?;
        build::run(layout)?;
        if let Err(error) = begin(layout).and_then(|()| settle(layout)) {
            clean(layout)?;
            return Err(error.context(format!("the cluster did not come up; see {}", layout.logs().display())));
        }
    }
    println!("{}", layout.admin().display());
    Ok(())
}

fn down(layout: &Layout) -> Result<()> {
    if !layout.dir().exists() {
        return Ok(());
    }
    let _lock = lock(layout)?;
    clean(layout)
}

fn able() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(Unable("it takes root".into()));
    }
    let missing = host::missing_programs();
    if !missing.is_empty() {
        bail!(Unable(format!("not installed: {} (xtask/prepare.sh cluster installs them)", missing.join(", "))));
    }
    Ok(())
}

fn lock(layout: &Layout) -> Result<Flock<File>> {
    std::fs::create_dir_all(layout.dir())?;
    let file = File::create(layout.lock())?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
}

/// The record of a cluster that runs.
fn live(layout: &Layout) -> Result<Record> {
    let record = Record::read(layout).filter(|record| record.init.lives());
    record.context("no cluster runs; start one with `cargo xtask cluster up`")
}

/// Ends whatever an earlier run has left, complete or not; only its logs stay.
fn clean(layout: &Layout) -> Result<()> {
    if let Some(record) = Record::read(layout) {
        record.init.end()?;
        record.keeper.end()?;
    }
    host::disconnect()?;
    host::remove_cgroups()?;
    for file in [layout.record(), layout.admin()] {
        let _ = std::fs::remove_file(file);
    }
    remove_folder(&layout.state())
}

fn remove_folder(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context(folder.display().to_string()),
        _ => Ok(()),
    }
}

/// Starts the components; what they need from each other they wait for themselves.
fn begin(layout: &Layout) -> Result<()> {
    write_files(layout)?;
    host::make_cgroups()?;
    // On most machines these are modules; where they are built in there is nothing to load.
    for module in ["overlay", "br_netfilter"] {
        let _ = host::run("modprobe", &[module]);
    }
    // What was asked of an earlier cluster says nothing of this one.
    let _ = std::fs::remove_file(layout.logs().join("audit.log"));
    let log = File::create(layout.logs().join("init.log"))?;
    let mut keeper = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "--"])
        .arg(std::env::current_exe()?)
        .args(["cluster", "init"])
        .env("DHOW_CLUSTER_DIR", layout.dir())
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("unshare")?;
    let pid = keeper.id().cast_signed();
    let init = eventually(50, "the cluster's first process", || host::only_child(pid))?;
    let keeper_process = Process::find(pid).context("unshare has ended")?;
    Record { keeper: keeper_process, init }.write(layout)?;
    host::connect(init)?;
    let mut go = keeper.stdin.take().context("a piped stdin")?;
    go.write_all(b"!")?;
    Ok(())
}

fn write_files(layout: &Layout) -> Result<()> {
    remove_folder(&layout.logs())?;
    for folder in ["lib", "tmp"] {
        std::fs::create_dir_all(layout.var().join(folder))?;
    }
    std::fs::create_dir_all(layout.var().join("log"))?;
    symlink("/run", layout.var().join("run"))?;
    for folder in [layout.logs(), layout.stopped(""), layout.running("")] {
        std::fs::create_dir_all(folder)?;
    }
    let resolvers = config::resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    for (name, text) in config::files(layout, &resolvers) {
        write(&layout.config(&name), &text)?;
    }
    for pair in pki::make()? {
        write(&layout.certificate(pair.name), &pair.certificate)?;
        write(&layout.key(pair.name), &pair.key)?;
    }
    Ok(std::fs::set_permissions(layout.state(), PermissionsExt::from_mode(0o700))?)
}

fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    std::fs::create_dir_all(folder)?;
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

/// Waits until pods can run, and writes the administrator's configuration when they can.
fn settle(layout: &Layout) -> Result<()> {
    eventually(300, "containerd", || Ok(load(layout, &layout.built("pause.tar")).ok()))?;
    load(layout, &layout.built("hello.tar"))?;
    let ready = |arguments: &[&str]| kubectl(layout, arguments).map(|output| (output == "True").then_some(()));
    eventually(600, "the API server", || {
        Ok(kubectl(layout, &["apply", "--filename", &layout.config("objects.json").display().to_string()]).ok())
    })?;
    eventually(600, "the default service account", || Ok(kubectl(layout, &["get", "serviceaccount", "default"]).ok()))?;
    let node_ready = "--output=jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    eventually(600, "the node", || Ok(ready(&["get", "node", NODE, node_ready]).unwrap_or_default()))?;
    // With the certificates in it, so that it can be copied to wherever it is needed.
    let admin = kubectl(layout, &["config", "view", "--raw", "--flatten"])?;
    Ok(std::fs::write(layout.admin(), admin)?)
}

fn kubectl(layout: &Layout, arguments: &[&str]) -> Result<String> {
    let output = Command::new(layout.built("kubectl"))
        .args(arguments)
        .env("KUBECONFIG", layout.kubeconfig("admin"))
        .output()
        .context("kubectl")?;
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "kubectl {}: {complaint}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn load_all(layout: &Layout, images: &[&str]) -> Result<()> {
    live(layout)?;
    images.iter().try_for_each(|image| load(layout, Path::new(image)))
}

/// An OCI or Docker archive, whose images keep the names that it gives them.
fn load(layout: &Layout, image: &Path) -> Result<()> {
    let record = live(layout)?;
    let archive = File::open(image).with_context(|| image.display().to_string())?;
    let output = Command::new("nsenter")
        .args(["--target", &record.init.pid.to_string(), "--mount", "--net", "--"])
        .args(["ctr", "--address", RUNTIME_SOCKET, "--namespace", "k8s.io", "images", "import", "-"])
        .stdin(archive)
        .output()
        .context("nsenter ctr")?;
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "{}: {complaint}", image.display());
    Ok(())
}

/// Kills a component and keeps it down.
fn stop(layout: &Layout, name: &str) -> Result<()> {
    let name = known(layout, name)?;
    std::fs::write(layout.stopped(name), "")?;
    eventually(100, "the end of the component", || {
        let runs = layout.running(name).exists();
        if runs {
            // It may have ended since, and be about to be noticed.
            let _ = send(layout, name, "KILL");
        }
        Ok((!runs).then_some(()))
    })
}

/// To a component that runs: `STOP` and `CONT` make a slow one, `KILL` one that crashes and comes back.
fn send(layout: &Layout, name: &str, signal: &str) -> Result<()> {
    let record = live(layout)?;
    let pid = std::fs::read_to_string(layout.running(name)).with_context(|| format!("{name} does not run"))?;
    let inside = ["--target", &record.init.pid.to_string(), "--mount", "--pid", "--"];
    host::run("nsenter", &[&inside[..], &["sh", "-c", "kill -s \"$0\" \"$1\"", signal, &pid]].concat())
}

/// Lets a stopped component run again.
fn start(layout: &Layout, name: &str) -> Result<()> {
    live(layout)?;
    let name = known(layout, name)?;
    let _ = std::fs::remove_file(layout.stopped(name));
    eventually(100, "the start of the component", || Ok(layout.running(name).exists().then_some(())))
}

fn known(layout: &Layout, name: &str) -> Result<&'static str> {
    let names: Vec<&str> = components(layout).iter().map(|component| component.name).collect();
    let found = names.iter().find(|known| **known == name).copied();
    found.with_context(|| format!("{name:?} is none of {}", names.join(", ")))
}

/// Asks again every tenth of a second, `tries` times, until there is an answer.
fn eventually<T>(tries: u32, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..tries {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        pause();
    }
    bail!("waited in vain for {what}")
}

#[allow(clippy::disallowed_methods, reason = "nothing else runs in this process that could be kept from it")]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(100));
}
