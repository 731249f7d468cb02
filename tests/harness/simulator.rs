//! The simulator as a user runs it: a process of its own, and what it said.

use crate::wait_for;
use local::layers::Layer;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Starts simulators.
pub struct Simulator {
    program: PathBuf,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    started: AtomicUsize,
}

impl Simulator {
    /// `program` is the binary that is re-executed; logs go to `folder`.
    pub fn new(program: &str, folder: &Path, environment: Vec<(String, String)>) -> Simulator {
        let (program, folder) = (program.into(), folder.to_owned());
        Simulator { program, folder, environment, started: AtomicUsize::new(0) }
    }

    /// Starts a command.
    ///
    /// # Panics
    /// When its process can't be started.
    pub fn start(&self, command: &[&str]) -> Layer {
        let arguments: Vec<String> = command.iter().map(|part| (*part).to_owned()).collect();
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.folder.join(format!("simulator-{number}.log"));
        Layer::start_in(&self.program, "simulator", &arguments, &self.environment, &log).expect("a process")
    }

    /// Runs a command to its end, and gives what it said.
    ///
    /// # Panics
    /// When it fails.
    pub async fn run(&self, command: &[&str]) -> String {
        let process = self.start(command);
        let code = process.ended().await;
        assert_eq!(code, 0, "simulator {command:?}:\n{}", process.logged());
        process.logged()
    }

    /// Runs a command that is to fail, and gives its error.
    ///
    /// # Panics
    /// When it doesn't.
    pub async fn fails(&self, command: &[&str]) -> String {
        let process = self.start(command);
        let code = process.ended().await;
        the_error(code, &process.logged())
    }
}

/// Waits until a running process has said something.
///
/// # Panics
/// When it ends without.
pub async fn says(process: &Layer, text: &str) {
    wait_for(text, async || {
        let (ended, said) = (process.exited(), process.logged());
        assert!(said.contains(text) || ended.is_none(), "ended with {ended:?}:\n{said}");
        if said.contains(text) { Ok(()) } else { Err(said) }
    })
    .await;
}

/// The one line by which a failed process says why.
///
/// # Panics
/// When it hasn't failed, or says it in more lines or before others.
pub fn the_error(code: i32, logged: &str) -> String {
    let errors: Vec<&str> = logged.lines().filter(|line| line.starts_with("error: ")).collect();
    let last = logged.lines().last().unwrap_or_default();
    assert!(code == 1 && errors == [last] && !logged.contains("panicked"), "ended with {code}:\n{logged}");
    last.to_owned()
}

/// The number that a log line gives a name.
///
/// # Panics
/// When none does.
pub fn number(logged: &str, name: &str) -> f64 {
    let mut words = logged.split_whitespace().rev();
    let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name}= in\n{logged}"))
}
