//! A source as one file: the same folder gives the same bytes on every machine.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use crate::archive::{Entry, EntryKind, Source};
use crate::{Failure, Result};

/// A packed source in a file without a name, which nobody has to remove.
#[derive(Debug)]
pub struct Packed {
    pub file: File,
    pub bytes: u64,
    /// `sha256:<hex>` of the file.
    pub digest: String,
}

/// Packs a source: sorted, without times, owners, or permissions beyond "executable". Blocks.
pub fn pack(source: &Source) -> Result<Packed> {
    let failed = |e: io::Error| Failure::failed(format!("the source cannot be packed: {e}"));
    let out = Hashing { file: BufWriter::new(tempfile::tempfile().map_err(failed)?), hash: Sha256::new(), bytes: 0 };
    let mut tar = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    for entry in &source.entries {
        append(&mut tar, source, entry)
            .map_err(|e| Failure::failed(format!("{} cannot be packed: {e}", entry.path)))?;
    }
    let out = tar.into_inner().and_then(GzEncoder::finish).map_err(failed)?;
    let Hashing { file, hash, bytes } = out;
    let mut file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(Packed { file, bytes, digest: format!("sha256:{}", hex::encode(hash.finalize())) })
}

fn append(tar: &mut tar::Builder<impl Write>, source: &Source, entry: &Entry) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    match &entry.kind {
        EntryKind::Link { target } => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            tar.append_link(&mut header, &entry.path, target)
        }
        EntryKind::File { bytes, executable } => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(if *executable { 0o755 } else { 0o644 });
            header.set_size(*bytes);
            let mut file = fs::File::open(source.root.join(&entry.path))?;
            if file.metadata()?.len() != *bytes {
                return Err(io::Error::other("it changed while it was read"));
            }
            let mut counted = Exactly { inner: &mut file, left: *bytes };
            tar.append_data(&mut header, &entry.path, &mut counted)?;
            if counted.left > 0 { Err(io::Error::other("it changed while it was read")) } else { Ok(()) }
        }
    }
}

/// Reads as many bytes as the header says, however many there are by now.
struct Exactly<'a> {
    inner: &'a mut File,
    left: u64,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        self.left -= count as u64;
        Ok(count)
    }
}

struct Hashing<W> {
    file: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.file.write(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::*;
    use crate::archive::gather;

    fn made(folder: &Path, order: &[&str]) -> Packed {
        for name in order {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        fs::set_permissions(folder.join("run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("run.sh", folder.join("link")).unwrap();
        pack(&gather(folder, 1 << 20).unwrap()).unwrap()
    }

    #[test]
    fn the_same_folder_is_the_same_bytes() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let deep = format!("{}/end", "a/very/long/path".repeat(12));
        let first = made(one.path(), &["main.py", "run.sh", "lib/a.py", &deep]);
        let mut second = made(two.path(), &[&deep, "lib/a.py", "run.sh", "main.py"]);
        assert_eq!((&first.digest, first.bytes), (&second.digest, second.bytes));
        let mut packed = vec![];
        second.file.read_to_end(&mut packed).unwrap();
        assert_eq!(packed.len() as u64, second.bytes);
        assert_eq!(format!("sha256:{}", hex::encode(Sha256::digest(&packed))), second.digest);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&packed[..]));
        let mut shown = vec![];
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (0, 0));
            shown.push((entry.path().unwrap().display().to_string(), header.mode().unwrap()));
        }
        let want =
            [(deep.as_str(), 0o644), ("lib/a.py", 0o644), ("link", 0o777), ("main.py", 0o644), ("run.sh", 0o755)];
        assert_eq!(shown, want.map(|(path, mode)| (path.to_owned(), mode)));
        fs::write(two.path().join("main.py"), "other").unwrap();
        assert_ne!(pack(&gather(two.path(), 1 << 20).unwrap()).unwrap().digest, first.digest);
    }
}
