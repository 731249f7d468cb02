//! One connection: its messages, one after the other, each within what a message may be.
//!
//! Until a client is let in, an error ends the connection, and so does a minute's silence or a long message.

use super::Shared;
use super::guard::{self, Guard};
use super::limit::Held;
use super::session::Session;
use super::startup::{Cancels, Startup};
use anyhow::{Result, bail};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, TokenizerError};
use datafusion_postgres::DfSessionService;
use datafusion_postgres::pgwire::api::cancel::CancelHandler as _;
use datafusion_postgres::pgwire::api::query::ExtendedQueryHandler;
use datafusion_postgres::pgwire::api::{ClientInfo as _, NoopHandler, PgWireConnectionState};
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError};
use datafusion_postgres::pgwire::messages::PgWireFrontendMessage;
use datafusion_postgres::pgwire::tokio::server::{
    MaybeTls, PgWireMessageServerCodec, negotiate_tls, process_error, process_message,
};
use futures::{Stream as _, future::poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::timeout;
use tokio_util::codec::Framed;

/// The longest text of a statement.
const MAX_TEXT: usize = 64 << 10;
/// The most operators, keywords and signs of a message's statements: a chain of them nests as deep, which takes the planner
/// stack, and time by its square.
const MAX_OPERATORS: usize = 1_000;
/// The longest message, with a statement's parameters; of who isn't let in yet much less.
const MAX_MESSAGE: usize = 1 << 20;
const MAX_OF_STRANGERS: usize = 16 << 10;
/// How long each step of letting in may take.
const WITHIN: Duration = Duration::from_secs(60);
/// The most rows that may be asked for at once, since as much room is made for them.
pub(super) const MAX_FETCHED: u64 = 1_000_000;

type Socket =
    Framed<MaybeTls, PgWireMessageServerCodec<<DfSessionService as ExtendedQueryHandler>::Statement>>;

/// What serves one connection.
struct Connection {
    statements: Arc<DfSessionService>,
    startup: Arc<Startup>,
    guard: Arc<Guard>,
    cancels: Arc<Cancels>,
    /// What rows take that wait to be sent.
    held: Arc<Held>,
}

/// Serves a connection, which holds one of the places of those that aren't let in yet, until its client leaves, is not let
/// in, or has a key that is of no use any more.
///
/// # Errors
/// Where the socket fails, what comes is not of the protocol, or a session can't be made.
pub(super) async fn serve(shared: &Shared, arriving: OwnedSemaphorePermit, socket: TcpStream) -> Result<()> {
    let Some(mut socket) = timeout(WITHIN, negotiate_tls(socket, None)).await?? else { return Ok(()) };
    let Some(mut message) = receive(&mut socket, MAX_OF_STRANGERS).await? else { return Ok(()) };
    if let PgWireFrontendMessage::CancelRequest(request) = message {
        shared.cancels.on_cancel_request(request).await;
        return Ok(());
    }
    let connection = Connection::new(shared, arriving)?;
    loop {
        let is_last = matches!(message, PgWireFrontendMessage::Terminate(_));
        let is_extended = message.is_extended_query();
        let done = connection.process(message, &mut socket).await;
        connection.guard.end(done.is_ok());
        connection.held.end();
        if let Err(error) = done {
            process_error(&mut socket, error, is_extended).await?;
            if !connection.guard.is_open() {
                return Ok(());
            }
        }
        if is_last {
            return Ok(());
        }
        let received = match connection.guard.is_open() {
            true => tokio::select! {
                biased;
                () = connection.guard.key_ended() => bail!("its key is of no use any more"),
                received = receive(&mut socket, MAX_MESSAGE) => received?,
            },
            false => receive(&mut socket, MAX_OF_STRANGERS).await?,
        };
        let Some(next) = received else { return Ok(()) };
        message = next;
    }
}

/// The next message, of so many bytes at most; none once the client has left. Who isn't let in yet has a minute for it.
async fn receive(socket: &mut Socket, most: usize) -> Result<Option<PgWireFrontendMessage>> {
    let next = poll_fn(|cx| match Pin::new(&mut *socket).poll_next(cx) {
        Poll::Pending if socket.read_buffer().len() > most => Poll::Ready(Err(most)),
        polled => polled.map(Ok),
    });
    let next = if most == MAX_OF_STRANGERS { timeout(WITHIN, next).await? } else { next.await };
    match next {
        Ok(message) => Ok(message.transpose()?),
        Err(most) => bail!("a message is longer than the limit of {most} bytes"),
    }
}

impl Connection {
    /// A connection that holds one of the places of those that aren't let in yet.
    ///
    /// # Errors
    /// Where the session can't be made.
    fn new(shared: &Shared, arriving: OwnedSemaphorePermit) -> Result<Connection> {
        let cancel = Arc::new(Notify::new());
        let limit = shared.service.views.limits.time_limit;
        let session = Session::new(&shared.engine, limit, cancel.clone())?;
        let (guard, held) = (Arc::new(Guard::default()), session.held());
        let statements = DfSessionService::new_with_hooks(session.context(), guard::hooks(guard.clone()));
        let startup = Startup::new(shared, session, guard.clone(), arriving, cancel);
        let (statements, startup) = (Arc::new(statements), Arc::new(startup));
        Ok(Connection { statements, startup, guard, cancels: shared.cancels.clone(), held })
    }

    async fn process(&self, message: PgWireFrontendMessage, socket: &mut Socket) -> Result<(), PgWireError> {
        let message = within_limits(message)?;
        // Until the end of what failed all messages are passed over.
        let is_taken = !matches!(socket.state(), PgWireConnectionState::AwaitingSync);
        let change = match is_taken {
            true => self.guard.kept().take(&message).map_err(over_limit)?,
            false => None,
        };
        self.held.begin(match &message {
            PgWireFrontendMessage::Execute(_) => true,
            PgWireFrontendMessage::Query(query) => query.query.to_ascii_lowercase().contains("fetch"),
            _ => false,
        });
        let (startup, statements) = (self.startup.clone(), self.statements.clone());
        let (copy, cancels) = (Arc::new(NoopHandler), self.cancels.clone());
        let done =
            process_message(message, socket, startup, statements.clone(), statements, copy, cancels).await;
        if let (Err(_), Some(change)) = (&done, change) {
            self.guard.kept().undo(change);
        }
        done
    }
}

/// A message that asks for no more than it may.
fn within_limits(mut message: PgWireFrontendMessage) -> Result<PgWireFrontendMessage, PgWireError> {
    let (mut text, mut rows) = ("", 0);
    match &mut message {
        PgWireFrontendMessage::Query(query) => text = &query.query,
        PgWireFrontendMessage::Parse(parse) => text = &parse.query,
        PgWireFrontendMessage::Execute(execute) => {
            // 0 is all of them, and what is less means the same.
            execute.max_rows = execute.max_rows.max(0);
            rows = u64::from(execute.max_rows.unsigned_abs());
        }
        _ => {}
    }
    let length = text.len();
    let why = if length > MAX_TEXT {
        format!("a statement of {length} bytes is longer than the limit of {MAX_TEXT}")
    } else if rows > MAX_FETCHED {
        format!(
            "{rows} rows at once are more than the limit of {MAX_FETCHED}: ask for all, or for fewer at a time"
        )
    } else {
        match operators(text) {
            Ok(operators) if operators > MAX_OPERATORS => {
                format!(
                    "{operators} operators and keywords are more than the limit of {MAX_OPERATORS}: use IN for lists"
                )
            }
            Ok(_) => return Ok(message),
            Err(error) => format!("the statement can't be read: {error}"),
        }
    };
    Err(over_limit(why))
}

fn over_limit(why: String) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".into(), "54000".into(), why)))
}

/// How many operators, keywords and signs a text has, but for commas.
fn operators(text: &str) -> Result<usize, TokenizerError> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize()?;
    let nests = |token: &&Token| match token {
        Token::Word(word) => word.keyword != Keyword::NoKeyword,
        Token::Whitespace(_)
        | Token::Comma
        | Token::Period
        | Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::EscapedStringLiteral(_)
        | Token::Placeholder(_) => false,
        _ => true,
    };
    Ok(tokens.iter().filter(nests).count())
}

#[cfg(test)]
mod tests {
    use super::operators;

    #[test]
    fn operators_are_counted_outside_of_texts_names_and_comments() {
        for (text, expected) in [
            ("", 0),
            ("select a from b", 2),
            ("select 1+1 - 1", 3),
            ("select 'a + b or c', \"x-y\" from t", 2),
            ("select 1 /*'*/ + 1 /*'*/ -- + 1", 2),
            ("select E'\\'' + 1", 2),
            ("select 1; select 2", 3),
            ("select a from t where a in ('it''s', 'b', 'c')", 6),
        ] {
            assert_eq!(operators(text).unwrap(), expected, "{text}");
        }
    }
}
