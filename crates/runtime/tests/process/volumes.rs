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

/// A sandbox of several containers that share a volume, each a script; all but the last are waited for.
fn one_after_another(uid: &str, scripts: &[&str]) -> SandboxSpec {
    let mut spec = shell(uid, "");
    let template = spec.containers.remove(0);
    for (i, script) in scripts.iter().enumerate() {
        let mut container = template.clone();
        container.name = format!("c{i}");
        container.init = i + 1 < scripts.len();
        container.program = Program::Exec { argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec() };
        container.mounts = vec![mount("v", "", "/v", true)];
        spec.containers.push(container);
    }
    spec.volumes = vec![volume("v", &[])];
    spec
}

async fn ended(platform: &Platform, uid: &str) -> Sandbox {
    let mut events = platform.provider.events();
    let here = platform.provider.list().await.expect("a list").into_iter().find(|s| s.uid == uid);
    let mut sandbox = here.expect("it was created");
    while !sandbox.is_exited() {
        let next = events.recv().await.expect("events");
        if next.uid == uid {
            sandbox = next;
        }
    }
    sandbox
}

fn codes(sandbox: &Sandbox) -> Vec<i32> {
    let code = |c: &Container| match &c.phase {
        Phase::Exited(exit) => exit.code,
        other => panic!("{other:?}"),
    };
    sandbox.containers.iter().map(code).collect()
}

pub async fn init_containers_are_waited_for() {
    let platform = Platform::start().await;
    let script = "sleep 0.1; echo $0 >> /v/order; ls /v/second && exit 9; exit 0";
    let spec = one_after_another(
        "a",
        &[script, "echo second >> /v/order", "cat /v/order > /v/seen; [ $(wc -l < /v/seen) = 2 ]"],
    );
    let made = platform.provider.create(std::sync::Arc::new(spec)).await.expect("a sandbox");
    assert!(!made.is_ready(), "{made:?}");
    assert!(matches!(made.containers[2].phase, Phase::Starting { .. }), "{made:?}");
    assert_eq!(codes(&ended(&platform, "a").await), [0, 0, 0]);
    platform.provider.stop("a", std::time::Duration::ZERO).await.expect("a stop");
    // After one that fails nothing starts.
    let spec = one_after_another("b", &["true", "exit 3", "touch /v/never"]);
    platform.provider.create(std::sync::Arc::new(spec)).await.expect("a sandbox");
    assert_eq!(codes(&ended(&platform, "b").await), [0, 3, 137]);
    platform.provider.stop("b", std::time::Duration::ZERO).await.expect("a stop");
    // Nor after one that is stopped, or that cannot be started.
    let spec = one_after_another("c", &["sleep 100", "true"]);
    platform.provider.create(std::sync::Arc::new(spec)).await.expect("a sandbox");
    platform.provider.stop("c", std::time::Duration::ZERO).await.expect("a stop");
    let mut spec = one_after_another("d", &["true", "true", "true"]);
    spec.containers[1].mounts[0] =
        Mount { source: Source::Host("/nowhere".into()), ..spec.containers[1].mounts[0].clone() };
    platform.provider.create(std::sync::Arc::new(spec)).await.expect("a sandbox");
    assert_eq!(codes(&ended(&platform, "d").await), [0, 128, 137]);
    platform.provider.stop("d", std::time::Duration::ZERO).await.expect("a stop");
    assert!(platform.provider.list().await.expect("a list").is_empty());
}

pub async fn what_waited_serves() {
    let platform = Platform::start().await;
    let mut spec = server("a");
    let mut first = shell("a", "sleep 0.2").containers.remove(0);
    (first.name, first.init) = ("first".to_owned(), true);
    spec.containers.insert(0, first);
    platform.provider.create(std::sync::Arc::new(spec)).await.expect("a sandbox");
    let ready = platform.ready("a").await;
    assert!(matches!(&ready.containers[0].phase, Phase::Exited(exit) if exit.code == 0), "{ready:?}");
    platform.provider.stop("a", std::time::Duration::ZERO).await.expect("a stop");
}
