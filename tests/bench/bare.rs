//! An HTTP server that makes calls and does nothing else: what the way there and back costs by itself.
//!
//! It has threads of its own, as many as the serving layer has; the calls' connections belong to them too. Its answer is always
//! the same, and says that the calls were made.

use crate::load::Call;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// Makes calls about a key.
pub(crate) type Made = Arc<dyn Fn(String) -> Call + Send + Sync>;

/// The server, which ends when this is dropped.
pub(crate) struct Bare(Option<Runtime>);

impl Drop for Bare {
    fn drop(&mut self) {
        // Who drops it must not wait.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Bare {
    /// One that listens nowhere yet.
    pub(crate) fn new() -> anyhow::Result<Bare> {
        Ok(Bare(Some(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)))
    }

    /// Waits for something here: what it opens or starts belongs to the server's threads.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            let _within = self.0.as_ref().map(Runtime::enter);
            work.as_mut().poll(context)
        })
        .await
    }

    /// Makes calls about whatever key is asked for; where it can be asked.
    pub(crate) async fn serve(&self, made: Made) -> anyhow::Result<String> {
        let accept = async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?.to_string();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(connection(stream, made.clone()));
                }
            });
            anyhow::Ok(address)
        };
        self.within(accept).await
    }
}

/// Answers over one connection, until its client has gone.
async fn connection(stream: TcpStream, made: Made) {
    let service = service_fn(move |request: Request<Incoming>| {
        let call = made(request.uri().query().unwrap_or_default().to_owned());
        async move { Ok::<_, Infallible>(answer(call.await)) }
    });
    // What befalls it, its client is told.
    _ = stream.set_nodelay(true);
    _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn answer(made: anyhow::Result<()>) -> Response<Full<Bytes>> {
    let (status, text) = match made {
        Ok(()) => (StatusCode::OK, Bytes::from_static(br#"{"value":0}"#)),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, Bytes::from(format!("{error:#}"))),
    };
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    response
}
