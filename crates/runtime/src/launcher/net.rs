//! Network namespaces of pods, and the host's side of them.
//!
//! Owns links, addresses, routes and the firewall of a slot. Must not know processes. There is no bridge: each pod
//! has one link with an address of its own, and the host routes to it. A namespace is held by nothing but its
//! descriptors and its processes, so it is gone with them, and the host's end of the link with it.

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::net::if_::if_nametoindex;
use nix::sched::CloneFlags;
use socket2::{Domain, Protocol, Socket, Type};

use super::netlink::{End, Netlink};
use super::place::{Home, current};
use super::plan::{Ground, SERVE_PORT, ruleset};

const HOST_MAC: [u8; 6] = [0x02, 0x64, 0x68, 0, 0, 1];
const POD_MAC: [u8; 6] = [0x02, 0x64, 0x68, 0, 0, 2];
const GATE_MAC: [u8; 6] = [0x02, 0x64, 0x68, 0, 0, 3];
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// Interfaces on which any platform of this machine turned forwarding on, one a line.
const FORWARDING: &str = "/run/dhow/forwarding";

/// The namespaces a sandbox's containers share.
pub struct Net {
    pub index: u32,
    /// Absent where pods have no network.
    pub address: Option<Ipv4Addr>,
    pub net: OwnedFd,
    pub ipc: OwnedFd,
    pub uts: OwnedFd,
}

/// The host's side: made once, removed at the end.
pub struct Network {
    host: Netlink,
    /// The links' names and the addresses; absent where pods have no network.
    routed: Option<Routed>,
}

struct Routed {
    link: String,
    table: String,
    host: Ipv4Addr,
}

/// The listener of a pod that serves on one, made where it is needed and no sooner: while a process is on its way into another
/// sandbox it has copies of all that the launcher holds, and the port of a container that listens itself must be free.
pub fn listen(home: &Home, net: &Net, address: Ipv4Addr) -> io::Result<OwnedFd> {
    home.within(&net.net, CloneFlags::CLONE_NEWNET, || {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        listener.set_reuse_address(true)?;
        listener.set_tcp_nodelay(true)?;
        listener.bind(&SocketAddrV4::new(address, SERVE_PORT).into())?;
        listener.listen(BACKLOG)?;
        Ok(listener.into())
    })
}

impl Network {
    /// Pods get a namespace without any link.
    pub fn closed() -> io::Result<Self> {
        Ok(Self { host: Netlink::open()?, routed: None })
    }

    /// Puts up the firewall first, then the host's address.
    pub fn open(ground: &Ground, allow: &[SocketAddrV4], dns: &[Ipv4Addr]) -> io::Result<Self> {
        let forwarding = turn_forwarding_on()?;
        nft(&ruleset(ground, allow, dns, &forwarding))?;
        let host = Netlink::open()?;
        let (near, far) = (gate(&ground.link), format!("{}gx", ground.link));
        // Its other end is of no use: a link that needs no kernel module but the one pods need anyway.
        host.add_pair(&End { name: &near, mac: HOST_MAC }, &End { name: &far, mac: GATE_MAC }, None)?;
        for name in [&near, &far] {
            forbid_ipv6(name);
            host.set_up(index_of(name)?)?;
        }
        host.add_address(index_of(&near)?, ground.host())?;
        let routed = Routed { link: ground.link.clone(), table: ground.table.clone(), host: ground.host() };
        Ok(Self { host, routed: Some(routed) })
    }

    pub fn host_address(&self) -> Option<Ipv4Addr> {
        self.routed.as_ref().map(|r| r.host)
    }

    /// New namespaces, with a link where pods have a network.
    pub fn make(&self, home: &Home, index: u32, address: Ipv4Addr) -> io::Result<Net> {
        let kinds = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        let net = home.in_new(kinds, || {
            let inside = Netlink::open()?;
            for scope in ["all", "default"] {
                forbid_ipv6(scope);
            }
            inside.set_up(index_of("lo")?)?;
            let mut made =
                Net { index, address: None, net: current("net")?, ipc: current("ipc")?, uts: current("uts")? };
            if let Some(routed) = &self.routed {
                routed.inside(&inside, home, index, address)?;
                made.address = Some(address);
            }
            Ok(made)
        })?;
        if let Some(routed) = &self.routed {
            self.outside(&routed.name(index), address, routed.host)?;
        }
        Ok(net)
    }

    fn outside(&self, link: &str, pod: Ipv4Addr, host: Ipv4Addr) -> io::Result<()> {
        forbid_ipv6(link);
        fs::write(format!("/proc/sys/net/ipv4/conf/{link}/forwarding"), "1")?;
        let index = index_of(link)?;
        self.host.set_up(index)?;
        self.host.add_route(index, Some(pod), None, Some(host))?;
        self.host.add_neighbour(index, pod, POD_MAC)
    }

