//! The checksum of a file of the archive: xxh3 of its bytes, as 16 hex digits. Manifests and names have it, and downloads are
//! held to it.

use std::io;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The checksum of bytes.
pub(crate) fn of(bytes: &[u8]) -> String {
    shown(xxh3_64(bytes))
}

fn shown(hash: u64) -> String {
    format!("{hash:016x}")
}

/// The checksum of bytes that come piece by piece.
pub(crate) struct Checksum {
    hasher: Xxh3,
    bytes: u64,
}

impl Checksum {
    /// Of none yet.
    pub(crate) fn new() -> Checksum {
        Checksum { hasher: Xxh3::new(), bytes: 0 }
    }

    /// Takes in the next ones.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// How many there were, and their checksum.
    pub(crate) fn finish(self) -> (u64, String) {
        (self.bytes, shown(self.hasher.digest()))
    }
}

/// Writes bytes, and takes in those that are written.
pub(crate) struct Summing<W> {
    /// Where they go.
    pub(crate) inner: W,
    /// What they were so far.
    pub(crate) sum: Checksum,
}

impl<W: io::Write> io::Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.take(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn what_is_passed_on_in_pieces_has_the_checksum_of_the_whole() {
        let (all, mut there) = (vec![7; 100_000], Vec::new());
        let mut summing = Summing { inner: &mut there, sum: Checksum::new() };
        all.chunks(777).for_each(|piece| summing.write_all(piece).unwrap());
        assert_eq!(summing.sum.finish(), (100_000, of(&all)));
        assert_eq!(there, all);
        assert_eq!(of(b""), "2d06800538d394c2");
    }
}
