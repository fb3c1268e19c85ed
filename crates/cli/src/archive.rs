//! Which files of a folder are a function's source, and which folders are none.
//!
//! Nothing is uploaded that leaves the folder: a link out of it is refused, not followed and not dropped in silence.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use ignore::WalkBuilder;

use crate::size::show;
use crate::{Failure, Result};

/// Never part of a source.
const EXCLUDED: [&str; 5] = [".git", "node_modules", ".venv", "__pycache__", IGNORE_FILE];
const IGNORE_FILE: &str = ".dhowignore";
/// As many as a build takes.
const MAX_ENTRIES: usize = 100_000;
/// Named when a source is too large.
const LARGEST: usize = 5;

/// A source that may be packed.
#[derive(Debug)]
pub struct Source {
    pub root: PathBuf,
    /// Sorted by path.
    pub entries: Vec<Entry>,
    pub bytes: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative, with `/` between its parts.
    pub path: String,
    pub kind: EntryKind,
}

#[derive(Debug, PartialEq, Eq)]
pub enum EntryKind {
    File { bytes: u64, executable: bool },
    Link { target: String },
}

/// Lists the source in a folder, or says what is wrong with it. Blocks.
pub fn gather(path: &Path, max_bytes: u64) -> Result<Source> {
    let shown = path.display();
    let root = fs::canonicalize(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            Failure::usage(format!("there is no folder {shown}")).next("dhow new python NAME makes one")
        }
        _ => Failure::usage(format!("{shown} cannot be read: {e}")),
    })?;
    if !root.is_dir() {
        return Err(Failure::usage(format!("{shown} is not a folder")).next("give the folder that the file is in"));
    }
    let mut entries = vec![];
    for found in walk(&root) {
        let found = found.map_err(|e| unreadable(&e))?;
        let Some(kind) = found.file_type().filter(|kind| found.depth() > 0 && !kind.is_dir()) else { continue };
        entries.push(entry(&root, found.path(), kind)?);
        if entries.len() > MAX_ENTRIES {
            return Err(Failure::usage(format!("{shown} has more than {MAX_ENTRIES} files")).next(LEAVE_OUT));
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    if entries.is_empty() {
        return Err(Failure::usage(format!("nothing to deploy: {shown} has no files that count"))
            .next("put a main.py or an index.mjs into it, or look at its .dhowignore"));
    }
    let bytes = entries.iter().map(Entry::bytes).sum();
    let source = Source { root, entries, bytes };
    if bytes > max_bytes {
        return Err(too_large(&shown.to_string(), max_bytes, &source));
    }
    Ok(source)
}

const LEAVE_OUT: &str = "leave out what it does not need with a .dhowignore (the syntax of .gitignore)";

fn walk(root: &Path) -> ignore::Walk {
    WalkBuilder::new(root)
        .standard_filters(false)
        .parents(false)
        .follow_links(false)
        .add_custom_ignore_filename(IGNORE_FILE)
        .filter_entry(|entry| entry.depth() == 0 || !EXCLUDED.iter().any(|name| entry.file_name() == *name))
        .build()
}

fn unreadable(error: &ignore::Error) -> Failure {
    Failure::usage(format!("the source cannot be read: {error}")).next("make it readable, or name it in .dhowignore")
}

impl Entry {
    fn bytes(&self) -> u64 {
        match self.kind {
            EntryKind::File { bytes, .. } => bytes,
            EntryKind::Link { .. } => 0,
        }
    }
}

fn entry(root: &Path, path: &Path, kind: fs::FileType) -> Result<Entry> {
    let relative = path.strip_prefix(root).unwrap_or(path);
    let Some(text) = relative.to_str() else {
        let shown = relative.display();
        return Err(Failure::usage(format!("the name of {shown} is not UTF-8, and cannot be deployed")).next(LEAVE_OUT));
    };
    let refuse = |why: String| Failure::usage(format!("{text} {why}")).next(LEAVE_OUT);
    let kind = if kind.is_symlink() {
        EntryKind::Link { target: link(root, path, relative).map_err(refuse)? }
    } else if kind.is_file() {
        let metadata = fs::symlink_metadata(path).map_err(|e| refuse(format!("cannot be read: {e}")))?;
        // Opened here, so that it is said before anything is sent.
        fs::File::open(path).map_err(|e| refuse(format!("cannot be read: {e}")))?;
        EntryKind::File { bytes: metadata.len(), executable: metadata.permissions().mode() & 0o111 != 0 }
    } else {
        return Err(refuse("is neither a file nor a folder, and cannot be deployed".into()));
    };
    Ok(Entry { path: text.to_owned(), kind })
}

/// The target of a link that stays inside the folder, by its words and in fact.
fn link(root: &Path, path: &Path, relative: &Path) -> std::result::Result<String, String> {
    let target = fs::read_link(path).map_err(|e| format!("cannot be read: {e}"))?;
    let shown = target.display();
    let leaves = || format!("is a link to {shown}, which leaves the folder");
    if !stays_inside(relative, &target) {
        return Err(leaves());
    }
    match fs::canonicalize(path) {
        Ok(real) if real.starts_with(root) => {}
        Ok(_) => return Err(leaves()),
        Err(_) => return Err(format!("is a link to {shown}, which is not there")),
    }
    target.to_str().map(str::to_owned).ok_or_else(|| "is a link whose target is not UTF-8".to_owned())
}

/// Whether a link at `link` to `target`, both by their words alone, stays below the folder `link` is relative to.
fn stays_inside(link: &Path, target: &Path) -> bool {
    let mut depth = link.components().count() as i64 - 1;
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
        if depth < 0 {
            return false;
        }
    }
    true
}

