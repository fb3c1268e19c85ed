//! The walls: what a sandbox is made of before anything runs in it, and the stock of it.
//!
//! Owns the slot and everything in it: users, cgroups, roots, networks. Must not know which process runs where.
//! Making a sandbox costs more than starting a program, so a few are always made ahead, between other work.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use nix::sched::CloneFlags;
use nix::unistd::sethostname;

use super::cgroup::{Cgroup, Tree};
use super::net::{self, Net, Network};
use super::place::Home;
use super::plan::{CELLS, Controller, Ground, resolvers};
use super::root::{Furniture, Placed, Roots};
use super::slot::{self, Slot};
use super::volumes::{Held, Volumes};
use crate::provider::{self, ContainerSpec, Source};
use crate::wire::Start;

/// How many sandboxes are made ahead before the first is asked for, and after.
const STOCK_IDLE: usize = 2;
const STOCK_BUSY: usize = 16;

/// What belongs to one container.
pub struct Cell {
    /// Of its user; absent where the sandbox holds it, since several containers share it.
    number: Option<u32>,
    pub user: u32,
    /// Held by the container's processes alone once they run.
    pub root: Option<OwnedFd>,
    pub cgroup: Cgroup,
}

impl Cell {
    /// The number of its user, for a sandbox that outlives this container.
    pub fn lend(&mut self) -> Option<(u32, u32)> {
        self.number.take().map(|number| (number, self.user))
    }

    /// Lets go of every handle that was needed to start the container.
    pub fn started(&mut self) {
        self.root = None;
        self.cgroup.doors.clear();
    }
}

pub struct Isolation {
    home: Home,
    ground: Ground,
    /// Taken as long as anything of it is there.
    slot: Option<Slot>,
    tree: Tree,
    network: Network,
    roots: Roots,
    pub volumes: Volumes,
    cells: Numbers,
    addresses: Numbers,
    stock: (VecDeque<Cell>, VecDeque<Net>),
    wanted: usize,
    /// Cgroups whose last process has not quite gone.
    leftovers: Vec<Cell>,
    zygotes: u64,
}

impl Isolation {
    /// Takes a slot and puts up what all its sandboxes share. Also says what cannot be had.
    pub fn set_up(start: &Start) -> io::Result<(Self, Vec<String>)> {
        let ground = |number| Ground::new(number, start.pod_cidr, start.uid_base);
        let slot = slot::take(ground)?;
        let ground = ground(slot.number);
        match Self::fill(start, ground.clone()) {
            Ok((mut isolation, missing)) => {
                isolation.slot = Some(slot);
                Ok((isolation, missing))
            }
            Err(e) => {
                // What could not be finished must not stand around. If that fails too, the next platform cleans.
                let _ = slot.release(&ground);
                Err(e)
            }
        }
    }

    fn fill(start: &Start, ground: Ground) -> io::Result<(Self, Vec<String>)> {
        let mut tree = Tree::find(&ground.cgroup)?;
        let mut missing: Vec<String> = tree.prepare().into_iter().map(|(c, why)| without_controller(c, &why)).collect();
        let dns = match start.dns.is_empty() {
            true => resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
            false => start.dns.clone(),
        };
        let network = Network::open(&ground, &start.allow, &dns).or_else(|e| {
            // Half a network is none.
            slot::clean(&ground)?;
            tree.prepare();
            missing.push(without_network(&e));
            Network::closed()
        })?;
        let volumes = Volumes::set_up(&start.data_dir)?;
        let mut isolation = Self {
            home: Home::remember()?,
            volumes,
            slot: None,
            tree,
            network,
            roots: Roots::new(&start.data_dir, &start.assets, &dns)?,
            cells: Numbers::new(CELLS),
            addresses: Numbers::new(ground.addresses()),
            ground,
            stock: Default::default(),
            wanted: STOCK_IDLE,
            leftovers: vec![],
            zygotes: 0,
        };
        // One of each proves that this kernel and this user can make them at all.
        let (cell, net) = (isolation.make_cell()?, isolation.make_net()?);
        isolation.stock.0.push_back(cell);
        isolation.stock.1.push_back(net);
        Ok((isolation, missing))
    }