    /// The pod may reach this address and nothing else.
    pub fn restrict(&self, pod: Ipv4Addr, to: SocketAddrV4) -> io::Result<()> {
        let Some(Routed { table, .. }) = &self.routed else { return Ok(()) };
        nft(&format!(
            "add element inet {table} only {{ {pod} . {} . {} }}\nadd element inet {table} restricted {{ {pod} }}\n",
            to.ip(),
            to.port()
        ))
    }

    pub fn unrestrict(&self, pod: Ipv4Addr, to: SocketAddrV4) -> io::Result<()> {
        let Some(Routed { table, .. }) = &self.routed else { return Ok(()) };
        nft(&format!(
            "delete element inet {table} only {{ {pod} . {} . {} }}\ndelete element inet {table} restricted {{ {pod} }}\n",
            to.ip(),
            to.port()
        ))
    }

    /// Every pod may reach this address too.
    pub fn permit(&self, to: SocketAddrV4) -> io::Result<()> {
        let Some(Routed { table, .. }) = &self.routed else { return Ok(()) };
        nft(&format!("add element inet {table} allowed {{ {} . {} }}\n", to.ip(), to.port()))
    }
}

impl Routed {
    fn name(&self, index: u32) -> String {
        format!("{}{index}", self.link)
    }

    /// The pod's end: address and routes.
    fn inside(&self, netlink: &Netlink, home: &Home, index: u32, address: Ipv4Addr) -> io::Result<()> {
        let (near, far) = (End { name: "eth0", mac: POD_MAC }, self.name(index));
        netlink.add_pair(&near, &End { name: &far, mac: HOST_MAC }, Some(home.net()))?;
        let link = index_of("eth0")?;
        netlink.add_address(link, address)?;
        netlink.set_up(link)?;
        netlink.add_route(link, Some(self.host), None, None)?;
        netlink.add_route(link, None, Some(self.host), None)?;
        netlink.add_neighbour(link, self.host, HOST_MAC)?;
        // Nobody is root inside, so the usual ports must not need it. Absent before Linux 4.11.
        let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
        Ok(())
    }
}

fn gate(link: &str) -> String {
    format!("{link}gw")
}

fn index_of(link: &str) -> io::Result<u32> {
    Ok(if_nametoindex(link)?)
}

/// Pods speak IPv4 only. Where the kernel has no IPv6 there is nothing to write to, and nothing to forbid.
fn forbid_ipv6(scope: &str) {
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
}

/// Removes what a slot's platform left on the host, if anything.
pub fn sweep(ground: &Ground) -> io::Result<()> {
    let netlink = Netlink::open()?;
    for entry in fs::read_dir("/sys/class/net")? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|n| n.starts_with(&ground.link)) else { continue };
        // Gone already is as good: the other end of a pair goes with the first, a pod's with its namespace.
        if let Ok(index) = index_of(name)
            && let Err(e) = netlink.delete_link(index)
            && e.raw_os_error() != Some(libc::ENODEV)
        {
            return Err(e);
        }
    }
    Ok(())
}

/// Removes the slot's firewall; when no table of a platform is left, forwarding goes back to what it was.
pub fn remove_firewall(ground: &Ground, last: bool) -> io::Result<()> {
    let table = &ground.table;
    // Declaring it first makes the deletion succeed whether or not it is there.
    nft(&format!("table inet {table}\ndelete table inet {table}\n"))?;
    if last && let Ok(interfaces) = fs::read_to_string(FORWARDING) {
        for interface in interfaces.lines() {
            fs::write(forwarding_file(interface), "0")?;
        }
        fs::remove_file(FORWARDING)?;
    }
    Ok(())
}

/// Lets the interfaces that lead to the outside forward, if they do not yet, and names those a platform changed.
fn turn_forwarding_on() -> io::Result<Vec<String>> {
    let mut changed: Vec<String> =
        fs::read_to_string(FORWARDING).unwrap_or_default().lines().map(str::to_owned).collect();
    let routes = fs::read_to_string("/proc/net/route")?;
    let outward = routes.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let interface = fields.next()?;
        (fields.next()? == "00000000").then_some(interface)
    });
    for interface in outward {
        let file = forwarding_file(interface);
        if fs::read_to_string(&file)?.trim() == "0" {
            // Recorded first: a crash between the two writes then leaves a record too many, not one too few.
            changed.push(interface.to_owned());
            fs::write(FORWARDING, changed.join("\n") + "\n")?;
            fs::write(&file, "1")?;
        }
    }
    changed.sort_unstable();
    changed.dedup();
    Ok(changed)
}

fn forwarding_file(interface: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{interface}/forwarding")
}

/// Runs one nftables script, all or nothing.
fn nft(script: &str) -> io::Result<()> {
    let program = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"].into_iter().find(|p| Path::new(p).exists());
    let missing = || io::Error::new(io::ErrorKind::NotFound, "the program nft is missing");
    let mut child = Command::new(program.ok_or_else(missing)?)
        .args(["-f", "-"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(io::Error::other(format!("nft: {}", text.lines().next().unwrap_or("failed").trim())))
        }
    }
}
