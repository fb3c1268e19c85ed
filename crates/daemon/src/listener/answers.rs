//! Answers on their way out: in pieces, each of which a client must take within a time.
//!
//! Must not know what is answered. The surprise: an answer that is not taken is not polled either, so it cannot end by
//! itself. It is let go from outside, with all that it holds; a client that reads on after that finds it broken off.

use std::collections::HashMap;
use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use super::room::InHand;

/// What is handed out at a time, so that a large answer to a slow client is not taken for one that nobody reads.
pub(super) const PIECE_BYTES: usize = 64 << 10;

type Failure = Box<dyn Error + Send + Sync>;

/// The answers of one connection.
pub(super) struct Answers {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Weak<dyn Flow>>>,
    broken_off: Counter,
}

trait Flow: Send + Sync {
    /// Whether there was anything to be let go.
    fn let_go(&self, not_taken_since: Instant) -> bool;
}

/// An answer; it counts as in hand until it is at its end or was let go.
pub(super) struct Answer<B> {
    answers: Arc<Answers>,
    number: u64,
    passage: Arc<Mutex<Passage<B>>>,
}

struct Passage<B> {
    /// `None`: at its end, or let go.
    open: Option<(Pin<Box<B>>, InHand)>,
    /// Of what the body said last, what has not been handed out.
    rest: Bytes,
    /// When the last piece was handed out, until the next one is asked for.
    offered: Option<Instant>,
    broken_off: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("the client did not take it in time")]
struct NotTaken;

impl Answers {
    pub fn new(broken_off: Counter) -> Self {
        Self { next: AtomicU64::new(0), open: Mutex::default(), broken_off }
    }

    pub fn answer<B>(self: &Arc<Self>, body: B, in_hand: InHand) -> Answer<B>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let passage = Passage {
            open: Some((Box::pin(body), in_hand)),
            rest: Bytes::new(),
            offered: Some(Instant::now()),
            broken_off: false,
        };
        let (number, passage) = (self.next.fetch_add(1, Ordering::Relaxed), Arc::new(Mutex::new(passage)));
        let flow: Weak<Mutex<Passage<B>>> = Arc::downgrade(&passage);
        self.lock().insert(number, flow);
        Answer { answers: self.clone(), number, passage }
    }

    /// Lets go of every answer whose next piece was not taken for that long.
    pub fn let_go(&self, patience: Duration) {
        let Some(since) = Instant::now().checked_sub(patience) else { return };
        let open: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        for flow in open {
            if flow.let_go(since) {
                self.broken_off.inc();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Weak<dyn Flow>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Send> Flow for Mutex<Passage<B>> {
    fn let_go(&self, not_taken_since: Instant) -> bool {
        let mut passage = self.lock().unwrap_or_else(PoisonError::into_inner);
        let stuck = passage.open.is_some() && passage.offered.is_some_and(|offered| offered < not_taken_since);
        if stuck {
            (passage.open, passage.rest, passage.broken_off) = (None, Bytes::new(), true);
        }
        stuck
    }
}

impl<B> Answer<B> {
    fn lock(&self) -> MutexGuard<'_, Passage<B>> {
        self.passage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Body for Answer<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Failure>,
{
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut passage = self.lock();
        if passage.rest.is_empty() {
            match passage.more(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => passage.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return other,
            }
        }
        let length = passage.rest.len().min(PIECE_BYTES);
        passage.offered = Some(Instant::now());
        Poll::Ready(Some(Ok(Frame::data(passage.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        let passage = self.lock();
        let ended = passage.open.as_ref().is_none_or(|(body, _)| body.is_end_stream());
        ended && passage.rest.is_empty() && !passage.broken_off
    }

    fn size_hint(&self) -> SizeHint {
        // Asked for before the first piece, when all of it is still in the body.
        self.lock().open.as_ref().map_or_else(SizeHint::default, |(body, _)| body.size_hint())
    }
}

impl<B> Passage<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Failure>,
{
    fn more(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        self.offered = None;
        let Some((body, _)) = &mut self.open else {
            let broken_off = std::mem::take(&mut self.broken_off);
            return Poll::Ready(broken_off.then(|| Err(NotTaken.into())));
        };
        let polled = body.as_mut().poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = &polled {
            self.open = None;
        }
        polled.map_err(Into::into)
    }
}

impl<B> Drop for Answer<B> {
    fn drop(&mut self) {
        self.answers.lock().remove(&self.number);
    }
}
