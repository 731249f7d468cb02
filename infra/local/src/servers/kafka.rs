//! A real Apache Kafka on loopback: one KRaft node, broker and controller in one process, which further brokers may
//! join.
//!
//! Invariant: records are stamped with the time of appending (`LogAppendTime`) unless the caller says
//! otherwise, topics exist only when made, and nothing expires by age.

mod classes;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaErrorCode;
use rustix::process::Signal;
use tokio::net::TcpStream;

use super::{GRACE, Kind, LOOK_EVERY, Seat};
use crate::install::{Found, KafkaAt};
use crate::process::{Folder, Program, last_lines};
use classes::Classes;

/// How Kafka is started.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// The broker's heap, MB.
    pub heap_mb: u32,
    /// Starts sooner and takes less memory, at the cost of top speed: for tests and small stacks.
    pub quick: bool,
    /// More server properties: name and value. They win over ours.
    pub properties: Vec<(String, String)>,
    /// Variables of the process, beside those that it inherits.
    pub environment: Vec<(String, String)>,
}

impl Default for KafkaOptions {
    fn default() -> KafkaOptions {
        KafkaOptions { heap_mb: 512, quick: true, properties: Vec::new(), environment: Vec::new() }
    }
}

/// A running Kafka; ended when dropped.
#[derive(Debug)]
pub struct Kafka {
    seat: Seat<Node, 2>,
}

impl Kafka {
    /// Starts a broker with its data in `folder` on free ports, and waits until it answers.
    ///
    /// # Errors
    /// When the folder is in use, or the broker doesn't come up: with the end of its log.
    pub async fn start(found: &Found, folder: &Path, options: KafkaOptions) -> anyhow::Result<Kafka> {
        Kafka::start_node(found, folder, options, None).await
    }

    /// Starts a further broker of this one's cluster, under an id from 2 on; this one stays the controller.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub async fn join(
        &self,
        found: &Found,
        folder: &Path,
        id: u32,
        options: KafkaOptions,
    ) -> anyhow::Result<Kafka> {
        let [_, controller] = self.seat.ports();
        let member = Member { id, cluster: self.seat.kind.cluster.clone(), controller };
        Kafka::start_node(found, folder, options, Some(member)).await
    }

    async fn start_node(
        found: &Found,
        folder: &Path,
        options: KafkaOptions,
        joins: Option<Member>,
    ) -> anyhow::Result<Kafka> {
        let at = found.kafka.clone().context("kafka was not asked for when servers were looked for")?;
        let classes = classes::archived(&at).await;
        let node = Node { at, options, joins, classes, cluster: String::new() };
        Ok(Kafka { seat: Seat::start(Folder::claim(folder)?, node).await? })
    }

    /// What clients need: `127.0.0.1:port`.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// The broker's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.seat.ports()[0]
    }

    /// Makes a topic and waits until each partition has a leader. False if it was there already, and is left as
    /// it was.
    ///
    /// # Errors
    /// When the broker refuses or doesn't answer.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> anyhow::Result<bool> {
        let admin: AdminClient<DefaultClientContext> =
            client(self.port()).create().context("can't make an admin client")?;
        let topic = configs
            .iter()
            .fold(NewTopic::new(name, partitions, TopicReplication::Fixed(1)), |topic, (key, value)| {
                topic.set(key, value)
            });
        let results =
            admin.create_topics([&topic], &AdminOptions::new().operation_timeout(Some(GRACE))).await?;
        match results.into_iter().next() {
            Some(Ok(_)) => {}
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => return Ok(false),
            Some(Err((_, code))) => bail!("the broker refuses topic {name}: {code}"),
            None => bail!("the broker says nothing about topic {name}"),
        }
        let name = name.to_owned();
        tokio::task::spawn_blocking(move || wait_for_leaders(&admin, &name, partitions)).await??;
        Ok(true)
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.seat.pid()
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        self.seat.log()
    }

    /// How long the last start took until it answered, without the formatting of new storage.
    pub fn start_took(&self) -> Duration {
        self.seat.took
    }

    /// Ends it as its operator would.
    pub async fn stop(&mut self) {
        self.seat.stop().await;
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.seat.kill();
    }

    /// Starts it again on the same ports and data; a running one is stopped first.
    ///
    /// # Errors
    /// When it doesn't come up: with the end of its log.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.seat.restart().await
    }
}

const LOG4J: &str = "\
status = error
appender.c.type = Console
appender.c.name = C
appender.c.target = SYSTEM_ERR
appender.c.layout.type = PatternLayout
appender.c.layout.pattern = %d %p %c{1} %m%n
rootLogger.level = info
rootLogger.appenderRef.c.ref = C
";

