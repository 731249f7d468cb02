//! What can be asked of the simulator on the command line. Parsing only: no I/O, no clock.

use clap::{Args as ClapArgs, Parser, Subcommand};
use shared_model::secret::Secret;
use shared_model::time::Millis;
use std::path::PathBuf;

/// Events for Tidemark, Outbrain's and others: prepared from files, replayed into Kafka, or generated.
#[derive(Debug, Parser)]
#[command(name = "simulator", version, max_term_width = 110)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The three things that it does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make deterministic data, as CSV files or straight into Kafka
    ///
    /// Outbrain-shaped page views and clicks, or with --data site the page views of a web site. With --out it writes
    /// page_views.csv and events.csv in Outbrain's layout, or site_views.csv (\N for NULL), in delivery order; with
    /// --kafka it sends the records to the topics page_views and events, or site_views. The same options and seed give
    /// the same records. Memory stays below 100 MB whatever the count.
    #[command(verbatim_doc_comment)]
    Generate(GenerateArgs),
    /// Turn CSV files of any size into sorted Parquet, partitioned by platform and event day
    ///
    /// Reads page_views.csv and events.csv of Outbrain, or the files of any other stream of the catalog: the header
    /// names the declared fields, in any order. NULL is \N; an empty cell is empty text, or NULL for other types.
    /// One line is one record. Plain or gzip; files and folders, on this machine or by URL: s3://, gs://, az://,
    /// https://, file:// (endpoint and credentials from the environment, AWS_... and so on).
    ///
    /// Writes OUT/STREAM/platform=P/event_date=D/part-N.parquet (Zstd, sorted by event time; without
    /// platform= where the stream has no such field; NULL is platform=__HIVE_DEFAULT_PARTITION__) and
    /// OUT/STREAM/rejects.csv with file, line, reason and text of each line that is no row. The result replaces an
    /// earlier one as a whole. The disk of OUT (where that is a URL, --temp-dir) must hold the sorted rows twice for a
    /// while, about the size of the plain CSV each. Objects can't be replaced as a whole: while they are, and if that
    /// is interrupted, OUT/STREAM/_preparing lies beside them, and replay refuses them.
    #[command(verbatim_doc_comment)]
    Prepare(PrepareArgs),
    /// Send prepared files, or CSV directly, to Kafka in event-time order across streams
    ///
    /// All streams and platforms are merged at once. Open at a time are the files of one event day, with about 10 MB
    /// each (by URL and one row group as it is stored: 131,072 rows or 32 MB at the most), beside 64 MB that wait for
    /// Kafka. CSV is sorted on disk first, within --memory. Told to stop, it sends no more, waits for what is under
    /// way, and says how many records were acknowledged. A broker that goes away is waited for. Messages are keyed by
    /// the stream's message key (uuid), the value is JSON of the declared fields, the header act_prod_time holds the
    /// time of sending in ms.
    #[command(verbatim_doc_comment)]
    Replay(ReplayArgs),
}

/// Where the definitions are.
#[derive(Debug, Clone, ClapArgs)]
pub struct CatalogArgs {
    /// The catalog (TOML) that declares the streams; without it the shipped one of Outbrain's streams
    #[arg(long, env = "TIDEMARK_CATALOG")]
    pub catalog: Option<PathBuf>,
}

/// How much may be used, and where.
#[derive(Debug, Clone, ClapArgs)]
pub struct LimitArgs {
    /// Memory that the sorting stays within (at least 64MB)
    #[arg(long, default_value = "512MB", value_parser = memory)]
    pub memory: usize,
    /// Threads; without it one for each processor
    #[arg(long)]
    pub threads: Option<usize>,
    /// Where is sorted what has no place on this machine; without it the system's folder for temporary files
    #[arg(long)]
    pub temp_dir: Option<PathBuf>,
}

