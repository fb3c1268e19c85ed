//! A Provider that follows a script instead of starting anything.
//!
//! Owns: sandboxes as values, and the moments at which a script makes them ready or ends them. Must not know
//! any process. Timers are tokio's, so a test in paused time decides when they fire.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use api::Clock;
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt, stream};
use jiff::Timestamp;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Semaphore, broadcast};
use tokio::task::JoinSet;

use crate::access::*;
use crate::provider::*;

const EVENTS: usize = 1024;

/// What happens to a sandbox. The default is ready at once and runs until it is stopped.
#[derive(Clone, Debug)]
pub struct Script {
    /// `create` fails this way instead.
    pub create: Result<(), Failure>,
    /// When it becomes ready after `create`; `None` for never.
    pub ready_after: Option<Duration>,
    /// When every container ends by itself, and how.
    pub exit_after: Option<(Duration, i32, ExitReason)>,
    /// What the containers have printed, a line each.
    pub output: Vec<String>,
}

impl Default for Script {
    fn default() -> Self {
        Self { create: Ok(()), ready_after: Some(Duration::ZERO), exit_after: None, output: Vec::new() }
    }
}

/// How a scripted `create` fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    Unsupported(String),
    Invalid(String),
    Exhausted,
    Io(String),
    LauncherGone,
}

pub struct FakeProvider {
    shared: Arc<Shared>,
    capabilities: Capabilities,
    timers: Mutex<JoinSet<()>>,
}

struct Shared {
    clock: Clock,
    state: Mutex<State>,
    events: broadcast::Sender<Sandbox>,
}

#[derive(Default)]
struct State {
    scripts: HashMap<String, Script>,
    default: Script,
    sandboxes: BTreeMap<String, Sandbox>,
    output: HashMap<String, Vec<String>>,
    created: Vec<Arc<SandboxSpec>>,
    stopped: Vec<String>,
    next_address: u32,
    live: HashMap<String, broadcast::Sender<Output>>,
    rooms: HashMap<String, Arc<Semaphore>>,
}

impl FakeProvider {
    pub fn new(clock: Clock) -> Self {
        let (events, _) = broadcast::channel(EVENTS);
        let capabilities = Capabilities {
            runtime_class: api::names::runtime_class::PROCESS,
            pod_network: true,
            missing_isolation: vec!["Nothing is isolated, because this provider starts nothing.".to_owned()],
        };
        let shared = Shared { clock, state: Mutex::default(), events };
        Self { shared: Arc::new(shared), capabilities, timers: Mutex::default() }
    }

    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// The script of the sandbox with this uid or this pod name.
    pub fn script(&self, uid_or_name: &str, script: Script) {
        self.shared.state().scripts.insert(uid_or_name.to_owned(), script);
    }

    /// The script of every sandbox that has none of its own.
    pub fn default_script(&self, script: Script) {
        self.shared.state().default = script;
    }

    /// Every spec `create` succeeded with, in order.
    pub fn created(&self) -> Vec<Arc<SandboxSpec>> {
        self.shared.state().created.clone()
    }

    /// Every uid `stop` removed, in order.
    pub fn stopped(&self) -> Vec<String> {
        self.shared.state().stopped.clone()
    }

    /// Sets the readiness of every running container of a sandbox now.
    pub fn set_ready(&self, uid: &str, ready: bool) {
        self.shared.set_ready(uid, ready);
    }

    /// Ends every running container of a sandbox now.
    pub fn exit(&self, uid: &str, code: i32, reason: ExitReason) {
        self.shared.exit(uid, code, reason);
    }

    /// Adds a line to the output of a sandbox.
    pub fn print(&self, uid: &str, line: &str) {
        let mut state = self.shared.state();
        state.output.entry(uid.to_owned()).or_default().push(line.to_owned());
        if let Some(live) = state.live.get(uid) {
            // Nobody need be attached.
            let _ = live.send(Output::Stdout(Bytes::from(format!("{line}\n"))));
        }
    }

