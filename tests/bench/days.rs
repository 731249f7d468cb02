//! Days of records in an archive: made by `day.py`, imported, computed by the batch layer, and what came of it held
//! against DuckDB's.

use crate::watched::watched;
use crate::{Args, disk};
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use shared_model::dense;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use tempfile::TempDir;
use tidemark_tests::stack::{Servers, Stack};

const CATALOG: &str = include_str!("day.toml");
const DAY: &str = include_str!("day.py");

/// A day of records, one in a hundred there twice.
#[derive(Clone, Copy)]
pub(crate) struct Day {
    /// Counted from 2016-06-14, below 17.
    pub(crate) number: u64,
    /// How many records.
    pub(crate) rows: u64,
    /// One user, one document, one display and one place have half of them each; else none has many.
    pub(crate) skewed: bool,
}

impl Day {
    /// As commands and files name it.
    pub(crate) fn date(self) -> String {
        format!("2016-06-{:02}", 14 + self.number)
    }
}

/// What DuckDB says of its computation.
#[derive(Deserialize)]
pub(crate) struct Reference {
    pub(crate) version: String,
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
    pub(crate) peak: f64,
    /// By metric the number of cells, the sum of their values, the sum of those values weighed by where they are, and what
    /// weighs them, in SQL.
    cells: BTreeMap<String, (i64, i64, i64, String)>,
}

/// What a command of the batch layer took: the figures of its process, and the seconds that it says of its parts, those
/// of several days added up.
pub(crate) struct Run {
    /// From its start to its end.
    pub(crate) seconds: f64,
    pub(crate) computed: f64,
    pub(crate) loaded: f64,
    pub(crate) cpu: f64,
    pub(crate) peak: f64,
    /// MB that it read from the disk, of whatever.
    pub(crate) read: f64,
    /// Its log.
    said: String,
}

/// Servers of their own, and an archive for days.
pub(crate) struct Days {
    stack: Stack,
    /// Options of each run.
    options: Vec<String>,
    python: String,
    seed: u64,
    folder: TempDir,
}

impl Days {
    /// None yet.
    pub(crate) async fn start(args: &Args) -> anyhow::Result<Days> {
        let stack = Stack::without_topics(&args.layers, &catalog(0), Servers::default()).await;
        stack.kafka.create_topic("events", 1, &[]).await?;
        let mut options = vec!["--memory".to_owned(), args.memory.to_string()];
        if let Some(workers) = args.workers {
            options.extend(["--workers".to_owned(), workers.to_string()]);
        }
        let folder = tempfile::tempdir()?;
        Ok(Days { stack, options, python: args.python.clone(), seed: args.seed, folder })
    }

    /// Gives the metrics a new version, for each round another, so that everything is computed and loaded anew.
    pub(crate) fn renew(&mut self, round: u32) {
        self.stack.rewrite_catalog(&catalog(round));
    }

    /// Makes records of a day and imports them; the next run takes them in.
    pub(crate) async fn bring(&self, day: Day) -> anyhow::Result<()> {
        let (made, begun) = (tempfile::tempdir()?, Instant::now());
        let (folder, date) = (text(made.path()), day.date());
        let shape = if day.skewed { "skewed" } else { "uniform" };
        let make = ["make", &folder, &date, &day.rows.to_string(), &self.seed.to_string(), shape];
        let peak = String::from_utf8(self.python(&make)?)?;
        let peak = peak.trim().parse::<f64>().with_context(|| format!("day.py says {peak:?}"))?;
        let made_in = begun.elapsed();
        let begun = Instant::now();
        let import = ["import", "--stream", "events", &folder];
        let importing = self.stack.process("batch-layer", &import, &["catalog", "archive"]);
        ensure!(importing.ended().await == 0, "{}", importing.logged());
        let segments = self.segments(day).await?;
        println!(
            "  {date}: {} {shape} records made in {made_in:.0?} ({peak:.0} MB), imported in {:.0?}: {} segments, \
             {:.0} MB",
            day.rows,
            begun.elapsed(),
            segments.len(),
            length(&segments)?
        );
        Ok(())
    }

