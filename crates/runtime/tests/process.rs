//! The process provider against this machine's kernel, as root. The test binary is its own launcher.

#[macro_use]
mod harness;
#[path = "process/images.rs"]
mod images;
#[path = "process/visits.rs"]
mod visits;
#[path = "process/volumes.rs"]
mod volumes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use harness::*;
use images::*;
use runtime::conformance::{self, Behaviour, Subject, Visitor};
use runtime::*;
use visits::*;
use volumes::*;

fn main() {
    harness::main(&tests![
        conforms,
        python_from_its_zygote,
        node_function,
        both_ways_in_are_equally_closed,
        nothing_of_the_host_is_in_sight,
        memory_limit,
        fork_bomb,
        full_tmp,
        cpu_limit,
        limits_inside_a_container,
        endless_output,
        cannot_start_says_why,
        network_rules,
        only_one_address,
        writable_folder,
        no_link_is_followed,
        several_containers,
        listens_by_itself,
        zygote_dies,
        zygote_hangs,
        stopping_waits_for_grace,
        nothing_leaks,
        owner_is_killed,
        owner_and_launcher_are_killed,
        launcher_is_killed,
        without_nftables,
        without_root,
        without_namespaces,
        a_visitor_is_what_the_container_is,
        a_visitor_sees_its_sandbox_and_nothing_else,
        ends_are_reported_as_they_are,
        a_terminal_is_one,
        a_visit_ends_with_its_visitor,
        visits_leave_nothing,
        connections_reach_loopback_and_the_pods_address,
        output_can_be_followed_as_it_comes,
        an_image_is_the_root,
        an_image_has_its_own_user,
        a_container_sees_its_own_limits,
        an_image_may_be_read_only,
        what_is_written_over_an_image_is_bounded,
        volumes_are_filled,
        volumes_are_shared_and_bounded,
        a_volume_does_not_lead_out,
        init_containers_are_waited_for,
        what_waited_serves,
        measure_cold_starts,
    ]);
}

struct Processes(Platform);

impl Subject for Processes {
    fn provider(&self) -> &dyn Provider {
        &*self.0.provider
    }

    fn spec(&self, uid: &str, behaviour: &Behaviour) -> SandboxSpec {
        match behaviour {
            Behaviour::Serve => server(uid),
            Behaviour::Exit { code, output } => {
                python(uid, &format!("import sys\nfor l in {output:?}: print(l)\nsys.exit({code})"))
            }
            Behaviour::Impossible => {
                let mut spec = server(uid);
                spec.containers[0].program = Program::Zygote { runtime: "cobol".into() };
                spec
            }
        }
    }

    fn argv(&self, visitor: &Visitor) -> Vec<String> {
        match visitor {
            Visitor::Echo => vec!["cat".to_owned()],
            Visitor::Exit { code, line } => {
                ["sh", "-c", &format!("echo {line}; exit {code}")].map(str::to_owned).to_vec()
            }
        }
    }
}

async fn conforms() {
    let subject = Processes(Platform::start().await);
    assert_eq!(subject.provider().capabilities().missing_isolation, [""; 0]);
    conformance::check(&subject).await;
    subject.0.provider.shutdown().await;
}

async fn python_from_its_zygote() {
    let platform = Platform::start().await;
    let code = "import os\ndef handle(request):\n    return f'{os.getuid()} {os.getpid()} {request.path}'\n";
    let code = platform.code("code", code);
    let mut users = vec![];
    for uid in ["f1", "f2"] {
        platform.provider.create(Arc::new(function(uid, &code))).await.expect("created");
        let sandbox = platform.ready(uid).await;
        let answer = get(sandbox.address.as_ref().expect("an address"), "/x").await;
        let body = answer.lines().last().unwrap_or_default().to_owned();
        assert!(answer.starts_with("HTTP/1.1 200") && body.ends_with(" 1 /x"), "{answer}");
        users.push(body);
    }
    assert_ne!(users[0], users[1], "each instance has a user of its own");
    // A SIGTERM is obeyed: it ends by itself, with 0.
    let mut events = platform.provider.events();
    platform.provider.stop("f1", Duration::from_secs(20)).await.expect("stopped");
    let last = std::iter::from_fn(|| events.try_recv().ok()).last().expect("an event");
    let Phase::Exited(exit) = &last.containers[0].phase else { panic!("{last:?}") };
    assert_eq!((exit.code, exit.reason), (0, ExitReason::Stopped));
    platform.provider.shutdown().await;
}