fn too_large(shown: &str, max_bytes: u64, source: &Source) -> Failure {
    let what = format!("{shown} holds {}, more than the {} that may be uploaded", show(source.bytes), show(max_bytes));
    Failure::usage(what).lines(source.largest()).next(LEAVE_OUT)
}

impl Source {
    /// The largest files and their sizes, as lines.
    pub fn largest(&self) -> Vec<String> {
        let mut largest: Vec<&Entry> = self.entries.iter().collect();
        largest.sort_by_key(|e| std::cmp::Reverse(e.bytes()));
        let lines = largest.iter().take(LARGEST).map(|e| format!("{}  {}", e.path, show(e.bytes())));
        std::iter::once("its largest files:".to_owned()).chain(lines).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Makes a folder with a `main.py` beside a file outside, lets the case change it, and lists it.
    fn check(case: &str, limit: u64, make: impl FnOnce(&Path), want: std::result::Result<&[&str], &str>) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("source");
        fs::create_dir(&folder).unwrap();
        fs::write(temporary.path().join("secret"), "s").unwrap();
        fs::write(folder.join("main.py"), "x").unwrap();
        make(&folder);
        match (gather(&folder, limit), want) {
            (Ok(source), Ok(want)) => {
                let paths: Vec<&str> = source.entries.iter().map(|e| e.path.as_str()).collect();
                assert_eq!(paths, want, "{case}");
            }
            (Err(failure), Err(want)) => {
                assert!(failure.to_string().contains(want), "{case}: {failure}");
                assert_eq!(failure.code, crate::Code::Usage, "{case}");
            }
            (got, want) => panic!("{case}: {got:?}, not {want:?}"),
        }
    }

