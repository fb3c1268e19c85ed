//! The first process inside the cluster's namespaces: mounts, starts every component, and starts it again when it ends.
//!
//! Owns: what runs in there. Must not know: the host's network, which the process outside prepares meanwhile. The
//! surprise: nothing here stops anything. When this process is killed the kernel ends all that it started, shims and
//! containers included, and takes the mounts and the network along.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};

use super::pause;
use super::plan::{Component, Layout, components};

/// Returns only when something is wrong.
pub fn run(layout: &Layout) -> Result<()> {
    let mut go = [0];
    let told = std::io::stdin().read(&mut go)?;
    ensure!(told == 1, "nobody finished the preparations");
    mounts(layout)?;
    // Only machines with the bridge's packet filter have this; without it no pod reaches itself through a Service.
    let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forwarding")?;
    let components = components(layout);
    let mut running = HashMap::new();
    loop {
        for component in &components {
            if !running.contains_key(component.name) && !layout.stopped(component.name).exists() {
                let child = start(layout, component)?;
                std::fs::write(layout.running(component.name), child.id().to_string())?;
                running.insert(component.name, child);
            }
        }
        pause();
        reap(layout, &mut running)?;
    }
}

fn mounts(layout: &Layout) -> Result<()> {
    let bind = |from: &Path, to: &str| {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .with_context(|| format!("{} on {to}", from.display()))
    };
    bind(&layout.var(), "/var")?;
    bind(&layout.logs(), "/var/log")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("/run")?;
    Ok(())
}

fn start(layout: &Layout, component: &Component) -> Result<Child> {
    let path = layout.logs().join(format!("{}.log", component.name));
    let log = File::options().create(true).append(true).open(&path).with_context(|| path.display().to_string())?;
    Command::new(&component.program)
        .args(&component.arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| component.program.display().to_string())
}

/// Whatever has ended, be it a component or a process whose parent has ended before it.
fn reap(layout: &Layout, running: &mut HashMap<&'static str, Child>) -> Result<()> {
    loop {
        let ended = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT)?;
        let Some(pid) = ended.pid().filter(|_| ended != WaitStatus::StillAlive) else {
            return Ok(());
        };
        let component = running.iter().find(|(_, child)| i64::from(child.id()) == i64::from(pid.as_raw()));
        if let Some(name) = component.map(|(name, _)| *name) {
            eprintln!("{name} ended: {ended:?}");
            running.remove(name);
            let _ = std::fs::remove_file(layout.running(name));
        }
        waitpid(pid, None)?;
    }
}