    /// Completes when the sandbox has ended.
    fn ended(&self, uid: &str) -> BoxFuture<'static, ()> {
        let (mut events, uid) = (self.shared.events.subscribe(), uid.to_owned());
        let ended = async move {
            while let Ok(event) = events.recv().await {
                if event.uid == uid && event.is_exited() {
                    break;
                }
            }
        };
        ended.boxed()
    }

    fn schedule(&self, uid: &str, script: &Script) {
        let mut timers = self.timers.lock().expect("no holder of this lock panics");
        while timers.try_join_next().is_some() {}
        match script.ready_after {
            Some(Duration::ZERO) => self.shared.set_ready(uid, true),
            Some(after) => {
                let (shared, uid) = (Arc::clone(&self.shared), uid.to_owned());
                timers.spawn(async move {
                    tokio::time::sleep(after).await;
                    shared.set_ready(&uid, true);
                });
            }
            None => {}
        }
        if let Some((after, code, reason)) = script.exit_after {
            let (shared, uid) = (Arc::clone(&self.shared), uid.to_owned());
            timers.spawn(async move {
                tokio::time::sleep(after).await;
                shared.exit(&uid, code, reason);
            });
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn set_ready(&self, uid: &str, ready: bool) {
        self.change(uid, |phase| {
            if let Phase::Running { ready: old, .. } = phase {
                *old = ready;
            }
        });
    }

    fn exit(&self, uid: &str, code: i32, reason: ExitReason) {
        let now = (self.clock)();
        self.change(uid, |phase| {
            let (Phase::Running { since: started, .. } | Phase::Starting { since: started }) = *phase else { return };
            let signal = (code > 128).then_some(code - 128);
            *phase = Phase::Exited(Exit { code, signal, reason, started, finished: now });
        });
    }

    fn running(&self, uid: &str, container: &str) -> Result<(), ProviderError> {
        let state = self.state();
        let container = state.sandboxes.get(uid).and_then(|s| s.containers.iter().find(|c| c.name == container));
        match container.map(|c| &c.phase) {
            None => Err(ProviderError::NotFound { uid: uid.to_owned() }),
            Some(Phase::Running { .. }) => Ok(()),
            Some(_) => Err(ProviderError::NotRunning { uid: uid.to_owned(), what: "a container".to_owned() }),
        }
    }

    fn change(&self, uid: &str, mut edit: impl FnMut(&mut Phase)) {
        let mut state = self.state();
        let Some(sandbox) = state.sandboxes.get_mut(uid) else { return };
        let before = sandbox.clone();
        sandbox.containers.iter_mut().for_each(|c| edit(&mut c.phase));
        if *sandbox != before {
            // Nobody listening is no error: the state is in `list`.
            let _ = self.events.send(sandbox.clone());
            if sandbox.is_exited() {
                state.live.remove(uid);
            }
        }
    }
}

#[async_trait]
impl Provider for FakeProvider {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn create(&self, spec: Arc<SandboxSpec>) -> Result<Sandbox, ProviderError> {
        let now = (self.shared.clock)();
        let (sandbox, script) = {
            let mut state = self.shared.state();
            if let Some(existing) = state.sandboxes.get(&spec.uid) {
                return Ok(existing.clone());
            }
            let script = state
                .scripts
                .get(&spec.uid)
                .or_else(|| state.scripts.get(&spec.name))
                .unwrap_or(&state.default)
                .clone();
            script.create.clone().map_err(|failure| failure.into_error(&spec.uid))?;
            state.next_address += 1;
            let sandbox = new_sandbox(&spec, state.next_address, now);
            state.sandboxes.insert(spec.uid.clone(), sandbox.clone());
            state.output.insert(spec.uid.clone(), script.output.clone());
            state.created.push(Arc::clone(&spec));
            let _ = self.shared.events.send(sandbox.clone());
            (sandbox, script)
        };
        self.schedule(&spec.uid, &script);
        Ok(sandbox)
    }

    async fn stop(&self, uid: &str, _grace: Duration) -> Result<(), ProviderError> {
        self.shared.exit(uid, 0, ExitReason::Stopped);
        let mut state = self.shared.state();
        if state.sandboxes.remove(uid).is_some() {
            state.output.remove(uid);
            state.stopped.push(uid.to_owned());
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Sandbox>, ProviderError> {
        Ok(self.shared.state().sandboxes.values().cloned().collect())
    }

    fn events(&self) -> broadcast::Receiver<Sandbox> {
        self.shared.events.subscribe()
    }
}

/// A visitor's program is `cat`, which prints what it reads, or `exit`, which prints its further arguments and ends
/// with the first. Every port is served by something that says what it is told.
#[async_trait]
impl Access for FakeProvider {
    /// Follows nothing: the stream ends after what was printed until now.
    async fn logs(&self, uid: &str, container: &str, options: LogOptions) -> Result<LogStream, ProviderError> {
        let state = self.shared.state();
        let known = state.sandboxes.get(uid).is_some_and(|s| s.containers.iter().any(|c| c.name == container));
        if !known {
            return Err(ProviderError::NotFound { uid: uid.to_owned() });
        }
        let lines = state.output.get(uid).cloned().unwrap_or_default();
        let skip = options.tail_lines.map_or(0, |tail| lines.len().saturating_sub(tail));
        let lines: Vec<_> = lines.into_iter().skip(skip).map(|l| Ok(Bytes::from(l + "\n"))).collect();
        Ok(stream::iter(lines).boxed())
    }

    /// Prints what [`FakeProvider::print`] adds, until the sandbox has ended.
    async fn attach(&self, uid: &str, container: &str) -> Result<OutputStream, ProviderError> {
        self.shared.running(uid, container)?;
        let mut state = self.shared.state();
        let live = state.live.entry(uid.to_owned()).or_insert_with(|| broadcast::channel(EVENTS).0).subscribe();
        Ok(stream::unfold(live, |mut live| async move { Some((live.recv().await.ok()?, live)) }).boxed())
    }

    async fn exec(&self, uid: &str, container: &str, command: Command) -> Result<Session, ProviderError> {
        self.shared.running(uid, container)?;
        let room = Arc::clone(self.shared.state().rooms.entry(uid.to_owned()).or_insert_with(room));
        let full = |_| ProviderError::Exhausted { what: "visits to one sandbox" };
        let permit = room.try_acquire_owned().map_err(full)?;
        let ended = self.ended(uid);
        let resized = Arc::new(Mutex::new(None));
        let size = Arc::clone(&resized);
        let resize: Option<Box<dyn Fn(Size) + Send + Sync>> =
            command.terminal.then(|| Box::new(move |to| *size.lock().expect("no holder panics") = Some(to)) as Box<_>);
        let (input, output) = match command.argv.first().map(String::as_str) {
            Some("cat") => {
                let (ours, theirs) = tokio::io::duplex(1024);
                let size = move || resized.lock().expect("no holder panics").take();
                (command.input.then_some(ours), echo(theirs, size).boxed())
            }
            Some("exit") => {
                let code = command.argv.get(1).and_then(|code| code.parse().ok()).unwrap_or(0);
                let text = command.argv.get(2..).unwrap_or_default().join(" ");
                let printed = Output::Stdout(Bytes::from(text + "\n"));
                (None, stream::iter([printed, Output::Exited(code)]).boxed())
            }
            _ => {
                let reason = "this provider has two programs, cat and exit".to_owned();
                return Err(ProviderError::Invalid { uid: uid.to_owned(), reason });
            }
        };
        let killed = stream::once(async { Output::Exited(137) });
        let output = output.take_until(ended).chain(killed).scan(false, |over, output| {
            let before = std::mem::replace(over, matches!(output, Output::Exited(_)));
            std::future::ready((!before).then_some(output))
        });
        let output = stream::unfold((output.boxed(), permit), |(mut output, permit)| async move {
            Some((output.next().await?, (output, permit)))
        });
        Ok(Session { input: input.map(|i| Box::new(i) as Box<_>), output: output.boxed(), resize })
    }

    async fn connect(&self, uid: &str, _port: u16) -> Result<Connection, ProviderError> {
        let state = self.shared.state();
        let sandbox = state.sandboxes.get(uid).ok_or_else(|| ProviderError::NotFound { uid: uid.to_owned() })?;
        if sandbox.is_exited() {
            return Err(ProviderError::NotRunning { uid: uid.to_owned(), what: "the first container".to_owned() });
        }
        let (ours, theirs) = tokio::io::duplex(1024);
        self.timers.lock().expect("no holder of this lock panics").spawn(async move {
            let (mut read, mut write) = tokio::io::split(theirs);
            // Whoever connected may leave at any time.
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        Ok(Box::new(ours))
    }
}

fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MOST_VISITS))
}

/// What comes in goes out, until it ends; a new size is told as well.
fn echo(
    input: tokio::io::DuplexStream,
    resized: impl Fn() -> Option<Size> + Send + 'static,
) -> impl Stream<Item = Output> {
    stream::unfold(Some((input, resized)), |state| async move {
        let (mut input, resized) = state?;
        let mut chunk = [0; 1024];
        let length = input.read(&mut chunk).await.unwrap_or(0);
        if length == 0 {
            return Some((Output::Exited(0), None));
        }
        let mut text = chunk[..length].to_vec();
        if let Some(size) = resized() {
            text.extend(format!("{}x{}\n", size.columns, size.rows).into_bytes());
        }
        Some((Output::Stdout(text.into()), Some((input, resized))))
    })
}

impl Failure {
    fn into_error(self, uid: &str) -> ProviderError {
        match self {
            Self::Unsupported(reason) => ProviderError::Unsupported { reason },
            Self::Invalid(reason) => ProviderError::Invalid { uid: uid.to_owned(), reason },
            Self::Exhausted => ProviderError::Exhausted { what: "addresses" },
            Self::Io(text) => ProviderError::Io { action: "start".to_owned(), source: std::io::Error::other(text) },
            Self::LauncherGone => ProviderError::LauncherGone,
        }
    }
}

fn new_sandbox(spec: &SandboxSpec, number: u32, now: Timestamp) -> Sandbox {
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 250, 0, 0)) + number);
    let container = |c: &ContainerSpec| Container {
        name: c.name.clone(),
        init: c.init,
        phase: Phase::Running { since: now, ready: c.serve == Serve::Nothing },
    };
    Sandbox {
        uid: spec.uid.clone(),
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        address: Some(Address::Ip(SocketAddr::from((ip, api::names::DEFAULT_PORT)))),
        containers: spec.containers.iter().map(container).collect(),
    }
}
