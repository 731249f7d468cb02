//! A Postgres server on loopback.
//!
//! Invariant: it never runs as root. When we are root it runs as an unprivileged user, with its data where that
//! user can reach it. Only 127.0.0.1 can connect, without a password; there is no unix socket.

use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, Connection, Executor};
use xxhash_rust::xxh3::xxh3_64;

use super::{Kind, Seat};
use crate::install::{Found, PostgresAt};
use crate::process::{Folder, Program, User, last_lines};

/// The superuser that owns everything in it.
const OWNER: &str = "tidemark";

/// How Postgres is started.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    /// Doesn't force writes to disk: faster, still whole after a kill of the server, but not after a crash of
    /// the machine.
    pub unsafe_fast: bool,
    /// More settings, as in postgresql.conf: name and value. They win over ours.
    pub settings: Vec<(String, String)>,
    /// Variables of the process, beside those that it inherits.
    pub environment: Vec<(String, String)>,
}

/// A running Postgres; ended when dropped.
#[derive(Debug)]
pub struct Postgres {
    seat: Seat<Cluster, 1>,
}

impl Postgres {
    /// Starts a server on a free port, and waits until it answers. Its data lies in `folder`, or, when we are
    /// root and the unprivileged user can't enter that, in a folder under /var/tmp that stays the same for the
    /// same `folder` (see [`Postgres::data`]).
    ///
    /// # Errors
    /// When the folder is in use, there is no unprivileged user, or the server doesn't come up: with the end of
    /// its log.
    pub async fn start(found: &Found, folder: &Path, options: PostgresOptions) -> anyhow::Result<Postgres> {
        let at = found.postgres.clone().context("postgres was not asked for when servers were looked for")?;
        let folder = Folder::claim(folder)?;
        let user = if rustix::process::geteuid().is_root() { Some(unprivileged()?) } else { None };
        let data = data_folder(folder.path(), user)?;
        let seat = Seat::start(folder, Cluster { at, options, user, data }).await?;
        Ok(Postgres { seat })
    }

    /// The address of its database `postgres`.
    pub fn url(&self) -> String {
        self.database_url("postgres")
    }

    /// The address of one of its databases.
    pub fn database_url(&self, name: &str) -> String {
        format!("postgres://{OWNER}@127.0.0.1:{}/{name}?sslmode=disable", self.port())
    }

    /// Makes a database, unless it is there, and returns its address.
    ///
    /// # Errors
    /// When the name isn't made of lower-case letters, digits and underscores, or the server refuses.
    pub async fn create_database(&self, name: &str) -> anyhow::Result<String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        ensure!(
            !name.is_empty() && name.chars().all(plain),
            "database name {name:?} has more than a-z, 0-9 and _"
        );
        let mut connection = connect(self.port()).await?;
        let there: Option<i32> = sqlx::query_scalar("select 1 from pg_database where datname = $1")
            .bind(name)
            .fetch_optional(&mut connection)
            .await?;
        if there.is_none() {
            // The name was checked above; it can't be bound as a parameter.
            connection.execute(AssertSqlSafe(format!("create database \"{name}\""))).await?;
        }
        Ok(self.database_url(name))
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.seat.ports()[0]
    }

    /// Where its data lies.
    pub fn data(&self) -> &Path {
        &self.seat.kind.data
    }

    /// The process id of the postmaster, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.seat.pid()
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        self.seat.log()
    }

    /// How long the last start took until it answered, without the making of a new cluster.
    pub fn start_took(&self) -> Duration {
        self.seat.took
    }

    /// Ends it as its operator would; sessions are ended.
    pub async fn stop(&mut self) {
        self.seat.stop().await;
    }

    /// `kill -9` of the postmaster; its children notice and end.
    pub fn kill(&mut self) {
        self.seat.kill();
    }

    /// Starts it again on the same port and data; a running one is stopped first.
    ///
    /// # Errors
    /// When it doesn't come up: with the end of its log.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.seat.restart().await
    }
}

/// The user to be instead of root: `postgres` where packages have made it, else `nobody`.
fn unprivileged() -> anyhow::Result<User> {
    let passwd = std::fs::read_to_string("/etc/passwd").context("can't read /etc/passwd")?;
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| user_in(&passwd, name))
        .context("postgres refuses to run as root, and there is no user postgres or nobody to run it as")
}

fn user_in(passwd: &str, name: &str) -> Option<User> {
    let mut fields =
        passwd.lines().map(|line| line.split(':')).find(|fields| fields.clone().next() == Some(name))?;
    let user = User { uid: fields.nth(2)?.parse().ok()?, gid: fields.next()?.parse().ok()? };
    (user.uid != 0).then_some(user)
}

/// `folder/data`, or, if the user can't enter `folder`, one under /var/tmp that is named after it.
fn data_folder(folder: &Path, user: Option<User>) -> anyhow::Result<PathBuf> {
    let Some(user) = user else { return Ok(folder.join("data")) };
    let enters = Command::new("test")
        .arg("-x")
        .arg(folder)
        .current_dir("/")
        .uid(user.uid)
        .gid(user.gid)
        .status()
        .context("can't run test as the user for postgres")?;
    if enters.success() {
        return Ok(folder.join("data"));
    }
    let hash = xxh3_64(folder.as_os_str().as_encoded_bytes());
    let elsewhere = PathBuf::from(format!("/var/tmp/tidemark-{}-{hash:016x}", user.uid));
    tracing::info!(
        data = %elsewhere.display(),
        folder = %folder.display(),
        "the user that postgres runs as can't enter the folder; its data is kept elsewhere"
    );
    Ok(elsewhere)
}