async fn node_function() {
    if !Path::new("/usr/bin/node").exists() {
        println!("skipped: there is no /usr/bin/node");
        return;
    }
    let platform = Platform::start().await;
    let code = platform.code("code", "");
    std::fs::write(code.join("index.mjs"), "export default { fetch: () => new Response('from node') }")
        .expect("a file");
    let mut spec = function("node", &code);
    let container = &mut spec.containers[0];
    container.program = Program::Exec { argv: ["/usr/bin/node", "/dhow/node/adapter.mjs"].map(str::to_owned).to_vec() };
    container.env.retain(|(name, _)| name != "DHOW_HANDLER");
    platform.provider.create(Arc::new(spec)).await.expect("created");
    let address = platform.ready("node").await.address.expect("an address");
    let answer = get(&address, "/").await;
    assert!(answer.ends_with("from node") || answer.contains("\r\nfrom node\r\n"), "{answer}");
    platform.provider.stop("node", Duration::from_secs(5)).await.expect("stopped");
    platform.provider.shutdown().await;
}

/// Prints what a program can find out about its own sandbox, a fact a line.
const FACTS: &str = r#"
import ctypes, os, resource, socket
libc = ctypes.CDLL(None, use_errno=True)
def fact(name, value): print(f"{name}={value}", flush=True)
def refused(name, number, *arguments):
    ctypes.set_errno(0)
    fact(name, os.strerror(ctypes.get_errno()) if libc.syscall(number, *arguments) < 0 else "allowed")
def tried(name, action):
    try: fact(name, action() or "allowed")
    except OSError as e: fact(name, os.strerror(e.errno))
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"): fact(name, status[name])
fact("ids", len({*os.getresuid(), *os.getresgid()}))
fact("user", "own" if os.getuid() >= 200000 else "shared")
fact("groups", os.getgroups())
fact("pid", os.getpid())
fact("processes", [p for p in os.listdir("/proc") if p.isdigit()])
fact("host", socket.gethostname())
fact("fds", sorted(int(f) for f in os.listdir("/proc/self/fd"))[:5])
fact("core", resource.getrlimit(resource.RLIMIT_CORE))
fact("files", resource.getrlimit(resource.RLIMIT_NOFILE))
fact("stdin", os.read(0, 1))
fact("env", sorted(os.environ))
for path in ("/root", "/home", "/etc/shadow", "/sys/kernel", "/run", "/var/lib", "/work"): fact(path, os.path.exists(path))
for path in ("/usr/x", "/etc/x", "/x", "/dev/x", "/proc/sys/kernel/hostname", "/dhow/x"):
    tried(path, lambda: open(path, "w").close())
tried("/tmp/x", lambda: open("/tmp/x", "w").close())
tried("/dev/shm/x", lambda: open("/dev/shm/x", "w").close())
masked = [f"/proc/{n}" for n in ("kcore", "keys", "kmsg", "sysrq-trigger", "timer_list", "kallsyms")]
fact("unmasked", [p for p in masked if os.path.exists(p) and os.stat(p).st_rdev != os.stat("/dev/null").st_rdev])
x86 = os.uname().machine == "x86_64"
refused("mount", 165 if x86 else 40, 0, 0, 0, 0, 0)
refused("unshare", 272 if x86 else 97, 0x10000000)
refused("ptrace", 101 if x86 else 117, 0, 0, 0, 0)
refused("bpf", 321 if x86 else 280, 0, 0, 0)
refused("keyctl", 250 if x86 else 219, 0, 0, 0)
refused("io_uring", 425, 1, 0)
refused("clone3", 435, 0, 0)
refused("setns", 308 if x86 else 268, 0, 0)
tried("packet", lambda: socket.socket(17, socket.SOCK_RAW).close())
tried("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
tried("mknod", lambda: os.mknod("/tmp/null", 0o20666, os.makedev(1, 3)))
"#;

async fn both_ways_in_are_equally_closed() {
    let platform = Platform::start().await;
    let (fresh, exit) = platform.run(python("fresh", FACTS)).await;
    assert_eq!(exit.reason, ExitReason::Completed, "{fresh}");
    let code = platform.code("facts", &format!("{FACTS}\nimport sys\nsys.stdout.flush()\nos._exit(0)"));
    let (forked, exit) = platform.run(function("forked", &code)).await;
    assert_eq!(exit.reason, ExitReason::Completed, "{forked}");
    let nothing = "0000000000000000";
    for (way, facts) in [("fresh", fresh), ("forked", forked)] {
        let fact = |name: &str| {
            let line = facts.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("{way}: no {name} in\n{facts}")).to_owned()
        };
        for (name, want) in [
            ("CapInh", nothing),
            ("CapPrm", nothing),
            ("CapEff", nothing),
            ("CapBnd", nothing),
            ("CapAmb", nothing),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("ids", "1"),
            ("user", "own"),
            ("groups", "[]"),
            ("pid", "1"),
            ("processes", "['1']"),
            ("host", if way == "fresh" { "pod-fresh" } else { "pod-forked" }),
            ("core", "(0, 0)"),
            ("files", "(4096, 4096)"),
            ("stdin", "b''"),
            ("env", if way == "fresh" { "['LC_CTYPE', 'PATH']" } else { "['DHOW_HANDLER', 'PATH']" }),
            ("/root", "False"),
            ("/home", "False"),
            ("/etc/shadow", "False"),
            ("/sys/kernel", "False"),
            ("/run", "False"),
            ("/var/lib", "False"),
            ("/work", "False"),
            ("/usr/x", "Read-only file system"),
            ("/etc/x", "Read-only file system"),
            ("/x", "Read-only file system"),
            ("/dev/x", "Read-only file system"),
            ("/dhow/x", "Read-only file system"),
            ("/proc/sys/kernel/hostname", "Read-only file system"),
            ("/tmp/x", "allowed"),
            ("/dev/shm/x", "allowed"),
            ("unmasked", "[]"),
            ("mount", "Operation not permitted"),
            ("unshare", "Operation not permitted"),
            ("ptrace", "Operation not permitted"),
            ("bpf", "Operation not permitted"),
            ("keyctl", "Operation not permitted"),
            ("io_uring", "Operation not permitted"),
            ("clone3", "Function not implemented"),
            ("setns", "Operation not permitted"),
            ("packet", "Address family not supported by protocol"),
            ("raw", "Operation not permitted"),
            ("mknod", "Operation not permitted"),
        ] {
            assert_eq!(fact(name), want, "{way}: {name}");
        }
        // The last one is the folder being read.
        let fds = if way == "fresh" { "[0, 1, 2, 3]" } else { "[0, 1, 2, 3, 4]" };
        assert_eq!(fact("fds"), fds, "{way}");
    }
    platform.provider.shutdown().await;
}

