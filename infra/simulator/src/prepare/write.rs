//! Writes one partition's sorted rows as Parquet: the declared fields as columns, Zstd, sorted by event time.
//!
//! Memory is one batch and one row group, both bounded in bytes.

use super::row::{self, Cell};
use anyhow::Context;
use arrow::array::{ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use shared_model::catalog::Stream;
use shared_model::event::FieldType;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of the metadata entry of a decimal column that holds its scale; the column holds integers of its units.
pub const DECIMAL_SCALE: &str = "decimal_scale";

const BATCH_ROWS: usize = 8_192;
const BATCH_BYTES: usize = 4 << 20;
const GROUP_ROWS: usize = 1 << 17;
/// A file is closed at this size and the next part begun.
const FILE_BYTES: usize = 1 << 30;

/// The columns of a stream's prepared files.
pub fn schema(stream: &Stream) -> Schema {
    let fields = stream.recorded().iter().map(|field| {
        let (ty, scale) = match field.ty {
            FieldType::String => (DataType::Utf8, None),
            FieldType::Int => (DataType::Int64, None),
            FieldType::Float => (DataType::Float64, None),
            FieldType::Bool => (DataType::Boolean, None),
            FieldType::Decimal(scale) => (DataType::Int64, Some(scale)),
        };
        let column = Field::new(&field.name, ty, true);
        match scale {
            Some(scale) => {
                column.with_metadata(HashMap::from([(DECIMAL_SCALE.to_owned(), scale.to_string())]))
            }
            None => column,
        }
    });
    Schema::new(fields.collect::<Vec<_>>())
}

/// Writes a partition's rows, in the order in which they come, as `part-0.parquet`, `part-1.parquet` ...
pub struct PartitionWriter<'a> {
    stream: &'a Stream,
    folder: PathBuf,
    schema: SchemaRef,
    group_bytes: usize,
    columns: Vec<Column>,
    batch_rows: usize,
    batch_bytes: usize,
    file: Option<ArrowWriter<File>>,
    /// How many files have been begun.
    pub files: usize,
    /// How many rows have been taken.
    pub rows: u64,
}

impl<'a> PartitionWriter<'a> {
    /// A writer into `folder`, which it makes; a row group stays below about `group_bytes`.
    pub fn new(
        stream: &'a Stream,
        folder: PathBuf,
        group_bytes: usize,
    ) -> anyhow::Result<PartitionWriter<'a>> {
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let columns = stream.recorded().iter().map(|field| Column::new(field.ty)).collect();
        let schema = Arc::new(schema(stream));
        let (batch_rows, batch_bytes, files, rows) = (0, 0, 0, 0);
        Ok(PartitionWriter {
            stream,
            folder,
            schema,
            group_bytes,
            columns,
            batch_rows,
            batch_bytes,
            file: None,
            files,
            rows,
        })
    }

    /// Takes a row's bytes.
    pub fn push(&mut self, mut row: &[u8]) -> anyhow::Result<()> {
        self.batch_bytes += row.len();
        self.batch_rows += 1;
        self.rows += 1;
        for (field, column) in self.stream.recorded().iter().zip(&mut self.columns) {
            column.push(row::take(&mut row, field.ty).context("a spilled row was damaged on disk")?);
        }
        if self.batch_rows >= BATCH_ROWS || self.batch_bytes >= BATCH_BYTES {
            self.write_batch()
        } else {
            Ok(())
        }
    }

    /// Writes what is left and closes the file.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.write_batch()?;
        self.close()
    }

    fn write_batch(&mut self) -> anyhow::Result<()> {
        if self.batch_rows == 0 {
            return Ok(());
        }
        let arrays: Vec<ArrayRef> = self.columns.iter_mut().map(Column::finish).collect();
        (self.batch_rows, self.batch_bytes) = (0, 0);
        let batch = RecordBatch::try_new(self.schema.clone(), arrays)?;
        let path = self.folder.join(format!("part-{}.parquet", self.files.saturating_sub(1)));
        let in_file = || format!("cannot write {}", path.display());
        if self.file.is_none() {
            self.file = Some(self.begin()?);
        }
        let Some(writer) = &mut self.file else { return Ok(()) };
        writer.write(&batch).with_context(in_file)?;
        if writer.bytes_written() >= FILE_BYTES { self.close() } else { Ok(()) }
    }

    fn begin(&mut self) -> anyhow::Result<ArrowWriter<File>> {
        let path = self.folder.join(format!("part-{}.parquet", self.files));
        self.files += 1;
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let sorted_by = &self.stream.fields[self.stream.event_time.field].name;
        let note = |key: &str, value: &str| KeyValue::new(key.to_owned(), value.to_owned());
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(Default::default()))
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            .set_max_row_group_bytes(Some(self.group_bytes))
            .set_created_by(concat!("tidemark simulator ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(vec![
                note("tidemark.stream", &self.stream.name),
                note("tidemark.sorted_by", sorted_by),
            ]))
            .build();
        Ok(ArrowWriter::try_new(file, self.schema.clone(), Some(properties))?)
    }

    fn close(&mut self) -> anyhow::Result<()> {
        if let Some(writer) = self.file.take() {
            let folder = &self.folder;
            writer.close().with_context(|| format!("cannot finish a file in {}", folder.display()))?;
        }
        Ok(())
    }
}

