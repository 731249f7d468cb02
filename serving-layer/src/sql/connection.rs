//! One connection: its messages, one after the other, each within what a message may be.
//!
//! Until a client is let in, an error ends the connection, and so does a minute's silence or a long message.

use super::Shared;
use super::guard::{self, Guard};
use super::session::Session;
use super::startup::{Cancels, Startup};
use anyhow::{Result, bail};
use datafusion_postgres::DfSessionService;
use datafusion_postgres::pgwire::api::NoopHandler;
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError};
use datafusion_postgres::pgwire::messages::PgWireFrontendMessage;
use datafusion_postgres::pgwire::tokio::server::{negotiate_tls, process_error, process_message};
use futures::{Stream as _, future::poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::timeout;

/// The longest text of a statement.
const MAX_TEXT: usize = 64 << 10;
/// The most operators of a statement: a chain of them nests as deep, which takes the planner stack, and time by its square.
const MAX_OPERATORS: usize = 1_000;
/// The longest message, with a statement's parameters; of who isn't let in yet much less.
const MAX_MESSAGE: usize = 1 << 20;
const MAX_OF_STRANGERS: usize = 16 << 10;
/// How long letting in may take.
const WITHIN: Duration = Duration::from_secs(60);
/// The most rows that are fetched at once from a portal, which makes room for as many as are asked for.
const MAX_FETCHED: i32 = 10_000;

/// What serves one connection.
pub(super) struct Connection {
    statements: Arc<DfSessionService>,
    startup: Arc<Startup>,
    guard: Arc<Guard>,
    cancels: Arc<Cancels>,
}

impl Connection {
    /// A connection that holds one of the places of those that aren't let in yet.
    ///
    /// # Errors
    /// Where the engine can't be made.
    pub(super) fn new(shared: &Shared, arriving: OwnedSemaphorePermit) -> Result<Connection> {
        let cancel = Arc::new(Notify::new());
        let limit = shared.service.views.limits.time_limit;
        let session = Session::new(shared.engine.clone(), limit, cancel.clone())?;
        let guard = Arc::new(Guard::default());
        let statements = DfSessionService::new_with_hooks(session.context(), guard::hooks(guard.clone()));
        let startup = Startup::new(shared, session, guard.clone(), arriving, cancel);
        let (statements, startup) = (Arc::new(statements), Arc::new(startup));
        Ok(Connection { statements, startup, guard, cancels: shared.cancels.clone() })
    }

    /// Serves it until its client leaves or is not let in.
    ///
    /// # Errors
    /// Where the socket fails or what comes is not of the protocol.
    pub(super) async fn serve(self, socket: TcpStream) -> Result<()> {
        let Some(mut socket) = timeout(WITHIN, negotiate_tls(socket, None)).await?? else { return Ok(()) };
        loop {
            let is_in = self.guard.is_open();
            let most = if is_in { MAX_MESSAGE } else { MAX_OF_STRANGERS };
            let next = poll_fn(|cx| match Pin::new(&mut socket).poll_next(cx) {
                Poll::Pending if socket.read_buffer().len() > most => Poll::Ready(Err(most)),
                polled => polled.map(Ok),
            });
            let next = if is_in { next.await } else { timeout(WITHIN, next).await? };
            let message = match next {
                Ok(Some(message)) => message?,
                Ok(None) => return Ok(()),
                Err(most) => bail!("a message is longer than the limit of {most} bytes"),
            };
            let (is_last, is_extended) = (
                matches!(
                    message,
                    PgWireFrontendMessage::Terminate(_) | PgWireFrontendMessage::CancelRequest(_)
                ),
                message.is_extended_query(),
            );
            let done = match within_limits(message) {
                Ok(message) => {
                    let (startup, statements) = (self.startup.clone(), self.statements.clone());
                    let (copy, cancels) = (Arc::new(NoopHandler), self.cancels.clone());
                    process_message(
                        message,
                        &mut socket,
                        startup,
                        statements.clone(),
                        statements,
                        copy,
                        cancels,
                    )
                    .await
                }
                Err(error) => Err(error),
            };
            self.guard.end(done.is_ok());
            if let Err(error) = done {
                process_error(&mut socket, error, is_extended).await?;
                if !self.guard.is_open() {
                    return Ok(());
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }
}

/// A message that asks for no more than it may.
fn within_limits(mut message: PgWireFrontendMessage) -> Result<PgWireFrontendMessage, PgWireError> {
    let text = match &mut message {
        PgWireFrontendMessage::Query(query) => query.query.as_str(),
        PgWireFrontendMessage::Parse(parse) => parse.query.as_str(),
        PgWireFrontendMessage::Execute(execute) => {
            // 0 is all of them. Of fewer than were asked for, the client asks on.
            execute.max_rows = execute.max_rows.clamp(0, MAX_FETCHED);
            ""
        }
        _ => "",
    };
    let (length, operators) = (text.len(), operators(text));
    let why = if length > MAX_TEXT {
        format!("a statement of {length} bytes is longer than the limit of {MAX_TEXT}")
    } else if operators > MAX_OPERATORS {
        format!(
            "a statement of {operators} operators has more than the limit of {MAX_OPERATORS}: use IN for lists"
        )
    } else {
        return Ok(message);
    };
    Err(PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".into(), "54000".into(), why))))
}

/// How many operators a text has at most, those in its texts and names left out.
fn operators(text: &str) -> usize {
    let (mut count, mut quote) = (0, None);
    let bare: String = text
        .chars()
        .map(|c| match quote {
            Some(open) => {
                quote = (c != open).then_some(open);
                ' '
            }
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                ' '
            }
            None => c.to_ascii_lowercase(),
        })
        .collect();
    count += bare.chars().filter(|c| "+-*/%|&^~<>=!(:[".contains(*c)).count();
    let words = bare.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let joins = ["and", "or", "not", "union", "except", "intersect", "like", "between", "is", "in", "join"];
    count + words.filter(|word| joins.contains(word)).count()
}

#[cfg(test)]
mod tests {
    use super::operators;

    #[test]
    fn operators_are_counted_outside_of_texts_and_names() {
        for (text, expected) in [
            ("", 0),
            ("select a from b", 0),
            ("select 1+1 - 1", 2),
            ("select 'a + b or c', \"x-y\" from t", 0),
            ("select a from t where a = 'it''s' AND b in (1, 2) or not c", 6),
            ("select 1 union all select 2", 1),
        ] {
            assert_eq!(operators(text), expected, "{text}");
        }
    }
}
