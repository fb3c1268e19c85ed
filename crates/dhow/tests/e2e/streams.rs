//! A shell in an instance, files in and out of it, its output and its ports, through real kubectl; over WebSockets as
//! kubectl does today, and over SPDY as it did before.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};

use serde_json::json;

use crate::harness::{Platform, Running, eventually, kubectl, machine, said};

/// Prints what it is asked, on both streams.
const PRINTER: &str = r#"
import sys

def handle(request):
    print('out', request.path, flush=True)
    print('err', request.path, file=sys.stderr, flush=True)
    return 'printed'
"#;
/// Which of the two transports kubectl takes.
const TRANSPORTS: [(&str, &str); 2] = [("WebSocket", "true"), ("SPDY", "false")];

/// A function with one instance that stays.
fn start(platform: &Platform, name: &str) -> String {
    platform.apply(&json!({
        "apiVersion": "dhow.dev/v1alpha1", "kind": "Function", "metadata": {"name": name},
        "spec": {"runtime": "python", "scale": {"min": 1}, "source": {"inline": {"files": {"main.py": PRINTER}}}},
    }));
    platform.kubectl_ok(&["wait", "--for=condition=Ready", &format!("function/{name}"), "--timeout=60s"]);
    platform.pods(name).pop().expect("an instance")
}

fn command(platform: &Platform, sockets: &str, args: &[&str]) -> Command {
    let mut command = Command::new(kubectl().expect("checked by the test"));
    command.args(args).env("KUBECONFIG", platform.kubeconfig()).env("HOME", platform.dir.path());
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", sockets).env("KUBECTL_PORT_FORWARD_WEBSOCKETS", sockets);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end with this input.
fn run(platform: &Platform, sockets: &str, args: &[&str], input: &[u8]) -> Output {
    let mut child = command(platform, sockets, args).stdin(Stdio::piped()).spawn().expect("kubectl runs");
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_vec();
    // Beside the reading of what comes back: neither side must wait for the other.
    let writing = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    // One that has ended early does not take it all.
    let _ = writing.join().expect("the writer does not panic");
    output
}

fn first_line(child: &mut Child) -> (String, BufReader<std::process::ChildStdout>) {
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a line");
    (line, lines)
}

#[tokio::test]
async fn a_command_in_an_instance() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let pod = start(&platform, "visited");
    let exec = |sockets: &str, argv: &[&str], input: &[u8]| {
        run(&platform, sockets, &[&["exec", "-i", &pod, "--"][..], argv].concat(), input)
    };
    for (transport, sockets) in TRANSPORTS {
        let done = exec(sockets, &["sh", "-c", "cat; echo to stderr >&2; exit 7"], b"piped in");
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert_eq!((done.status.code(), &*out), (Some(7), "piped in"), "{transport}: {}", said(&done));
        assert!(err.contains("to stderr") && err.contains("exit code 7"), "{transport}: {err}");
        let done = exec(sockets, &["true"], b"");
        assert!(done.status.success(), "{transport}: {}", said(&done));
        let many = vec![b'x'; 3_000_000];
        let done = exec(sockets, &["sh", "-c", "cat | tr x y"], &many);
        assert!(done.status.success(), "{transport}: {}", String::from_utf8_lossy(&done.stderr));
        assert!(done.stdout.len() == many.len() && done.stdout.iter().all(|b| *b == b'y'), "{transport}");
        let done = exec(sockets, &["no-such-program"], b"");
        assert!(done.status.code() == Some(127), "{transport}: {}", said(&done));
        assert!(String::from_utf8_lossy(&done.stderr).contains("No such file"), "{transport}: {}", said(&done));
        let done = run(&platform, sockets, &["exec", "no-such-pod", "--", "true"], b"");
        assert!(said(&done).contains("\"no-such-pod\" not found"), "{transport}: {}", said(&done));
        let done = run(&platform, sockets, &["exec", &pod, "-c", "other", "--", "true"], b"");
        assert!(said(&done).contains("container other is not valid for pod"), "{transport}: {}", said(&done));
    }
}

