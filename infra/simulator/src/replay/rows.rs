//! The rows of one prepared Parquet file, in order, as the JSON records that are sent.
//!
//! Memory is one batch of rows beside what is held of the file (see `batches`).

use super::batches::{self, Batches};
use super::source::{Filter, SourceFile};
use crate::prepare::row::Cell;
use anyhow::{Context, ensure};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, Schema};
use shared_model::catalog::Stream;
use shared_model::event::FieldType;
use shared_model::time::Millis;
use std::io::Write;
use std::sync::Arc;

/// One record, ready to be sent. Its buffers are used again for the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Event time.
    pub time: Millis,
    /// The topic.
    pub topic: Arc<str>,
    /// The message key; `None` where the stream declares none or it is NULL.
    pub key: Option<Vec<u8>>,
    /// The JSON object.
    pub value: Vec<u8>,
}

/// An open file.
pub struct Rows {
    stream: Arc<Stream>,
    shown: String,
    batches: Batches,
    batch: RecordBatch,
    /// Each field's name as JSON, with its colon.
    names: Vec<Vec<u8>>,
    platform: Option<usize>,
    filter: Filter,
    row: usize,
    time: Millis,
}

impl Rows {
    /// Opens a file and goes to its first wanted row; `None` where it has none.
    pub fn open(file: &SourceFile, filter: &Filter) -> anyhow::Result<Option<Rows>> {
        let (stream, batches) = (file.stream.clone(), batches::open(file)?);
        let names =
            stream.recorded().iter().map(|field| format!("{}:", serde_json::json!(field.name)).into_bytes());
        let mut rows = Rows {
            batch: RecordBatch::new_empty(Arc::new(Schema::empty())),
            names: names.collect(),
            platform: stream.field("platform"),
            filter: filter.clone(),
            row: 0,
            time: Millis::MIN,
            stream,
            shown: file.location.to_string(),
            batches,
        };
        Ok(rows.settle()?.then_some(rows))
    }

    /// The event time of the row at hand.
    pub fn time(&self) -> Millis {
        self.time
    }

    /// Goes to the next wanted row; false at the end.
    pub fn advance(&mut self) -> anyhow::Result<bool> {
        self.row += 1;
        self.settle()
    }

    /// Writes the row at hand into `record`.
    pub fn render(&self, record: &mut Record) {
        record.time = self.time;
        record.topic = self.stream.topic.clone();
        record.value.clear();
        record.value.push(b'{');
        for (at, name) in self.names.iter().enumerate() {
            if at > 0 {
                record.value.push(b',');
            }
            record.value.extend_from_slice(name);
            put_json(&mut record.value, self.cell(at), self.stream.fields[at].ty);
        }
        record.value.push(b'}');
        let key = self.stream.message_key.map(|at| self.cell(at)).filter(|cell| *cell != Cell::Null);
        match key {
            None => record.key = None,
            Some(cell) => {
                let key = record.key.get_or_insert_default();
                key.clear();
                // Writing into a Vec cannot fail.
                let _ = match cell {
                    Cell::Str(text) => key.write_all(text.as_bytes()),
                    Cell::Int(int) => write!(key, "{int}"),
                    Cell::Float(float) => write!(key, "{float}"),
                    Cell::Bool(value) => write!(key, "{value}"),
                    Cell::Null => Ok(()),
                };
            }
        }
    }

    /// Stays where it is or goes on to the next wanted row.
    fn settle(&mut self) -> anyhow::Result<bool> {
        loop {
            while self.row >= self.batch.num_rows() {
                match self.batches.next() {
                    None => return Ok(false),
                    Some(batch) => {
                        self.batch = batch.with_context(|| format!("cannot read {}", self.shown))?
                    }
                }
                self.row = 0;
            }
            let time = self.time_here()?;
            ensure!(
                time >= self.time,
                "{} is not sorted by event time; `simulator prepare` makes files that are",
                self.shown
            );
            self.time = time;
            if self.is_wanted() {
                return Ok(true);
            }
            if time >= self.filter.span.end {
                return Ok(false);
            }
            self.row += 1;
        }
    }

    fn time_here(&self) -> anyhow::Result<Millis> {
        let time = match self.cell(self.stream.event_time.field) {
            Cell::Int(raw) => self.stream.event_time.to_millis(raw),
            _ => None,
        };
        time.with_context(|| format!("{} has a row without an event time", self.shown))
    }

    fn is_wanted(&self) -> bool {
        if !self.filter.span.contains(self.time) {
            return false;
        }
        match self.platform.filter(|_| !self.filter.platforms.is_empty()).map(|at| self.cell(at)) {
            None => true,
            Some(Cell::Null) => self.filter.takes_platform(None),
            Some(Cell::Str(text)) => self.filter.takes_platform(Some(text)),
            Some(Cell::Int(int)) => self.filter.takes_platform(Some(&int.to_string())),
            Some(Cell::Float(float)) => self.filter.takes_platform(Some(&float.to_string())),
            Some(Cell::Bool(value)) => self.filter.takes_platform(Some(&value.to_string())),
        }
    }

    fn cell(&self, field: usize) -> Cell<'_> {
        let column = self.batch.column(self.batches.columns[field]);
        if column.is_null(self.row) {
            return Cell::Null;
        }
        match column.data_type() {
            DataType::Utf8 => Cell::Str(column.as_string::<i32>().value(self.row)),
            DataType::Int64 => Cell::Int(column.as_primitive::<Int64Type>().value(self.row)),
            DataType::Float64 => Cell::Float(column.as_primitive::<Float64Type>().value(self.row)),
            _ => Cell::Bool(column.as_boolean().value(self.row)),
        }
    }
}

fn put_json(out: &mut Vec<u8>, cell: Cell<'_>, ty: FieldType) {
    // Writing into a Vec cannot fail.
    let _ = match (cell, ty) {
        (Cell::Null, _) => out.write_all(b"null"),
        (Cell::Int(units), FieldType::Decimal(scale)) => write!(out, "\"{}\"", decimal(units, scale)),
        (Cell::Int(int), _) => write!(out, "{int}"),
        (Cell::Bool(value), _) => write!(out, "{value}"),
        (Cell::Float(float), _) => serde_json::to_writer(out, &float).map_err(std::io::Error::from),
        (Cell::Str(text), _) => serde_json::to_writer(out, text).map_err(std::io::Error::from),
    };
}

/// A decimal's text, so that no reader passes it through a float.
fn decimal(units: i64, scale: u8) -> String {
    let (sign, digits) = (if units < 0 { "-" } else { "" }, units.unsigned_abs().to_string());
    let scale = usize::from(scale);
    if scale == 0 {
        return format!("{sign}{digits}");
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{sign}{whole}.{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_their_types() {
        let check = |cell, ty, expected: &str| {
            let mut out = Vec::new();
            put_json(&mut out, cell, ty);
            assert_eq!(String::from_utf8(out).expect("text"), expected);
        };
        check(Cell::Null, FieldType::Int, "null");
        check(Cell::Int(-7), FieldType::Int, "-7");
        check(Cell::Int(-7), FieldType::Decimal(2), "\"-0.07\"");
        check(Cell::Int(1_250), FieldType::Decimal(2), "\"12.50\"");
        check(Cell::Int(12), FieldType::Decimal(0), "\"12\"");
        check(Cell::Float(1.0), FieldType::Float, "1.0");
        check(Cell::Bool(true), FieldType::Bool, "true");
        check(Cell::Str("a\"\n"), FieldType::String, "\"a\\\"\\n\"");
    }
}
