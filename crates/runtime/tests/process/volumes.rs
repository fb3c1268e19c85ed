//! Volumes: shared by the containers of a sandbox, filled from the start, bounded, and gone with it.

use runtime::*;

use crate::harness::*;

fn shell(uid: &str, script: &str) -> SandboxSpec {
    exec(uid, ["/bin/sh", "-c", script].map(str::to_owned).to_vec())
}

fn volume(name: &str, files: &[(&str, u32, &str)]) -> Volume {
    let file = |(path, mode, content): &(&str, u32, &str)| VolumeFile {
        path: (*path).to_owned(),
        mode: *mode,
        content: content.to_string().into(),
    };
    Volume { name: name.to_owned(), bytes: 1 << 20, files: files.iter().map(file).collect() }
}

fn mount(name: &str, path: &str, inside: &str, writable: bool) -> Mount {
    let source = Source::Volume { name: name.to_owned(), path: path.to_owned() };
    Mount { source, inside: inside.to_owned(), writable }
}

pub async fn volumes_are_filled() {
    let platform = Platform::start().await;
    let mut spec = shell(
        "a",
        "cat /config/a /config/deep/er/b /etc/one; stat -c %a /config/a /config/deep/er/b
         echo x 2>&1 > /config/new; echo x 2>&1 > /config/a; echo y > /scratch/y && cat /scratch/y; ls /scratch/sub",
    );
    spec.volumes = vec![volume("config", &[("a", 0o644, "A\n"), ("deep/er/b", 0o400, "B\n")]), volume("scratch", &[])];
    spec.containers[0].mounts = vec![
        mount("scratch", "made/here", "/scratch/sub", false),
        mount("config", "", "/config", false),
        mount("config", "a", "/etc/one", false),
        mount("scratch", "", "/scratch", true),
    ];
    let (text, exit) = platform.run(spec).await;
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("Read-only")).collect();
    assert_eq!(lines, ["A", "B", "A", "644", "444", "y"], "{text} {exit:?}");
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    let held: Vec<_> = std::fs::read_dir(platform.folder.path().join("volumes")).expect("the folder").collect();
    assert!(held.is_empty(), "{held:?}");
}

pub async fn volumes_are_shared_and_bounded() {
    let platform = Platform::start().await;
    let mut spec = shell(
        "a",
        "until [ -e /v/ready ]; do sleep 0.05; done; cat /v/ready
         head -c 4000000 /dev/zero > /v/large 2>/dev/null || echo full; [ $(stat -c %s /v/large) -le 1100000 ] && echo bounded",
    );
    let mut second = spec.containers[0].clone();
    second.name = "second".to_owned();
    second.program = Program::Exec {
        argv: ["/bin/sh", "-c", "echo shared > /w/new; mv /w/new /w/ready"].map(str::to_owned).to_vec(),
    };
    spec.volumes = vec![volume("v", &[])];
    spec.containers[0].mounts = vec![mount("v", "", "/v", true)];
    second.mounts = vec![mount("v", "", "/w", true)];
    spec.containers.push(second);
    let (text, exit) = platform.run(spec).await;
    assert_eq!(text, "shared\nfull\nbounded\n", "{exit:?}");
}

pub async fn a_volume_does_not_lead_out() {
    let platform = Platform::start().await;
    let secret = platform.folder.path().join("secret");
    std::fs::create_dir(&secret).expect("a folder");
    // Whatever links are planted in a volume, nothing is looked up through them.
    let mut spec = shell("a", "ln -s / /v/out && ln -s ../../secret /v/up && echo planted && sleep 60");
    spec.volumes = vec![volume("v", &[])];
    spec.containers[0].mounts = vec![mount("v", "", "/v", true)];
    let mut late = spec.clone();
    late.uid = "b".to_owned();
    late.volumes = vec![volume("v", &[("out/f", 0o644, "x")])];
    late.containers[0].mounts = vec![mount("v", "out/../../..", "/v", true)];
    let refused = platform.provider.create(std::sync::Arc::new(late)).await.expect_err("a refusal");
    assert_eq!(refused.class(), ErrorClass::Invalid, "{refused}");
    platform.provider.create(std::sync::Arc::new(spec)).await.expect("a sandbox");
    platform.provider.stop("a", std::time::Duration::ZERO).await.expect("a stop");
}
