//! Faults of the machine for one process alone: small libraries in C that are loaded before its own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A clock that is wrong, and a disk that is full.
const SOURCES: [(&str, &str); 2] = [("clock", include_str!("clock.c")), ("disk", include_str!("disk.c"))];

/// Compiles one of them into a folder, with the C compiler that the build needs anyway.
///
/// # Panics
/// Where there is none.
fn compile(name: &str, folder: &Path) -> PathBuf {
    let (source, library) = (folder.join(format!("{name}.c")), folder.join(format!("{name}.so")));
    let (_, text) = SOURCES.iter().find(|(known, _)| *known == name).expect("a known library");
    std::fs::write(&source, text).expect("written");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
    let done = cc.output().expect("a C compiler");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    library
}

type Variables = Vec<(String, String)>;

fn variables<const N: usize>(named: [(&str, &Path); N]) -> Variables {
    named.map(|(name, path)| (name.to_owned(), path.display().to_string())).to_vec()
}

/// A clock that is wrong by what is set when a process starts.
pub struct WrongClock {
    file: PathBuf,
    library: PathBuf,
}

impl WrongClock {
    /// A clock that is right so far, with its files in a folder.
    pub fn new(folder: &Path) -> WrongClock {
        let clock = WrongClock { file: folder.join("clock"), library: compile("clock", folder) };
        clock.set(0);
        clock
    }

    /// What gives a process this clock.
    pub fn environment(&self) -> Variables {
        variables([("LD_PRELOAD", &self.library), ("TIDEMARK_TEST_CLOCK", &self.file)])
    }

    /// Makes it wrong by so many milliseconds, for processes that start from now on.
    pub fn set(&self, wrong_by: i64) {
        std::fs::write(&self.file, wrong_by.to_string()).expect("written");
    }
}

/// The disk below a folder, which can be full.
pub struct Disk {
    folder: PathBuf,
    full: PathBuf,
    library: PathBuf,
}

impl Disk {
    /// The disk of `folder`, with room. Its own files lie in `beside`.
    pub fn new(folder: &Path, beside: &Path) -> Disk {
        let name = folder.display().to_string().replace('/', "-");
        let full = beside.join(format!("full{name}"));
        Disk { folder: folder.to_owned(), full, library: compile("disk", beside) }
    }

    /// What has a process write to this disk.
    pub fn environment(&self) -> Variables {
        variables([
            ("LD_PRELOAD", &self.library),
            ("TIDEMARK_TEST_DISK", &self.folder),
            ("TIDEMARK_TEST_DISK_FULL", &self.full),
        ])
    }

    /// Leaves no room for one byte more.
    pub fn fill(&self) {
        std::fs::write(&self.full, "").expect("written");
    }

    /// Makes room again.
    pub fn clear(&self) {
        std::fs::remove_file(&self.full).expect("it was full");
    }
}
