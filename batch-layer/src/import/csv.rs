//! CSV lines as rows of a stream.
//!
//! A line is a row or it is refused with a reason, and a record is one line: a quoted field that isn't closed costs
//! its own line, never the rest of the file. Memory is one line of at most the stream's `max_record_bytes`.

use super::{RawRow, RowFault};
use anyhow::{Context, Result, bail};
use shared_model::catalog::{Field, Stream};
use shared_model::event::{FieldType, Reject, Value};
use std::io::BufRead;
use std::sync::Arc;

/// How a NULL is written.
const NULL: &[u8] = b"\\N";

/// Reads the rows of one file.
pub(super) struct Rows<R> {
    stream: Arc<Stream>,
    lines: Lines<R>,
    /// The column of each declared field.
    column_of: Vec<usize>,
    columns: usize,
    cells: Vec<Cell>,
}

impl<R: BufRead> Rows<R> {
    /// Reads the header. Refuses one without all declared fields, or with one of them twice.
    pub(super) fn new(stream: Arc<Stream>, source: R) -> Result<Rows<R>> {
        // A header may be longer than a record.
        let mut lines =
            Lines { source, number: 0, limit: stream.max_record_bytes.max(1 << 20), line: Vec::new() };
        let expected =
            stream.recorded().iter().map(|field| field.name.as_str()).collect::<Vec<_>>().join(", ");
        let length = lines.next_line()?.filter(|length| *length > 0);
        if length.is_none() {
            bail!("the file has no header: its first line must name the columns {expected}");
        }
        let header = lines.line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&lines.line);
        let mut cells = Vec::new();
        split(header, &mut cells)
            .map_err(|problem| anyhow::anyhow!("the header can't be read: {problem}"))?;
        let names: Vec<String> =
            cells.iter().map(|cell| String::from_utf8_lossy(&cell.bytes).trim().to_owned()).collect();
        let count = |field: &Field| names.iter().filter(|name| **name == field.name).count();
        let listed = |wanted: &dyn Fn(usize) -> bool| {
            let chosen = stream.recorded().iter().filter(|field| wanted(count(field)));
            chosen.map(|field| field.name.as_str()).collect::<Vec<_>>().join(", ")
        };
        let (missing, twice) = (listed(&|count| count == 0), listed(&|count| count > 1));
        if !(missing.is_empty() && twice.is_empty()) {
            let found: String = names.join(", ").chars().take(200).collect();
            bail!(
                "the columns don't fit the stream: missing [{missing}], twice [{twice}]; the catalog declares \
                 {expected}; the file has {found}"
            );
        }
        let column = |field: &Field| names.iter().position(|name| *name == field.name);
        let column_of = stream.recorded().iter().filter_map(column).collect();
        lines.limit = stream.max_record_bytes;
        Ok(Rows { stream, lines, column_of, columns: names.len(), cells })
    }

    /// The next row; `None` at the end.
    pub(super) fn next_row(&mut self) -> Result<Option<RawRow>> {
        let Some(length) = self.lines.next_line()? else { return Ok(None) };
        let number = self.lines.number;
        let values = self.values(length).map_err(|fault| fault.with(self.lines.line.clone()));
        Ok(Some(RawRow { number, values }))
    }

    fn values(&mut self, length: usize) -> Result<Vec<Value>, Fault> {
        let limit = self.stream.max_record_bytes;
        if length > limit {
            return Err(Fault::Record(Reject::TooLarge { size: length, limit }));
        }
        if length == 0 {
            return Err(Fault::Line("empty line".to_owned()));
        }
        split(&self.lines.line, &mut self.cells).map_err(|problem| Fault::Line(problem.to_owned()))?;
        if self.cells.len() != self.columns {
            let (found, expected) = (self.cells.len(), self.columns);
            return Err(Fault::Line(format!("{found} columns instead of {expected}")));
        }
        let fields = self.stream.recorded().iter().zip(&self.column_of);
        fields.map(|(field, &column)| value(field, &self.cells[column])).collect()
    }
}

