//! A layer, or any tar from a stranger, into a folder.
//!
//! No entry gets out: not by an absolute path, not by `..`, not through a link that is already there, not by a hard
//! link. Extension headers are read here instead of by the tar library, which would hold one of any size in memory.
//! Owners are not kept, so neither are modes that only make sense with them: everybody may read what is unpacked.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use tar::EntryType;

use super::ImageError;
use super::links::{inside, link_stays_inside, path_of, shown};

/// How much may be unpacked.
#[derive(Clone, Copy, Debug)]
pub struct UnpackLimits {
    pub entries: u64,
    /// Of the archive after decompression, headers included.
    pub bytes: u64,
    pub links: Links,
}

/// What links may point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Places inside the folder, by a relative path.
    Inside,
    /// Also absolute paths, which mean the image's own root to whoever runs it. On this side nobody may follow them.
    InImage,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self { entries: 200_000, bytes: 4 << 30, links: Links::Inside }
    }
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub entries: u64,
    /// Of the files.
    pub bytes: u64,
}

/// The longest path that Linux takes, and then some for `./`.
const MAX_PATH: u64 = 4_200;
/// Extension headers carry a few attributes.
const MAX_EXTENSION: u64 = 1 << 20;

/// Unpacks a tar, gzipped or plain, on top of what is in `into`; whiteouts remove what lower layers brought. Blocks.
/// After an error the folder holds a part: it is the caller's to remove.
pub fn unpack(layer: impl Read, into: &Path, limits: &UnpackLimits) -> Result<Contents, ImageError> {
    let mut layer = BufReader::with_capacity(64 << 10, layer);
    let start = layer.fill_buf().map_err(broken)?;
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(ImageError::Broken { reason: "it is compressed with zstd; gzip is expected".into() });
    }
    if start.starts_with(&[0x1f, 0x8b]) {
        unpack_tar(MultiGzDecoder::new(layer), into, limits)
    } else {
        unpack_tar(layer, into, limits)
    }
}

fn unpack_tar(tar: impl Read, into: &Path, limits: &UnpackLimits) -> Result<Contents, ImageError> {
    let mut archive = tar::Archive::new(Bounded { inner: tar, left: limits.bytes, exceeded: false });
    let mut target = Target { root: into, links: limits.links, made: HashSet::new() };
    let mut extended = Extended::default();
    let mut contents = Contents::default();
    let too_many = ImageError::TooMuch { limit: limits.entries, what: "entries" };
    // The error of the reader comes back wrapped in the archive's own; the limit is told apart by its kind.
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::FileTooLarge => ImageError::TooMuch { limit: limits.bytes, what: "bytes" },
        _ => broken(error),
    };
    for entry in archive.entries().map_err(failed)?.raw(true) {
        let mut entry = entry.map_err(failed)?;
        contents.entries += 1;
        if contents.entries > limits.entries {
            return Err(too_many);
        }
        let kind = entry.header().entry_type();
        if extended.take(kind, &mut entry).map_err(|error| error.or_read(failed))? {
            continue;
        }
        let given = std::mem::take(&mut extended);
        let path = given.path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let path = path_of(&path);
        let link = given.link.or_else(|| entry.link_name_bytes().map(|name| name.into_owned()));
        let name = inside(path).ok_or_else(|| ImageError::Outside { entry: shown(path) })?;
        if path.as_os_str().len() as u64 > MAX_PATH {
            return Err(ImageError::InvalidEntry { entry: shown(path), reason: "its path is too long".into() });
        }
        let link = link.as_deref().map(path_of);
        let mode = entry.header().mode().map_err(failed)?;
        match kind {
            // How archives from before 1988 name a folder.
            EntryType::Regular if path.as_os_str().as_bytes().ends_with(b"/") => target.folder(&name)?,
            EntryType::Regular | EntryType::Continuous => {
                contents.bytes += target.file(&name, mode, &mut entry).map_err(|error| error.or_read(failed))?;
            }
            EntryType::Directory => target.folder(&name)?,
            EntryType::Symlink => target.symlink(&name, link)?,
            EntryType::Link => target.hard_link(&name, link)?,
            EntryType::Char | EntryType::Block => {
                return Err(ImageError::Forbidden { entry: shown(&name), kind: "a device" });
            }
            EntryType::Fifo => return Err(ImageError::Forbidden { entry: shown(&name), kind: "a pipe" }),
            _ => return Err(ImageError::Forbidden { entry: shown(&name), kind: "of an unknown type" }),
        }
    }
    if archive.into_inner().exceeded {
        return Err(ImageError::TooMuch { limit: limits.bytes, what: "bytes" });
    }
    Ok(contents)
}