/// Arguments of `prepare`.
#[derive(Debug, ClapArgs)]
pub struct PrepareArgs {
    /// Files, folders or URLs of CSV; STREAM=FILE where the file's name doesn't begin with the stream's
    #[arg(required = true, value_name = "[STREAM=]INPUT")]
    pub inputs: Vec<String>,
    /// The folder for the results, or its URL
    #[arg(long)]
    pub out: String,
    /// The streams.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Memory and threads.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Arguments of `replay`.
#[derive(Debug, ClapArgs)]
pub struct ReplayArgs {
    /// Folders that `prepare` wrote, .parquet files, or .csv and .csv.gz files, as paths or URLs; STREAM=INPUT where
    /// neither the file's name nor a folder's tells the stream
    #[arg(required = true, value_name = "[STREAM=]INPUT")]
    pub inputs: Vec<String>,
    /// Only these platforms (comma-separated; \N is NULL)
    #[arg(long, value_delimiter = ',')]
    pub platform: Vec<String>,
    /// Only event times from here on
    #[arg(long, value_parser = time)]
    pub start: Option<Millis>,
    /// Only event times before this
    #[arg(long, value_parser = time)]
    pub end: Option<Millis>,
    /// Begin again at the end, until stopped. The rounds are equal, so to Tidemark they are repeats of the first
    #[arg(long = "loop")]
    pub again: bool,
    /// Where the records go.
    #[command(flatten)]
    pub kafka: KafkaArgs,
    /// How fast.
    #[command(flatten)]
    pub pace: PaceArgs,
    /// The streams.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// For sorting CSV.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Arguments of `generate`.
#[derive(Debug, ClapArgs)]
pub struct GenerateArgs {
    /// Shape and rates.
    #[command(flatten)]
    pub options: crate::generate::Options,
    /// Seed: another seed, other data
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// End at the present instead of beginning at --start: for live streams, such as the site's
    #[arg(long, conflicts_with = "start")]
    pub until_now: bool,
    /// Write the streams' CSV files into this folder
    #[arg(long, required_unless_present = "kafka")]
    pub out: Option<PathBuf>,
    /// Where the records go, instead of files.
    #[command(flatten)]
    pub kafka: KafkaArgs,
    /// Speed of the sending.
    #[command(flatten)]
    pub pace: PaceArgs,
}

/// Kafka as a target.
#[derive(Debug, Clone, ClapArgs)]
pub struct KafkaArgs {
    /// Bootstrap servers of Kafka (host:port, comma-separated)
    #[arg(long, env = "TIDEMARK_KAFKA")]
    pub kafka: Option<String>,
    /// librdkafka properties, for TLS, SASL or tuning: K=V;K=V, or one a line of a file, @/path; may be repeated
    #[arg(
        long = "kafka-property",
        value_name = "K=V",
        env = "TIDEMARK_KAFKA_PROPERTIES",
        hide_env_values = true
    )]
    pub properties: Vec<Secret>,
    /// Create topics that are missing, with so many partitions and LogAppendTime (one replica)
    #[arg(long, value_name = "PARTITIONS")]
    pub create_topics: Option<i32>,
}

/// How fast records go out.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub struct PaceArgs {
    /// So many times the speed of event time (1 is real time), or `max`
    #[arg(long, default_value = "max", value_parser = speed)]
    pub speed: Speed,
    /// At most so many records per second
    #[arg(long)]
    pub rate: Option<f64>,
}

/// A speed relative to event time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    /// As fast as it goes.
    Max,
    /// Times real time.
    Times(f64),
}

/// A moment: RFC 3339, or a bare date (its midnight UTC).
pub fn time(text: &str) -> Result<Millis, String> {
    let date =
        || Some(text.parse::<chrono::NaiveDate>().ok()?.and_hms_opt(0, 0, 0)?.and_utc().timestamp_millis());
    match chrono::DateTime::parse_from_rfc3339(text) {
        Ok(moment) => Ok(moment.timestamp_millis()),
        Err(_) => {
            date().ok_or_else(|| format!("{text:?} is no time; write 2016-06-14T04:00:00Z or 2016-06-14"))
        }
    }
}

/// A span such as `90s` or `2d`, in ms.
pub fn duration(text: &str) -> Result<Millis, String> {
    let span = humantime::parse_duration(text)
        .map_err(|error| format!("{text:?}: {error}; write 90s, 30m or 2d"))?;
    Millis::try_from(span.as_millis()).map_err(|_| format!("{text:?} is too long"))
}

/// A share between 0 and 1.
pub fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("{text:?} is no share; write a number from 0 to 1")),
    }
}

/// A number of bytes such as `512MB` or `2GiB`.
pub fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: usize = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" | "k" => 1_000,
        "kib" => 1 << 10,
        "mb" | "m" => 1_000_000,
        "mib" => 1 << 20,
        "gb" | "g" => 1_000_000_000,
        "gib" => 1 << 30,
        _ => return Err(format!("{text:?} is no size; write 512MB or 2GiB")),
    };
    let number = digits.trim().parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
    number.ok_or_else(|| format!("{text:?} is no size; write 512MB or 2GiB"))
}

fn memory(text: &str) -> Result<usize, String> {
    match bytes(text)? {
        enough if enough >= 64_000_000 => Ok(enough),
        _ => Err(format!("{text:?} is too little to sort in; give 64MB or more")),
    }
}

fn speed(text: &str) -> Result<Speed, String> {
    match text.trim_end_matches('x').parse::<f64>() {
        _ if text == "max" => Ok(Speed::Max),
        Ok(times) if times > 0.0 && times.is_finite() => Ok(Speed::Times(times)),
        _ => Err(format!("{text:?} is no speed; write a number above 0 such as 60, or max")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_its_defaults_are_the_librarys() {
        use clap::CommandFactory;
        Args::command().debug_assert();
        let args = Args::parse_from(["simulator", "generate", "--out", "x"]);
        let Command::Generate(generate) = args.command else { panic!("another command") };
        assert_eq!(generate.options, crate::generate::Options::default());
    }

    #[test]
    fn values_are_read_or_refused_with_a_remedy() {
        assert_eq!(time("2016-06-14T04:00:00Z"), Ok(1_465_876_800_000));
        assert_eq!(time("2016-06-14"), Ok(1_465_862_400_000));
        assert!(time("yesterday").is_err_and(|error| error.contains("write 2016")));
        assert_eq!(bytes("512MB"), Ok(512_000_000));
        assert_eq!(bytes("1GiB"), Ok(1 << 30));
        assert!(bytes("12 parsecs").is_err());
        assert!(bytes("99999999999999GB").is_err());
        assert_eq!(speed("max"), Ok(Speed::Max));
        assert_eq!(speed("60x"), Ok(Speed::Times(60.0)));
        assert!(speed("0").is_err() && speed("NaN").is_err() && share("1.1").is_err());
    }
}
