//! What a function can and cannot do in its sandbox, tried from inside through the whole product.

use serde_json::Value;

use crate::harness::{DHOW, Platform, eventually, machine};

const PROBE: &str = r#"
import ctypes, errno, os, socket

libc = ctypes.CDLL(None, use_errno=True)

def code(f):
    try:
        return f()
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e.errno))

def call(*args):
    return 0 if libc.syscall(*args) >= 0 else errno.errorcode[ctypes.get_errno()]

def connect(host, port):
    def go():
        with socket.socket() as s:
            s.settimeout(1)
            s.connect((host, port))
        return 'connected'
    return code(go)

def write(path):
    def go():
        with open(path, 'w') as f:
            f.write('x')
        return 'written'
    return code(go)

def status():
    with open('/proc/self/status') as f:
        return dict(line.rstrip('\n').split(':\t', 1) for line in f if ':\t' in line)

def handle(request):
    if request.path == '/connect':
        return connect(request.query['host'], int(request.query['port']))
    s = status()
    return {
        'uid': os.getuid(), 'gid': os.getgid(), 'groups': os.getgroups(), 'pid': os.getpid(),
        'caps': [s['CapInh'], s['CapPrm'], s['CapEff'], s['CapBnd'], s['CapAmb']],
        'no_new_privs': s['NoNewPrivs'], 'seccomp': s['Seccomp'],
        'processes': [p for p in os.listdir('/proc') if p.isdigit()],
        'descriptors': sorted(int(d) for d in os.listdir('/proc/self/fd')),
        'root': sorted(os.listdir('/')),
        'home': code(lambda: os.listdir('/root')), 'shadow': code(lambda: open('/etc/shadow').read()),
        'usr': write('/usr/x'), 'app': write('/app/x'), 'etc': write('/etc/x'), 'tmp': write('/tmp/x'),
        'mount': call(165, b'none', b'/tmp', b'tmpfs', 0, None), 'unshare': call(272, 0x10000000),
        'ptrace': call(101, 0, 0, 0, 0), 'bpf': call(321, 0, 0, 0), 'keyctl': call(250, 0, 0, 0, 0, 0),
        'io_uring': call(425, 1, 0), 'hostname': socket.gethostname(),
        'raw': code(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW) and 'opened'),
        'environment': sorted(os.environ),
        'namespaces': {n: os.readlink('/proc/self/ns/' + n) for n in ('mnt', 'pid', 'ipc', 'uts', 'net')},
    }
"#;

