//! Servers that are reached by TLS alone, with certificates of our own authority, on real servers: a Redis Cluster that
//! wants a password and a client's certificate.

use local::install::{self, Installing, Need};
use local::layers::Layer;
use local::servers::{RedisCluster, RedisOptions, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use simulator::generate::{Delivery, Generator, Options};
use std::path::{Path, PathBuf};
use tidemark_tests::stack::{Stack, free_port};
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");

/// Writes an authority's certificate, and one of 127.0.0.1 that it has signed with its key, as PEM files.
fn certificates(folder: &Path) -> Tls {
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("a PEM file");
        path
    };
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "an authority of the tests");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key"));
    let authority = authority.expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let mut certificate = CertificateParams::new(names).expect("names");
    certificate.distinguished_name.push(DnType::CommonName, "tidemark");
    let certificate = certificate.signed_by(&key, &authority);
    Tls {
        ca: write("ca.pem", &authority.pem()),
        cert: write("cert.pem", &certificate.expect("a certificate").pem()),
        key: write("key.pem", &key.serialize_pem()),
        clients_too: true,
    }
}

fn set(environment: &mut Vec<(String, String)>, name: &str, path: &Path) {
    environment.push((name.to_owned(), path.display().to_string()));
}

/// What a speed worker says on /readyz, once that names Redis.
async fn says_of_redis(speed: &Layer) -> String {
    wait_for("the worker saying what is wrong with redis", async || {
        assert_eq!(speed.exited(), None, "the worker ended:\n{}", speed.logged());
        let log = speed.logged();
        let (_, url) = log.rsplit_once("listening on ").ok_or("not listening")?;
        let url = format!("{}/readyz", url.split_whitespace().next().unwrap_or_default());
        let answer = reqwest::get(&url).await.map_err(|error| error.to_string())?;
        let text = answer.text().await.map_err(|error| error.to_string())?;
        if text.contains("waiting for redis") { Ok(text) } else { Err(text) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_cluster_by_tls_with_password_and_client_certificates_answers_completely() {
    let mut stack = Stack::start(LAYERS, 2).await;
    let found = tokio::task::spawn_blocking(|| install::ensure(&[Need::Redis], Installing::Yes, &mut |_| {}));
    let found = found.await.expect("the search").expect("redis");
    let folder = local::servers::scratch().expect("a folder");
    let tls = certificates(folder.path());
    let (ca, cert, key) = (tls.ca.clone(), tls.cert.clone(), tls.key.clone());
    let password = Some("open-sesame".to_owned());
    let options = RedisOptions { tls: Some(tls), password, ..RedisOptions::default() };
    let cluster =
        RedisCluster::start(&found, &folder.path().join("cluster"), options).await.expect("a cluster");
    let urls = cluster.urls();
    stack.batch(&["run"]).await;

    // Neither the authority nor a certificate of one's own may be missing, and the password must be right.
    let wrong = urls[0].replace("open-sesame", "open-barley");
    let whole = [("TIDEMARK_REDIS_CA", &ca), ("TIDEMARK_REDIS_CERT", &cert), ("TIDEMARK_REDIS_KEY", &key)];
    let cases: [(&[(&str, &PathBuf)], &str, &str); 3] = [
        (&whole[1..], &urls[0], "UnknownIssuer"),
        (&whole[..1], &urls[0], "CertificateRequired"),
        (&whole, &wrong, "Password authentication failed"),
    ];
    for (given, url, why) in cases {
        stack.environment.clear();
        given.iter().for_each(|(name, path)| set(&mut stack.environment, name, path));
        stack.probe.redis = url.to_owned();
        let speed = stack.speed();
        let said = says_of_redis(&speed).await;
        assert!(said.contains(why), "{why}: {said}");
        assert!(!said.contains("open-"), "a secret is told: {said}");
        assert_eq!(speed.stop().await, 0);
    }

    stack.environment.clear();
    whole.iter().for_each(|(name, path)| set(&mut stack.environment, name, path));
    // Any node will do, and one that is not there is passed over.
    let gone = format!("rediss://:open-sesame@127.0.0.1:{}", free_port());
    stack.probe.redis = format!("{gone},{}", urls.join(","));
    let speed = stack.speed();
    let (_process, serving) = stack.serving().await;
    let options = Options { records: 3_000, span: 3_600_000, near_repeats: 0.05, ..Options::default() };
    let all: Vec<Delivery> = Generator::new(options, 26).collect();
    let (first, second) = all.split_at(all.len() / 2);
    for part in [first, second] {
        stack.send(part);
        let oracle = stack.oracle();
        stack.becomes(&serving, &oracle, "in realtime").await;
        stack.batch(&["run"]).await;
        stack.becomes(&serving, &oracle, "after the run").await;
    }
    let verify = stack.process("speed-layer", &["verify"], &["catalog", "kafka", "redis"]);
    assert_eq!(verify.ended().await, 0, "{}", verify.logged());
    assert_eq!(speed.stop().await, 0, "the speed layer stops cleanly");
}