async fn nothing_of_the_host_is_in_sight() {
    let platform = Platform::start().await;
    std::fs::write(platform.folder.path().join("secret"), "x").expect("a secret");
    let look = "import os\nfound = [d for d, _, files in os.walk('/') if 'secret' in files and not d.startswith('/proc')]\n\
                print(found, os.listdir('/tmp'))";
    let (text, _) = platform.run(python("look", look)).await;
    assert_eq!(text, "[] []\n");
    let first = python("first", "import os, socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0name'); print('ok')");
    assert_eq!(platform.run(first).await.0, "ok\n");
    platform.provider.shutdown().await;
}

/// Touches what it takes: `bytes(n)` would be address space that costs nothing.
const EAT: &str = "x = []\nwhile True: x.append(b'x' * (1 << 20))";

async fn memory_limit() {
    let platform = Platform::start().await;
    let eat = format!("print('eating', flush=True)\n{EAT}");
    let mut fresh = python("fresh", &eat);
    let code = platform.code("eat", &eat);
    let mut forked = function("forked", &code);
    for spec in [&mut fresh, &mut forked] {
        spec.containers[0].limits.memory_bytes = Some(64 << 20);
    }
    for spec in [fresh, forked] {
        let (text, exit) = platform.run(spec).await;
        assert_eq!((text.as_str(), exit.reason, exit.signal), ("eating\n", ExitReason::OutOfMemory, Some(9)));
    }
    platform.provider.shutdown().await;
}

async fn fork_bomb() {
    let platform = Platform::start().await;
    let bomb = "import os, time\nn = 0\ntry:\n  while True:\n    if os.fork() == 0: time.sleep(60)\n    n += 1\n\
                except OSError as e: print(n, os.strerror(e.errno))";
    let mut spec = python("bomb", bomb);
    spec.containers[0].limits.pids = 20;
    // Its end takes the other nineteen with it, or their open output would hold up the end of the reading.
    let (text, exit) = platform.run(spec).await;
    assert_eq!((text.as_str(), exit.code), ("19 Resource temporarily unavailable\n", 0));
    platform.provider.shutdown().await;
}

async fn full_tmp() {
    let platform = Platform::start().await;
    let fill = "import os\nn = 0\ntry:\n  with open('/tmp/x', 'wb', buffering=0) as f:\n    \
                while True: n += f.write(bytes(1 << 20))\nexcept OSError as e: print(n >> 20, os.strerror(e.errno))";
    let mut spec = python("fill", fill);
    spec.containers[0].limits.tmp_bytes = 8 << 20;
    assert_eq!(platform.run(spec).await.0, "8 No space left on device\n");
    platform.provider.shutdown().await;
}

