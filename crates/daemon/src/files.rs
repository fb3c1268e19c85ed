//! Files that other programs read: written whole or not at all, readable by whom they should be. And how many files a
//! process may have open, connections included.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::DaemonError;

/// Creates a folder that only its owner may enter, with everything above it.
pub fn create_private_dir(path: &Path) -> Result<(), DaemonError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| error("create", path, e))
}

/// Lets the process have as many files and connections open as it may at most; the number. What it is allowed at first is
/// made for programs of old that could not deal with more.
pub fn open_many() -> std::io::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(most)
}

/// Writes through a temporary file and a rename, so that a reader sees the old or the new content.
pub fn write_atomically(path: &Path, mode: u32, content: &[u8]) -> Result<(), DaemonError> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|e| {
        // The temporary file is of no use to anybody; that it may be gone already is fine.
        let _ = std::fs::remove_file(&temporary);
        error("write", path, e)
    })
}

/// Removes a file that may not be there.
pub fn remove_if_present(path: &Path) -> Result<(), DaemonError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(error("remove", path, e)),
        _ => Ok(()),
    }
}

fn error(action: &'static str, path: &Path, source: std::io::Error) -> DaemonError {
    DaemonError::File { action, path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn written_whole_with_its_mode() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("kubeconfig");
        write_atomically(&path, 0o600, b"one").expect("first write");
        write_atomically(&path, 0o600, b"two").expect("second write");
        assert_eq!(std::fs::read(&path).expect("readable"), b"two");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1, "no temporary file stays");
        remove_if_present(&path).expect("removed");
        remove_if_present(&path).expect("already gone is fine");
    }
}
