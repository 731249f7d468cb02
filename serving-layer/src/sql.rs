//! Merged metrics over Postgres' protocol: each metric is a table whose rows merge both views, for psql, Grafana, Metabase
//! and whatever else speaks to Postgres.
//!
//! DataFusion plans and runs the statements, datafusion-postgres speaks the protocol and plays the system catalog. Ours is
//! what a table holds, who may read it, and that all tables of a statement are read at one tidemark. It is read-only, what
//! a statement can't promise fails it unless the session says otherwise, and where keys are asked for, a key is the
//! password.

mod condition;
mod guard;
mod limit;
mod scan;
mod session;
mod table;

use crate::access::Scoped;
use crate::error::ServeError;
use crate::service::Service;
use anyhow::{Context as _, Result};
use async_trait::async_trait;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion_postgres::DfSessionService;
use datafusion_postgres::pgwire::api::auth::{
    DefaultServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
    save_startup_parameters_to_metadata,
};
use datafusion_postgres::pgwire::api::cancel::{CancelHandler, DefaultCancelHandler};
use datafusion_postgres::pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use datafusion_postgres::pgwire::api::{
    ClientInfo, ConnectionGuard, ConnectionHandle, ConnectionManager, PgWireConnectionState,
    PgWireServerHandlers,
};
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::startup::Authentication;
use datafusion_postgres::pgwire::messages::startup::SecretKey;
use datafusion_postgres::pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use datafusion_postgres::pgwire::tokio::process_socket;
use futures::{Sink, SinkExt as _};
use guard::Guard;
use session::Session;
use std::fmt;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// What SQL may cost, beside what any request may.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SqlLimits {
    /// The most connections.
    pub connections: usize,
    /// The most memory that statements take together for sorting, joining and grouping, in bytes.
    pub memory: usize,
}

/// Serves SQL until `shutdown`, which ends all connections.
///
/// # Errors
/// Where the engine can't be set up, or the socket fails.
pub(crate) async fn run(
    listener: TcpListener,
    service: Service,
    limits: SqlLimits,
    shutdown: CancellationToken,
) -> Result<()> {
    let address = listener.local_addr().context("reading the address that is listened on (--sql-listen)")?;
    tracing::info!(%address, "serving SQL");
    let runtime = session::runtime(limits.memory)?;
    let cancels = Arc::new(ConnectionManager::new());
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let (socket, client) = match accepted {
            Ok(accepted) => accepted,
            // Out of file descriptors, most likely: some will be given back.
            Err(error) => {
                tracing::warn!(%error, "a connection for SQL can't be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        crate::connection::set_up(&socket, service.views.limits.time_limit);
        let place = places.clone().try_acquire_owned().ok();
        let connection = Connection::new(&service, &runtime, place, limits.connections, &cancels)?;
        let stop = shutdown.clone();
        tokio::spawn(async move {
            let served = tokio::select! {
                () = stop.cancelled() => return,
                served = process_socket(socket, None, connection) => served,
            };
            if let Err(error) = served {
                tracing::debug!(%client, %error, "a connection for SQL ended");
            }
        });
    }
}

/// What serves one connection.
struct Connection {
    statements: Arc<DfSessionService>,
    startup: Arc<Startup>,
    cancel: Arc<DefaultCancelHandler>,
    /// Given back with the connection.
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    fn new(
        service: &Service,
        runtime: &Arc<RuntimeEnv>,
        place: Option<OwnedSemaphorePermit>,
        places: usize,
        cancels: &Arc<ConnectionManager>,
    ) -> Result<Connection> {
        let session = Arc::new(Session::new(runtime.clone(), service.views.limits.time_limit)?);
        let guard = Arc::new(Guard::default());
        let full = place.is_none().then_some(places);
        let statements = DfSessionService::new_with_hooks(session.context(), guard::hooks(guard.clone()));
        let startup = Startup { service: service.clone(), session, guard, full, cancels: cancels.clone() };
        Ok(Connection {
            statements: Arc::new(statements),
            startup: Arc::new(startup),
            cancel: Arc::new(DefaultCancelHandler::new(cancels.clone())),
            _place: place,
        })
    }
}

impl PgWireServerHandlers for Connection {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        self.statements.clone()
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        self.statements.clone()
    }

    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        self.startup.clone()
    }

    fn cancel_handler(&self) -> Arc<impl CancelHandler> {
        self.cancel.clone()
    }
}

/// Lets a client in: without keys any, else whose password is one.
struct Startup {
    service: Service,
    session: Arc<Session>,
    guard: Arc<Guard>,
    /// How many connections there may be, where this one is one too many.
    full: Option<usize>,
    cancels: Arc<ConnectionManager>,
}

impl Startup {
    /// Opens the session to a key.
    fn open(&self, password: Option<&str>) -> PgWireResult<()> {
        let scoped = Scoped::connected(&self.service, password).map_err(refused)?;
        self.session.open(&scoped).map_err(|error| fatal("XX000", error.to_string()))?;
        self.guard.open(scoped);
        Ok(())
    }

    async fn welcome<C>(&self, client: &mut C) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let (pid, secret) = (rand::random::<i32>(), SecretKey::I32(rand::random()));
        let (handle, guard) = self.cancels.register(pid, secret.clone());
        client.set_pid_and_secret_key(pid, secret);
        client.session_extensions().insert::<Arc<ConnectionHandle>>(handle);
        client.session_extensions().insert::<ConnectionGuard>(guard);
        let mut parameters = DefaultServerParameterProvider::default();
        parameters.search_path = session::SCHEMA.to_owned();
        parameters.is_superuser = false;
        parameters.default_transaction_read_only = true;
        finish_authentication(client, &parameters).await
    }
}

#[async_trait]
impl StartupHandler for Startup {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match message {
            PgWireFrontendMessage::Startup(startup) => {
                protocol_negotiation(client, &startup).await?;
                save_startup_parameters_to_metadata(client, &startup);
                if let Some(places) = self.full {
                    let why = format!(
                        "{places} connections, as many as may be, are there: raise --sql-connections"
                    );
                    return Err(fatal("53300", why));
                }
                if self.service.access.is_none() {
                    self.open(None)?;
                    return self.welcome(client).await;
                }
                client.set_state(PgWireConnectionState::AuthenticationInProgress);
                let ask = PgWireBackendMessage::Authentication(Authentication::CleartextPassword);
                Ok(client.send(ask).await?)
            }
            PgWireFrontendMessage::PasswordMessageFamily(answer) => {
                let answer = answer.into_password()?;
                self.open(Some(&answer.password))?;
                self.welcome(client).await
            }
            _ => Ok(()),
        }
    }
}

/// What a client is told that isn't let in, which ends the connection.
fn refused(error: ServeError) -> PgWireError {
    error.note();
    match error {
        ServeError::NoKey => {
            fatal("28P01", "a valid key is needed as the password; the user may be any".to_owned())
        }
        other => fatal("57P03", other.line()),
    }
}

fn fatal(code: &str, message: String) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("FATAL".to_owned(), code.to_owned(), message)))
}