fn java_arguments(at: &KafkaAt, home: &Path, options: &KafkaOptions, classes: &Classes) -> Vec<OsString> {
    let mut arguments = vec![format!("-Xmx{}m", options.heap_mb).into()];
    arguments.extend(classes.argument());
    if options.quick {
        arguments.extend(["-XX:TieredStopAtLevel=1".into(), "-XX:+UseSerialGC".into()]);
    } else {
        arguments.extend(["-XX:+UseG1GC".into(), "-XX:MaxGCPauseMillis=20".into()]);
    }
    arguments.extend(common_arguments(at, home));
    arguments.extend(["kafka.Kafka".into(), home.join("server.properties").into()]);
    arguments
}

fn common_arguments(at: &KafkaAt, home: &Path) -> [OsString; 5] {
    let joined = |start: &str, path: PathBuf| {
        let mut argument = OsString::from(start);
        argument.push(path);
        argument
    };
    [
        "-Xshare:auto".into(),
        "-Djava.awt.headless=true".into(),
        joined("-Dlog4j2.configurationFile=", home.join("log4j2.properties")),
        "-cp".into(),
        at.jars.join("*").into(),
    ]
}

fn properties(
    home: &Path,
    [broker, controller]: [u16; 2],
    options: &KafkaOptions,
    joins: Option<&Member>,
) -> String {
    let data = home.join("data");
    let data = data.to_string_lossy();
    let advertised = format!("PLAINTEXT://127.0.0.1:{broker}");
    let (roles, id, listeners, controller) = match joins {
        None => {
            let listeners = format!("{advertised},CONTROLLER://127.0.0.1:{controller}");
            ("broker,controller", 1, listeners, controller)
        }
        Some(member) => ("broker", member.id, advertised.clone(), member.controller),
    };
    let (id, voters) = (id.to_string(), format!("1@127.0.0.1:{controller}"));
    let ours = [
        ("process.roles", roles),
        ("node.id", &id),
        // Static voters: their address isn't kept in the storage, so ports may change from session to session.
        ("controller.quorum.voters", &voters),
        ("listeners", &listeners),
        ("advertised.listeners", &advertised),
        ("inter.broker.listener.name", "PLAINTEXT"),
        ("controller.listener.names", "CONTROLLER"),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"),
        ("log.dirs", &data),
        ("log.message.timestamp.type", "LogAppendTime"),
        ("log.retention.hours", "-1"),
        ("auto.create.topics.enable", "false"),
        ("num.partitions", "1"),
        ("group.initial.rebalance.delay.ms", "0"),
        // Down from 6 s: tests kill workers, and wait for as long as a session lasts.
        ("group.min.session.timeout.ms", "1000"),
        // A killed broker may register again only when its session has ended: by default after 9 s.
        ("broker.session.timeout.ms", "3000"),
        ("broker.heartbeat.interval.ms", "500"),
        ("offsets.topic.replication.factor", "1"),
        ("offsets.topic.num.partitions", "4"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("transaction.state.log.num.partitions", "4"),
        ("share.coordinator.state.topic.replication.factor", "1"),
        ("share.coordinator.state.topic.min.isr", "1"),
    ];
    let mut all: BTreeMap<&str, &str> = ours.into_iter().collect();
    all.extend(options.properties.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    // In the Java properties format a backslash escapes.
    all.iter().map(|(name, value)| format!("{name}={}\n", value.replace('\\', "\\\\"))).collect()
}

/// Formats the storage, unless it is, and returns its cluster id: that of the cluster that it joins, or a new one.
fn format_storage(
    at: &KafkaAt,
    home: &Path,
    joins: Option<&Member>,
    classes: &Classes,
) -> anyhow::Result<String> {
    let meta = home.join("data/meta.properties");
    if let Ok(text) = std::fs::read_to_string(&meta) {
        return cluster_in(&text).with_context(|| format!("no cluster.id in {}", meta.display()));
    }
    let cluster = joins.map_or_else(new_cluster_id, |member| member.cluster.clone());
    let output = Command::new(&at.java.java)
        .args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
        .args(classes.argument_of_tool())
        .args(common_arguments(at, home))
        .args(["kafka.tools.StorageTool", "format", "-t", &cluster, "-c"])
        .arg(home.join("server.properties"))
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run {}", at.java.java.display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        bail!(
            "can't format Kafka's storage in {} ({}):\n{}",
            home.display(),
            output.status,
            last_lines(&text, 15)
        );
    }
    Ok(cluster)
}

fn cluster_in(meta: &str) -> Option<String> {
    meta.lines().find_map(|line| line.strip_prefix("cluster.id=")).map(|id| id.trim().to_owned())
}