/// What the extension headers before an entry say about it.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Extended {
    /// Takes an extension header; `false` when the entry is something else.
    fn take(&mut self, kind: EntryType, entry: &mut impl Read) -> Result<bool, Failure> {
        match kind {
            EntryType::GNULongName => self.path = Some(long_name(entry)?),
            EntryType::GNULongLink => self.link = Some(long_name(entry)?),
            EntryType::XGlobalHeader => {}
            EntryType::XHeader => self.pax(&read_at_most(entry, MAX_EXTENSION)?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn pax(&mut self, text: &[u8]) -> Result<(), Failure> {
        for record in tar::PaxExtensions::new(text) {
            let record = record?;
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                // Only needed beyond 8 GiB, and otherwise a way to read one entry as two.
                b"size" => return Err(invalid("it gives a size outside its header")),
                key if key.starts_with(b"GNU.sparse") => return Err(invalid("it is sparse")),
                _ => {}
            }
        }
        Ok(())
    }
}

fn long_name(entry: &mut impl Read) -> Result<Vec<u8>, Failure> {
    let mut name = read_at_most(entry, MAX_PATH)?;
    while name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

fn read_at_most(entry: &mut impl Read, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![];
    entry.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(invalid("its header is too long")) } else { Ok(bytes) }
}

/// Reading the archive failed, or the entry is refused.
enum Failure {
    Read(io::Error),
    Refused(ImageError),
}

impl Failure {
    fn or_read(self, read: impl FnOnce(io::Error) -> ImageError) -> ImageError {
        match self {
            Failure::Read(error) => read(error),
            Failure::Refused(error) => error,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Read(error)
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Failure::Refused(error)
    }
}

fn invalid(reason: &str) -> Failure {
    Failure::Refused(ImageError::InvalidEntry { entry: "an extension header".into(), reason: reason.into() })
}

fn broken(error: io::Error) -> ImageError {
    ImageError::Broken { reason: error.to_string() }
}

/// The folder that is unpacked into. Names given to it are clean and relative.
struct Target<'a> {
    root: &'a Path,
    links: Links,
    /// What this layer itself brought: whiteouts spare it.
    made: HashSet<PathBuf>,
}

impl Target<'_> {
    fn file(&mut self, name: &Path, mode: u32, content: &mut impl Read) -> Result<u64, Failure> {
        if self.whiteout(name)? {
            return Ok(0);
        }
        let path = self.clear_way(name)?;
        let mode = if mode & 0o111 == 0 { 0o644 } else { 0o755 };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).map_err(ImageError::io(&path))?;
        let count = copy(content, &mut file, &path)?;
        // Whatever the umask took away.
        file.set_permissions(Permissions::from_mode(mode)).map_err(ImageError::io(&path))?;
        Ok(count)
    }

    fn folder(&mut self, name: &Path) -> Result<(), ImageError> {
        let path = self.way(name)?;
        // A folder of its own replaces a link of a lower layer; as the parent of an entry, a link is refused.
        if !name.as_os_str().is_empty() && path.is_symlink() {
            remove(&path)?;
        }
        self.make_folders(name)
    }

    fn symlink(&mut self, name: &Path, target: Option<&Path>) -> Result<(), ImageError> {
        let target = self.link_target(name, target)?;
        let in_image = self.links == Links::InImage && target.is_absolute();
        if !in_image && !link_stays_inside(name, target) {
            return Err(ImageError::LinkOutside { entry: shown(name), target: shown(target) });
        }
        let path = self.clear_way(name)?;
        symlink(target, &path).map_err(ImageError::io(&path))
    }

    fn hard_link(&mut self, name: &Path, target: Option<&Path>) -> Result<(), ImageError> {
        let target = self.link_target(name, target)?;
        let outside = || ImageError::LinkOutside { entry: shown(name), target: shown(target) };
        let original = inside(target).ok_or_else(outside)?;
        let original = self.way(&original)?;
        let metadata = std::fs::symlink_metadata(&original).map_err(|_| ImageError::InvalidEntry {
            entry: shown(name),
            reason: format!("it is a link to {:?}, which is not there", shown(target)),
        })?;
        if !metadata.is_file() {
            return Err(ImageError::Forbidden { entry: shown(name), kind: "a hard link to something not a file" });
        }
        let path = self.clear_way(name)?;
        std::fs::hard_link(&original, &path).map_err(ImageError::io(&path))
    }

    fn link_target<'p>(&self, name: &Path, target: Option<&'p Path>) -> Result<&'p Path, ImageError> {
        let valid = target.filter(|target| !target.as_os_str().is_empty() && target.as_os_str().len() < 4096);
        valid.ok_or_else(|| ImageError::InvalidEntry { entry: shown(name), reason: "it is a link to nothing".into() })
    }

    /// Makes room for a new entry: the folders above it are there, itself is not.
    fn clear_way(&mut self, name: &Path) -> Result<PathBuf, ImageError> {
        if name.as_os_str().is_empty() {
            return Err(ImageError::InvalidEntry { entry: ".".into(), reason: "only a folder can be the root".into() });
        }
        if let Some(parent) = name.parent() {
            self.make_folders(parent)?;
        }
        let path = self.root.join(name);
        remove(&path)?;
        self.made.insert(name.to_owned());
        Ok(path)
    }

    /// Makes a folder and those above it. A link on the way is an error, a file in its place is replaced.
    fn make_folders(&mut self, name: &Path) -> Result<(), ImageError> {
        if name.as_os_str().is_empty() {
            return Ok(());
        }
        if let Some(parent) = name.parent() {
            self.make_folders(parent)?;
        }
        let path = self.root.join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(metadata) if metadata.is_symlink() => return Err(through_link(name)),
            Ok(_) => {
                remove(&path)?;
                make_folder(&path)?;
            }
            Err(_) => make_folder(&path)?,
        }
        self.made.insert(name.to_owned());
        Ok(())
    }

    /// Where an entry lies, if no link is above it.
    fn way(&self, name: &Path) -> Result<PathBuf, ImageError> {
        let mut path = self.root.to_owned();
        let above = name.parent().into_iter().flat_map(Path::iter);
        for component in above {
            path.push(component);
            if path.is_symlink() {
                return Err(through_link(name));
            }
        }
        Ok(self.root.join(name))
    }

    /// Obeys a whiteout, if it is one: `.wh.<name>` hides one entry of the lower layers, `.wh..wh..opq` a folder's all.
    fn whiteout(&mut self, name: &Path) -> Result<bool, ImageError> {
        let Some(hidden) = name.file_name().and_then(|file| file.as_bytes().strip_prefix(b".wh.")) else {
            return Ok(false);
        };
        let folder = name.parent().unwrap_or(Path::new(""));
        if hidden == b".wh..opq" {
            self.way(&folder.join("x"))?;
            self.hide_below(folder)?;
        } else {
            let hidden = path_of(hidden);
            if inside(hidden).is_none_or(|clean| clean.components().count() != 1) {
                return Err(ImageError::Outside { entry: shown(name) });
            }
            self.hide(&folder.join(hidden))?;
        }
        Ok(true)
    }

    fn hide(&self, name: &Path) -> Result<(), ImageError> {
        let path = self.way(name)?;
        if !self.made.contains(name) { remove(&path) } else { Ok(()) }
    }

    fn hide_below(&self, folder: &Path) -> Result<(), ImageError> {
        let path = self.root.join(folder);
        let Ok(entries) = std::fs::read_dir(&path) else { return Ok(()) };
        for entry in entries {
            let entry = entry.map_err(ImageError::io(&path))?;
            let name = folder.join(entry.file_name());
            if !self.made.contains(&name) {
                remove(&entry.path())?;
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.hide_below(&name)?;
            }
        }
        Ok(())
    }
}

fn through_link(name: &Path) -> ImageError {
    ImageError::InvalidEntry { entry: shown(name), reason: "a link is on its way".into() }
}

fn make_folder(path: &Path) -> Result<(), ImageError> {
    std::fs::create_dir(path)
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(0o755)))
        .map_err(ImageError::io(path))
}

/// Removes whatever is there, without following links.
fn remove(path: &Path) -> Result<(), ImageError> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(ImageError::io(path))
}

fn copy(from: &mut impl Read, into: &mut File, path: &Path) -> Result<u64, Failure> {
    use std::io::Write;
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(total);
        }
        into.write_all(&buffer[..count]).map_err(ImageError::io(path))?;
        total += count as u64;
    }
}

/// Ends with an error of its own kind when there is more than allowed.
struct Bounded<R> {
    inner: R,
    left: u64,
    exceeded: bool,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count as u64 > self.left {
            self.exceeded = true;
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.left -= count as u64;
        Ok(count)
    }
}
