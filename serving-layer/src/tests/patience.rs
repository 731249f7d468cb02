//! Requests that take too long, that have to wait for others, and those whose client leaves.

use super::over_http::views_of_all;
use super::world::{NOW, World, fixed};
use crate::Service;
use crate::batch_view::{BatchError, BatchView, Position, Snapshot};
use crate::router::router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response};
use futures::future::BoxFuture;
use serde_json::{Value as Json, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// No test waits longer for what must come.
const AT_LAST: Duration = Duration::from_secs(60);

/// A database that never answers: it says when it is asked, and when whoever asked is gone.
struct Stuck(UnboundedSender<&'static str>);

impl BatchView for Stuck {
    fn snapshot(&self, _: Duration) -> BoxFuture<'_, Result<Box<dyn Snapshot>, BatchError>> {
        struct Asked(UnboundedSender<&'static str>);
        impl Drop for Asked {
            fn drop(&mut self) {
                self.0.send("left").unwrap_or(());
            }
        }
        self.0.send("asked").unwrap_or(());
        let asked = Asked(self.0.clone());
        Box::pin(async move {
            let _asked = asked;
            std::future::pending().await
        })
    }

    fn position<'a>(
        &'a self,
        _: Option<&'a Position>,
    ) -> BoxFuture<'a, Result<Option<Position>, BatchError>> {
        Box::pin(std::future::pending())
    }

    fn audits(&self, _: i64) -> BoxFuture<'_, Result<Vec<Json>, BatchError>> {
        Box::pin(std::future::pending())
    }
}

/// A service of one turn over a database that is stuck, and what that says.
fn stuck(time_limit: Duration, patience: Duration) -> (Service, UnboundedReceiver<&'static str>) {
    let (mut views, ..) = World::new(&fixed()).views(1, 3);
    let (says, said) = unbounded_channel();
    views.batch = Arc::new(Stuck(says));
    views.limits.time_limit = time_limit;
    views.limits.patience = patience;
    views.limits.at_once = 1;
    (Service::new(views, || NOW), said)
}

async fn next(said: &mut UnboundedReceiver<&'static str>) -> &'static str {
    tokio::time::timeout(AT_LAST, said.recv()).await.expect("it is said in time").expect("it is there")
}

async fn post(service: &Service) -> (Response<()>, Json) {
    let request = Request::post("/api/v1/query").body(Body::from(views_of_all().to_string())).unwrap();
    let (head, body) = router(service.clone()).oneshot(request).await.unwrap().into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    (Response::from_parts(head, ()), serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_refused() {
    let (service, mut said) = stuck(Duration::from_millis(20), AT_LAST);
    let (head, reply) = post(&service).await;
    assert_eq!((head.status().as_u16(), &reply["error"]["code"]), (503, &json!("time_limit")));
    assert_eq!((next(&mut said).await, next(&mut said).await), ("asked", "left"));
}

#[tokio::test]
async fn who_has_waited_in_vain_is_told_so() {
    let (service, mut said) = stuck(AT_LAST, Duration::from_millis(20));
    let first = tokio::spawn({
        let service = service.clone();
        async move { post(&service).await }
    });
    assert_eq!(next(&mut said).await, "asked");
    let (head, reply) = post(&service).await;
    assert_eq!((head.status().as_u16(), &reply["error"]["code"]), (429, &json!("too_many_requests")));
    assert_eq!(head.headers()["retry-after"], "1");
    // Who leaves makes room.
    first.abort();
    assert_eq!(next(&mut said).await, "left");
    let third = tokio::spawn(async move { post(&service).await });
    assert_eq!(next(&mut said).await, "asked");
    third.abort();
}

#[tokio::test]
async fn when_a_client_leaves_its_query_ends() {
    let (service, mut said) = stuck(AT_LAST, AT_LAST);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let running = tokio::spawn(crate::run(listener, service, stop.clone()));
    let body = views_of_all().to_string();
    let mut client = TcpStream::connect(address).await.unwrap();
    let head = format!("POST /api/v1/query HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    client.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    assert_eq!(next(&mut said).await, "asked");
    drop(client);
    assert_eq!(next(&mut said).await, "left");
    stop.cancel();
    running.await.unwrap().unwrap();
}
