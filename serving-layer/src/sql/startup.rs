//! How a client is let in: without keys any, else whose password is one. And how it takes a statement back.

use super::Shared;
use super::guard::Guard;
use super::session::{self, Session};
use super::system;
use crate::access::Scoped;
use crate::error::ServeError;
use crate::service::Service;
use async_trait::async_trait;
use datafusion_postgres::pgwire::api::auth::{
    DefaultServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
    save_startup_parameters_to_metadata,
};
use datafusion_postgres::pgwire::api::cancel::CancelHandler;
use datafusion_postgres::pgwire::api::{ClientInfo, PgWireConnectionState};
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::cancel::CancelRequest;
use datafusion_postgres::pgwire::messages::startup::{Authentication, SecretKey};
use datafusion_postgres::pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use futures::{Sink, SinkExt as _};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Lets a client in.
pub(super) struct Startup {
    service: Service,
    main: Handle,
    session: Session,
    guard: Arc<Guard>,
    places: Arc<Semaphore>,
    connections: usize,
    cancels: Arc<Cancels>,
    cancel: Arc<Notify>,
    entry: Mutex<Entry>,
}

/// What a connection holds: first a place among those that arrive, then one among those that are let in.
#[derive(Default)]
struct Entry {
    place: Option<OwnedSemaphorePermit>,
    /// By what its client may take statements back.
    known_by: Option<(i32, i32)>,
}

/// What wakes the statements of each connection to end, by its process id and secret.
#[derive(Default)]
pub(super) struct Cancels(Mutex<HashMap<(i32, i32), Arc<Notify>>>);

impl Cancels {
    fn learn(&self, known_by: (i32, i32), cancel: &Arc<Notify>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(known_by, cancel.clone());
    }
}

#[async_trait]
impl CancelHandler for Cancels {
    async fn on_cancel_request(&self, request: CancelRequest) {
        let Some(secret) = request.secret_key.as_i32() else { return };
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(request.pid, secret)).into_iter().for_each(|cancel| cancel.notify_waiters());
    }
}

impl Startup {
    pub(super) fn new(
        shared: &Shared,
        session: Session,
        guard: Arc<Guard>,
        arriving: OwnedSemaphorePermit,
        cancel: Arc<Notify>,
    ) -> Startup {
        let entry = Mutex::new(Entry { place: Some(arriving), known_by: None });
        Startup {
            service: shared.service.clone(),
            main: shared.main.clone(),
            session,
            guard,
            places: shared.places.clone(),
            connections: shared.limits.connections,
            cancels: shared.cancels.clone(),
            cancel,
            entry,
        }
    }

    /// Opens the session to a key.
    fn open(&self, password: Option<&str>) -> PgWireResult<()> {
        let scoped = Scoped::connected(&self.service, password).map_err(refused)?;
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            let most = self.connections;
            let why = format!("{most} connections, as many as may be, are there: raise --sql-connections");
            return Err(fatal("53300", why));
        };
        self.session.open(&scoped, &self.main).map_err(|error| fatal("XX000", error.to_string()))?;
        self.entry.lock().unwrap_or_else(PoisonError::into_inner).place = Some(place);
        self.guard.open(scoped);
        Ok(())
    }

    async fn welcome<C>(&self, client: &mut C) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let known_by = (rand::random::<i32>(), rand::random::<i32>());
        self.entry.lock().unwrap_or_else(PoisonError::into_inner).known_by = Some(known_by);
        self.cancels.learn(known_by, &self.cancel);
        client.set_pid_and_secret_key(known_by.0, SecretKey::I32(known_by.1));
        let mut parameters = DefaultServerParameterProvider::default();
        parameters.server_version = system::SERVER.to_owned();
        parameters.search_path = session::SCHEMA.to_owned();
        parameters.is_superuser = false;
        parameters.default_transaction_read_only = true;
        finish_authentication(client, &parameters).await
    }
}

impl Drop for Startup {
    fn drop(&mut self) {
        let entry = self.entry.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(known_by) = entry.known_by {
            self.cancels.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&known_by);
        }
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
            _ => Err(fatal("08P01", "a client says first who it is".to_owned())),
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
