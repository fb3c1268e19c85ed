//! A container's output, kept in files of bounded size.
//!
//! Owns those files and their format: each line begins with the time it was read, of fixed width. Must not know
//! processes. The newest output is kept, the oldest dropped; a container that writes faster than
//! [`BYTES_PER_SECOND`] waits for its own pipe.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::Clock;
use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, broadcast, watch};

use crate::access::Output;
use crate::provider::{LogOptions, LogStream, ProviderError};

/// Longer lines are split.
const LINE_BYTES: usize = 16 << 10;
/// Read at once from a pipe or a file.
const CHUNK_BYTES: usize = 64 << 10;
/// What one container may write for long.
const BYTES_PER_SECOND: u64 = 8 << 20;
/// `2026-01-02T03:04:05.123456789Z` and a space.
const STAMP_BYTES: usize = 31;
/// Pieces of output that a listener may be behind by before it loses the oldest.
const LIVE_CHUNKS: usize = 32;
/// The least that is kept, so that a small limit still shows the last lines.
const LEAST_KEPT: u64 = 128 << 10;

pub struct Log {
    folder: PathBuf,
    name: String,
    /// The size of a file after which the next is begun; two are kept.
    file_bytes: u64,
    files: Mutex<Option<File>>,
    extent: watch::Sender<Extent>,
    /// Tells those who listen, until nothing more will come.
    live: std::sync::Mutex<Option<broadcast::Sender<Output>>>,
}

/// What is kept, as offsets into everything ever written.
#[derive(Clone, Debug, Default)]
struct Extent {
    /// Where the kept files begin, oldest first.
    files: Vec<u64>,
    end: u64,
    closed: bool,
}

#[derive(Clone, Copy)]
pub enum Stream {
    Output,
    Error,
}

impl Log {
    pub fn new(folder: &Path, name: &str, keep_bytes: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
            file_bytes: keep_bytes.max(LEAST_KEPT) / 2,
            files: Mutex::new(None),
            extent: watch::channel(Extent::default()).0,
            live: std::sync::Mutex::new(Some(broadcast::channel(LIVE_CHUNKS).0)),
        }
    }

    /// What comes from now on, as it comes; `None` when nothing more will.
    pub fn listen(&self) -> Option<broadcast::Receiver<Output>> {
        self.live().as_ref().map(broadcast::Sender::subscribe)
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Option<broadcast::Sender<Output>>> {
        self.live.lock().expect("no holder of this lock panics")
    }

    fn tell(&self, stream: Stream, bytes: &[u8]) {
        let live = self.live();
        let Some(live) = live.as_ref().filter(|live| live.receiver_count() > 0) else { return };
        let bytes = Bytes::copy_from_slice(bytes);
        // Whoever listened a moment ago may not any more.
        let _ = live.send(match stream {
            Stream::Output => Output::Stdout(bytes),
            Stream::Error => Output::Stderr(bytes),
        });
    }

    /// Keeps what comes through a pipe until it closes.
    pub async fn take(&self, stream: Stream, mut pipe: pipe::Receiver, clock: &Clock) {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut lines = Lines::default();
        loop {
            let length = match pipe.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(length) => length,
            };
            self.tell(stream, &chunk[..length]);
            self.append(stream, lines.cut(&chunk[..length], clock())).await;
            // Only matters to those who write without pause: everybody else has waited longer already.
            tokio::time::sleep(Duration::from_micros(length as u64 * 1_000_000 / BYTES_PER_SECOND)).await;
        }
        self.append(stream, lines.rest(clock())).await;
    }

    /// Nothing more will come; whoever follows is done.
    pub fn close(&self) {
        self.live().take();
        self.extent.send_if_modified(|extent| !std::mem::replace(&mut extent.closed, true));
    }

    async fn append(&self, stream: Stream, lines: Vec<u8>) {
        if lines.is_empty() {
            return;
        }
        if let Err(error) = self.write(&lines).await {
            let stream = match stream {
                Stream::Output => "stdout",
                Stream::Error => "stderr",
            };
            tracing::warn!(container = self.name, stream, %error, "output is lost");
        }
    }

    async fn write(&self, lines: &[u8]) -> io::Result<()> {
        let mut current = self.files.lock().await;
        let mut extent = self.extent.borrow().clone();
        let full = extent.files.last().is_none_or(|begin| extent.end - begin >= self.file_bytes);
        if full || current.is_none() {
            fs::create_dir_all(&self.folder).await?;
            *current = Some(File::create(self.path(extent.end)).await?);
            extent.files.push(extent.end);
        }
        let file = current.as_mut().expect("it was made just now");
        file.write_all(lines).await?;
        file.flush().await?;
        extent.end += lines.len() as u64;
        let old = if extent.files.len() > 2 { Some(extent.files.remove(0)) } else { None };
        self.extent.send_modify(|now| (now.files, now.end) = (extent.files, extent.end));
        match old {
            Some(begin) => fs::remove_file(self.path(begin)).await,
            None => Ok(()),
        }
    }

    fn path(&self, begin: u64) -> PathBuf {
        self.folder.join(format!("{}.{begin}.log", self.name))
    }

    /// The kept output, oldest first, as the options ask for it.
    pub async fn read(self: Arc<Self>, options: LogOptions) -> LogStream {
        let extent = self.extent.subscribe();
        let now = extent.borrow().clone();
        let at = match options.tail_lines {
            None => now.files.first().copied().unwrap_or(0),
            Some(lines) => self.tail(&now, lines).await,
        };
        let until = if options.follow { None } else { Some(now.end) };
        let left = options.limit_bytes;
        let reader = Reader { log: self, extent, options, at, until, left, rest: Vec::new() };
        stream::unfold(reader, Reader::next).boxed()
    }

    /// Where the last lines begin.
    async fn tail(&self, extent: &Extent, lines: usize) -> u64 {
        let mut missing = lines;
        let mut end = extent.end;
        for begin in extent.files.iter().rev() {
            let mut bytes = fs::read(self.path(*begin)).await.unwrap_or_default();
            bytes.truncate((end - begin) as usize);
            end = *begin;
            for (position, _) in bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                if missing == 0 {
                    return begin + position as u64 + 1;
                }
                missing -= 1;
            }
        }
        if missing == 0 && lines == 0 { extent.end } else { end }
    }
}

