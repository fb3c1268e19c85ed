//! Where the volumes of sandboxes are, as the launcher sees them.
//!
//! Owns the folder that they are mounted in, and the launcher's own mount namespace, in which alone they are mounted: the host
//! never sees them, and whatever ends the launcher ends them. Must not know what is in them.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::root::make_folder;
use super::sys::{self, Resolve};
use crate::provider::{Mount, Source, Volume};

pub struct Volumes {
    folder: PathBuf,
    mounted: u64,
}

/// The volumes of one sandbox: names and places.
#[derive(Default)]
pub struct Held(Vec<(String, PathBuf)>);

impl Volumes {
    /// Leaves the host's mount namespace for one of the launcher's own, which still hears of what the host mounts.
    pub fn set_up(data_dir: &Path) -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        let folder = data_dir.join("volumes");
        match fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => fs::create_dir_all(&folder)?,
        }
        Ok(Self { folder, mounted: 0 })
    }

    /// Mounts these, the file system of each beside it. What was mounted before an error is in `held`.
    pub fn hold(&mut self, volumes: &[Volume], systems: Vec<OwnedFd>, held: &mut Held) -> io::Result<()> {
        for (volume, system) in volumes.iter().zip(systems) {
            self.mounted += 1;
            let place = self.folder.join(self.mounted.to_string());
            fs::create_dir(&place)?;
            held.0.push((volume.name.clone(), place.clone()));
            sys::move_mount(system.as_fd(), sys::open_handle(None, &place, Resolve::NoLinks)?.as_fd())?;
        }
        Ok(())
    }

    pub fn release(&self, held: &Held) -> io::Result<()> {
        for (_, place) in &held.0 {
            match umount2(place, MntFlags::MNT_DETACH) {
                // It was never mounted.
                Ok(()) | Err(nix::errno::Errno::EINVAL) => fs::remove_dir(place)?,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl Held {
    /// Where what is to be mounted is on the host; a folder that is missing in a volume is made.
    pub fn place(&self, mount: &Mount) -> io::Result<PathBuf> {
        let (name, path) = match &mount.source {
            Source::Host(folder) => return Ok(folder.clone()),
            Source::Volume { name, path } => (name, path),
        };
        let (_, place) = self.0.iter().find(|(held, _)| held == name).ok_or(io::ErrorKind::NotFound)?;
        if path.is_empty() {
            return Ok(place.clone());
        }
        let wanted = sys::open_handle(None, &place.join(path), Resolve::NoLinks);
        if wanted.is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            make_folder(place, path)?;
        }
        Ok(place.join(path))
    }
}
