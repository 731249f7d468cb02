//! Installing Debian packages without letting them start anything.
//!
//! Invariant: while packages are configured, `policy-rc.d` forbids service starts and postgresql-common is told
//! to make no cluster; both settings are afterwards as they were, or, if new, as the packages ship them.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Missing;
use super::find::OLDEST_REDIS;
use crate::process::last_lines;

/// How long other programs' locks are waited for.
const LOCKED: Duration = Duration::from_secs(300);
const LISTS_LOCKED: &str = "Could not get lock /var/lib/apt/lists/lock";
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &str =
    "#!/bin/sh\n# Written by tidemark while it installs packages; can be removed.\nexit 101\n";
const CLUSTERS: &str = "/etc/postgresql-common/createcluster.conf";
const CLUSTERS_SHIPPED: &str = "/usr/share/postgresql-common/createcluster.conf";
const CLUSTERS_LINE: &str = "create_main_cluster = false # by tidemark while it installs packages\n";

/// Installs packages for what is missing. Needs root.
pub(super) fn install(missing: &[Missing], say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    // A list that can't be had, of a source that has nothing of ours, is no reason to give up.
    if let Err(error) = run(&["update", "-q"], say) {
        say(&format!("{error:#}\n  going on with the package lists that are there"));
    }
    let mut packages = Vec::new();
    for what in missing {
        let none = || {
            let (names, oldest) = (candidates(*what).join(", "), oldest(*what));
            let version = if oldest > 0 { format!(" of version {oldest} or later") } else { String::new() };
            let instead = match what {
                Missing::Browser => ", with the browser of its version",
                Missing::Python => "",
                _ => ", or give a running server by URL (--kafka, --redis, --postgres)",
            };
            format!("apt-get offers none of {names}{version}; install one by hand{instead}")
        };
        packages.push(offered(*what).with_context(none)?);
    }
    let _policy = Policy::forbid_starts(say)?;
    let _clusters = missing.contains(&Missing::Postgres).then(|| Clusters::make_none(say)).transpose()?;
    let mut arguments = vec!["install", "-y", "-q", "--no-install-recommends"];
    arguments.extend(packages);
    run(&arguments, say)
}

/// Packages that bring it, the best first.
fn candidates(missing: Missing) -> &'static [&'static str] {
    match missing {
        Missing::Redis => &["redis-server", "valkey-server"],
        Missing::Postgres => &["postgresql"],
        Missing::Java => &["openjdk-21-jre-headless", "openjdk-17-jre-headless", "default-jre-headless"],
        Missing::Maven => &["maven"],
        // It depends on chromium of its version. Ubuntu has neither: there they come as snaps.
        Missing::Browser => &["chromium-driver"],
        Missing::Python => &["python3-venv"],
    }
}

/// The oldest version of its packages that will do, major. Java's tell it by their names.
fn oldest(missing: Missing) -> u32 {
    match missing {
        Missing::Redis => OLDEST_REDIS,
        Missing::Postgres | Missing::Java | Missing::Maven | Missing::Browser | Missing::Python => 0,
    }
}

/// The best package that brings it, of those that this machine's package lists have.
pub(super) fn offered(missing: Missing) -> Option<&'static str> {
    let will_do = |package: &&str| {
        let output = Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C").output();
        let major = output.ok().and_then(|output| candidate(&String::from_utf8_lossy(&output.stdout)));
        major.is_some_and(|major| major >= oldest(missing))
    };
    candidates(missing).iter().copied().find(will_do)
}

