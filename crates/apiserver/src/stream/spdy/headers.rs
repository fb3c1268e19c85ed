//! Header blocks of SPDY/3: names and values, compressed with a dictionary that both ends know.
//!
//! Owns the state of the compression of one connection, one for each direction. Must not know streams. What is sent is
//! wrapped, not compressed: answers have no header worth it, and a compressor would be most of the code.

use flate2::{Decompress, FlushDecompress, Status};

use super::Fault;

/// The most that a block may unfold to, and names in it.
const BLOCK_BYTES: usize = 16 << 10;
const MOST_PAIRS: usize = 64;

/// What the protocol's dictionary lists, each word after its length in four bytes.
const WORDS: &str = "\
    options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|accept-ranges|age|\
    allow|authorization|cache-control|connection|content-base|content-encoding|content-language|content-length|\
    content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|if-match|\
    if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|\
    proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|\
    upgrade|user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|\
    set-cookie|keep-alive|origin";
/// What follows the words, without lengths.
const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
/// The checksum by which a compressed stream names the dictionary.
const DICTIONARY: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];

pub type Headers = Vec<(String, String)>;

fn dictionary() -> Vec<u8> {
    let words = WORDS.split('|').flat_map(|word| (word.len() as u32).to_be_bytes().into_iter().chain(word.bytes()));
    words.chain(REST.bytes()).collect()
}

/// Unfolds the blocks of one direction, in order.
pub struct Unfold {
    inflate: Decompress,
    begun: bool,
}

impl Unfold {
    pub fn new() -> Self {
        Self { inflate: Decompress::new(false), begun: false }
    }

    pub fn block(&mut self, mut block: &[u8]) -> Result<Headers, Fault> {
        if !self.begun {
            block = self.begin(block)?;
        }
        let mut unfolded = self.inflate(block)?;
        unfolded.truncate(BLOCK_BYTES);
        pairs(&unfolded)
    }

    /// Reads what every stream of this compression begins with: its kind, and whether it uses the dictionary.
    fn begin<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], Fault> {
        const WITH_DICTIONARY: u8 = 0x20;
        let (&[method, flags], mut block) = block.split_first_chunk().ok_or(Fault("an empty header block"))?;
        if method & 0x0f != 8 || !u16::from_be_bytes([method, flags]).is_multiple_of(31) {
            return Err(Fault("a header block that is not compressed as it should be"));
        }
        if flags & WITH_DICTIONARY != 0 {
            let (named, rest) = block.split_first_chunk::<4>().ok_or(Fault("a header block that is cut off"))?;
            if *named != DICTIONARY {
                return Err(Fault("a header block with another dictionary"));
            }
            // As if the dictionary had come before, which is all that a dictionary is.
            let dictionary = dictionary();
            self.inflate(&stored(&dictionary))?;
            block = rest;
        }
        self.begun = true;
        Ok(block)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, Fault> {
        const CORRUPT: Fault = Fault("a header block that cannot be unfolded");
        let mut output = Vec::with_capacity(BLOCK_BYTES);
        while !input.is_empty() {
            let before = (self.inflate.total_in(), output.len());
            let status = self.inflate.decompress_vec(input, &mut output, FlushDecompress::Sync).map_err(|_| CORRUPT)?;
            let used = (self.inflate.total_in() - before.0) as usize;
            input = &input[used..];
            if status == Status::StreamEnd || (used == 0 && output.len() == before.1) {
                return Err(CORRUPT);
            }
            if output.len() >= BLOCK_BYTES && !input.is_empty() {
                return Err(Fault("a header block that is too large"));
            }
        }
        Ok(output)
    }
}

/// Bytes as a part of a compressed stream that holds them as they are. Short enough by every caller's bounds.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len() as u16;
    let mut block = vec![0];
    block.extend(length.to_le_bytes());
    block.extend((!length).to_le_bytes());
    block.extend(bytes);
    block
}

fn pairs(block: &[u8]) -> Result<Headers, Fault> {
    let mut rest = block;
    let count = number(&mut rest)?;
    if count > MOST_PAIRS {
        return Err(Fault("too many headers"));
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        headers.push((text(&mut rest)?, text(&mut rest)?));
    }
    Ok(headers)
}

