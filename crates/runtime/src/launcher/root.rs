//! The file system a sandbox sees: the host's programs, read-only, and nothing else of the host; or an image instead of
//! those ([`super::image`]).
//!
//! Owns mount namespaces and what is mounted in them. Must not know processes. A root is made ahead of need; what
//! depends on the pod is added by [`Roots::furnish`], before any of the pod's code runs. Its folders are this
//! module's own, so nobody can have planted a link in them.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::{Gid, Uid, chdir, fchownat, pivot_root};

use super::image::Image;
use super::place::{Home, current};
use super::plan::CGROUPS;
use super::sys::{self, NODEV, NOEXEC, NOSUID, RDONLY, Resolve};
use crate::assets::INSIDE;
use crate::provider::Root;

/// Folders of the host that appear as they are.
const FOLDERS: &[&str] = &["/usr", "/etc/ssl/certs", "/etc/ca-certificates", "/etc/pki", "/etc/alternatives"];
/// Top-level folders that are links into `/usr` on today's systems, and folders on older ones.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Files that are copied.
const FILES: &[&str] = &[
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mime.types",
    "/etc/protocols",
    "/etc/services",
    "/etc/os-release",
    "/etc/ssl/openssl.cnf",
];
const DEVICES: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
/// Where a new root is put together; only ever seen inside its own namespace.
pub const WORKSHOP: &str = "/run/dhow/root";
/// Terminals of its own that a container may make: shells and tests do.
const TERMINALS: &str = "newinstance,ptmxmode=0666,mode=0620,max=64";
/// Shared memory of a pod; it counts as the memory of whoever writes it.
const SHM: &str = "size=67108864,nr_inodes=4096,mode=1777";

/// What every root has, read once.
pub struct Roots {
    files: Vec<(PathBuf, Vec<u8>)>,
    links: Vec<(PathBuf, PathBuf)>,
    folders: Vec<(PathBuf, PathBuf)>,
    /// Below this folder, links in the path that leads to it are the operator's affair.
    data_dir: (PathBuf, OwnedFd),
    /// The data directory as the kernel names it, to be covered if a shared folder contains it.
    hidden: PathBuf,
}

