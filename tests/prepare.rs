//! Preparing as a real process that is stopped, killed, or out of disk: nothing half-written looks whole.

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use local::layers::Layer;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use tidemark_tests::simulator::{Simulator, number, the_error};
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const HEADER: &str = "uuid,document_id,timestamp,platform,geo_location,traffic_source\n";

fn rows(count: u64) -> String {
    (0..count).map(|at| format!("user-{},{at},{at},{},US>CA>807,1\n", at % 977, at % 3)).collect()
}

struct Place {
    folder: tempfile::TempDir,
    simulator: Simulator,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a folder");
        let simulator = Simulator::new(LAYERS, folder.path(), Vec::new());
        Place { folder, simulator }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A file of so many page views; gives its path.
    fn views(&self, name: &str, count: u64) -> String {
        std::fs::write(self.path(name), format!("{HEADER}{}", rows(count))).expect("written");
        self.path(name)
    }

    async fn prepare(&self, input: &str) -> String {
        self.simulator.run(&["prepare", input, "--out", &self.path("out"), "--memory", "64MB"]).await
    }

    /// Every file below the output folder with its length, hidden ones too.
    fn output(&self) -> BTreeMap<PathBuf, u64> {
        let (mut files, mut folders) = (BTreeMap::new(), vec![PathBuf::from(self.path("out"))]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.insert(path.clone(), path.metadata().expect("a file").len());
                }
            }
        }
        files
    }

    /// A preparation that has read a part of its input and waits for more from the pipe's other end.
    fn halfway(&self) -> (Layer, File) {
        let pipe = self.path("page_views_pipe.csv");
        let _ = std::fs::remove_file(&pipe);
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
        let process =
            self.simulator.start(&["prepare", &pipe, "--out", &self.path("out"), "--memory", "64MB"]);
        // Opening waits for the reader.
        let mut input = File::options().write(true).open(&pipe).expect("the pipe");
        input.write_all(HEADER.as_bytes()).expect("read on the other end");
        // More than the pipe holds: some of it has been read.
        input.write_all(rows(20_000).as_bytes()).expect("read on the other end");
        (process, input)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_or_killed_the_old_result_stays_and_the_next_one_is_whole() {
    let place = Place::new();
    place.prepare(&place.views("page_views.csv", 500)).await;
    let old = place.output();
    assert!(old.len() >= 5, "{old:?}");

    let (process, mut input) = place.halfway();
    let again = ["prepare", &place.path("page_views.csv"), "--out", &place.path("out")];
    let busy = place.simulator.fails(&again).await;
    assert!(busy.contains("another preparation of page_views works in"), "{busy}");
    process.signal_stop();
    // It looks at the signal between two pieces of input, so it gets pieces until it is gone.
    while input.write_all(rows(1_000).as_bytes()).is_ok() {}
    let code = process.ended().await;
    let error = the_error(code, &process.logged());
    assert!(error.contains("stopped before the end") && error.contains("untouched"), "{error}");
    assert_eq!(place.output(), old, "after SIGTERM");

    let (mut process, _input) = place.halfway();
    process.kill();
    let left = place.output();
    assert!(old.iter().all(|(path, length)| left.get(path) == Some(length)), "after kill -9: {left:?}");

    let said = place.prepare(&place.views("page_views.csv", 700)).await;
    assert_eq!((number(&said, "lines"), number(&said, "rows")), (700.0, 700.0), "{said}");
    assert_eq!(place.output().len(), old.len(), "nothing of the killed one is left");
}

/// A limit on the size of files stands for a full disk: writes fail at any place, with the system's own error.
#[test]
fn a_full_disk_is_said_in_a_line_and_the_old_result_stays() {
    let place = Place::new();
    let prepare = |blocks: &str, input: &str| {
        let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        let out = place.path("out");
        let command = [LAYERS, "simulator", "prepare", input, "--out", &out, "--memory", "64MB"];
        let done = Command::new("sh").args(["-c", &limited, "sh"]).args(command).output().expect("sh");
        (done.status.code().unwrap_or(-1), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let (code, said) = prepare("unlimited", &place.views("page_views.csv", 500));
    assert_eq!(code, 0, "{said}");
    let old = place.output();
    // Sorted runs, then the rejects, don't find room.
    let rejects = format!("{HEADER}{}", "not,a,row\n".repeat(200_000));
    std::fs::write(place.path("page_views_bad.csv"), rejects).expect("written");
    for (input, what) in [
        (place.views("page_views.csv", 200_000), "cannot write sorted runs to"),
        (place.path("page_views_bad.csv"), "cannot write to rejects.csv"),
    ] {
        let (code, said) = prepare("1000", &input);
        let error = the_error(code, &said);
        assert!(error.contains(what) && error.contains("File too large"), "{error}");
        assert_eq!(place.output(), old, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_files_get_their_names_when_they_are_whole() {
    let place = Place::new();
    let out = place.path("out");
    let process = place.simulator.start(&["generate", "--records", "1000000000", "--out", &out]);
    wait_for("a file in the making", async || match std::fs::read_dir(&out).map(Iterator::count) {
        Ok(2) => Ok(()),
        other => Err(format!("{other:?}\n{}", process.logged())),
    })
    .await;
    process.signal_stop();
    let code = process.ended().await;
    let error = the_error(code, &process.logged());
    assert!(error.contains("stopped before the end; nothing was written"), "{error}");
    assert!(place.output().is_empty(), "{:?}", place.output());
}

/// A web server with one file, whatever path it is asked for.
async fn web(file: Vec<u8>) -> String {
    let answer = async move |headers: HeaderMap| {
        let range = headers
            .get("range")
            .and_then(|range| range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-'));
        let Some((start, end)) = range else { return file.into_response() };
        let (start, end): (usize, usize) = (start.parse().expect("a start"), end.parse().expect("an end"));
        let place = format!("bytes {start}-{end}/{}", file.len());
        (StatusCode::PARTIAL_CONTENT, [("content-range", place)], file[start..=end].to_vec()).into_response()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let router = Router::new().route("/{*path}", get(answer));
    tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_on_the_web_is_read_like_one_on_this_machine() {
    let place = Place::new();
    // Several pieces of it are fetched.
    let file = std::fs::read(place.views("page_views.csv", 200_000)).expect("written");
    assert!(file.len() > 5_000_000, "{} bytes", file.len());
    let url = web(file).await;
    place.prepare(&place.path("page_views.csv")).await;
    let local = place.output();
    let said = place.prepare(&format!("{url}/dir/page_views.csv")).await;
    assert_eq!((number(&said, "lines"), number(&said, "rows")), (200_000.0, 200_000.0), "{said}");
    assert_eq!(place.output(), local);
}
