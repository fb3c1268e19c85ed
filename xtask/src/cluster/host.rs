//! What the cluster has on the host: a record of its processes, a network cable, packet rules, and cgroups.
//!
//! Owns: making and removing these. The surprise: every removal works from names and not from memory, so it also
//! cleans up after a run that crashed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::plan::{CABLE, CGROUP, HOST_ADDRESS, Layout, NODE_ADDRESS, PODS, SERVICES, TABLE};
use super::{config, eventually};

/// A process, and when it began, in the kernel's ticks: ids are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    started: u64,
}

impl Process {
    pub fn find(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, started: started(&stat)? })
    }

    pub fn lives(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    pub fn end(self) -> Result<()> {
        if self.lives() {
            kill(Pid::from_raw(self.pid), Signal::SIGKILL)?;
        }
        eventually(100, "the end of a killed process", || Ok((!self.lives()).then_some(())))
    }
}

/// When a process began, from its `stat`; a zombie counts as gone. The name, in parentheses, may hold anything.
fn started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// The process that made the namespaces, and the first one inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub keeper: Process,
    pub init: Process,
}

impl Record {
    pub fn read(layout: &Layout) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(layout.record()).ok()?).ok()
    }

    pub fn write(self, layout: &Layout) -> Result<()> {
        Ok(std::fs::write(layout.record(), serde_json::to_vec(&self)?)?)
    }
}

/// Runs a command to its end; its complaints are shown only when it fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().context(program.to_owned())?;
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "{program} {}: {complaint}", arguments.join(" "));
    Ok(())
}

/// Inside the network of the process `init`, through `nsenter`.
fn run_inside(init: Process, arguments: &[&str]) -> Result<()> {
    let pid = init.pid.to_string();
    run("nsenter", &[&["--target", &pid, "--net", "--"], arguments].concat())
}

/// A cable between host and node, and the routes that lead through it.
pub fn connect(init: Process) -> Result<()> {
    let (host, node) = (format!("{HOST_ADDRESS}/30"), format!("{NODE_ADDRESS}/30"));
    let (gateway, via) = (HOST_ADDRESS.to_string(), NODE_ADDRESS.to_string());
    let pid = init.pid.to_string();
    run("ip", &["link", "add", CABLE, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
    run("ip", &["address", "add", &host, "dev", CABLE])?;
    run("ip", &["link", "set", CABLE, "up"])?;
    run_inside(init, &["ip", "link", "set", "lo", "up"])?;
    run_inside(init, &["ip", "address", "add", &node, "dev", "eth0"])?;
    run_inside(init, &["ip", "link", "set", "eth0", "up"])?;
    run_inside(init, &["ip", "route", "add", "default", "via", &gateway])?;
    for range in [PODS, SERVICES] {
        run("ip", &["route", "replace", range, "via", &via])?;
    }
    let rules = config::packet_rules();
    run("nft", &[&rules])?;
    forward()
}

/// Lets packets pass between the cable and what leads out, and between nothing else: names outside are looked up and
/// packages fetched from inside. The cable's own setting goes with it.
fn forward() -> Result<()> {
    let routes = std::fs::read_to_string("/proc/net/route")?;
    for device in uplinks(&routes).into_iter().chain([CABLE]) {
        let setting = format!("/proc/sys/net/ipv4/conf/{device}/forwarding");
        std::fs::write(&setting, "1").context(setting)?;
    }
    Ok(())
}

/// The devices of default routes, in a routing table as the kernel shows it.
fn uplinks(routes: &str) -> Vec<&str> {
    let fields = routes.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    fields
        .filter(|route| route.get(1) == Some(&"00000000") && route.get(7) == Some(&"00000000"))
        .map(|r| r[0])
        .collect()
}

/// The cable goes with the node's end of it, unless it is that of a cluster in another folder: there is one per machine.
pub fn disconnect() -> Result<()> {
    let gone = || Ok((!Path::new("/sys/class/net").join(CABLE).exists()).then_some(()));
    eventually(100, "the end of a cluster whose record is in another folder", gone)?;
    let _ = run("nft", &["delete", "table", "ip", TABLE]);
    Ok(())
}

/// The cluster's cgroup in every hierarchy that has controllers. A new one in `cpuset` has no processors until told.
pub fn make_cgroups() -> Result<()> {
    for hierarchy in Hierarchies::read()?.with_controllers() {
        let group = hierarchy.join(CGROUP);
        std::fs::create_dir_all(&group).with_context(|| group.display().to_string())?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = std::fs::read(hierarchy.join(file)) {
                let _ = std::fs::write(group.join(file), all);
            }
        }
        // Of cgroup v2 alone: what is below gets the controllers that are here.
        for above in [hierarchy, &group] {
            let controllers = std::fs::read_to_string(above.join("cgroup.controllers")).unwrap_or_default();
            for controller in controllers.split_whitespace() {
                let _ = std::fs::write(above.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
    }
    Ok(())
}

/// Their processes have ended, but the kernel may still be at it.
pub fn remove_cgroups() -> Result<()> {
    let Hierarchies { v1, v2 } = Hierarchies::read()?;
    for hierarchy in v1.iter().chain(&v2) {
        let group = hierarchy.join(CGROUP);
        eventually(100, "the end of the cgroups", || Ok(remove_tree(&group).ok()))?;
    }
    Ok(())
}

/// Folders of cgroups are removed from below; the files in them go along.
fn remove_tree(group: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(group)
}

/// Where the kernel's cgroup hierarchies are mounted.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchies {
    v1: Vec<PathBuf>,
    v2: Vec<PathBuf>,
}

impl Hierarchies {
    fn read() -> Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/mounts")?))
    }

    fn parse(mounts: &str) -> Self {
        let of_type = |wanted: &str| {
            let lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            let wanted = lines.filter(|fields| fields.get(2) == Some(&wanted));
            wanted.filter_map(|fields| fields.get(1).map(PathBuf::from)).collect()
        };
        Self { v1: of_type("cgroup"), v2: of_type("cgroup2") }
    }

    /// Beside v1, that of v2 has none; the container runtime enters it all the same.
    fn with_controllers(&self) -> &[PathBuf] {
        if self.v1.is_empty() { &self.v2 } else { &self.v1 }
    }
}

/// What must be installed, by the paths that Debian's packages give it.
pub fn missing_programs() -> Vec<&'static str> {
    const NEEDED: [&str; 9] = ["etcd", "containerd", "ctr", "runc", "unshare", "nsenter", "ip", "nft", "nice"];
    const NETWORK: &str = "/usr/lib/cni/bridge";
    let on_path = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
    };
    let mut missing: Vec<&str> = NEEDED.into_iter().filter(|name| !on_path(name)).collect();
    if !Path::new(NETWORK).exists() {
        missing.push(NETWORK);
    }
    missing
}