impl Roots {
    pub fn new(data_dir: &Path, assets: &Path, resolvers: &[std::net::Ipv4Addr]) -> io::Result<Self> {
        let mut roots = Self {
            files: vec![],
            links: vec![],
            folders: vec![],
            data_dir: (data_dir.to_owned(), open(data_dir, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?),
            hidden: fs::canonicalize(data_dir)?,
        };
        for path in FILES.iter().map(PathBuf::from) {
            if let Ok(bytes) = fs::read(&path) {
                roots.files.push((path, bytes));
            }
        }
        let servers: String = resolvers.iter().map(|a| format!("nameserver {a}\n")).collect();
        roots.files.push(("/etc/resolv.conf".into(), servers.into()));
        roots.files.push(("/etc/nsswitch.conf".into(), b"passwd: files\ngroup: files\nhosts: files dns\n".to_vec()));
        for name in MERGED {
            let path = Path::new("/").join(name);
            match fs::read_link(&path) {
                Ok(target) => roots.links.push((path, target)),
                Err(_) if path.is_dir() => roots.folders.push((path.clone(), path)),
                Err(_) => {}
            }
        }
        let there = FOLDERS.iter().map(PathBuf::from).filter(|p| p.is_dir());
        roots.folders.extend(there.map(|p| (p.clone(), p)));
        if assets.is_dir() {
            roots.folders.push((fs::canonicalize(assets)?, INSIDE.into()));
        }
        fs::create_dir_all(WORKSHOP)?;
        Ok(roots)
    }

    /// A mount namespace for one user.
    pub fn make(&self, home: &Home, user: u32, cgroups: &[(PathBuf, String)]) -> io::Result<OwnedFd> {
        home.in_new(CloneFlags::CLONE_NEWNS, || {
            let namespace = current("mnt")?;
            self.build(user, cgroups)?;
            Ok(namespace)
        })
    }

    fn build(&self, user: u32, cgroups: &[(PathBuf, String)]) -> io::Result<()> {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        tmpfs(WORKSHOP, plain | MsFlags::MS_NOEXEC, "size=4194304,nr_inodes=1024,mode=0755")?;
        chdir(WORKSHOP)?;
        let here = |path: &Path| path.strip_prefix("/").map_or_else(|_| path.to_owned(), Path::to_owned);
        for (source, path) in &self.folders {
            let target = here(path);
            fs::create_dir_all(&target)?;
            let source = sys::open_handle(None, source, Resolve::NoLinks)?;
            let tree = sys::clone_tree(source.as_fd(), RDONLY | NOSUID | NODEV)?;
            sys::move_mount(tree.as_fd(), sys::open_handle(None, &target, Resolve::NoLinks)?.as_fd())?;
        }
        for (path, target) in &self.links {
            symlink(target, here(path))?;
        }
        for folder in ["proc", "tmp", "dev", "var/tmp"] {
            fs::create_dir_all(folder)?;
        }
        show_cgroups(cgroups)?;
        tmpfs("dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "size=65536,nr_inodes=64,mode=0755")?;
        for (path, bytes) in &self.files {
            let path = here(path);
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            fs::write(&path, bytes)?;
        }
        name(user, Path::new("etc"))?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        chdir("/")?;
        devices()?;
        self.hide_data_dir()
    }

    /// Covers the data directory if one of the host's folders brought it along.
    fn hide_data_dir(&self) -> io::Result<()> {
        match self.folders.iter().any(|(source, path)| source == path && self.hidden.starts_with(source)) {
            true => tmpfs(&self.hidden, MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC, "size=4096,mode=0000"),
            false => Ok(()),
        }
    }

    /// Adds what belongs to one container, and closes the root for writing unless it is an image's.
    pub fn furnish(&self, home: &Home, root: &OwnedFd, wanted: &Furniture<'_>) -> io::Result<()> {
        let image = match wanted.root {
            Root::Host => None,
            Root::Image { folder, read_only } => {
                let handle =
                    self.handle(folder).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", folder.display())))?;
                Some((Image::open(&handle, wanted.user)?, *read_only))
            }
        };
        let mut trees = vec![];
        for mount in wanted.mounts {
            let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", mount.inside));
            trees.push(self.tree(mount, wanted.user).map_err(named)?);
        }
        home.within(root, CloneFlags::CLONE_NEWNS, || {
            let options = space(wanted.tmp_bytes);
            if wanted.user != wanted.made_for {
                name(wanted.user, Path::new("/etc"))?;
            }
            match &image {
                None => tmpfs("/tmp", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, &format!("{options},mode=1777"))?,
                Some((image, _)) => {
                    let resolvers = fs::read("/etc/resolv.conf")?;
                    let places: Vec<_> =
                        wanted.mounts.iter().zip(&trees).map(|(m, (_, kind))| (m.inside, *kind)).collect();
                    image.become_root(wanted.user, &options, &resolvers, &places)?;
                }
            }
            fs::write("/etc/hosts", wanted.hosts)?;
            fs::write("/etc/hostname", format!("{}\n", wanted.host_name))?;
            for (mount, (tree, kind)) in wanted.mounts.iter().zip(&trees) {
                let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", mount.inside));
                let target = make(Path::new("/"), mount.inside, *kind).map_err(named)?;
                sys::move_mount(tree.as_fd(), target.as_fd()).map_err(named)?;
            }
            match image {
                None => sys::change_mount(c"/", RDONLY | NOSUID | NODEV | NOEXEC),
                Some((_, read_only)) => sys::change_mount(c"/", NOSUID | NODEV | if read_only { RDONLY } else { 0 }),
            }
        })
    }

    /// A handle of a folder of the host.
    fn handle(&self, folder: &Path) -> io::Result<OwnedFd> {
        let (base, base_fd) = &self.data_dir;
        match folder.strip_prefix(base) {
            Ok(below) => sys::open_handle(Some(base_fd.as_fd()), below, Resolve::Beneath),
            Err(_) => sys::open_handle(None, folder, Resolve::NoLinks),
        }
    }

    fn tree(&self, mount: &Placed<'_>, user: u32) -> io::Result<(OwnedFd, Kind)> {
        let handle = self.handle(&mount.host)?;
        let kind = match SFlag::from_bits_truncate(fstat(&handle)?.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => Kind::Folder,
            SFlag::S_IFREG => Kind::File,
            // Such as a link, which would lead somewhere from inside.
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a folder nor a file")),
        };
        if mount.given {
            let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
            fchownat(&handle, c"", owner.0, owner.1, AtFlags::AT_EMPTY_PATH)?;
        }
        let tree = sys::clone_tree(handle.as_fd(), NOSUID | NODEV | if mount.writable { 0 } else { RDONLY })?;
        Ok((tree, kind))
    }
}

/// What is one container's own.
pub struct Furniture<'a> {
    pub user: u32,
    /// The user that the root was made for.
    pub made_for: u32,
    pub root: &'a Root,
    /// Those that others lie in come first.
    pub mounts: &'a [Placed<'a>],
    pub tmp_bytes: u64,
    pub hosts: &'a str,
    pub host_name: &'a str,
}

