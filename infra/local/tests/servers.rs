//! The three servers for real: they come up, answer, keep their data over kill -9 and over a new session, and
//! die with their owner.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use local::install::{Found, Installing, Need, ensure};
use local::redis_client;
use local::servers::{
    Kafka, KafkaOptions, Postgres, PostgresOptions, Redis, RedisCluster, RedisOptions, scratch,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Message, Timestamp};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use redis::AsyncCommands;
use sqlx::{Connection, PgConnection};

fn find(which: &[Need]) -> Found {
    ensure(which, Installing::Yes, &mut |line| eprintln!("{line}")).expect("found or installed")
}

fn alive(pid: u32) -> bool {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("not 0");
    rustix::process::test_kill_process(pid).is_ok()
}

/// Services and tests start servers inside spawned tasks, too.
fn is_send<T: Send>(future: T) -> T {
    future
}

async fn produce(kafka: &Kafka, topic: &str, payload: &str) {
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().expect("a producer");
    let record = FutureRecord::<(), str>::to(topic).partition(0).payload(payload).timestamp(1);
    producer.send(record, Duration::from_secs(20)).await.expect("delivered");
}

fn consume(kafka: &Kafka, topic: &str, offset: i64) -> (String, Timestamp) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("group.id", "test")
        .set("auto.offset.reset", "error")
        .create()
        .expect("a consumer");
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Offset(offset)).expect("added");
    consumer.assign(&from).expect("assigned");
    let message = consumer.poll(Duration::from_secs(20)).expect("in time").expect("a record");
    let payload = String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned();
    (payload, message.timestamp())
}

#[tokio::test]
async fn kafka_stamps_appends_and_keeps_records_over_kill_and_session() {
    let found = find(&[Need::Kafka]);
    let dir = scratch().unwrap();
    let started = std::time::Instant::now();
    let mut kafka = is_send(Kafka::start(&found, dir.path(), KafkaOptions::default())).await.unwrap();
    eprintln!("kafka took {:?}, with formatting {:?}", kafka.start_took(), started.elapsed());
    assert!(kafka.create_topic("t", 2, &[("segment.bytes", "1048576")]).await.unwrap());
    assert!(!kafka.create_topic("t", 2, &[]).await.unwrap(), "it is there");
    let refused = kafka.create_topic("u", 1, &[("no.such", "1")]).await.unwrap_err().to_string();
    assert!(refused.contains('u'), "{refused}");
    produce(&kafka, "t", "one").await;
    let (payload, timestamp) = consume(&kafka, "t", 0);
    assert_eq!(payload, "one");
    assert!(matches!(timestamp, Timestamp::LogAppendTime(at) if at > 1), "{timestamp:?}");

    let bootstrap = kafka.bootstrap();
    kafka.kill();
    assert_eq!(kafka.pid(), None);
    is_send(kafka.restart()).await.unwrap();
    eprintln!("kafka took {:?} after kill -9", kafka.start_took());
    assert_eq!(kafka.bootstrap(), bootstrap);
    assert_eq!(consume(&kafka, "t", 0).0, "one");
    produce(&kafka, "t", "two").await;

    let started = std::time::Instant::now();
    kafka.stop().await;
    eprintln!("kafka took {:?} to stop", started.elapsed());
    drop(kafka);
    let kafka = Kafka::start(&found, dir.path(), KafkaOptions::default()).await.unwrap();
    eprintln!("kafka took {:?} on other ports", kafka.start_took());
    assert_eq!(consume(&kafka, "t", 1).0, "two");
}

#[tokio::test]
async fn redis_keeps_keys_over_kill_and_session() {
    let found = find(&[Need::Redis]);
    let dir = scratch().unwrap();
    let options = RedisOptions { appendonly: true, ..RedisOptions::default() };
    let mut redis = is_send(Redis::start(&found, dir.path(), options.clone())).await.unwrap();
    eprintln!("redis took {:?}", redis.start_took());
    let connect = async |url: String| {
        redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
    };
    let mut connection = connect(redis.url()).await;
    let () = connection.set("k", 1).await.unwrap();

    let url = redis.url();
    redis.kill();
    is_send(redis.restart()).await.unwrap();
    eprintln!("redis took {:?} after kill -9", redis.start_took());
    assert_eq!(redis.url(), url);
    let mut connection = connect(url).await;
    assert_eq!(connection.get::<_, i64>("k").await.unwrap(), 1);
    let policy: (String, String) =
        redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").query_async(&mut connection).await.unwrap();
    assert_eq!(policy.1, "noeviction");

    redis.stop().await;
    drop(redis);
    let redis = Redis::start(&found, dir.path(), options).await.unwrap();
    assert_eq!(connect(redis.url()).await.get::<_, i64>("k").await.unwrap(), 1);
    let refused = Redis::start(&found, dir.path(), RedisOptions::default()).await.unwrap_err().to_string();
    assert!(refused.contains("in use by another session"), "{refused}");
}

