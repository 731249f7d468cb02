//! The text of a CSV file, on this machine or in an object store, plain or gzip, as one stream of bytes.
//!
//! At most a few MB of a remote object are held at a time. Gzip is known by its first bytes, not by its name.

use crate::location::Location;
use crate::progress::Progress;
use anyhow::Context;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

/// A file's text, gzip undone; the bytes as stored are counted as progress.
pub fn open<'a>(location: &Location, progress: &'a Progress) -> anyhow::Result<Box<dyn Read + 'a>> {
    let context = || format!("cannot read {location}");
    let source: Box<dyn Read> = match location {
        Location::Local(path) => Box::new(File::open(path).with_context(context)?),
        Location::Remote(object) => Box::new(Chunked { chunks: object.chunks()?, chunk: Bytes::new() }),
    };
    let mut stored = BufReader::with_capacity(1 << 18, Counted { source, progress });
    let gzip = stored.fill_buf().with_context(context)?.starts_with(&[0x1f, 0x8b]);
    Ok(if gzip { Box::new(MultiGzDecoder::new(stored)) } else { Box::new(stored) })
}

/// Counts the bytes that pass.
struct Counted<'a, R> {
    source: R,
    progress: &'a Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(into)?;
        self.progress.advance(read as u64);
        Ok(read)
    }
}

/// An object's chunks as a reader.
struct Chunked<C> {
    chunks: C,
    chunk: Bytes,
}

impl<C: Iterator<Item = anyhow::Result<Bytes>>> Read for Chunked<C> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.next() {
                Some(chunk) => self.chunk = chunk.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let part = self.chunk.split_to(self.chunk.len().min(into.len()));
        into[..part.len()].copy_from_slice(&part);
        Ok(part.len())
    }
}