/// A column that is being filled.
enum Column {
    Text(StringBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Bool(BooleanBuilder),
}

impl Column {
    fn new(ty: FieldType) -> Column {
        match ty {
            FieldType::String => Column::Text(StringBuilder::new()),
            FieldType::Int | FieldType::Decimal(_) => Column::Int(Int64Builder::new()),
            FieldType::Float => Column::Float(Float64Builder::new()),
            FieldType::Bool => Column::Bool(BooleanBuilder::new()),
        }
    }

    fn push(&mut self, cell: Cell<'_>) {
        match (self, cell) {
            (Column::Text(column), Cell::Str(value)) => column.append_value(value),
            (Column::Text(column), _) => column.append_null(),
            (Column::Int(column), Cell::Int(value)) => column.append_value(value),
            (Column::Int(column), _) => column.append_null(),
            (Column::Float(column), Cell::Float(value)) => column.append_value(value),
            (Column::Float(column), _) => column.append_null(),
            (Column::Bool(column), Cell::Bool(value)) => column.append_value(value),
            (Column::Bool(column), _) => column.append_null(),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Column::Text(column) => Arc::new(column.finish()),
            Column::Int(column) => Arc::new(column.finish()),
            Column::Float(column) => Arc::new(column.finish()),
            Column::Bool(column) => Arc::new(column.finish()),
        }
    }
}

/// The folder of a partition, as Hive names it: `platform=<p>/event_date=<d>`, or the date alone.
pub fn folder_of(platform: Option<&str>, day: shared_model::time::EventDay) -> PathBuf {
    match platform {
        Some(platform) => Path::new(&format!("platform={platform}")).join(format!("event_date={day}")),
        None => PathBuf::from(format!("event_date={day}")),
    }
}

/// The name of a NULL partition value.
pub const HIVE_NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// A partition value as Hive writes it in a folder's name; an empty text is written like NULL.
pub fn hive_value(value: Cell<'_>) -> String {
    let text = match value {
        Cell::Null | Cell::Str("") => return HIVE_NULL.to_owned(),
        Cell::Bool(value) => value.to_string(),
        Cell::Int(value) => value.to_string(),
        Cell::Float(value) => value.to_string(),
        Cell::Str(value) => value.to_owned(),
    };
    let mut name = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' if !(letter == '.' && name.is_empty()) => {
                name.push(letter)
            }
            _ => {
                let mut bytes = [0; 4];
                letter
                    .encode_utf8(&mut bytes)
                    .bytes()
                    .for_each(|byte| name.push_str(&format!("%{byte:02X}")));
            }
        }
    }
    if name.len() > LONGEST_NAME {
        // Still a name of its own, and one that a file system takes.
        let hash = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
        name.truncate(LONGEST_NAME - 17);
        name.push_str(&format!("-{hash:016x}"));
    }
    name
}

/// What file systems allow, less the `platform=`.
const LONGEST_NAME: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_values_are_safe_folder_names() {
        let check = |cell, expected: &str| assert_eq!(hive_value(cell), expected);
        check(Cell::Null, HIVE_NULL);
        check(Cell::Int(-3), "-3");
        check(Cell::Str("desktop"), "desktop");
        check(Cell::Str("../x=y"), "%2E.%2Fx%3Dy");
        check(Cell::Str("ü"), "%C3%BC");
        assert_eq!(hive_value(Cell::Str(&"x".repeat(9_999))).len(), LONGEST_NAME);
    }
}
