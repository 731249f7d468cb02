//! Settings that may hold a secret: URLs with passwords, properties of the Kafka client.
//!
//! Invariant: their text leaves only by [`Secret::reveal`], for the client that connects. Neither `Debug` nor any
//! fault shows a part of it, and reading one from a command line can't fail, since the reader of arguments would
//! repeat it.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;
use thiserror::Error;

/// A setting that may hold a secret. Written `@/path` (an absolute path), it stands for the content of that file.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Secret, Infallible> {
        Ok(Secret(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret")
    }
}

/// Why a setting can't be used: never with any part of a value.
#[derive(Debug, Error)]
pub enum SecretFault {
    /// The file that it names can't be read.
    #[error("the file {file}, which it names, can't be read: {error}")]
    File {
        /// The file.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// The variable that names a file which can't be read.
    #[error("{name}: {fault}")]
    Variable {
        /// The variable.
        name: String,
        /// Why.
        fault: Box<SecretFault>,
    },
    /// It is no such URL.
    #[error("expected {form}")]
    Form {
        /// What one looks like.
        form: &'static str,
    },
    /// What looks like the end of a password stands behind the host.
    #[error(
        "an @ stands behind its host: write @ : / ? # % of a user or password percent-encoded (%40 %3A %2F %3F %23 %25)"
    )]
    At,
    /// A parameter of a URL that the client would pass over.
    #[error(
        "it has a parameter that is none of {known}; or a ? of the password is not percent-encoded (%3F)"
    )]
    Parameter {
        /// Those that there are.
        known: String,
    },
    /// Properties that are no properties.
    #[error("no property is at place {places} (counted from 1): each is key=value, separated by ;. {file}", file = FILE)]
    NoProperty {
        /// Their places.
        places: String,
    },
    /// The client doesn't know a property.
    #[error("the property at place {place} (counted from 1) has a name that librdkafka doesn't know. {file}", file = FILE)]
    UnknownProperty {
        /// Its place.
        place: usize,
    },
    /// The client doesn't take a property's value.
    #[error("the value of the property at place {place} (counted from 1) is none that {name} can have")]
    PropertyValue {
        /// Its place.
        place: usize,
        /// A name that the client knows.
        name: String,
    },
}

const FILE: &str = "A value that holds ; is given by a file (@/path), with one property a line";

/// The URLs of one kind of server, as its client reads them.
#[derive(Debug)]
pub struct ServerUrl {
    schemes: &'static [&'static str],
    /// The parameters that the client knows, where it would pass over another and log it.
    parameters: Option<&'static [&'static str]>,
    form: &'static str,
}

impl ServerUrl {
    /// What to say where the client can't read a URL. Its own words could show a part of it.
    pub fn refused(&self) -> SecretFault {
        SecretFault::Form { form: self.form }
    }
}

/// Redis or Valkey.
pub const REDIS: ServerUrl = ServerUrl {
    schemes: &["redis", "rediss", "valkey", "valkeys", "unix", "redis+unix", "valkey+unix"],
    parameters: None,
    form: "redis://user:password@host:port, or rediss:// for TLS",
};

/// Postgres.
pub const POSTGRES: ServerUrl = ServerUrl {
    schemes: &["postgres", "postgresql"],
    parameters: Some(&[
        "sslmode",
        "ssl-mode",
        "sslrootcert",
        "ssl-root-cert",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "statement-cache-capacity",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "application_name",
        "options",
    ]),
    form: "postgres://user:password@host:port/database",
};

impl Secret {
    /// The text, or that of the file which it names; `read` reads a file.
    ///
    /// # Errors
    /// [`SecretFault::File`].
    pub fn reveal(&self, read: impl FnOnce(&Path) -> io::Result<String>) -> Result<String, SecretFault> {
        let Some(file) = self.file() else { return Ok(self.0.clone()) };
        match read(file) {
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) => Err(SecretFault::File { file: file.display().to_string(), error }),
        }
    }

    /// The same for the URL of a server, or several separated by commas: its user and password are sure to end before
    /// its host, so that no later message takes a part of them for a host, a path or a parameter.
    ///
    /// # Errors
    /// Every [`SecretFault`] of a file or a URL.
    pub fn reveal_url(
        &self,
        kind: &ServerUrl,
        read: impl FnOnce(&Path) -> io::Result<String>,
    ) -> Result<String, SecretFault> {
        let text = self.reveal(read)?;
        let (scheme, _) = text.split_once("://").ok_or_else(|| kind.refused())?;
        if !kind.schemes.contains(&scheme) {
            return Err(kind.refused());
        }
        for url in text.split(',') {
            let behind = url.split_once("://").map_or(url, |(_, behind)| behind);
            let host_ends = behind.find(['/', '?', '#']).unwrap_or(behind.len());
            if behind.rfind('@').is_some_and(|at| at > host_ends) {
                return Err(SecretFault::At);
            }
        }
        if let (Some(known), Some((_, query))) = (kind.parameters, text.split_once('?')) {
            let names = query.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
            let is_known = |name: &str| known.contains(&name) || name.starts_with("options[");
            if !names.filter(|name| !name.is_empty()).all(is_known) {
                return Err(SecretFault::Parameter { known: known.join(", ") });
            }
        }
        Ok(text)
    }

    fn file(&self) -> Option<&Path> {
        self.0.strip_prefix('@').map(Path::new).filter(|path| path.is_absolute())
    }
}