    pub fn slot(&self) -> u32 {
        self.ground.slot
    }

    pub fn host_address(&self) -> Option<Ipv4Addr> {
        self.network.host_address()
    }

    pub fn permit(&self, address: SocketAddrV4) -> io::Result<()> {
        self.network.permit(address)
    }

    /// Makes one more piece of stock; `false` when there is enough.
    pub fn refill(&mut self) -> io::Result<bool> {
        if self.stock.0.len() < self.wanted {
            let cell = self.make_cell()?;
            self.stock.0.push_back(cell);
        } else if self.stock.1.len() < self.wanted {
            let net = self.make_net()?;
            self.stock.1.push_back(net);
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Stops making stock for a while: making it fails.
    pub fn pause_refill(&mut self) {
        self.wanted = 0;
    }

    pub fn take_net(&mut self, host_name: &str, network: &provider::Network) -> io::Result<Net> {
        self.wanted = STOCK_BUSY;
        let net = match self.stock.1.pop_front() {
            Some(net) => net,
            None => self.make_net()?,
        };
        let name: String = host_name.chars().take(63).collect();
        self.home.within(&net.uts, CloneFlags::CLONE_NEWUTS, || Ok(sethostname(&name)?))?;
        if let (provider::Network::Only(SocketAddr::V4(to)), Some(address)) = (network, net.address) {
            self.network.restrict(address, *to)?;
        }
        Ok(net)
    }

    /// The listener of a sandbox that serves on one.
    pub fn listen(&self, net: &Net) -> io::Result<Option<OwnedFd>> {
        net.address.map(|address| net::listen(&self.home, net, address)).transpose()
    }

    pub fn take_cell(
        &mut self,
        spec: &ContainerSpec,
        volumes: &Held,
        host_name: &str,
        address: Option<Ipv4Addr>,
        user: Option<u32>,
    ) -> io::Result<Cell> {
        let mut mounts = vec![];
        for mount in &spec.mounts {
            let given = mount.writable && matches!(mount.source, Source::Host(_));
            mounts.push(Placed { host: volumes.place(mount)?, inside: &mount.inside, writable: mount.writable, given });
        }
        mounts.sort_by_key(|mount| mount.inside.split('/').count());
        let mut cell = match self.stock.0.pop_front() {
            Some(cell) => cell,
            None => self.make_cell()?,
        };
        let made_for = cell.user;
        if let Some(user) = user {
            // Its own is nobody's for the time being.
            self.give_back(cell.number.take());
            cell.user = user;
        }
        let named = address.map_or_else(String::new, |a| format!("{a} {host_name}\n"));
        let furniture = Furniture {
            user: cell.user,
            made_for,
            root: &spec.root,
            mounts: &mounts,
            tmp_bytes: spec.limits.tmp_bytes,
            hosts: &format!("127.0.0.1 localhost\n{named}"),
            host_name,
        };
        let limited = self.tree.limit(&cell.cgroup, &spec.limits);
        let root = cell.root.as_ref().expect("a new cell has a root");
        match limited.and_then(|()| self.roots.furnish(&self.home, root, &furniture)) {
            Ok(()) => Ok(cell),
            Err(e) => {
                self.release_cell(cell);
                Err(e)
            }
        }
    }

    /// A user that no process has any more.
    pub fn give_back(&mut self, number: Option<u32>) {
        if let Some(number) = number {
            self.cells.give_back(number);
        }
    }

    /// Gives a cell back after its last process; whatever is still in its cgroup is killed.
    pub fn release_cell(&mut self, mut cell: Cell) {
        match cell.cgroup.remove() {
            true => self.give_back(cell.number),
            false => {
                cell.cgroup.kill();
                self.leftovers.push(cell);
            }
        }
    }

    /// Runs `work` in some namespaces of a container that runs. One that is still on its way there is
    /// [`io::ErrorKind::NotFound`], as one that has ended is.
    pub fn beside<T>(
        &self,
        (pid, pidfd): (i32, &OwnedFd),
        kinds: CloneFlags,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        // The number may be another's by now: then the handle is of a dead process, which has no namespaces.
        if !self.home.is_left_by(pid)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.home.within(pidfd, kinds, work)
    }

    /// Ends a sandbox's network. `only` is the address it was restricted to.
    pub fn release_net(
        &mut self,
        number: u32,
        address: Option<Ipv4Addr>,
        network: &provider::Network,
    ) -> io::Result<()> {
        self.addresses.give_back(number);
        match (network, address) {
            (provider::Network::Only(SocketAddr::V4(to)), Some(address)) => self.network.unrestrict(address, *to),
            _ => Ok(()),
        }
    }

    /// Tries again to remove cgroups that were not empty; `true` when none is left.
    pub fn tidy(&mut self) -> bool {
        for cell in std::mem::take(&mut self.leftovers) {
            self.release_cell(cell);
        }
        self.leftovers.is_empty()
    }

    /// A cgroup for a zygote, which has no other wall.
    pub fn zygote_cgroup(&mut self) -> io::Result<Cgroup> {
        self.zygotes += 1;
        self.tree.make(&format!("z{}", self.zygotes))
    }

    /// Kills everything, removes everything, gives the slot back.
    pub fn tear_down(self) -> io::Result<()> {
        drop(self.stock);
        self.slot.map_or(Ok(()), |slot| slot.release(&self.ground))
    }

    fn make_cell(&mut self) -> io::Result<Cell> {
        let number = self.cells.take()?;
        let user = self.ground.uid_base + number;
        let cell = self.tree.make(&format!("c{number}")).and_then(|mut cgroup| {
            match self.roots.make(&self.home, user, &self.tree.views(&cgroup)) {
                Ok(root) => Ok(Cell { number: Some(number), user, root: Some(root), cgroup }),
                Err(e) => {
                    cgroup.remove();
                    Err(e)
                }
            }
        });
        cell.inspect_err(|_| self.cells.give_back(number))
    }

    fn make_net(&mut self) -> io::Result<Net> {
        let number = self.addresses.take()?;
        let net = self.network.make(&self.home, number, self.ground.pod(number));
        net.inspect_err(|_| self.addresses.give_back(number))
    }
}

fn without_controller(controller: Controller, why: &str) -> String {
    let what = match controller {
        Controller::Memory => "Memory limits are not enforced",
        Controller::Cpu => "CPU limits are not enforced",
        Controller::Pids => "The number of processes in a pod is not limited",
    };
    format!("{what}: {why}.")
}

fn without_network(error: &io::Error) -> String {
    let help = match error.kind() {
        io::ErrorKind::NotFound => "; install nftables (apt-get install nftables)",
        _ => "",
    };
    format!(
        "Pods have no network and are served over Unix sockets, because no firewall could be put up: {error}{help}."
    )
}

/// Hands out numbers in turn, so that one just given back is the last to be handed out again: an address or user
/// that somebody still remembers is not somebody else's the next moment.
struct Numbers {
    used: Vec<bool>,
    next: usize,
}

impl Numbers {
    fn new(count: u32) -> Self {
        Self { used: vec![false; count as usize], next: 0 }
    }

    fn take(&mut self) -> io::Result<u32> {
        let count = self.used.len();
        let free = (0..count).map(|i| (self.next + i) % count).find(|n| !self.used[*n]);
        let number = free.ok_or_else(|| io::Error::from(io::ErrorKind::QuotaExceeded))?;
        self.used[number] = true;
        self.next = (number + 1) % count;
        Ok(number as u32)
    }

    fn give_back(&mut self, number: u32) {
        self.used[number as usize] = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_last() {
        let mut numbers = Numbers::new(3);
        assert_eq!([numbers.take().ok(), numbers.take().ok()], [Some(0), Some(1)]);
        numbers.give_back(0);
        assert_eq!([numbers.take().ok(), numbers.take().ok(), numbers.take().ok()], [Some(2), Some(0), None]);
    }
}
