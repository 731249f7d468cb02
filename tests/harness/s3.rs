//! A live S3 API on loopback that can also misbehave on purpose.
//!
//! It is s3s-fs behind a hyper server, with signatures checked. s3s-fs 0.14 does honour `If-None-Match: *`, but looks
//! before it writes, so that two writes at once may both pass; [`Api`] lets conditional writes in one at a time, as S3
//! itself does.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use batch_layer::archive::Store;
use futures::StreamExt as _;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use tokio::sync::Mutex;
use tower::ServiceExt as _;

/// The one bucket.
pub const BUCKET: &str = "tidemark";
/// The URL of an archive in it.
pub const ARCHIVE: &str = "s3://tidemark/archive";

/// How the API behaves.
#[derive(Default)]
pub struct Behaviour {
    /// `If-None-Match` is of no effect: what is there is gone before a write is looked at.
    pub ignores_conditions: bool,
    /// So many writes are refused with 503 before anything is stored.
    pub refusals: AtomicUsize,
    /// So many writes are stored, and then answered with 503.
    pub lost_answers: AtomicUsize,
    /// So many reads are answered with 500.
    pub failed_reads: AtomicUsize,
    /// So many uploads are cut off in their middle, each with its connection, and nothing is stored.
    pub cut_uploads: AtomicUsize,
    /// So many conditional writes are answered with 409, as S3 does where two are at work at once, and not stored.
    pub conflicts: AtomicUsize,
    /// Listings don't know of the manifests that are written from now on.
    pub lags: AtomicBool,
    /// Those manifests.
    pub unlisted: std::sync::Mutex<BTreeSet<String>>,
    /// How many writes there were.
    pub writes: AtomicUsize,
}

impl Behaviour {
    /// Takes one of what is left of a misbehaviour.
    fn takes(left: &AtomicUsize) -> bool {
        left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    /// How many misbehaviours that were told are still to come.
    pub fn left(&self) -> usize {
        let counts =
            [&self.refusals, &self.lost_answers, &self.failed_reads, &self.cut_uploads, &self.conflicts];
        counts.iter().map(|count| count.load(Ordering::SeqCst)).sum()
    }

    fn unlisted(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unlisted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A listing without what it doesn't know of.
    async fn listed(&self, answer: Response) -> Response {
        let (mut parts, body) = answer.into_parts();
        let whole = axum::body::to_bytes(body, usize::MAX).await.expect("a listing");
        let text = String::from_utf8_lossy(&whole);
        let mut objects = text.split("<Contents>");
        let mut kept = objects.next().unwrap_or_default().to_owned();
        for object in objects {
            let (object, rest) = object.split_once("</Contents>").expect("an object of a listing");
            let unlisted = self.unlisted();
            if !unlisted.iter().any(|name| object.contains(&format!("<Key>{name}</Key>"))) {
                kept.push_str(&format!("<Contents>{object}</Contents>"));
            }
            kept.push_str(rest);
        }
        parts.headers.remove("content-length");
        Response::from_parts(parts, Body::from(kept))
    }
}

#[derive(Clone)]
struct Serving {
    /// Held by a conditional write: they are let in one at a time.
    conditional: Arc<Mutex<()>>,
    s3: S3Service,
    behaviour: Arc<Behaviour>,
    folder: Arc<Path>,
}

async fn handle(State(serving): State<Serving>, request: Request) -> Response {
    let behaviour = serving.behaviour.clone();
    let is_write = request.method() == Method::PUT;
    let failed = StatusCode::SERVICE_UNAVAILABLE.into_response();
    if !is_write && Behaviour::takes(&behaviour.failed_reads) {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if is_write {
        behaviour.writes.fetch_add(1, Ordering::SeqCst);
        if Behaviour::takes(&behaviour.refusals) {
            return failed;
        }
        let is_conditional = request.headers().contains_key("if-none-match");
        if is_conditional && Behaviour::takes(&behaviour.conflicts) {
            return StatusCode::CONFLICT.into_response();
        }
        if Behaviour::takes(&behaviour.cut_uploads) {
            drop(request.into_body().into_data_stream().next().await);
            // Takes the connection with it.
            std::panic::resume_unwind(Box::new("cut"));
        }
        let name = request.uri().path().trim_start_matches('/').trim_start_matches(BUCKET);
        if behaviour.lags.load(Ordering::SeqCst) && name.contains("/manifests/") {
            behaviour.unlisted().insert(name.trim_start_matches('/').to_owned());
        }
        if behaviour.ignores_conditions {
            // The header itself is signed and has to stay.
            let lies = serving.folder.join(request.uri().path().trim_start_matches('/'));
            let _ = std::fs::remove_file(lies);
        }
    }
    let alone = request.headers().contains_key("if-none-match").then(|| serving.conditional.lock());
    let alone = match alone {
        Some(lock) => Some(lock.await),
        None => None,
    };
    let is_listing = request.uri().query().is_some_and(|query| query.contains("list-type=2"));
    let answer = serving.s3.clone().oneshot(request).await;
    drop(alone);
    if is_write && Behaviour::takes(&behaviour.lost_answers) {
        return failed;
    }
    match answer {
        Ok(answer) if is_listing && behaviour.lags.load(Ordering::SeqCst) => {
            behaviour.listed(answer.map(Body::new)).await
        }
        Ok(answer) => answer.map(Body::new),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")).into_response(),
    }
}

/// An S3 API on loopback, with one empty bucket in a temporary folder.
pub struct Api {
    /// Its address.
    pub endpoint: String,
    /// Its behaviour, which may be changed.
    pub behaviour: Arc<Behaviour>,
    folder: tempfile::TempDir,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Api {
    /// Starts it.
    pub async fn start(behaviour: Behaviour) -> Api {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join(BUCKET)).expect("a bucket");
        let mut service =
            S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).expect("a file system"));
        service.set_auth(SimpleAuth::from_single("tester", "secret"));
        let behaviour = Arc::new(behaviour);
        let serving = Serving {
            conditional: Arc::default(),
            s3: service.build(),
            behaviour: behaviour.clone(),
            folder: folder.path().into(),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let router = Router::new().fallback(handle).with_state(serving);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        Api { endpoint, behaviour, folder, server }
    }

    /// The variables that lead a client to it.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.environment_of("tester", "secret")
    }

    /// The same with other credentials.
    pub fn environment_of(&self, user: &str, password: &str) -> Vec<(String, String)> {
        let variables = [
            ("AWS_ENDPOINT", self.endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", user),
            ("AWS_SECRET_ACCESS_KEY", password),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// The folder in which the bucket's objects are files.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join(BUCKET)
    }

    /// An archive in its bucket.
    pub fn store(&self) -> Store {
        Store::open_with(ARCHIVE, self.environment()).expect("a store")
    }
}
