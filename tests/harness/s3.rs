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
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Mutex;
use tower::ServiceExt as _;

/// The one bucket.
pub const BUCKET: &str = "tidemark";

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
    /// How many writes there were.
    pub writes: AtomicUsize,
}

impl Behaviour {
    /// Takes one of what is left of a misbehaviour.
    fn takes(left: &AtomicUsize) -> bool {
        left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
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
    let answer = serving.s3.clone().oneshot(request).await;
    drop(alone);
    if is_write && Behaviour::takes(&behaviour.lost_answers) {
        return failed;
    }
    match answer {
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
        let url = format!("s3://{BUCKET}/archive");
        Store::open_with(&url, self.environment()).expect("a store")
    }
}
