//! An image as a sandbox's root: its files below, and what the container writes above, in memory.
//!
//! Owns the overlay. Must not know what else is mounted in a sandbox. Nothing is ever looked up through the image's own
//! links: every folder that something is mounted on is made in the upper layer, where it hides whatever the image has in
//! its place, before the two are put together.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, chdir, pivot_root};

use super::plan::CGROUPS;
use super::root::{Kind, make, tmpfs};
use super::sys::{self, Forked, NODEV, NOSUID, RDONLY, Resolve};
use crate::provider::User;

/// Where the layers and the result are put together, in the root that is about to be left.
const LOWER: &str = "/image/lower";
const SPACE: &str = "/image/space";
const UPPER: &str = "/image/space/upper";
const WORK: &str = "/image/space/work";
const MERGED: &str = "/image/merged";

pub struct Image {
    lower: OwnedFd,
}

impl Image {
    /// Of the folder that `handle` is of, with every file as this user's. Called where the folder is.
    pub fn open(handle: &OwnedFd, user: u32) -> io::Result<Self> {
        let lower = sys::clone_tree(handle.as_fd(), RDONLY | NOSUID | NODEV)?;
        sys::map_owners(lower.as_fd(), users(User { user: 0, group: 0 }, user)?.as_fd())?;
        Ok(Self { lower })
    }

    /// Puts the image in the place of the root of this mount namespace, with its devices, these resolvers and something to
    /// mount on at each of these places.
    pub fn become_root(&self, user: u32, space: &str, resolvers: &[u8], places: &[(&str, Kind)]) -> io::Result<()> {
        for folder in [LOWER, SPACE, MERGED] {
            fs::create_dir_all(folder)?;
        }
        sys::move_mount(self.lower.as_fd(), sys::open_handle(None, Path::new(LOWER), Resolve::NoLinks)?.as_fd())?;
        tmpfs(SPACE, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, &format!("{space},mode=0755"))?;
        fs::create_dir(UPPER)?;
        fs::create_dir(WORK)?;
        let own = ["proc", "dev", "etc", "tmp", "var/tmp", CGROUPS].map(|folder| (folder, Kind::Folder));
        for (place, kind) in own.iter().chain(places) {
            make(Path::new(UPPER), place, *kind)?;
        }
        for folder in ["tmp", "var/tmp"] {
            fs::set_permissions(Path::new(UPPER).join(folder), Permissions::from_mode(0o1777))?;
        }
        // So that these are files of its own in any image, and not where its links lead.
        for (name, content) in [("resolv.conf", resolvers), ("hosts", b""), ("hostname", b"")] {
            fs::write(Path::new(UPPER).join("etc").join(name), content)?;
        }
        for folder in ["", "etc", "var"] {
            chown(Path::new(UPPER).join(folder), Some(user), Some(user))?;
        }
        let options = format!("lowerdir={LOWER},upperdir={UPPER},workdir={WORK}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("overlay"), MERGED, Some("overlay"), flags, Some(options.as_str()))?;
        chdir(MERGED)?;
        for (from, to) in [("/dev", "dev"), (CGROUPS, CGROUPS.trim_start_matches('/'))] {
            match mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>) {
                // There are no cgroups to be seen.
                Err(Errno::EINVAL | Errno::ENOENT) if from == CGROUPS => {}
                moved => moved?,
            }
        }
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        Ok(chdir("/")?)
    }
}

/// A user namespace that nobody is in, in which `inside` is who `user` is here. To files, whose owners it maps, it is the
/// other way round: those of `inside` become this user's.
pub fn users(inside: User, user: u32) -> io::Result<OwnedFd> {
    match sys::fork(CloneFlags::CLONE_NEWUSER.bits())? {
        // Waits to be looked at, and is killed.
        Forked::Child => loop {
            sys::pause_ms(1000);
        },
        Forked::Parent { pid, pidfd } => {
            let made = (|| {
                for (map, id) in [("uid_map", inside.user), ("gid_map", inside.group)] {
                    fs::write(format!("/proc/{pid}/{map}"), format!("{id} {user} 1"))?;
                }
                Ok(fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
            })();
            sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL)?;
            waitpid(Pid::from_raw(pid), None)?;
            made
        }
    }
}
