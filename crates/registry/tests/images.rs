//! Layers made and unpacked, honest and hostile; images pushed, shared, collected.

#![allow(clippy::unwrap_used, reason = "a failed test ends by panicking")]

use std::collections::HashSet;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use registry::image::{
    ImageConfig, ImageError, Layer, LayerInfo, Links, UnpackLimits, ensure_unpacked, layer_from_dir, prune_unpacked,
    push_image, unpack,
};
use registry::{Digest, Registry, RegistryError};
use tar::EntryType;

/// One entry of a tar, written as it is: the library's own writer refuses most of what is wanted here.
#[derive(Clone)]
struct Entry {
    name: Vec<u8>,
    kind: EntryType,
    link: String,
    content: Vec<u8>,
    mode: u32,
}

fn entry(name: &str, kind: EntryType, link: &str, content: &[u8]) -> Entry {
    Entry { name: name.into(), kind, link: link.into(), content: content.into(), mode: 0o644 }
}

fn file(name: &str) -> Entry {
    entry(name, EntryType::Regular, "", name.as_bytes())
}

fn folder(name: &str) -> Entry {
    entry(name, EntryType::Directory, "", b"")
}

fn link(name: &str, target: &str) -> Entry {
    entry(name, EntryType::Symlink, target, b"")
}

fn hard(name: &str, target: &str) -> Entry {
    entry(name, EntryType::Link, target, b"")
}

fn long_name(name: &str) -> Entry {
    entry("././@LongLink", EntryType::GNULongName, "", format!("{name}\0").as_bytes())
}

fn pax(key: &str, value: &str) -> Entry {
    let body = format!(" {key}={value}\n");
    // The length counts itself.
    let length = (1..5).map(|digits| body.len() + digits).find(|l| l.to_string().len() + body.len() == *l).unwrap();
    entry("pax", EntryType::XHeader, "", format!("{length}{body}").as_bytes())
}

fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = vec![];
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_size(entry.content.len() as u64);
        let old = header.as_old_mut();
        old.name[..entry.name.len()].copy_from_slice(&entry.name);
        old.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&entry.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Everything below a folder: `path`, `path -> target`, or `path/`, sorted.
fn tree(root: &Path) -> Vec<String> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                found.push(format!("{name}/"));
                walk(root, &path, found);
            } else if kind.is_symlink() {
                found.push(format!("{name} -> {}", std::fs::read_link(&path).unwrap().display()));
            } else {
                found.push(name);
            }
        }
    }
    let mut found = vec![];
    walk(root, root, &mut found);
    found.sort();
    found
}

