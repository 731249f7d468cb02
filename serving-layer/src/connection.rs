//! What is asked of the kernel for each connection: that it ends by itself once its client is gone or takes nothing more.
//!
//! An answer that is written while it is sent, as events are, is asked for more only when the client has taken what there
//! was: nothing above the connection would ever notice.

use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;

/// Silence after which it is asked whether the client is there, and the time between one question and the next.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// The most bytes that wait in the kernel to be sent: what is newer waits with us, where it can still be left out.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT: u32 = 128 << 10;

/// Sets up a connection that was accepted; it is given up once its client has taken nothing of what was sent for so long.
pub(crate) fn set_up(stream: &TcpStream, stalled: Duration) {
    if let Err(error) = options(stream, stalled) {
        // Its client has gone already, or this system has another kernel: it is served all the same.
        tracing::debug!(%error, "a connection's options can't be set");
    }
}

fn options(stream: &TcpStream, stalled: Duration) -> io::Result<()> {
    // An event is a small write, and is to be sent at once.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        socket.set_tcp_user_timeout(Some(stalled))?;
        socket.set_tcp_notsent_lowat(UNSENT)?;
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = stalled;
    Ok(())
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        set_up(&stream, Duration::from_millis(200));
        let write = async {
            loop {
                if let Err(error) = stream.write_all(&[0; 64 << 10]).await {
                    return error.kind();
                }
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), write).await;
        assert_eq!(ended.unwrap(), io::ErrorKind::TimedOut);
        drop(client);
    }
}