/// A random id as Kafka writes its own: 16 bytes in base64 (22 characters, of which the last holds but two bits).
fn new_cluster_id() -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let random = RandomState::new();
    let letter = |place: u64| {
        let index = random.hash_one((place, std::process::id())) % LETTERS.len() as u64;
        char::from(LETTERS[usize::try_from(index).unwrap_or(0)])
    };
    (0..21).map(letter).chain(['A']).collect()
}

fn client(port: u16) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", format!("127.0.0.1:{port}"));
    // Refused connections while a broker starts are no news.
    config.set_log_level(RDKafkaLogLevel::Emerg);
    config
}

fn wait_for_leaders(
    admin: &AdminClient<DefaultClientContext>,
    topic: &str,
    partitions: i32,
) -> anyhow::Result<()> {
    let deadline = std::time::Instant::now() + GRACE;
    loop {
        let metadata = admin.inner().fetch_metadata(Some(topic), Duration::from_secs(5))?;
        let led = |topic: &rdkafka::metadata::MetadataTopic| {
            topic.partitions().iter().filter(|partition| partition.leader() >= 0).count()
        };
        if metadata.topics().first().map_or(0, led) == usize::try_from(partitions)? {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < deadline, "topic {topic} has partitions without a leader");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A broker's place in a cluster of which another node is the controller.
#[derive(Debug)]
struct Member {
    id: u32,
    cluster: String,
    /// The controller's port.
    controller: u16,
}

/// One node: broker and controller, or, where it joins a cluster, a broker alone.
#[derive(Debug)]
struct Node {
    at: KafkaAt,
    options: KafkaOptions,
    joins: Option<Member>,
    classes: Classes,
    /// The id of the cluster that its storage was formatted for.
    cluster: String,
}

impl Kind<2> for Node {
    const NAME: &'static str = "kafka";

    fn prepare(&mut self, folder: &Path, ports: [u16; 2]) -> anyhow::Result<Program> {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
        };
        write("log4j2.properties", LOG4J)?;
        write("server.properties", &properties(folder, ports, &self.options, self.joins.as_ref()))?;
        self.cluster = format_storage(&self.at, folder, self.joins.as_ref(), &self.classes)?;
        Ok(Program {
            name: Self::NAME,
            command: self.at.java.java.clone(),
            args: java_arguments(&self.at, folder, &self.options, &self.classes),
            environment: self.options.environment.clone(),
            user: None,
            log: folder.join("kafka.log"),
            stop: Signal::TERM,
            orphaned: "KILL",
        })
    }

    /// When a client's metadata names this broker, of our cluster: then it is unfenced and serves.
    async fn answers(&self, [port, _]: [u16; 2], _pid: i32) -> anyhow::Result<()> {
        // A client that is refused would wait longer before its next try than we want to.
        drop(TcpStream::connect(("127.0.0.1", port)).await?);
        let cluster = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client(port).create()?;
            let metadata = consumer.fetch_metadata(None, Duration::from_secs(2))?;
            let named = metadata.brokers().iter().any(|broker| broker.port() == i32::from(port));
            ensure!(named, "the broker is still fenced");
            consumer
                .client()
                .fetch_cluster_id(Duration::from_secs(2))
                .context("no cluster id in the metadata")
        })
        .await??;
        ensure!(cluster == self.cluster, "another broker answers on port {port}: of cluster {cluster}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_properties_win() {
        let options = KafkaOptions {
            properties: vec![("num.partitions".into(), "7".into()), ("x".into(), "a\\b".into())],
            ..KafkaOptions::default()
        };
        let text = properties(Path::new("/home"), [1, 2], &options, None);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.contains(&"num.partitions=7") && !lines.contains(&"num.partitions=1"));
        assert!(lines.contains(&"x=a\\\\b"));
        assert!(lines.contains(&"controller.quorum.voters=1@127.0.0.1:2"));
        let member = Member { id: 2, cluster: "c".into(), controller: 7 };
        let text = properties(Path::new("/home"), [1, 2], &options, Some(&member));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.contains(&"node.id=2") && lines.contains(&"listeners=PLAINTEXT://127.0.0.1:1"));
        assert!(lines.contains(&"controller.quorum.voters=1@127.0.0.1:7"));
    }

    #[test]
    fn cluster_ids() {
        let id = new_cluster_id();
        assert_eq!(id.len(), 22);
        assert_ne!(id, new_cluster_id());
        assert_eq!(cluster_in("#x\nversion=1\ncluster.id=abc\nnode.id=1\n").as_deref(), Some("abc"));
        assert_eq!(cluster_in("version=1\n"), None);
    }
}
