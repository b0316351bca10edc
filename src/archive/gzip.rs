//! A gzip stream that stores data that does not compress well.

use std::io::{self, Write};
use std::sync::OnceLock;

use flate2::{Compress, Compression, Crc, FlushCompress};

/// Size of the pieces that are either compressed or stored, in bytes.
const CHUNK: usize = 128 * 1024;

/// Maximum size of a stored block of deflate, in bytes.
const MAX_STORED: usize = 0xffff;

/// Number and size of the samples that decide about a chunk.
const SAMPLES: usize = 16;
const SAMPLE_SIZE: usize = 512;

/// Size of a run of zeros that is compressed once and then copied, in bytes.
const ZEROS: usize = 1024 * 1024;

const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// An empty last block of deflate.
const LAST_BLOCK: [u8; 2] = [3, 0];

/// Writes one gzip member. zlib-rs cannot change the level within a stream, so runs of compressed chunks
/// end at a byte, and stored blocks and runs of zeros are written between them.
pub(super) struct Gzip<W> {
    out: W,
    /// Number of bytes that have been written to `out`.
    written: u64,
    /// Uncompressed bytes that have not been written.
    chunk: Vec<u8>,
    /// Compressed bytes that have not been written.
    staged: Vec<u8>,
    deflate: Compress,
    /// True if the last chunk was compressed, and its last byte may be incomplete.
    in_run: bool,
    probe: Compress,
    crc: Crc,
}

impl<W: Write> Gzip<W> {
    pub(super) fn new(out: W) -> Gzip<W> {
        Gzip {
            out,
            written: 0,
            chunk: Vec::new(),
            staged: HEADER.to_vec(),
            deflate: Compress::new(Compression::fast(), false),
            in_run: false,
            probe: Compress::new(Compression::fast(), false),
            crc: Crc::new(),
        }
    }

    #[cfg(feature = "local")]
    pub(super) fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Writes zeros. A long run costs no more than copying its compressed form.
    pub(super) fn write_zeros(&mut self, mut count: u64) -> io::Result<()> {
        if count >= ZEROS as u64 {
            self.end_chunk()?;
            self.end_run()?;
        }
        let zeros = compressed_zeros();
        while count >= ZEROS as u64 {
            self.emit(&zeros.deflated)?;
            self.crc.combine(&zeros.crc);
            count -= ZEROS as u64;
        }
        io::copy(&mut io::Read::take(io::repeat(0), count), self).map(drop)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.end_chunk()?;
        self.end_run()?;
        self.staged.extend(LAST_BLOCK);
        self.staged.extend(self.crc.sum().to_le_bytes());
        self.staged.extend(self.crc.amount().to_le_bytes());
        self.out.write_all(&self.staged)?;
        Ok(self.out)
    }

