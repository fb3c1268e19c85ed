//! Making sandboxes here, with walls or, where the kernel or the user does not allow them, without.
//!
//! Owns the choice between the two. Must not know what happens to a sandbox after it was made.

use std::fs;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::enter::{Entry, Walls, Way, enter};
use super::image::users;
use super::isolation::{Cell, Isolation};
use super::net::Net;
use super::plan::{SERVE_PORT, on_host};
use super::sandbox::{Holdings, Member, Pipes, Rest, Sandbox, State};
use super::seccomp::{self, Instruction};
use super::sys::{self, Forked};
use super::volumes::Held;
use super::zygote::{Key, Recipe, Spawn, Zygotes};
use crate::assets::INSIDE;
use crate::provider::{Address, ContainerSpec, Program, Root, SandboxSpec, Serve, Source};
use crate::wire::{Hello, Refusal, Resource, Start};

/// The longest path a Unix socket can have.
const SOCKET_PATH_BYTES: usize = 107;

pub struct Site {
    start: Start,
    filter: Vec<Instruction>,
    isolation: Option<Isolation>,
    missing: Vec<String>,
    stocked: bool,
    sockets: u64,
}

impl Site {
    pub fn set_up(start: Start) -> io::Result<Self> {
        let sockets = start.data_dir.join("sockets");
        let _ = fs::remove_dir_all(&sockets);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&sockets)?;
        let (isolation, missing) = match nix::unistd::geteuid().is_root() {
            false => (None, without_walls("this process is not root; start dhow as root")),
            true => match Isolation::set_up(&start) {
                Ok((isolation, missing)) => (Some(isolation), missing),
                Err(e) => (None, without_walls(&format!("this machine does not allow them ({e})"))),
            },
        };
        let stocked = isolation.is_none();
        Ok(Self { start, filter: seccomp::filter(), isolation, missing, stocked, sockets: 0 })
    }

    pub fn hello(&self) -> Hello {
        Hello {
            slot: self.isolation.as_ref().map(Isolation::slot),
            host_address: self.isolation.as_ref().and_then(Isolation::host_address),
            missing_isolation: self.missing.clone(),
        }
    }

    pub fn permit(&self, address: SocketAddrV4) -> io::Result<()> {
        self.isolation.as_ref().map_or(Ok(()), |i| i.permit(address))
    }

    pub fn is_stocked(&self) -> bool {
        self.stocked
    }

    pub fn refill(&mut self) -> io::Result<()> {
        let Some(isolation) = &mut self.isolation else { return Ok(()) };
        let more = isolation.refill().inspect_err(|_| isolation.pause_refill());
        self.stocked = !matches!(more, Ok(true));
        more.map(drop)
    }

    pub fn tidy(&mut self) -> bool {
        self.isolation.as_mut().is_none_or(Isolation::tidy)
    }

    pub fn isolation(&self) -> Option<&Isolation> {
        self.isolation.as_ref()
    }

    pub fn filter(&self) -> &[Instruction] {
        &self.filter
    }

    pub fn release_cell(&mut self, cell: Cell) {
        if let Some(isolation) = &mut self.isolation {
            isolation.release_cell(cell);
        }
    }

    pub fn release(&mut self, sandbox: Sandbox) -> io::Result<()> {
        for cell in sandbox.members.into_iter().filter_map(|m| m.cell) {
            self.release_cell(cell);
        }
        self.give_back(&sandbox.holdings)
    }

    pub fn tear_down(self) -> io::Result<()> {
        let _ = fs::remove_dir_all(self.start.data_dir.join("sockets"));
        self.isolation.map_or(Ok(()), Isolation::tear_down)
    }

    /// Makes a sandbox and starts its programs, or undoes what was made.
    pub fn make(&mut self, spec: SandboxSpec, fds: Vec<OwnedFd>, zygotes: &mut Zygotes) -> Result<Sandbox, Refusal> {
        self.stocked = self.isolation.is_none();
        let (volumes, pipes) = sort(&spec, fds)?;
        let mut holdings =
            Holdings { network: spec.network.clone(), net: None, socket: None, volumes: Held::default(), user: None };
        let mut members = vec![];
        let held = self.hold(&spec, volumes, &mut holdings);
        let made = held.and_then(|()| self.fill(spec, pipes, zygotes, &mut holdings, &mut members));
        match made {
            Ok((address, rest)) => Ok(Sandbox {
                address,
                members,
                holdings,
                rest,
                announced: false,
                early: vec![],
                stopping: None,
                killed: false,
            }),
            Err(refusal) => {
                for member in members {
                    member.signal(libc::SIGKILL);
                    member.kill();
                    if let Some(cell) = member.cell {
                        self.release_cell(cell);
                    }
                }
                // The refusal says more than an error on the way back.
                let _ = self.give_back(&holdings);
                Err(refusal)
            }
        }
    }

    fn hold(&mut self, spec: &SandboxSpec, systems: Vec<OwnedFd>, holdings: &mut Holdings) -> Result<(), Refusal> {
        let Some(isolation) = &mut self.isolation else { return Ok(()) };
        isolation.volumes.hold(&spec.volumes, systems, &mut holdings.volumes).map_err(failed("mount a volume"))
    }

    fn fill(
        &mut self,
        spec: SandboxSpec,
        pipes: Vec<Pipes>,
        zygotes: &mut Zygotes,
        holdings: &mut Holdings,
        members: &mut Vec<Member>,
    ) -> Result<(Option<Address>, Option<Rest>), Refusal> {
        let net = match &mut self.isolation {
            Some(isolation) => Some(isolation.take_net(&spec.name, &spec.network).map_err(failed("make a network"))?),
            None => None,
        };
        holdings.net = net.as_ref().map(|n| (n.index, n.address));
        let serves = spec.containers.iter().any(|container| container.serve == Serve::Socket);
        let mut listener = match (&self.isolation, &net) {
            (Some(isolation), Some(net)) if serves => isolation.listen(net).map_err(failed("listen in the sandbox"))?,
            _ => None,
        };
        let address = self.address(&spec, net.as_ref(), &mut listener, holdings)?;
        let SandboxSpec { namespace, name, containers, .. } = spec;
        let containers = containers.into_iter().zip(pipes).collect();
        let mut rest = Rest { namespace, name, containers, net, listener };
        self.go_on(&mut rest, holdings, members, zygotes)?;
        let waits = !rest.containers.is_empty();
        Ok((address, waits.then_some(rest)))
    }

    /// Starts containers in their order, up to one that the next must wait for. One that cannot be started is a member that
    /// has ended.
    pub fn go_on(
        &mut self,
        rest: &mut Rest,
        holdings: &mut Holdings,
        members: &mut Vec<Member>,
        zygotes: &mut Zygotes,
    ) -> Result<(), Refusal> {
        while let Some((container, pipes)) = rest.containers.pop_front() {
            members.push(Member { state: State::Ended, cell: None });
            let member = members.last_mut().expect("it was just pushed");
            self.begin(&container, pipes, rest, holdings, member, zygotes)?;
            if container.init {
                break;
            }
        }
        Ok(())
    }

    fn begin(
        &mut self,
        container: &ContainerSpec,
        pipes: Pipes,
        rest: &mut Rest,
        holdings: &mut Holdings,
        member: &mut Member,
        zygotes: &mut Zygotes,
    ) -> Result<(), Refusal> {
        if self.isolation.is_none() && container.root != Root::Host {
            let reason =
                "an image needs a root of its own, and sandboxes have none here; start dhow as root".to_owned();
            return Err(Refusal::Unsupported { reason });
        }
        let ip = rest.net.as_ref().and_then(|n| n.address);
        if let Some(isolation) = &mut self.isolation {
            let user = holdings.user.map(|(_, user)| user);
            let cell = isolation.take_cell(container, &holdings.volumes, &rest.name, ip, user);
            let cell = member.cell.insert(cell.map_err(failed("make a sandbox"))?);
            if holdings.user.is_none() && !rest.containers.is_empty() {
                holdings.user = cell.lend();
            }
        }
        let listener = if container.serve == Serve::Socket { rest.listener.take() } else { None };
        let walls = rest.net.as_ref().zip(member.cell.as_mut());
        member.state = match &container.program {
            Program::Exec { argv } => self.exec(container, argv, &pipes, listener.as_ref(), walls)?,
            Program::Zygote { runtime } => {
                let key = (rest.namespace.clone(), runtime.clone());
                self.ask(container, key, pipes, listener, walls, zygotes)?
            }
        };
        Ok(())
    }

    /// Where the sandbox is reached; without a network of its own, over a Unix socket made now.
    fn address(
        &mut self,
        spec: &SandboxSpec,
        net: Option<&Net>,
        listener: &mut Option<OwnedFd>,
        holdings: &mut Holdings,
    ) -> Result<Option<Address>, Refusal> {
        let port = spec.containers.iter().find_map(|c| match c.serve {
            Serve::Port(port) => Some(port),
            Serve::Socket | Serve::Nothing => None,
        });
        let socket = spec.containers.iter().any(|c| c.serve == Serve::Socket);
        if let Some(ip) = net.and_then(|n| n.address) {
            let port = if socket { SERVE_PORT } else { port.unwrap_or(SERVE_PORT) };
            return Ok(Some(Address::Ip(SocketAddr::from((ip, port)))));
        }
        if port.is_some() {
            let reason = "it listens on a port of its own, and pods have no network here".to_owned();
            return Err(Refusal::Unsupported { reason });
        }
        if !socket {
            return Ok(None);
        }
        let (path, bound) = self.unix_socket().map_err(failed("make a Unix socket"))?;
        *listener = Some(bound);
        holdings.socket = Some(path.clone());
        Ok(Some(Address::Unix(path)))
    }

    fn unix_socket(&mut self) -> io::Result<(PathBuf, OwnedFd)> {
        self.sockets += 1;
        let path = self.start.data_dir.join("sockets").join(self.sockets.to_string());
        if path.as_os_str().len() > SOCKET_PATH_BYTES {
            let text = format!("{} is too long for a socket; choose a shorter data directory", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let listener = UnixListener::bind(&path)?;
        Ok((path, listener.into()))
    }

    fn exec(
        &self,
        container: &ContainerSpec,
        argv: &[String],
        pipes: &Pipes,
        listener: Option<&OwnedFd>,
        walls: Option<(&Net, &mut Cell)>,
    ) -> Result<State, Refusal> {
        let (argv, env, working_dir) = self.seen(container, argv, walls.is_some());
        let flags = if walls.is_some() { libc::CLONE_NEWPID } else { 0 };
        let users = container.user.zip(walls.as_ref()).map(|(user, (_, cell))| Ok((user, users(user, cell.user)?)));
        let users = users.transpose().map_err(failed("make a user namespace"))?;
        let entered = walls.as_ref().map(|(net, cell)| {
            let mnt = cell.root.as_ref().expect("a new cell has a root");
            let way = Way::First { net: &net.net, ipc: &net.ipc, uts: &net.uts, mnt };
            let seen = users.as_ref().map(|(user, users)| (*user, users));
            Walls { user: cell.user, seen, doors: &cell.cgroup.doors, way }
        });
        let entry = Entry {
            argv: &argv,
            env: &env,
            working_dir: &working_dir,
            open_files: container.limits.open_files,
            filter: &self.filter,
            stdin: None,
            stdout: &pipes.stdout,
            stderr: &pipes.stderr,
            listener,
            ready: pipes.ready.as_ref(),
            walls: entered,
            terminal: false,
            visits: false,
        };
        match sys::fork(flags).map_err(failed("fork"))? {
            Forked::Child => enter(&entry),
            Forked::Parent { pid, pidfd } => {
                if let Some((_, cell)) = walls {
                    cell.started();
                }
                Ok(State::Running { pid, pidfd: Some(pidfd), key: None })
            }
        }
    }

    /// Asks a zygote to fork the container.
    fn ask(
        &mut self,
        container: &ContainerSpec,
        key: Key,
        pipes: Pipes,
        listener: Option<OwnedFd>,
        walls: Option<(&Net, &mut Cell)>,
        zygotes: &mut Zygotes,
    ) -> Result<State, Refusal> {
        self.ensure_zygote(&key, zygotes)?;
        let isolated = walls.is_some();
        let (_, env, working_dir) = self.seen(container, &[], isolated);
        let host_assets = self.start.assets.to_string_lossy();
        let mut spawn = Spawn {
            request: zygotes.request_number(),
            env: &env,
            working_dir: &working_dir,
            open_files: container.limits.open_files,
            listener: listener.is_some(),
            ready: pipes.ready.is_some(),
            user: None,
            doors: 0,
            assets: if isolated { INSIDE } else { &host_assets },
        };
        let mut fds = vec![pipes.stdout, pipes.stderr];
        fds.extend(listener);
        fds.extend(pipes.ready);
        if let Some((net, cell)) = walls {
            let copy = |fd: &OwnedFd| fd.try_clone().map_err(failed("copy a handle"));
            for namespace in [&net.net, &net.ipc, &net.uts] {
                fds.push(copy(namespace)?);
            }
            fds.extend(cell.root.take());
            (spawn.user, spawn.doors) = (Some(cell.user), cell.cgroup.doors.len());
            fds.append(&mut cell.cgroup.doors);
        }
        zygotes.spawn(&key, &spawn, fds).map_err(failed("ask the zygote"))?;
        Ok(State::Asked { request: spawn.request, key })
    }

    fn ensure_zygote(&mut self, key: &Key, zygotes: &mut Zygotes) -> Result<(), Refusal> {
        if zygotes.contains(key) {
            return Ok(());
        }
        let unsupported = |reason: String| Err(Refusal::Unsupported { reason });
        if key.1 != "python" {
            return unsupported(format!("there is no zygote for {:?}", key.1));
        }
        let (program, script) = (self.start.python.clone(), self.start.assets.join("python/zygote.py"));
        if !program.exists() {
            return unsupported(format!("{} is missing; apt-get install python3", program.display()));
        }
        if !script.exists() {
            return unsupported("this build of dhow carries no Python runtime".to_owned());
        }
        let cgroup = self.isolation.as_mut().map(Isolation::zygote_cgroup).transpose();
        let cgroup = cgroup.map_err(failed("make the zygote's cgroup"))?;
        let recipe = Recipe { program: &program, script: &script, filter: &self.filter };
        zygotes.start(key.clone(), &recipe, cgroup).map_err(failed("start the zygote"))
    }

    /// Arguments, environment and working folder as the program will see them.
    pub fn seen(
        &self,
        container: &ContainerSpec,
        argv: &[String],
        isolated: bool,
    ) -> (Vec<String>, Vec<(String, String)>, String) {
        let (argv, mut env) = (argv.to_vec(), container.env.clone());
        if isolated {
            return (argv, env, container.working_dir.clone());
        }
        let mounts: Vec<(String, PathBuf)> = container
            .mounts
            .iter()
            .filter_map(|mount| match &mount.source {
                Source::Host(host) => Some((mount.inside.clone(), host.clone())),
                Source::Volume { .. } => None,
            })
            .chain([(INSIDE.to_owned(), self.start.assets.clone())])
            .collect();
        let argv = argv.iter().map(|a| on_host(a, &mounts)).collect();
        env.iter_mut().for_each(|(_, value)| *value = on_host(value, &mounts));
        // What the runtimes look for at a fixed place inside is found through their own variables instead.
        let deps = [("PYTHONPATH", "python"), ("NODE_PATH", "node_modules")];
        for (name, folder) in deps {
            let path = on_host(&format!("{}/{folder}", api::image::DEPS_DIR), &mounts);
            if Path::new(&path).is_dir() {
                env.push((name.to_owned(), path));
            }
        }
        (argv, env, on_host(&container.working_dir, &mounts))
    }

    fn give_back(&mut self, holdings: &Holdings) -> io::Result<()> {
        if let Some(path) = &holdings.socket {
            let _ = fs::remove_file(path);
        }
        let Some(isolation) = &mut self.isolation else { return Ok(()) };
        isolation.give_back(holdings.user.map(|(number, _)| number));
        let unmounted = isolation.volumes.release(&holdings.volumes);
        match holdings.net {
            Some((number, address)) => isolation.release_net(number, address, &holdings.network).and(unmounted),
            None => unmounted,
        }
    }
}

/// The descriptors of the volumes, and each container's.
fn sort(spec: &SandboxSpec, fds: Vec<OwnedFd>) -> Result<(Vec<OwnedFd>, Vec<Pipes>), Refusal> {
    let mut fds = fds.into_iter();
    let volumes = fds.by_ref().take(spec.volumes.len()).collect();
    let pipes = spec.containers.iter().map(|c| {
        let ready = c.serve == Serve::Socket;
        Some(Pipes { stdout: fds.next()?, stderr: fds.next()?, ready: if ready { Some(fds.next()?) } else { None } })
    });
    let pipes: Option<Vec<Pipes>> = pipes.collect();
    // The kernel drops descriptors that this process has no room for.
    pipes.map(|pipes| (volumes, pipes)).ok_or(Refusal::Exhausted { what: Resource::Descriptors })
}

pub fn failed(action: &str) -> impl Fn(io::Error) -> Refusal {
    move |e| match e.kind() {
        io::ErrorKind::QuotaExceeded => Refusal::Exhausted { what: Resource::Sandboxes },
        _ if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            Refusal::Exhausted { what: Resource::Descriptors }
        }
        _ => Refusal::Failed { action: action.to_owned(), errno: e.raw_os_error(), text: e.to_string() },
    }
}

fn without_walls(reason: &str) -> Vec<String> {
    [
        "Functions run as the platform's own user, with its files in sight: no user, mount or process namespaces",
        "Pods share the host's network: what they may connect to is not limited",
        "Limits on memory, CPU, processes and the size of /tmp are not enforced: no cgroups",
    ]
    .iter()
    .map(|what| format!("{what}, because {reason}."))
    .collect()
}