async fn cpu_limit() {
    let platform = Platform::start().await;
    let burn = "import time\nused, end = time.process_time(), time.monotonic() + 1\n\
                while time.monotonic() < end: pass\nprint(time.process_time() - used < 0.5)";
    let mut spec = python("burn", burn);
    spec.containers[0].limits.cpu_millis = Some(200);
    assert_eq!(platform.run(spec).await.0, "True\n");
    platform.provider.shutdown().await;
}

/// A container's root cgroup may not have processes and children with controllers, and may lack some controllers.
async fn limits_inside_a_container() {
    let host = Path::new("/sys/fs/cgroup");
    if !host.join("cgroup.controllers").exists() {
        println!("skipped: this machine has no pure cgroup v2; make test-guest has");
        return;
    }
    let subtree = "cgroup.subtree_control";
    std::fs::write(host.join(subtree), "+memory +cpu +pids").expect("controllers");
    for (controllers, without) in [("+memory +cpu +pids", vec![]), ("+memory +pids", vec!["CPU"])] {
        // The middle one is there to hold back what it does not delegate.
        let middle = host.join("dhow-test");
        let root = middle.join("container");
        std::fs::create_dir_all(&root).expect("a cgroup");
        std::fs::write(middle.join(subtree), controllers).expect("delegated");
        let script = format!(
            "echo 0 >{}/cgroup.procs && exec unshare --mount --cgroup sh -c \
             'umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$0\" \"$@\"' \"$0\" \"$@\"",
            root.display()
        );
        let platform = Platform::wrapped("/bin/sh", &["-c", &script]).await;
        let missing = platform.provider.capabilities().missing_isolation;
        assert_eq!(missing.len(), without.len(), "{missing:?}");
        assert!(missing.iter().zip(&without).all(|(m, w)| m.contains(w)), "{missing:?}");
        let mut spec = python("eats", EAT);
        spec.containers[0].limits.memory_bytes = Some(64 << 20);
        assert_eq!(platform.run(spec).await.1.reason, ExitReason::OutOfMemory);
        platform.provider.shutdown().await;
        let left = [root.join("dhow-outside"), root, middle];
        wait_until("nothing but the container's own", || {
            left.iter().all(|folder| std::fs::remove_dir(folder).is_ok() || !folder.exists())
        })
        .await;
    }
}

async fn endless_output() {
    let platform = Platform::start().await;
    let mut spec = exec("yes", ["/usr/bin/yes", "a line of output"].map(str::to_owned).to_vec());
    spec.containers[0].limits.log_bytes = 1 << 20;
    platform.provider.create(Arc::new(spec)).await.expect("created");
    let folder = platform.folder.path().join("sandboxes/yes");
    // Until at least the first file has been dropped.
    wait_until("rotation", || {
        files(&folder).iter().any(|(name, _)| !name.starts_with("main.0.")) && files(&folder).len() == 2
    })
    .await;
    wait_until("the first file's end", || !files(&folder).iter().any(|(name, _)| name == "main.0.log")).await;
    let kept: u64 = files(&folder).iter().map(|(_, bytes)| bytes).sum();
    assert!(kept <= (1 << 20) + (256 << 10), "{kept} bytes are kept");
    platform.provider.stop("yes", Duration::ZERO).await.expect("stopped");
    assert!(!folder.exists(), "the output goes with the sandbox");
    platform.provider.shutdown().await;
}

async fn cannot_start_says_why() {
    let platform = Platform::start().await;
    let missing = exec("missing", vec!["/app/nothing".to_owned()]);
    let (text, exit) = platform.run(missing).await;
    assert_eq!(exit.code, 128);
    assert_eq!(text, "dhow: cannot start the container: /app/nothing: No such file or directory (os error 2)\n");
    let mut nowhere = python("nowhere", "");
    nowhere.containers[0].working_dir = "/nowhere".to_owned();
    let (text, exit) = platform.run(nowhere).await;
    assert_eq!(exit.code, 128);
    assert!(text.contains("working folder /nowhere: "), "{text}");
    let mut folder = python("folder", "");
    folder.containers[0].mounts = vec![Mount {
        source: Source::Host(platform.folder.path().join("none")),
        inside: "/app".into(),
        writable: false,
    }];
    let error = platform.provider.create(Arc::new(folder)).await.expect_err("there is nothing to mount");
    assert!(error.to_string().contains("make a sandbox"), "{error}");
    let code = platform.code("broken", "import nothing_like_this\n");
    let (text, exit) = platform.run(function("broken", &code)).await;
    assert!(exit.code == 1 && text.contains("'nothing_like_this', which is not installed"), "{} {text}", exit.code);
    platform.provider.shutdown().await;
}

