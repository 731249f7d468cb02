//! Requests to the serving layer, and the connections that they go over: asking is to cost little beside answering.
//!
//! Of every answer the part that was asked for is held against what is right; the rest is not read.

use crate::load::{Ask, Call};
use anyhow::ensure;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Uri};
use hyper_util::rt::TokioIo;
use rand::rngs::SmallRng;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::{Arc, OnceLock};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// What is right.
#[derive(Clone, Debug)]
pub(crate) enum Right {
    /// A live counter has this value.
    Value(u64),
    /// There is one row, with so many views.
    Views(u64),
    /// It is what was answered first, for nothing changes meanwhile.
    AsFirst(Arc<OnceLock<Box<str>>>),
}

impl Right {
    fn check(&self, answer: &[u8]) -> anyhow::Result<()> {
        let Answer { part } = serde_json::from_slice(answer)?;
        let is_right = match self {
            Right::Value(value) => part.get().parse::<u64>().ok() == Some(*value),
            Right::Views(views) => {
                let rows: Vec<Row> = serde_json::from_str(part.get())?;
                matches!(rows.as_slice(), [row] if row.values.user_view_cnt == *views)
            }
            Right::AsFirst(first) => {
                part.get() != "[]" && **first.get_or_init(|| part.get().into()) == *part.get()
            }
        };
        ensure!(is_right, "not {self:?}: {}", String::from_utf8_lossy(answer));
        Ok(())
    }
}

/// What was asked for: a live answer's value or items, or a query's rows.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow, alias = "value", alias = "items", alias = "rows")]
    part: &'a RawValue,
}

#[derive(Deserialize)]
struct Row {
    values: Values,
}

#[derive(Deserialize)]
struct Values {
    user_view_cnt: u64,
}

/// One request, and what its answer is to be.
pub(crate) struct Request {
    pub(crate) uri: Uri,
    /// Empty but for a query.
    pub(crate) body: Bytes,
    pub(crate) right: Right,
}

/// Requests of one kind to one serving layer.
pub(crate) struct Requests {
    address: String,
    /// Their method and headers.
    head: hyper::Request<Full<Bytes>>,
    draw: Box<dyn Fn(&mut SmallRng) -> Request + Send + Sync>,
}

impl Requests {
    /// As they are drawn, to the serving layer at an address.
    pub(crate) fn new(
        address: &str,
        method: Method,
        draw: impl Fn(&mut SmallRng) -> Request + Send + Sync + 'static,
    ) -> Arc<Requests> {
        let mut head = hyper::Request::new(Full::<Bytes>::default());
        *head.method_mut() = method;
        head.headers_mut().insert(HOST, HeaderValue::from_str(address).expect("host and port"));
        head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Arc::new(Requests { address: address.to_owned(), head, draw: Box::new(draw) })
    }

    pub(crate) fn draw(&self, random: &mut SmallRng) -> Request {
        (self.draw)(random)
    }

    /// Asks over one connection, which is opened here: the next request once the one before is answered.
    pub(crate) async fn one_at_a_time(self: &Arc<Self>) -> anyhow::Result<Ask> {
        let (requests, connection) = (self.clone(), Arc::new(Mutex::new(Connection::open(self).await?)));
        Ok(Arc::new(move |random: &mut SmallRng| -> Call {
            let (connection, request) = (connection.clone(), requests.draw(random));
            Box::pin(async move { connection.lock().await.ask(request).await })
        }))
    }
}

/// One connection, which is kept. It belongs to the runtime in which it was opened.
pub(crate) struct Connection {
    head: hyper::Request<Full<Bytes>>,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Opens one for such requests.
    pub(crate) async fn open(requests: &Requests) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(requests.address.as_str()).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await?;
        // It ends with its sender, which is told of what befalls it.
        tokio::spawn(connection);
        Ok(Connection { head: requests.head.clone(), sender })
    }

    /// Asks, and waits for the answer; a refusal and a wrong answer are errors.
    pub(crate) async fn ask(&mut self, request: Request) -> anyhow::Result<()> {
        let mut asked = self.head.clone();
        *asked.uri_mut() = request.uri;
        *asked.body_mut() = Full::new(request.body);
        self.sender.ready().await?;
        let answer = self.sender.send_request(asked).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
        request.right.check(&body)
    }
}
