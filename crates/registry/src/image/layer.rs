//! A folder as a layer, the same bytes for the same content: sorted, without times, owners or stray modes.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::ImageError;
use super::links::{inside, link_stays_inside, shown};
use crate::digest::Digest;

/// A finished layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// Of the compressed bytes.
    pub digest: Digest,
    /// Of the tar inside.
    pub diff_id: Digest,
    /// Of the compressed bytes.
    pub size: u64,
}

/// Writes `dir` as a gzipped tar whose entries lie below `prefix`. Links are kept as links when they stay inside
/// `dir`; sockets, pipes and devices are refused. Blocks; nobody may change the folder meanwhile.
pub fn layer_from_dir(dir: &Path, prefix: &str, out: impl Write) -> Result<LayerInfo, ImageError> {
    let prefix = match prefix.trim_matches('/') {
        "" => PathBuf::new(),
        prefix => inside(Path::new(prefix)).ok_or_else(|| ImageError::Outside { entry: prefix.into() })?,
    };
    let compressed = Hashing::new(out);
    // Neither a time nor a file name nor an operating system in the header. The layer mostly stays on this machine,
    // and its author waits: speed before size.
    let gzip = GzBuilder::new().operating_system(255).write(compressed, Compression::fast());
    let mut archive = tar::Builder::new(Hashing::new(gzip));
    archive.mode(tar::HeaderMode::Deterministic);
    let mut above = PathBuf::new();
    for component in &prefix {
        above.push(component);
        append(&mut archive, &above, EntryType::Directory, 0o755, 0, io::empty())?;
    }
    add_folder(&mut archive, dir, Path::new(""), &prefix)?;

    let write = ImageError::io(dir);
    let finish = || {
        let (gzip, diff_id, _) = archive.into_inner()?.finish();
        let (mut out, digest, size) = gzip.finish()?.finish();
        out.flush()?;
        Ok(LayerInfo { digest, diff_id, size })
    };
    finish().map_err(write)
}

/// Adds what lies in the folder `relative` of `root`.
fn add_folder<W: Write>(
    archive: &mut tar::Builder<W>,
    root: &Path,
    relative: &Path,
    prefix: &Path,
) -> Result<(), ImageError> {
    let folder = root.join(relative);
    let entries = std::fs::read_dir(&folder).map_err(ImageError::io(&folder))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(ImageError::io(&folder))?;
    entries.sort_unstable_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let relative = relative.join(entry.file_name());
        let (path, inside_layer) = (entry.path(), prefix.join(&relative));
        let kind = entry.file_type().map_err(ImageError::io(&path))?;
        if kind.is_dir() {
            append(archive, &inside_layer, EntryType::Directory, 0o755, 0, io::empty())?;
            add_folder(archive, root, &relative, prefix)?;
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).map_err(ImageError::io(&path))?;
            if !link_stays_inside(&relative, &target) {
                return Err(ImageError::LinkOutside { entry: shown(&relative), target: shown(&target) });
            }
            let mut header = header(EntryType::Symlink, 0o777, 0);
            archive.append_link(&mut header, &inside_layer, &target).map_err(ImageError::io(&path))?;
        } else if kind.is_file() {
            add_file(archive, &path, &relative, &inside_layer)?;
        } else {
            return Err(ImageError::Forbidden { entry: shown(&relative), kind: kind_name(kind) });
        }
    }
    Ok(())
}

fn add_file<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &Path,
    relative: &Path,
    inside_layer: &Path,
) -> Result<(), ImageError> {
    // Not even when the entry has become a link or a pipe since it was listed.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(ImageError::io(path))?;
    let metadata = file.metadata().map_err(ImageError::io(path))?;
    if !metadata.is_file() {
        return Err(ImageError::Forbidden { entry: shown(relative), kind: kind_name(metadata.file_type()) });
    }
    let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
    let mut content = Exactly { file, left: metadata.len() };
    append(archive, inside_layer, EntryType::Regular, mode, metadata.len(), &mut content)
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &Path,
    kind: EntryType,
    mode: u32,
    size: u64,
    content: impl Read,
) -> Result<(), ImageError> {
    let mut header = header(kind, mode, size);
    archive.append_data(&mut header, path, content).map_err(ImageError::io(path))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn kind_name(kind: FileType) -> &'static str {
    if kind.is_socket() {
        "a socket"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else {
        "neither a file, a folder nor a link"
    }
}

/// As many bytes of a file as its header says, or an error: a file that grows or shrinks would break the archive.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read(&mut buffer[..want])?;
        if count == 0 && want > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file shrank while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Hashes and counts what passes through.
pub(super) struct Hashing<T> {
    inner: T,
    hasher: Sha256,
    count: u64,
}

impl<T> Hashing<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, hasher: Sha256::new(), count: 0 }
    }

    pub(super) fn finish(self) -> (T, Digest, u64) {
        (self.inner, Digest::finish(self.hasher), self.count)
    }

    fn saw(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.count += bytes.len() as u64;
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.saw(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.saw(&buffer[..count]);
        Ok(count)
    }
}