/// Connects to each address, and prints what came of it.
fn connects(targets: &[String]) -> String {
    format!(
        "import socket, os\nfor target in {targets:?}:\n  host, port = target.rsplit(':', 1)\n  s = socket.socket()\n  \
         s.settimeout(3)\n  try:\n    s.connect((host, int(port)))\n    print(target, 'connected')\n  \
         except OSError as e: print(target, 'refused')\n"
    )
}

async fn network_rules() {
    let platform = Platform::start().await;
    let host = platform.provider.host_address().expect("an address of the host");
    let everywhere = tokio::net::TcpListener::bind("0.0.0.0:0").await.expect("a listener");
    let port = everywhere.local_addr().expect("its address").port();
    let gateway = tokio::net::TcpListener::bind((host, 0)).await.expect("a listener on the pods' side");
    let gateway_address = gateway.local_addr().expect("its address");
    platform.provider.permit(gateway_address).await.expect("permitted");
    platform.provider.create(Arc::new(server("other"))).await.expect("created");
    let other = platform.ready("other").await;
    let Some(Address::Ip(other)) = other.address else { panic!("{other:?}") };
    assert!(ask(&Address::Ip(other)).await.expect("the host reaches pods").starts_with("hello"));

    let outside = own_addresses().into_iter().map(|ip| (format!("{ip}:{port}"), "refused"));
    let mut targets: Vec<(String, &str)> = vec![
        (gateway_address.to_string(), "connected"),
        (format!("{host}:{port}"), "refused"),
        (format!("127.0.0.1:{port}"), "refused"),
        (other.to_string(), "refused"),
        ("169.254.169.254:80".to_owned(), "refused"),
        ("10.0.0.1:80".to_owned(), "refused"),
        ("192.168.1.1:80".to_owned(), "refused"),
    ];
    targets.extend(outside);
    let names: Vec<String> = targets.iter().map(|(t, _)| t.clone()).collect();
    let (text, _) = platform.run(python("caller", &connects(&names))).await;
    let want: String = targets.iter().map(|(target, outcome)| format!("{target} {outcome}\n")).collect();
    assert_eq!(text, want);
    platform.provider.stop("other", Duration::ZERO).await.expect("stopped");
    platform.provider.shutdown().await;
}

async fn only_one_address() {
    let platform = Platform::start().await;
    let host = platform.provider.host_address().expect("an address of the host");
    let (proxy, other) =
        (tokio::net::TcpListener::bind((host, 0)).await, tokio::net::TcpListener::bind((host, 0)).await);
    let (proxy, other) = (proxy.expect("a listener"), other.expect("a listener"));
    let (proxy, other) = (proxy.local_addr().expect("its address"), other.local_addr().expect("its address"));
    // What every other pod may reach, this one may not.
    platform.provider.permit(other).await.expect("permitted");
    let mut spec = python("only", &connects(&[proxy.to_string(), other.to_string()]));
    spec.network = Network::Only(proxy);
    assert_eq!(platform.run(spec).await.0, format!("{proxy} connected\n{other} refused\n"));
    platform.provider.shutdown().await;
}

async fn writable_folder() {
    let platform = Platform::start().await;
    let folder = platform.folder.path().join("out");
    std::fs::create_dir(&folder).expect("a folder");
    let mut spec =
        python("writes", "import os\nopen('/out/x', 'w').write('made inside')\nos.symlink('/etc', '/out/link')");
    spec.containers[0].mounts =
        vec![Mount { source: Source::Host(folder.clone()), inside: "/out".into(), writable: true }];
    let (text, exit) = platform.run(spec).await;
    assert_eq!(exit.code, 0, "{text}");
    assert_eq!(std::fs::read_to_string(folder.join("x")).ok().as_deref(), Some("made inside"));
    platform.provider.shutdown().await;
}

async fn no_link_is_followed() {
    let platform = Platform::start().await;
    let code = platform.code("code", "");
    let link = platform.folder.path().join("link");
    std::os::unix::fs::symlink("/root", &link).expect("a link");
    std::os::unix::fs::symlink("/root", code.join("inner")).expect("a link");
    for (host, inside) in [(link.clone(), "/app"), (link.join("x"), "/app"), (code.join("inner"), "/app")] {
        let mut spec = python("link", "");
        spec.containers[0].mounts =
            vec![Mount { source: Source::Host(host.clone()), inside: inside.into(), writable: false }];
        assert!(platform.provider.create(Arc::new(spec)).await.is_err(), "{}", host.display());
    }
    // A link inside what was mounted first must not lead the second mount elsewhere.
    let mut spec = python("nested", "");
    let mount = |inside: &str| Mount { source: Source::Host(code.clone()), inside: inside.into(), writable: false };
    spec.containers[0].mounts = vec![mount("/app"), mount("/app/inner")];
    assert!(platform.provider.create(Arc::new(spec)).await.is_err());
    platform.provider.shutdown().await;
}

