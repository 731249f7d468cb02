//! How fast the batch layer computes a day and loads it, beside DuckDB on the same files and a bare COPY of the same rows.
//!
//! `cargo bench --workspace --bench batch -- --help`. Servers are real, and so is DuckDB (a Python package, see `day.py`),
//! whose results every run's are held against: one that differs fails the bench.

mod process;
mod watched;

use anyhow::{Context as _, ensure};
use clap::Parser;
use process::machine;
use serde::Deserialize;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use tidemark_tests::stack::{Servers, Stack};
use watched::watched;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const CATALOG: &str = include_str!("day.toml");
const DAY: &str = include_str!("day.py");
/// So many bytes are sent at once.
const CHUNK: usize = 1 << 20;

/// Measures a day's computation and load.
#[derive(Parser)]
struct Args {
    /// Records of the day, one in a hundred there twice.
    #[arg(long, default_value_t = 20_000_000)]
    rows: u64,
    /// Measured runs.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// The memory of the batch layer, in MiB.
    #[arg(long, default_value_t = 1_024)]
    memory: u64,
    /// The seed of the records.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// A Python that has the package duckdb.
    #[arg(long, default_value = "python3")]
    python: String,
    /// The program that is run as the layers, to compare with another build.
    #[arg(long, default_value = LAYERS)]
    layers: String,
    /// Only this many threads compute.
    #[arg(long)]
    workers: Option<u16>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What DuckDB says of its computation.
#[derive(Deserialize)]
struct Reference {
    version: String,
    seconds: f64,
    cpu: f64,
    peak: f64,
    /// By metric the number of cells and the sum of their values.
    cells: BTreeMap<String, (i64, i64)>,
}

/// What a run of the batch layer took: the figures of its process, and the seconds that it says of its parts.
struct Run {
    computed: f64,
    loaded: f64,
    cpu: f64,
    peak: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    println!("{}", machine());
    println!("{} records of a day (seed {}), {} MiB", args.rows, args.seed, args.memory);
    let catalog = |run: u32| CATALOG.replace("BOUND", &format!("2016-07-{:02}", 1 + run));
    let mut stack = Stack::without_topics(&args.layers, &catalog(0), Servers::default()).await;
    stack.kafka.create_topic("events", 1, &[]).await?;
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("day.parquet");
    python(&args, folder.path(), &["make", &text(&input), &args.rows.to_string(), &args.seed.to_string()])?;
    let begun = Instant::now();
    let import = ["import", "--stream", "events", &text(&input)];
    let importing = stack.process("batch-layer", &import, &["catalog", "archive"]);
    ensure!(importing.ended().await == 0, "{}", importing.logged());
    let segments = segments(Path::new(&stack.archive["file://".len()..]))?;
    let bytes = segments.iter().map(|file| Ok(file.metadata()?.len())).sum::<anyhow::Result<u64>>()?;
    println!(
        "imported in {:.0?}: {} segments, {:.0} MB; median (min to max) of {} runs",
        begun.elapsed(),
        segments.len(),
        bytes as f64 / 1e6,
        args.runs
    );
    let mut figures: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for number in 1..=args.runs {
        let reference = reference(&args, folder.path(), &segments)?;
        // Bounds are part of what a metric's version is made of: everything is computed and loaded anew.
        stack.rewrite_catalog(&catalog(number));
        let run = run(&stack, &args).await?;
        let mut connection = PgConnection::connect(&stack.database).await?;
        let rows = check(&mut connection, &stack, &reference).await?;
        let bare = bare_copy(&mut connection, &stack).await?;
        println!(
            "  run {number}: computed {:.1} s ({:.1} CPU-s, {:.0} MB), loaded {rows} rows in {:.1} s; DuckDB {} {:.1} s \
             ({:.1} CPU-s, {:.0} MB); bare COPY {bare:.1} s",
            run.computed,
            run.cpu,
            run.peak,
            run.loaded,
            reference.version,
            reference.seconds,
            reference.cpu,
            reference.peak
        );
        let all = [
            ("computed, s", run.computed),
            ("CPU-s of the whole run", run.cpu),
            ("peak memory, MB", run.peak),
            ("DuckDB, s", reference.seconds),
            ("computed / DuckDB", run.computed / reference.seconds),
            ("rows loaded per s", rows as f64 / run.loaded),
            ("rows of a bare COPY per s", rows as f64 / bare),
            ("loaded / bare COPY", bare / run.loaded),
        ];
        all.into_iter().for_each(|(name, figure)| figures.entry(name).or_default().push(figure));
    }
    for (name, mut found) in figures {
        found.sort_by(f64::total_cmp);
        println!("{name}: {:.2} ({:.2} to {:.2})", found[found.len() / 2], found[0], found[found.len() - 1]);
    }
    Ok(())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Runs `day.py`; gives what it prints.
fn python(args: &Args, folder: &Path, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let script = folder.join("day.py");
    std::fs::write(&script, DAY)?;
    let done = Command::new(&args.python).arg(&script).args(arguments).output();
    let done = done.with_context(|| format!("{} can't be started (--python)", args.python))?;
    ensure!(
        done.status.success(),
        "day.py failed; it needs a Python with the package duckdb (--python):\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(done.stdout)
}

fn reference(args: &Args, folder: &Path, segments: &[PathBuf]) -> anyhow::Result<Reference> {
    let files: Vec<String> = segments.iter().map(|file| text(file)).collect();
    let out = text(&folder.join("reference"));
    let mut arguments = vec!["reference", &out];
    arguments.extend(files.iter().map(String::as_str));
    Ok(serde_json::from_slice(&python(args, folder, &arguments)?)?)
}

/// The archive's files with rows.
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

async fn run(stack: &Stack, args: &Args) -> anyhow::Result<Run> {
    let memory = args.memory.to_string();
    let workers = args.workers.map(|workers| workers.to_string());
    let mut command = vec!["run", "--memory", &memory];
    workers.iter().for_each(|workers| command.extend(["--workers", workers]));
    let took = watched(stack.batch_process(&command)).await?;
    let log = took.said;
    let said = |what: &str| -> anyhow::Result<f64> {
        let line = log.lines().find(|line| line.contains(&format!(" {what} ")));
        let (_, rest) = line
            .and_then(|line| line.split_once("seconds="))
            .with_context(|| format!("no `{what}`:\n{log}"))?;
        Ok(rest.split_whitespace().next().unwrap_or_default().parse()?)
    };
    Ok(Run { computed: said("computed")?, loaded: said("loaded")?, cpu: took.cpu, peak: took.peak })
}

/// The live tables by metric.
async fn tables(connection: &mut PgConnection, stack: &Stack) -> anyhow::Result<Vec<(String, String)>> {
    let mut tables = Vec::new();
    for metric in &stack.catalog.metrics {
        let sql = "select v.table_name from tidemark.view_version v
                   join tidemark.live_version l on l.version_id = v.version_id
                   where v.metric = $1 and v.version = $2";
        let query = sqlx::query_scalar(sql).bind(&metric.name).bind(metric.version.to_string());
        tables.push((metric.name.clone(), query.fetch_one(&mut *connection).await?));
    }
    Ok(tables)
}

/// Holds every metric against DuckDB's: cells, and what they add up to. Gives the number of all cells.
async fn check(connection: &mut PgConnection, stack: &Stack, reference: &Reference) -> anyhow::Result<i64> {
    let mut all = 0;
    for (metric, table) in tables(connection, stack).await? {
        let &(cells, sum) = reference.cells.get(&metric).context("DuckDB has not computed it")?;
        let distinct = metric.contains("users");
        let value = if distinct { "estimate" } else { "value" };
        let sql = format!("select count(*), coalesce(sum({value}), 0)::bigint from views.\"{table}\"");
        let (found, total): (i64, i64) =
            sqlx::query_as(AssertSqlSafe(sql)).fetch_one(&mut *connection).await?;
        ensure!(found == cells, "{metric}: {found} cells, DuckDB has {cells}");
        let near = (total - sum).abs() as f64 <= if distinct { 0.05 * sum as f64 } else { 0.0 };
        ensure!(near, "{metric}: adds up to {total}, DuckDB's to {sum}");
        all += found;
    }
    Ok(all)
}

/// The seconds that the same rows take into tables without an index, one after the other, on one connection.
async fn bare_copy(connection: &mut PgConnection, stack: &Stack) -> anyhow::Result<f64> {
    let mut seconds = 0.0;
    for (_, table) in tables(connection, stack).await? {
        let mut rows = Vec::new();
        let out = format!("copy views.\"{table}\" to stdout (format binary)");
        let mut stream = connection.copy_out_raw(&out).await?;
        while let Some(chunk) = futures::TryStreamExt::try_next(&mut stream).await? {
            rows.extend_from_slice(&chunk);
        }
        drop(stream);
        let create = format!("create table bare (like views.\"{table}\")");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *connection).await?;
        let begun = Instant::now();
        let mut sink = connection.copy_in_raw("copy bare from stdin (format binary)").await?;
        for chunk in rows.chunks(CHUNK) {
            sink.send(chunk).await?;
        }
        sink.finish().await?;
        seconds += begun.elapsed().as_secs_f64();
        sqlx::raw_sql("drop table bare").execute(&mut *connection).await?;
    }
    Ok(seconds)
}
