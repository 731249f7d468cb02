//! Reads CSV lines as rows of a stream: columns by header name, values by the declared types, each row's event time
//! and partition.
//!
//! A line is a row or it is refused with a reason. A record is one line: a quoted field that isn't closed on its
//! line costs that line only, never the rest of the file.

use super::row::{self, Cell};
use shared_model::catalog::Stream;
use shared_model::event::{FieldType, Reject, Value};
use shared_model::time::{self, EventDay, Millis};
use std::collections::HashMap;
use std::sync::Arc;
use thiserror::Error;

/// How a NULL is written.
const NULL: &[u8] = b"\\N";

/// The header doesn't fit the stream.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Nothing in the file.
    #[error("the file is empty; the first line must name the columns {expected}")]
    Empty {
        /// The declared fields.
        expected: String,
    },
    /// Other columns than the catalog declares.
    #[error(
        "the columns don't fit stream {stream}: missing [{missing}], not declared [{extra}], twice [{twice}]; the catalog declares {expected}"
    )]
    Columns {
        /// The stream.
        stream: String,
        /// Declared fields without a column.
        missing: String,
        /// Columns without a declared field.
        extra: String,
        /// Columns that appear twice.
        twice: String,
        /// The declared fields.
        expected: String,
    },
}

/// Why a line is no row.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum LineError {
    /// Nothing in the line.
    #[error("empty line")]
    Empty,
    /// Too few or too many columns.
    #[error("{found} columns instead of {expected}")]
    Columns {
        /// How many there are.
        found: usize,
        /// How many the header has.
        expected: usize,
    },
    /// A quoted field without an end.
    #[error("a quoted field is not closed on its line")]
    OpenQuote,
    /// Something between a closing quote and the comma.
    #[error("text after a closing quote")]
    AfterQuote,
    /// The record's own fault, in the words that the other layers use.
    #[error(transparent)]
    Record(#[from] Reject),
}

/// Reads the lines of one file.
#[derive(Debug, Clone)]
pub struct LineReader {
    stream: Arc<Stream>,
    /// The column of each declared field.
    column_of: Vec<usize>,
    columns: usize,
    platform: Option<usize>,
    spans: Vec<Span>,
    unescaped: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
    quoted: bool,
}

/// Where a row belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Event time.
    pub time: Millis,
    /// Where the platform's cell lies in the row's bytes, tag included; empty where the stream has none.
    pub platform: (usize, usize),
}

impl Place {
    /// The event day.
    pub fn day(&self) -> EventDay {
        EventDay::of(self.time)
    }
}