/// Makes the database cluster, unless it is there. One that a killed session left half made is made anew.
fn make_cluster(
    at: &PostgresAt,
    data: &Path,
    user: Option<User>,
    options: &PostgresOptions,
) -> anyhow::Result<()> {
    let whole = data.join("tidemark-made");
    if whole.is_file() {
        return Ok(());
    }
    let here = || data.display();
    if data.join("PG_VERSION").is_file() || data.join("base").is_dir() {
        // Ours: the folder is locked, its place is ours alone, and it never was used.
        std::fs::remove_dir_all(data).with_context(|| format!("can't remove the unfinished {}", here()))?;
    }
    std::fs::create_dir_all(data).with_context(|| format!("can't make {}", here()))?;
    std::fs::set_permissions(data, PermissionsExt::from_mode(0o700))?;
    let mut initdb = Command::new(at.bin.join("initdb"));
    initdb.arg("-D").arg(data).args(["-U", OWNER, "--auth=trust", "--encoding=UTF8", "--locale=C"]);
    // All that we keep is in UTC; and looking for the machine's own zone would take initdb seconds.
    initdb.env("TZ", "UTC");
    if options.unsafe_fast {
        initdb.arg("--no-sync");
    }
    if let Some(user) = user {
        chown(data, Some(user.uid), Some(user.gid)).with_context(|| format!("can't give away {}", here()))?;
        initdb.uid(user.uid).gid(user.gid);
    }
    let output = initdb.current_dir("/").stdin(Stdio::null()).output().context("can't run initdb")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        bail!("initdb failed in {} ({}):\n{}", here(), output.status, last_lines(&text, 15));
    }
    std::fs::write(&whole, "initdb has finished here\n").with_context(|| format!("can't write in {}", here()))
}

fn arguments(data: &Path, port: u16, options: &PostgresOptions) -> Vec<OsString> {
    let port = port.to_string();
    let mut settings = vec![
        ("listen_addresses", "127.0.0.1"),
        ("port", port.as_str()),
        // Its path could be longer than sockets allow, and nobody needs one.
        ("unix_socket_directories", ""),
        ("max_connections", "200"),
        ("logging_collector", "off"),
    ];
    if options.unsafe_fast {
        settings.extend([("fsync", "off"), ("full_page_writes", "off")]);
    }
    settings.extend(options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let mut arguments = vec!["-D".into(), data.as_os_str().to_owned()];
    arguments
        .extend(settings.iter().flat_map(|(name, value)| ["-c".into(), format!("{name}={value}").into()]));
    arguments
}

async fn connect(port: u16) -> sqlx::Result<PgConnection> {
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .username(OWNER)
        .database("postgres")
        .ssl_mode(PgSslMode::Disable);
    PgConnection::connect_with(&options).await
}

/// A database cluster: one server's data.
#[derive(Debug)]
struct Cluster {
    at: PostgresAt,
    options: PostgresOptions,
    user: Option<User>,
    data: PathBuf,
}

impl Kind<1> for Cluster {
    const NAME: &'static str = "postgres";

    fn prepare(&mut self, folder: &Path, [port]: [u16; 1]) -> anyhow::Result<Program> {
        make_cluster(&self.at, &self.data, self.user, &self.options)?;
        Ok(Program {
            name: Self::NAME,
            command: self.at.bin.join("postgres"),
            args: arguments(&self.data, port, &self.options),
            environment: self.options.environment.clone(),
            user: self.user,
            log: folder.join("postgres.log"),
            // INT: a fast shutdown, which ends sessions. QUIT: at once, its own children included.
            stop: Signal::INT,
            orphaned: "QUIT",
        })
    }

    /// When a query is answered by the server on our data.
    async fn answers(&self, [port]: [u16; 1], _pid: i32) -> anyhow::Result<()> {
        let mut connection = connect(port).await?;
        let data: String = sqlx::query_scalar("show data_directory").fetch_one(&mut connection).await?;
        ensure!(Path::new(&data) == self.data, "another postgres answers on port {port}");
        connection.close().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_a_passwd_file() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104:,,,:/var:/bin/bash\nnobody:*:-2:-2::/:/\n";
        assert_eq!(user_in(passwd, "postgres"), Some(User { uid: 101, gid: 104 }));
        for name in ["root", "nobody", "other", ""] {
            assert_eq!(user_in(passwd, name), None, "{name}");
        }
    }

    #[test]
    fn the_callers_settings_come_last() {
        let options = PostgresOptions {
            unsafe_fast: true,
            settings: vec![("fsync".into(), "on".into())],
            ..PostgresOptions::default()
        };
        let arguments = arguments(Path::new("/d"), 5, &options);
        assert_eq!(arguments.last(), Some(&OsString::from("fsync=on")));
        assert!(arguments.contains(&OsString::from("port=5")));
    }
}
