//! What can be counted on the machine: processes, cgroups, links, firewall tables.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

/// The stock a launcher keeps once it has been used.
pub const STOCK: usize = 16;

/// What a launcher and its slot hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    pub fds: usize,
    pub mounts: usize,
    pub children: usize,
    pub cgroups: usize,
    pub links: usize,
}

impl Held {
    pub fn count(launcher: i32, slot: u32) -> Self {
        let lines = |file: &str| fs::read_to_string(format!("/proc/{launcher}/{file}")).unwrap_or_default();
        Self {
            fds: fs::read_dir(format!("/proc/{launcher}/fd")).into_iter().flatten().count(),
            mounts: lines("mountinfo").lines().count(),
            children: children(launcher).len(),
            cgroups: cgroups(slot).iter().map(|f| fs::read_dir(f).into_iter().flatten().flatten()).map(folders).sum(),
            links: links(slot).len(),
        }
    }
}

fn folders(entries: impl Iterator<Item = fs::DirEntry>) -> usize {
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).count()
}

/// Whatever is left on the machine under a slot's names.
pub fn left_of(slot: u32) -> Vec<String> {
    let tables = Command::new("nft").args(["list", "tables"]).output().map(|o| o.stdout).unwrap_or_default();
    let tables = String::from_utf8_lossy(&tables).into_owned();
    let table = format!("dhow_{slot}");
    let tables = tables.lines().filter(|l| l.split(' ').next_back() == Some(&table)).map(str::to_owned);
    let hierarchies = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let name = format!(":name=dhow-{slot}:");
    let hierarchies = hierarchies.lines().filter(|l| l.contains(&name)).map(str::to_owned);
    cgroups(slot).into_iter().chain(links(slot)).chain(tables).chain(hierarchies).collect()
}

/// Whether nothing is left of a slot, or somebody else on this machine has it by now.
pub fn is_clean(slot: u32) -> bool {
    left_of(slot).is_empty() || is_taken(slot)
}

/// Whether no process of a slot's platform runs, or somebody else has the slot by now.
pub fn is_quiet(slot: u32) -> bool {
    users_of(slot) == 0 || is_taken(slot)
}

fn is_taken(slot: u32) -> bool {
    use nix::fcntl::{Flock, FlockArg};
    let file = fs::File::open(format!("/run/dhow/slots/{slot}.lock")).expect("the lock file stays");
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

/// How many processes run as users of the slot; one that only waits to be asked how it ended does not.
pub fn users_of(slot: u32) -> usize {
    let range = 200_000 + slot * 2048..200_000 + (slot + 1) * 2048;
    let user = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| status.lines().find(|l| l.starts_with(name));
        let line = field("Uid:").filter(|_| !field("State:").is_some_and(|s| s.contains("zombie")))?;
        line.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    processes().iter().filter_map(user).filter(|u| range.contains(u)).count()
}

fn cgroups(slot: u32) -> Vec<String> {
    let name = format!("dhow-{slot}");
    let entries = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
    let roots = entries.chain(["/sys/fs/cgroup".into()]);
    roots.map(|r| r.join(&name)).filter(|p| p.is_dir()).map(|p| p.display().to_string()).collect()
}

fn links(slot: u32) -> Vec<String> {
    let prefix = format!("dh{slot}-");
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| n.starts_with(&prefix)).collect()
}

fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The name and the parent of a process.
fn stat(pid: i32) -> Option<(String, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    Some((name.to_owned(), rest.split(' ').nth(1)?.parse().ok()?))
}

fn children(parent: i32) -> Vec<i32> {
    processes().into_iter().filter(|pid| stat(*pid).is_some_and(|(_, p)| p == parent)).collect()
}

pub fn child_named(parent: i32, name: &str) -> Option<i32> {
    children(parent).into_iter().find(|pid| stat(*pid).is_some_and(|(n, _)| n == name))
}

/// Whether a process is gone, or has let go of all it held and is only still listed.
pub fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// The only child of a launcher that runs as root.
pub fn zygote_of(launcher: i32) -> i32 {
    let root = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.contains("zygote.py"));
    children(launcher).into_iter().find(root).expect("a zygote")
}

pub fn signal(pid: i32, signal: i32) {
    let signal = nix::sys::signal::Signal::try_from(signal).expect("a signal");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("a process to signal");
}

/// The addresses of this machine that the outside can see.
pub fn own_addresses() -> Vec<Ipv4Addr> {
    let addresses = nix::ifaddrs::getifaddrs().expect("addresses");
    let v4 = addresses.filter_map(|a| Some((a.interface_name, a.address?.as_sockaddr_in()?.ip())));
    v4.filter(|(name, ip)| !ip.is_loopback() && !name.starts_with("dh")).map(|(_, ip)| ip).collect()
}
