//! A proxy between a client and a server on loopback, which loses what it is told to lose, whole answers after the
//! server has done what was asked, and holds them back as long as it is told to.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A running proxy; ends when dropped.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

struct Shared {
    target: AtomicU16,
    /// Of 10,000 answers so many are lost, each with its connection.
    lost: AtomicU32,
    losses: AtomicU64,
    /// By how many milliseconds each answer comes later.
    delay: AtomicU64,
    rng: Mutex<StdRng>,
    /// Cancelled, and made anew, to break all connections.
    open: Mutex<CancellationToken>,
}

impl Shared {
    fn loses(&self) -> bool {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let loses = rng.random_range(0..10_000) < self.lost.load(Ordering::Relaxed);
        if loses {
            self.losses.fetch_add(1, Ordering::Relaxed);
        }
        loses
    }

    fn open(&self) -> CancellationToken {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Proxy {
    /// Starts a proxy to a port on loopback. It loses nothing until it is told to; what it loses follows from the seed.
    pub async fn start(target: u16, seed: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            target: AtomicU16::new(target),
            lost: AtomicU32::new(0),
            losses: AtomicU64::new(0),
            delay: AtomicU64::new(0),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            open: Mutex::new(CancellationToken::new()),
        });
        let stop = CancellationToken::new();
        tokio::spawn({
            let (shared, stop) = (shared.clone(), stop.clone());
            async move {
                loop {
                    let accepted = tokio::select! { () = stop.cancelled() => return, accepted = listener.accept() => accepted };
                    let Ok((client, _)) = accepted else { continue };
                    let (shared, stop) = (shared.clone(), stop.clone());
                    tokio::spawn(async move {
                        let broken = shared.open();
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = broken.cancelled() => {}
                            // A connection that ends is no fault of the test's.
                            _ = forward(client, &shared) => {}
                        }
                    });
                }
            }
        });
        Proxy { port, shared, stop }
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address, as a Redis URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Holds each answer back so long from now on.
    pub fn delay(&self, by: Duration) {
        self.shared.delay.store(by.as_millis() as u64, Ordering::Relaxed);
    }

    /// Loses so many of 10,000 answers from now on, and breaks the connection that waits for one.
    pub fn lose(&self, of_ten_thousand: u32) {
        self.shared.lost.store(of_ten_thousand, Ordering::Relaxed);
    }

    /// How many answers were lost so far.
    pub fn losses(&self) -> u64 {
        self.shared.losses.load(Ordering::Relaxed)
    }

    /// Leads to another server from now on, and breaks all connections.
    pub fn lead_to(&self, target: u16) {
        self.shared.target.store(target, Ordering::Relaxed);
        let mut open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *open).cancel();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Forwards both ways. Bytes that the server sends while an answer is to be lost go nowhere, and the client's
/// connection ends: the server has done all that it was asked, and the client can't know.
async fn forward(client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", shared.target.load(Ordering::Relaxed))).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asking = async {
        tokio::io::copy(&mut from_client, &mut to_server).await?;
        std::io::Result::Ok(())
    };
    let answering = async {
        let mut bytes = vec![0; 64 << 10];
        loop {
            let read = from_server.read(&mut bytes).await?;
            if read == 0 || shared.loses() {
                return std::io::Result::Ok(());
            }
            let delay = shared.delay.load(Ordering::Relaxed);
            if delay > 0 {
                tokio::time::sleep(Duration::from_millis(delay)).await;
            }
            to_client.write_all(&bytes[..read]).await?;
        }
    };
    tokio::select! { done = asking => done, done = answering => done }
}
