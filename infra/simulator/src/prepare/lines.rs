//! Cuts a stream of bytes into pieces of whole lines.
//!
//! A line ends at `\n` (a `\r` before it belongs to the end); every byte is in exactly one line, and line numbers
//! are those of an editor. A line longer than the limit comes alone, with only its beginning.

use std::io::{self, Read};

/// Whole lines that follow each other.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// The number of the first line, from 1.
    pub first_line: u64,
    /// The lines, each with its end (the last of a file perhaps without).
    pub bytes: Vec<u8>,
    /// Where one line was longer than the limit: its whole length. `bytes` then holds its beginning.
    pub cut_from: Option<u64>,
}

/// Reads pieces of about a chosen size.
pub struct Pieces<R> {
    source: R,
    rest: Vec<u8>,
    line: u64,
    size: usize,
    longest: usize,
    ended: bool,
}

impl<R: Read> Pieces<R> {
    /// Pieces of about `size` bytes; lines of more than `longest` bytes (at least `size`) are cut.
    pub fn new(source: R, size: usize, longest: usize) -> Pieces<R> {
        Pieces { source, rest: Vec::new(), line: 1, size, longest: longest.max(size), ended: false }
    }

    /// The next piece; `None` at the end.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        let mut want = self.size;
        loop {
            self.fill(want)?;
            if self.ended {
                let bytes = std::mem::take(&mut self.rest);
                return Ok((!bytes.is_empty()).then(|| self.piece(bytes)));
            }
            // Search only what is new would be enough, but long lines are rare.
            if let Some(at) = self.rest.iter().rposition(|&byte| byte == b'\n') {
                let tail = self.rest.split_off(at + 1);
                let bytes = std::mem::replace(&mut self.rest, tail);
                return Ok(Some(self.piece(bytes)));
            }
            if self.rest.len() >= self.longest {
                return self.skip_line().map(Some);
            }
            want = (self.rest.len() * 2).min(self.longest);
        }
    }

    /// The first line alone, without its end: a header. `None` for an empty source.
    pub fn first_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut want = 4_096;
        loop {
            self.fill(want)?;
            let end = self.rest.iter().position(|&byte| byte == b'\n');
            match end {
                None if !self.ended && self.rest.len() < self.longest => want = self.rest.len() * 2,
                None if self.rest.is_empty() => return Ok(None),
                end => {
                    let tail = self.rest.split_off(end.map_or(self.rest.len(), |at| at + 1));
                    let line = std::mem::replace(&mut self.rest, tail);
                    self.line += 1;
                    return Ok(Some(strip_end(&line).to_vec()));
                }
            }
        }
    }

    fn piece(&mut self, bytes: Vec<u8>) -> Piece {
        let first_line = self.line;
        self.line += bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
        Piece { first_line, bytes, cut_from: None }
    }

    /// Reads until so many bytes are at hand or the source ends.
    fn fill(&mut self, want: usize) -> io::Result<()> {
        let missing = want.saturating_sub(self.rest.len());
        if missing > 0 && !self.ended {
            self.rest.reserve(missing);
            let read = self.source.by_ref().take(missing as u64).read_to_end(&mut self.rest)?;
            self.ended = read < missing;
        }
        Ok(())
    }

    /// Drops all of a long line but its beginning.
    fn skip_line(&mut self) -> io::Result<Piece> {
        let bytes = std::mem::take(&mut self.rest);
        let mut length = bytes.len() as u64;
        while !self.ended {
            self.fill(self.size)?;
            if let Some(at) = self.rest.iter().position(|&byte| byte == b'\n') {
                length += at as u64;
                self.rest.drain(..=at);
                break;
            }
            length += self.rest.len() as u64;
            self.rest.clear();
        }
        let first_line = self.line;
        self.line += 1;
        Ok(Piece { first_line, bytes, cut_from: Some(length) })
    }
}

/// The lines of a piece with their numbers, without their ends.
pub fn lines(piece: &Piece) -> impl Iterator<Item = (u64, &[u8])> {
    let whole = piece.bytes.split_inclusive(|&byte| byte == b'\n');
    whole.enumerate().map(|(at, line)| (piece.first_line + at as u64, strip_end(line)))
}

fn strip_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, size: usize, longest: usize, expected: &[(u64, &str, Option<u64>)]) {
        let mut pieces = Pieces::new(text.as_bytes(), size, longest);
        let mut found = Vec::new();
        while let Some(piece) = pieces.next_piece().expect("read") {
            for (number, line) in lines(&piece) {
                found.push((number, String::from_utf8(line.to_vec()).expect("text"), piece.cut_from));
            }
        }
        let expected: Vec<_> =
            expected.iter().map(|(number, line, cut)| (*number, line.to_string(), *cut)).collect();
        assert_eq!(found, expected, "{text:?} in pieces of {size}");
    }

    #[test]
    fn every_line_comes_once_with_its_number_whatever_the_size_of_the_pieces() {
        for size in 1..12 {
            check("", size, 99, &[]);
            check(
                "a\r\n\nbcd\ne",
                size,
                99,
                &[(1, "a", None), (2, "", None), (3, "bcd", None), (4, "e", None)],
            );
            check("a\n", size, 99, &[(1, "a", None)]);
        }
        check("ab\n0123456789\ncd", 3, 4, &[(1, "ab", None), (2, "0123", Some(10)), (3, "cd", None)]);
        check("0123456789", 3, 4, &[(1, "0123", Some(10))]);
    }

    #[test]
    fn a_header_is_taken_first() {
        let mut pieces = Pieces::new(&b"h,i\r\n1\n"[..], 2, 99);
        assert_eq!(pieces.first_line().expect("read").as_deref(), Some(&b"h,i"[..]));
        let rest = pieces.next_piece().expect("read").expect("a line");
        assert_eq!((rest.first_line, rest.bytes), (2, b"1\n".to_vec()));
        assert_eq!(Pieces::new(&b""[..], 2, 99).first_line().expect("read"), None);
        assert_eq!(Pieces::new(&b"h"[..], 2, 99).first_line().expect("read").as_deref(), Some(&b"h"[..]));
    }
}