/// The one process that `parent` has started.
pub fn only_child(parent: i32) -> Result<Option<Process>> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let mut pids = children.split_whitespace();
    match (pids.next(), pids.next()) {
        (None, _) => Ok(None),
        (Some(pid), None) => Ok(Process::find(pid.parse()?)),
        (Some(_), Some(_)) => bail!("process {parent} has several children"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_lead_out() {
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        let out = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0  \n";
        let beside = "dhow-cluster\t0000D50A\t02FFD50A\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let check = |given: &str, want: &[&str]| assert_eq!(uplinks(given), want, "{given}");
        check(&format!("{head}{out}{beside}"), &["eth0"]);
        check(&format!("{head}{beside}"), &[]);
        check("", &[]);
    }

    #[test]
    fn processes_are_told_apart() {
        let check = |given: &str, want: Option<u64>| assert_eq!(started(given), want, "{given}");
        let rest = "1 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 4711 99 99";
        check(&format!("7 (sh) S {rest}"), Some(4711));
        check(&format!("7 (a) Z (b) R {rest}"), Some(4711));
        check(&format!("7 (sh) Z {rest}"), None);
        check("7 (sh) S 1", None);
        check("", None);
        let me = Process::find(std::process::id().cast_signed()).unwrap();
        assert!(me.lives());
        assert!(!Process { started: me.started + 1, ..me }.lives());
    }

    #[test]
    fn hierarchies_are_found() {
        let check = |given: &str, v1: &[&str], v2: &[&str], controllers: &[&str]| {
            let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
            let found = Hierarchies::parse(given);
            assert_eq!(found, Hierarchies { v1: paths(v1), v2: paths(v2) }, "{given}");
            assert_eq!(found.with_controllers(), paths(controllers), "{given}");
        };
        check(
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
            &["/sys/fs/cgroup/cpu"],
            &["/sys/fs/cgroup/unified"],
            &["/sys/fs/cgroup/cpu"],
        );
        check("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0", &[], &["/sys/fs/cgroup"], &["/sys/fs/cgroup"]);
        check("", &[], &[], &[]);
    }
}
