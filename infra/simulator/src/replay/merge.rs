//! Merges the rows of many sorted files into one sequence in event-time order, across streams and platforms.
//!
//! A file is opened only when the sequence has come to its event day, so what is open at once is about one day's
//! files. Rows of one time come in the order of streams, then paths.

use super::rows::{Record, Rows};
use super::source::{Filter, SourceFile};
use anyhow::ensure;
use shared_model::time::{Millis, show};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The merged rows of prepared Parquet files.
pub struct Merged {
    /// Not opened yet, the earliest last.
    waiting: Vec<(usize, SourceFile)>,
    open: Vec<Option<Rows>>,
    heads: BinaryHeap<Reverse<(Millis, usize)>>,
    filter: Filter,
    last: Millis,
}

impl Merged {
    /// Of files in their order.
    pub fn new(files: &[SourceFile], filter: &Filter) -> Merged {
        let wanted = files.iter().filter(|file| filter.may_take(file)).cloned();
        let mut waiting: Vec<(usize, SourceFile)> = wanted.enumerate().collect();
        let open = waiting.iter().map(|_| None).collect();
        waiting.sort_by_key(|(at, file)| Reverse((file.not_before(), *at)));
        Merged { waiting, open, heads: BinaryHeap::new(), filter: filter.clone(), last: Millis::MIN }
    }

    /// Writes the next row into `record`; false at the end.
    pub fn next(&mut self, record: &mut Record) -> anyhow::Result<bool> {
        self.open_due()?;
        let Some(Reverse((time, at))) = self.heads.pop() else { return Ok(false) };
        let Some(rows) = &mut self.open[at] else { return Ok(false) };
        ensure!(
            time >= self.last,
            "a file of a later event day holds a row of {}; are files in the wrong event_date= folder?",
            show(time)
        );
        self.last = time;
        rows.render(record);
        if rows.advance()? {
            let time = rows.time();
            self.heads.push(Reverse((time, at)));
        } else {
            self.open[at] = None;
        }
        Ok(true)
    }

    /// How many files are open.
    pub fn open_files(&self) -> usize {
        self.heads.len()
    }

    fn open_due(&mut self) -> anyhow::Result<()> {
        loop {
            let head = self.heads.peek().map(|Reverse((time, _))| *time);
            let due = |(_, file): &mut (usize, SourceFile)| head.is_none_or(|head| file.not_before() <= head);
            let Some((at, file)) = self.waiting.pop_if(due) else { return Ok(()) };
            if let Some(rows) = Rows::open(&file, &self.filter)? {
                self.heads.push(Reverse((rows.time(), at)));
                self.open[at] = Some(rows);
            }
        }
    }
}
