//! Rows as text, one a line, made while they are sent: CSV and NDJSON.
//!
//! All rows are finished before the first byte, so what is promised of them comes first: NDJSON's first line is the
//! envelope, and CSV, which has no room for it, has the gist of it in headers.

use crate::finish::Row;
use crate::query::{Query, zone};
use crate::reply::{Head, RowReply};
use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use shared_model::aggregate::Finished;
use shared_model::event::Value;
use std::cmp::Reverse;
use std::convert::Infallible;

/// The form of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON document.
    #[default]
    Json,
    /// RFC 4180, with a header. Texts are in quotes; NULL is empty, without quotes.
    Csv,
    /// One JSON document a line: the envelope, then each row.
    Ndjson,
}

impl Format {
    /// The formats by their names.
    pub const NAMES: [(&str, Format); 3] =
        [("json", Format::Json), ("csv", Format::Csv), ("ndjson", Format::Ndjson)];

    /// The media types that formats are asked for by; of what is wanted alike, the first.
    const MEDIA: [(&str, Format); 5] = [
        ("application/json", Format::Json),
        ("text/csv", Format::Csv),
        ("application/x-ndjson", Format::Ndjson),
        ("application/ndjson", Format::Ndjson),
        ("application/jsonl", Format::Ndjson),
    ];

    /// What a client accepts, by an `Accept` header: of what it wants most, what it names most closely, then what it names
    /// first. JSON where it accepts nothing that is served.
    pub fn accepted(header: &str) -> Format {
        let ranges: Vec<Range> = header.split(',').map(Range::new).collect();
        let mut best = ((0.0, 0, Reverse(0)), Format::default());
        for (media, format) in Format::MEDIA {
            let matching = ranges
                .iter()
                .enumerate()
                .filter_map(|(place, range)| Some((range.closeness(media)?, Reverse(place), range.quality)));
            // The closest range says how much a type is wanted, also that it isn't.
            let Some((closeness, place, quality)) =
                matching.max_by_key(|(closeness, place, _)| (*closeness, *place))
            else {
                continue;
            };
            if quality > 0.0 && (quality, closeness, place) > best.0 {
                best = ((quality, closeness, place), format);
            }
        }
        best.1
    }
}

/// A range of media types in an `Accept` header, and how much it is wanted, from 0 to 1.
struct Range {
    media: String,
    quality: f32,
}

impl Range {
    fn new(text: &str) -> Range {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        let quality =
            quality.and_then(|quality| quality.parse().ok()).filter(|quality| (0.0..=1.0).contains(quality));
        Range { media, quality: quality.unwrap_or(1.0) }
    }

    /// How closely it names a media type; `None`: not at all.
    fn closeness(&self, media: &str) -> Option<u8> {
        let of_type = self.media.strip_suffix("/*").is_some_and(|ty| media.split('/').next() == Some(ty));
        match &*self.media {
            own if own == media => Some(3),
            _ if of_type => Some(2),
            "*/*" => Some(1),
            _ => None,
        }
    }
}