/// Why a line is no row.
enum Fault {
    /// The line isn't CSV of this header.
    Line(String),
    /// The record's own fault, in the words of the log's rejects.
    Record(Reject),
}

impl Fault {
    fn with(self, line: Vec<u8>) -> RowFault {
        match self {
            Fault::Line(detail) => RowFault { reason: "not_csv", detail, value: Some(line) },
            Fault::Record(reject) => RowFault::of(&reject, Some(line)),
        }
    }
}

/// An empty cell is empty text, or NULL for every other type; `\N` is NULL, unless it is quoted.
fn value(field: &Field, cell: &Cell) -> Result<Value, Fault> {
    if cell.bytes == NULL && !cell.quoted {
        return Ok(Value::Null);
    }
    let refuse = |problem: String| Fault::Record(Reject::Field { field: field.name.clone(), problem });
    let text = std::str::from_utf8(&cell.bytes).map_err(|error| refuse(format!("not UTF-8: {error}")))?;
    match field.ty {
        FieldType::String => Ok(Value::str(text)),
        _ if text.is_empty() => Ok(Value::Null),
        ty => ty.read_text(text).map_err(refuse),
    }
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Cell {
    bytes: Vec<u8>,
    quoted: bool,
}

/// Splits a line into `cells`, whose buffers are used again.
fn split(line: &[u8], cells: &mut Vec<Cell>) -> Result<(), &'static str> {
    let (mut at, mut used) = (0, 0);
    loop {
        if used == cells.len() {
            cells.push(Cell::default());
        }
        let cell = &mut cells[used];
        used += 1;
        cell.bytes.clear();
        cell.quoted = line.get(at) == Some(&b'"');
        if cell.quoted {
            at = unquote(line, at + 1, &mut cell.bytes)?;
        } else {
            let end =
                line[at..].iter().position(|&byte| byte == b',').map_or(line.len(), |length| at + length);
            cell.bytes.extend_from_slice(&line[at..end]);
            at = end;
        }
        match line.get(at) {
            Some(b',') => at += 1,
            Some(_) => return Err("text after a closing quote"),
            None => {
                cells.truncate(used);
                return Ok(());
            }
        }
    }
}

