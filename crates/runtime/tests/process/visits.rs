//! Visits on this machine's kernel: what a visitor has, what ends it, and what it cannot reach.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use runtime::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::*;

/// Says everything that tells one process from another, as far as a sandbox decides it.
const WHO: &str = r#"
import json, os
status = dict(l.rstrip('\n').split(':\t', 1) for l in open('/proc/self/status') if ':\t' in l)
print(json.dumps({
    'user': [os.getresuid(), os.getresgid(), os.getgroups()],
    'rights': {n: status[n] for n in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp')},
    'namespaces': {n: os.readlink('/proc/self/ns/' + n) for n in ('mnt', 'pid', 'net', 'ipc', 'uts')},
    'cgroup': open('/proc/self/cgroup').read(),
    'limits': open('/proc/self/limits').read(),
    'pressure': open('/proc/self/oom_score_adj').read(),
    'environment': dict(os.environ),
    'folder': os.getcwd(),
    'root': sorted(os.listdir('/')),
}, sort_keys=True), flush=True)
"#;

fn command(argv: &[&str]) -> Command {
    Command { argv: argv.iter().map(|a| (*a).to_owned()).collect(), input: false, terminal: false }
}

fn shell(script: &str) -> Command {
    command(&["sh", "-c", script])
}

/// What it prints on both streams, and its end.
async fn whole(mut output: OutputStream) -> (String, String, i32) {
    let (mut out, mut err) = (vec![], vec![]);
    while let Some(piece) = output.next().await {
        match piece {
            Output::Stdout(bytes) => out.extend(bytes),
            Output::Stderr(bytes) => err.extend(bytes),
            Output::Exited(code) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                return (text(&out), text(&err), code);
            }
        }
    }
    panic!("no exit after {out:?} and {err:?}");
}

impl Platform {
    async fn visit(&self, uid: &str, command: Command) -> (String, String, i32) {
        whole(self.provider.exec(uid, "main", command).await.expect("a session").output).await
    }

    async fn begin(&self, uid: &str, script: &str) {
        self.provider.create(Arc::new(python(uid, script))).await.expect("created");
    }

    /// Waits for a container's first line.
    async fn first_line(&self, uid: &str) -> String {
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut lines = self.provider.logs(uid, "main", options).await.expect("its output");
        let line = lines.next().await.expect("a line").expect("readable");
        String::from_utf8_lossy(&line).into_owned()
    }
}

pub async fn a_visitor_is_what_the_container_is() {
    let platform = Platform::start().await;
    platform.begin("exec", &format!("{WHO}\nimport time\ntime.sleep(1000)")).await;
    let own = platform.first_line("exec").await;
    let who = command(&["/usr/bin/python3", "-I", "-S", "-c", WHO]);
    let (seen, errors, code) = platform.visit("exec", who.clone()).await;
    assert_eq!((code, errors.as_str()), (0, ""), "{seen}");
    assert_eq!(seen, own);
    // The child of a zygote is entered in the same way; its environment has lost what its runtime has read.
    let code = platform.code("code", "def handle(request):\n    return 'fine'\n");
    platform.provider.create(Arc::new(function("forked", &code))).await.expect("created");
    platform.ready("forked").await;
    let (seen, errors, code) = platform.visit("forked", who).await;
    assert_eq!((code, errors.as_str()), (0, ""), "{seen}");
    for right in ["CapEff", "CapBnd", "CapPrm"] {
        assert!(seen.contains(&format!("\"{right}\": \"0000000000000000\"")), "{seen}");
    }
    assert!(seen.contains("\"NoNewPrivs\": \"1\"") && seen.contains("\"Seccomp\": \"2\""), "{seen}");
    assert!(seen.contains("\"folder\": \"/app\""), "{seen}");
    platform.provider.shutdown().await;
}

pub async fn a_visitor_sees_its_sandbox_and_nothing_else() {
    let platform = Platform::start().await;
    platform.begin("a", "import time\nprint('here', flush=True)\ntime.sleep(1000)").await;
    platform.begin("b", "import time\nprint('here', flush=True)\ntime.sleep(1000)").await;
    for uid in ["a", "b"] {
        platform.first_line(uid).await;
    }
    let with_input = Command { input: true, ..shell("ls /proc/self/fd; echo /proc/[0-9]*; hostname; ls /root /tmp") };
    let (seen, errors, _) = platform.visit("a", with_input).await;
    let mut lines = seen.lines();
    let fds: Vec<&str> = lines.by_ref().take(4).collect();
    assert_eq!(fds, ["0", "1", "2", "3"], "its own three, and the folder being read");
    let processes: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    assert_eq!((processes.len(), processes.first()), (2, Some(&"/proc/1")), "the container's and its own: {seen}");
    assert_eq!(lines.next(), Some("pod-a"));
    assert!(errors.contains("/root"), "{errors}");
    // Nobody else's processes, files or sockets, and no way to them.
    for attempt in
        ["kill -9 -1; kill -0 1 && echo alive", "unshare -n true", "mount -t tmpfs x /tmp", "nsenter -t 1 -m true"]
    {
        platform.visit("a", shell(attempt)).await;
    }
    assert_eq!(platform.provider.list().await.expect("a list").iter().filter(|s| !s.is_exited()).count(), 2);
    platform.provider.shutdown().await;
}