    fn file(folder: &Path, path: &str, content: &str) {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn what_counts() {
        check("one file", MIB, |_| (), Ok(&["main.py"]));
        let standard = |f: &Path| {
            for path in [".git/HEAD", "node_modules/x/i.js", ".venv/bin/python", "a/__pycache__/m.pyc", "a/m.py"] {
                file(f, path, "x");
            }
        };
        check("standard exclusions", MIB, standard, Ok(&["a/m.py", "main.py"]));
        check("hidden files count", MIB, |f| file(f, ".env", "x"), Ok(&[".env", "main.py"]));
        check("not git's rules", MIB, |f| file(f, ".gitignore", "main.py"), Ok(&[".gitignore", "main.py"]));
        let ignored = |f: &Path| {
            file(f, ".dhowignore", "*.log\n/data\n!keep.log\n");
            for path in ["a.log", "b/c.log", "keep.log", "data/big", "b/data/small"] {
                file(f, path, "x");
            }
        };
        check("ignored", MIB, ignored, Ok(&["b/data/small", "keep.log", "main.py"]));
        let nested = |f: &Path| {
            file(f, "a/.dhowignore", "b\n");
            file(f, "a/b", "x");
            file(f, "a/c", "x");
        };
        check("ignored below", MIB, nested, Ok(&["a/c", "main.py"]));
        let spread = |f: &Path| ["b", "a/b", "a.b", "Z"].iter().for_each(|p| file(f, p, ""));
        check("sorted", MIB, spread, Ok(&["Z", "a.b", "a/b", "b", "main.py"]));
    }

    #[test]
    fn what_is_refused() {
        check("empty", MIB, |f| fs::remove_file(f.join("main.py")).unwrap(), Err("nothing to deploy"));
        check("all ignored", MIB, |f| file(f, ".dhowignore", "*"), Err("nothing to deploy"));
        let only_folders = |f: &Path| {
            fs::remove_file(f.join("main.py")).unwrap();
            fs::create_dir_all(f.join("a/b")).unwrap();
        };
        check("only folders", MIB, only_folders, Err("nothing to deploy"));
        let large = |f: &Path| {
            file(f, "model.bin", &"x".repeat(700));
            file(f, "a/small", &"x".repeat(400));
        };
        check("over the limit", 1024, large, Err("model.bin  700 B\n    | a/small  400 B\n    | main.py  1 B"));
        check("at the limit", 1, |_| (), Ok(&["main.py"]));
        check(
            "over, but ignored",
            10,
            |f| {
                large(f);
                file(f, ".dhowignore", "*.bin\na\n");
            },
            Ok(&["main.py"]),
        );
        let socket = |f: &Path| drop(std::os::unix::net::UnixListener::bind(f.join("sock")).unwrap());
        check("socket", MIB, socket, Err("sock is neither a file nor a folder"));
    }

    #[test]
    fn links() {
        let link = |target: &'static str| move |f: &Path| symlink(target, f.join("link")).unwrap();
        let out = Err("link is a link to");
        check("to a file", MIB, link("main.py"), Ok(&["link", "main.py"]));
        check("out", MIB, link("../secret"), out);
        check("out and back", MIB, link("../source/main.py"), out);
        check("absolute", MIB, link("/etc/passwd"), out);
        check("to nothing", MIB, link("nothing"), Err("which is not there"));
        check("to itself", MIB, link("link"), Err("which is not there"));
        let chain = |f: &Path| {
            symlink("..", f.join("up")).unwrap();
            symlink("up/secret", f.join("link")).unwrap();
        };
        check("through another link", MIB, chain, Err("leaves the folder"));
        let deep = |f: &Path| {
            file(f, "a/b/c", "x");
            symlink("../../main.py", f.join("a/b/link")).unwrap();
        };
        check("up and inside", MIB, deep, Ok(&["a/b/c", "a/b/link", "main.py"]));
        let too_deep = |f: &Path| {
            file(f, "a/c", "x");
            symlink("../../secret", f.join("a/link")).unwrap();
        };
        check("up too far", MIB, too_deep, Err("a/link is a link to ../../secret, which leaves the folder"));
        let folder = |f: &Path| {
            file(f, "lib/m.py", "x");
            symlink("lib", f.join("link")).unwrap();
        };
        check("to a folder", MIB, folder, Ok(&["lib/m.py", "link", "main.py"]));
    }

    #[test]
    fn paths() {
        let temporary = tempfile::tempdir().unwrap();
        let file = temporary.path().join("file");
        fs::write(&file, "").unwrap();
        for (path, want) in [(temporary.path().join("none"), "there is no folder"), (file, "is not a folder")] {
            let failure = gather(&path, MIB).unwrap_err();
            assert!(failure.what.contains(want), "{failure}");
        }
    }
}