impl LineReader {
    /// A reader for a file with this header line.
    pub fn new(stream: &Arc<Stream>, header: Option<&[u8]>) -> Result<LineReader, HeaderError> {
        let declared = stream.recorded().iter().map(|field| field.name.as_str()).collect::<Vec<_>>();
        let expected = declared.join(", ");
        let header = header.map(|line| line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line));
        let Some(header) = header.filter(|line| !line.is_empty()) else {
            return Err(HeaderError::Empty { expected });
        };
        let mut reader = LineReader {
            stream: stream.clone(),
            column_of: Vec::new(),
            columns: 0,
            platform: stream.field("platform"),
            spans: Vec::new(),
            unescaped: Vec::new(),
        };
        // A header with a broken quote is a header with wrong columns.
        let base = reader.split(header).unwrap_or(Base::Line);
        let text = if base == Base::Line { header } else { &reader.unescaped };
        let name = |span: &Span| String::from_utf8_lossy(&text[span.start..span.end]).trim().to_owned();
        let names: Vec<String> = reader.spans.iter().map(name).collect();
        let listed = |wanted: &dyn Fn(usize, &str) -> bool| {
            let chosen = names.iter().enumerate().filter(|(at, name)| wanted(*at, name));
            // A file that is no CSV at all may have a first line of any size.
            let mut shown = chosen.map(|(_, name)| name.escape_debug().take(30).collect::<String>());
            let first: Vec<String> = shown.by_ref().take(8).collect();
            let more = if shown.next().is_some() { ", ..." } else { "" };
            format!("{}{more}", first.join(", "))
        };
        let missing: Vec<&str> =
            declared.iter().copied().filter(|field| !names.iter().any(|name| name == field)).collect();
        let extra = listed(&|_, name| !declared.contains(&name));
        let last: HashMap<&str, usize> =
            names.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        let twice = listed(&|at, name| last.get(name).is_some_and(|last| *last > at));
        if !(missing.is_empty() && extra.is_empty() && twice.is_empty()) {
            let (stream, missing) = (stream.name.clone(), missing.join(", "));
            return Err(HeaderError::Columns { stream, missing, extra, twice, expected });
        }
        reader.column_of =
            declared.iter().filter_map(|field| names.iter().position(|name| name == field)).collect();
        reader.columns = names.len();
        Ok(reader)
    }

    /// Reads one line into `row` (emptied first).
    pub fn read(&mut self, line: &[u8], row: &mut Vec<u8>) -> Result<Place, LineError> {
        row.clear();
        if line.is_empty() {
            return Err(LineError::Empty);
        }
        if line.len() > self.stream.max_record_bytes {
            return Err(Reject::TooLarge { size: line.len(), limit: self.stream.max_record_bytes }.into());
        }
        let base = self.split(line)?;
        if self.spans.len() != self.columns {
            return Err(LineError::Columns { found: self.spans.len(), expected: self.columns });
        }
        let text = if base == Base::Line { line } else { self.unescaped.as_slice() };
        let (mut raw_time, mut platform) = (None, (0, 0));
        for (at, field) in self.stream.recorded().iter().enumerate() {
            let span = self.spans[self.column_of[at]];
            let bytes = &text[span.start..span.end];
            let cell =
                if bytes == NULL && !span.quoted { Cell::Null } else { cell(&field.name, field.ty, bytes)? };
            if at == self.stream.event_time.field
                && let Cell::Int(raw) = cell
            {
                raw_time = Some(raw);
            }
            let start = row.len();
            row::put(row, cell);
            if self.platform == Some(at) {
                platform = (start, row.len());
            }
        }
        Ok(Place { time: self.time(raw_time)?, platform })
    }

    /// The event time, within the stream's fixed bounds.
    fn time(&self, raw: Option<i64>) -> Result<Millis, Reject> {
        let field = || self.stream.fields[self.stream.event_time.field].name.clone();
        let raw = raw.ok_or_else(|| Reject::NoEventTime(field()))?;
        let time = self.stream.event_time.to_millis(raw).ok_or_else(|| Reject::Field {
            field: field(),
            problem: format!("{raw} is no time that a calendar can hold"),
        })?;
        match self.stream.bounds.refuse(time, None) {
            None => Ok(time),
            Some(bounds) => Err(Reject::OutOfBounds {
                event_time: time::show(time),
                bounds: format!("[{}, {})", time::show(bounds.start), time::show(bounds.end)),
            }),
        }
    }

    /// Finds the line's fields.
    fn split(&mut self, line: &[u8]) -> Result<Base, LineError> {
        self.spans.clear();
        if !line.contains(&b'"') {
            let mut start = 0;
            for end in line.iter().enumerate().filter(|(_, byte)| **byte == b',').map(|(at, _)| at) {
                self.spans.push(Span { start, end, quoted: false });
                start = end + 1;
            }
            self.spans.push(Span { start, end: line.len(), quoted: false });
            return Ok(Base::Line);
        }
        self.unescaped.clear();
        let mut at = 0;
        loop {
            let start = self.unescaped.len();
            let quoted = line.get(at) == Some(&b'"');
            at = if quoted { self.unquote(line, at + 1)? } else { self.copy_plain(line, at) };
            self.spans.push(Span { start, end: self.unescaped.len(), quoted });
            match line.get(at) {
                None => return Ok(Base::Unescaped),
                Some(b',') => at += 1,
                Some(_) => return Err(LineError::AfterQuote),
            }
        }
    }

    /// Copies a quoted field from behind its first quote; returns where its last one ends.
    fn unquote(&mut self, line: &[u8], mut at: usize) -> Result<usize, LineError> {
        loop {
            match (line.get(at), line.get(at + 1)) {
                (None, _) => return Err(LineError::OpenQuote),
                (Some(b'"'), Some(b'"')) => {
                    self.unescaped.push(b'"');
                    at += 2;
                }
                (Some(b'"'), _) => return Ok(at + 1),
                (Some(&byte), _) => {
                    self.unescaped.push(byte);
                    at += 1;
                }
            }
        }
    }

    fn copy_plain(&mut self, line: &[u8], at: usize) -> usize {
        let end = line[at..].iter().position(|&byte| byte == b',').map_or(line.len(), |length| at + length);
        self.unescaped.extend_from_slice(&line[at..end]);
        end
    }
}

/// What the spans point into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Line,
    Unescaped,
}

/// A value that is not NULL. An empty cell is empty text, or NULL for every other type.
fn cell<'a>(name: &str, ty: FieldType, bytes: &'a [u8]) -> Result<Cell<'a>, Reject> {
    let refuse = |problem: String| Reject::Field { field: name.to_owned(), problem };
    let text = std::str::from_utf8(bytes).map_err(|error| refuse(format!("not UTF-8: {error}")))?;
    if ty == FieldType::String {
        return Ok(Cell::Str(text));
    }
    if text.is_empty() {
        return Ok(Cell::Null);
    }
    Ok(match ty.read_text(text).map_err(refuse)? {
        Value::Bool(value) => Cell::Bool(value),
        Value::Int(value) => Cell::Int(value),
        Value::Float(value) => Cell::Float(value),
        Value::Str(_) | Value::Null => Cell::Null,
    })
}
