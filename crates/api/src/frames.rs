//! How the API server and a node's API speak of a visit: several channels over one stream of bytes each way.
//!
//! Owns the frame: one byte for the channel, four for the length of what follows, big-endian, and that many bytes.
//! Must not know what carries it, which is the body of a request and the body of its answer; nothing is upgraded, so it
//! passes through whatever passes HTTP on. A longer frame than [`PAYLOAD_BYTES`] ends the stream.

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
/// What the visit came to, as a Kubernetes `Status` in JSON; the last frame of an answer.
pub const STATUS: u8 = 3;
/// A terminal's new size, as JSON: `{"Width": 80, "Height": 24}`.
pub const RESIZE: u8 = 4;
/// The channel that is named by the one byte of payload gets nothing more.
pub const CLOSE: u8 = 255;

/// The most that one frame carries.
pub const PAYLOAD_BYTES: usize = 64 << 10;
const HEADER_BYTES: usize = 5;

/// Frames that carry the whole payload, as many as it takes; an empty one is one empty frame.
pub fn encode(channel: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + HEADER_BYTES);
    let mut rest = payload;
    loop {
        let (piece, more) = rest.split_at(rest.len().min(PAYLOAD_BYTES));
        bytes.push(channel);
        bytes.extend((piece.len() as u32).to_be_bytes());
        bytes.extend(piece);
        rest = more;
        if rest.is_empty() {
            return bytes;
        }
    }
}

/// Frames out of bytes that come in pieces of any length.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
    /// Of what is pending, how much has been given out.
    used: usize,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes, of which at most {PAYLOAD_BYTES} are taken")]
pub struct TooLong(pub usize);

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.drain(..self.used);
        self.used = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole frame: its channel and its payload.
    pub fn take(&mut self) -> Result<Option<(u8, Vec<u8>)>, TooLong> {
        let waiting = &self.pending[self.used..];
        let Some((header, rest)) = waiting.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [channel, a, b, c, d] = *header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > PAYLOAD_BYTES {
            return Err(TooLong(length));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = (channel, payload.to_vec());
        self.used += HEADER_BYTES + length;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let long = vec![7; PAYLOAD_BYTES + 1];
        let mut bytes = encode(STDIN, b"one");
        bytes.extend(encode(CLOSE, &[STDIN]));
        bytes.extend(encode(STDOUT, b""));
        bytes.extend(encode(STDERR, &long));
        let want = [
            (STDIN, b"one".to_vec()),
            (CLOSE, vec![STDIN]),
            (STDOUT, vec![]),
            (STDERR, long[..PAYLOAD_BYTES].to_vec()),
            (STDERR, vec![7]),
        ];
        for piece in [1, 2, 5, 7, 4096, bytes.len()] {
            let (mut decoder, mut seen) = (Decoder::default(), vec![]);
            for bytes in bytes.chunks(piece) {
                decoder.push(bytes);
                while let Some(frame) = decoder.take().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, want, "in pieces of {piece}");
        }
    }

    #[test]
    fn too_long_is_refused_before_it_is_there() {
        let mut decoder = Decoder::default();
        decoder.push(&[STDIN, 0xff, 0, 0, 0]);
        assert_eq!(decoder.take(), Err(TooLong(0xff00_0000)));
    }
}
