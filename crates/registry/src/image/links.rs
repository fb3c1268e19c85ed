//! When a path or a link stays inside its folder. Pure.
//!
//! A link is judged by its own words, not by what they lead to today: it may climb first and descend then, and must
//! not climb above the folder. Every other link on its way obeys the same rule, so the whole way stays inside.
//! Climbing after descending is refused, because the way down may itself be a link.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The path as a clean relative one, without `.`; `None` when it is absolute, climbs, or is no path at all.
pub(super) fn inside(path: &Path) -> Option<PathBuf> {
    if path.as_os_str().as_bytes().contains(&0) || path.as_os_str().is_empty() {
        return None;
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

/// Whether a link at `link` (clean, relative to the folder) with that target stays inside the folder.
pub(super) fn link_stays_inside(link: &Path, target: &Path) -> bool {
    let depth = link.components().count().saturating_sub(1);
    let mut climbed = 0;
    let mut descended = false;
    if target.as_os_str().is_empty() || target.as_os_str().as_bytes().contains(&0) {
        return false;
    }
    for component in target.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(_) => descended = true,
            Component::ParentDir if descended => return false,
            Component::ParentDir => climbed += 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    climbed <= depth
}

pub(super) fn shown(path: &Path) -> String {
    path.to_string_lossy().chars().take(300).collect()
}

pub(super) fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, want) in [
            ("a/b", Some("a/b")),
            ("./a/./b/", Some("a/b")),
            ("a//b", Some("a/b")),
            (".", Some("")),
            ("", None),
            ("/a", None),
            ("a/../b", None),
            ("..", None),
            ("a\0b", None),
        ] {
            assert_eq!(inside(Path::new(path)).as_deref(), want.map(Path::new), "{path:?}");
        }
    }

    #[test]
    fn links() {
        for (link, target, want) in [
            ("x", "y", true),
            ("x", "./a/b", true),
            ("a/x", "../y", true),
            ("a/b/x", "../../y/z", true),
            ("x", "../y", false),
            ("a/x", "../../y", false),
            ("x", "/etc/passwd", false),
            ("a/x", "b/../y", false),
            ("x", "", false),
            ("x", ".", true),
            ("a/x", "..", true),
            ("x", "..", false),
        ] {
            assert_eq!(link_stays_inside(Path::new(link), Path::new(target)), want, "{link} -> {target}");
        }
    }
}
