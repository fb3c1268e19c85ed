//! Images as roots: what is in them, what is not, and what becomes of what is written.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use runtime::*;

use crate::harness::*;

/// An unpacked image with nothing but a shell, and links where sandboxes have folders of their own.
fn image(platform: &Platform) -> PathBuf {
    let root = platform.folder.path().join("image");
    let copy = |file: &str| {
        let inside = root.join(file.trim_start_matches('/'));
        std::fs::create_dir_all(inside.parent().expect("a folder")).expect("a folder");
        std::fs::copy(file, inside).expect("a copy");
    };
    let libraries = Command::new("ldd").arg("/bin/sh").output().expect("ldd").stdout;
    let libraries = String::from_utf8_lossy(&libraries).into_owned();
    libraries.split_whitespace().filter(|word| word.starts_with('/')).chain(["/bin/sh"]).for_each(copy);
    std::fs::create_dir_all(root.join("etc")).expect("a folder");
    std::fs::create_dir_all(root.join("var/lib/app")).expect("a folder");
    std::fs::write(root.join("etc/own"), "of the image\n").expect("a file");
    for (link, target) in
        [("etc/resolv.conf", "../own"), ("etc/hosts", "/etc/own"), ("tmp", "/etc"), ("proc", "/var"), ("dev", "etc")]
    {
        symlink(target, root.join(link)).expect("a link");
    }
    root
}

fn of(image: &Path, uid: &str, script: &str, read_only: bool) -> SandboxSpec {
    let mut spec = exec(uid, ["/bin/sh", "-c", script].map(str::to_owned).to_vec());
    spec.containers[0].root = Root::Image { folder: image.to_owned(), read_only };
    spec
}

pub async fn an_image_is_the_root() {
    let platform = Platform::start().await;
    let image = image(&platform);
    let before = files(&image);
    let script = "
        read own < /etc/own; echo \"own: $own\"
        read host name < /etc/hosts; echo \"hosts: $host $name\"
        [ -e /usr/bin/python3 ] && echo python
        [ -e /dhow ] && echo dhow
        [ -e /proc/self/status ] || echo no proc
        [ -c /dev/null ] && [ -c /dev/urandom ] || echo no devices
        echo x > /etc/own && echo x > /var/lib/app/new && echo x > /top && echo x > /tmp/t && echo x > /dev/shm/s || echo not written
        for folder in /proc/1/root/image /image /image/space/upper; do [ -e $folder ] && echo sees $folder; done
        read own < /etc/own; echo \"now: $own\"
    ";
    for uid in ["a", "b"] {
        let (text, exit) = platform.run(of(&image, uid, script, false)).await;
        assert_eq!(text, "own: of the image\nhosts: 127.0.0.1 localhost\nnow: x\n", "{exit:?}");
    }
    assert_eq!(files(&image), before);
}

pub async fn an_image_has_its_own_user() {
    let platform = Platform::start().await;
    let image = image(&platform);
    let script = "
        while read name real effective rest; do
            [ \"$name\" = Uid: ] && echo user $real $effective
            [ \"$name\" = Gid: ] && echo group $real $effective
            [ \"$name\" = CapBnd: ] && echo capabilities $real
        done < /proc/self/status
        echo x > /etc/own && echo x > /tmp/t && echo written
        echo x > /proc/sys/kernel/hostname || echo kept out";
    let mut spec = of(&image, "a", script, false);
    spec.containers[0].user = Some(User { user: 2020, group: 7 });
    let (text, exit) = platform.run(spec).await;
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("/bin/sh")).collect();
    let want = ["user 2020 2020", "group 7 7", "capabilities 0000000000000000", "written", "kept out"];
    assert_eq!(lines, want, "{text} {exit:?}");
}

pub async fn a_container_sees_its_own_limits() {
    let platform = Platform::start().await;
    let image = image(&platform);
    let script = "
        for file in memory/memory.limit_in_bytes cpu/cpu.shares memory.max cpu.weight; do
            file=/sys/fs/cgroup/$file
            [ -e $file ] || continue
            read value < $file; echo $value
            echo 7 > $file && echo changed
        done
        echo end";
    for root in [Root::Image { folder: image.clone(), read_only: false }, Root::Host] {
        let mut spec = of(&image, "a", script, false);
        spec.containers[0].root = root;
        spec.containers[0].limits.memory_bytes = Some(64 << 20);
        spec.containers[0].limits.cpu_request_millis = Some(500);
        let (text, exit) = platform.run(spec).await;
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("/bin/sh")).collect();
        let weight = lines.get(1).copied().unwrap_or_default();
        assert!(["512", "20"].contains(&weight), "{text} {exit:?}");
        assert_eq!(lines, ["67108864", weight, "end"], "{text}");
    }
}

pub async fn an_image_may_be_read_only() {
    let platform = Platform::start().await;
    let image = image(&platform);
    let (text, _) = platform.run(of(&image, "a", "echo x > /etc/own; echo x > /top; echo done", true)).await;
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    assert!(text.contains("done\n"), "{text}");
}

pub async fn what_is_written_over_an_image_is_bounded() {
    let platform = Platform::start().await;
    let image = image(&platform);
    let script = "text=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
        for i in 1 2 3 4 5 6 7 8; do text=$text$text; done
        i=0; while [ $i -lt 400 ] && echo $text >> /var/lib/app/full; do i=$((i + 1)); done
        [ $i -lt 400 ] && echo full; echo x > /tmp/more || echo no more";
    let mut spec = of(&image, "a", script, false);
    spec.containers[0].limits.tmp_bytes = 1 << 20;
    let (text, _) = platform.run(spec).await;
    assert!(text.contains("full\n") && text.contains("no more\n"), "{text}");
}

/// Every file below a folder, and its content.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        match entry.file_type().expect("a type") {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            kind if kind.is_file() => found.push((entry.path(), std::fs::read(entry.path()).expect("a file"))),
            _ => {}
        }
    }
    found.sort();
    found
}
