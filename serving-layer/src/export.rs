//! `serving-layer export`: a query's answer, written to object storage as one object.
//!
//! The object is there whole or not at all, and what was under its name stays until then. What the answer promises is
//! printed, and stands in a Parquet file's metadata; with `strict` in the query, nothing is written that isn't complete.

pub(crate) mod parquet;

use crate::answer::Begun;
use crate::config::{ExportArgs, ExportForm};
use crate::error::ServeError;
use crate::finish::Row;
use crate::query::{Query, Request};
use crate::reply::Head;
use crate::service::Service;
use crate::table::{Format, csv_lines};
use crate::{clock, open};
use anyhow::{Context, Result, anyhow, bail};
use axum::body::Bytes;
use object_store::ObjectStoreExt as _;
use serde_json::json;
use shared_model::secret;
use std::io::{Read as _, Write as _};
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// Asks, writes, and says in a line of JSON what was written, and what it promises.
///
/// # Errors
/// One that a person can read: what is wrong with the query, the views or the store. Only where the store's answer, or the
/// line, didn't arrive may the object be there all the same, whole.
pub(crate) async fn export(args: &ExportArgs, shutdown: CancellationToken) -> Result<()> {
    let form = form(args)?;
    // What is wrong with the object's name is said before the query is asked.
    let (store, path) = open_url(&args.to)?;
    let mut views = open(&args.views)?;
    // An object has all rows that an answer may have, where a page has the first of them.
    views.limits.default_rows = views.limits.max_rows;
    let service = Service::new(views, clock::now);
    let to = shown(&args.to);
    let asked = async {
        let text = read(&args.query).await?;
        service.refresh().await?;
        ask(&service, &text).await
    };
    let (head, query, rows) = tokio::select! {
        asked = asked => asked?,
        () = shutdown.cancelled() => bail!("stopped before {to} was written"),
    };
    tracing::info!(rows = rows.len(), to, "answered, is written");
    let promised = json!({ "to": to, "rows": rows.len(), "envelope": &head });
    let object: Bytes = match form {
        ExportForm::Csv => csv_lines(query, rows).collect::<Vec<_>>().concat().into(),
        ExportForm::Parquet => parquet::file(&query, &rows, &serde_json::to_string(&head)?)?.into(),
    };
    // It ends by itself: whoever left it would not know what is there.
    let put = store.put(&path, object.into()).await;
    put.map_err(|error| anyhow!(secret::shown_in(&error.to_string(), args.to.as_str())))
        .with_context(|| format!("{to} (--to) can't be written"))?;
    writeln!(std::io::stdout(), "{promised}")
        .with_context(|| format!("{to} is written, but standard output is closed"))
}

/// The answer to a request of one query.
async fn ask(service: &Service, text: &[u8]) -> Result<(Head, Query, Vec<Row>)> {
    let views = &service.views;
    let asked = service.in_turn(async {
        let request =
            Request::parse(text, Format::default(), &views.catalog, &views.limits, (service.clock)())?;
        let answers = Begun::new(views, &request.queries, request.at).await?.answers().await?;
        Ok((request, answers))
    });
    let (mut request, mut answers) = asked.await.map_err(said)?;
    if request.names.is_some() {
        bail!("--query: it has several queries; an object holds the answer to one");
    }
    let (Some(query), Some(answer)) = (request.queries.pop(), answers.pop()) else {
        bail!("--query: it has no query");
    };
    let head = Head::new(views, &query, &answer);
    if request.strict && !head.envelope.complete {
        return Err(said(ServeError::Incomplete(head.envelope.incomplete_because)));
    }
    let (found, most) = (answer.rows.total, views.limits.max_rows);
    // Who asks for a page gets it.
    let whole =
        serde_json::from_slice::<serde_json::Value>(text).is_ok_and(|query| query.get("limit").is_none());
    if whole && query.offset + answer.rows.rows.len() < found {
        bail!(
            "the answer has {found} rows, more than the limit of {most}: raise --max-rows, or ask for less"
        );
    }
    Ok((head, query, answer.rows.rows))
}

/// An error of the API, with all its faults in one line.
fn said(error: ServeError) -> anyhow::Error {
    error.note();
    let of_query = matches!(error, ServeError::Invalid(_) | ServeError::Body(_));
    let place = if of_query { "--query: " } else { "" };
    anyhow!("{place}{}", error.line())
}

async fn read(path: &Path) -> Result<Vec<u8>> {
    if path != Path::new("-") {
        return std::fs::read(path).with_context(|| format!("{} (--query) can't be read", path.display()));
    }
    // By a thread that nobody waits for: whoever stops the program at a terminal doesn't end the input as well.
    let (sender, text) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = sender.send(std::io::stdin().read_to_end(&mut text).map(|_| text));
    });
    text.await?.context("the query can't be read from standard input (--query)")
}

fn form(args: &ExportArgs) -> Result<ExportForm> {
    let path = args.to.path();
    match args.form {
        Some(form) => Ok(form),
        None if path.ends_with(".csv") => Ok(ExportForm::Csv),
        None if path.ends_with(".parquet") => Ok(ExportForm::Parquet),
        None => bail!(
            "{} (--to) ends with neither .csv nor .parquet: give --as csv or --as parquet",
            shown(&args.to)
        ),
    }
}

/// The store that a URL names, and the path in it.
fn open_url(url: &url::Url) -> Result<(Box<dyn object_store::ObjectStore>, object_store::path::Path)> {
    let of = || format!("{} (--to)", shown(url));
    if url.scheme() == "memory" {
        bail!("{} would be gone with the program: give file://, s3://, gs:// or az://", of());
    }
    // A store's client logs its URL.
    if url.password().is_some() || url.query().is_some() {
        bail!(
            "{} holds a password or parameters; take them out: credentials come from the environment",
            of()
        );
    }
    let settings = secret::of_object_stores(std::env::vars_os(), |path| std::fs::read_to_string(path))?;
    let opened = object_store::parse_url_opts(url, settings);
    opened.map_err(|error| anyhow!(secret::shown_in(&error.to_string(), url.as_str()))).with_context(of)
}

fn shown(url: &url::Url) -> String {
    secret::shown(url.as_str())
}