    /// The archive's files with rows. Those that a run has compacted lie there for a while yet, beside the file that their
    /// rows are in now: they are left out, as the next run does.
    pub(crate) async fn archive(&self) -> anyhow::Result<Vec<PathBuf>> {
        let root = Path::new(&self.stack.archive["file://".len()..]);
        let mut found = segments(root)?;
        let mut connection = self.connect().await?;
        // The first run makes the ledger.
        let is_there = "select to_regclass('tidemark.compaction') is not null";
        if sqlx::query_scalar::<_, bool>(is_there).fetch_one(&mut connection).await? {
            let sql = "select unnest(replaced) from tidemark.compaction";
            let replaced: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut connection).await?;
            let replaced: BTreeSet<PathBuf> = replaced.iter().map(|path| root.join(path)).collect();
            found.retain(|file| !replaced.contains(file));
        }
        Ok(found)
    }

    /// Those of a day.
    pub(crate) async fn segments(&self, day: Day) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = self.archive().await?;
        let folder = format!("event_day={}", day.date());
        found.retain(|file| file.parent().is_some_and(|parent| parent.ends_with(&folder)));
        Ok(found)
    }

    /// What DuckDB makes of a day's segments.
    pub(crate) async fn reference(&self, day: Day) -> anyhow::Result<Reference> {
        let files: Vec<String> = self.segments(day).await?.iter().map(|file| text(file)).collect();
        let out = text(&self.folder.path().join("reference"));
        let mut arguments = vec!["reference", &out];
        arguments.extend(files.iter().map(String::as_str));
        Ok(serde_json::from_slice(&self.python(&arguments)?)?)
    }

    /// Runs `day.py`; gives what it prints.
    fn python(&self, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let script = self.folder.path().join("day.py");
        std::fs::write(&script, DAY)?;
        let done = Command::new(&self.python).arg(&script).args(arguments).output();
        let done = done.with_context(|| format!("{} can't be started (--python)", self.python))?;
        ensure!(
            done.status.success(),
            "day.py failed; it needs a Python with the package duckdb (--python):\n{}",
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(done.stdout)
    }

    /// Runs a command that must compute so many days.
    pub(crate) async fn run(&self, command: &[&str], days: usize) -> anyhow::Result<Run> {
        let options = self.options.iter().map(String::as_str);
        let command: Vec<&str> = command.iter().copied().chain(options).collect();
        let begun = Instant::now();
        let process = self.stack.batch_process(&command);
        let read = disk::read_by(process.pid());
        let (took, read) = tokio::join!(watched(process), read);
        let (took, seconds) = (took?, begun.elapsed().as_secs_f64());
        let (computed, loaded) = (told(&took.said, "computed")?, told(&took.said, "loaded")?);
        ensure!(
            computed.len() == days,
            "{} days were computed instead of {days}:\n{}",
            computed.len(),
            took.said
        );
        let (computed, loaded) = (computed.iter().sum(), loaded.iter().sum());
        let (cpu, peak, said) = (took.cpu, took.peak, took.said);
        Ok(Run { seconds, computed, loaded, cpu, peak, read, said })
    }

    /// Computes days that follow each other again, which must give what is live already: nothing is loaded.
    pub(crate) async fn recompute(&self, of: &[Day], options: &[&str]) -> anyhow::Result<Run> {
        let (Some(first), Some(last)) = (of.first(), of.last()) else { bail!("no day is named") };
        let (from, to) = (first.date(), last.date());
        let command = [&["backfill", "--from", &from, "--to", &to], options].concat();
        let run = self.run(&command, of.len()).await?;
        ensure!(run.said.contains("nothing new"), "{from} to {to}: other cells than before:\n{}", run.said);
        Ok(run)
    }

    /// A connection to the batch view.
    pub(crate) async fn connect(&self) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(&self.stack.database).await?)
    }

    /// The live tables of a day by metric.
    pub(crate) async fn tables(
        &self,
        connection: &mut PgConnection,
        day: Day,
    ) -> anyhow::Result<Vec<(String, String)>> {
        let mut tables = Vec::new();
        for metric in &self.stack.catalog.metrics {
            let sql = "select v.table_name from tidemark.view_version v
                       join tidemark.live_version l on l.version_id = v.version_id
                       where v.metric = $1 and v.version = $2 and v.event_day::text = $3";
            let query = sqlx::query_scalar::<_, String>(sql).bind(&metric.name);
            let query = query.bind(metric.version.to_string()).bind(day.date());
            let table = query.fetch_one(&mut *connection).await;
            let missing = || format!("{} has no table of {}", metric.name, day.date());
            tables.push((metric.name.clone(), table.with_context(missing)?));
        }
        Ok(tables)
    }

    /// What a statement selects the cells of a metric's table from, with all that a row of one cell would have.
    pub(crate) fn cells(&self, metric: &str, table: &str) -> anyhow::Result<String> {
        let from = format!("views.\"{table}\"");
        if !dense::is_dense(table) {
            return Ok(from);
        }
        let metric = self.stack.catalog.metric(metric).with_context(|| format!("{metric} is unknown"))?;
        Ok(dense::cells(&format!("{from} v"), &["version_id"], metric, &metric.aggregate.columns()))
    }

    /// Holds every metric of a day against DuckDB's: how many cells, what they add up to, and what they add up to weighed by
    /// key and bucket, which differs where a value is at another. Gives the number of all cells.
    pub(crate) async fn check(&self, day: Day, reference: &Reference) -> anyhow::Result<i64> {
        let (mut connection, mut all) = (self.connect().await?, 0);
        for (metric, table) in self.tables(&mut connection, day).await? {
            let (cells, sum, weighed, weight) =
                reference.cells.get(&metric).context("DuckDB has not computed it")?;
            let distinct = metric.contains("users");
            let value = if distinct { "estimate" } else { "value" };
            let from = self.cells(&metric, &table)?;
            let sql = format!(
                "select count(*), coalesce(sum({value}), 0)::bigint, coalesce(sum({value} * {weight}), 0)::bigint
                 from (select *, date_part('epoch', bucket)::bigint / 300 as slot from {from}) as cell"
            );
            let (found, total, placed): (i64, i64, i64) =
                sqlx::query_as(AssertSqlSafe(sql)).fetch_one(&mut connection).await?;
            let metric = format!("{metric} on {}", day.date());
            ensure!(found == *cells, "{metric}: {found} cells, DuckDB has {cells}");
            for (what, ours, theirs) in [("", total, *sum), (" by key and bucket", placed, *weighed)] {
                let near = (ours - theirs).abs() as f64 <= if distinct { 0.05 * theirs as f64 } else { 0.0 };
                ensure!(near, "{metric}: adds up{what} to {ours}, DuckDB's to {theirs}");
            }
            all += found;
        }
        Ok(all)
    }
}

/// Bounds are part of what a metric's version is made of.
fn catalog(round: u32) -> String {
    CATALOG.replace("BOUND", &format!("2016-07-{:02}", 1 + round))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The files with rows below a folder of the archive.
fn segments(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true if !path.ends_with("rejects") => found.extend(segments(&path)?),
            false if path.extension().is_some_and(|end| end == "parquet") => found.push(path),
            _ => {}
        }
    }
    found.sort();
    Ok(found)
}

/// How long files are together, in MB.
pub(crate) fn length(files: &[PathBuf]) -> anyhow::Result<f64> {
    let lengths = files.iter().map(|file| Ok(file.metadata()?.len()));
    Ok(lengths.sum::<anyhow::Result<u64>>()? as f64 / 1e6)
}

/// The seconds that each line of a log about `what` tells.
fn told(log: &str, what: &str) -> anyhow::Result<Vec<f64>> {
    let lines = log.lines().filter(|line| line.contains(&format!(" {what} ")));
    let said = lines.map(|line| -> anyhow::Result<f64> {
        let (_, rest) = line.split_once("seconds=").with_context(|| format!("no seconds: {line}"))?;
        Ok(rest.split_whitespace().next().unwrap_or_default().parse()?)
    });
    said.collect()
}
