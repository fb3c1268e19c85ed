//! What every Provider must do, as checks that any adapter can be held against.
//!
//! Owns the contract of [`crate::provider`] in executable form. Must not know any adapter: a [`Subject`] knows how to
//! ask its provider for each [`Behaviour`].

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::access::*;
use crate::provider::*;

/// What a sandbox of a check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Becomes ready, serves, and runs until it is stopped.
    Serve,
    /// Prints these lines and ends with the code.
    Exit { code: i32, output: Vec<String> },
    /// Cannot be run by any provider.
    Impossible,
}

/// What a visitor's program of a check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visitor {
    /// Prints what it reads, until that ends.
    Echo,
    /// Prints the line and ends with the code.
    Exit { code: i32, line: String },
}

/// A provider under test. Its sandboxes have one container, `main`.
pub trait Subject: Send + Sync {
    fn provider(&self) -> &dyn Provider;

    /// A spec of that uid, which the provider turns into that behaviour.
    fn spec(&self, uid: &str, behaviour: &Behaviour) -> SandboxSpec;

    /// The program of a visitor.
    fn argv(&self, visitor: &Visitor) -> Vec<String>;
}

const GRACE: Duration = Duration::from_millis(200);

/// Runs every check; panics at the first broken promise.
pub async fn check(subject: &dyn Subject) {
    creating_twice_is_creating_once(subject).await;
    stopping_is_idempotent_and_ends_with_exited(subject).await;
    the_end_is_reported_and_listed(subject).await;
    output_is_kept(subject).await;
    what_cannot_run_is_refused(subject).await;
    many_at_once(subject).await;
    a_dropped_create_is_finished_or_undone(subject).await;
    a_visitor_is_heard_and_its_end_known(subject).await;
    a_visitor_reads_until_its_input_ends(subject).await;
    visits_end_with_the_sandbox(subject).await;
    visits_are_bounded_and_make_room(subject).await;
    what_is_not_there_cannot_be_visited(subject).await;
    a_port_can_be_connected_to(subject).await;
    assert!(subject.provider().list().await.expect("a list").is_empty(), "something is left");
}

async fn creating_twice_is_creating_once(subject: &dyn Subject) {
    let provider = subject.provider();
    let spec = Arc::new(subject.spec("twice", &Behaviour::Serve));
    let first = provider.create(Arc::clone(&spec)).await.expect("created");
    assert!(first.containers.iter().all(|c| !matches!(c.phase, Phase::Starting { .. })), "it runs: {first:?}");
    reach(subject, "twice", Sandbox::is_ready).await;
    let second = provider.create(spec).await.expect("created again");
    assert_eq!((&second.uid, &second.address), (&first.uid, &first.address));
    assert!(second.is_ready(), "the present state, not the first one: {second:?}");
    assert_eq!(provider.list().await.expect("a list").len(), 1);
    provider.stop("twice", GRACE).await.expect("stopped");
}

async fn stopping_is_idempotent_and_ends_with_exited(subject: &dyn Subject) {
    let provider = subject.provider();
    provider.stop("never-was", GRACE).await.expect("nothing to stop is stopped");
    provider.create(Arc::new(subject.spec("stop", &Behaviour::Serve))).await.expect("created");
    let mut events = provider.events();
    let (first, second) = tokio::join!(provider.stop("stop", GRACE), provider.stop("stop", GRACE));
    first.and(second).expect("stopped by both");
    let mut last = None;
    while let Ok(event) = events.try_recv() {
        last = Some(event).filter(|e| e.uid == "stop").or(last);
    }
    let last = last.expect("events of the stop");
    let reason = |c: &Container| match &c.phase {
        Phase::Exited(exit) => Some(exit.reason),
        _ => None,
    };
    assert!(last.containers.iter().all(|c| reason(c) == Some(ExitReason::Stopped)), "the last event: {last:?}");
    assert!(provider.list().await.expect("a list").is_empty(), "it is gone when stop returns");
    let logs = provider.logs("stop", "main", LogOptions::default()).await;
    assert_eq!(logs.err().map(|e| e.class()), Some(ErrorClass::NotFound));
}

