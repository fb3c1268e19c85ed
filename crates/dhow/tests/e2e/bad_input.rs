//! What goes wrong, and what the person then sees: each clause of "bad input" is a test.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::function::HELLO;
use crate::harness::{Platform, able, eventually, machine, said, stderr};

/// Deploys what cannot work; returns what the command line said. It must end by itself.
fn fails_to_deploy(platform: &Platform, name: &str, files: &[(&str, &str)]) -> String {
    let dir = platform.write_function(name, files);
    let output = platform.dhow(&["deploy", dir.to_str().expect("UTF-8")]);
    assert!(!output.status.success(), "{}", said(&output));
    stderr(&output)
}

fn ready_condition(platform: &Platform, kind: &str, name: &str) -> Value {
    let object = platform.object(kind, name);
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == "Ready").unwrap_or(Value::Null)
}

#[tokio::test]
async fn a_handler_that_does_not_import() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let said = fails_to_deploy(
        &platform,
        "broken",
        &[("main.py", "import no_such_module\n\ndef handle(request):\n    return 1\n")],
    );
    assert!(said.contains("no_such_module"), "{said}");
    assert!(said.contains("dhow logs broken") || said.contains("dhow describe broken"), "says what to do next: {said}");
    let described = platform.kubectl_ok(&["describe", "function", "broken"]);
    assert!(described.contains("no_such_module"), "{described}");
    assert_eq!(ready_condition(&platform, "function", "broken")["status"], "False");
    eventually("its logs say why", || async {
        // A container that starts again has said nothing yet.
        let logs = platform.dhow_ok(&["logs", "broken"]);
        if logs.contains("no_such_module") { Ok(()) } else { Err(logs) }
    })
    .await;
    let no_handler = fails_to_deploy(&platform, "nohandler", &[("main.py", "x = 1\n")]);
    assert!(no_handler.contains("handle"), "{no_handler}");
    let syntax = fails_to_deploy(&platform, "jssyntax", &[("index.mjs", "export default {\n")]);
    assert!(syntax.contains("not valid JavaScript"), "{syntax}");
}

#[tokio::test]
async fn a_missing_dependency() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let files = [
        ("requirements.txt", "dhow-no-such-package-3141592==1.0\n"),
        ("main.py", "def handle(request):\n    return 1\n"),
    ];
    let said = fails_to_deploy(&platform, "nodep", &files);
    assert!(said.contains("dhow-no-such-package-3141592"), "{said}");
    let described = platform.kubectl_ok(&["describe", "function", "nodep"]);
    assert!(described.contains("dhow-no-such-package-3141592"), "{described}");
}

#[tokio::test]
async fn a_function_that_exits() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let at_start =
        fails_to_deploy(&platform, "exits", &[("main.py", "import sys\nprint('bye now', flush=True)\nsys.exit(7)\n")]);
    assert!(at_start.contains("bye now") || at_start.contains('7'), "{at_start}");
    let on_request =
        "import os\n\ndef handle(request):\n    if request.path == '/die':\n        os._exit(3)\n    return 'alive'\n";
    platform.deploy("dies", &[("main.py", on_request)]);
    let died = platform.get("dies", "/die").await;
    assert_eq!(died.status.as_u16(), 502, "{}", died.text());
    assert!(died.text().contains("dies"), "names the function: {}", died.text());
    eventually("another instance answers", || async {
        let reply = platform.get("dies", "/").await;
        if reply.text() == "alive" { Ok(()) } else { Err(reply.text()) }
    })
    .await;
}

#[tokio::test]
async fn a_function_that_never_becomes_ready() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let dir = platform.write_function("stuck", &[("main.py", "import time\ntime.sleep(100000)\n")]);
    let output = platform.dhow(&["deploy", "--timeout", "8", dir.to_str().expect("UTF-8")]);
    assert!(!output.status.success(), "{}", said(&output));
    assert!(stderr(&output).contains("stuck"), "{}", stderr(&output));
    // On a slow machine the time is up before the build is.
    let pod =
        eventually("its pod is there to be looked at", || async { platform.pods("stuck").pop().ok_or("none") }).await;
    assert!(
        platform.kubectl_ok(&["describe", "pod", &pod]).contains("not ready")
            || platform.kubectl_ok(&["get", "pod", &pod]).contains("0/1")
    );
}