/// Copies a quoted cell from behind its first quote; returns where its last one ends.
fn unquote(line: &[u8], mut at: usize, out: &mut Vec<u8>) -> Result<usize, &'static str> {
    loop {
        match (line.get(at), line.get(at + 1)) {
            (None, _) => return Err("a quoted field is not closed on its line"),
            (Some(b'"'), Some(b'"')) => {
                out.push(b'"');
                at += 2;
            }
            (Some(b'"'), _) => return Ok(at + 1),
            (Some(&byte), _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
}

/// Lines that end at `\n` or `\r\n`, numbered from 1; of a longer one than the limit only the beginning is kept.
struct Lines<R> {
    source: R,
    number: i64,
    limit: usize,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Reads the next line into `line` and returns its whole length without its end; `None` at the file's end.
    fn next_line(&mut self) -> Result<Option<usize>> {
        self.line.clear();
        let (mut length, mut last, mut ended) = (0usize, 0u8, false);
        while !ended {
            let failed = || format!("can't be read behind line {}", self.number);
            let found = self.source.fill_buf().with_context(failed)?;
            if found.is_empty() {
                break;
            }
            let end = found.iter().position(|&byte| byte == b'\n');
            let part = &found[..end.unwrap_or(found.len())];
            let kept = part.len().min(self.limit.saturating_add(1).saturating_sub(self.line.len()));
            self.line.extend_from_slice(&part[..kept]);
            length += part.len();
            last = part.last().copied().unwrap_or(last);
            ended = end.is_some();
            let used = part.len() + usize::from(ended);
            self.source.consume(used);
        }
        if length == 0 && !ended {
            return Ok(None);
        }
        self.number += 1;
        if last == b'\r' && length > 0 {
            length -= 1;
            self.line.truncate(length.min(self.line.len()));
        }
        Ok(Some(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::samples;

    /// Reads a file of the sample stream: per row its number and its uuid and time, or its fault.
    fn check(text: &str, buffer: usize, expected: &[(i64, &str)]) {
        let source = std::io::BufReader::with_capacity(buffer, text.as_bytes());
        let mut rows = Rows::new(samples::stream(), source).unwrap();
        let mut found = Vec::new();
        while let Some(row) = rows.next_row().unwrap() {
            found.push((
                row.number,
                match row.values {
                    Ok(values) => format!("{} {}", values[0], values[1]),
                    Err(fault) => format!("{}: {}", fault.reason, fault.detail),
                },
            ));
        }
        let expected: Vec<_> = expected.iter().map(|(number, text)| (*number, (*text).to_owned())).collect();
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn each_line_is_a_row_or_is_refused_with_its_number() {
        let header = "paid,uuid,at,share,price,extra";
        for buffer in [1, 2, 7, 4096] {
            check(header, buffer, &[]);
            check(&format!("{header}\n"), buffer, &[]);
            check(&format!("{header}\r\ntrue,a,5,0.5,1.25,x\r\n,b,6,,,"), buffer, &[(2, "a 5"), (3, "b 6")]);
            check(&format!("{header}\n\\N,\\N,\\N,\\N,\\N,\\N\n"), buffer, &[(2, "NULL NULL")]);
            let long = format!("{header}\n,\"a,\"\"b\",7,,,\n,{},8,,,\n,c,9,,,\n", "x".repeat(300));
            let line = |length: usize| format!("{header}\n,a,7,,,{}\n", "x".repeat(length - 7));
            check(&line(200), buffer, &[(2, "a 7")]);
            let beyond = "too_large: the record has 201 bytes; the stream allows 200 (max_record_bytes)";
            check(&line(201), buffer, &[(2, beyond)]);
            let refused = "too_large: the record has 306 bytes; the stream allows 200 (max_record_bytes)";
            check(&long, buffer, &[(2, "a,\"b 7"), (3, refused), (4, "c 9")]);
        }
        let row = |row: &str, expected: &str| check(&format!("{header}\n{row}\n"), 64, &[(2, expected)]);
        row("", "not_csv: empty line");
        row(",a,5,,", "not_csv: 5 columns instead of 6");
        row(",\"a,5,,,", "not_csv: a quoted field is not closed on its line");
        row(",\"a\"b,5,,,", "not_csv: text after a closing quote");
        row(",a,5.5,,,", "bad_field: field at: expected int, found \"5.5\"");
        row(
            ",a,99999999999999999999,,,",
            "bad_field: field at: expected int, found \"99999999999999999999\"",
        );
        row("yes,a,5,,,", "bad_field: field paid: expected bool, found \"yes\"");
        row(",\"\\N\",5,,,", "\\N 5");
    }

    #[test]
    fn a_file_with_other_columns_is_refused_as_a_whole() {
        let refused = |text: &str, expected: &str| {
            let error = Rows::new(samples::stream(), text.as_bytes()).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused("", "the file has no header: its first line must name the columns uuid, at, price");
        refused("\nx", "no header");
        refused("uuid,at,price", "missing [share, paid], twice []");
        refused("uuid,at,price,share,paid,at", "missing [], twice [at]");
        assert!(Rows::new(samples::stream(), "\u{feff}uuid,at,price,share,paid".as_bytes()).is_ok());
    }

    #[test]
    fn bad_text_is_refused_alone() {
        let mut rows =
            Rows::new(samples::stream(), &b"uuid,at,price,share,paid\n\xff,1,,,\nok,2,,,\n"[..]).unwrap();
        let fault = rows.next_row().unwrap().unwrap().values.err().unwrap();
        assert!(fault.detail.contains("field uuid: not UTF-8"), "{}", fault.detail);
        assert_eq!(fault.value.unwrap(), b"\xff,1,,,");
        assert!(rows.next_row().unwrap().unwrap().values.is_ok());
    }
}