/// The major version that would be installed, of what `apt-cache policy` says of a package.
fn candidate(policy: &str) -> Option<u32> {
    let version = policy.lines().find_map(|line| line.trim_start().strip_prefix("Candidate: "))?;
    let upstream = version.split_once(':').map_or(version, |(_epoch, upstream)| upstream);
    upstream.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Runs `apt-get`, waiting up to five minutes for whoever holds its locks.
fn run(arguments: &[&str], say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    say(&format!("running apt-get {}", arguments.join(" ")));
    let give_up = Instant::now() + LOCKED;
    let mut said = false;
    loop {
        let output = Command::new("apt-get")
            .args(["-o", &format!("DPkg::Lock::Timeout={}", LOCKED.as_secs())])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("UCF_FORCE_CONFFOLD", "1")
            // Ubuntu would otherwise restart services whose libraries were upgraded.
            .env("NEEDRESTART_SUSPEND", "1")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .output()
            .context("can't run apt-get")?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // It waits for dpkg's lock by itself, but not for that of its lists.
        if !text.contains(LISTS_LOCKED) || Instant::now() >= give_up {
            bail!("apt-get {} failed ({}):\n{}", arguments.join(" "), output.status, last_lines(&text, 15));
        }
        if !said {
            say("waiting for another program that updates the package lists");
            said = true;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Forbids packages to start services, until dropped.
struct Policy {
    ours: bool,
}

impl Policy {
    fn forbid_starts(say: &mut dyn FnMut(&str)) -> anyhow::Result<Policy> {
        let path = Path::new(POLICY);
        match read(path)? {
            // One of ours that a killed session left is taken over.
            Some(text) if text != POLICY_TEXT => {
                say(&format!(
                    "{POLICY} exists and is left as it is; it decides whether packages start services"
                ));
                return Ok(Policy { ours: false });
            }
            _ => {}
        }
        say(&format!("forbidding packages to start services ({POLICY}, for the time of the installation)"));
        std::fs::write(path, POLICY_TEXT).with_context(|| format!("can't write {POLICY}"))?;
        let policy = Policy { ours: true };
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
        Ok(policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = std::fs::remove_file(POLICY)
        {
            tracing::error!(%error, "can't remove {POLICY}; remove it by hand");
        }
    }
}

/// Has postgresql-common make no cluster of its own, until dropped.
struct Clusters {
    before: Option<String>,
}

impl Clusters {
    fn make_none(say: &mut dyn FnMut(&str)) -> anyhow::Result<Clusters> {
        let path = PathBuf::from(CLUSTERS);
        let before = read(&path)?.map(|text| text.replace(CLUSTERS_LINE, ""));
        say(&format!(
            "telling postgresql-common to make no cluster ({CLUSTERS}, for the time of the installation)"
        ));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        }
        let clusters = Clusters { before };
        std::fs::write(&path, without_cluster(clusters.before.as_deref()))
            .with_context(|| format!("can't write {CLUSTERS}"))?;
        Ok(clusters)
    }
}

impl Drop for Clusters {
    fn drop(&mut self) {
        let restored = match &self.before {
            Some(text) => std::fs::write(CLUSTERS, text),
            // As the package would have made it; it laid its own beside ours.
            None => {
                let _ = std::fs::remove_file(format!("{CLUSTERS}.ucf-dist"));
                std::fs::copy(CLUSTERS_SHIPPED, CLUSTERS)
                    .map(drop)
                    .or_else(|_| std::fs::remove_file(CLUSTERS))
            }
        };
        if let Err(error) = restored {
            tracing::error!(%error, "can't restore {CLUSTERS}");
        }
    }
}

/// The file's text with our line in it; in such files the last line counts.
fn without_cluster(before: Option<&str>) -> String {
    let before = before.unwrap_or_default();
    let newline = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    format!("{before}{newline}{CLUSTERS_LINE}")
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("can't read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_line_is_added_and_taken_away() {
        assert_eq!(without_cluster(None), CLUSTERS_LINE);
        for before in ["", "ssl = on\n"] {
            assert_eq!(without_cluster(Some(before)).replace(CLUSTERS_LINE, ""), before);
        }
        assert_eq!(without_cluster(Some("ssl = on")), format!("ssl = on\n{CLUSTERS_LINE}"));
    }

    #[test]
    fn candidates_major_versions() {
        for (version, expected) in
            [("5:6.0.16-1ubuntu1", Some(6)), ("5:8.0.2-3", Some(8)), ("17+278", Some(17)), ("(none)", None)]
        {
            let policy = format!("package:\n  Installed: 5:7.0\n  Candidate: {version}\n  Version table:\n");
            assert_eq!(candidate(&policy), expected, "{version}");
        }
        assert_eq!(candidate(""), None);
    }
}
