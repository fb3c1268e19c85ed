//! The launcher's decisions: which ranges a slot owns, which cgroup files get which values, the firewall's text,
//! what a spec may ask for.
//!
//! Owns every choice that needs no kernel. Must not know files, sockets or time.

use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::provider::{ContainerSpec, Limits, Network, Program, Root, SandboxSpec, Serve, Source, Volume};

/// How many platforms may run on one machine at once.
pub const SLOTS: u32 = 32;
/// Users, addresses and cgroups that one slot may hand out.
pub const CELLS: u32 = 2000;
/// The distance between two slots' first users, and the size of a slot's address range.
const SPAN: u32 = 2048;
/// The first user of slot 0: above the system's, the people's and the first ranges of `/etc/subuid`.
const UID_BASE: u32 = 200_000;
/// The ranges of all slots: 10.201.0.0/16, slot n owning its n-th /21.
const POD_BASE: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 0);
/// Pods find the socket they are served on here, whatever their manifest says.
pub const SERVE_PORT: u16 = api::names::DEFAULT_PORT;

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    first: u32,
    prefix: u8,
}

impl Cidr {
    /// The n-th address.
    pub fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first + n)
    }

    /// How many pods fit: all addresses but the first, the host's and the last.
    fn pods(self) -> u32 {
        (1u32 << (32 - self.prefix)).saturating_sub(3)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no range of IPv4 addresses such as 10.201.0.0/21, of 8 to 29 bits");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().ok().filter(|p| (8..=29).contains(p)).ok_or_else(wrong)?;
        let first = u32::from(address);
        if first & ((1u32 << (32 - prefix)) - 1) != 0 {
            return Err(wrong());
        }
        Ok(Self { first, prefix })
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.nth(0), self.prefix)
    }
}

/// What one slot owns on this machine. Nobody else uses these names and ranges, so whatever carries them and has
/// no living owner may be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ground {
    pub slot: u32,
    pub pods: Cidr,
    pub uid_base: u32,
    /// The parent of the slot's cgroups.
    pub cgroup: String,
    /// What the host's ends of the pods' links are called, without the number.
    pub link: String,
    pub table: String,
}

impl Ground {
    pub fn new(slot: u32, pods: Option<Cidr>, uid_base: Option<u32>) -> Self {
        let range = Cidr { first: u32::from(POD_BASE) + slot * SPAN, prefix: 21 };
        Self {
            slot,
            pods: pods.unwrap_or(range),
            uid_base: uid_base.unwrap_or(UID_BASE) + slot * SPAN,
            cgroup: format!("dhow-{slot}"),
            link: format!("dh{slot}-"),
            table: format!("dhow_{slot}"),
        }
    }

    /// The host's address, as pods see it.
    pub fn host(&self) -> Ipv4Addr {
        self.pods.nth(1)
    }

    pub fn pod(&self, index: u32) -> Ipv4Addr {
        self.pods.nth(2 + index)
    }

    /// How many sandboxes may have an address at once.
    pub fn addresses(&self) -> u32 {
        self.pods.pods().min(CELLS)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    Memory,
    Cpu,
    Pids,
}

/// One mounted cgroup tree, and which of the controllers we use live there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub root: PathBuf,
    pub unified: bool,
    pub controllers: Vec<Controller>,
}

/// Finds each controller in `/proc/self/mountinfo`: where it is mounted by itself, else in the unified tree, whose
/// `cgroup.controllers` is given.
pub fn hierarchies(mountinfo: &str, unified: impl Fn(&Path) -> String) -> Vec<Hierarchy> {
    let wanted = [("memory", Controller::Memory), ("cpu", Controller::Cpu), ("pids", Controller::Pids)];
    let mut found: BTreeMap<PathBuf, Hierarchy> = BTreeMap::new();
    let mut add = |root: &str, unified: bool, controller| {
        let new = || Hierarchy { root: root.into(), unified, controllers: vec![] };
        found.entry(root.into()).or_insert_with(new).controllers.push(controller);
    };
    let mounts: Vec<(&str, &str, &str)> = mountinfo.lines().filter_map(cgroup_mount).collect();
    for (name, controller) in wanted {
        let own = mounts.iter().find(|(_, kind, options)| *kind == "cgroup" && options.split(',').any(|o| o == name));
        let shared = || {
            let here = |root: &str| unified(Path::new(root)).split_whitespace().any(|c| c == name);
            mounts.iter().find(|(root, kind, _)| *kind == "cgroup2" && here(root))
        };
        if let Some((root, kind, _)) = own.or_else(shared) {
            add(root, *kind == "cgroup2", controller);
        }
    }
    found.into_values().collect()
}