/// Cuts a stream of bytes into stamped lines.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// The lines that are complete with these bytes.
    fn cut(&mut self, bytes: &[u8], now: Timestamp) -> Vec<u8> {
        let mut stamped = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut piece = piece;
            while self.partial.len() + piece.len() > LINE_BYTES {
                let (head, tail) = piece.split_at(LINE_BYTES - self.partial.len());
                self.partial.extend_from_slice(head);
                piece = tail;
                stamped.extend(self.rest(now));
            }
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.partial.pop();
                stamped.extend(self.line(now));
            }
        }
        stamped
    }

    /// What is there, as a line, if anything.
    fn rest(&mut self, now: Timestamp) -> Vec<u8> {
        if self.partial.is_empty() { Vec::new() } else { self.line(now) }
    }

    fn line(&mut self, now: Timestamp) -> Vec<u8> {
        let mut line = format!("{now:.9} ").into_bytes();
        line.append(&mut self.partial);
        line.push(b'\n');
        line
    }
}

/// A reader's place in the output.
struct Reader {
    log: Arc<Log>,
    extent: watch::Receiver<Extent>,
    options: LogOptions,
    at: u64,
    /// Where to end; absent for whoever follows.
    until: Option<u64>,
    /// Bytes that may still be given out.
    left: Option<u64>,
    /// The beginning of a line that continues in the next chunk.
    rest: Vec<u8>,
}

impl Reader {
    async fn next(mut self) -> Option<(Result<Bytes, ProviderError>, Self)> {
        loop {
            if self.left == Some(0) {
                return None;
            }
            let extent = self.extent.borrow_and_update().clone();
            let oldest = extent.files.first().copied().unwrap_or(0);
            if self.at < oldest {
                // Dropped in the meantime; what was kept of a line goes with it.
                (self.at, self.rest) = (oldest, Vec::new());
            }
            if self.at >= self.until.unwrap_or(extent.end) {
                if self.until.is_some() || extent.closed || self.extent.changed().await.is_err() {
                    return None;
                }
                continue;
            }
            match self.chunk(&extent).await {
                Ok(bytes) if bytes.is_empty() => continue,
                Ok(bytes) => return Some((Ok(bytes), self)),
                // Its file was dropped: by newer output, which the next round sees, or with the whole sandbox.
                Err(e) if e.kind() == io::ErrorKind::NotFound => match self.extent.has_changed() {
                    Ok(true) => continue,
                    _ => return None,
                },
                Err(source) => {
                    let error = ProviderError::Io { action: format!("read the output of {}", self.log.name), source };
                    self.left = Some(0);
                    return Some((Err(error), self));
                }
            }
        }
    }

