//! Where Redis is, and the certificates that TLS needs beside the URL.

use crate::config::RedisArgs;
use anyhow::Context as _;
use redis::cluster::ClusterClientBuilder;
use redis::io::tcp::TcpSettings;
use redis::{Client, ClientTlsConfig, IntoConnectionInfo as _, RedisResult, TlsCertificates};
use shared_model::secret::REDIS;
use std::path::Path;
use url::Url;

/// One server, or several nodes of a cluster. Files are read once: a new certificate is taken up at the next start.
#[derive(Clone)]
pub struct Address {
    urls: Vec<String>,
    certificates: Option<TlsCertificates>,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URLs may hold passwords.
        write!(f, "Address({} url(s))", self.urls.len())
    }
}

impl Address {
    /// Reads the certificates and checks the URLs; nothing is connected.
    ///
    /// # Errors
    /// Where a file can't be read or the key's is no PEM, a URL is none, or certificates are given without `rediss://`.
    pub fn new(args: &RedisArgs) -> anyhow::Result<Address> {
        let urls = args.redis.reveal_url(&REDIS, |path| std::fs::read_to_string(path)).and_then(|given| {
            let urls: Vec<String> = given.split(',').map(|url| url.trim().to_owned()).collect();
            // The client's own error could show a part of the URL.
            let valid = urls.iter().all(|url| url.as_str().into_connection_info().is_ok());
            if valid { Ok(urls) } else { Err(REDIS.refused()) }
        });
        let urls = urls.context("--redis (TIDEMARK_REDIS)")?;
        let client_tls = match (&args.redis_cert, &args.redis_key) {
            (Some(cert), Some(key)) => Some(ClientTlsConfig {
                client_cert: read(cert, "--redis-cert")?,
                client_key: read(key, "--redis-key")?,
            }),
            _ => None,
        };
        let root_cert = args.redis_ca.as_deref().map(|path| read(path, "--redis-ca")).transpose()?;
        let given = client_tls.is_some() || root_cert.is_some();
        let certificates = given.then_some(TlsCertificates { client_tls, root_cert });
        let address = Address { urls, certificates };
        address.clients().try_for_each(|client| client.map(drop)).context(
            "--redis is not valid (expected redis://host:port, or rediss:// where certificates are given)",
        )?;
        Ok(address)
    }

    /// A client of each server that was named.
    pub fn clients(&self) -> impl Iterator<Item = RedisResult<Client>> {
        self.urls.iter().map(|url| {
            let info = url.as_str().into_connection_info()?.set_tcp_settings(at_once());
            match &self.certificates {
                Some(certificates) => Client::build_with_tls(info, certificates.clone()),
                None => Client::open(info),
            }
        })
    }

    /// The same, and the other nodes of the cluster, as `CLUSTER NODES` tells them: those that were named may be gone when
    /// a connection is made anew.
    pub fn with_nodes(&self, nodes: &str) -> Address {
        let mut address = self.clone();
        for line in nodes.lines().filter(|line| !line.contains("fail") && !line.contains("noaddr")) {
            // <id> <host:port@bus,...> <flags> ...
            let node = line.split(' ').nth(1).and_then(|node| node.split(['@', ',']).next());
            let place = node.and_then(|node| node.rsplit_once(':'));
            let (Some((host, port)), Ok(mut url)) = (place, Url::parse(&self.urls[0])) else { continue };
            let named = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            let set = url.set_host(Some(&named)).is_ok() && url.set_port(port.parse().ok()).is_ok();
            if set && !host.is_empty() && !address.urls.contains(&url.to_string()) {
                address.urls.push(url.to_string());
            }
        }
        address
    }

    /// A client of the cluster that the servers belong to.
    pub fn cluster(&self) -> ClusterClientBuilder {
        let builder = ClusterClientBuilder::new(self.urls.iter().map(String::as_str)).tcp_settings(at_once());
        match &self.certificates {
            Some(certificates) => builder.certs(certificates.clone()),
            None => builder,
        }
    }
}

/// What is written is sent, be it little: the end of a large command would else wait until its beginning is acknowledged,
/// which a server that has nothing to say yet puts off for 40 ms.
fn at_once() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn read(path: &Path, option: &str) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {} ({option})", path.display()))
}
