//! The provider's side of visits: pipes and terminals, what the launcher answers, and the end of either side.
//!
//! Owns the visitors' ends of all descriptors. Must not know how a process gets beside another. Each program has a
//! task that reads what it prints and passes it on, and that has it killed when nobody wants to read it any more.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, stream};
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::state::Present;
use super::{Outgoing, ProcessProvider, doing, refused};
use crate::access::*;
use crate::launcher::resize_terminal;
use crate::provider::{Address, ContainerSpec, ProviderError, Serve};
use crate::wire::{self, Refusal, Request, Status, Visit};

/// Read at once from a program.
const CHUNK_BYTES: usize = 32 << 10;
/// Pieces of output on their way to the visitor; a program that prints more waits for its own pipe.
const CHUNKS: usize = 4;
/// How long more output is awaited once the program has ended: something it left behind may hold its pipes open.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// Between attempts to visit what is not there yet: each pause is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(512);

struct Patience(Duration);

impl Patience {
    /// Waits for a while; `false` when it has waited for long enough.
    async fn lasts(&mut self) -> bool {
        if self.0 > LONGEST_PAUSE {
            return false;
        }
        tokio::time::sleep(self.0).await;
        self.0 *= 2;
        true
    }
}

/// Who waits for the launcher to say something about a visit.
#[derive(Default)]
pub struct Visits {
    waiting: Mutex<(u64, HashMap<u64, Waiting>)>,
}

/// Dropped when the launcher is gone, which is an answer as well.
struct Waiting {
    entered: Option<oneshot::Sender<Result<Vec<OwnedFd>, Refusal>>>,
    left: Option<oneshot::Sender<Status>>,
}

struct Expected {
    visit: u64,
    entered: oneshot::Receiver<Result<Vec<OwnedFd>, Refusal>>,
    left: oneshot::Receiver<Status>,
}

impl Visits {
    fn expect(&self) -> Expected {
        let (entered_to, entered) = oneshot::channel();
        let (left_to, left) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.0 += 1;
        let visit = waiting.0;
        waiting.1.insert(visit, Waiting { entered: Some(entered_to), left: Some(left_to) });
        Expected { visit, entered, left }
    }

    pub fn entered(&self, visit: u64, answer: Result<Vec<OwnedFd>, Refusal>) {
        let mut waiting = self.lock();
        let Some(waits) = waiting.1.get_mut(&visit) else { return };
        let entered = waits.entered.take();
        if answer.is_err() {
            waiting.1.remove(&visit);
        }
        // Whoever asked may be gone; what was made for them is closed, and what was started is left by its task.
        let _ = entered.map(|to| to.send(answer));
    }

    pub fn left(&self, visit: u64, status: Status) {
        if let Some(left) = self.lock().1.remove(&visit).and_then(|waits| waits.left) {
            let _ = left.send(status);
        }
    }

    fn forget(&self, visit: u64) {
        self.lock().1.remove(&visit);
    }

    pub fn lose_all(&self) {
        self.lock().1.clear();
    }

    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, Waiting>)> {
        self.waiting.lock().expect("no holder of this lock panics")
    }
}

/// How many visits a sandbox has room for.
#[derive(Clone)]
pub struct Room {
    visits: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        let [visits, connections] = [MOST_VISITS, MOST_CONNECTIONS].map(|most| Arc::new(Semaphore::new(most)));
        Self { visits, connections }
    }
}

impl Room {
    fn visit(&self) -> Result<OwnedSemaphorePermit, ProviderError> {
        let full = |_| ProviderError::Exhausted { what: "visits to one sandbox" };
        self.visits.clone().try_acquire_owned().map_err(full)
    }

    fn connection(&self) -> Result<OwnedSemaphorePermit, ProviderError> {
        let full = |_| ProviderError::Exhausted { what: "connections into one sandbox" };
        self.connections.clone().try_acquire_owned().map_err(full)
    }
}