/// The mount point, the kind and the options of a line about a cgroup tree.
fn cgroup_mount(line: &str) -> Option<(&str, &str, &str)> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let kind = right.next().filter(|k| k.starts_with("cgroup"))?;
    Some((left.split(' ').nth(4)?, kind, right.nth(1)?))
}

/// A value for a file of a cgroup. An optional one may be missing in this kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub file: &'static str,
    pub value: String,
    pub optional: bool,
}

/// What to write, in order, for a container's limits in one hierarchy.
pub fn settings(hierarchy: &Hierarchy, limits: &Limits) -> Vec<Setting> {
    const PERIOD_US: u64 = 100_000;
    // The kernel refuses quotas below a millisecond.
    let quota = |millis: u64| (millis * PERIOD_US / 1000).max(1000);
    let mut rows = vec![];
    let mut put = |file, value: String, optional| rows.push(Setting { file, value, optional });
    for controller in &hierarchy.controllers {
        match (controller, hierarchy.unified) {
            (Controller::Memory, unified) => {
                let Some(bytes) = limits.memory_bytes else { continue };
                let (memory, swap, most_swap) = match unified {
                    false => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes),
                    true => ("memory.max", "memory.swap.max", 0),
                };
                put(memory, bytes.to_string(), false);
                put(swap, most_swap.to_string(), true);
            }
            (Controller::Cpu, unified) => {
                if let Some(millis) = limits.cpu_request_millis {
                    let shares = (millis * 1024 / 1000).clamp(2, 262_144);
                    // As container runtimes turn one into the other.
                    let weight = 1 + (shares - 2) * 9999 / 262_142;
                    put(
                        if unified { "cpu.weight" } else { "cpu.shares" },
                        if unified { weight } else { shares }.to_string(),
                        false,
                    );
                }
                let Some(millis) = limits.cpu_millis else { continue };
                match unified {
                    false => {
                        put("cpu.cfs_period_us", PERIOD_US.to_string(), false);
                        put("cpu.cfs_quota_us", quota(millis).to_string(), false);
                    }
                    true => put("cpu.max", format!("{} {PERIOD_US}", quota(millis)), false),
                }
            }
            (Controller::Pids, _) => put("pids.max", limits.pids.to_string(), false),
        }
    }
    rows
}