pub async fn ends_are_reported_as_they_are() {
    let platform = Platform::start().await;
    platform.begin("p", "import time\ntime.sleep(1000)").await;
    for (script, out, err, code) in [
        ("echo out; echo err >&2; exit 3", "out\n", "err\n", 3),
        ("kill -9 $$", "", "", 137),
        ("exec 1>&- 2>&-; sleep 0.1; exit 4", "", "", 4),
        ("cat", "", "", 0),
    ] {
        assert_eq!(platform.visit("p", shell(script)).await, (out.to_owned(), err.to_owned(), code), "{script}");
    }
    for (argv, code, says) in [
        (&["no-such-program"][..], 127, "no-such-program: No such file"),
        (&["/usr/bin/no-such-program"], 127, "No such file"),
        (&["/etc/hostname"], 126, "Permission denied"),
        (&["/usr"], 126, "Permission denied"),
    ] {
        let (_, err, got) = platform.visit("p", command(argv)).await;
        assert!(got == code && err.contains(says), "{argv:?}: {got} {err}");
    }
    let refused = platform.provider.exec("p", "main", command(&[])).await.err().expect("nothing to run");
    assert_eq!(refused.class(), ErrorClass::Invalid);
    // Something left behind with the streams open does not hold the session for ever; what it prints still counts.
    let (out, _, code) = platform.visit("p", shell("(sleep 0.2; echo late; sleep 1000) & exit 5")).await;
    assert_eq!((out.as_str(), code), ("late\n", 5));
    let many = platform.visit("p", shell("head -c 20000000 /dev/zero | tr '\\0' x")).await;
    assert_eq!(many.0.len(), 20_000_000, "not a byte is lost at the end");
    platform.provider.shutdown().await;
}

