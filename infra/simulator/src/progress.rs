//! Shows how far a long job has come: a bar at a terminal, a log line every few seconds otherwise.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Progress of one job, in bytes or records; may be shared by threads.
pub struct Progress {
    bar: ProgressBar,
    what: String,
    total: Option<u64>,
    done: AtomicU64,
    started: Instant,
    /// When the last log line was written; `None` where a bar is shown or nothing is wanted.
    logged: Option<Mutex<Instant>>,
    note: Mutex<String>,
}

const LOG_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// Nothing is shown.
    pub fn silent() -> Progress {
        Progress {
            bar: ProgressBar::hidden(),
            what: String::new(),
            total: None,
            done: AtomicU64::new(0),
            started: Instant::now(),
            logged: None,
            note: Mutex::default(),
        }
    }

    /// Bytes of `what`, of a total.
    pub fn of_bytes(what: &str, total: u64) -> Progress {
        Progress::shown(what, Some(total), "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}")
    }

    /// Records of `what`, of a total where it is known.
    pub fn of_records(what: &str, total: Option<u64>) -> Progress {
        let template = match total {
            Some(_) => "{msg} {bar:30} {human_pos}/{human_len} {per_sec}",
            None => "{msg} {spinner} {human_pos} {per_sec}",
        };
        Progress::shown(what, total, template)
    }

    fn shown(what: &str, total: Option<u64>, template: &str) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        let bar = match (terminal, total) {
            (false, _) => ProgressBar::hidden(),
            (true, Some(total)) => ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()),
            (true, None) => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        let started = Instant::now();
        let logged = (!terminal).then(|| Mutex::new(started));
        Progress {
            bar,
            what: what.to_owned(),
            total,
            done: AtomicU64::new(0),
            started,
            logged,
            note: Mutex::default(),
        }
    }

    /// So much more is done.
    pub fn advance(&self, amount: u64) {
        let done = self.done.fetch_add(amount, Ordering::Relaxed) + amount;
        self.bar.inc(amount);
        let Some(logged) = &self.logged else { return };
        if let Ok(mut last) = logged.try_lock()
            && last.elapsed() >= LOG_EVERY
        {
            *last = Instant::now();
            let per_second = (done as f64 / self.started.elapsed().as_secs_f64()) as u64;
            let note = self.note.lock().map(|note| note.clone()).unwrap_or_default();
            tracing::info!(what = self.what, done, total = self.total, per_second, note, "progress");
        }
    }

    /// Says where it stands, in words.
    pub fn note(&self, text: &str) {
        self.bar.set_message(format!("{} {text}", self.what));
        if let Ok(mut note) = self.note.lock() {
            text.clone_into(&mut note);
        }
    }

    /// How much is done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
