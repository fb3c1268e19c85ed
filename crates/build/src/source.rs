//! The source on disk: fetched, unpacked and listed.
//!
//! Everything here blocks, and comes from a stranger: no link is followed, nothing leaves the folder, all is bounded.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use api::build::reason;
use api::function::{Inline, is_relative_path};
use registry::image::{ImageError, Links, UnpackLimits, unpack};

use crate::BuildError;
use crate::plan::{MANIFESTS, Refusal, Tree};

/// How much larger than its archive a source may be.
const EXPANSION: u64 = 4;
const ENTRIES: u64 = 100_000;
/// A lock file of a large project takes a few MiB.
const MANIFEST_BYTES: u64 = 32 << 20;
const O_NOFOLLOW: i32 = 0o400_000;

/// What may be wrong with a source: the author's fault, or ours.
#[derive(Debug)]
pub enum SourceError {
    Refused(Refusal),
    Failed(BuildError),
}

impl From<BuildError> for SourceError {
    fn from(error: BuildError) -> Self {
        Self::Failed(error)
    }
}

fn invalid(message: impl Into<String>) -> SourceError {
    SourceError::Refused(Refusal::new(reason::SOURCE_INVALID, message))
}

pub fn unpack_archive(archive: &Path, into: &Path, max_bytes: u64) -> Result<(), SourceError> {
    let file = fs::File::open(archive).map_err(BuildError::io(archive))?;
    let size = file.metadata().map_err(BuildError::io(archive))?.len();
    if size > max_bytes {
        return Err(too_large(max_bytes));
    }
    let limits = UnpackLimits { entries: ENTRIES, bytes: max_bytes.saturating_mul(EXPANSION), links: Links::Inside };
    match unpack(file, into, &limits) {
        Ok(_) => Ok(()),
        Err(error @ (ImageError::Io { .. } | ImageError::Registry(_))) => Err(BuildError::from(error).into()),
        Err(error) => Err(invalid(format!("the source cannot be used: {error}"))),
    }
}

pub fn write_inline(inline: &Inline, into: &Path, max_bytes: u64) -> Result<(), SourceError> {
    let bytes: u64 = inline.files.values().map(|content| content.len() as u64).sum();
    if bytes > max_bytes {
        return Err(too_large(max_bytes));
    }
    for (name, content) in &inline.files {
        if !is_relative_path(name) {
            return Err(invalid(format!("{name:?} leaves the folder; name files by relative paths without '..'")));
        }
        let path = into.join(name);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(into))?;
            fs::write(&path, content)
        };
        match write() {
            Ok(()) => {}
            Err(error) => match error.kind() {
                io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::AlreadyExists => {
                    return Err(invalid(format!("{name:?} is a file and a folder at once")));
                }
                io::ErrorKind::InvalidFilename => return Err(invalid(format!("{name:?} is too long a name"))),
                _ => return Err(BuildError::io(&path)(error).into()),
            },
        }
    }
    // Whatever the platform's own mask is, the sandbox must be able to read it.
    open_up(into).map_err(|error| BuildError::io(into)(error).into())
}

pub fn too_large(max_bytes: u64) -> SourceError {
    invalid(format!("the source is larger than {} MiB; leave files out with .dhowignore", max_bytes >> 20))
}

fn open_up(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => open_up(&entry.path())?,
            false => fs::set_permissions(entry.path(), Permissions::from_mode(0o644))?,
        }
    }
    Ok(())
}

/// Every file of the source, and the content of those that decide something.
pub fn list(folder: &Path) -> Result<Tree, BuildError> {
    let mut tree = Tree::default();
    let mut folders = vec![String::new()];
    while let Some(parent) = folders.pop() {
        let path = folder.join(&parent);
        for entry in fs::read_dir(&path).map_err(BuildError::io(&path))? {
            let entry = entry.map_err(BuildError::io(&path))?;
            // A name that is not UTF-8 can be neither a handler nor a manifest; it still makes the source not empty.
            let name = entry.file_name().to_string_lossy().into_owned();
            let relative = if parent.is_empty() { name } else { format!("{parent}/{name}") };
            match entry.file_type().map_err(BuildError::io(entry.path()))?.is_dir() {
                true => folders.push(relative),
                false => {
                    tree.files.insert(relative);
                }
            }
        }
    }
    for name in MANIFESTS.into_iter().filter(|name| tree.files.contains(*name)) {
        let path = folder.join(name);
        let Ok(file) = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(&path) else { continue };
        let mut content = vec![];
        file.take(MANIFEST_BYTES).read_to_end(&mut content).map_err(BuildError::io(&path))?;
        tree.manifests.insert(name, content);
    }
    Ok(tree)
}

/// The bytes and entries of a folder that somebody may be writing to, links not followed.
pub fn measure(folder: &Path) -> (u64, u64) {
    let (mut bytes, mut entries) = (0, 0);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            entries += 1;
            let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
            bytes += metadata.len();
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    (bytes, entries)
}