async fn several_containers() {
    let platform = Platform::start().await;
    let mut spec = server("pair");
    let mut helper = python("x", "import time\nprint('beside', flush=True)\ntime.sleep(600)").containers.remove(0);
    helper.name = "helper".to_owned();
    spec.containers.push(helper);
    platform.provider.create(Arc::new(spec)).await.expect("created");
    let sandbox = platform.ready("pair").await;
    assert!(ask(&sandbox.address.expect("an address")).await.expect("an answer").starts_with("hello"));
    platform.provider.stop("pair", Duration::ZERO).await.expect("stopped");
    platform.provider.shutdown().await;
}

async fn listens_by_itself() {
    let platform = Platform::start().await;
    let serve = "import socket, time\ntime.sleep(0.05)\ns = socket.socket()\ns.bind(('0.0.0.0', 80))\ns.listen()\n\
                 while True:\n  c, _ = s.accept()\n  c.recv(9)\n  c.sendall(b'by itself')\n  c.close()\n";
    let mut spec = python("port", serve);
    spec.containers[0].serve = Serve::Port(80);
    platform.provider.create(Arc::new(spec)).await.expect("created");
    let sandbox = platform.ready("port").await;
    assert_eq!(ask(&sandbox.address.expect("an address")).await.ok().as_deref(), Some("by itself"));
    platform.provider.stop("port", Duration::ZERO).await.expect("stopped");
    platform.provider.shutdown().await;
}

const HANDLER: &str = "def handle(request):\n    return 'fine'\n";

async fn zygote_dies() {
    let platform = Platform::start().await;
    let code = platform.code("code", HANDLER);
    platform.provider.create(Arc::new(function("before", &code))).await.expect("created");
    platform.ready("before").await;
    let mut events = platform.provider.events();
    signal(zygote_of(platform.launcher()), libc::SIGKILL);
    let sandbox = loop {
        let event = events.recv().await.expect("events");
        if event.is_exited() {
            break event;
        }
    };
    assert_eq!(sandbox.uid, "before", "its children go with it");
    platform.provider.create(Arc::new(function("after", &code))).await.expect("a new zygote is started");
    let address = platform.ready("after").await.address.expect("an address");
    assert!(get(&address, "/").await.ends_with("fine"));
    for uid in ["before", "after"] {
        platform.provider.stop(uid, Duration::ZERO).await.expect("stopped");
    }
    platform.provider.shutdown().await;
}

async fn zygote_hangs() {
    let platform = Platform::start().await;
    let code = platform.code("code", HANDLER);
    platform.provider.create(Arc::new(function("first", &code))).await.expect("created");
    signal(zygote_of(platform.launcher()), libc::SIGSTOP);
    let error = platform.provider.create(Arc::new(function("second", &code))).await.expect_err("nobody answers");
    assert_eq!(error.class(), ErrorClass::Retry, "{error}");
    platform.provider.create(Arc::new(function("third", &code))).await.expect("a new zygote is started");
    platform.ready("third").await;
    platform.provider.shutdown().await;
}

async fn stopping_waits_for_grace() {
    let platform = Platform::start().await;
    // The first process of a namespace ignores signals it has no handler for, so this one is killed.
    platform.provider.create(Arc::new(server("deaf"))).await.expect("created");
    platform.ready("deaf").await;
    let mut events = platform.provider.events();
    platform.provider.stop("deaf", Duration::from_millis(50)).await.expect("stopped");
    let last = std::iter::from_fn(|| events.try_recv().ok()).last().expect("an event");
    let Phase::Exited(exit) = &last.containers[0].phase else { panic!("{last:?}") };
    assert_eq!((exit.code, exit.signal, exit.reason), (137, Some(9), ExitReason::Stopped));
    platform.provider.shutdown().await;
}

async fn nothing_leaks() {
    let platform = Platform::start().await;
    let code = platform.code("code", HANDLER);
    let one = async |number: usize| {
        let uid = format!("leak-{number}");
        let spec = if number.is_multiple_of(4) { function(&uid, &code) } else { server(&uid) };
        platform.provider.create(Arc::new(spec)).await.expect("created");
        platform.ready(&uid).await;
        platform.provider.stop(&uid, Duration::ZERO).await.expect("stopped");
    };
    let slot = platform.provider.slot().expect("a slot");
    for number in 0..4 {
        one(number).await;
    }
    let settle = || Held::count(platform.launcher(), slot);
    wait_until("a full stock", || settle().links == 1 + STOCK + 1).await;
    let before = settle();
    for number in 4..204 {
        one(number).await;
    }
    wait_until("the same as before", || settle() == before).await;
    platform.provider.shutdown().await;
    wait_until("nothing", || is_clean(slot)).await;
}

