//! The user's own Outbrain files as the local stack's events.

use super::{Stack, say};
use crate::layers::Layer;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Duration;

impl Stack {
    /// Sends some of the files, moves the tidemark behind them, and sends the files whole: both views have a part.
    pub(super) async fn send_files(&self, data: &Path) -> Result<()> {
        say(&format!("sending some of the files in {}", data.display()));
        self.send_some(data).await?;
        say("a batch run moves the tidemark behind them");
        self.epoch_ends().await;
        self.batch_run().await?;
        say("sending the files whole; what came before are repeats");
        ended(&self.replay(data, ["--speed", "max"])?).await
    }

    /// Sends the user's own files slowly, and stops when an epoch has passed, or where they end.
    async fn send_some(&self, data: &Path) -> Result<()> {
        let before = self.ends().await?;
        let replay = self.replay(data, ["--rate", "1000"])?;
        // Files of any size are sorted first.
        while replay.exited().is_none() && self.ends().await? == before {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.epoch_ends().await;
        if replay.exited().is_some() {
            return ended(&replay).await;
        }
        replay.stop().await;
        Ok(())
    }

    /// Starts a replay of the user's own files.
    pub(super) fn replay(&self, data: &Path, pace: [&str; 2]) -> Result<Layer> {
        let data = data.canonicalize().with_context(|| format!("--data {}", data.display()))?;
        let mut command = ["replay", pace[0], pace[1]].map(str::to_owned).to_vec();
        for stream in &self.catalog.streams {
            let names = [format!("{}.csv", stream.name), format!("{}.csv.gz", stream.name)];
            if let Some(file) = names.iter().map(|name| data.join(name)).find(|file| file.is_file()) {
                command.push(format!("{}={}", stream.name, file.display()));
            }
        }
        ensure!(
            command.len() > 3,
            "--data {}: neither page_views.csv nor events.csv (or .gz) is in it",
            data.display()
        );
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        self.layer("simulator", &command)
    }
}

/// Waits until a replay has sent all.
pub(super) async fn ended(replay: &Layer) -> Result<()> {
    let code = replay.ended().await;
    ensure!(code == 0, "the replay failed with {code}: {}", replay.logged());
    Ok(())
}