/// Each archive, and a part of what is said about it, or what it becomes.
#[test]
fn archives() {
    type Row = (&'static str, Vec<Entry>, Result<&'static [&'static str], &'static str>);
    let secret_above = "../outside";
    let rows: Vec<Row> = vec![
        (
            "files and folders",
            vec![folder("a/"), file("a/b"), file("c/d/e")],
            Ok(&["a/", "a/b", "c/", "c/d/", "c/d/e"]),
        ),
        ("the root itself", vec![folder("./"), file("./a")], Ok(&["a"])),
        ("an old way to name a folder", vec![entry("a/", EntryType::Regular, "", b"")], Ok(&["a/"])),
        (
            "links inside",
            vec![file("d/a"), link("d/b", "a"), link("e/f", "../d/a")],
            Ok(&["d/", "d/a", "d/b -> a", "e/", "e/f -> ../d/a"]),
        ),
        ("a hard link inside", vec![file("a"), hard("b", "a")], Ok(&["a", "b"])),
        ("a link to nothing that stays inside", vec![link("a", "nothing")], Ok(&["a -> nothing"])),
        ("the last of two wins", vec![link("a", "b"), file("a")], Ok(&["a"])),
        ("a file becomes a folder", vec![file("a"), file("a/b")], Ok(&["a/", "a/b"])),
        ("a folder becomes a file", vec![file("a/b"), file("a")], Ok(&["a"])),
        ("a folder replaces a link", vec![link("a", "b"), folder("a"), file("a/c")], Ok(&["a/", "a/c"])),
        ("a long name", vec![long_name("long/name"), file("short")], Ok(&["long/", "long/name"])),
        ("a pax name", vec![pax("path", "é/ü"), file("short")], Ok(&["é/", "é/ü"])),
        ("a pax link", vec![pax("linkpath", "x"), link("a", "short")], Ok(&["a -> x"])),
        ("an extended name is for one entry", vec![long_name("long"), file("a"), file("b")], Ok(&["b", "long"])),
        ("nothing", vec![], Ok(&[])),
        ("absolute", vec![file("/etc/passwd")], Err(r#""/etc/passwd" leaves the folder"#)),
        ("climbing", vec![file(secret_above)], Err(r#""../outside" leaves the folder"#)),
        ("climbing later", vec![file("a/../../outside")], Err("leaves the folder")),
        ("climbing within", vec![file("a/../b")], Err("leaves the folder")),
        ("an absolute long name", vec![long_name("/etc/passwd"), file("x")], Err("leaves the folder")),
        ("a climbing pax name", vec![pax("path", "../x"), file("x")], Err("leaves the folder")),
        (
            "an absolute link",
            vec![link("a", "/etc/passwd")],
            Err(r#""a" is a link to "/etc/passwd", which leaves the folder"#),
        ),
        ("a climbing link", vec![link("a/b", "../../x")], Err("leaves the folder")),
        (
            "a link that climbs after a link",
            vec![link("a/b", "."), link("c", "a/b/../../..")],
            Err("leaves the folder"),
        ),
        ("a link then through it", vec![folder("d"), link("a", "d"), file("a/b")], Err("a link is on its way")),
        ("a folder through a link", vec![folder("d"), link("a", "d"), folder("a/b")], Err("a link is on its way")),
        ("a hard link outside", vec![hard("a", "../../etc/passwd")], Err("leaves the folder")),
        ("an absolute hard link", vec![hard("a", "/etc/passwd")], Err("leaves the folder")),
        ("a hard link to a link", vec![link("a", "b"), hard("c", "a")], Err("not a file")),
        (
            "a hard link through a link",
            vec![file("d/x"), link("a", "d"), hard("c", "a/x")],
            Err("a link is on its way"),
        ),
        ("a hard link to nothing", vec![hard("a", "b")], Err("is not there")),
        ("a hard link to itself", vec![file("a"), hard("a", "a")], Err("")),
        ("a link to an empty name", vec![link("a", "")], Err("a link to nothing")),
        ("a character device", vec![entry("null", EntryType::Char, "", b"")], Err(r#""null" is a device"#)),
        ("a block device", vec![entry("sda", EntryType::Block, "", b"")], Err("a device")),
        ("a pipe", vec![entry("p", EntryType::Fifo, "", b"")], Err("a pipe")),
        ("a sparse file", vec![entry("s", EntryType::GNUSparse, "", b"")], Err("unknown type")),
        ("a sparse file by pax", vec![pax("GNU.sparse.major", "1"), file("s")], Err("sparse")),
        ("a size outside its header", vec![pax("size", "5"), file("s")], Err("size")),
        ("an unknown kind", vec![entry("x", EntryType::new(b'Z'), "", b"")], Err("unknown type")),
        ("a name too long", vec![long_name(&"x".repeat(9_000)), file("x")], Err("too long")),
        ("a name no file system takes", vec![long_name(&"x".repeat(300)), file("x")], Err("xxx")),
        (
            "a huge extension",
            vec![entry("pax", EntryType::XHeader, "", &vec![b' '; 2 << 20]), file("x")],
            Err("too long"),
        ),
        ("the root as a file", vec![entry(".", EntryType::Regular, "", b"x")], Err("only a folder")),
        ("a whiteout that climbs", vec![file(".wh...")], Err("leaves the folder")),
        ("a whiteout of nothing", vec![file(".wh.")], Err("leaves the folder")),
        ("a whiteout through a link", vec![folder("d"), link("a", "d"), file("a/.wh.x")], Err("a link is on its way")),
    ];
    for (name, entries, want) in rows {
        for (how, archive) in [("plain", tar_of(&entries)), ("gzipped", gzip(&tar_of(&entries)))] {
            let parent = tempfile::tempdir().unwrap();
            std::fs::write(parent.path().join("outside"), "untouched").unwrap();
            let into = parent.path().join("into");
            std::fs::create_dir(&into).unwrap();
            let got = unpack(archive.as_slice(), &into, &UnpackLimits::default());
            match (got, want) {
                (Ok(_), Ok(want)) => assert_eq!(tree(&into), want, "{name}, {how}"),
                (Err(error), Err(want)) => {
                    let text = error.to_string();
                    assert!(text.contains(want), "{name}, {how}: {text}");
                }
                (got, want) => panic!("{name}, {how}: wanted {want:?}, got {got:?}"),
            }
            assert_eq!(std::fs::read_to_string(parent.path().join("outside")).unwrap(), "untouched", "{name}");
            assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 2, "{name}: nothing beside the folder");
        }
    }
}

#[test]
fn bounds_and_broken_archives() {
    let many: Vec<Entry> = (0..11).map(|i| file(&i.to_string())).collect();
    let bomb = gzip(&tar_of(&[entry("zeros", EntryType::Regular, "", &vec![0; 20 << 20])]));
    assert!(bomb.len() < 1 << 20, "a bomb is small outside");
    let whole = gzip(&tar_of(&[entry("a", EntryType::Regular, "", &[7; 100_000])]));
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let limits = UnpackLimits { entries: 10, bytes: 10 << 20, links: Links::Inside };
    let rows: [(&str, Vec<u8>, &str); 7] = [
        ("too many entries", tar_of(&many), "more than 10 entries"),
        ("a bomb", bomb, "more than 10485760 bytes"),
        ("cut off", whole[..whole.len() / 2].to_vec(), "broken"),
        ("damaged", flipped, "broken"),
        ("not an archive", b"#!/bin/sh\necho hello\n".repeat(60), "broken"),
        ("zstd", vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0], "zstd"),
        ("a header cut off", tar_of(&[file("a")])[..700].to_vec(), ""),
    ];
    for (name, archive, want) in rows {
        let into = tempfile::tempdir().unwrap();
        match unpack(archive.as_slice(), into.path(), &limits) {
            Err(error) => assert!(error.to_string().contains(want), "{name}: {error}"),
            // The file came whole; that the end mark is missing is how some writers end.
            Ok(_) => assert_eq!((name, tree(into.path())), ("a header cut off", vec!["a".into()])),
        }
    }
}

/// Two layers, one on top of the other.
#[test]
fn whiteouts_hide_lower_layers() {
    type Row<'a> = (&'a str, Vec<Entry>, Vec<Entry>, &'a [&'a str]);
    let rows: [Row<'_>; 5] = [
        ("one file", vec![file("a"), file("b")], vec![file(".wh.a")], &["b"]),
        ("a folder", vec![file("d/x"), file("d/y/z")], vec![file(".wh.d")], &[]),
        ("not its own", vec![file("a")], vec![file("a"), file(".wh.a")], &["a"]),
        ("opaque", vec![file("d/x"), file("d/y/z")], vec![file("d/new"), file("d/.wh..wh..opq")], &["d/", "d/new"]),
        ("opaque, deep", vec![file("d/y/z")], vec![file("d/y/w"), file("d/.wh..wh..opq")], &["d/", "d/y/", "d/y/w"]),
    ];
    for (name, lower, upper, want) in rows {
        let into = tempfile::tempdir().unwrap();
        for layer in [lower, upper] {
            unpack(tar_of(&layer).as_slice(), into.path(), &UnpackLimits::default()).unwrap();
        }
        assert_eq!(tree(into.path()), want, "{name}");
    }
}

#[test]
fn modes_are_for_everybody() {
    let into = tempfile::tempdir().unwrap();
    let private = Entry { mode: 0o600, ..file("private") };
    let setuid = Entry { mode: 0o4700, ..file("setuid") };
    let closed = Entry { mode: 0o000, ..folder("closed") };
    unpack(tar_of(&[private, setuid, closed, file("closed/x")]).as_slice(), into.path(), &UnpackLimits::default())
        .unwrap();
    for (name, want) in [("private", 0o644), ("setuid", 0o755), ("closed", 0o755)] {
        let mode = std::fs::metadata(into.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, want, "{name}");
    }
}

#[test]
fn layers_are_reproducible_and_come_back() {
    let make = |order: &[&str]| {
        let source = tempfile::tempdir().unwrap();
        for name in order {
            let path = source.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, name).unwrap();
        }
        std::fs::set_permissions(source.path().join("run.sh"), PermissionsExt::from_mode(0o700)).unwrap();
        symlink("../run.sh", source.path().join("sub/link")).unwrap();
        let mut layer = vec![];
        let info = layer_from_dir(source.path(), "/app/", &mut layer).unwrap();
        (info, layer)
    };
    let long = format!("sub/{}", "n".repeat(200));
    let (first, bytes) = make(&["run.sh", "main.py", "sub/ü", &long]);
    let (second, again) = make(&[&long, "sub/ü", "main.py", "run.sh"]);
    assert_eq!((first, &bytes), (second, &again));
    assert_eq!(first.digest, Digest::of(&bytes));
    assert_eq!(first.size, bytes.len() as u64);

    let into = tempfile::tempdir().unwrap();
    unpack(bytes.as_slice(), into.path(), &UnpackLimits::default()).unwrap();
    let (long, u) = (format!("app/{long}"), "app/sub/ü");
    let mut want = vec!["app/", "app/main.py", "app/run.sh", "app/sub/", "app/sub/link -> ../run.sh", &long, u];
    want.sort_unstable();
    assert_eq!(tree(into.path()), want);
    let mode = std::fs::metadata(into.path().join("app/run.sh")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o755, "what could be run still can");
}

#[test]
fn folders_that_cannot_be_layers() {
    type Spoil = fn(&Path);
    let rows: [(&str, Spoil, &str); 4] = [
        ("an absolute link", |p| symlink("/etc/passwd", p.join("a")).unwrap(), r#""a" is a link to "/etc/passwd""#),
        ("a climbing link", |p| symlink("../x", p.join("a")).unwrap(), "leaves the folder"),
        ("a socket", |p| drop(std::os::unix::net::UnixListener::bind(p.join("s")).unwrap()), r#""s" is a socket"#),
        ("nothing there", |p| std::fs::remove_dir(p).unwrap(), ""),
    ];
    for (name, spoil, want) in rows {
        let parent = tempfile::tempdir().unwrap();
        let source = parent.path().join("source");
        std::fs::create_dir(&source).unwrap();
        spoil(&source);
        let error = layer_from_dir(&source, "app", std::io::sink()).unwrap_err();
        assert!(error.to_string().contains(want), "{name}: {error}");
    }
    let error = layer_from_dir(Path::new("/nonexistent"), "../app", std::io::sink()).unwrap_err();
    assert!(matches!(error, ImageError::Outside { .. }), "{error}");
}

struct Fixture {
    folder: tempfile::TempDir,
    registry: Registry,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(&folder.path().join("registry")).unwrap();
        Self { folder, registry }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// A layer of these entries.
    fn layer(&self, entries: &[Entry]) -> Layer {
        let tar = tar_of(entries);
        let bytes = gzip(&tar);
        let info = LayerInfo { digest: Digest::of(&bytes), diff_id: Digest::of(&tar), size: bytes.len() as u64 };
        let path = self.folder.path().join(info.digest.hex());
        std::fs::write(&path, bytes).unwrap();
        Layer { info, path }
    }

    async fn push(&self, repository: &str, layers: Vec<Layer>) -> Digest {
        let config = ImageConfig { cmd: vec!["run".into()], ..ImageConfig::default() };
        push_image(&self.registry, repository, layers, config).await.unwrap()
    }
}

#[tokio::test]
async fn an_image_is_unpacked_once_for_all_who_ask() {
    let fixture = Fixture::new();
    let base = fixture.layer(&[file("usr/lib/a"), link("lib", "/usr/lib"), file("etc/old")]);
    let top = fixture.layer(&[file("app/main.py"), file("etc/.wh.old")]);
    let digest = fixture.push("default/hello", vec![base.clone(), top.clone()]).await;
    assert_eq!(digest, fixture.push("default/hello", vec![base, top]).await, "the same input is the same image");
    let image = format!("127.0.0.1:5000/default/hello@{digest}").parse().unwrap();
    let cache = fixture.cache();
    let asked = futures::future::join_all((0..20).map(|_| ensure_unpacked(&fixture.registry, &image, &cache))).await;
    let unpacked = asked.into_iter().map(Result::unwrap).next().unwrap();
    assert_eq!(unpacked.root, cache.join(digest.hex()).join("rootfs"));
    assert_eq!(
        tree(&unpacked.root),
        ["app/", "app/main.py", "etc/", "lib -> /usr/lib", "usr/", "usr/lib/", "usr/lib/a"]
    );
    assert_eq!((unpacked.config.cmd, unpacked.config.diff_ids.len()), (vec!["run".into()], 2));
    assert_eq!(std::fs::read_dir(cache.join(".partial")).unwrap().count(), 0, "nothing half-done is left");

    // What was made before the machine last started is not trusted, nor is a folder without its end mark.
    let marker = unpacked.root.join("marker");
    for boot in [Some("another start"), None] {
        std::fs::write(&marker, "stale").unwrap();
        match boot {
            Some(boot) => std::fs::write(cache.join(digest.hex()).join("boot"), boot).unwrap(),
            None => std::fs::remove_file(cache.join(digest.hex()).join("boot")).unwrap(),
        }
        ensure_unpacked(&fixture.registry, &image, &cache).await.unwrap();
        assert!(!marker.exists());
    }
    let killed = cache.join(".partial").join(digest.hex());
    std::fs::create_dir(&killed).unwrap();
    let hour = Duration::from_secs(3600);
    let made = std::fs::metadata(cache.join(digest.hex())).unwrap().modified().unwrap();
    let prune = async |keep, now| prune_unpacked(&fixture.registry, &cache, &keep, hour, now).await.unwrap();
    assert_eq!(prune(HashSet::from([digest]), made + hour).await, 0);
    assert!(!killed.exists(), "what a killed process left goes");
    assert_eq!(prune(HashSet::new(), made + hour / 2).await, 0, "it is young: somebody may be about to name it");
    assert_eq!(prune(HashSet::new(), made + hour).await, 1);
    assert!(!unpacked.root.exists());
}

#[tokio::test]
async fn images_that_cannot_be_unpacked() {
    let fixture = Fixture::new();
    let hostile = fixture.layer(&[file("../../escaped")]);
    let bad = fixture.push("default/bad", vec![hostile]).await;
    let good = fixture.push("default/good", vec![fixture.layer(&[file("a")])]).await;
    let unknown = Digest::of(b"unknown");
    let rows = [
        (format!("default/bad@{bad}"), "leaves the folder"),
        (format!("default/good@{bad}"), "not in default/good"),
        (format!("default/good@{unknown}"), "not in default/good"),
        ("default/good:latest".to_owned(), "must be named by its digest"),
    ];
    let cache = fixture.cache();
    for (image, want) in rows {
        let error = ensure_unpacked(&fixture.registry, &image.parse().unwrap(), &cache).await.unwrap_err();
        assert!(error.to_string().contains(want), "{image}: {error}");
    }
    assert!(!fixture.folder.path().join("escaped").exists());
    assert_eq!(std::fs::read_dir(cache.join(".partial")).unwrap().count(), 0);

    // A layer that the disk damaged since it was pushed.
    let manifest = fixture.registry.get_manifest("default/good", &good.to_string()).await.unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
    let layer: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let path = fixture.registry.blob_path("default/good", &layer).await.unwrap();
    std::fs::write(path, gzip(&tar_of(&[file("b")]))).unwrap();
    let image = format!("default/good@{good}").parse().unwrap();
    let error = ensure_unpacked(&fixture.registry, &image, &cache).await.unwrap_err();
    assert!(error.to_string().contains("damaged on disk"), "{error}");
}

#[tokio::test]
async fn blobs_come_whole_or_not_at_all() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let content = Bytes::from_static(b"some content");
    let digest = Digest::of(&content);
    let chunks = |fails: bool| {
        let last = if fails { Err("the line is dead") } else { Ok(content.slice(5..)) };
        futures::stream::iter([Ok(content.slice(..5)), last])
    };
    let put = async |expected: Option<Digest>, limit, fails| {
        registry.put_blob_stream("a/b", expected.as_ref(), limit, chunks(fails)).await
    };
    let wrong = Digest::of(b"other");
    let refused = [
        put(Some(wrong), 100, false).await.unwrap_err().to_string(),
        put(Some(digest), 11, false).await.unwrap_err().to_string(),
        put(Some(digest), 100, true).await.unwrap_err().to_string(),
        registry.put_blob("no-namespace", content.clone()).await.unwrap_err().to_string(),
    ];
    for (text, want) in
        refused.iter().zip(["not sha256", "more than the 11 bytes", "the line is dead", "not a repository"])
    {
        assert!(text.contains(want), "{text}");
    }
    let root = fixture.folder.path().join("registry");
    assert_eq!(tree(&root), ["blobs/", "blobs/sha256/", "uploads/"], "nothing of them is left");

    assert_eq!(put(Some(digest), 12, false).await.unwrap(), (digest, 12));
    assert_eq!(put(None, 12, false).await.unwrap(), (digest, 12), "again is fine");
    assert_eq!(registry.read_blob("a/b", &digest, 12).await.unwrap(), content);
    assert!(matches!(registry.read_blob("a/b", &digest, 11).await, Err(RegistryError::TooLarge { limit: 11 })));
    assert!(!registry.has_blob("a/other", &digest).await.unwrap(), "another repository does not hold it");
    assert!(matches!(registry.open_blob("c/b", &digest).await, Err(RegistryError::BlobUnknown { .. })));

    // After a restart it is there, and what was half-written is not.
    std::fs::write(root.join("uploads/half"), "half").unwrap();
    let registry = Registry::open(&root).unwrap();
    assert!(registry.has_blob("a/b", &digest).await.unwrap());
    assert_eq!(std::fs::read_dir(root.join("uploads")).unwrap().count(), 0);
}

#[tokio::test]
async fn collecting_keeps_what_is_named_or_young() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let kept = fixture.push("default/kept", vec![fixture.layer(&[file("kept")])]).await;
    let gone = fixture.push("default/gone", vec![fixture.layer(&[file("gone")])]).await;
    let source = registry.put_blob("default/sources", Bytes::from_static(b"source")).await.unwrap();
    let keep = HashSet::from([kept, source]);
    let hour = Duration::from_secs(3600);
    // `now` as the file system sees it.
    let now = std::fs::metadata(registry.blob_path("default/sources", &source).await.unwrap()).unwrap();
    let now = now.modified().unwrap() + Duration::from_secs(60);

    let young = registry.collect(&keep, hour, now).await.unwrap();
    assert_eq!((young.manifests, young.blobs), (0, 0), "all of it is young");
    let later: SystemTime = now + hour * 2;
    let collected = registry.collect(&keep, hour, later).await.unwrap();
    // The manifest, its layer; its configuration is the same as the kept one's, apart from the diff id.
    assert_eq!((collected.manifests, collected.blobs), (1, 3));
    assert!(registry.get_manifest("default/gone", &gone.to_string()).await.is_err());
    let image = format!("default/kept@{kept}").parse().unwrap();
    ensure_unpacked(registry, &image, &fixture.cache()).await.unwrap();
    assert!(registry.has_blob("default/sources", &source).await.unwrap());
    let last = registry.collect(&HashSet::new(), hour, later).await.unwrap();
    assert_eq!((last.manifests, last.blobs), (1, 4), "manifest, configuration, layer, source");
}

#[tokio::test]
async fn asking_for_a_blob_keeps_it_for_a_while() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let hour = Duration::from_secs(3600);
    let mut now = SystemTime::UNIX_EPOCH;
    let mut digests = vec![];
    for content in ["asked", "forgotten"] {
        let digest = registry.put_blob("default/sources", content.into()).await.unwrap();
        let link = fixture.folder.path().join("registry/repositories/default/sources/_blobs").join(digest.hex());
        let content = registry.blob_path("default/sources", &digest).await.unwrap();
        for path in [link, content] {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            now = file.metadata().unwrap().modified().unwrap();
            file.set_modified(now - hour * 2).unwrap();
        }
        digests.push(digest);
    }
    assert!(registry.has_blob("default/sources", &digests[0]).await.unwrap());
    let collected = registry.collect(&HashSet::new(), hour, now).await.unwrap();
    assert_eq!((collected.blobs, collected.bytes), (1, "forgotten".len() as u64));
    assert_eq!(registry.read_blob("default/sources", &digests[0], 99).await.unwrap(), "asked");
    assert!(!registry.has_blob("default/sources", &digests[1]).await.unwrap());
}