#[tokio::test]
async fn a_terminal_in_an_instance() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let pod = start(&platform, "typed");
    let kubectl = kubectl().expect("checked");
    for (transport, sockets) in TRANSPORTS {
        // The size of the outer terminal becomes that of the inner one, which may take a moment.
        let inner = "test -t 0 && test -t 1 && echo terminal $TERM; until stty size | grep -q '41 101'; do sleep 0.1; \
                     done; stty size; exit 5";
        let script =
            format!("stty rows 41 cols 101; {kubectl} exec -it {pod} -- sh -c \"{inner}\"; echo ended with $?");
        let mut command = Command::new("script");
        command.args(["-qec", &script, "/dev/null"]).env("KUBECONFIG", platform.kubeconfig());
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", sockets).env("HOME", platform.dir.path());
        let done = command.stdin(Stdio::piped()).output().expect("script runs");
        let text = String::from_utf8_lossy(&done.stdout);
        for want in ["terminal xterm", "41 101", "ended with 5"] {
            assert!(text.contains(want), "{transport}: {want} is not in {text}");
        }
    }
}

#[tokio::test]
async fn files_in_and_out_of_an_instance() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let pod = start(&platform, "stored");
    let dir = platform.dir.path().join("files");
    std::fs::create_dir_all(dir.join("below")).expect("a folder");
    let large: Vec<u8> = (0..2_000_000u32).flat_map(|n| n.to_le_bytes()).collect();
    std::fs::write(dir.join("large"), &large).expect("a file");
    std::fs::write(dir.join("below/small"), "small").expect("a file");
    for (transport, sockets) in TRANSPORTS {
        let back = platform.dir.path().join(format!("back-{transport}"));
        let (there, here) = (format!("{pod}:/tmp/{transport}"), back.to_str().expect("UTF-8"));
        let done = run(&platform, sockets, &["cp", dir.to_str().expect("UTF-8"), &there], b"");
        assert!(done.status.success(), "{transport}: {}", said(&done));
        let done = run(&platform, sockets, &["cp", &there, here], b"");
        assert!(done.status.success(), "{transport}: {}", said(&done));
        assert!(std::fs::read(back.join("large")).expect("it came back") == large, "{transport}");
        assert_eq!(std::fs::read(back.join("below/small")).expect("it came back"), b"small", "{transport}");
    }
    let done = run(&platform, "true", &["cp", dir.to_str().expect("UTF-8"), &format!("{pod}:/app/x")], b"");
    assert!(!done.status.success() && said(&done).contains("Read-only"), "the code stays as it is: {}", said(&done));
}

#[tokio::test]
async fn output_as_it_comes() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let pod = start(&platform, "followed");
    for (transport, sockets) in TRANSPORTS {
        let mut child = Running(command(&platform, sockets, &["attach", &pod]).spawn().expect("kubectl runs"));
        let stdout = child.0.stdout.take().expect("it is piped");
        let stderr = child.0.stderr.take().expect("it is piped");
        let lines = |from: Box<dyn Read + Send>, want: String| {
            std::thread::spawn(move || BufReader::new(from).lines().map_while(Result::ok).any(|line| line == want))
        };
        let path = format!("/{transport}");
        let heard = [lines(Box::new(stdout), format!("out {path}")), lines(Box::new(stderr), format!("err {path}"))];
        eventually("both lines arrive", || async {
            // Nobody says when kubectl is attached, so it is said again until it is heard.
            platform.get("followed", &path).await;
            if heard.iter().all(|thread| thread.is_finished()) { Ok(()) } else { Err(transport) }
        })
        .await;
        assert!(heard.into_iter().all(|thread| thread.join().expect("no panic")), "{transport}");
    }
    let done = run(&platform, "true", &["attach", "-i", &pod], b"");
    assert!(said(&done).contains("standard input") || done.status.success(), "{}", said(&done));
}