async fn the_end_is_reported_and_listed(subject: &dyn Subject) {
    for (uid, code, want) in [("ends-well", 0, ExitReason::Completed), ("ends-badly", 3, ExitReason::Error)] {
        let behaviour = Behaviour::Exit { code, output: vec![] };
        subject.provider().create(Arc::new(subject.spec(uid, &behaviour))).await.expect("created");
        let sandbox = reach(subject, uid, Sandbox::is_exited).await;
        let Phase::Exited(exit) = &sandbox.containers[0].phase else { unreachable!("is_exited said so") };
        assert_eq!((exit.code, exit.signal, exit.reason), (code, None, want));
        assert!(exit.started <= exit.finished);
        let listed = subject.provider().list().await.expect("a list");
        assert_eq!(listed, [sandbox], "it stays until it is stopped");
        subject.provider().stop(uid, GRACE).await.expect("stopped");
    }
}

async fn output_is_kept(subject: &dyn Subject) {
    let output: Vec<String> = ["one", "two", "three"].map(str::to_owned).to_vec();
    let behaviour = Behaviour::Exit { code: 0, output };
    subject.provider().create(Arc::new(subject.spec("prints", &behaviour))).await.expect("created");
    reach(subject, "prints", Sandbox::is_exited).await;
    for (tail_lines, want) in [(None, "one\ntwo\nthree\n"), (Some(1), "three\n"), (Some(9), "one\ntwo\nthree\n")] {
        let options = LogOptions { tail_lines, ..LogOptions::default() };
        let mut stream = subject.provider().logs("prints", "main", options).await.expect("its output");
        let mut text = Vec::new();
        while let Some(bytes) = stream.next().await {
            text.extend(bytes.expect("readable"));
        }
        assert_eq!(String::from_utf8_lossy(&text), want, "the last {tail_lines:?} lines");
    }
    let unknown = subject.provider().logs("prints", "other", LogOptions::default()).await;
    assert_eq!(unknown.err().map(|e| e.class()), Some(ErrorClass::NotFound));
    subject.provider().stop("prints", GRACE).await.expect("stopped");
}

async fn what_cannot_run_is_refused(subject: &dyn Subject) {
    let refused = subject.provider().create(Arc::new(subject.spec("impossible", &Behaviour::Impossible))).await;
    assert_eq!(refused.err().map(|e| e.class()), Some(ErrorClass::Invalid));
    assert!(subject.provider().list().await.expect("a list").is_empty(), "nothing of it is left");
}

async fn many_at_once(subject: &dyn Subject) {
    let provider = subject.provider();
    let uids: Vec<String> = (0..20).map(|n| format!("many-{n}")).collect();
    let created = uids.iter().map(|uid| provider.create(Arc::new(subject.spec(uid, &Behaviour::Serve))));
    let created: Vec<Sandbox> = join_all(created).await.into_iter().collect::<Result<_, _>>().expect("all created");
    let mut addresses: Vec<String> = created.iter().map(|s| format!("{:?}", s.address)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), uids.len(), "each has an address of its own");
    join_all(uids.iter().map(|uid| reach(subject, uid, Sandbox::is_ready))).await;
    let stopped = join_all(uids.iter().map(|uid| provider.stop(uid, GRACE))).await;
    stopped.into_iter().collect::<Result<Vec<()>, _>>().expect("all stopped");
}

async fn a_dropped_create_is_finished_or_undone(subject: &dyn Subject) {
    let provider = subject.provider();
    let spec = Arc::new(subject.spec("dropped", &Behaviour::Serve));
    // Polled once, which is as far as it gets before the caller loses interest.
    let _ = futures::poll!(Box::pin(provider.create(Arc::clone(&spec))));
    let sandbox = provider.create(spec).await.expect("it is there, or can be made");
    assert_eq!(provider.list().await.expect("a list").len(), 1);
    assert_eq!(sandbox.uid, "dropped");
    provider.stop("dropped", GRACE).await.expect("stopped");
}

