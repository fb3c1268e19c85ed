//! The part of SPDY/3.1 that Kubernetes clients speak: streams that a client opens, and bytes on them both ways.
//!
//! Owns frames and the connection. Must not know what streams are for. The surprise: there are no windows. The clients'
//! library neither sends nor heeds them, so a stream that is not read holds up the others of its connection, as it does
//! in Kubernetes, until whoever reads the events breaks it off; other connections do not notice.

mod headers;

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

pub use headers::Headers;
use headers::{Fold, Unfold};

/// The most of a control frame; of data, pieces are passed on as they come.
const CONTROL_BYTES: usize = 64 << 10;
const DATA_BYTES: usize = 32 << 10;
/// Frames that wait to be written.
const OUTGOING: usize = 8;
const VERSION: u16 = 3;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
/// The reason of a reset: refused before anything was done, or ended with a failure.
const REFUSED: u32 = 3;
const FAILED: u32 = 6;

/// What a client did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client sent {0}")]
pub struct Fault(&'static str);

/// What a client did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Opened {
        stream: u32,
        headers: Headers,
    },
    Data {
        stream: u32,
        bytes: Bytes,
    },
    /// Nothing more comes on this stream.
    Finished {
        stream: u32,
    },
    Reset {
        stream: u32,
    },
    /// The client leaves.
    Away,
}

/// The first eight bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    Control { kind: u16, flags: u8, length: usize },
    Data { stream: u32, flags: u8, length: usize },
}

impl Header {
    fn parse(bytes: [u8; 8]) -> Result<Self, Fault> {
        let [a, b, c, d, flags, e, f, g] = bytes;
        let length = u32::from_be_bytes([0, e, f, g]) as usize;
        if a & 0x80 == 0 {
            return Ok(Self::Data { stream: u32::from_be_bytes([a, b, c, d]), flags, length });
        }
        match (u16::from_be_bytes([a & 0x7f, b]), length) {
            (version, _) if version != VERSION => Err(Fault("a frame of another version")),
            (_, length) if length > CONTROL_BYTES => Err(Fault("a control frame that is too long")),
            _ => Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length }),
        }
    }
}

/// The bytes of a control frame.
fn control(kind: u16, payload: &[u8]) -> Bytes {
    let mut frame = (VERSION | 0x8000).to_be_bytes().to_vec();
    frame.extend(kind.to_be_bytes());
    // No flags, and a length of three bytes.
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    frame.into()
}

fn data(stream: u32, flags: u8, payload: &[u8]) -> Bytes {
    let mut frame = stream.to_be_bytes().to_vec();
    frame.extend((u32::from(flags) << 24 | payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    frame.into()
}

fn word(payload: &[u8]) -> Result<u32, Fault> {
    let word = payload.first_chunk::<4>().ok_or(Fault("a control frame that is too short"))?;
    Ok(u32::from_be_bytes(*word) & 0x7fff_ffff)
}

/// What a control frame says; `None` where nothing follows from it.
fn said(kind: u16, flags: u8, payload: &[u8], unfold: &mut Unfold) -> Result<Vec<Event>, Fault> {
    match kind {
        SYN_STREAM => {
            let stream = word(payload)?;
            let block = payload.get(10..).ok_or(Fault("a control frame that is too short"))?;
            let mut events = vec![Event::Opened { stream, headers: unfold.block(block)? }];
            if flags & FIN != 0 {
                events.push(Event::Finished { stream });
            }
            Ok(events)
        }
        RST_STREAM => Ok(vec![Event::Reset { stream: word(payload)? }]),
        GOAWAY => Ok(vec![Event::Away]),
        // Settings, windows and late headers change nothing here.
        _ => Ok(vec![]),
    }
}

/// What a client does, in order.
pub struct Reader<R> {
    from: R,
    unfold: Unfold,
    sender: Sender,
    /// Said by the last frame and not given out yet, last first.
    waiting: Vec<Event>,
    /// The data frame that is being read: its stream, whether it is the last, and what is left of it.
    reading: Option<(u32, bool, usize)>,
}

/// Says something to a client. All clones speak on one connection.
#[derive(Clone)]
pub struct Sender {
    frames: mpsc::Sender<Message>,
}

enum Message {
    Frame(Bytes),
    /// Made where it is written, since blocks of headers must be sent in the order they are made.
    Reply {
        stream: u32,
    },
}

/// What [`write`] writes.
pub struct Outgoing(mpsc::Receiver<Message>);

pub fn connection<R: AsyncRead + Unpin>(from: R) -> (Reader<R>, Sender, Outgoing) {
    let (frames, outgoing) = mpsc::channel(OUTGOING);
    let sender = Sender { frames };
    let reader = Reader { from, unfold: Unfold::new(), sender: sender.clone(), waiting: vec![], reading: None };
    (reader, sender, Outgoing(outgoing))
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// The next thing that the client does; `None` when it is gone.
    pub async fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some(event) = self.waiting.pop() {
                return Ok(Some(event));
            }
            if let Some((stream, last, left)) = self.reading.take() {
                return self.piece(stream, last, left).await.map(Some);
            }
            let mut header = [0; 8];
            match self.from.read_exact(&mut header).await {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(e) => return Err(e),
            }
            match Header::parse(header).map_err(io::Error::other)? {
                Header::Data { stream, flags, length } => self.reading = Some((stream, flags & FIN != 0, length)),
                Header::Control { kind, flags, length } => {
                    let mut payload = vec![0; length];
                    self.from.read_exact(&mut payload).await?;
                    if kind == PING {
                        self.sender.send(Message::Frame(control(PING, &payload))).await?;
                        continue;
                    }
                    self.waiting = said(kind, flags, &payload, &mut self.unfold).map_err(io::Error::other)?;
                    self.waiting.reverse();
                }
            }
        }
    }

    async fn piece(&mut self, stream: u32, last: bool, left: usize) -> io::Result<Event> {
        let mut bytes = vec![0; left.min(DATA_BYTES)];
        self.from.read_exact(&mut bytes).await?;
        match left - bytes.len() {
            0 if last => self.waiting.push(Event::Finished { stream }),
            0 => {}
            left => self.reading = Some((stream, last, left)),
        }
        Ok(Event::Data { stream, bytes: bytes.into() })
    }
}

