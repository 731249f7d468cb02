//! How fast the batch layer computes a day and loads it, beside DuckDB on the same files and a bare COPY of the same rows.
//!
//! `cargo bench --workspace --bench batch -- --help`. Servers are real, and so is DuckDB (a Python package, see `day.py`),
//! whose results every run's are held against: one that differs fails the bench.

mod days;
mod dirty_days;
mod disk;
mod figures;
mod machine;
mod process;
mod second_day;
mod watched;

use clap::Parser;
use days::{Day, Days};
use figures::Figures;
use sqlx::{AssertSqlSafe, Connection as _};
use std::time::Instant;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// So many bytes are sent at once.
const CHUNK: usize = 1 << 20;

/// Measures a day's computation and load, beside DuckDB and a bare COPY; or what is named instead, each with servers of
/// its own.
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
    /// Measure a day of as many records, of which one user, document, display and place has half each, beside the uniform
    /// one.
    #[arg(long)]
    skewed: bool,
    /// Measure a day of so many times the records, in the same memory, beside the usual one.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    scale: Option<u64>,
    /// Measure what runs cost and read where all of so many days, one or none are dirty; the records are spread over them.
    #[arg(long, value_parser = clap::value_parser!(u64).range(2..=17))]
    days: Option<u64>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    println!("{}", machine::described().await);
    println!(
        "{} records of a day (seed {}), {} MiB; median (min to max) of {} runs",
        args.rows, args.seed, args.memory, args.runs
    );
    if !args.skewed && args.scale.is_none() && args.days.is_none() {
        compare(&args).await?;
    }
    if args.skewed {
        println!("a skewed day beside a uniform one:");
        second_day::measure(&args, Day { number: 1, rows: args.rows, skewed: true }).await?;
    }
    if let Some(scale) = args.scale {
        println!("a day of {scale} times the records:");
        second_day::measure(&args, Day { number: 1, rows: args.rows * scale, skewed: false }).await?;
    }
    if let Some(count) = args.days {
        println!("the records over {count} days:");
        dirty_days::measure(&args, count).await?;
    }
    Ok(())
}

/// Measures a day's computation and load beside DuckDB and a bare COPY.
async fn compare(args: &Args) -> anyhow::Result<()> {
    let mut days = Days::start(args).await?;
    let day = Day { number: 0, rows: args.rows, skewed: false };
    days.bring(day).await?;
    let mut figures = Figures::default();
    for round in 1..=args.runs {
        let reference = days.reference(day).await?;
        days.renew(round);
        let run = days.run(&["run"], 1).await?;
        let rows = days.check(day, &reference).await?;
        let bare = bare_copy(&days, day).await?;
        println!(
            "  run {round}: computed {:.1} s ({:.1} CPU-s, {:.0} MB), loaded {rows} rows in {:.1} s; DuckDB {} {:.1} s \
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
            ("computed, s", run.computed, 2),
            ("CPU-s of the whole run", run.cpu, 2),
            ("peak memory, MB", run.peak, 0),
            ("DuckDB, s", reference.seconds, 2),
            ("computed / DuckDB", run.computed / reference.seconds, 2),
            ("rows loaded per s", rows as f64 / run.loaded, 0),
            ("rows of a bare COPY per s", rows as f64 / bare, 0),
            ("loaded / bare COPY", bare / run.loaded, 2),
        ];
        all.into_iter().for_each(|(name, figure, digits)| figures.add(name, figure, digits));
    }
    figures.print();
    Ok(())
}

/// The seconds that the same cells take as rows of one cell each, into tables without an index, one after the other, on one
/// connection. Frozen, each in the transaction that made its table, as the batch layer loads them.
async fn bare_copy(days: &Days, day: Day) -> anyhow::Result<f64> {
    let (mut connection, mut seconds) = (days.connect().await?, 0.0);
    for (metric, table) in days.tables(&mut connection, day).await? {
        let mut rows = Vec::new();
        let cells = days.cells(&metric, &table)?;
        let out = format!("copy (select * from {cells}) to stdout (format binary)");
        let mut stream = connection.copy_out_raw(&out).await?;
        while let Some(chunk) = futures::TryStreamExt::try_next(&mut stream).await? {
            rows.extend_from_slice(&chunk);
        }
        drop(stream);
        let mut transaction = connection.begin().await?;
        let create = format!("create table bare as select * from {cells} with no data");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
        let begun = Instant::now();
        let mut sink = transaction.copy_in_raw("copy bare from stdin (format binary, freeze)").await?;
        for chunk in rows.chunks(CHUNK) {
            sink.send(chunk).await?;
        }
        sink.finish().await?;
        transaction.commit().await?;
        seconds += begun.elapsed().as_secs_f64();
        sqlx::raw_sql("drop table bare").execute(&mut connection).await?;
    }
    Ok(seconds)
}