async fn serving(subject: &dyn Subject, uid: &str) {
    subject.provider().create(Arc::new(subject.spec(uid, &Behaviour::Serve))).await.expect("created");
    reach(subject, uid, Sandbox::is_ready).await;
}

fn command(subject: &dyn Subject, visitor: &Visitor) -> Command {
    Command { argv: subject.argv(visitor), input: *visitor == Visitor::Echo, terminal: false }
}

/// Everything a visitor's program prints to its end, and how it ends.
async fn heard(mut output: OutputStream) -> (String, i32) {
    let mut text = Vec::new();
    while let Some(output) = output.next().await {
        match output {
            Output::Stdout(bytes) => text.extend(bytes),
            Output::Stderr(bytes) => panic!("an error: {bytes:?}"),
            Output::Exited(code) => return (String::from_utf8_lossy(&text).into_owned(), code),
        }
    }
    panic!("the output ended without an exit: {text:?}");
}

async fn a_visitor_is_heard_and_its_end_known(subject: &dyn Subject) {
    serving(subject, "visited").await;
    for code in [0, 7] {
        let visitor = Visitor::Exit { code, line: "I was here".to_owned() };
        let session = subject.provider().exec("visited", "main", command(subject, &visitor)).await.expect("a session");
        assert_eq!(heard(session.output).await, ("I was here\n".to_owned(), code));
    }
    subject.provider().stop("visited", GRACE).await.expect("stopped");
}

async fn a_visitor_reads_until_its_input_ends(subject: &dyn Subject) {
    serving(subject, "told").await;
    let command = command(subject, &Visitor::Echo);
    let mut session = subject.provider().exec("told", "main", command).await.expect("a session");
    let mut input = session.input.take().expect("it was asked for");
    input.write_all(b"one\ntwo\n").await.expect("it reads");
    drop(input);
    assert_eq!(heard(session.output).await, ("one\ntwo\n".to_owned(), 0));
    subject.provider().stop("told", GRACE).await.expect("stopped");
}

async fn visits_end_with_the_sandbox(subject: &dyn Subject) {
    serving(subject, "ending").await;
    let command = command(subject, &Visitor::Echo);
    let session = subject.provider().exec("ending", "main", command).await.expect("a session");
    let mut attached = subject.provider().attach("ending", "main").await.expect("attached");
    subject.provider().stop("ending", GRACE).await.expect("stopped");
    assert_eq!(heard(session.output).await, (String::new(), 137), "it is killed");
    while attached.next().await.is_some() {}
}

async fn visits_are_bounded_and_make_room(subject: &dyn Subject) {
    serving(subject, "full").await;
    let echo = command(subject, &Visitor::Echo);
    let visit = || subject.provider().exec("full", "main", echo.clone());
    let mut sessions = vec![];
    for _ in 0..MOST_VISITS {
        sessions.push(visit().await.expect("there is room"));
    }
    let refused = visit().await.err().expect("no room");
    assert!(matches!(refused, ProviderError::Exhausted { .. }), "{refused}");
    sessions.pop();
    // It ends in its own time.
    let room = async {
        while visit().await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), room).await.expect("who leaves makes room");
    subject.provider().stop("full", GRACE).await.expect("stopped");
}

