//! Loopback ports that stay ours for as long as we say, also while the server that uses them is down.
//!
//! Invariant: a leased port belongs to one lease at a time among all processes of this user, and lies outside
//! the range from which the kernel takes ports for outgoing connections, so that a killed server can always
//! come back on it.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

/// A port on 127.0.0.1, ours until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    port: u16,
    _lock: File,
}

impl Lease {
    /// Finds a port that nobody listens on and no other process of ours holds.
    pub(crate) fn take() -> anyhow::Result<Lease> {
        let folder = lock_folder();
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("can't make {} for port locks", folder.display()))?;
        let range = candidates(ephemeral_low());
        for port in walk(range.clone(), RandomState::new().hash_one(std::process::id())) {
            let path = folder.join(port.to_string());
            let lock = File::create(&path).with_context(|| format!("can't open {}", path.display()))?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
                && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            {
                return Ok(Lease { port, _lock: lock });
            }
        }
        bail!("no free loopback port in {range:?}; stop some servers")
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

fn lock_folder() -> PathBuf {
    std::env::temp_dir().join(format!("tidemark-ports-{}", rustix::process::geteuid().as_raw()))
}

/// The first port that the kernel gives to outgoing connections.
fn ephemeral_low() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768)
}

/// Up to 10,000 ports just below the ephemeral range; when that range starts low, ports inside it must do.
fn candidates(ephemeral_low: u16) -> Range<u16> {
    if ephemeral_low >= 12_000 { ephemeral_low.saturating_sub(10_000)..ephemeral_low } else { 22_000..32_000 }
}

/// Every port of the range once, from a random start, so that processes seldom try the same one.
fn walk(range: Range<u16>, seed: u64) -> impl Iterator<Item = u16> {
    let width = u64::from(range.end - range.start);
    (0..width).map(move |step| range.start + u16::try_from((seed % width + step) % width).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_avoid_the_ephemeral_range() {
        assert_eq!(candidates(32_768), 22_768..32_768);
        assert_eq!(candidates(49_152), 39_152..49_152);
        assert_eq!(candidates(1_024), 22_000..32_000);
    }

    #[test]
    fn walk_visits_each_port_once() {
        let mut ports: Vec<u16> = walk(22_000..22_010, 7).collect();
        assert_eq!(ports[0], 22_007);
        ports.sort_unstable();
        assert_eq!(ports, (22_000..22_010).collect::<Vec<_>>());
    }

    #[test]
    fn leases_are_distinct_and_bindable() {
        let leases: Vec<Lease> = (0..20).map(|_| Lease::take().unwrap()).collect();
        let mut ports: Vec<u16> = leases.iter().map(Lease::port).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
        TcpListener::bind((Ipv4Addr::LOCALHOST, ports[0])).unwrap();
    }
}