impl Sender {
    /// Takes a stream that was opened.
    pub async fn accept(&self, stream: u32) -> io::Result<()> {
        self.send(Message::Reply { stream }).await
    }

    pub async fn refuse(&self, stream: u32) -> io::Result<()> {
        self.reset(stream, REFUSED).await
    }

    pub async fn fail(&self, stream: u32) -> io::Result<()> {
        self.reset(stream, FAILED).await
    }

    pub async fn data(&self, stream: u32, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(DATA_BYTES) {
            self.send(Message::Frame(data(stream, 0, piece))).await?;
        }
        Ok(())
    }

    /// Says that nothing more comes on a stream.
    pub async fn finish(&self, stream: u32) -> io::Result<()> {
        self.send(Message::Frame(data(stream, FIN, &[]))).await
    }

    async fn reset(&self, stream: u32, reason: u32) -> io::Result<()> {
        let payload = [stream.to_be_bytes(), reason.to_be_bytes()].concat();
        self.send(Message::Frame(control(RST_STREAM, &payload))).await
    }

    async fn send(&self, message: Message) -> io::Result<()> {
        self.frames.send(message).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Writes what is sent, until every sender is gone.
pub async fn write(mut to: impl AsyncWrite + Unpin, mut outgoing: Outgoing) -> io::Result<()> {
    let mut fold = Fold::default();
    while let Some(message) = outgoing.0.recv().await {
        let bytes = match message {
            Message::Frame(bytes) => bytes,
            Message::Reply { stream } => {
                let payload = [stream.to_be_bytes().to_vec(), fold.nothing()].concat();
                control(SYN_REPLY, &payload)
            }
        };
        to.write_all(&bytes).await?;
        to.flush().await?;
    }
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::headers::tests::Client;
    use super::*;

    fn syn_stream(client: &mut Client, stream: u32, flags: u8, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend([0; 6]);
        payload.extend(client.block(headers));
        let mut frame = control(SYN_STREAM, &payload).to_vec();
        frame[4] = flags;
        frame
    }

    /// Everything that a client did, whatever the pieces it came in, and why it was not listened to any longer.
    async fn heard(bytes: &[u8]) -> (Vec<Event>, Option<String>, Vec<u8>) {
        let (mut reader, sender, outgoing) = connection(bytes);
        drop(sender);
        let mut written = vec![];
        // It owns the reader, which must be gone for the writing to end.
        let reading = async move {
            let mut events = vec![];
            loop {
                match reader.next().await {
                    Ok(Some(event)) => events.push(event),
                    Ok(None) => break (events, None),
                    Err(error) => break (events, Some(error.to_string())),
                }
            }
        };
        let ((events, fault), wrote) = tokio::join!(reading, write(&mut written, outgoing));
        wrote.unwrap();
        (events, fault, written)
    }

    #[tokio::test]
    async fn a_client_is_understood() {
        let mut client = Client::new();
        let mut bytes = syn_stream(&mut client, 1, FIN, &[("streamtype", "error")]);
        bytes.extend(syn_stream(&mut client, 3, 0, &[("streamtype", "data")]));
        bytes.extend(data(3, 0, b"one"));
        bytes.extend(control(PING, &7u32.to_be_bytes()));
        bytes.extend(control(9, &[0; 8]));
        bytes.extend(data(3, FIN, &vec![b'x'; DATA_BYTES + 1]));
        bytes.extend(control(RST_STREAM, &[0, 0, 0, 3, 0, 0, 0, 5]));
        bytes.extend(control(GOAWAY, &[0; 8]));
        let (events, fault, written) = heard(&bytes).await;
        let header = |value: &str| vec![("streamtype".to_owned(), value.to_owned())];
        let of = |bytes: &[u8]| Event::Data { stream: 3, bytes: Bytes::copy_from_slice(bytes) };
        let want = [
            Event::Opened { stream: 1, headers: header("error") },
            Event::Finished { stream: 1 },
            Event::Opened { stream: 3, headers: header("data") },
            of(b"one"),
            of(&vec![b'x'; DATA_BYTES]),
            of(b"x"),
            Event::Finished { stream: 3 },
            Event::Reset { stream: 3 },
            Event::Away,
        ];
        assert_eq!((events, fault), (want.to_vec(), None));
        assert_eq!(written, control(PING, &7u32.to_be_bytes()).to_vec(), "it is answered");
    }

    #[tokio::test]
    async fn what_is_said_is_what_was_meant() {
        let (_, sender, outgoing) = connection(&[][..]);
        let speaking = async {
            sender.accept(1).await.unwrap();
            sender.data(1, b"hi").await.unwrap();
            sender.finish(1).await.unwrap();
            sender.refuse(3).await.unwrap();
            drop(sender);
        };
        let mut written = vec![];
        let (_, wrote) = tokio::join!(speaking, write(&mut written, outgoing));
        wrote.unwrap();
        let mut want = control(SYN_REPLY, &[&[0, 0, 0, 1][..], &Fold::default().nothing()].concat()).to_vec();
        want.extend([0, 0, 0, 1, 0, 0, 0, 2, b'h', b'i']);
        want.extend([0, 0, 0, 1, 1, 0, 0, 0]);
        want.extend([0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 3]);
        assert_eq!(written, want);
    }

    #[tokio::test]
    async fn what_is_wrong_ends_the_connection() {
        for (bytes, why) in [
            (&[0x80, 2, 0, 1, 0, 0, 0, 0][..], "a frame of another version"),
            (&[0x80, 3, 0, 1, 0, 0xff, 0, 0], "a control frame that is too long"),
            (&[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0], "a control frame that is too short"),
            (&[0x80, 3, 0, 1, 0, 0, 0, 11, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1], "an empty header block"),
        ] {
            let (events, fault, _) = heard(bytes).await;
            assert_eq!((events, fault), (vec![], Some(format!("the client sent {why}"))));
        }
    }

    proptest! {
        /// Whatever comes, it ends, and nothing is taken for more than came.
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..4096), control in any::<bool>()) {
            let mut bytes = bytes;
            if control && bytes.len() > 4 {
                bytes[..4].copy_from_slice(&[0x80, 3, 0, 1]);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (events, _, _) = runtime.block_on(heard(&bytes));
            let data = |event: &Event| if let Event::Data { bytes, .. } = event { bytes.len() } else { 0 };
            prop_assert!(events.iter().map(data).sum::<usize>() <= bytes.len());
        }
    }

    #[test]
    fn damaged_clients() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        crate::fuzz::try_all("spdy", |bytes| {
            let (events, fault, _) = runtime.block_on(heard(bytes));
            let data = |event: &Event| if let Event::Data { bytes, .. } = event { bytes.len() } else { 0 };
            assert!(events.iter().map(data).sum::<usize>() <= bytes.len());
            assert!(fault.is_none_or(|fault| !fault.is_empty()));
        });
    }
}
