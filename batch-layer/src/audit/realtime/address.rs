//! Where Redis is, and the certificates that TLS needs beside the URL.

use crate::config::AuditArgs;
use anyhow::Context as _;
use redis::cluster::ClusterClientBuilder;
use redis::io::tcp::TcpSettings;
use redis::{Client, ClientTlsConfig, IntoConnectionInfo as _, RedisResult, TlsCertificates};
use shared_model::secret::REDIS;
use std::path::Path;

/// One server, or several nodes of a cluster. Files are read once: a new certificate is taken up at the next start.
#[derive(Clone)]
pub(crate) struct Address {
    urls: Vec<String>,
    certificates: Option<TlsCertificates>,
}

impl Address {
    /// Reads the certificates and checks the URLs; nothing is connected. None without URLs.
    ///
    /// # Errors
    /// Where a file can't be read or the key's is no PEM, a URL is none, or certificates are given without `rediss://`.
    pub(crate) fn new(args: &AuditArgs) -> anyhow::Result<Option<Address>> {
        let Some(redis) = &args.redis else { return Ok(None) };
        let urls = redis.reveal_url(&REDIS, |path| std::fs::read_to_string(path)).and_then(|given| {
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
        Ok(Some(address))
    }

    /// A client of each server that was named.
    pub(crate) fn clients(&self) -> impl Iterator<Item = RedisResult<Client>> {
        self.urls.iter().map(|url| {
            let info = url.as_str().into_connection_info()?.set_tcp_settings(at_once());
            match &self.certificates {
                Some(certificates) => Client::build_with_tls(info, certificates.clone()),
                None => Client::open(info),
            }
        })
    }

    /// A client of the cluster that the servers belong to.
    pub(crate) fn cluster(&self) -> ClusterClientBuilder {
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
