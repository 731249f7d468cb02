//! An exported Parquet file has the fields of the CSV.

use super::law::{ask, queries};
use super::world::{World, fixed, span};
use crate::export::parquet::file;
use crate::table::csv_lines;
use arrow::array::AsArray;
use arrow::datatypes::TimestampMillisecondType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use axum::body::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// Each field of the rows as a text, NULL as an empty one, by the column's title.
fn read(file: Vec<u8>) -> (Vec<String>, Vec<Vec<String>>) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).unwrap();
    let titles = reader.schema().fields().iter().map(|field| field.name().clone()).collect();
    let options = FormatOptions::new();
    let mut rows = Vec::new();
    for batch in reader.build().unwrap() {
        let batch = batch.unwrap();
        let buckets = batch.column(0).as_primitive::<TimestampMillisecondType>();
        let columns: Vec<_> = batch.columns()[1..]
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options).unwrap())
            .collect();
        rows.extend((0..batch.num_rows()).map(|row| {
            let bucket = shared_model::time::show(buckets.value(row));
            std::iter::once(bucket)
                .chain(columns.iter().map(|column| column.value(row).to_string()))
                .collect::<Vec<_>>()
        }));
    }
    (titles, rows)
}

/// A CSV's fields, by whether they are numbers.
fn same(csv: &str, parquet: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok();
    csv == parquet || (number(csv).is_some() && number(csv) == number(parquet))
}

#[test]
fn every_kind_of_answer_has_the_same_fields_as_its_csv() {
    let world = World::new(&fixed());
    let (views, ..) = world.views(4, 4);
    let mut fields = 0;
    for request in queries().into_iter().map(span) {
        let query = world.query(request.clone());
        let rows = ask(&views, &query).rows;
        let (titles, found) = read(file(&query, &rows, "{}").unwrap());
        let csv = csv_lines(query, rows).collect::<Vec<_>>().concat();
        let mut lines = csv::ReaderBuilder::new().has_headers(false).from_reader(&csv[..]);
        let mut lines = lines.records().map(|line| line.unwrap());
        assert_eq!(titles, lines.next().unwrap().iter().collect::<Vec<_>>(), "{request}");
        for (row, line) in found.iter().zip(lines.by_ref()) {
            assert_eq!(row.len(), line.len());
            for (parquet, csv) in row.iter().zip(&line) {
                assert!(same(csv, parquet), "{csv:?} is {parquet:?} in {request}");
                fields += 1;
            }
        }
        assert!(lines.next().is_none(), "{request}");
    }
    assert!(fields > 1_000, "{fields}");
}
