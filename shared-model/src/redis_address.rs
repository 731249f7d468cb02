//! Where Redis is, and the certificates that TLS needs beside the URL (feature `redis`).
//!
//! It makes the clients that connect; itself it connects nothing, and whoever asks for it reads the files. No fault shows a
//! part of a URL.

use crate::secret::{REDIS, Secret, SecretFault};
use redis::cluster::ClusterClientBuilder;
use redis::io::tcp::TcpSettings;
use redis::{Client, ClientTlsConfig, IntoConnectionInfo as _, RedisError, RedisResult, TlsCertificates};
use std::fmt;
use std::io;
use std::path::Path;
use thiserror::Error;
use url::Url;

/// One server, or several nodes of a cluster. Files are read once: a new certificate is taken up at the next start.
#[derive(Clone)]
pub struct Address {
    urls: Vec<String>,
    certificates: Option<TlsCertificates>,
}

/// An address as a command line gives it.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// The URLs, divided by commas.
    pub urls: &'a Secret,
    /// The authorities that may have signed the server's certificate; without it, the system's.
    pub ca: Option<&'a Path>,
    /// The certificate that is shown to the server.
    pub cert: Option<&'a Path>,
    /// That certificate's private key.
    pub key: Option<&'a Path>,
}

/// Why there is no such address.
#[derive(Debug, Error)]
pub enum AddressFault {
    /// A URL is none, or the file that holds it can't be read.
    #[error("--redis (TIDEMARK_REDIS)")]
    Url(#[source] SecretFault),
    /// A certificate's file can't be read.
    #[error("cannot read {file} ({option})")]
    File {
        /// The file.
        file: String,
        /// The option that names it.
        option: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A certificate or key is no PEM, or is given without `rediss://`.
    #[error("--redis is not valid (expected redis://host:port, or rediss:// where certificates are given)")]
    Client(#[source] RedisError),
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URLs may hold passwords.
        write!(f, "Address({} url(s))", self.urls.len())
    }
}

impl Address {
    /// Takes the certificates from their files, which `read` reads, and checks the URLs; nothing is connected.
    ///
    /// # Errors
    /// [`AddressFault`].
    pub fn new(
        given: Given<'_>,
        read: impl Fn(&Path) -> io::Result<Vec<u8>>,
    ) -> Result<Address, AddressFault> {
        let text = |path: &Path| {
            // The bytes may be a secret: the error doesn't keep them.
            String::from_utf8(read(path)?).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
        };
        let urls = given.urls.reveal_url(&REDIS, text).and_then(|urls| {
            let urls: Vec<String> = urls.split(',').map(|url| url.trim().to_owned()).collect();
            // The client's own error could show a part of the URL.
            let valid = urls.iter().all(|url| url.as_str().into_connection_info().is_ok());
            if valid { Ok(urls) } else { Err(REDIS.refused()) }
        });
        let urls = urls.map_err(AddressFault::Url)?;
        let file = |path: &Path, option| {
            let failed = |error| AddressFault::File { file: path.display().to_string(), option, error };
            read(path).map_err(failed)
        };
        let client_tls = match (given.cert, given.key) {
            (Some(cert), Some(key)) => Some(ClientTlsConfig {
                client_cert: file(cert, "--redis-cert")?,
                client_key: file(key, "--redis-key")?,
            }),
            _ => None,
        };
        let root_cert = given.ca.map(|path| file(path, "--redis-ca")).transpose()?;
        let has_some = client_tls.is_some() || root_cert.is_some();
        let certificates = has_some.then_some(TlsCertificates { client_tls, root_cert });
        let address = Address { urls, certificates };
        address.clients().try_for_each(|client| client.map(drop)).map_err(AddressFault::Client)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_of_a_cluster_are_reached_as_the_one_that_was_named() {
        let urls = vec!["rediss://user:secret@10.0.0.1:7000".to_owned()];
        let nodes = "a1 10.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-8000\n\
                     b2 10.0.0.2:7001@17001,host master - 0 0 2 connected 8001-16383\n\
                     c3 10.0.0.3:7002@17002 slave,fail a1 0 0 1 disconnected\n\
                     d4 fd00::4:7003@17003 slave a1 0 0 1 connected\n\
                     e5 :0@0 master,noaddr - 0 0 0 disconnected\n";
        let address = Address { urls, certificates: None }.with_nodes(nodes);
        let expected = [
            "rediss://user:secret@10.0.0.1:7000",
            "rediss://user:secret@10.0.0.2:7001",
            "rediss://user:secret@[fd00::4]:7003",
        ];
        assert_eq!(address.urls, expected);
    }
}
