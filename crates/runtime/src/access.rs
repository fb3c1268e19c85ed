//! The second port at a Provider's door: looking at what runs in a sandbox, and visiting it.
//!
//! Owned by the node, as [`crate::Provider`] is. A visit never outlives its sandbox, holds no right that the
//! container does not have, and ends when its visitor drops it. Must not know how a client speaks of any of it.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::provider::{LogOptions, LogStream, ProviderError};

/// Programs that may be started, and outputs that may be followed, in one sandbox at once.
pub const MOST_VISITS: usize = 16;
/// Connections that may be open into one sandbox at once.
pub const MOST_CONNECTIONS: usize = 128;

/// # Contract
/// Everything names a sandbox by its uid. What is bounded is bounded for each sandbox: one more than
/// [`MOST_VISITS`] or [`MOST_CONNECTIONS`] is [`ProviderError::Exhausted`].
/// # Idempotency
/// Nothing here changes what the Provider was asked to run, and every call is a visit of its own.
/// # Errors
/// [`ProviderError::NotFound`] without such a sandbox or container, [`ProviderError::NotRunning`] when it has ended or
/// not begun.
/// # Cancellation
/// Dropping a future, a [`Session`]'s output or a stream ends what it stood for.
#[async_trait]
pub trait Access: Send + Sync {
    /// A container's output, oldest first, each line ending in a newline.
    async fn logs(&self, uid: &str, container: &str, options: LogOptions) -> Result<LogStream, ProviderError>;

    /// A container's output from now on, as it comes, until it ends. A reader that does not keep up loses the oldest.
    async fn attach(&self, uid: &str, container: &str) -> Result<OutputStream, ProviderError>;

    /// Starts a program beside a container's own: in its namespaces and limits, as its user, with no more rights.
    async fn exec(&self, uid: &str, container: &str, command: Command) -> Result<Session, ProviderError>;

    /// Connects to a TCP port inside the sandbox, on its loopback or its own address.
    async fn connect(&self, uid: &str, port: u16) -> Result<Connection, ProviderError>;
}

/// What to run. The environment and the folder are the container's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// A program without a slash is looked for in the container's `PATH`.
    pub argv: Vec<String>,
    /// Whether it can be written to; otherwise its standard input is empty.
    pub input: bool,
    /// Whether it runs on a terminal, where errors and output are one.
    pub terminal: bool,
}

/// A program that was started. Dropping `output` kills it, and what shares its session.
pub struct Session {
    /// Its standard input; dropping it is the end of the input. On a terminal the end must be typed.
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Ends after [`Output::Exited`].
    pub output: OutputStream,
    /// Changes the size of its terminal, if it has one.
    pub resize: Option<Box<dyn Fn(Size) + Send + Sync>>,
}

pub type OutputStream = BoxStream<'static, Output>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last of a session: the exit code, or 128 + the signal's number.
    Exited(i32),
}

/// Of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

/// Bytes both ways.
pub type Connection = Box<dyn Duplex>;

pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