#[tokio::test]
async fn a_redis_cluster_serves_all_slots() {
    let found = find(&[Need::Redis]);
    let dir = scratch().unwrap();
    let options = RedisOptions { appendonly: true, ..RedisOptions::default() };
    let started = std::time::Instant::now();
    let mut cluster = is_send(RedisCluster::start(&found, dir.path(), options)).await.unwrap();
    eprintln!("redis cluster took {:?}", started.elapsed());
    let urls: Vec<String> = cluster.nodes().iter().map(Redis::url).collect();
    let mut connection = redis_client::connect(&urls.join(",")).await.unwrap();
    for key in 0..100 {
        let () = connection.set(key, key).await.unwrap();
    }
    let keys: Vec<String> = connection.keys("*").await.unwrap();
    assert_eq!(keys.len(), 100, "those of all masters");
    cluster.nodes_mut()[1].kill();
    cluster.nodes_mut()[1].restart().await.unwrap();
    cluster.wait_until_whole().await.unwrap();
    let (mut node, is_of_a_cluster) = redis_client::connect_one(&urls[1]).await.unwrap();
    assert!(is_of_a_cluster);
    let keys: i64 = redis::cmd("DBSIZE").query_async(&mut node).await.unwrap();
    assert!((1..100).contains(&keys), "a part of the keys, kept: {keys}");
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let found = find(&[Need::Redis]);
    let dir = scratch().unwrap();
    let options = RedisOptions { settings: vec![("no-such".into(), "1".into())], ..RedisOptions::default() };
    let message = Redis::start(&found, dir.path(), options).await.unwrap_err().to_string();
    assert!(message.contains("redis ended at start") && message.contains("no-such"), "{message}");
}

#[tokio::test]
async fn postgres_keeps_rows_over_kill_and_session() {
    let found = find(&[Need::Postgres]);
    let dir = scratch().unwrap();
    let started = std::time::Instant::now();
    let mut postgres =
        is_send(Postgres::start(&found, dir.path(), PostgresOptions::default())).await.unwrap();
    eprintln!("postgres took {:?}, with initdb {:?}", postgres.start_took(), started.elapsed());
    assert!(postgres.data().starts_with(dir.path().canonicalize().unwrap()));
    let url = is_send(postgres.create_database("metrics")).await.unwrap();
    assert_eq!(postgres.create_database("metrics").await.unwrap(), url);
    assert!(postgres.create_database("a\"b").await.is_err());
    // Left open and busy, so that the killed server has children to lose.
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("create table t (x int); insert into t values (1)").execute(&mut connection).await.unwrap();

    postgres.kill();
    is_send(postgres.restart()).await.unwrap();
    eprintln!("postgres took {:?} after kill -9", postgres.start_took());
    let read = async |url: &str| -> i32 {
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::query_scalar("select x from t").fetch_one(&mut connection).await.unwrap()
    };
    assert_eq!(read(&url).await, 1);

    postgres.stop().await;
    drop(postgres);
    let options = PostgresOptions { unsafe_fast: true, ..PostgresOptions::default() };
    let postgres = Postgres::start(&found, dir.path(), options).await.unwrap();
    assert_eq!(read(&postgres.database_url("metrics")).await, 1);
}

#[tokio::test]
async fn postgres_data_goes_where_its_user_can_enter() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: postgres runs as this user, whose folders it can enter");
        return;
    }
    let found = find(&[Need::Postgres]);
    // As root's home: nobody else may enter.
    let dir = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o700)).tempdir().unwrap();
    let options = PostgresOptions { unsafe_fast: true, ..PostgresOptions::default() };
    let postgres = Postgres::start(&found, dir.path(), options).await.unwrap();
    let data = postgres.data().to_owned();
    assert!(data.starts_with("/var/tmp"), "{}", data.display());
    PgConnection::connect(&postgres.url()).await.unwrap();
    drop(postgres);
    std::fs::remove_dir_all(data).unwrap();
}

/// Runs the ignored test `owner` in a process of its own, kills that with -9 once its servers run, and looks
/// that they end too, and that a new session can have their folders.
#[tokio::test]
async fn servers_die_with_a_killed_owner() {
    let found = find(&[Need::Redis, Need::Postgres]);
    let dir = scratch().unwrap();
    let pids = dir.path().join("pids");
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner", "--ignored", "--nocapture"])
        .env("OWNER_DIR", dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let text = tokio::time::timeout(Duration::from_secs(60), written(&pids)).await.unwrap();
    let pids: Vec<u32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| alive(*pid)));
    owner.kill().unwrap();
    owner.wait().unwrap();
    let (redis, postgres) = (dir.path().join("redis"), dir.path().join("postgres"));
    Redis::start(&found, &redis, RedisOptions::default()).await.unwrap();
    Postgres::start(&found, &postgres, PostgresOptions::default()).await.unwrap();
    assert!(pids.iter().all(|pid| ended(*pid)));
}

/// Ended, or at most waiting for an init that doesn't reap.
fn ended(pid: u32) -> bool {
    !alive(pid)
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

async fn written(path: &Path) -> String {
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
#[ignore = "the part of the owner that servers_die_with_a_killed_owner kills"]
async fn owner() {
    let Some(dir) = std::env::var_os("OWNER_DIR") else { return };
    let dir = Path::new(&dir);
    let found = find(&[Need::Redis, Need::Postgres]);
    let redis = Redis::start(&found, &dir.join("redis"), RedisOptions::default()).await.unwrap();
    let postgres = Postgres::start(&found, &dir.join("postgres"), PostgresOptions::default()).await.unwrap();
    let pids = format!("{} {}", redis.pid().unwrap(), postgres.pid().unwrap());
    std::fs::write(dir.join("pids.part"), pids).unwrap();
    std::fs::rename(dir.join("pids.part"), dir.join("pids")).unwrap();
    std::future::pending::<()>().await;
}
