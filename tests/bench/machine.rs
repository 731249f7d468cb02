//! What a bench runs on: the machine, and the versions of the servers and of the compiler.

use std::path::Path;
use std::process::Command;
use tidemark_tests::stack;

/// In two lines.
pub(crate) async fn described() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().unwrap_or_default().trim_start_matches("MemTotal:").trim().to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} x {}; {memory}; {}\n{}",
        model.trim_start_matches([' ', '\t', ':']),
        read("/proc/version").trim(),
        versions().await
    )
}

/// Those of the servers, whichever of them the bench starts, and of the compiler that is here.
async fn versions() -> String {
    let found = stack::found().await;
    let redis = found.redis.map(|at| said(&at.server));
    let postgres = found.postgres.map(|at| said(&at.bin.join("postgres")));
    let kafka = found.kafka.map(|at| {
        let java = at.java.version.lines().next().unwrap_or_default();
        format!(
            "Kafka {} on {java}",
            kafka_version(&at.jars).unwrap_or_else(|| "of unknown version".to_owned())
        )
    });
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let rustc = format!("{}, this a {profile} build", said(Path::new("rustc")));
    [redis, postgres, kafka, Some(rustc)].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// What a program says of its version, without its build.
fn said(program: &Path) -> String {
    let said = Command::new(program).arg("--version").output();
    let said = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
    let line = said.lines().next().unwrap_or_default().split(" sha=").next().unwrap_or_default().trim();
    if line.is_empty() { format!("{} of unknown version", program.display()) } else { line.to_owned() }
}

/// The version that the jars are named by.
fn kafka_version(jars: &Path) -> Option<String> {
    std::fs::read_dir(jars).ok()?.flatten().find_map(|jar| {
        let name = jar.file_name();
        let version = name.to_str()?.strip_prefix("kafka-clients-")?.strip_suffix(".jar")?;
        version.starts_with(|first: char| first.is_ascii_digit()).then(|| version.to_owned())
    })
}
