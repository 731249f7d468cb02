//! A stream's columns out of one Parquet file, batch by batch.
//!
//! Memory is one batch beside what is held of the file: on this machine one page of each column, of an object the one
//! row group that is being read, as it is stored.

use super::source::SourceFile;
use crate::location::{Location, Object};
use anyhow::{Context, bail, ensure};
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;
use object_store::ObjectMeta;
use parquet::DecodeResult;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderBuilder, ParquetRecordBatchReaderBuilder};
use parquet::arrow::push_decoder::{ParquetPushDecoder, ParquetPushDecoderBuilder};
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataPushDecoder};
use shared_model::catalog::{Field, Stream};
use shared_model::event::FieldType;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

const BATCH_ROWS: usize = 4_096;
/// Fetched at first of an object's end, where the metadata lie: in one request unless they are larger.
const FOOTER: u64 = 64 << 10;

/// An open file's batches, in its order.
pub(super) struct Batches {
    /// Where each declared field stands in a batch.
    pub(super) columns: Vec<usize>,
    batches: Box<dyn Iterator<Item = anyhow::Result<RecordBatch>>>,
}

impl Iterator for Batches {
    type Item = anyhow::Result<RecordBatch>;

    fn next(&mut self) -> Option<anyhow::Result<RecordBatch>> {
        self.batches.next()
    }
}

/// Opens a file; an error where it isn't Parquet with the stream's fields as `prepare` writes them.
pub(super) fn open(file: &SourceFile) -> anyhow::Result<Batches> {
    let (stream, location) = (&file.stream, &file.location);
    let unreadable = || format!("{location} is no parquet file that can be read");
    let unfit = || format!("{location} doesn't fit stream {}", stream.name);
    match location {
        Location::Local(path) => {
            let opened = File::open(path).with_context(|| format!("cannot read {location}"))?;
            let builder = ParquetRecordBatchReaderBuilder::try_new(opened).with_context(unreadable)?;
            let (builder, columns) = project(builder, stream).with_context(unfit)?;
            let batches = builder.build().with_context(unreadable)?;
            Ok(Batches { columns, batches: Box::new(batches.map(|batch| Ok(batch?))) })
        }
        Location::Remote(object) => {
            let version = object.look()?;
            let metadata = metadata(object, &version).with_context(unreadable)?;
            let builder =
                ParquetPushDecoderBuilder::try_new_decoder(Arc::new(metadata)).with_context(unreadable)?;
            let (builder, columns) = project(builder, stream).with_context(unfit)?;
            let mut decoder = builder.build().with_context(unreadable)?;
            let object = object.clone();
            let next = move || {
                let (decode, push) = (ParquetPushDecoder::try_decode, ParquetPushDecoder::push_ranges);
                feed(&object, &version, &mut decoder, decode, push).transpose()
            };
            Ok(Batches { columns, batches: Box::new(std::iter::from_fn(next)) })
        }
    }
}

fn metadata(object: &Object, version: &ObjectMeta) -> anyhow::Result<ParquetMetaData> {
    let mut decoder =
        ParquetMetaDataPushDecoder::try_new(version.size)?.with_page_index_policy(PageIndexPolicy::Skip);
    let footer = version.size.saturating_sub(FOOTER)..version.size;
    let bytes = object.read(version, std::slice::from_ref(&footer))?;
    decoder.push_ranges(vec![footer], bytes)?;
    let (decode, push) = (ParquetMetaDataPushDecoder::try_decode, ParquetMetaDataPushDecoder::push_ranges);
    feed(object, version, &mut decoder, decode, push)?.context("it has no metadata")
}

/// Hands a decoder the bytes of ranges that it asked for.
type Push<D> = fn(&mut D, Vec<Range<u64>>, Vec<Bytes>) -> ParquetResult<()>;

/// Asks a decoder for what comes next, and fetches what it lacks for that.
fn feed<D, T: std::fmt::Debug>(
    object: &Object,
    version: &ObjectMeta,
    decoder: &mut D,
    decode: fn(&mut D) -> ParquetResult<DecodeResult<T>>,
    push: Push<D>,
) -> anyhow::Result<Option<T>> {
    loop {
        match decode(decoder)? {
            DecodeResult::Data(data) => return Ok(Some(data)),
            DecodeResult::Finished => return Ok(None),
            DecodeResult::NeedsData(ranges) => {
                let bytes = object.read(version, &ranges)?;
                push(decoder, ranges, bytes)?;
            }
        }
    }
}

/// Chooses the stream's columns, and says where each field will stand.
fn project<T>(
    builder: ArrowReaderBuilder<T>,
    stream: &Stream,
) -> anyhow::Result<(ArrowReaderBuilder<T>, Vec<usize>)> {
    let places = stream.recorded().iter().map(|field| place(builder.schema(), field));
    let places: Vec<usize> = places.collect::<anyhow::Result<_>>()?;
    // Batches keep the file's order.
    let before = |place: &usize| places.iter().filter(|other| *other < place).count();
    let columns = places.iter().map(before).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), places);
    Ok((builder.with_projection(mask).with_batch_size(BATCH_ROWS), columns))
}

fn place(schema: &Schema, field: &Field) -> anyhow::Result<usize> {
    let Ok(at) = schema.index_of(&field.name) else {
        bail!("it has no column {}, which the catalog declares", field.name);
    };
    let expected = match field.ty {
        FieldType::String => DataType::Utf8,
        FieldType::Int | FieldType::Decimal(_) => DataType::Int64,
        FieldType::Float => DataType::Float64,
        FieldType::Bool => DataType::Boolean,
    };
    let found = schema.field(at).data_type();
    ensure!(*found == expected, "column {} is {found}, not {expected}; prepare it anew", field.name);
    Ok(at)
}
