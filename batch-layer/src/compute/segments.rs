//! What the footers of a day's Parquet files say: rows and columns. No row is read.

use crate::plan::expression::data_type;
use crate::plan::{EVENT_TIME, IDENTITY, POSITION, Segments};
use anyhow::{Context, Result, bail, ensure};
use polars::prelude::{ArrowSchema, DataType, ParquetReader, SerReader};
use shared_model::catalog::Stream;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The segments of a stream's day, grouped by the columns that they have, and how many rows they have together.
pub(super) fn inspect(stream: &Stream, files: &[PathBuf]) -> Result<(Vec<Segments>, u64)> {
    let mut groups: Vec<(Arc<ArrowSchema>, Segments)> = Vec::new();
    let mut rows = 0;
    for file in files {
        let (schema, height) = footer(file).with_context(|| format!("segment {}", file.display()))?;
        rows += height;
        match groups.iter_mut().find(|(known, _)| *known == schema) {
            Some((_, alike)) => {
                alike.files.push(file.clone());
                alike.rows.push(height);
            }
            None => {
                let missing =
                    missing(stream, &schema).with_context(|| format!("segment {}", file.display()))?;
                groups.push((schema, Segments { files: vec![file.clone()], rows: vec![height], missing }));
            }
        }
    }
    Ok((groups.into_iter().map(|(_, alike)| alike).collect(), rows))
}

/// The columns and the number of rows of a file.
fn footer(file: &Path) -> Result<(Arc<ArrowSchema>, u64)> {
    let mut reader = ParquetReader::new(File::open(file).context("can't be opened")?);
    let schema = reader.schema().context("is not a Parquet file")?;
    Ok((schema, reader.num_rows()? as u64))
}

/// The fields that columns lack.
///
/// # Errors
/// Where they aren't those of an archived file, or a field has another type than the catalog says.
fn missing(stream: &Stream, schema: &ArrowSchema) -> Result<Vec<usize>> {
    for name in POSITION.iter().chain(&IDENTITY).chain(&[EVENT_TIME]) {
        ensure!(schema.contains(name), "column {name} is missing: the archive did not write this file");
    }
    let mut missing = Vec::new();
    for (at, field) in stream.recorded().iter().enumerate() {
        let Some(column) = schema.get(&field.name) else {
            missing.push(at);
            continue;
        };
        let (found, declared) = (DataType::from_arrow_field(column), data_type(field.ty));
        if found != declared {
            bail!(
                "field {} of stream {} is {found} there, but {declared} in the catalog: give the field a new name, \
                 or import the old data anew",
                field.name,
                stream.name
            );
        }
    }
    Ok(missing)
}