/// The settings of object stores among the variables of an environment; a value `@/path` is that of a file, which `read`
/// reads. Others must not reach the stores' clients: they would take a `TOKEN`, `REGION` or `TIMEOUT` that is there for
/// another program as their own.
///
/// # Errors
/// [`SecretFault::Variable`].
pub fn of_object_stores(
    variables: impl Iterator<Item = (OsString, OsString)>,
    mut read: impl FnMut(&Path) -> io::Result<String>,
) -> Result<Vec<(String, String)>, SecretFault> {
    let revealed = |(name, value): (String, String)| match Secret(value).reveal(&mut read) {
        Ok(value) => Ok((name, value)),
        Err(fault) => Err(SecretFault::Variable { name, fault: Box::new(fault) }),
    };
    variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| ["AWS_", "AZURE_", "GOOGLE_"].iter().any(|of| name.starts_with(of)))
        .map(revealed)
        .collect()
}

/// librdkafka's properties, in their order.
#[derive(Clone, Default)]
pub struct KafkaProperties(Vec<(String, String)>);

impl fmt::Debug for KafkaProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KafkaProperties({})", self.0.len())
    }
}

impl KafkaProperties {
    /// Reads settings of the form `key=value;key=value`. Where one has several lines, or comes from a file, each line
    /// is a property: a `;` is then part of the value, and lines that are empty or begin with `#` are passed over.
    ///
    /// # Errors
    /// [`SecretFault::File`], [`SecretFault::NoProperty`] with all places.
    pub fn read(
        settings: &[Secret],
        mut read: impl FnMut(&Path) -> io::Result<String>,
    ) -> Result<KafkaProperties, SecretFault> {
        let (mut properties, mut faults) = (Vec::new(), Vec::new());
        for setting in settings {
            let text = setting.reveal(&mut read)?;
            let lines = setting.file().is_some() || text.contains('\n');
            let parts = text.split(if lines { '\n' } else { ';' }).map(|part| part.trim_end_matches('\r'));
            let is_none = |part: &&str| part.trim().is_empty() || lines && part.starts_with('#');
            for part in parts.filter(|part| !is_none(part)) {
                match part.split_once('=') {
                    Some((key, value)) if !key.trim().is_empty() => {
                        properties.push((key.trim().to_owned(), value.to_owned()));
                    }
                    _ => faults.push((properties.len() + faults.len() + 1).to_string()),
                }
            }
        }
        match faults.is_empty() {
            true => Ok(KafkaProperties(properties)),
            false => Err(SecretFault::NoProperty { places: faults.join(", ") }),
        }
    }

