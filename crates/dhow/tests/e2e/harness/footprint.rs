//! What a platform leaves on the machine it ran on.

use std::path::Path;
use std::process::Command;

/// Everything on this machine that only running instances need, and that must be gone after them.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Footprint {
    pub sandboxed_processes: usize,
    pub cgroups: usize,
    pub links: usize,
    pub tables: usize,
    pub mounts: usize,
}

/// Keeps platforms that start from taking the slot.
pub fn hold(slot: &str) -> Option<nix::fcntl::Flock<std::fs::File>> {
    let file = std::fs::File::open(format!("/run/dhow/slots/{slot}.lock")).expect("the slot's lock");
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).ok()
}

/// What is left of platforms whose slot nobody holds. Only meaningful while no other platform can take it.
pub fn footprint(slot: &str) -> Footprint {
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
    };
    let prefix = format!("dhow-{slot}");
    let count_dirs = |root: &str| walk_dirs(Path::new(root)).iter().filter(|d| d.contains(&prefix)).count();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten().filter(|entry| {
        std::fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|c| c.contains(&format!("/{prefix}")))
    });
    Footprint {
        sandboxed_processes: processes.count(),
        cgroups: count_dirs("/sys/fs/cgroup"),
        links: run("ip", &["-o", "link"]).matches(&format!("dh{slot}-")).count(),
        tables: run("nft", &["list", "tables"]).matches(&format!("dhow_{slot}\n")).count(),
        mounts: std::fs::read_to_string("/proc/self/mounts").expect("mounts").matches("dhow-e2e-").count(),
    }
}

/// The shares of a processor that the platform's cgroups may use at most, those without a limit left out.
pub fn cpu_shares(slot: &str) -> Vec<f64> {
    let number = |dir: &str, file: &str| -> Option<f64> {
        std::fs::read_to_string(Path::new(dir).join(file)).ok()?.trim().parse().ok()
    };
    let of_group = |dir: &String| match number(dir, "cpu.cfs_quota_us") {
        Some(quota) => Some(quota / number(dir, "cpu.cfs_period_us")?),
        None => {
            let text = std::fs::read_to_string(Path::new(dir).join("cpu.max")).ok()?;
            let (quota, period) = text.trim().split_once(' ')?;
            Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
        }
    };
    let prefix = format!("dhow-{slot}");
    let groups = walk_dirs(Path::new("/sys/fs/cgroup")).into_iter().filter(|d| d.contains(&prefix));
    groups.filter_map(|dir| of_group(&dir)).filter(|share| *share > 0.0).collect()
}

fn walk_dirs(dir: &Path) -> Vec<String> {
    let mut found = vec![];
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.push(path.display().to_string());
            found.extend(walk_dirs(&path));
        }
    }
    found
}
