//! Writes a record as JSON or as a CSV line, whole or with one chosen fault.
//!
//! Every fault makes the line one that must be refused, in both forms, under a stream with fixed time bounds.

use super::shape::{OUTBRAIN_OFFSET, Record, Stream};
use super::site;
use std::borrow::Cow;
use std::io::Write;

/// What is wrong with a malformed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Cut off in the middle.
    Truncated,
    /// Holds a byte that is not UTF-8.
    NotUtf8,
    /// JSON, but an array (CSV: a column too many).
    WrongForm,
    /// No bytes at all.
    Empty,
    /// The time is text.
    TextTime,
    /// The time is NULL.
    NoTime,
    /// The document (of a site's view: the load time) is a fraction.
    Fraction,
    /// It is 2^63.
    Overflow,
    /// The time is 1970-01-01.
    Year1970,
    /// The time is 2100-01-01.
    Year2100,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 10] = [
        Fault::Truncated,
        Fault::NotUtf8,
        Fault::WrongForm,
        Fault::Empty,
        Fault::TextTime,
        Fault::NoTime,
        Fault::Fraction,
        Fault::Overflow,
        Fault::Year1970,
        Fault::Year2100,
    ];
}

enum Cell<'a> {
    Null,
    Int(i64),
    Text(Cow<'a, [u8]>),
    /// A number's text as it stands.
    Number(&'static str),
}

fn cell<'a>(record: &'a Record, column: &str, fault: Option<Fault>) -> Cell<'a> {
    let optional = |value: Option<i64>| value.map_or(Cell::Null, Cell::Int);
    let text = |text: &'a str| Cell::Text(Cow::Borrowed(text.as_bytes()));
    let made = |text: String| Cell::Text(Cow::Owned(text.into_bytes()));
    let zero = if column == "at" { 0 } else { OUTBRAIN_OFFSET };
    match (column, fault) {
        ("timestamp" | "at", Some(Fault::TextTime)) => text("yesterday"),
        ("timestamp" | "at", Some(Fault::NoTime)) => Cell::Null,
        ("timestamp" | "at", Some(Fault::Year1970)) => Cell::Int(-zero),
        ("timestamp" | "at", Some(Fault::Year2100)) => Cell::Int(4_102_444_800_000 - zero),
        ("document_id" | "load_ms", Some(Fault::Fraction)) => Cell::Number("12.5"),
        ("document_id" | "load_ms", Some(Fault::Overflow)) => Cell::Number("9223372036854775808"),
        ("geo_location", Some(Fault::NotUtf8)) => Cell::Text(Cow::Borrowed(b"U\xff>CA")),
        ("uuid" | "visitor", _) => text(&record.uuid),
        ("document_id", _) => Cell::Int(record.document),
        ("display_id", _) => Cell::Int(record.display),
        ("timestamp" | "at", _) => Cell::Int(record.time - zero),
        ("platform", _) => optional(record.platform),
        ("traffic_source", _) => optional(record.traffic),
        ("view_id", _) => made(format!("{:016x}", record.view)),
        ("url", _) => made(site::url(record.document, record.view)),
        ("referrer", _) => site::referrer(record.traffic, record.view).map_or(Cell::Null, text),
        ("status", _) => Cell::Int(site::status(record.view)),
        ("load_ms", _) => Cell::Int(site::load_ms(record.view)),
        _ => record.geo.as_deref().map_or(Cell::Null, text),
    }
}

/// The record as a JSON object.
pub(crate) fn json(record: &Record, fault: Option<Fault>) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    match fault {
        Some(Fault::Empty) => return out,
        Some(Fault::WrongForm) => return b"[1,2,3]".to_vec(),
        _ => {}
    }
    out.push(b'{');
    for column in record.stream.columns() {
        let cell = cell(record, column, fault);
        if matches!(cell, Cell::Null) && record.omit_nulls {
            continue;
        }
        if out.len() > 1 {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(column.as_bytes());
        out.extend_from_slice(b"\":");
        match cell {
            Cell::Null => out.extend_from_slice(b"null"),
            Cell::Int(int) => number(&mut out, int),
            Cell::Number(text) => out.extend_from_slice(text.as_bytes()),
            // None of our texts needs an escape.
            Cell::Text(text) => {
                out.push(b'"');
                out.extend_from_slice(&text);
                out.push(b'"');
            }
        }
    }
    out.push(b'}');
    if fault == Some(Fault::Truncated) {
        out.truncate(out.len() / 2);
    }
    out
}

/// The record as a CSV line of its stream's columns, with its line end.
pub(crate) fn csv(record: &Record, fault: Option<Fault>, out: &mut Vec<u8>) {
    if fault != Some(Fault::Empty) {
        let columns = record.stream.columns();
        let columns = if fault == Some(Fault::Truncated) { &columns[..columns.len() / 2] } else { columns };
        for (at, column) in columns.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            match cell(record, column, fault) {
                Cell::Null => out.extend_from_slice(b"\\N"),
                Cell::Int(int) => number(out, int),
                Cell::Number(text) => out.extend_from_slice(text.as_bytes()),
                Cell::Text(text) => out.extend_from_slice(&text),
            }
        }
        if fault == Some(Fault::WrongForm) {
            out.extend_from_slice(b",1");
        }
    }
    out.push(b'\n');
}

/// The header line of a stream's CSV.
pub(crate) fn header(stream: Stream) -> String {
    stream.columns().join(",") + "\n"
}

fn number(out: &mut Vec<u8>, int: i64) {
    // Writing into a Vec cannot fail.
    let _ = write!(out, "{int}");
}
