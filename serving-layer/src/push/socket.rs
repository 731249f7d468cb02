//! Push over a WebSocket: one connection carries several subscriptions, each under a name of the client's own.
//!
//! A connection is one task. It writes one message at a time, and while it writes it asks no subscription for more; a client
//! that takes nothing, or gives no sign of life, is let go of.

use super::history::Event;
use super::message::{Message as Asked, Subscribe, refused, told, unsubscribed};
use super::{Place, Push, Subscription};
use crate::access::{SUBSCRIBE, Scoped};
use crate::error::ServeError;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use futures::stream::{self, BoxStream, StreamExt as _};
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_stream::StreamMap;
use url::Url;

/// The most subscriptions of one connection.
const SUBSCRIPTIONS: usize = 64;
/// The longest message of a client in bytes: it has room for any query that may be subscribed to.
const LONGEST: usize = 128 << 10;
/// What is read and written at once: most messages are short.
const BUFFER: usize = 4 << 10;
/// So many heartbeats without an answer are the end.
const UNANSWERED: u32 = 2;
/// What a client may ask for by name; one that has to name a protocol, as a browser with a key, names this.
const PROTOCOL: &str = "tidemark";
/// How long a client that is told that the connection ends may take to agree.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);

/// `GET /api/v1/subscribe`
pub(crate) async fn subscribe(
    scoped: Scoped,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ServeError> {
    let Scoped { service, .. } = &scoped;
    from_here(&headers, &service.origins)?;
    let upgrade = upgrade.map_err(|rejection| ServeError::NoWebSocket(rejection.body_text()))?;
    let place = service.push.place()?;
    let longest = service.views.limits.max_body.min(LONGEST);
    let upgrade = upgrade.max_message_size(longest).max_frame_size(longest);
    let upgrade = upgrade.protocols([PROTOCOL]).read_buffer_size(BUFFER).write_buffer_size(BUFFER);
    Ok(upgrade.on_upgrade(move |socket| Connection::new(scoped, socket).run(place)))
}

/// Refuses pages from elsewhere, but for those of origins that are named: a browser lets any page open a WebSocket to anywhere, and says where it came from.
fn from_here(headers: &HeaderMap, origins: &[HeaderValue]) -> Result<(), ServeError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    if origins.iter().any(|named| named == origin || named == "*") {
        return Ok(());
    }
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let (origin, host) = (text(origin), headers.get(header::HOST).map(text).unwrap_or_default());
    let place = |url: &Url| Some((url.host()?.to_owned(), url.port_or_known_default()));
    let came_from = Url::parse(&origin).ok();
    // The port that goes without saying is that of the origin's scheme.
    let here = came_from.as_ref().and_then(|url| Url::parse(&format!("{}://{host}", url.scheme())).ok());
    match (came_from.as_ref().and_then(place), here.as_ref().and_then(place)) {
        (Some(there), Some(here)) if there == here => Ok(()),
        _ => Err(ServeError::ForeignOrigin { origin, host }),
    }
}

/// The client has gone, or is to be let go of: a frame, where it is to be told why.
struct Ended(Option<CloseFrame>);

impl Ended {
    fn saying(code: u16, reason: &'static str) -> Ended {
        Ended(Some(CloseFrame { code, reason: reason.into() }))
    }
}

struct Connection {
    scoped: Scoped,
    socket: WebSocket,
    /// Of each subscription, by its name: its events, and nothing once there will be no more.
    subscriptions: StreamMap<String, BoxStream<'static, Option<Event>>>,
}

impl Connection {
    fn new(scoped: Scoped, socket: WebSocket) -> Connection {
        Connection { scoped, socket, subscriptions: StreamMap::new() }
    }

    async fn run(mut self, _place: Place) {
        let Err(Ended(frame)) = self.serve().await;
        if frame.is_none() || self.send(Message::Close(frame)).await.is_ok() {
            // What answers the client's own end is written when more is asked for; and a connection that is dropped before
            // the client has read all may lose what was sent last.
            let answered = async { while let Some(Ok(_)) = self.socket.recv().await {} };
            let _ = timeout(CLOSED_WITHIN, answered).await;
        }
    }

    async fn serve(&mut self) -> Result<Infallible, Ended> {
        let heartbeat = self.scoped.service.push.limits().heartbeat;
        let stop = self.scoped.service.push.stopped();
        let mut beats = interval_at(Instant::now() + heartbeat, heartbeat);
        // After a long write each ping has its time to be answered, too.
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unanswered = 0;
        loop {
            tokio::select! {
                // In this order: what has come is heard before it is missed.
                biased;
                () = stop.cancelled() => return Err(Ended::saying(close_code::AWAY, "the service stops")),
                () = self.scoped.ended() => return Err(Ended::saying(close_code::POLICY, "the key's time is over")),
                message = self.socket.recv() => {
                    unanswered = 0;
                    self.hear(message).await?;
                }
                _ = beats.tick() => {
                    if unanswered >= UNANSWERED {
                        return Err(Ended::saying(close_code::POLICY, "no sign of life came"));
                    }
                    unanswered += 1;
                    self.send(Message::Ping(Default::default())).await?;
                }
                event = self.subscriptions.next(), if !self.subscriptions.is_empty() => match event {
                    Some((id, Some(event))) => self.say(told(&id, &event)).await?,
                    // When all stops, or the key's time is over, each subscription ends too.
                    Some((_, None)) if stop.is_cancelled() || self.scoped.has_ended() => {}
                    Some((_, None)) => {
                        let why = "a subscription has ended: connect again";
                        return Err(Ended::saying(close_code::ERROR, why));
                    }
                    None => {}
                },
            }
        }
    }

