//! The runtimes' files, carried in the binary and unpacked where sandboxes can see them.
//!
//! Owns that folder. Must not know what the files do. It is named by its content, so an upgrade never changes the
//! files under a running instance.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/assets.rs"));
}

/// Where the files appear inside every sandbox: `/dhow/python/…`, `/dhow/node/…`.
pub const INSIDE: &str = "/dhow";

/// Unpacks the files below the data directory, unless they are there, and names the folder.
pub fn unpack(data_dir: &Path) -> io::Result<PathBuf> {
    let runtimes = data_dir.join("runtimes");
    let folder = runtimes.join(embedded::HASH);
    if folder.is_dir() {
        return Ok(folder);
    }
    // Put together beside it and moved there at once: a crash leaves no half of it under its name.
    let draft = runtimes.join(format!("{}.{}", embedded::HASH, std::process::id()));
    let _ = fs::remove_dir_all(&draft);
    fs::create_dir_all(&draft)?;
    for (name, bytes) in embedded::FILES {
        let path = draft.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&draft))?;
        fs::write(path, bytes)?;
    }
    match fs::rename(&draft, &folder) {
        // Somebody else was faster, with the same content.
        Err(_) if folder.is_dir() => fs::remove_dir_all(&draft)?,
        other => other?,
    }
    Ok(folder)
}

/// Names these files: another version, another name.
pub fn version() -> &'static str {
    embedded::HASH
}

/// Writes the files of one runtime into a folder, for an image that carries them itself.
pub fn write(runtime: &str, into: &Path) -> io::Result<()> {
    for (name, bytes) in embedded::FILES {
        let Some(name) = name.strip_prefix(runtime).and_then(|name| name.strip_prefix('/')) else { continue };
        let path = into.join(name);
        fs::create_dir_all(path.parent().unwrap_or(into))?;
        fs::write(path, bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacking_twice_is_unpacking_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = unpack(folder.path()).expect("unpacked");
        assert_eq!(unpack(folder.path()).expect("found"), first);
        assert!(embedded::FILES.iter().all(|(name, bytes)| fs::read(first.join(name)).is_ok_and(|b| b == *bytes)));
    }
}
