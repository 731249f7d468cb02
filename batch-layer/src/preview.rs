//! A metric tried out before it is published: its values over one archived day, and what it costs.
//!
//! It is computed as a run would, from the same files, and nothing is written: no version, no run, no schema.

use crate::compute::{Cell, Day};
use crate::files::Files;
use crate::run::{self, Context, Fresh, Inputs};
use anyhow::{Context as _, Result, anyhow, ensure};
use chrono::NaiveDate;
use shared_model::aggregate::Finished;
use shared_model::metric::Metric;
use shared_model::time::{EventDay, show};
use std::fmt;
use std::time::{Duration, Instant};

/// What came of it.
#[derive(Debug)]
pub(crate) struct Preview {
    metric: String,
    day: EventDay,
    /// The columns of the rows.
    columns: Vec<String>,
    /// The rows with the greatest values, the greatest first; ties in the order of key and bucket.
    rows: Vec<Vec<String>>,
    cost: Cost,
    /// Streams whose files of the day are gone from the archive, in part or all.
    broken: Vec<String>,
}

#[derive(Debug, Default)]
struct Cost {
    segments: usize,
    /// Of the segments, as they are stored.
    segment_bytes: u64,
    rows: u64,
    took: Duration,
    cells: u64,
    keys: u64,
    /// Of all cells' keys and states, encoded as in the realtime view.
    cell_bytes: u64,
}

/// Computes a metric over a day; the newest that its streams have in the archive, where none is named.
///
/// # Errors
/// Where the catalog has no such metric, the archive nothing of the day, or it can't be computed.
pub(crate) async fn preview(
    context: &Context,
    metric: &str,
    day: Option<NaiveDate>,
    most: usize,
) -> Result<Preview> {
    let found = context.catalog.metric(metric).cloned();
    let metric = found.ok_or_else(|| {
        let known: Vec<&str> = context.catalog.metrics.iter().map(|metric| metric.name.as_str()).collect();
        anyhow!("the catalog has no metric {metric:?}; it has {}", known.join(", "))
    })?;
    let streams: Vec<String> = metric.bindings.iter().map(|binding| binding.stream.clone()).collect();
    let mut connection = context.pool.acquire().await?;
    let sql = "select min(event_day), max(event_day), max(event_day) filter (where event_day = $2)
               from tidemark.segment where stream = any($1) and removed_at is null";
    let archived: Result<(Option<NaiveDate>, Option<NaiveDate>, Option<NaiveDate>), _> =
        sqlx::query_as(sql).bind(&streams).bind(day).fetch_one(&mut *connection).await;
    let (first, last, asked) = archived.context("the ledger can't be read; has there been a run?")?;
    let names = streams.join(" and ");
    let (Some(first), Some(last)) = (first, last) else {
        return Err(anyhow!("nothing of {names} lies in the archive below the tidemark"));
    };
    if let Some(day) = day {
        ensure!(
            asked.is_some(),
            "nothing of {names} lies in the archive for {day}; it has days from {first} to {last}"
        );
    }
    let day = EventDay::from_date(day.unwrap_or(last));
    let input = Inputs::of_day(context, &mut connection, day, &Fresh::default()).await?;
    drop(connection);

    let files = Files::new(context.store.clone())?;
    let feeds = |stream: &str| streams.iter().any(|name| name == stream);
    let input = input.of_streams(feeds);
    let mut cost = Cost {
        segments: input.segments().0,
        segment_bytes: input.entries().iter().map(|(entry, _)| entry.segment.bytes).sum(),
        rows: input.rows(),
        ..Cost::default()
    };
    let sources = input.sources(context, &files, false).await?;
    let (_, budget) = run::share(context.options.memory, context.options.workers, 1);
    let (of, begun) = (metric.clone(), Instant::now());
    let mut cells = tokio::task::spawn_blocking(move || {
        let day = Day::open(day, sources, budget)?;
        let sorter = day.sorter(&of, 1);
        day.cells(vec![(of, sorter)])?.pop().context("a metric without its cells")
    })
    .await??;
    cost.took = begun.elapsed();
    let (mut best, mut last_key) = (Vec::new(), None);
    for cell in cells.read()? {
        let cell = cell?;
        let mut encoded = Vec::new();
        cell.key.iter().for_each(|value| value.encode(&mut encoded));
        cell.state.encode(&mut encoded);
        cost.cells += 1;
        cost.cell_bytes += encoded.len() as u64;
        if last_key.as_ref() != Some(&cell.key) {
            cost.keys += 1;
            last_key = Some(cell.key.clone());
        }
        keep(&mut best, cell, &metric, most);
    }
    let columns = metric.key_columns().map(|column| column.name.clone());
    let columns = std::iter::once("bucket".to_owned()).chain(columns).chain(["value".to_owned()]);
    Ok(Preview {
        metric: metric.name.clone(),
        day,
        columns: columns.collect(),
        rows: best.into_iter().map(|(_, row)| row).collect(),
        cost,
        broken: input.broken.into_iter().collect(),
    })
}

/// Keeps a cell's row where its value is among the greatest.
fn keep(best: &mut Vec<(f64, Vec<String>)>, cell: Cell, metric: &Metric, most: usize) {
    let value = cell.state.finish(&metric.aggregate);
    let size = match &value {
        Finished::Int(value) => *value as f64,
        Finished::Float(value) => *value,
        Finished::List(values) => values.iter().flatten().next_back().copied().unwrap_or(f64::MIN),
        Finished::Null(()) | Finished::Text(_) => f64::MIN,
    };
    let place = best.partition_point(|(other, _)| *other >= size);
    if place < most {
        let shown = serde_json::to_string(&value).unwrap_or_default();
        let keys = cell.key.iter().map(ToString::to_string);
        best.insert(place, (size, std::iter::once(show(cell.bucket)).chain(keys).chain([shown]).collect()));
        best.truncate(most);
    }
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<&Vec<String>> = std::iter::once(&self.columns).chain(&self.rows).collect();
        let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for line in lines {
            let padded = line.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}"));
            writeln!(f, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        let Cost { segments, segment_bytes, rows, took, cells, keys, cell_bytes } = &self.cost;
        for stream in &self.broken {
            writeln!(
                f,
                "files of {stream} on this day are gone from the archive: the values are of what is left"
            )?;
        }
        write!(
            f,
            "{} on {}: {cells} cells of {keys} keys, {cell_bytes} bytes; computed in {:.2} s from {rows} rows in \
             {segments} segments of {segment_bytes} bytes; nothing was written",
            self.metric,
            self.day,
            took.as_secs_f64()
        )
    }
}