async fn what_is_not_there_cannot_be_visited(subject: &dyn Subject) {
    let provider = subject.provider();
    let exit = command(subject, &Visitor::Exit { code: 0, line: String::new() });
    serving(subject, "there").await;
    for (uid, container) in [("nowhere", "main"), ("there", "other")] {
        let refused = provider.exec(uid, container, exit.clone()).await.err();
        assert_eq!(refused.map(|e| e.class()), Some(ErrorClass::NotFound), "{uid}/{container}");
        let refused = provider.attach(uid, container).await.err();
        assert_eq!(refused.map(|e| e.class()), Some(ErrorClass::NotFound), "{uid}/{container}");
    }
    assert_eq!(provider.connect("nowhere", 80).await.err().map(|e| e.class()), Some(ErrorClass::NotFound));
    provider.stop("there", GRACE).await.expect("stopped");
    let ended = Behaviour::Exit { code: 0, output: vec![] };
    provider.create(Arc::new(subject.spec("ended", &ended))).await.expect("created");
    reach(subject, "ended", Sandbox::is_exited).await;
    let refused = provider.exec("ended", "main", exit).await.err().expect("it has ended");
    assert!(matches!(refused, ProviderError::NotRunning { .. }), "{refused}");
    let refused = provider.attach("ended", "main").await.err().expect("it has ended");
    assert!(matches!(refused, ProviderError::NotRunning { .. }), "{refused}");
    let refused = provider.connect("ended", 80).await.err().expect("it has ended");
    assert!(matches!(refused, ProviderError::NotRunning { .. }), "{refused}");
    provider.stop("ended", GRACE).await.expect("stopped");
}

async fn a_port_can_be_connected_to(subject: &dyn Subject) {
    serving(subject, "serving").await;
    let port = api::names::DEFAULT_PORT;
    let mut connection = subject.provider().connect("serving", port).await.expect("it listens");
    connection.write_all(b"x").await.expect("it reads");
    let mut byte = [0];
    connection.read_exact(&mut byte).await.expect("it answers");
    subject.provider().stop("serving", GRACE).await.expect("stopped");
}

/// Waits until a sandbox is as wanted, by its events.
async fn reach(subject: &dyn Subject, uid: &str, wanted: impl Fn(&Sandbox) -> bool) -> Sandbox {
    let mut events = subject.provider().events();
    let listed = subject.provider().list().await.expect("a list");
    let mut last = listed.into_iter().find(|s| s.uid == uid).expect("it was created");
    while !wanted(&last) {
        let event = tokio::time::timeout(Duration::from_secs(30), events.recv()).await;
        let event = event.unwrap_or_else(|_| panic!("{uid} stays as it is: {last:?}")).expect("events");
        if event.uid == uid {
            last = event;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Failure, FakeProvider, Script};

    struct Fake(FakeProvider);

    impl Subject for Fake {
        fn provider(&self) -> &dyn Provider {
            &self.0
        }

        fn spec(&self, uid: &str, behaviour: &Behaviour) -> SandboxSpec {
            let ready = Some(Duration::from_millis(5));
            let script = match behaviour {
                Behaviour::Serve => Script { ready_after: ready, ..Script::default() },
                Behaviour::Exit { code, output } => {
                    let reason = if *code == 0 { ExitReason::Completed } else { ExitReason::Error };
                    let exit_after = Some((Duration::from_millis(10), *code, reason));
                    Script { exit_after, output: output.clone(), ..Script::default() }
                }
                Behaviour::Impossible => {
                    Script { create: Err(Failure::Unsupported("it is scripted so".into())), ..Script::default() }
                }
            };
            self.0.script(uid, script);
            let container = ContainerSpec {
                name: "main".into(),
                init: false,
                root: Root::Host,
                program: Program::Exec { argv: vec!["/bin/true".into()] },
                user: None,
                env: vec![],
                working_dir: "/".into(),
                mounts: vec![],
                limits: Limits::default(),
                serve: Serve::Socket,
            };
            SandboxSpec {
                uid: uid.into(),
                namespace: "default".into(),
                name: uid.into(),
                network: Network::Pod,
                volumes: vec![],
                containers: vec![container],
            }
        }

        fn argv(&self, visitor: &Visitor) -> Vec<String> {
            match visitor {
                Visitor::Echo => vec!["cat".into()],
                Visitor::Exit { code, line } => vec!["exit".into(), code.to_string(), line.clone()],
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_fake_conforms() {
        let clock: api::Clock = Arc::new(|| jiff::Timestamp::UNIX_EPOCH);
        check(&Fake(FakeProvider::new(clock))).await;
    }
}