#[tokio::test]
async fn ports_of_an_instance() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let pod = start(&platform, "forwarded");
    for (transport, sockets) in TRANSPORTS {
        let args = ["port-forward", &pod, ":8080", ":9"];
        let mut child = Running(command(&platform, sockets, &args).spawn().expect("kubectl runs"));
        let (first, mut lines) = first_line(&mut child.0);
        let port_of = |line: &str| {
            let address = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
            address.unwrap_or_else(|| panic!("{transport}: {line}")).to_owned()
        };
        let served = format!("127.0.0.1:{}", port_of(&first));
        let mut rest = String::new();
        while !rest.ends_with("-> 9\n") {
            assert!(lines.read_line(&mut rest).expect("a line") > 0, "{transport}: {rest}");
        }
        let nobody = rest.lines().find(|line| line.starts_with("Forwarding from 127.0.0.1:") && line.ends_with("-> 9"));
        let nobody = format!("127.0.0.1:{}", port_of(nobody.expect("the other port")));
        let get = || async {
            let request = http::Request::get("/x").header("host", "x").body(Default::default()).expect("a request");
            crate::harness::send(&served, request).await.map(|reply| reply.text())
        };
        for _ in 0..3 {
            assert_eq!(get().await.expect("an answer"), "printed", "{transport}");
        }
        let answers = futures::future::join_all((0..8).map(|_| get())).await;
        assert!(answers.into_iter().all(|answer| answer.is_ok_and(|text| text == "printed")), "{transport}");
        // Nobody listens there; kubectl says why, and the connection ends.
        let mut stream = std::net::TcpStream::connect(&nobody).expect("kubectl listens");
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        assert_eq!(text, "", "{transport}");
        let mut errors = BufReader::new(child.0.stderr.take().expect("it is piped"));
        let mut error = String::new();
        errors.read_line(&mut error).expect("a line");
        assert!(error.contains("refused"), "{transport}: {error}");
    }
}

#[tokio::test]
async fn a_hostile_visitor_stays_inside_and_ends() {
    if !machine() || kubectl().is_none() {
        return;
    }
    let platform = Platform::start().await;
    let (pod, other) = (start(&platform, "hostile"), start(&platform, "victim"));
    let address = platform.object("pod", &other)["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    let api = platform.endpoint("api").rsplit_once(':').expect("a port").1.to_owned();
    let inside = |script: &str| run(&platform, "true", &["exec", "-i", &pod, "--", "bash", "-c", script], b"");
    for (what, script) in [
        ("other processes", "test $(ls -d /proc/[0-9]* | wc -l) -gt 10"),
        ("the other's port", &format!("timeout 2 bash -c '</dev/tcp/{address}/8080'")),
        ("the API", &format!("timeout 2 bash -c '</dev/tcp/127.0.0.1/{api}'")),
        ("root's files", "cat ~root/* /etc/shadow"),
        ("the platform's files", &format!("ls {}/", platform.dir.path().join("data").display())),
        ("another user", "su -c true || setpriv --reuid=0 true"),
        ("mounts", "mount -t tmpfs x /tmp"),
        ("namespaces", "unshare -Ur true"),
        ("devices", "mknod /tmp/x b 8 0"),
        ("the code", "touch /app/main.py"),
    ] {
        let done = inside(script);
        assert!(!done.status.success(), "{what} can be had: {}", said(&done));
    }
    // A client that is killed takes along what it started.
    let marker = "sleep 31415";
    let args = ["exec", &pod, "--", "sh", "-c", &format!("trap '' HUP TERM; echo on; {marker} & {marker}")];
    let mut child = Running(command(&platform, "true", &args).spawn().expect("kubectl runs"));
    assert_eq!(first_line(&mut child.0).0, "on\n");
    child.0.kill().expect("killed");
    eventually("its processes are gone", || async { if running(marker) == 0 { Ok(()) } else { Err(running(marker)) } })
        .await;
    // What leaves its session goes with the instance at the latest.
    let hidden = "sleep 27182";
    let done = inside(&format!("setsid sh -c \"trap '' HUP TERM; {hidden} & {hidden}\" >/dev/null 2>&1 & sleep 0.2"));
    assert!(done.status.success() && running(hidden) > 0, "{}", said(&done));
    platform.kubectl_ok(&["delete", "function", "hostile", "--wait=true"]);
    eventually("nothing outlives it", || async { if running(hidden) == 0 { Ok(()) } else { Err(running(hidden)) } })
        .await;
}

/// How many processes of this machine have this command line.
fn running(command: &str) -> usize {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).trim_end_matches('\0').replace('\0', " ") == command).count()
}