pub async fn a_terminal_is_one() {
    let platform = Platform::start().await;
    platform.begin("t", "import time\ntime.sleep(1000)").await;
    let script = "test -t 0 && test -t 1 && test -t 2 && echo \"$TERM\"; read go; stty size; echo > /dev/stderr; \
                  sleep 1000";
    let on_terminal = Command { input: true, terminal: true, ..shell(script) };
    let mut session = platform.provider.exec("t", "main", on_terminal).await.expect("a session");
    let mut input = session.input.take().expect("asked for");
    let resize = session.resize.take().expect("a terminal");
    let mut seen = String::new();
    let mut until = async |session: &mut Session, what: &str| {
        while !seen.contains(what) {
            match session.output.next().await {
                Some(Output::Stdout(bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                other => panic!("{other:?} after {seen:?}"),
            }
        }
    };
    until(&mut session, "xterm\r\n").await;
    resize(Size { columns: 132, rows: 43 });
    input.write_all(b"go\n").await.expect("typed");
    until(&mut session, "43 132\r\n").await;
    // As a person does when nothing happens: a shell that is just starting its next program loses one now and then.
    let typing = async {
        loop {
            // Nobody reads it after the end.
            let _ = input.write_all(b"\x03").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        ended = whole(session.output) => assert_eq!(ended.2, 130, "it is interrupted"),
        () = typing => {}
    }
    platform.provider.shutdown().await;
}

pub async fn a_visit_ends_with_its_visitor() {
    let platform = Platform::start().await;
    let slot = platform.provider.slot().expect("a slot");
    platform.begin("v", "import time\nprint('here', flush=True)\ntime.sleep(1000)").await;
    platform.first_line("v").await;
    for (what, terminal, script) in [
        ("deaf", false, "trap '' HUP TERM INT; echo on; sleep 1000 & sleep 1000"),
        ("endless", false, "echo on; yes"),
        ("jobs", true, "set -m; trap '' HUP; echo on; sleep 1000 & sleep 1000 & wait"),
        ("silent", false, "echo on; exec 1>&- 2>&-; sleep 1000"),
    ] {
        let visitor = Command { terminal, ..command(&["bash", "-c", script]) };
        let mut session = platform.provider.exec("v", "main", visitor).await.expect("a session");
        assert!(matches!(session.output.next().await, Some(Output::Stdout(_))), "{what}");
        drop(session);
        wait_until(what, || users_of(slot) == 1).await;
    }
    // One that takes itself out of reach is still inside, and goes with the sandbox.
    let hostile = "setsid sh -c 'trap \"\" HUP TERM; sleep 1000 & sleep 1000' >/dev/null 2>&1 & echo on; sleep 1000";
    let mut session = platform.provider.exec("v", "main", shell(hostile)).await.expect("a session");
    assert!(matches!(session.output.next().await, Some(Output::Stdout(_))));
    drop(session);
    platform.provider.stop("v", Duration::ZERO).await.expect("stopped");
    wait_until("nothing of the hostile one", || users_of(slot) == 0).await;
    platform.provider.shutdown().await;
}

pub async fn visits_leave_nothing() {
    let platform = Platform::start().await;
    let slot = platform.provider.slot().expect("a slot");
    platform.provider.create(Arc::new(server("s"))).await.expect("created");
    platform.ready("s").await;
    platform.visit("s", shell("true")).await;
    wait_until("a full stock", || Held::count(platform.launcher(), slot).links == 1 + STOCK + 1 + 1).await;
    let before = Held::count(platform.launcher(), slot);
    for round in 0..20 {
        platform.visit("s", Command { terminal: round % 2 == 0, ..shell("true") }).await;
        let mut connection = platform.provider.connect("s", 8080).await.expect("it listens");
        connection.write_all(b"x").await.expect("it reads");
        assert!(connection.read(&mut [0; 100]).await.is_ok_and(|n| n > 0), "it answers");
    }
    wait_until("the same as before", || Held::count(platform.launcher(), slot) == before).await;
    platform.provider.shutdown().await;
}

/// Listens at an address, and answers with what it is told.
fn listens(address: &str) -> String {
    format!(
        "import socket\ns = socket.socket()\ns.bind(({address}, 7000))\ns.listen()\nprint('on', flush=True)\n\
         while True:\n  c, _ = s.accept()\n  while True:\n    b = c.recv(100)\n    if not b: break\n    c.sendall(b)\n  \
         c.sendall(b' and the end')\n  c.close()\n"
    )
}

pub async fn connections_reach_loopback_and_the_pods_address() {
    let platform = Platform::start().await;
    platform.begin("loop", &listens("'127.0.0.1'")).await;
    platform.begin("own", &listens("socket.gethostbyname(socket.gethostname())")).await;
    for uid in ["loop", "own"] {
        platform.first_line(uid).await;
        let mut connection = platform.provider.connect(uid, 7000).await.expect("it listens");
        connection.write_all(b"words").await.expect("it reads");
        connection.shutdown().await.expect("half of it is closed");
        let mut said = String::new();
        connection.read_to_string(&mut said).await.expect("it answers");
        assert_eq!(said, "words and the end", "{uid}");
        let refused = platform.provider.connect(uid, 7001).await.err().expect("nobody listens");
        assert!(refused.to_string().contains("refused"), "{refused}");
    }
    let mut open = vec![];
    for _ in 0..MOST_CONNECTIONS {
        open.push(platform.provider.connect("loop", 7000).await.expect("there is room"));
    }
    let refused = platform.provider.connect("loop", 7000).await.err().expect("no room");
    assert!(matches!(refused, ProviderError::Exhausted { .. }), "{refused}");
    open.pop();
    platform.provider.connect("loop", 7000).await.expect("room again");
    platform.provider.shutdown().await;
}

pub async fn output_can_be_followed_as_it_comes() {
    let platform = Platform::start().await;
    let script = "import sys\nsys.stdin.close()\nimport socket\ns = socket.socket()\ns.bind(('127.0.0.1', 7000))\n\
                  s.listen()\nprint('before', flush=True)\nc, _ = s.accept()\nsys.stderr.write('half')\n\
                  sys.stderr.flush()\nc.recv(1)\nprint('after', flush=True)\n";
    platform.begin("f", script).await;
    platform.first_line("f").await;
    let mut attached = platform.provider.attach("f", "main").await.expect("attached");
    let mut connection = platform.provider.connect("f", 7000).await.expect("it listens");
    assert_eq!(attached.next().await, Some(Output::Stderr("half".into())), "without waiting for the line");
    connection.write_all(b"x").await.expect("it reads");
    assert_eq!(attached.next().await, Some(Output::Stdout("after\n".into())));
    assert_eq!(attached.next().await, None, "it ends with the container");
    platform.provider.shutdown().await;
}