    /// Names and values.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

/// What to say where the client refuses the property `name`, since it doesn't know it or for its value.
pub fn property_refused(pairs: &[(String, String)], name: &str, is_known: bool) -> SecretFault {
    let place = pairs.iter().position(|(key, _)| key == name).map_or(0, |place| place + 1);
    match is_known {
        // The name may be the rest of a password that held a `;`.
        false => SecretFault::UnknownProperty { place },
        true => SecretFault::PropertyValue { place, name: name.to_owned() },
    }
}

/// A URL as it may be shown: without user and password, without parameters. A path is shown as it is.
pub fn shown(url: &str) -> String {
    let Some((scheme, behind)) = url.split_once("://") else { return url.to_owned() };
    let behind = behind.rsplit_once('@').map_or(behind, |(_, host)| host);
    format!("{scheme}://{}", behind.split(['?', '#']).next().unwrap_or_default())
}

/// A client's message about `url`, with the URL as it may be shown.
pub fn shown_in(message: &str, url: &str) -> String {
    message.replace(url, &shown(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        text.parse().unwrap()
    }

    /// The files of these tests: `/file` and what it holds.
    fn files(content: &str) -> impl Fn(&Path) -> io::Result<String> {
        move |path| match path.to_str() {
            Some("/file") => Ok(content.to_owned()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    #[test]
    fn a_secret_is_its_text_or_its_files_and_never_shown() {
        let check = |text: &str, expected: Option<&str>| {
            let revealed = secret(text).reveal(files("hunter2\n"));
            assert!(!format!("{revealed:?} {:?}", secret(text)).contains("hunter3"), "{text}");
            assert_eq!(revealed.ok().as_deref(), expected, "{text}");
        };
        check("redis://:hunter2@h", Some("redis://:hunter2@h"));
        check("", Some(""));
        check("@/file", Some("hunter2"));
        check("@/none", None);
        check("@hunter2", Some("@hunter2"));
        assert_eq!(format!("{:?}", secret("hunter2")), "Secret");
    }

    #[test]
    fn a_url_that_would_be_misread_is_refused_without_showing_it() {
        let check = |url: &str, passes: bool| {
            let kind = if url.starts_with("redis") { &REDIS } else { &POSTGRES };
            let revealed = secret(url).reveal_url(kind, files(""));
            let shown = revealed.as_ref().err().map(SecretFault::to_string).unwrap_or_default();
            assert!(!shown.contains("hunter2"), "{shown}");
            assert_eq!(revealed.is_ok(), passes, "{url}: {shown}");
        };
        check("postgres://u:hunter2@h:1/d", true);
        check("postgres://h/d", true);
        check("postgres://u:hunter2@h/d?sslmode=require&options[x]=1", true);
        check("redis://a,redis://u:hunter2@b", true);
        check("hunter2", false);
        check("u:hunter2@h:1", false);
        check("redi://u:hunter2@h:1", false);
        check("postgres://u:hun/ter2@h/d", false);
        check("postgres://u:hun?ter2@h/d", false);
        check("postgres://u:hun#ter2@h/d", false);
        check("postgres://h/d?pasword=hunter2", false);
    }

    #[test]
    fn only_variables_of_object_stores_are_their_settings() {
        let check = |given: &[(&str, &str)], expected: Option<&[(&str, &str)]>| {
            let given = given.iter().map(|(name, value)| ((*name).into(), (*value).into()));
            let settings = of_object_stores(given, files("hunter2\n"));
            assert!(!settings.as_ref().is_err_and(|fault| !fault.to_string().starts_with("AWS_KEY: ")));
            let settings = settings.ok();
            let settings = settings
                .as_ref()
                .map(|settings| settings.iter().map(|(name, value)| (&**name, &**value)).collect::<Vec<_>>());
            assert_eq!(settings.as_deref(), expected);
        };
        let ours = [("AWS_REGION", "x"), ("AZURE_STORAGE_ACCOUNT_NAME", "x"), ("GOOGLE_BASE_URL", "x")];
        check(&[&ours[..], &[("TIMEOUT", "x"), ("TOKEN", "@/none"), ("REGION", "x")]].concat(), Some(&ours));
        check(&[("AWS_KEY", "@/file")], Some(&[("AWS_KEY", "hunter2")]));
        check(&[("AWS_KEY", "@/none")], None);
    }

    #[test]
    fn properties_are_read_or_refused_without_showing_them() {
        let check = |settings: &[&str], expected: Result<&[(&str, &str)], &str>| {
            let settings: Vec<Secret> = settings.iter().map(|text| secret(text)).collect();
            let read = KafkaProperties::read(&settings, files("# ours\na=1;2\r\n\nb=3"));
            match (&read, expected) {
                (Ok(properties), Ok(expected)) => {
                    let pairs = properties.pairs().iter().map(|(key, value)| (&**key, &**value));
                    assert!(pairs.eq(expected.iter().copied()), "{settings:?}");
                }
                (Err(fault), Err(part)) => {
                    let fault = fault.to_string();
                    assert!(fault.contains(part) && !fault.contains("hunter2"), "{fault}");
                }
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        };
        check(&[], Ok(&[]));
        check(&[" a =b=c;;d= e"], Ok(&[("a", "b=c"), ("d", " e")]));
        check(&["a=1", "b=2"], Ok(&[("a", "1"), ("b", "2")]));
        check(&["@/file"], Ok(&[("a", "1;2"), ("b", "3")]));
        check(&["a=1;2\nb=3\n"], Ok(&[("a", "1;2"), ("b", "3")]));
        check(&["sasl.password=x;hunter2;a=1", "hunter2"], Err("at place 2, 4 "));
        check(&["=hunter2"], Err("at place 1 "));
        check(&["@/none"], Err("/none"));
        let properties = KafkaProperties::read(&[secret("a=1;hunter2=2")], files("")).unwrap();
        assert!(!property_refused(properties.pairs(), "hunter2", false).to_string().contains("hunter2"));
        assert!(property_refused(properties.pairs(), "a", true).to_string().contains("place 1 "));
        assert!(!format!("{properties:?}").contains("hunter2"));
    }

    #[test]
    fn urls_are_shown_without_what_may_be_secret() {
        let check = |url: &str, expected: &str| assert_eq!(shown(url), expected, "{url}");
        check("redis://u:hun/ter2@h:1/0", "redis://h:1/0");
        check("https://h/a.csv?X-Amz-Signature=hunter2", "https://h/a.csv");
        check("/data/page_views.csv", "/data/page_views.csv");
        check("s3://bucket/a", "s3://bucket/a");
    }
}
