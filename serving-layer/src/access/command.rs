//! `serving-layer keys`: makes, lists and revokes keys.

use super::{Grants, Key, RowFilter, Scope, Store, Token};
use crate::config::{KeysArgs, KeysCommand, NewKey};
use crate::{clock, service};
use anyhow::{Context as _, bail};
use serde_json::Value as Json;
use shared_model::catalog::Catalog;
use shared_model::secret::{POSTGRES, Secret};
use shared_model::time::{Millis, show};

/// Does it, and prints what came of it: a new key's token on standard output, and all else for people on standard error.
///
/// # Errors
/// Where an argument is wrong (all faults together), or the database can't be used.
pub async fn execute(args: KeysArgs) -> anyhow::Result<()> {
    let store = store(&args.access, ACCESS)?;
    store.prepare().await?;
    match args.command {
        KeysCommand::Create(new) => {
            let catalog = service::read_catalog(&new.catalog)?;
            let (key, token) = make(&new, &catalog, clock::now())?;
            store.insert(&key).await?;
            let readable = key.grants.restricted(&catalog);
            let names: Vec<&str> = readable.metrics.iter().map(|metric| metric.name.as_str()).collect();
            let (id, name, names) = (&key.id, &key.name, names.join(", "));
            eprintln!("key {id} of {name} may read {names}; this is its token, which is not shown again:");
            println!("{}", token.reveal());
        }
        KeysCommand::List => {
            let now = clock::now();
            for key in store.keys().await? {
                match key {
                    Ok(key) => println!("{}", line(&key, now)),
                    Err(error) => println!("{error}"),
                }
            }
        }
        KeysCommand::Revoke { id } => {
            if !store.revoke(&id, clock::now()).await? {
                bail!("there is no key {id:?} that isn't revoked: `serving-layer keys list` lists them");
            }
            eprintln!("key {id} is revoked; serving processes know within a second or two");
        }
    }
    Ok(())
}

/// The database that a URL names, which an option gives.
///
/// # Errors
/// Where it is none, without any part of it.
pub fn store(url: &Secret, option: &'static str) -> anyhow::Result<Store> {
    let url = url.reveal_url(&POSTGRES, |path| std::fs::read_to_string(path));
    let store = url.and_then(|url| Store::new(&url).map_err(|_| POSTGRES.refused()));
    store.context(option)
}

/// The option that says where the keys are.
pub const ACCESS: &str = "--access (TIDEMARK_ACCESS)";

/// A new key.
fn make(new: &NewKey, catalog: &Catalog, now: Millis) -> anyhow::Result<(Key, Token)> {
    let mut faults = Vec::new();
    let mut scope = |option: &str, words: &[String]| {
        let scope = Scope::parse(words, catalog);
        scope.unwrap_or_else(|found| {
            faults.extend(found.into_iter().map(|fault| format!("{option}: {fault}")));
            Scope::default()
        })
    };
    let (read, admin) = (scope("--read", &new.read), scope("--admin", &new.admin));
    let rows = rows(new.rows.as_deref());
    let rows = rows.unwrap_or_else(|fault| {
        faults.push(format!("--rows: {fault}"));
        RowFilter::default()
    });
    if new.name.is_empty() || new.name.len() > 200 || new.name.chars().any(char::is_control) {
        faults.push("the name must have 1 to 200 bytes and no control characters".to_owned());
    }
    if let Some(rate) = new.rate.filter(|rate| !(rate.is_finite() && (0.001..=1e6).contains(rate))) {
        faults.push(format!("--rate: {rate} is no number of requests a second from 0.001 to 1000000"));
    }
    let expires = new.expires.map(|after| now.saturating_add(after.as_millis() as Millis));
    let grants = Grants { read, admin, rows };
    let chosen = |scope: &Scope| catalog.metrics.iter().any(|metric| scope.has(metric));
    if faults.is_empty() {
        if new.read.is_empty() && new.admin.is_empty() {
            faults.push("--read or --admin must name something: * is everything".to_owned());
        } else if !grants.rows.is_empty() && chosen(&grants.admin) {
            faults.push(
                "--admin: a key that sees some rows alone (--rows) can't be an admin: audits are of all rows"
                    .to_owned(),
            );
        } else if grants.restricted(catalog).metrics.is_empty() {
            faults.push(
                "--rows: no metric that it may read has these columns, of the values' types, in its key"
                    .to_owned(),
            );
        }
    }
    if !faults.is_empty() {
        bail!("the key can't be made:\n  {}", faults.join("\n  "));
    }
    let token = Token::random();
    let (id, hash) = (token.id.clone(), token.hash());
    let key = Key {
        id,
        name: new.name.clone(),
        hash,
        grants,
        rate: new.rate,
        created: now,
        expires,
        revoked: None,
    };
    Ok((key, token))
}

