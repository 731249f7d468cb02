//! Finding the servers with leave to install what is missing: asked of whoever sits at the terminal.
//!
//! Invariant: only Enter, `y` or `yes` is leave; an input that ends without an answer is none. Whoever asks can stop
//! waiting at any time.

use std::io::{BufRead, IsTerminal, Write as _};

use anyhow::Context;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::install::{self, Found, Installing, Need};

/// Finds the servers; installs what is missing, after asking if someone sits at a terminal and `yes` wasn't given.
///
/// # Errors
/// When something is missing and isn't installed: the message says what to install.
pub(crate) async fn servers(
    needed: Vec<Need>,
    yes: bool,
    stop: CancellationToken,
    mut say: impl FnMut(&str) + Send + 'static,
) -> anyhow::Result<Found> {
    let work = move || {
        let runtime = tokio::runtime::Handle::current();
        let ask = |question: &str| {
            let agreed = agreed(question, || Box::new(std::io::stdin().lock()));
            runtime.block_on(stop.run_until_cancelled(agreed)).unwrap_or(Ok(false))
        };
        let asks = !yes && std::io::stdin().is_terminal();
        let policy = if asks { Installing::Ask(&ask) } else { Installing::Yes };
        install::ensure(&needed, policy, &mut say)
    };
    tokio::task::spawn_blocking(work).await?
}

/// Asks, and waits for one line of `input`. It is read by a thread of its own, which nobody waits for: the runtime
/// would wait for one of its own, and so would Ctrl-C.
///
/// # Errors
/// When the input can't be read.
async fn agreed(
    question: &str,
    open: impl FnOnce() -> Box<dyn BufRead> + Send + 'static,
) -> anyhow::Result<bool> {
    print!("? {question} [Y/n] ");
    std::io::stdout().flush().context("can't ask")?;
    let (answered, answer) = oneshot::channel();
    std::thread::Builder::new().name("answer".into()).spawn(move || {
        let mut line = String::new();
        let read = open().read_line(&mut line).map(|_| line);
        // Nobody may be waiting any more.
        let _ = answered.send(read);
    })?;
    let line = answer.await?.context("can't read the answer")?;
    Ok(line.ends_with('\n') && matches!(line.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers() {
        for (input, expected) in [
            ("\n", true),
            ("y\n", true),
            (" YES \r\n", true),
            ("n\n", false),
            ("no\ny\n", false),
            ("yeah?\n", false),
            ("y", false),
            ("", false),
        ] {
            let agreed = agreed("install?", || Box::new(input.as_bytes())).await.unwrap();
            assert_eq!(agreed, expected, "{input:?}");
        }
    }
}