/// How many times the kernel killed for want of memory, from `memory.oom_control` or `memory.events`.
pub fn memory_kills(text: &str) -> u64 {
    text.lines().find_map(|l| l.strip_prefix("oom_kill ")).and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

/// Ranges that are never the public internet.
const PRIVATE: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// Where a container sees its own cgroups, given that a file system of its own is at [`CGROUPS`] unless one of these is.
pub fn cgroup_views(hierarchy: &Hierarchy, others: bool) -> Vec<String> {
    match (hierarchy.unified, others) {
        (true, false) => vec![CGROUPS.to_owned()],
        (true, true) => vec![format!("{CGROUPS}/unified")],
        (false, _) => {
            let name = |controller: &Controller| match controller {
                Controller::Memory => "memory",
                Controller::Cpu => "cpu",
                Controller::Pids => "pids",
            };
            hierarchy.controllers.iter().map(|controller| format!("{CGROUPS}/{}", name(controller))).collect()
        }
    }
}

/// The firewall of one slot. `forwarding` names the interfaces on which this platform had to turn forwarding on:
/// they forwarded nothing before, so they must forward nothing but pods' traffic now. What is sent to a pod that is gone
/// has no route but the default one: it must be refused here, and not be answered by a stranger.
pub fn ruleset(ground: &Ground, allow: &[SocketAddrV4], dns: &[Ipv4Addr], forwarding: &[String]) -> String {
    let (table, link, pods) = (&ground.table, format!("\"{}*\"", ground.link), ground.pods);
    let elements = |items: Vec<String>| match items.is_empty() {
        true => String::new(),
        false => format!(" elements = {{ {} }};", items.join(", ")),
    };
    let allowed = elements(allow.iter().map(|a| format!("{} . {}", a.ip(), a.port())).collect());
    let resolvers = elements(dns.iter().map(Ipv4Addr::to_string).collect());
    let mut guard = String::new();
    for interface in forwarding {
        writeln!(guard, "  iifname \"{interface}\" oifname != \"dh*\" drop").expect("a String takes every write");
    }
    format!(
        r#"table inet {table}
delete table inet {table}
table inet {table} {{
 set allowed {{ type ipv4_addr . inet_service;{allowed} }}
 set resolvers {{ type ipv4_addr;{resolvers} }}
 set restricted {{ type ipv4_addr; }}
 set only {{ type ipv4_addr . ipv4_addr . inet_service; }}
 chain from_pod {{
  ct state established,related accept
  meta nfproto != ipv4 drop
  ip saddr != {pods} drop
  ip saddr @restricted ip saddr . ip daddr . tcp dport @only accept
  ip saddr @restricted reject with icmpx type admin-prohibited
  ip daddr . tcp dport @allowed accept
  ip daddr @resolvers udp dport 53 accept
  ip daddr @resolvers tcp dport 53 accept
 }}
 chain input {{
  type filter hook input priority -5; policy accept;
  iifname {link} jump from_pod
  iifname {link} reject with icmpx type admin-prohibited
 }}
 chain forward {{
  type filter hook forward priority -5; policy accept;
  iifname {link} jump from_pod
  iifname {link} oifname "dh*" reject with icmpx type admin-prohibited
  iifname {link} ip daddr {{ {private} }} reject with icmpx type admin-prohibited
  iifname {link} accept
  oifname {link} ct state established,related accept
  oifname {link} drop
{guard} }}
 chain output {{
  type filter hook output priority -5; policy accept;
  ip daddr {pods} oifname != {link} oifname != "lo" meta l4proto tcp reject with tcp reset
  ip daddr {pods} oifname != {link} oifname != "lo" reject with icmpx type host-unreachable
 }}
 chain outward {{
  type nat hook postrouting priority 100; policy accept;
  ip saddr {pods} oifname != "dh*" masquerade
 }}
}}
"#,
        private = PRIVATE.join(", "),
    )
}

/// The resolvers a pod can use: not those that only listen on the host's loopback.
pub fn resolvers(resolv_conf: &str) -> Vec<Ipv4Addr> {
    let server = |line: &str| line.trim().strip_prefix("nameserver")?.trim().parse::<Ipv4Addr>().ok();
    resolv_conf.lines().filter_map(server).filter(|a| !a.is_loopback()).collect()
}

/// Where programs look for their cgroups.
pub const CGROUPS: &str = "/sys/fs/cgroup";
/// Folders of the host's system that a mount may not cover or add to, and of any.
const TAKEN_OF_HOST: &[&str] = &["bin", "dhow", "lib", "lib32", "lib64", "libx32", "sbin", "tmp", "usr"];
const TAKEN: &[&str] = &["dev", "proc", "sys"];
/// The most volumes of one sandbox: each is a descriptor beside the message that asks for it.
const VOLUMES: usize = 32;

/// Why a spec cannot be run at all, if so.
pub fn refusal(spec: &SandboxSpec) -> Option<String> {
    let names = [("uid", &spec.uid)].into_iter().chain(spec.containers.iter().map(|c| ("container name", &c.name)));
    let names = names.chain(spec.volumes.iter().map(|v| ("volume name", &v.name)));
    for (what, name) in names {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.bytes().all(fits) {
            return Some(format!("the {what} {name:?} is not made of letters, digits, '-', '_' and '.'"));
        }
    }
    let mut seen: Vec<&str> = spec.containers.iter().map(|c| c.name.as_str()).collect();
    seen.sort_unstable();
    seen.dedup();
    let sockets = spec.containers.iter().filter(|c| c.serve == Serve::Socket).count();
    match spec.containers.len() {
        0 => return Some("it has no container".to_owned()),
        n if n > 16 => return Some(format!("it has {n} containers; at most 16 are run together")),
        n if n != seen.len() => return Some("two containers have the same name".to_owned()),
        _ if sockets > 1 => return Some("more than one container serves the sandbox's socket".to_owned()),
        _ => {}
    }
    if matches!(spec.network, Network::Only(SocketAddr::V6(_))) {
        return Some("sandboxes speak IPv4 only".to_owned());
    }
    volume_refusal(&spec.volumes).or_else(|| spec.containers.iter().find_map(|c| container_refusal(c, &spec.volumes)))
}

fn volume_refusal(volumes: &[Volume]) -> Option<String> {
    let names: HashSet<&str> = volumes.iter().map(|v| v.name.as_str()).collect();
    if volumes.len() > VOLUMES {
        return Some(format!("it has {} volumes; at most {VOLUMES} are mounted", volumes.len()));
    }
    if names.len() != volumes.len() {
        return Some("two volumes have the same name".to_owned());
    }
    volumes.iter().find_map(|volume| {
        let bad = volume.files.iter().find(|file| !api::function::is_relative_path(&file.path))?;
        Some(format!("volume {}: {:?} is no path of a file in it", volume.name, bad.path))
    })
}

fn container_refusal(container: &ContainerSpec, volumes: &[Volume]) -> Option<String> {
    let name = &container.name;
    if let Program::Exec { argv } = &container.program
        && !argv.first().is_some_and(|program| program.starts_with('/'))
    {
        return Some(format!("container {name}: the program must be an absolute path"));
    }
    if !inside(&container.working_dir) && container.working_dir != "/" {
        return Some(format!("container {name}: the working folder {:?} is no absolute path", container.working_dir));
    }
    for mount in &container.mounts {
        let top = mount.inside.split('/').nth(1).unwrap_or_default();
        let taken = TAKEN.contains(&top) || container.root == Root::Host && TAKEN_OF_HOST.contains(&top);
        if !inside(&mount.inside) || taken {
            return Some(format!("container {name}: nothing can be mounted at {:?}", mount.inside));
        }
        match &mount.source {
            Source::Host(folder) if !folder.is_absolute() => {
                return Some(format!("container {name}: {} is no absolute path", folder.display()));
            }
            Source::Volume { path, .. } if !path.is_empty() && !api::function::is_relative_path(path) => {
                return Some(format!("container {name}: {path:?} is no path in a volume"));
            }
            Source::Volume { name: volume, .. } if !volumes.iter().any(|v| v.name == *volume) => {
                return Some(format!("container {name}: there is no volume {volume}"));
            }
            Source::Host(_) | Source::Volume { .. } => {}
        }
    }
    let zero = |text: &String| text.contains('\0');
    let broken = container.env.iter().any(|(k, v)| k.is_empty() || k.contains('=') || zero(k) || zero(v));
    broken.then(|| format!("container {name}: an environment variable has a name or value that no program can get"))
}

/// Whether this is an absolute path below the root, without `.` and `..`.
fn inside(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(api::function::is_relative_path)
}

/// A path inside a sandbox as the host sees it: what a degraded sandbox, which has no mounts, must use instead.
pub fn on_host(text: &str, mounts: &[(String, PathBuf)]) -> String {
    let under = |inside: &str| match text.strip_prefix(inside) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Some(rest.to_owned()),
        _ => None,
    };
    let longest = mounts.iter().filter_map(|(i, host)| Some((i.len(), host, under(i)?))).max_by_key(|(len, ..)| *len);
    longest.map_or_else(|| text.to_owned(), |(_, host, rest)| format!("{}{rest}", host.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{Mount, VolumeFile};

    #[test]
    fn ranges_of_slots_do_not_meet() {
        let grounds: Vec<_> = (0..SLOTS).map(|slot| Ground::new(slot, None, None)).collect();
        for pair in grounds.windows(2) {
            assert!(pair[0].pod(pair[0].addresses() - 1) < pair[1].host());
            assert!(pair[0].uid_base + CELLS <= pair[1].uid_base);
        }
        assert_eq!(grounds[1].host(), Ipv4Addr::new(10, 201, 8, 1));
        assert_eq!(grounds[31].pod(CELLS - 1).octets()[..2], [10, 201]);
        assert_eq!(Ground::new(3, "10.9.0.0/29".parse().ok(), None).addresses(), 5);
    }

    #[test]
    fn cidr_text() {
        for (text, fine) in [
            ("10.201.0.0/21", true),
            ("10.201.4.0/21", false),
            ("10.0.0.0/8", true),
            ("10.0.0.0/30", false),
            ("0.0.0.0/0", false),
            ("fd00::/64", false),
            ("10.0.0.0", false),
        ] {
            let parsed = text.parse::<Cidr>();
            assert_eq!(parsed.is_ok(), fine, "{text}");
            assert!(parsed.is_err() || parsed.is_ok_and(|c| c.to_string() == text));
        }
    }

    fn hierarchy(root: &str, unified: bool, controllers: &[Controller]) -> Hierarchy {
        Hierarchy { root: root.into(), unified, controllers: controllers.to_vec() }
    }

    #[test]
    fn where_controllers_live() {
        use Controller::{Cpu, Memory, Pids};
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                  35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:3 - cgroup cgroup rw,memory\n\
                  39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
                  22 27 0:21 / /proc rw,relatime - proc proc rw\n\
                  41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let v2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let mixed = "35 31 0:32 / /cg/memory rw - cgroup cgroup rw,memory\n41 31 0:38 / /cg/all rw - cgroup2 none rw";
        let want_v1 = vec![
            hierarchy("/sys/fs/cgroup/cpu,cpuacct", false, &[Cpu]),
            hierarchy("/sys/fs/cgroup/memory", false, &[Memory]),
            hierarchy("/sys/fs/cgroup/pids", false, &[Pids]),
        ];
        for (mountinfo, controllers, want) in [
            (v1, "hugetlb", want_v1),
            (v2, "cpuset cpu io memory pids", vec![hierarchy("/sys/fs/cgroup", true, &[Memory, Cpu, Pids])]),
            (v2, "pids", vec![hierarchy("/sys/fs/cgroup", true, &[Pids])]),
            (
                mixed,
                "cpu pids",
                vec![hierarchy("/cg/all", true, &[Cpu, Pids]), hierarchy("/cg/memory", false, &[Memory])],
            ),
            ("", "memory", vec![]),
        ] {
            assert_eq!(hierarchies(mountinfo, |_| controllers.to_owned()), want, "{mountinfo}");
        }
    }

    #[test]
    fn limits_as_settings() {
        use Controller::{Cpu, Memory, Pids};
        let all = [Memory, Cpu, Pids];
        let limits = Limits { memory_bytes: Some(128 << 20), cpu_millis: Some(1500), pids: 64, ..Limits::default() };
        let tiny = Limits { cpu_millis: Some(5), ..Limits::default() };
        let asks = Limits { cpu_request_millis: Some(125), ..Limits::default() };
        for (unified, limits, want) in [
            (
                false,
                &limits,
                "memory.limit_in_bytes=134217728 memory.memsw.limit_in_bytes=134217728? cpu.cfs_period_us=100000 \
                 cpu.cfs_quota_us=150000 pids.max=64",
            ),
            (true, &limits, "memory.max=134217728 memory.swap.max=0? cpu.max=150000 100000 pids.max=64"),
            (false, &tiny, "cpu.cfs_period_us=100000 cpu.cfs_quota_us=1000 pids.max=256"),
            (true, &Limits::default(), "pids.max=256"),
            (false, &asks, "cpu.shares=128 pids.max=256"),
            (true, &asks, "cpu.weight=5 pids.max=256"),
        ] {
            let rows = settings(&hierarchy("/", unified, &all), limits);
            let row = |r: &Setting| format!("{}={}{}", r.file, r.value, if r.optional { "?" } else { "" });
            assert_eq!(rows.iter().map(row).collect::<Vec<_>>().join(" "), want);
        }
    }

    #[test]
    fn kills_for_want_of_memory() {
        for (text, want) in [
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3),
            ("low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n", 1),
            ("oom_kill_disable 0\n", 0),
        ] {
            assert_eq!(memory_kills(text), want, "{text}");
        }
    }

    #[test]
    fn resolvers_that_pods_can_use() {
        let text = "# a\nnameserver 127.0.0.53\nnameserver 10.1.1.1\n nameserver 8.8.8.8 \nnameserver ::1\nsearch x\n";
        assert_eq!(resolvers(text), [Ipv4Addr::new(10, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)]);
    }

    #[test]
    fn firewall_names_what_it_is_given() {
        let ground = Ground::new(2, None, None);
        let gateway = SocketAddrV4::new(ground.host(), 7000);
        let text = ruleset(&ground, &[gateway], &[Ipv4Addr::new(9, 9, 9, 9)], &["eth0".to_owned()]);
        for part in [
            "table inet dhow_2\ndelete table inet dhow_2",
            "elements = { 10.201.16.1 . 7000 }",
            "elements = { 9.9.9.9 }",
            "iifname \"dh2-*\" jump from_pod",
            "169.254.0.0/16",
            "iifname \"eth0\" oifname != \"dh*\" drop",
            "ip saddr 10.201.16.0/21 oifname != \"dh*\" masquerade",
            "ip daddr 10.201.16.0/21 oifname != \"dh2-*\" oifname != \"lo\" meta l4proto tcp reject with tcp reset",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    fn spec() -> SandboxSpec {
        let container = ContainerSpec {
            name: "main".into(),
            init: false,
            root: Root::Host,
            program: Program::Exec { argv: vec!["/bin/true".into()] },
            user: None,
            env: vec![],
            working_dir: "/app".into(),
            mounts: vec![],
            limits: Limits::default(),
            serve: Serve::Nothing,
        };
        SandboxSpec {
            uid: "u-1".into(),
            namespace: "default".into(),
            name: "p".into(),
            network: Network::Pod,
            volumes: vec![],
            containers: vec![container],
        }
    }

    #[test]
    fn specs_that_are_refused() {
        type Edit = fn(&mut SandboxSpec);
        let mount = |s: &mut SandboxSpec, inside: &str| {
            let source = Source::Host("/x".into());
            s.containers[0].mounts = vec![Mount { source, inside: inside.into(), writable: false }];
        };
        let volume = |s: &mut SandboxSpec, file: &str, name: &str, path: &str| {
            let files = vec![VolumeFile { path: file.into(), mode: 0o644, content: vec![].into() }];
            s.volumes = vec![Volume { name: "v".into(), bytes: 1, files }];
            let source = Source::Volume { name: name.into(), path: path.into() };
            s.containers[0].mounts = vec![Mount { source, inside: "/v".into(), writable: false }];
        };
        for (file, name, path, want) in [
            ("f", "v", "", None),
            ("a/f", "v", "a", None),
            ("../f", "v", "", Some("no path of a file")),
            ("f", "v", "../x", Some("no path in a volume")),
            ("f", "other", "", Some("no volume other")),
        ] {
            let mut given = spec();
            volume(&mut given, file, name, path);
            let got = refusal(&given);
            assert_eq!(got.is_some(), want.is_some(), "{file} {name} {path}: {got:?}");
            assert!(want.is_none_or(|w| got.as_ref().is_some_and(|g| g.contains(w))), "{file} {name} {path}: {got:?}");
        }
        let rows: &[(Edit, Option<&str>)] = &[
            (|_| {}, None),
            (|s| s.uid = "../x".into(), Some("uid")),
            (|s| s.uid = String::new(), Some("uid")),
            (|s| s.containers.clear(), Some("no container")),
            (|s| s.containers.push(s.containers[0].clone()), Some("same name")),
            (|s| s.containers[0].working_dir = "app".into(), Some("working folder")),
            (|s| s.containers[0].program = Program::Exec { argv: vec!["sh".into()] }, Some("absolute path")),
            (|s| s.containers[0].program = Program::Exec { argv: vec![] }, Some("absolute path")),
            (|s| s.containers[0].env = vec![("A=B".into(), "".into())], Some("environment")),
            (|s| s.containers[0].env = vec![("A".into(), "\0".into())], Some("environment")),
            (|s| s.network = Network::Only(([0u16; 8], 1).into()), Some("IPv4")),
        ];
        for (number, (edit, want)) in rows.iter().enumerate() {
            let mut given = spec();
            edit(&mut given);
            let got = refusal(&given);
            assert_eq!(got.is_some(), want.is_some(), "row {number}: {got:?}");
            assert!(want.is_none_or(|w| got.as_ref().is_some_and(|g| g.contains(w))), "row {number}: {got:?}");
        }
        for (inside, fine) in
            [("/app", true), ("/etc/conf", true), ("/usr/lib/x", false), ("/a/../b", false), ("/", false), ("a", false)]
        {
            let mut given = spec();
            mount(&mut given, inside);
            assert_eq!(refusal(&given).is_none(), fine, "{inside}");
        }
    }

    #[test]
    fn paths_on_the_host() {
        let mounts = [("/app".to_owned(), PathBuf::from("/h/code")), ("/app/x".to_owned(), PathBuf::from("/h/x"))];
        for (text, want) in [
            ("/app", "/h/code"),
            ("/app/main.py", "/h/code/main.py"),
            ("/app/x/y", "/h/x/y"),
            ("/apple", "/apple"),
            ("main.handle", "main.handle"),
        ] {
            assert_eq!(on_host(text, &mounts), want);
        }
    }
}