    async fn hear(&mut self, message: Option<Result<Message, axum::Error>>) -> Result<(), Ended> {
        match message {
            Some(Ok(Message::Text(text))) => self.take(&text).await,
            Some(Ok(Message::Binary(_))) => {
                let error = ServeError::Message("it is binary: send JSON as text".to_owned());
                self.say(refused(None, &error)).await
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
            Some(Ok(Message::Close(_)) | Err(_)) | None => Err(Ended(None)),
        }
    }

    async fn say(&mut self, text: String) -> Result<(), Ended> {
        self.send(Message::Text(text.into())).await
    }

    /// Writes a message to its end, if the client takes it in time.
    async fn send(&mut self, message: Message) -> Result<(), Ended> {
        let within = self.scoped.service.push.limits().stalled;
        match timeout(within, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Ended(None)),
        }
    }

    /// Does what a message asks for.
    async fn take(&mut self, text: &str) -> Result<(), Ended> {
        if let Err(error) = self.scoped.count() {
            return self.say(refused(None, &error)).await;
        }
        match Asked::parse(text) {
            Ok(Asked::Subscribe(asked)) => {
                let id = asked.id.clone();
                match self.subscribe(asked, text).await {
                    Ok(()) => Ok(()),
                    Err(error) => self.say(refused(Some(&id), &error)).await,
                }
            }
            Ok(Asked::Unsubscribe(id)) => match self.subscriptions.remove(&id) {
                Some(ended) => {
                    drop(ended);
                    self.say(unsubscribed(&id)).await
                }
                None => {
                    let error = ServeError::Message("nothing is subscribed to under this id".to_owned());
                    self.say(refused(Some(&id), &error)).await
                }
            },
            Err(error) => self.say(refused(None, &error)).await,
        }
    }

    /// Does so, and has it logged as a request of its own.
    async fn subscribe(&mut self, asked: Subscribe, text: &str) -> Result<(), ServeError> {
        let pending = self.scoped.asks("SUBSCRIBE", SUBSCRIBE, text)?;
        let done = self.subscribed(asked).await;
        pending.end(done.as_ref().map_or_else(|error| error.code().status().as_u16(), |()| 200));
        done
    }

    async fn subscribed(&mut self, asked: Subscribe) -> Result<(), ServeError> {
        if self.subscriptions.contains_key(&asked.id) {
            let why = "this id is taken: unsubscribe from it first, or take another";
            return Err(ServeError::Message(why.to_owned()));
        }
        if self.subscriptions.len() >= SUBSCRIPTIONS {
            return Err(ServeError::Message(format!(
                "a connection has at most {SUBSCRIPTIONS} subscriptions: open another one"
            )));
        }
        let (id, last) = (asked.id.clone(), asked.last.clone());
        let look = asked.look(&self.scoped).await?;
        let subscription = Push::subscribe(&self.scoped, look, last.as_deref())?;
        self.subscriptions.insert(id, events(subscription).boxed());
        Ok(())
    }
}

/// The events of a subscription, and nothing once there will be no more.
fn events(subscription: Subscription) -> impl stream::Stream<Item = Option<Event>> {
    let next = |mut subscription: Subscription| async move {
        let event = subscription.next().await?;
        Some((event, subscription))
    };
    stream::unfold(subscription, next).map(Some).chain(stream::once(async { None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_from_elsewhere_are_refused() {
        let check = |origin: Option<&str>, host: &str, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
            }
            assert_eq!(from_here(&headers, &[]).is_ok(), expected, "{origin:?} at {host}");
            assert!(from_here(&headers, &[HeaderValue::from_static("*")]).is_ok());
            let named = HeaderValue::from_static("http://b.example");
            let is_named = origin == Some("http://b.example");
            assert_eq!(from_here(&headers, &[named]).is_ok(), expected || is_named, "{origin:?} at {host}");
        };
        check(None, "a.example", true);
        check(Some("http://a.example"), "a.example", true);
        check(Some("http://A.example:80"), "a.example", true);
        check(Some("https://a.example"), "a.example:443", true);
        check(Some("http://127.0.0.1:8080"), "127.0.0.1:8080", true);
        check(Some("http://[::1]:8080"), "[::1]:8080", true);
        check(Some("http://b.example"), "a.example", false);
        check(Some("http://a.example.b.example"), "a.example", false);
        check(Some("http://a.example:81"), "a.example", false);
        check(Some("https://a.example"), "a.example:80", false);
        check(Some("null"), "a.example", false);
        check(Some(""), "a.example", false);
        check(Some("http://a.example"), "", false);
    }
}
