//! The whole path by TLS, with passwords and client certificates of an authority of our own, on real servers: Kafka, a
//! Redis Cluster of several nodes, and Postgres.

use local::layers::Layer;
use local::servers::{RedisOptions, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use simulator::generate::{Delivery, Generator, Options};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use tidemark_tests::redis_servers::Topology;
use tidemark_tests::stack::{SPEED, Servers, Stack, free_port, outbrain};
use tidemark_tests::wait_for;

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
/// What must not be told.
const PASSWORD: &str = "open-sesame";
const WRONG: &str = "open-barley";

/// Writes an authority's certificate, and one that it has signed, as PEM files: of the server at 127.0.0.1 and of the
/// client `tidemark`.
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
    let mut certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("names");
    certificate.distinguished_name.push(DnType::CommonName, "tidemark");
    let certificate = certificate.signed_by(&key, &authority);
    Tls {
        ca: write("ca.pem", &authority.pem()),
        cert: write("cert.pem", &certificate.expect("a certificate").pem()),
        key: write("key.pem", &key.serialize_pem()),
        clients_too: true,
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Gives Kafka one more listener, which wants a password and a client's certificate, and tells its address.
async fn secure_kafka(stack: &mut Stack, tls: &Tls) -> String {
    let address = format!("127.0.0.1:{}", free_port());
    let home = stack.kafka.log().parent().expect("its folder").to_owned();
    let both = home.join("both.pem");
    std::fs::write(&both, read(&tls.key) + &read(&tls.cert)).expect("a PEM file");
    let settings = home.join("server.properties");
    let more = |line: &str| match line.split_once('=') {
        Some(("listeners" | "advertised.listeners", _)) => format!("{line},SECURE://{address}\n"),
        Some(("listener.security.protocol.map", _)) => format!("{line},SECURE:SASL_SSL\n"),
        _ => format!("{line}\n"),
    };
    let mut text: String = read(&settings).lines().map(more).collect();
    text.push_str(&format!(
        "sasl.enabled.mechanisms=PLAIN\n\
         listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
         required user_tidemark=\"{PASSWORD}\";\n\
         listener.name.secure.ssl.client.auth=required\n\
         ssl.keystore.type=PEM\nssl.keystore.location={}\nssl.truststore.type=PEM\nssl.truststore.location={}\n",
        both.display(),
        tls.ca.display(),
    ));
    std::fs::write(&settings, text).expect("its settings");
    stack.kafka.restart().await.expect("kafka with one more listener");
    address
}

/// Lets Postgres admit clients by TLS with a certificate only, where they use TLS, and tells the database's URL
/// without that certificate.
async fn secure_postgres(stack: &Stack, tls: &Tls) -> String {
    let data = stack.postgres.data();
    let owner = std::fs::metadata(data).expect("its folder");
    let own = |name: &str, text: &str| {
        let path = data.join(name);
        std::fs::write(&path, text).expect("a file of postgres'");
        chown(&path, Some(owner.uid()), Some(owner.gid())).expect("its owner");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("its mode");
    };
    own("ca.pem", &read(&tls.ca));
    own("cert.pem", &read(&tls.cert));
    own("key.pem", &read(&tls.key));
    own("pg_hba.conf", "hostssl all all 127.0.0.1/32 cert\nhostnossl all all 127.0.0.1/32 trust\n");
    let pool = sqlx::PgPool::connect(&stack.database).await.expect("postgres");
    for statement in [
        "alter system set ssl_ca_file = 'ca.pem'",
        "alter system set ssl_cert_file = 'cert.pem'",
        "alter system set ssl_key_file = 'key.pem'",
        "alter system set ssl = 'on'",
        "select pg_reload_conf()",
    ] {
        sqlx::query(statement).execute(&pool).await.expect(statement);
    }
    let ca = tls.ca.display();
    format!(
        "postgres://tidemark@127.0.0.1:{}/tidemark?sslmode=verify-full&sslrootcert={ca}",
        stack.postgres.port()
    )
}

/// Variables of the layers' environment: a later one of a name stands for an earlier one, an empty one for none.
fn environment(whole: &[(&str, String)], changes: &[(&str, String)]) -> Vec<(String, String)> {
    let value = |(name, value): &(&str, String)| {
        let changed = changes.iter().find(|(other, _)| other == name).map(|(_, value)| value);
        ((*name).to_owned(), changed.unwrap_or(value).clone())
    };
    whole.iter().map(value).filter(|(_, value)| !value.is_empty()).collect()
}

fn speed(stack: &Stack) -> Layer {
    stack.process("speed-layer", &SPEED, &["catalog"])
}

/// Waits until a speed worker says on /readyz that it is not ready because of `why`, and tells no secret.
async fn says(speed: &Layer, why: &str) {
    let said = wait_for(&format!("the worker saying {why:?}"), async || {
        assert_eq!(speed.exited(), None, "the worker ended:\n{}", speed.logged());
        let log = speed.logged();
        let (_, url) = log.rsplit_once("listening on ").ok_or("not listening")?;
        let url = format!("{}/readyz", url.split_whitespace().next().unwrap_or_default());
        let answer = reqwest::get(&url).await.map_err(|error| error.to_string())?;
        let text = answer.text().await.map_err(|error| error.to_string())?;
        if text.contains(why) { Ok(text) } else { Err(text) }
    })
    .await;
    println!("{}", said.trim());
    let told = said + &speed.logged();
    assert!(!told.contains(PASSWORD) && !told.contains(WRONG), "a secret is told: {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_tls_with_passwords_and_client_certificates_answers_are_complete() {
    let folder = local::servers::scratch().expect("a folder");
    let tls = certificates(folder.path());
    let redis = RedisOptions {
        tls: Some(tls.clone()),
        password: Some(PASSWORD.to_owned()),
        ..RedisOptions::default()
    };
    let servers = Servers { redis, topology: Topology::Cluster, ..Servers::default() };
    let mut stack = Stack::with_servers(LAYERS, 2, &outbrain(), servers).await;
    let kafka = secure_kafka(&mut stack, &tls).await;
    let postgres = secure_postgres(&stack, &tls).await;
    let [ca, cert, key] = [&tls.ca, &tls.cert, &tls.key].map(|path| path.display().to_string());

    // Of the cluster any node will do, and one that is not there is passed over.
    let gone = format!("rediss://:{PASSWORD}@127.0.0.1:{}", free_port());
    let redis = format!("{gone},{}", stack.redis.url());
    let properties = format!(
        "security.protocol=SASL_SSL;ssl.ca.location={ca};sasl.mechanism=PLAIN;sasl.username=tidemark"
    );
    let shown = format!("ssl.certificate.location={cert};ssl.key.location={key}");
    let whole = [
        ("TIDEMARK_REDIS", redis.clone()),
        ("TIDEMARK_REDIS_CA", ca),
        ("TIDEMARK_REDIS_CERT", cert.clone()),
        ("TIDEMARK_REDIS_KEY", key.clone()),
        ("TIDEMARK_POSTGRES", format!("{postgres}&sslcert={cert}&sslkey={key}")),
        ("TIDEMARK_KAFKA", kafka),
        ("TIDEMARK_KAFKA_PROPERTIES", format!("{properties};sasl.password={PASSWORD};{shown}")),
    ];
    stack.environment = environment(&whole, &[]);
    let batch = async |stack: &Stack| {
        let run = stack.process("batch-layer", &["run"], &["catalog", "archive"]);
        assert_eq!(run.ended().await, 0, "{}", run.logged());
        run.logged()
    };
    batch(&stack).await;

    // What is missing or wrong is said.
    let none = String::new;
    let cases: [(&[(&str, String)], &str); 6] = [
        (&[("TIDEMARK_REDIS_CA", none())], "UnknownIssuer"),
        (&[("TIDEMARK_REDIS_CERT", none()), ("TIDEMARK_REDIS_KEY", none())], "CertificateRequired"),
        (&[("TIDEMARK_REDIS", redis.replace(PASSWORD, WRONG))], "Password authentication failed"),
        (&[("TIDEMARK_POSTGRES", postgres)], "requires a valid client certificate"),
        (
            &[("TIDEMARK_KAFKA_PROPERTIES", format!("{properties};sasl.password={WRONG};{shown}"))],
            "Authentication failed",
        ),
        (&[("TIDEMARK_KAFKA_PROPERTIES", format!("{properties};sasl.password={PASSWORD}"))], "certificate"),
    ];
    // Each worker tries again and again, meanwhile the others do.
    let mut workers = Vec::new();
    for (at, (changes, _)) in cases.iter().enumerate() {
        stack.environment = environment(&whole, changes);
        workers.push(stack.process_named("speed-layer", &format!("speed-layer-{at}"), &SPEED, &["catalog"]));
    }
    for (speed, (changes, why)) in workers.into_iter().zip(cases) {
        says(&speed, why).await;
        assert_eq!(speed.stop().await, 0);
        // Redis is for the batch layer's audit alone, which stops no run.
        if changes.iter().all(|(name, _)| !name.starts_with("TIDEMARK_REDIS")) {
            stack.environment = environment(&whole, changes);
            let run = stack.process("batch-layer", &["run"], &["catalog", "archive"]);
            assert_ne!(run.ended().await, 0, "a run without {why}");
            let said = run.logged();
            assert!(said.contains(why), "{why}: {said}");
            assert!(!said.contains(PASSWORD) && !said.contains(WRONG), "a secret is told: {said}");
        }
    }

    stack.environment = environment(&whole, &[]);
    let speed = speed(&stack);
    (stack.probe.redis, stack.database) = (redis, whole[4].1.clone());
    let (_process, serving) = stack.serving().await;
    let options = Options { records: 3_000, span: 3_600_000, near_repeats: 0.05, ..Options::default() };
    let all: Vec<Delivery> = Generator::new(options, 26).collect();
    let (first, second) = all.split_at(all.len() / 2);
    for part in [first, second] {
        stack.send(part);
        let oracle = stack.oracle();
        stack.becomes(&serving, &oracle, "in realtime").await;
        let audited = batch(&stack).await;
        assert!(audited.contains("unexplained error 0.000000"), "{audited}");
        stack.becomes(&serving, &oracle, "after the run").await;
    }
    let verify = stack.process("speed-layer", &["verify"], &["catalog"]);
    assert_eq!(verify.ended().await, 0, "{}", verify.logged());
    assert_eq!(speed.stop().await, 0, "the speed layer stops cleanly");
}