async fn owner_is_killed() {
    let owner = Owner::start();
    assert!(!left_of(owner.slot).is_empty() && users_of(owner.slot) > 0, "it is at work");
    signal(owner.pid, libc::SIGKILL);
    wait_until("nothing", || is_clean(owner.slot)).await;
}

async fn owner_and_launcher_are_killed() {
    let owner = Owner::start();
    signal(owner.launcher, libc::SIGKILL);
    signal(owner.pid, libc::SIGKILL);
    // Every process goes at once; what no process holds waits for the next platform.
    wait_until("no process", || has_ended(owner.launcher) && is_quiet(owner.slot)).await;
    let platform = Platform::start().await;
    let mine = platform.provider.slot().expect("a slot");
    platform.provider.shutdown().await;
    wait_until("nothing", || is_clean(owner.slot) && is_clean(mine)).await;
}

async fn launcher_is_killed() {
    let platform = Platform::start().await;
    platform.provider.create(Arc::new(server("lost"))).await.expect("created");
    let mut events = platform.provider.events();
    let slot = platform.provider.slot().expect("a slot");
    let launcher = platform.launcher();
    signal(launcher, libc::SIGKILL);
    platform.provider.gone().await;
    let refused = platform.provider.create(Arc::new(server("late"))).await.expect_err("nobody to ask");
    assert_eq!(refused.class(), ErrorClass::Fatal);
    let last = std::iter::from_fn(|| events.try_recv().ok()).last();
    assert!(last.is_some_and(|s| s.is_exited()), "everybody is told");
    assert!(platform.provider.list().await.expect("a list").is_empty());
    wait_until("no process", || has_ended(launcher) && is_quiet(slot)).await;
    platform.provider.shutdown().await;
    let next = Platform::start().await;
    next.provider.shutdown().await;
    wait_until("nothing", || is_clean(slot)).await;
}

async fn without_nftables() {
    let script = "mount -t tmpfs none /usr/sbin && exec \"$0\" \"$@\"";
    let wrapped = ["-m", "sh", "-c", script];
    let platform = Platform::wrapped("/usr/bin/unshare", &wrapped).await;
    let capabilities = platform.provider.capabilities();
    assert!(!capabilities.pod_network);
    assert!(capabilities.missing_isolation.iter().any(|m| m.contains("install nftables")), "{capabilities:?}");
    platform.provider.create(Arc::new(server("closed"))).await.expect("created");
    let address = platform.ready("closed").await.address.expect("an address");
    assert!(matches!(&address, Address::Unix(path) if path.starts_with(platform.folder.path())));
    assert!(ask(&address).await.expect("an answer").starts_with("hello"));
    let (text, _) = platform.run(python("caller", &connects(&["1.1.1.1:80".into()]))).await;
    assert_eq!(text, "1.1.1.1:80 refused\n");
    let mut connection = platform.provider.connect("closed", 8080).await.expect("the port it serves");
    tokio::io::AsyncWriteExt::write_all(&mut connection, b"x").await.expect("it reads");
    let nobody = platform.provider.connect("closed", 7000).await.err().expect("nobody listens");
    assert!(nobody.to_string().contains("refused"), "{nobody}");
    let mut port = server("port");
    port.containers[0].serve = Serve::Port(8080);
    let refused = platform.provider.create(Arc::new(port)).await.expect_err("nobody could reach it");
    assert_eq!(refused.class(), ErrorClass::Invalid);
    platform.provider.stop("closed", Duration::ZERO).await.expect("stopped");
    platform.provider.shutdown().await;
}

