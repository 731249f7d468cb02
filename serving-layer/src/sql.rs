//! Merged metrics over Postgres' protocol: each metric is a table whose rows merge both views, for psql, Grafana, Metabase
//! and whatever else speaks to Postgres.
//!
//! DataFusion plans and runs the statements, datafusion-postgres speaks the protocol and plays the system catalog. Ours is
//! what a table holds, who may read it, and that all tables of a statement are read at one tidemark. It is read-only, what
//! a statement can't promise fails it unless the session says otherwise, and where keys are asked for, a key is the
//! password.
//!
//! Statements run on threads of their own, so that they hold up nobody who asks over HTTP.

mod condition;
mod connection;
mod guard;
mod kept;
mod limit;
mod scan;
mod session;
mod startup;
mod system;
mod table;
mod untold;

use crate::service::Service;
use anyhow::{Context as _, Result};
use session::Engine;
use startup::Cancels;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// What SQL may cost, beside what any request may.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SqlLimits {
    /// The most connections.
    pub(crate) connections: usize,
    /// The most memory that statements take together for rows read, sorting, joining, grouping and rows to be sent, in bytes.
    pub(crate) memory: usize,
}

/// How many threads statements run on.
const THREADS: usize = 2;
/// How much a thread's stack may grow (it is not taken before): a statement nests as deep as it has operators.
const STACK: usize = 64 << 20;

/// What all connections share.
#[derive(Clone)]
struct Shared {
    service: Service,
    limits: SqlLimits,
    engine: Arc<Engine>,
    cancels: Arc<Cancels>,
    /// Places of connections that were let in, and of those that are not yet.
    places: Arc<Semaphore>,
    arriving: Arc<Semaphore>,
    /// Where the views are read: the threads that HTTP is served on.
    main: Handle,
}

/// What serves SQL, set up and not begun.
pub(crate) struct Server {
    listener: TcpListener,
    shared: Shared,
    threads: Runtime,
}

impl Server {
    /// On a socket that is listened to.
    ///
    /// # Errors
    /// Where the engine or its threads can't be set up.
    pub(crate) fn new(listener: TcpListener, service: Service, limits: SqlLimits) -> Result<Server> {
        let shared = Shared {
            service,
            limits,
            engine: Arc::new(Engine::new(limits.memory)?),
            cancels: Arc::default(),
            places: Arc::new(Semaphore::new(limits.connections)),
            arriving: Arc::new(Semaphore::new(limits.connections)),
            main: Handle::current(),
        };
        let threads = threads().context("starting the threads that SQL runs on (--sql-listen)")?;
        Ok(Server { listener, shared, threads })
    }

    /// Serves until `shutdown`, which ends all connections.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let Server { listener, shared, threads } = self;
        let address = listener.local_addr().map(|address| address.to_string());
        tracing::info!(address = address.unwrap_or_default(), "serving SQL");
        accept(&listener, &shared, &threads, &shutdown).await;
        // This is no place to block.
        threads.shutdown_background();
    }
}

fn threads() -> std::io::Result<Runtime> {
    let mut threads = Builder::new_multi_thread();
    threads.worker_threads(THREADS).thread_stack_size(STACK).thread_name("sql").enable_all();
    // A statement works for long between two times that it lets others have their turn: who cancels it, and its time limit,
    // are looked at each time.
    threads.event_interval(1).build()
}

async fn accept(listener: &TcpListener, shared: &Shared, threads: &Runtime, shutdown: &CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (socket, client) = match accepted {
            Ok(accepted) => accepted,
            // Out of file descriptors, most likely: some will be given back.
            Err(error) => {
                tracing::warn!(%error, "a connection for SQL can't be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(arriving) = shared.arriving.clone().try_acquire_owned() else {
            tracing::warn!(%client, "a connection for SQL is dropped: too many are not let in yet");
            continue;
        };
        crate::connection::set_up(&socket, shared.service.views.limits.time_limit);
        // From here on its threads listen to it.
        let Ok(socket) = socket.into_std() else { continue };
        let (shared, stop) = (shared.clone(), shutdown.clone());
        threads.spawn(async move {
            let served = async {
                let socket = tokio::net::TcpStream::from_std(socket)?;
                connection::serve(&shared, arriving, socket).await
            };
            tokio::select! {
                () = stop.cancelled() => {}
                served = served => if let Err(error) = served {
                    tracing::debug!(%client, "a connection for SQL ended: {error:#}");
                },
            }
        });
    }
}
