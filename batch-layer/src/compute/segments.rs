//! What the footers of a day's Parquet files say: rows and columns. No row is read.

use crate::plan::expression::data_type;
use crate::plan::{EVENT_TIME, IDENTITY, POSITION, Segments};
use anyhow::{Context, Result, bail, ensure};
use polars::prelude::{DataType, ParquetReader, SerReader};
use shared_model::catalog::Stream;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The segments of a stream's day, grouped by the columns that they have, and how many rows they have together.
pub(super) fn inspect(stream: &Stream, files: &[PathBuf]) -> Result<(Vec<Segments>, u64)> {
    let mut groups: Vec<Segments> = Vec::new();
    let mut rows = 0;
    for file in files {
        let (missing, extra, height) =
            shape(stream, file).with_context(|| format!("segment {}", file.display()))?;
        rows += height;
        match groups.iter_mut().find(|group| group.missing == missing && group.extra == extra) {
            // Two files may have different extra columns: they are then never scanned together.
            Some(group) if !extra => group.files.push(file.clone()),
            _ => groups.push(Segments { files: vec![file.clone()], missing, extra }),
        }
    }
    Ok((groups, rows))
}

/// The fields that a file lacks, whether it has columns of its own, and its rows.
fn shape(stream: &Stream, file: &Path) -> Result<(Vec<usize>, bool, u64)> {
    let mut reader = ParquetReader::new(File::open(file).context("can't be opened")?);
    let schema = reader.schema().context("is not a Parquet file")?;
    let rows = reader.num_rows()? as u64;
    for name in POSITION.iter().chain(&IDENTITY).chain(&[EVENT_TIME]) {
        ensure!(schema.contains(name), "column {name} is missing: the archive did not write this file");
    }
    let mut missing = Vec::new();
    for (at, field) in stream.fields.iter().enumerate() {
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
    let system = crate::archive::SYSTEM_COLUMNS;
    let declared = |name: &str| stream.field(name).is_some() || system.contains(&name);
    let extra = schema.iter_names().any(|name| !declared(name));
    Ok((missing, extra, rows))
}