impl ProcessProvider {
    pub(super) fn follow(&self, uid: &str, container: &str) -> Result<OutputStream, ProviderError> {
        let present = self.present(uid, container)?;
        let permit = present.room.visit()?;
        let live = present.log.listen().ok_or_else(|| not_running(uid, container))?;
        Ok(stream::unfold((live, permit), |(mut live, permit)| async move {
            loop {
                match live.recv().await {
                    Ok(output) => return Some((output, (live, permit))),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed())
    }

    /// As [`Access::exec`], with patience for a container that was made a moment ago and is still on its way in.
    pub(super) async fn visit(&self, uid: &str, container: &str, command: Command) -> Result<Session, ProviderError> {
        let mut patience = Patience(FIRST_PAUSE);
        loop {
            match self.enter(uid, container, command.clone()).await {
                Err(ProviderError::NotRunning { .. }) if self.runs(uid) && patience.lasts().await => {}
                other => return other,
            }
        }
    }

    /// As [`Access::connect`], with the same patience.
    pub(super) async fn reach(&self, uid: &str, port: u16) -> Result<Connection, ProviderError> {
        let mut patience = Patience(FIRST_PAUSE);
        loop {
            match self.dial(uid, port).await {
                Err(ProviderError::NotRunning { .. }) if self.runs(uid) && patience.lasts().await => {}
                other => return other,
            }
        }
    }

    fn runs(&self, uid: &str) -> bool {
        self.shared.state.list().iter().any(|s| s.uid == uid && !s.is_exited())
    }

    async fn enter(&self, uid: &str, container: &str, command: Command) -> Result<Session, ProviderError> {
        let invalid = |reason: String| ProviderError::Invalid { uid: uid.to_owned(), reason };
        if command.argv.first().is_none_or(String::is_empty) {
            return Err(invalid("there is no program to start".to_owned()));
        }
        let present = self.present(uid, container)?;
        let permit = present.room.visit()?;
        let (ends, theirs) = ends(&command).map_err(doing("make pipes"))?;
        let expected = self.shared.visits.expect();
        let request = Request::Visit(Box::new(Visit {
            visit: expected.visit,
            uid: uid.to_owned(),
            place: present.place,
            container: with_terminal(present.container, command.terminal),
            argv: command.argv,
            input: command.input,
            terminal: command.terminal,
        }));
        let encoded = wire::encode(&request, theirs.len()).map_err(|e| invalid(e.to_string()));
        let bytes = encoded.inspect_err(|_| self.shared.visits.forget(expected.visit))?;
        let (to, output) = mpsc::channel(CHUNKS);
        let (began, beginning) = oneshot::channel();
        let attendant = Attendant {
            visit: expected.visit,
            requests: self.requests.clone(),
            gone: self.shared.gone.clone(),
            _permit: permit,
        };
        // The task is there before the launcher is asked, so whatever is started has somebody to end it.
        self.tasks.spawn(attendant.run(Outgoing { bytes, fds: theirs }, expected, began, ends.output, to));
        match beginning.await {
            Ok(Ok(())) => {}
            Ok(Err(Refusal::NotRunning)) => return Err(not_running(uid, container)),
            Ok(Err(refusal)) => return Err(refused(uid, refusal)),
            Err(_) => return Err(ProviderError::LauncherGone),
        }
        let output = stream::unfold(output, |mut output| async move { Some((output.recv().await?, output)) }).boxed();
        Ok(Session { input: ends.input, output, resize: ends.resize })
    }

    async fn dial(&self, uid: &str, port: u16) -> Result<Connection, ProviderError> {
        let missing = || ProviderError::NotFound { uid: uid.to_owned() };
        let (room, address, serves) = self.shared.state.reachable(uid).ok_or_else(missing)?;
        let permit = room.connection()?;
        let refused_by = |source| ProviderError::Io { action: format!("connect to port {port} inside"), source };
        if let Some(Address::Unix(path)) = &address
            && serves.contains(&Serve::Socket)
            && port == api::names::DEFAULT_PORT
        {
            let stream = UnixStream::connect(path).await.map_err(refused_by)?;
            return Ok(Box::new(Held { stream, _permit: permit }));
        }
        let sockets = self.sockets(uid).await?;
        let own = match address {
            Some(Address::Ip(address)) => Some(address.ip()),
            _ => None,
        };
        let loopback = Ipv4Addr::LOCALHOST.into();
        let stream = first(sockets, [Some(loopback), own].into_iter().flatten().map(|ip| SocketAddr::new(ip, port)));
        Ok(Box::new(Held { stream: stream.await.map_err(refused_by)?, _permit: permit }))
    }

    /// Sockets made in the sandbox's network, of which this process has the use.
    async fn sockets(&self, uid: &str) -> Result<Vec<OwnedFd>, ProviderError> {
        let expected = self.shared.visits.expect();
        let request = Request::Sockets { visit: expected.visit, uid: uid.to_owned() };
        let asked = self.ask(&request, vec![]).await;
        let answer = match asked {
            Ok(()) => self.shared.gone.run_until_cancelled(expected.entered).await,
            Err(_) => None,
        };
        self.shared.visits.forget(expected.visit);
        match answer {
            Some(Ok(Ok(sockets))) => Ok(sockets),
            Some(Ok(Err(Refusal::NotRunning))) => Err(not_running(uid, "the first container")),
            Some(Ok(Err(refusal))) => Err(refused(uid, refusal)),
            Some(Err(_)) | None => Err(ProviderError::LauncherGone),
        }
    }

    fn present(&self, uid: &str, container: &str) -> Result<Present, ProviderError> {
        let missing = || ProviderError::NotFound { uid: uid.to_owned() };
        let present = self.shared.state.present(uid, container).ok_or_else(missing)?;
        if present.running { Ok(present) } else { Err(not_running(uid, container)) }
    }
}

fn not_running(uid: &str, container: &str) -> ProviderError {
    ProviderError::NotRunning { uid: uid.to_owned(), what: format!("container {container}") }
}

/// Programs on a terminal must know of which kind it is; this is the kind that everybody understands.
fn with_terminal(mut container: ContainerSpec, terminal: bool) -> ContainerSpec {
    if terminal && !container.env.iter().any(|(name, _)| name == "TERM") {
        container.env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    container
}

/// Connects one of the sockets to the first address that takes it.
async fn first(sockets: Vec<OwnedFd>, addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for (socket, address) in sockets.into_iter().zip(addresses) {
        match TcpSocket::from_std_stream(socket.into()).connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What the visitor has of a program.
struct Ends {
    input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<Box<dyn Fn(Size) + Send + Sync>>,
    output: Vec<(Printed, pipe::Receiver)>,
}

type Printed = fn(Bytes) -> Output;

/// The visitor's ends, and the program's as the launcher wants them.
fn ends(command: &Command) -> io::Result<(Ends, Vec<OwnedFd>)> {
    if command.terminal {
        return terminal(command.input);
    }
    let mut theirs = vec![];
    let mut input: Option<Box<dyn AsyncWrite + Send + Unpin>> = None;
    if command.input {
        let (read, write) = io::pipe()?;
        theirs.push(read.into());
        input = Some(Box::new(pipe::Sender::from_owned_fd(write.into())?));
    }
    let mut output: Vec<(Printed, pipe::Receiver)> = vec![];
    for printed in [Output::Stdout as Printed, Output::Stderr] {
        let (read, write) = io::pipe()?;
        theirs.push(write.into());
        output.push((printed, pipe::Receiver::from_owned_fd(read.into())?));
    }
    Ok((Ends { input, resize: None, output }, theirs))
}

/// A terminal is read and written as a pipe is; nothing else of a pipe is asked of it.
fn terminal(input: bool) -> io::Result<(Ends, Vec<OwnedFd>)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(ptsname_r(&master)?)?;
    let master = master.as_fd();
    let writer: Box<dyn AsyncWrite + Send + Unpin> =
        Box::new(pipe::Sender::from_owned_fd_unchecked(master.try_clone_to_owned()?)?);
    let reader = pipe::Receiver::from_owned_fd_unchecked(master.try_clone_to_owned()?)?;
    let handle = master.try_clone_to_owned()?;
    let resize = move |size: Size| {
        // A terminal that is gone has no size.
        let _ = resize_terminal(handle.as_fd(), size.columns, size.rows);
    };
    let ends =
        Ends { input: input.then_some(writer), resize: Some(Box::new(resize)), output: vec![(Output::Stdout, reader)] };
    Ok((ends, vec![slave.into()]))
}

/// Looks after one program.
struct Attendant {
    visit: u64,
    requests: mpsc::Sender<Outgoing>,
    gone: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Attendant {
    /// Has the program started, passes on what it prints, and returns when it has ended.
    async fn run(
        self,
        request: Outgoing,
        expected: Expected,
        began: oneshot::Sender<Result<(), Refusal>>,
        output: Vec<(Printed, pipe::Receiver)>,
        to: mpsc::Sender<Output>,
    ) {
        // Without a launcher there is nobody to be told, and nothing to be ended.
        let gone = self.gone.clone();
        let _ = gone.run_until_cancelled(self.attend(request, expected, began, output, to)).await;
    }

    async fn attend(
        self,
        request: Outgoing,
        expected: Expected,
        began: oneshot::Sender<Result<(), Refusal>>,
        output: Vec<(Printed, pipe::Receiver)>,
        to: mpsc::Sender<Output>,
    ) {
        if self.requests.send(request).await.is_err() {
            return;
        }
        match expected.entered.await {
            Ok(Ok(_)) => {}
            Ok(Err(refusal)) => return drop(began.send(Err(refusal))),
            Err(_) => return,
        }
        // A visitor that is gone already has dropped the output as well.
        let _ = began.send(Ok(()));
        let (mut left, ended) = (expected.left, CancellationToken::new());
        let reading = output.into_iter().map(|(printed, pipe)| read(printed, pipe, &to, &ended));
        let status = tokio::select! {
            (_, status) = async {
                tokio::join!(join_all(reading), async {
                    let status = (&mut left).await;
                    ended.cancel();
                    status
                })
            } => status,
            () = to.closed() => {
                let leave = wire::encode(&Request::Leave { visit: self.visit }, 0);
                let bytes = leave.expect("a number is short");
                if self.requests.send(Outgoing { bytes, fds: vec![] }).await.is_ok() {
                    // Until it is gone it takes room.
                    let _ = left.await;
                }
                return;
            }
        };
        let code = match status {
            Ok(Status::Code(code)) => code,
            Ok(Status::Signal(signal)) => 128 + signal,
            Err(_) => return,
        };
        let _ = to.send(Output::Exited(code)).await;
    }
}

/// Passes on what a program prints, until it can print no more or has ended and printed nothing for a while.
async fn read(printed: Printed, mut pipe: pipe::Receiver, to: &mpsc::Sender<Output>, ended: &CancellationToken) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let silence = async {
            ended.cancelled().await;
            tokio::time::sleep(LAST_OUTPUT).await;
        };
        let length = tokio::select! {
            // A terminal that nobody has open any more is an error.
            got = pipe.read(&mut chunk) => got.unwrap_or(0),
            () = silence => 0,
        };
        if length == 0 || to.send(printed(Bytes::copy_from_slice(&chunk[..length]))).await.is_err() {
            return;
        }
    }
}

/// A connection with its place in the sandbox's room.
struct Held<S> {
    stream: S,
    _permit: OwnedSemaphorePermit,
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