    /// The next complete lines, as they are to be shown.
    async fn chunk(&mut self, extent: &Extent) -> io::Result<Bytes> {
        let place = extent.files.iter().rposition(|begin| *begin <= self.at).unwrap_or(0);
        let begin = extent.files[place];
        let end = extent.files.get(place + 1).copied().unwrap_or(extent.end).min(self.until.unwrap_or(u64::MAX));
        let mut file = File::open(self.log.path(begin)).await?;
        file.seek(io::SeekFrom::Start(self.at - begin)).await?;
        let mut bytes = vec![0; (end - self.at).min(CHUNK_BYTES as u64) as usize];
        file.read_exact(&mut bytes).await?;
        self.at += bytes.len() as u64;
        let mut shown = Vec::with_capacity(bytes.len());
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.rest);
                shown.extend_from_slice(self.show(&line));
            }
        }
        if let Some(left) = &mut self.left {
            shown.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= shown.len() as u64;
        }
        Ok(shown.into())
    }

    fn show<'a>(&self, line: &'a [u8]) -> &'a [u8] {
        let Some((stamp, text)) = line.split_at_checked(STAMP_BYTES) else { return line };
        if let Some(since) = self.options.since {
            let stamp = std::str::from_utf8(stamp).ok().and_then(|s| s.trim_end().parse::<Timestamp>().ok());
            if stamp.is_some_and(|at| at < since) {
                return &[];
            }
        }
        if self.options.timestamps { line } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn lines_are_cut_and_stamped() {
        let mut lines = Lines::default();
        assert_eq!(lines.cut(b"one\ntw", at(1)), b"1970-01-01T00:00:01.000000000Z one\n");
        assert_eq!(lines.cut(b"o\n\n", at(2)).len(), 2 * STAMP_BYTES + 5);
        assert_eq!(lines.cut(&vec![b'x'; 2 * LINE_BYTES + 1], at(3)).len(), 2 * (LINE_BYTES + STAMP_BYTES + 1));
        assert_eq!(lines.rest(at(4)), b"1970-01-01T00:00:04.000000000Z x\n");
        assert_eq!(lines.rest(at(5)), b"");
    }

    async fn shown(log: &Arc<Log>, options: LogOptions) -> String {
        let mut stream = Arc::clone(log).read(options).await;
        let mut text = Vec::new();
        while let Some(bytes) = stream.next().await {
            text.extend(bytes.expect("the files are there"));
        }
        String::from_utf8(text).expect("it was text")
    }

    async fn print(log: &Log, second: i64, text: &str) {
        log.append(Stream::Output, Lines::default().cut(text.as_bytes(), at(second))).await;
    }

    #[tokio::test]
    async fn options() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = Arc::new(Log::new(folder.path(), "main", 0));
        assert_eq!(shown(&log, LogOptions::default()).await, "");
        for (second, text) in [(1, "a\n"), (2, "b\n"), (3, "c\n")] {
            print(&log, second, text).await;
        }
        let options = LogOptions::default;
        for (options, want) in [
            (options(), "a\nb\nc\n"),
            (LogOptions { tail_lines: Some(2), ..options() }, "b\nc\n"),
            (LogOptions { tail_lines: Some(0), ..options() }, ""),
            (LogOptions { tail_lines: Some(9), ..options() }, "a\nb\nc\n"),
            (LogOptions { since: Some(at(2)), ..options() }, "b\nc\n"),
            (LogOptions { limit_bytes: Some(3), ..options() }, "a\nb"),
            (LogOptions { timestamps: true, tail_lines: Some(1), ..options() }, "1970-01-01T00:00:03.000000000Z c\n"),
        ] {
            assert_eq!(shown(&log, options.clone()).await, want, "{options:?}");
        }
    }

    #[tokio::test]
    async fn only_the_newest_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = Arc::new(Log::new(folder.path(), "main", 0));
        let line = format!("{}\n", "x".repeat(1000));
        for number in 0..1000 {
            print(&log, number, &line).await;
        }
        print(&log, 1000, "last\n").await;
        let files: Vec<_> = std::fs::read_dir(folder.path()).expect("the folder").flatten().collect();
        let bytes: u64 = files.iter().map(|f| f.metadata().map_or(0, |m| m.len())).sum();
        assert!(files.len() == 2 && bytes <= LEAST_KEPT + CHUNK_BYTES as u64, "{} files, {bytes} bytes", files.len());
        let text = shown(&log, LogOptions::default()).await;
        assert!(text.len() as u64 > LEAST_KEPT / 3 && text.ends_with("last\n"), "{} bytes", text.len());
        assert_eq!(shown(&log, LogOptions { tail_lines: Some(70), ..LogOptions::default() }).await.lines().count(), 70);
    }

    #[tokio::test]
    async fn following_ends_with_the_container() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = Arc::new(Log::new(folder.path(), "main", 0));
        print(&log, 1, "old\n").await;
        let follow = LogOptions { follow: true, tail_lines: Some(0), ..LogOptions::default() };
        let mut stream = Arc::clone(&log).read(follow).await;
        print(&log, 2, "new\n").await;
        assert_eq!(stream.next().await.and_then(Result::ok).as_deref(), Some(&b"new\n"[..]));
        log.close();
        assert!(stream.next().await.is_none());
    }
}