fn number(rest: &mut &[u8]) -> Result<usize, Fault> {
    let (number, after) = rest.split_first_chunk::<4>().ok_or(Fault("a header block that is cut off"))?;
    *rest = after;
    Ok(u32::from_be_bytes(*number) as usize)
}

fn text(rest: &mut &[u8]) -> Result<String, Fault> {
    let length = number(rest)?;
    let (text, after) = rest.split_at_checked(length).ok_or(Fault("a header that is cut off"))?;
    *rest = after;
    String::from_utf8(text.to_vec()).map_err(|_| Fault("a header that is not text"))
}

/// Blocks to be sent: all of them say that there is no header.
#[derive(Default)]
pub struct Fold {
    begun: bool,
}

impl Fold {
    pub fn nothing(&mut self) -> Vec<u8> {
        let mut block = if std::mem::replace(&mut self.begun, true) { vec![] } else { vec![0x78, 0x01] };
        block.extend(stored(&0u32.to_be_bytes()));
        // An empty part at the end is how a reader learns that it has everything.
        block.extend(stored(&[]));
        block
    }
}

#[cfg(test)]
pub(super) mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    pub fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend((text.len() as u32).to_be_bytes());
            block.extend(text.bytes());
        }
        block
    }

    /// Compresses as a client does; primed with the dictionary in the same way as [`Unfold`].
    pub struct Client(Compress, bool);

    impl Client {
        pub fn new() -> Self {
            Self(Compress::new(Compression::best(), false), false)
        }

        pub fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut block = vec![];
            if !std::mem::replace(&mut self.1, true) {
                block.extend([0x78, 0xf9]);
                block.extend(DICTIONARY);
                // What it makes of the dictionary is not sent: the other end knows it.
                self.fold(&dictionary());
            }
            block.extend(self.fold(&plain(headers)));
            block
        }

        fn fold(&mut self, bytes: &[u8]) -> Vec<u8> {
            let mut folded = Vec::with_capacity(4096);
            self.0.compress_vec(bytes, &mut folded, FlushCompress::Sync).unwrap();
            folded
        }
    }

    #[test]
    fn the_dictionary_is_the_one_that_is_named() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((b << 16 | a).to_be_bytes(), DICTIONARY);
    }

    #[test]
    fn blocks_share_one_compression() {
        let (mut client, mut server) = (Client::new(), Unfold::new());
        for headers in [
            &[("streamtype", "error"), ("port", "8080"), ("requestid", "0")][..],
            &[("streamtype", "data"), ("port", "8080"), ("requestid", "0"), ("accept-encoding", "gzip,deflate,sdch")],
            &[],
        ] {
            let block = client.block(headers);
            let want: Headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            assert_eq!(server.block(&block), Ok(want));
        }
    }

    #[test]
    fn an_answer_can_be_read() {
        let (mut fold, mut unfold) = (Fold::default(), Unfold::new());
        for _ in 0..3 {
            assert_eq!(unfold.block(&fold.nothing()), Ok(vec![]));
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let plain = |bytes: &[u8]| {
            let mut block = vec![0x78, 0x01];
            block.extend(stored(bytes));
            block
        };
        let bomb = {
            let mut folded = Vec::with_capacity(1 << 20);
            folded.extend([0x78, 0x01]);
            let mut compress = Compress::new(Compression::best(), false);
            compress.compress_vec(&vec![0; 1 << 20], &mut folded, FlushCompress::Sync).unwrap();
            folded
        };
        for (block, why) in [
            (vec![], "an empty header block"),
            (vec![0x78, 0x02], "a header block that is not compressed as it should be"),
            (vec![0x78, 0xf9, 1, 2, 3, 4], "a header block with another dictionary"),
            (vec![0x78, 0x01, 0xff, 0xff], "a header block that cannot be unfolded"),
            (plain(&[0, 0]), "a header block that is cut off"),
            (plain(&[0xff; 4]), "too many headers"),
            (plain(&[0, 0, 0, 1, 0, 0, 0, 9, b'x']), "a header that is cut off"),
            (plain(&[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0]), "a header that is not text"),
            (bomb, "a header block that is too large"),
        ] {
            assert_eq!(Unfold::new().block(&block), Err(Fault(why)));
        }
    }
}