/// What is mounted, and where.
pub struct Placed<'a> {
    pub host: PathBuf,
    pub inside: &'a str,
    pub writable: bool,
    /// Whether it becomes the container's user's.
    pub given: bool,
}

#[derive(Clone, Copy)]
pub enum Kind {
    Folder,
    File,
}

/// The options of a file system in memory for what a container writes.
fn space(bytes: u64) -> String {
    format!("size={bytes},nr_inodes={}", (bytes / 4096).clamp(64, 1 << 20))
}

/// Makes a folder below another and every folder on the way, entering none through a link.
pub fn make_folder(base: &Path, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut folder = open(base, flags, Mode::empty())?;
    for part in path.split('/').filter(|p| !p.is_empty()) {
        let enter = |at: BorrowedFd<'_>| openat(at, part, flags, Mode::empty());
        folder = match enter(folder.as_fd()) {
            Err(Errno::ENOENT) => {
                mkdirat(&folder, part, Mode::from_bits_truncate(0o755))?;
                enter(folder.as_fd())?
            }
            other => other?,
        };
    }
    debug_assert!(folder.as_raw_fd() > 2);
    Ok(folder)
}

/// Makes something that another of its kind can be mounted on, as [`make_folder`] does.
pub fn make(base: &Path, path: &str, kind: Kind) -> io::Result<OwnedFd> {
    let (parent, name) = match kind {
        Kind::Folder => return make_folder(base, path),
        Kind::File => path.rsplit_once('/').unwrap_or(("", path)),
    };
    let folder = make_folder(base, parent)?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(&folder, name, flags, Mode::empty()) {
        Err(Errno::ENOENT) => {
            let make = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            openat(&folder, name, make, Mode::from_bits_truncate(0o644))?;
            Ok(openat(&folder, name, flags, Mode::empty())?)
        }
        there => Ok(there?),
    }
}

pub fn tmpfs(target: impl AsRef<Path>, flags: MsFlags, options: &str) -> io::Result<()> {
    Ok(mount(Some("tmpfs"), target.as_ref(), Some("tmpfs"), flags, Some(options))?)
}

/// Puts a container's own cgroups where programs look for them, to be read.
fn show_cgroups(cgroups: &[(PathBuf, String)]) -> io::Result<()> {
    let Some((_, first)) = cgroups.first() else { return Ok(()) };
    let here = |view: &str| view.trim_start_matches('/').to_owned();
    fs::create_dir_all(here(CGROUPS))?;
    if first != CGROUPS {
        let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        tmpfs(here(CGROUPS), plain, "size=4096,nr_inodes=16,mode=0755")?;
    }
    for (folder, view) in cgroups {
        fs::create_dir_all(here(view))?;
        let folder = sys::open_handle(None, folder, Resolve::NoLinks)?;
        let tree = sys::clone_tree(folder.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC)?;
        sys::move_mount(tree.as_fd(), sys::open_handle(None, Path::new(&here(view)), Resolve::NoLinks)?.as_fd())?;
    }
    Ok(())
}

fn devices() -> io::Result<()> {
    for (path, major, minor) in DEVICES {
        sys::make_device(&CString::new(*path)?, *major, *minor)?;
    }
    for (path, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ] {
        symlink(target, path)?;
    }
    fs::create_dir("/dev/pts")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, Some(TERMINALS))?;
    fs::create_dir("/dev/shm")?;
    tmpfs("/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, SHM)?;
    fs::set_permissions("/dev/shm", Permissions::from_mode(0o1777))?;
    sys::change_mount(c"/dev", RDONLY | NOSUID | NOEXEC)
}

/// Gives a user a name.
fn name(user: u32, folder: &Path) -> io::Result<()> {
    let users = format!(
        "root:x:0:0:root:/:/usr/sbin/nologin\n\
         app:x:{user}:{user}:app:/tmp:/bin/sh\n\
         nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
    );
    fs::write(folder.join("passwd"), users)?;
    fs::write(folder.join("group"), format!("root:x:0:\napp:x:{user}:\nnogroup:x:65534:\n"))
}