#[tokio::test]
async fn a_request_past_its_timeout() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let manifest = json!({
        "apiVersion": "dhow.dev/v1alpha1", "kind": "Function", "metadata": {"name": "sleeps"},
        "spec": {"runtime": "python", "timeoutSeconds": 1, "source": {"inline": {"files": {
            "main.py": "import time\n\ndef handle(request):\n    if request.path == '/sleep':\n        time.sleep(30)\n    return 'awake'\n"}}}},
    });
    let path = platform.dir.path().join("sleeps.json");
    std::fs::write(&path, manifest.to_string()).expect("written");
    platform.kubectl_ok(&["apply", "-f", path.to_str().expect("UTF-8")]);
    platform.kubectl_ok(&["wait", "--for=condition=Ready", "function/sleeps", "--timeout=60s"]);
    let late = platform.get("sleeps", "/sleep").await;
    assert_eq!(late.status.as_u16(), 504, "{}", late.text());
    assert!(late.text().contains("timeout"), "{}", late.text());
    eventually("others are served", || async {
        let reply = platform.get("sleeps", "/").await;
        if reply.text() == "awake" { Ok(()) } else { Err(reply.text()) }
    })
    .await;
}

#[tokio::test]
async fn past_its_memory_limit() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let manifest = json!({
        "apiVersion": "dhow.dev/v1alpha1", "kind": "Function", "metadata": {"name": "greedy"},
        "spec": {"runtime": "python", "resources": {"limits": {"memory": "64Mi"}}, "source": {"inline": {"files": {
            "main.py": "def handle(request):\n    if request.path == '/eat':\n        return str(len(bytearray(300 * 1024 * 1024)))\n    return 'ok'\n"}}}},
    });
    let path = platform.dir.path().join("greedy.json");
    std::fs::write(&path, manifest.to_string()).expect("written");
    platform.kubectl_ok(&["apply", "-f", path.to_str().expect("UTF-8")]);
    platform.kubectl_ok(&["wait", "--for=condition=Ready", "function/greedy", "--timeout=60s"]);
    let eaten = platform.get("greedy", "/eat").await;
    assert!([500, 502].contains(&eaten.status.as_u16()), "{} {}", eaten.status, eaten.text());
    eventually("the pod says why", || async {
        let pods = platform.kubectl_ok(&["get", "pods", "-o", "json"]);
        if pods.contains("OOMKilled") {
            return Ok(());
        }
        // A kubelet hears only of some of them from containerd, when the machine is busy.
        if platform.is_cluster() {
            platform.get("greedy", "/eat").await;
        }
        Err(pods)
    })
    .await;
    assert!(platform.kubectl_ok(&["describe", "pods"]).contains("OOMKilled"), "and kubectl describe says it");
    eventually("another instance answers", || async {
        let reply = platform.get("greedy", "/").await;
        if reply.text() == "ok" { Ok(()) } else { Err(reply.text()) }
    })
    .await;
}

#[tokio::test]
async fn fork_bombs_full_disks_and_endless_logs() {
    if !machine() {
        return;
    }
    let platform = Platform::start().await;
    let hostile = r#"
import errno, os

def handle(request):
    if request.path == '/fork':
        children, error = [], None
        try:
            while len(children) < 5000:
                pid = os.fork()
                if pid == 0:
                    import signal
                    signal.pause()
                children.append(pid)
        except OSError as e:
            error = errno.errorcode[e.errno]
        for pid in children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        return {'forked': len(children), 'error': error}
    if request.path == '/fill':
        try:
            with open('/tmp/fill', 'wb') as f:
                for _ in range(4096):
                    f.write(b'x' * (1 << 20))
        except OSError as e:
            return {'error': errno.errorcode[e.errno]}
        finally:
            os.unlink('/tmp/fill')
        return {'error': None}
    if request.path == '/log':
        for i in range(400000):
            print('x' * 100, i)
        return {'logged': True}
    return 'ok'
"#;
    platform.deploy("hostile", &[("main.py", hostile)]);
    let forked = platform.get("hostile", "/fork").await.json();
    assert_eq!(forked["error"], "EAGAIN", "{forked}");
    let filled = platform.get("hostile", "/fill").await.json();
    assert_eq!(filled["error"], "ENOSPC", "{filled}");
    assert_eq!(platform.get("hostile", "/log").await.json()["logged"], true);
    let kept: u64 =
        walk(&platform.data_dir()).iter().filter(|(path, _)| path.contains("log")).map(|(_, size)| size).sum();
    assert!(kept < 20 << 20, "40 MB were written, {kept} bytes are kept");
    assert_eq!(platform.get("hostile", "/").await.text(), "ok", "the instance lives on");
}

