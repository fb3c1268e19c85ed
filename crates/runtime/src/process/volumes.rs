//! The volumes of sandboxes before anybody sees them: made, filled, and handed to the launcher.
//!
//! Must not know where they are mounted.

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use crate::launcher::{NODEV, NOSUID, mount_nowhere};
use crate::provider::{Volume, VolumeFile};

/// A file of one byte takes a page, and so does a folder.
const PAGE: u64 = 4096;

pub fn make(volume: &Volume) -> io::Result<OwnedFd> {
    let files: u64 = volume.files.iter().map(|file| (file.content.len() as u64).div_ceil(PAGE) + 1).sum();
    let bytes = volume.bytes.max(PAGE) + files * PAGE;
    let size = CString::new(bytes.to_string())?;
    let inodes = CString::new((bytes / PAGE).clamp(64, 1 << 20).to_string())?;
    let options = [(c"size", Some(&*size)), (c"nr_inodes", Some(&*inodes)), (c"mode", Some(c"0777"))];
    let system = mount_nowhere(c"tmpfs", &options, NOSUID | NODEV)?;
    for file in &volume.files {
        write(&system, file).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.path)))?;
    }
    Ok(system)
}

fn write(system: &OwnedFd, file: &VolumeFile) -> io::Result<()> {
    let path = Path::new(&file.path);
    for folder in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev().filter(|p| !p.as_os_str().is_empty()) {
        match mkdirat(system, folder, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut made = File::from(openat(system, path, flags, Mode::from_bits_truncate(0o600))?);
    made.write_all(&file.content)?;
    let own = file.mode & 0o500;
    made.set_permissions(Permissions::from_mode(file.mode | own >> 3 | own >> 6))
}
