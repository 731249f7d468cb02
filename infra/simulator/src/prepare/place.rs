//! Where things are put: the job's folders, the partitions' numbers, the rejects.
//!
//! All is made in a hidden folder beside the result and takes the result's place by renaming, so a reader sees the
//! old files or the new, and a job that died leaves only a hidden folder that the next one removes.

use super::csv::Place;
use super::row;
use super::write::hive_value;
use anyhow::{Context, ensure};
use shared_model::event::FieldType;
use shared_model::time::EventDay;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The folder of one job.
pub(super) struct Workshop {
    hidden: PathBuf,
    /// Where the old result waits to be removed.
    old: PathBuf,
    target: PathBuf,
    /// Held while the job runs; the system frees it however the process ends.
    _lock: File,
}

impl Workshop {
    /// Makes the folder of a job that prepares `<out>/<stream>`.
    pub(super) fn open(out: &Path, stream: &str) -> anyhow::Result<Workshop> {
        fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
        let path = out.join(format!(".{stream}.lock"));
        let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        lock.try_lock().map_err(|error| {
            anyhow::anyhow!("another preparation of {stream} works in {} ({error})", out.display())
        })?;
        let (hidden, old) = (out.join(format!(".{stream}.preparing")), out.join(format!(".{stream}.old")));
        let target = out.join(stream);
        if !target.exists() && old.exists() {
            // The last job died between its two renames.
            fs::rename(&old, &target).with_context(|| format!("cannot put back {}", target.display()))?;
        }
        for left in [&hidden, &old] {
            remove(left)?;
        }
        for folder in ["runs", "result"] {
            let folder = hidden.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(Workshop { hidden, old, target, _lock: lock })
    }

    /// For sorted runs.
    pub(super) fn runs(&self) -> PathBuf {
        self.hidden.join("runs")
    }

    /// For what becomes the result.
    pub(super) fn result(&self) -> PathBuf {
        self.hidden.join("result")
    }

    /// Puts the result in its place.
    pub(super) fn replace(&self) -> anyhow::Result<()> {
        let context = || format!("cannot put the result at {}", self.target.display());
        if self.target.exists() {
            fs::rename(&self.target, &self.old).with_context(context)?;
        }
        fs::rename(self.result(), &self.target).with_context(context)?;
        remove(&self.old)
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // What can't be removed now, the next job removes.
        let _ = remove(&self.hidden);
    }
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The numbers of the partitions, in the order in which they were first seen.
#[derive(Debug, Default)]
pub(super) struct Partitions(Mutex<Numbers>);

type Name = (Option<String>, EventDay);

#[derive(Debug, Default)]
struct Numbers {
    of: HashMap<Name, u32>,
    names: Vec<Name>,
}

/// More partitions than this are hostile or a wrong column, and would break the promise about memory.
const MOST_PARTITIONS: usize = 20_000;

impl Partitions {
    /// One thread's view of the numbers.
    pub(super) fn cache(&self) -> Known<'_> {
        Known { all: self, numbers: HashMap::new(), key: Vec::new(), last: None }
    }

    /// A partition's platform, as its folder is named, and its day.
    pub(super) fn name(&self, number: u32) -> Option<Name> {
        self.0.lock().ok()?.names.get(number as usize).cloned()
    }

    fn number(&self, name: Name) -> anyhow::Result<u32> {
        let mut numbers = self.0.lock().map_err(|_| anyhow::anyhow!("another thread has failed"))?;
        if let Some(&number) = numbers.of.get(&name) {
            return Ok(number);
        }
        let number = numbers.names.len();
        ensure!(
            number < MOST_PARTITIONS,
            "more than {MOST_PARTITIONS} partitions (platform and event day); are platform and event time the right \
             columns, and the stream's bounds set?"
        );
        numbers.names.push(name.clone());
        numbers.of.insert(name, number as u32);
        Ok(number as u32)
    }
}

/// The numbers that one thread has met.
pub(super) struct Known<'a> {
    all: &'a Partitions,
    numbers: HashMap<Vec<u8>, u32>,
    key: Vec<u8>,
    last: Option<(Vec<u8>, u32)>,
}

impl Known<'_> {
    /// The partition of a row.
    pub(super) fn of(
        &mut self,
        place: &Place,
        row: &[u8],
        platform: Option<FieldType>,
    ) -> anyhow::Result<u32> {
        let day = place.day();
        let cell = &row[place.platform.0..place.platform.1];
        self.key.clear();
        self.key.extend_from_slice(&day.0.to_le_bytes());
        self.key.extend_from_slice(cell);
        if let Some((last, number)) = &self.last
            && *last == self.key
        {
            return Ok(*number);
        }
        let number = match self.numbers.get(&self.key) {
            Some(&number) => number,
            None => {
                let mut bytes = cell;
                let platform = platform.and_then(|ty| row::take(&mut bytes, ty)).map(hive_value);
                let number = self.all.number((platform, day))?;
                self.numbers.insert(self.key.clone(), number);
                number
            }
        };
        let last = self.last.get_or_insert_default();
        last.0.clone_from(&self.key);
        last.1 = number;
        Ok(number)
    }
}

/// The lines that are no rows, with the reason.
pub(super) struct Rejects(Mutex<(::csv::Writer<BufWriter<File>>, u64)>);

impl Rejects {
    /// Begins the file with its header.
    pub(super) fn create(path: &Path) -> anyhow::Result<Rejects> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut writer = ::csv::Writer::from_writer(BufWriter::new(file));
        writer.write_record(["file", "line", "reason", "text"])?;
        Ok(Rejects(Mutex::new((writer, 0))))
    }

    /// Adds a line, its bytes as they are.
    pub(super) fn add(&self, file: &str, line: u64, reason: &str, text: &[u8]) -> anyhow::Result<()> {
        let mut rejects = self.0.lock().map_err(|_| anyhow::anyhow!("another thread has failed"))?;
        let number = line.to_string();
        let record = [file.as_bytes(), number.as_bytes(), reason.as_bytes(), text];
        rejects.0.write_record(record).context("cannot write to rejects.csv")?;
        rejects.1 += 1;
        Ok(())
    }

    /// Completes the file and says how many there are.
    pub(super) fn finish(self) -> anyhow::Result<u64> {
        let (mut writer, count) =
            self.0.into_inner().map_err(|_| anyhow::anyhow!("another thread has failed"))?;
        writer.flush().context("cannot write to rejects.csv")?;
        Ok(count)
    }
}