#[tokio::test]
async fn every_property_of_the_sandbox() {
    if !machine() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("probe", &[("main.py", PROBE)]);
    let seen = platform.get("probe", "/").await.json();
    assert!(seen["uid"].as_u64().is_some_and(|uid| uid >= 100_000), "a uid of its own: {seen}");
    assert_eq!(seen["groups"], serde_json::json!([]), "{seen}");
    for set in seen["caps"].as_array().expect("sets") {
        assert_eq!(set, "0000000000000000", "no capability in any set: {seen}");
    }
    assert_eq!((&seen["no_new_privs"], &seen["seccomp"]), (&"1".into(), &"2".into()), "{seen}");
    assert_eq!(seen["processes"], serde_json::json!([seen["pid"].to_string()]), "sees only itself: {seen}");
    for path in ["usr", "app", "etc"] {
        assert!(["EROFS", "EACCES", "EPERM"].contains(&seen[path].as_str().unwrap_or("")), "{path}: {seen}");
    }
    assert_eq!(seen["tmp"], "written", "{seen}");
    for hidden in ["home", "shadow"] {
        assert!(["ENOENT", "EACCES"].contains(&seen[hidden].as_str().unwrap_or("")), "{hidden}: {seen}");
    }
    for refused in ["mount", "unshare", "ptrace", "bpf", "keyctl", "io_uring"] {
        assert!(["EPERM", "ENOSYS", "EACCES"].contains(&seen[refused].as_str().unwrap_or("")), "{refused}: {seen}");
    }
    assert_ne!(seen["raw"], "opened", "{seen}");
    let pod = platform.pods("probe").pop().expect("a pod");
    assert_eq!(seen["hostname"], pod.as_str(), "{seen}");
    let visible: Vec<&str> = seen["environment"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
    for secret in ["TOKEN", "KUBECONFIG", "DHOW_KUBECONFIG", "SSH_AUTH_SOCK"] {
        assert!(!visible.iter().any(|name| name.contains(secret)), "{visible:?}");
    }
    for (namespace, inside) in seen["namespaces"].as_object().expect("names") {
        let outside = std::fs::read_link(format!("/proc/self/ns/{namespace}")).expect("the host's");
        assert_ne!(inside.as_str().expect("a link"), outside.to_str().expect("UTF-8"), "{namespace} is the host's");
    }
    // The request's own connection and the server's machinery are there; nothing of the platform's is.
    let open = seen["descriptors"].as_array().expect("numbers").len();
    assert!(open <= 16, "{seen}");
}

#[tokio::test]
async fn the_network_rules() {
    if !machine() {
        return;
    }
    let platform = Platform::start().await;
    platform.deploy("probe", &[("main.py", PROBE)]);
    platform.deploy("other", &[("main.py", PROBE)]);
    let open = tokio::net::TcpListener::bind("0.0.0.0:0").await.expect("a host listener");
    let port = open.local_addr().expect("bound").port();
    let api_port = platform.endpoint("api").rsplit_once(':').expect("a port").1.to_owned();
    let host_addresses = addresses_of_the_host();
    let other_pod = platform.pods("other").pop().expect("a pod");
    let other_ip = platform.object("pod", &other_pod)["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    let mut targets: Vec<(String, String)> = host_addresses.iter().map(|a| (a.clone(), port.to_string())).collect();
    targets.extend(host_addresses.iter().map(|a| (a.clone(), api_port.clone())));
    targets.push((other_ip, "8080".to_owned()));
    targets.push(("169.254.169.254".to_owned(), "80".to_owned()));
    targets.push(("127.0.0.1".to_owned(), port.to_string()));
    let internal = platform.endpoint("gateway_internal");
    let (host, port) = internal.rsplit_once(':').expect("an address");
    let seen = platform.get("probe", &format!("/connect?host={host}&port={port}")).await.text();
    assert_eq!(seen, "connected", "the network is there: the gateway's side for pods can be reached");
    for (host, port) in targets {
        let seen = platform.get("probe", &format!("/connect?host={host}&port={port}")).await.text();
        assert_ne!(seen, "connected", "a pod reached {host}:{port}");
    }
}

fn addresses_of_the_host() -> Vec<String> {
    let output = std::process::Command::new("ip").args(["-4", "-o", "addr"]).output().expect("ip runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let fields = text.lines().filter_map(|l| l.split_whitespace().nth(3));
    let all = fields.filter_map(|a| a.split('/').next()).filter(|a| !a.starts_with("127.")).map(str::to_owned);
    all.collect()
}

#[tokio::test]
async fn the_cpu_limit_is_the_kernels() {
    if !machine() {
        return;
    }
    let platform = Platform::start().await;
    let manifest = serde_json::json!({
        "apiVersion": "dhow.dev/v1alpha1", "kind": "Function", "metadata": {"name": "fifth"},
        "spec": {"runtime": "python", "resources": {"limits": {"cpu": "200m"}}, "source": {"inline": {"files": {
            "main.py": "def handle(request):\n    return open('/proc/self/cgroup').read()\n"}}}},
    });
    let path = platform.dir.path().join("fifth.json");
    std::fs::write(&path, manifest.to_string()).expect("written");
    platform.kubectl_ok(&["apply", "-f", path.to_str().expect("UTF-8")]);
    platform.kubectl_ok(&["wait", "--for=condition=Ready", "function/fifth", "--timeout=60s"]);
    assert_eq!(platform.get("fifth", "/").await.status.as_u16(), 200);
    let shares = crate::harness::cpu_shares(&platform.slot());
    assert!(shares.iter().any(|share| (share - 0.2).abs() < 0.001), "a fifth of a processor: {shares:?}");
}

#[tokio::test]
async fn without_root_it_says_what_is_missing() {
    if !machine() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("dhow-e2e-user-").tempdir().expect("a folder");
    let program = dir.path().join("dhow");
    std::fs::copy(DHOW, &program).expect("a copy that anybody may run");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(dir.path(), open).expect("a folder for everybody");
    let data = dir.path().join("data");
    let nobody = 65534;
    let mut command = std::process::Command::new(&program);
    command.arg("up").arg("--data-dir").arg(&data);
    for listener in ["api", "gateway", "gateway-tls", "console", "metrics", "registry"] {
        command.arg(format!("--{listener}-listen")).arg("127.0.0.1:0");
    }
    let log = dir.path().join("log");
    command.stderr(std::fs::File::create(&log).expect("a log"));
    std::os::unix::process::CommandExt::uid(&mut command, nobody);
    std::os::unix::process::CommandExt::gid(&mut command, nobody);
    let mut child = crate::harness::Running(command.spawn().expect("dhow up starts"));
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("it is up without root", || async {
        if data.join("endpoints.json").exists() { Ok(()) } else { Err(said()) }
    })
    .await;
    let dhow = |args: &[&str]| {
        let output =
            std::process::Command::new(DHOW).args(args).env("DHOW_KUBECONFIG", data.join("kubeconfig")).output();
        let output = output.expect("dhow runs");
        assert!(output.status.success(), "{args:?}: {}\n{}", crate::harness::said(&output), said());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let status: Value = serde_json::from_str(&dhow(&["status", "-o", "json"])).expect("JSON");
    let missing = status["nodes"][0]["missingIsolation"].as_array().cloned().unwrap_or_default();
    assert!(!missing.is_empty(), "{status}");
    assert!(
        missing.iter().any(|m| m.as_str().is_some_and(|m| m.contains("root"))),
        "says what would help: {missing:?}"
    );
    let text = dhow(&["status"]);
    for sentence in missing.iter().filter_map(Value::as_str) {
        assert!(text.contains(sentence), "{sentence}: {text}");
    }
    if let Some(kubectl) = crate::harness::kubectl() {
        let mut command = std::process::Command::new(kubectl);
        command.args(["get", "nodes", "-o", "json"]).env("KUBECONFIG", data.join("kubeconfig"));
        let nodes: Value = serde_json::from_slice(&command.output().expect("kubectl runs").stdout).expect("JSON");
        let conditions = nodes["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let isolation = conditions.into_iter().find(|c| c["type"] == "IsolationComplete").unwrap_or_default();
        assert_eq!((&isolation["status"], &isolation["reason"]), (&"False".into(), &"Incomplete".into()), "{nodes}");
    }
    assert!(said().contains("isolation"), "the log says so too: {}", said());
    let source = dir.path().join("hello");
    crate::harness::write_files(&source, crate::function::HELLO);
    dhow(&["deploy", source.to_str().expect("UTF-8")]);
    assert!(dhow(&["invoke", "hello"]).contains("world"), "a function is served all the same");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.0.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signalled");
    assert!(child.0.wait().expect("reaped").success(), "{}", said());
}