async fn without_root() {
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let platform = Platform::as_nobody("/usr/bin/setpriv", &nobody).await;
    let missing = platform.provider.capabilities().missing_isolation;
    assert!(missing.len() >= 3 && missing.iter().all(|m| m.contains("not root")), "{missing:?}");
    let code = platform.code("code", "def handle(request):\n    return open('/proc/self/status').read()\n");
    let mut fresh = server("fresh");
    fresh.containers[0].working_dir = "/app".into();
    fresh.containers[0].mounts =
        vec![Mount { source: Source::Host(code.clone()), inside: "/app".into(), writable: false }];
    platform.provider.create(Arc::new(fresh)).await.expect("created");
    let address = platform.ready("fresh").await.address.expect("an address");
    assert_eq!(ask(&address).await.ok().as_deref(), Some("hello from 65534\n"));
    platform.provider.create(Arc::new(function("forked", &code))).await.expect("created");
    let address = platform.ready("forked").await.address.expect("an address");
    let status = get(&address, "/").await;
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    let refused = platform.provider.connect("fresh", 7000).await.err().expect("that would be the host's port");
    assert!(refused.to_string().contains("share the host's network"), "{refused}");
    // Held: the server ends when it answers somebody who has gone.
    let _connection = platform.provider.connect("fresh", 8080).await.expect("what it serves");
    let words = Command {
        argv: ["sh", "-c", "pwd; id -u; grep Seccomp: /proc/self/status; sleep 1000"].map(str::to_owned).into(),
        ..Command::default()
    };
    let mut session = platform.provider.exec("fresh", "main", words).await.expect("a session");
    let first = session.output.next().await;
    let Some(Output::Stdout(seen)) = &first else { panic!("{first:?}") };
    assert!(String::from_utf8_lossy(seen).starts_with(&format!("{}\n", code.display())), "{seen:?}");
    platform.provider.stop("fresh", Duration::ZERO).await.expect("stopped");
    let end = session.output.filter(|o| std::future::ready(matches!(o, Output::Exited(_)))).next().await;
    assert_eq!(end, Some(Output::Exited(137)), "it does not outlive what it visited");
    for uid in ["fresh", "forked"] {
        platform.provider.stop(uid, Duration::from_secs(5)).await.expect("stopped");
    }
    platform.provider.shutdown().await;
}

/// Prints how long a start takes; only when asked for by name, and worth something in release only.
async fn measure_cold_starts() {
    if !std::env::args().any(|a| a == "measure_cold_starts") {
        return;
    }
    const ROUNDS: usize = 50;
    let platform = Platform::start().await;
    let code = platform.code("code", HANDLER);
    for (what, forked) in [("python -I -S, a socket server", false), ("python from its zygote", true)] {
        let mut times: [Vec<Duration>; 3] = Default::default();
        for round in 0..ROUNDS + 3 {
            let uid = format!("cold-{round}");
            let spec = Arc::new(if forked { function(&uid, &code) } else { server(&uid) });
            let begin = tokio::time::Instant::now();
            platform.provider.create(spec).await.expect("created");
            let created = begin.elapsed();
            let address = platform.ready(&uid).await.address.expect("an address");
            let ready = begin.elapsed();
            if forked {
                drop(get(&address, "/").await)
            } else {
                drop(ask(&address).await)
            };
            // The first ones start the zygote and fill caches.
            if round >= 3 {
                let all = [created, ready, begin.elapsed()];
                times.iter_mut().zip(all).for_each(|(of, time)| of.push(time));
            }
            platform.provider.stop(&uid, Duration::ZERO).await.expect("stopped");
        }
        let shown: Vec<String> = times
            .iter_mut()
            .map(|of| {
                of.sort_unstable();
                format!("{:.1}/{:.1}", of[ROUNDS / 2].as_secs_f64() * 1e3, of[ROUNDS * 9 / 10].as_secs_f64() * 1e3)
            })
            .collect();
        println!("{what}: created {} ready {} answered {} ms (p50/p90)", shown[0], shown[1], shown[2]);
    }
    let begin = tokio::time::Instant::now();
    let uids: Vec<String> = (0..100).map(|n| format!("burst-{n}")).collect();
    let started = uids.iter().map(|uid| async {
        platform.provider.create(Arc::new(function(uid, &code))).await.expect("created");
        platform.ready(uid).await;
    });
    futures::future::join_all(started).await;
    println!("100 at once: all ready after {:.0} ms", begin.elapsed().as_secs_f64() * 1e3);
    let begin = tokio::time::Instant::now();
    futures::future::join_all(uids.iter().map(|uid| platform.provider.stop(uid, Duration::ZERO))).await;
    println!("and gone after {:.0} ms", begin.elapsed().as_secs_f64() * 1e3);
    platform.provider.shutdown().await;
    let begin = tokio::time::Instant::now();
    let again = Platform::start().await;
    println!("the provider starts in {:.0} ms", begin.elapsed().as_secs_f64() * 1e3);
    again.provider.shutdown().await;
}

async fn without_namespaces() {
    let platform = Platform::wrapped("/usr/bin/setpriv", &["--bounding-set=-sys_admin", "--"]).await;
    let missing = platform.provider.capabilities().missing_isolation;
    assert!(missing.len() >= 3 && missing.iter().all(|m| m.contains("does not allow them")), "{missing:?}");
    let status = "print(open('/proc/self/status').read())";
    let (status, _) = platform.run(python("status", status)).await;
    for want in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(want), "{want} is not in {status}");
    }
    platform.provider.shutdown().await;
}

fn files(folder: &Path) -> Vec<(String, u64)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().map_or(0, |m| m.len()))).collect()
}
