//! One container's attendant: reads its output, waits for its readiness, and makes its end known.
//!
//! Owns the reading ends of the container's pipes. Must not know the launcher.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::Shared;
use super::log::{Log, Stream};
use super::state::Ended;
use crate::provider::{Address, Serve};

/// How long output may be awaited after the end: all who could write are dead, so it is there already.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
const FIRST_CONNECT: Duration = Duration::from_millis(1);
const SLOWEST_CONNECT: Duration = Duration::from_millis(20);

pub struct Attendant {
    pub shared: Arc<Shared>,
    pub uid: String,
    pub place: usize,
    pub serve: Serve,
    pub log: Arc<Log>,
}

impl Attendant {
    /// Runs until the container has ended and its output is read, or the provider is gone.
    pub async fn run(
        self,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
        ready: Option<pipe::Receiver>,
        exit: oneshot::Receiver<Ended>,
    ) {
        let gone = self.shared.gone.clone();
        // Nobody is left to be told when it is cancelled.
        let _ = gone.run_until_cancelled(self.attend(stdout, stderr, ready, exit)).await;
        self.log.close();
    }

    async fn attend(
        &self,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
        ready: Option<pipe::Receiver>,
        exit: oneshot::Receiver<Ended>,
    ) {
        let clock = &self.shared.clock;
        let output = async {
            let (out, err) =
                (self.log.take(Stream::Output, stdout, clock), self.log.take(Stream::Error, stderr, clock));
            tokio::join!(out, err);
        };
        tokio::pin!(output, exit);
        let mut output_open = true;
        let readiness = self.readiness(ready);
        tokio::pin!(readiness);
        let mut waiting = true;
        let ended = loop {
            tokio::select! {
                () = &mut output, if output_open => output_open = false,
                ready = &mut readiness, if waiting => {
                    waiting = false;
                    if ready {
                        self.shared.state.ready(&self.uid, self.place);
                    }
                }
                ended = &mut exit => break ended,
            }
        };
        // An error means that it never existed.
        let Ok(ended) = ended else { return };
        if output_open {
            let _ = tokio::time::timeout(LAST_OUTPUT, output).await;
        }
        self.log.close();
        self.shared.state.ended(&self.uid, self.place, ended);
        self.shared.forget_logs(&self.uid);
    }

    /// Whether and when the container becomes ready.
    async fn readiness(&self, ready: Option<pipe::Receiver>) -> bool {
        match (self.serve, ready) {
            (Serve::Socket, Some(mut pipe)) => pipe.read_u8().await.is_ok(),
            (Serve::Port(port), _) => self.answers(port).await,
            (Serve::Nothing, _) => true,
            (Serve::Socket, None) => false,
        }
    }

    /// Connects until it is accepted.
    async fn answers(&self, port: u16) -> bool {
        let mut pause = FIRST_CONNECT;
        loop {
            if let Some(Address::Ip(address)) = self.shared.state.address(&self.uid)
                && TcpStream::connect((address.ip(), port)).await.is_ok()
            {
                return true;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(SLOWEST_CONNECT);
        }
    }
}
