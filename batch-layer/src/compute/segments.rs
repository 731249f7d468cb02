//! What the footers of a day's Parquet files say: rows, group by group, and columns. No row is read.

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
    let mut found: Vec<(Arc<ArrowSchema>, Segments)> = Vec::new();
    let mut rows = 0;
    for file in files {
        let (schema, groups, row_bytes) =
            footer(file).with_context(|| format!("segment {}", file.display()))?;
        rows += groups.iter().sum::<u64>();
        match found.iter_mut().find(|(known, _)| *known == schema) {
            Some((_, alike)) => {
                alike.files.push(file.clone());
                alike.groups.push(groups);
                alike.row_bytes = alike.row_bytes.max(row_bytes);
            }
            None => {
                let missing =
                    missing(stream, &schema).with_context(|| format!("segment {}", file.display()))?;
                let alike = Segments { files: vec![file.clone()], groups: vec![groups], row_bytes, missing };
                found.push((schema, alike));
            }
        }
    }
    Ok((found.into_iter().map(|(_, alike)| alike).collect(), rows))
}

/// The columns of a file, how many rows each row group has, and how many bytes a row takes where it takes the most.
fn footer(file: &Path) -> Result<(Arc<ArrowSchema>, Vec<u64>, u64)> {
    let mut reader = ParquetReader::new(File::open(file).context("can't be opened")?);
    let schema = reader.schema().context("is not a Parquet file")?;
    let groups = &reader.get_metadata()?.row_groups;
    let rows = groups.iter().map(|group| group.num_rows() as u64).collect();
    let widths = groups.iter().map(|group| group.total_byte_size().div_ceil(group.num_rows().max(1)) as u64);
    let widest = widths.max().unwrap_or(0);
    Ok((schema, rows, widest))
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