/// An answer as CSV.
pub fn csv(head: &Head, query: Query, rows: Vec<Row>) -> Response {
    let because = head.envelope.incomplete_because.join("; ");
    let about = [
        ("x-complete", head.envelope.complete.to_string()),
        ("x-incomplete-because", because),
        ("x-as-of", head.envelope.as_of.clone().unwrap_or_default()),
        ("x-tidemark", head.envelope.tidemark.generation.to_string()),
        ("x-total-rows", head.total_rows.to_string()),
    ];
    let about = about.map(|(name, text)| (HeaderName::from_static(name), plain(&text)));
    let body = csv_lines(query, rows);
    ([(header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present")], about, body).into_response()
}

/// The lines of a CSV, in pieces.
pub(crate) fn csv_lines(query: Query, rows: Vec<Row>) -> Lines<impl FnMut(&Row, &mut Vec<u8>)> {
    let mut first = Vec::new();
    titles(&query).iter().for_each(|title| text(title, &mut first));
    end(&mut first);
    let line = move |row: &Row, out: &mut Vec<u8>| record(&query, row, out);
    Lines { first, rows: rows.into_iter(), line }
}

/// An answer as NDJSON.
pub fn ndjson(head: &Head, query: Query, rows: Vec<Row>) -> Response {
    let mut first = Vec::new();
    json_line(&json!({ "envelope": head }), &mut first);
    let line = move |row: &Row, out: &mut Vec<u8>| json_line(&RowReply { query: &query, row }, out);
    let body = Lines { first, rows: rows.into_iter(), line };
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// The longest text in a header.
const LONGEST: usize = 2_000;

/// A text as a header can hold it.
fn plain(text: &str) -> HeaderValue {
    let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    let text: String = text.chars().take(LONGEST).map(printable).collect();
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

/// How many bytes are made at a time.
const PIECE: usize = 64 << 10;

/// Lines to come: a first one, and one for each row.
pub(crate) struct Lines<F> {
    first: Vec<u8>,
    rows: std::vec::IntoIter<Row>,
    line: F,
}

impl<F: FnMut(&Row, &mut Vec<u8>)> Iterator for Lines<F> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut piece = std::mem::take(&mut self.first);
        while piece.len() < PIECE
            && let Some(row) = self.rows.next()
        {
            (self.line)(&row, &mut piece);
        }
        (!piece.is_empty()).then(|| piece.into())
    }
}

impl<F: FnMut(&Row, &mut Vec<u8>) + Send + Unpin + 'static> IntoResponse for Lines<F> {
    fn into_response(self) -> Response {
        Body::from_stream(futures::stream::iter(self.map(Ok::<_, Infallible>))).into_response()
    }
}

/// Writing to memory doesn't fail, and nothing here is a map with keys that are no texts.
fn write(value: &impl Serialize, out: &mut Vec<u8>) {
    if let Err(error) = serde_json::to_writer(&mut *out, value) {
        tracing::error!(%error, "a row can't be written");
    }
}

fn json_line(value: &impl Serialize, out: &mut Vec<u8>) {
    write(value, out);
    out.push(b'\n');
}

/// The names of the columns that rows have as a table: bucket, key, rank and item, values; those compared with behind.
pub(crate) fn titles(query: &Query) -> Vec<String> {
    let mut titles = vec!["bucket".to_owned()];
    titles.extend(query.group_by.iter().map(|column| column.name.clone()));
    if let (true, Some(item)) = (query.ranked(), &query.columns[0].metric.item) {
        titles.extend(["rank".to_owned(), item.name.clone()]);
    }
    let before = ["", "previous."];
    for before in &before[..1 + usize::from(query.compared.is_some())] {
        for column in &query.columns {
            let parts = query.parts(column);
            match parts.is_empty() {
                true => titles.push(format!("{before}{}", column.name)),
                false => titles.extend(parts.iter().map(|part| format!("{before}{}.{part}", column.name))),
            }
        }
        titles.extend(query.computed.iter().map(|computed| format!("{before}{}", computed.name)));
    }
    titles
}

/// A row. Each field ends with a comma, of which the last one gives way to the end of the line.
fn record(query: &Query, row: &Row, out: &mut Vec<u8>) {
    out.extend_from_slice(zone::show(query.zone, row.bucket).as_bytes());
    out.push(b',');
    row.key.iter().for_each(|value| key(value, out));
    if let Some((rank, item)) = &row.ranked {
        write(rank, out);
        out.push(b',');
        key(item, out);
    }
    row.values.iter().chain(&row.previous).for_each(|value| finished(value, out));
    end(out);
}

fn end(out: &mut Vec<u8>) {
    out.pop();
    out.extend_from_slice(b"\r\n");
}

fn text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
    out.extend_from_slice(b"\",");
}

fn key(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(b','),
        Value::Str(value) => text(value, out),
        other => {
            write(&crate::reply::Plain(other), out);
            out.push(b',');
        }
    }
}

fn finished(value: &Finished, out: &mut Vec<u8>) {
    match value {
        Finished::Null(()) => out.push(b','),
        Finished::Text(value) => text(value, out),
        Finished::List(values) => {
            for value in values {
                value.iter().for_each(|value| write(value, out));
                out.push(b',');
            }
        }
        Finished::Int(_) | Finished::Float(_) => {
            write(value, out);
            out.push(b',');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_most_is_sent() {
        use Format::{Csv, Json, Ndjson};
        for (header, expected) in [
            ("", Json),
            ("*/*", Json),
            ("text/html", Json),
            ("text/csv", Csv),
            ("TEXT/CSV; header=present", Csv),
            ("text/html, text/csv, */*;q=0.8", Csv),
            ("text/csv, */*", Csv),
            ("text/csv;q=0.5, application/json", Json),
            ("application/json;q=0.5, text/csv;q=0.6, application/x-ndjson;q=0.7", Ndjson),
            ("text/csv;q=0.9, */*", Json),
            ("application/x-ndjson, text/csv", Ndjson),
            ("text/csv, application/x-ndjson", Csv),
            ("text/*", Csv),
            ("application/*", Json),
            ("application/json;q=0, */*", Csv),
            ("application/json; q=0, application/jsonl", Ndjson),
            ("text/csv;q=0", Json),
            ("text/csv;q=nonsense, application/json;q=0.9", Csv),
            (",;,;q=,text/csv;;q=0.2", Csv),
        ] {
            assert_eq!(Format::accepted(header), expected, "{header:?}");
        }
    }
}
