//! Embeds the runtimes' files: adapters, the zygote, and the wheels they need, unpacked.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Never part of a runtime.
const SKIPPED: &[&str] = &["tests", "__pycache__", "node_modules", "wheels"];

fn main() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runtimes");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo:rerun-if-changed={}", root.display());
    let mut files = vec![];
    if root.is_dir() {
        collect(&root.canonicalize()?, "", &mut files)?;
    }
    unpack_wheels(&root.join("python/wheels"), &out.join("lib"), &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    let mut table = String::from("pub(super) const FILES: &[(&str, &[u8])] = &[\n");
    for (name, path) in &files {
        let bytes = fs::read(path)?;
        for part in [name.as_bytes(), &bytes] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        writeln!(table, "    ({name:?}, include_bytes!({:?})),", path.display().to_string()).expect("a String grows");
    }
    let digest = hex::encode(hash.finalize());
    writeln!(table, "];\npub(super) const HASH: &str = {:?};", &digest[..16]).expect("a String grows");
    fs::write(out.join("assets.rs"), table)
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().into_string().expect("names in the repository are UTF-8");
        let path = format!("{prefix}{name}");
        if SKIPPED.contains(&name.as_str()) || name.ends_with(".pyc") {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => collect(&entry.path(), &format!("{path}/"), files)?,
            false => files.push((path, entry.path())),
        }
    }
    Ok(())
}

/// A wheel is a zip; what it holds becomes `python/lib/…`.
fn unpack_wheels(folder: &Path, out: &Path, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    let wheels: Vec<PathBuf> = match fs::read_dir(folder) {
        Ok(entries) => {
            entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "whl")).collect()
        }
        Err(_) => vec![],
    };
    if wheels.is_empty() {
        println!(
            "cargo:warning=runtimes/python/wheels is empty, so this build cannot run Python; `pip download -r runtimes/python/requirements.txt -d runtimes/python/wheels` fills it"
        );
        return Ok(());
    }
    for wheel in wheels {
        let mut archive = zip::ZipArchive::new(fs::File::open(&wheel)?).map_err(io::Error::other)?;
        for index in 0..archive.len() {
            let mut entry = archive.by_index(index).map_err(io::Error::other)?;
            let Some(name) = entry.enclosed_name().filter(|_| entry.is_file()) else { continue };
            let path = out.join(&name);
            fs::create_dir_all(path.parent().unwrap_or(out))?;
            let mut bytes = vec![];
            entry.read_to_end(&mut bytes)?;
            fs::write(&path, bytes)?;
            files.push((format!("python/lib/{}", name.display()), path));
        }
    }
    Ok(())
}