fn rows(text: Option<&str>) -> Result<RowFilter, String> {
    let Some(text) = text else { return Ok(RowFilter::default()) };
    let given: Json = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
    match given {
        Json::Array(tests) if !tests.is_empty() => RowFilter::try_from(tests),
        other => Err(format!("{other} is no list of tests, as a query's filters are")),
    }
}

/// A key as a line of a list.
fn line(key: &Key, now: Millis) -> String {
    let state = match (key.revoked, key.expires) {
        (Some(at), _) => format!("revoked {}", show(at)),
        (None, Some(at)) if at <= now => format!("expired {}", show(at)),
        (None, Some(at)) => format!("until {}", show(at)),
        (None, None) => "valid".to_owned(),
    };
    let rate = key.rate.map(|rate| format!(", {rate} requests/s")).unwrap_or_default();
    let grants = serde_json::to_string(&key.grants).unwrap_or_default();
    format!("{}  {}  made {}  {state}{rate}  {grants}", key.id, key.name, show(key.created))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn made(arguments: &[&str]) -> Result<Key, String> {
        let command =
            ["serving-layer", "keys", "--access", "postgres://h/d", "create", "partner", "--catalog", "c"];
        let args = crate::Args::try_parse_from(command.iter().chain(arguments))
            .map_err(|error| error.to_string())?;
        let crate::Command::Keys(KeysArgs { command: KeysCommand::Create(new), .. }) = args.command else {
            panic!("{args:?}")
        };
        let made = make(&new, &crate::tests::catalog(), 1_000);
        made.map(|(key, _)| key).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_key_is_made_as_it_is_asked_for() {
        let key = made(&[
            "--read",
            "doc_cnt",
            "--rows",
            r#"[{"dimension": "document_id", "values": [1]}]"#,
            "--rate",
            "5",
            "--expires",
            "1h",
        ]);
        let key = key.unwrap();
        assert_eq!((key.expires, key.rate, key.created), (Some(3_601_000), Some(5.0), 1_000));
        assert!(key.is_valid(3_600_999) && !key.is_valid(3_601_000));
        let readable = key.grants.restricted(&crate::tests::catalog());
        assert_eq!(readable.metrics.iter().map(|metric| &*metric.name).collect::<Vec<_>>(), ["doc_cnt"]);
        assert!(
            line(&key, 0).contains("until 1970-01-01T01:00:01") && line(&key, 1 << 40).contains("expired")
        );
    }

    #[test]
    fn metrics_are_granted_by_name_by_tag_or_all() {
        let readable = |arguments: &[&str]| {
            let grants = made(arguments).unwrap().grants;
            let of = grants.restricted(&crate::tests::catalog());
            (of.metrics.iter().map(|metric| metric.name.clone()).collect::<Vec<_>>(), of.formulas.len())
        };
        assert_eq!(readable(&["--read", "tag:public"]), (vec!["doc_cnt".to_owned()], 0));
        assert_eq!(readable(&["--read", "user_click_cnt", "--admin", "user_view_cnt"]).1, 1);
        assert_eq!(
            readable(&["--read", "user_click_cnt", "--read", "tag:public"]),
            (vec!["doc_cnt".to_owned(), "user_click_cnt".to_owned()], 0)
        );
        let all = crate::tests::catalog();
        assert_eq!(
            readable(&["--read", "*"]),
            (all.metrics.iter().map(|metric| metric.name.clone()).collect(), 1)
        );
    }

    #[test]
    fn what_is_wrong_is_said_all_together() {
        let wrong = |arguments: &[&str], says: &[&str]| {
            let why = made(arguments).unwrap_err();
            assert!(says.iter().all(|part| why.contains(part)), "{why}");
        };
        wrong(&[], &["--read or --admin must name something"]);
        wrong(
            &["--read", "doc_cn", "--admin", "tag:none", "--rows", "{}", "--rate", "0"],
            &[
                "--read: \"doc_cn\" is no metric",
                "--admin: no metric of the catalog has the tag \"none\"",
                "--rows: {} is no list",
                "--rate: 0",
            ],
        );
        let rows = r#"[{"dimension": "document_id", "value": 1}]"#;
        wrong(&["--admin", "*", "--rows", rows], &["can't be an admin"]);
        wrong(
            &["--read", "user_view_cnt", "--rows", rows],
            &["no metric that it may read has these columns"],
        );
        wrong(
            &["--read", "doc_cnt", "--rows", r#"[{"dimension": "document_id", "value": "1"}]"#],
            &["no metric that it may read"],
        );
    }
}