fn walk(dir: &std::path::Path) -> Vec<(String, u64)> {
    let mut found = vec![];
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(m) if m.is_dir() => found.extend(walk(&entry.path())),
            Ok(m) => found.push((entry.path().display().to_string(), m.len())),
            Err(_) => {}
        }
    }
    found
}

#[tokio::test]
async fn folders_that_cannot_be_deployed() {
    if !machine() {
        return;
    }
    let platform = Platform::start_with(&["--max-source", "1Mi"]).await;
    let empty = platform.write_function("empty", &[]);
    std::fs::create_dir_all(&empty).expect("a folder");
    let deploy = |dir: &std::path::Path| {
        let output = platform.dhow(&["deploy", dir.to_str().expect("UTF-8")]);
        assert!(!output.status.success(), "{}", said(&output));
        stderr(&output)
    };
    assert!(deploy(&empty).contains("empty"));
    let large = platform.write_function("large", &[("main.py", "def handle(r):\n    return 1\n")]);
    // Noise, since the limit is on what is uploaded and zeros would shrink to nothing.
    let noise: Vec<u8> =
        (0..3u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ (i.wrapping_mul(i) >> 7) as u8).collect();
    std::fs::write(large.join("noise.bin"), noise).expect("written");
    let said = deploy(&large);
    assert!(said.contains("1048576 bytes") && said.contains("--max-source"), "the platform's limit: {said}");
    let output = platform.dhow(&["deploy", "--max-source", "1Mi", large.to_str().expect("UTF-8")]);
    assert!(stderr(&output).contains("noise.bin"), "the command line names the largest files: {}", stderr(&output));
    let escaping = platform.write_function("escaping", &[("main.py", "def handle(r):\n    return 1\n")]);
    symlink("/etc/passwd", escaping.join("secret")).expect("a link");
    let said = deploy(&escaping);
    assert!(said.contains("secret"), "names the link: {said}");
    let relative = platform.write_function("relative", &[("main.py", "def handle(r):\n    return 1\n")]);
    symlink("../../outside", relative.join("up")).expect("a link");
    assert!(deploy(&relative).contains("up"));
    let unknown = platform.write_function("unknown", &[("README.md", "hello\n")]);
    let said = deploy(&unknown);
    assert!(said.contains("python") && said.contains("node"), "says what it looks for: {said}");
}

#[tokio::test]
async fn a_taken_port() {
    if !machine() {
        return;
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    for listener in ["api", "gateway", "gateway-tls", "console", "metrics", "registry", "gateway-internal"] {
        let flag = &format!("--{listener}-listen") as &str;
        let platform = Platform::new(&[flag, &address]);
        let status = platform.up_command().status().expect("dhow runs");
        assert!(!status.success(), "{flag}");
        let log = platform.log();
        assert!(log.contains(&address) && log.contains(flag), "{flag}: {log}");
    }
}

#[tokio::test]
async fn a_corrupt_data_directory() {
    if !machine() {
        return;
    }
    let mut platform = Platform::start().await;
    platform.deploy("hello", HELLO);
    platform.stop().await;
    let database = walk(&platform.data_dir()).into_iter().map(|(path, _)| path).find(|p| p.ends_with(".db"));
    let database = database.expect("the store's file");
    let mut bytes = std::fs::read(&database).expect("readable");
    for byte in bytes.iter_mut().take(4096) {
        *byte ^= 0x5a;
    }
    std::fs::write(&database, &bytes).expect("written");
    let status = platform.up_command().status().expect("dhow runs");
    assert!(!status.success());
    let log = platform.log();
    assert!(log.contains(&database), "names the file: {log}");
}

#[tokio::test]
async fn only_one_platform_per_data_directory() {
    if !machine() {
        return;
    }
    let platform = Platform::start().await;
    let status = platform.up_command().status().expect("dhow runs");
    assert!(!status.success());
    assert!(platform.log().contains("another"), "{}", platform.log());
}

#[tokio::test]
async fn logs_of_any_bytes() {
    if !able() {
        return;
    }
    let platform = Platform::start().await;
    let noisy =
        "import os\n\ndef handle(request):\n    os.write(1, bytes(range(256)) + b'\\nafter\\n')\n    return 'ok'\n";
    platform.deploy("noisy", &[("main.py", noisy)]);
    assert_eq!(platform.get("noisy", "/").await.text(), "ok");
    eventually("what came after the noise is shown", || async {
        let logs = platform.dhow_ok(&["logs", "noisy"]);
        if logs.lines().any(|line| line == "after") { Ok(()) } else { Err(logs) }
    })
    .await;
}