    /// Returns the number of compressed bytes so far. Later ones may hold what has been written already.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    fn emit(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Writes the chunk, compressed or stored.
    fn end_chunk(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.chunk);
        self.crc.update(&chunk);
        if is_compressible(&chunk, &mut self.probe) {
            if !self.in_run {
                self.deflate.reset();
                self.in_run = true;
            }
            self.deflate(&chunk, FlushCompress::None)?;
        } else {
            self.end_run()?;
            for block in chunk.chunks(MAX_STORED) {
                // At most MAX_STORED, which is u16::MAX.
                let length = block.len() as u16;
                self.staged.push(0);
                self.staged.extend(length.to_le_bytes());
                self.staged.extend((!length).to_le_bytes());
                self.write_staged()?;
                self.emit(block)?;
            }
        }
        self.chunk = chunk;
        self.chunk.clear();
        Ok(())
    }

    /// Completes the last byte of a run of compressed chunks.
    fn end_run(&mut self) -> io::Result<()> {
        if self.in_run {
            self.deflate(&[], FlushCompress::Sync)?;
            self.in_run = false;
        }
        self.write_staged()
    }

    fn deflate(&mut self, mut input: &[u8], flush: FlushCompress) -> io::Result<()> {
        loop {
            self.staged.reserve(CHUNK);
            let before = self.deflate.total_in();
            self.deflate
                .compress_vec(input, &mut self.staged, flush)
                .map_err(io::Error::other)?;
            let used = usize::try_from(self.deflate.total_in() - before).unwrap_or(usize::MAX);
            input = input.get(used..).unwrap_or_default();
            let is_full = self.staged.len() == self.staged.capacity();
            self.write_staged()?;
            if input.is_empty() && !is_full {
                return Ok(());
            }
        }
    }

    fn write_staged(&mut self) -> io::Result<()> {
        self.written += self.staged.len() as u64;
        self.out.write_all(&self.staged)?;
        self.staged.clear();
        Ok(())
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..count]);
        if self.chunk.len() == CHUNK {
            self.end_chunk()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns true if level 1 makes samples of the chunk at least 3 % smaller. It makes random data 5 %
/// larger.
fn is_compressible(chunk: &[u8], probe: &mut Compress) -> bool {
    let mut sample = Vec::with_capacity(SAMPLES * SAMPLE_SIZE);
    for part in chunk.chunks(chunk.len().div_ceil(SAMPLES).max(SAMPLE_SIZE)) {
        sample.extend_from_slice(&part[..part.len().min(SAMPLE_SIZE)]);
    }
    let mut compressed = Vec::with_capacity(sample.len() + 1024);
    probe.reset();
    let done = probe.compress_vec(&sample, &mut compressed, FlushCompress::Finish);
    // Headers of a few entries are always worth it.
    sample.len() < 2 * SAMPLE_SIZE || done.is_ok() && compressed.len() < sample.len() / 100 * 97
}

struct CompressedZeros {
    deflated: Vec<u8>,
    crc: Crc,
}

/// Returns the compressed form of [`ZEROS`] zeros, which ends at a byte.
fn compressed_zeros() -> &'static CompressedZeros {
    static ZEROS_ONCE: OnceLock<CompressedZeros> = OnceLock::new();
    ZEROS_ONCE.get_or_init(|| {
        let zeros = vec![0; ZEROS];
        let mut deflate = Compress::new(Compression::fast(), false);
        let mut deflated = Vec::with_capacity(ZEROS);
        // Cannot fail: the room suffices.
        let _ = deflate.compress_vec(&zeros, &mut deflated, FlushCompress::Sync);
        let mut crc = Crc::new();
        crc.update(&zeros);
        deflated.shrink_to_fit();
        CompressedZeros { deflated, crc }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    fn noise(size: usize) -> Vec<u8> {
        let words = (0..size.div_ceil(8)).map(|_| crate::os::random::random_u64().to_le_bytes());
        let mut bytes: Vec<u8> = words.flatten().collect();
        bytes.truncate(size);
        bytes
    }

    /// A run of zeros, or these bytes.
    enum Part {
        Zeros(usize),
        Bytes(Vec<u8>),
    }

    fn compress(parts: &[Part]) -> (Vec<u8>, Vec<u8>) {
        let mut gzip = Gzip::new(Vec::new());
        let mut plain = Vec::new();
        for part in parts {
            match part {
                Part::Zeros(count) => {
                    gzip.write_zeros(*count as u64).unwrap();
                    plain.resize(plain.len() + count, 0);
                }
                Part::Bytes(bytes) => {
                    gzip.write_all(bytes).unwrap();
                    plain.extend(bytes);
                }
            }
        }
        (gzip.finish().unwrap(), plain)
    }

    #[test]
    fn any_mixture_survives_in_one_member() {
        let text = || Part::Bytes(b"text ".repeat(60_000));
        for parts in [
            vec![],
            vec![Part::Bytes(vec![7])],
            vec![text(), Part::Bytes(noise(300_000)), text()],
            vec![Part::Bytes(noise(CHUNK)), text(), text()],
            vec![Part::Zeros(1), Part::Zeros(ZEROS), text()],
            vec![text(), Part::Zeros(3 * ZEROS + 1), Part::Bytes(noise(10))],
            vec![
                Part::Bytes(noise(70_000)),
                Part::Zeros(2 * ZEROS - 1),
                text(),
            ],
        ] {
            let (compressed, plain) = compress(&parts);
            let mut back = Vec::new();
            GzDecoder::new(&*compressed).read_to_end(&mut back).unwrap();
            assert!(back == plain, "{} bytes", plain.len());
        }
    }

    #[test]
    fn only_what_becomes_smaller_is_compressed() {
        let (noisy, plain) = compress(&[Part::Bytes(noise(1 << 20))]);
        assert!(noisy.len() < plain.len() + plain.len() / 1000);
        let half = || Part::Bytes(b"text ".repeat(100_000));
        let (mixed, _) = compress(&[half(), Part::Bytes(noise(1 << 20)), half()]);
        assert!(mixed.len() < (1 << 20) + 200_000, "{}", mixed.len());
        let (zeros, _) = compress(&[Part::Zeros(100 << 20)]);
        assert!(zeros.len() < 1 << 20, "{}", zeros.len());
    }
}
