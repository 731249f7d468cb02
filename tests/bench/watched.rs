//! What a process that runs to its end takes.

use crate::process::{cpu, peak_memory};
use anyhow::ensure;
use local::layers::Layer;
use std::time::Duration;

/// What it took, and what it said.
pub(crate) struct Took {
    /// CPU-seconds.
    pub(crate) cpu: f64,
    /// Its most memory, in MB.
    pub(crate) peak: f64,
    /// Its log.
    pub(crate) said: String,
}

/// Waits for a process; one that fails is an error.
pub(crate) async fn watched(process: Layer) -> anyhow::Result<Took> {
    let (mut peak, mut taken) = (0.0, 0.0);
    while process.exited().is_none() {
        // A process that ends just now has no figures any more: the ones before stay.
        if let (Ok(memory), Ok(seconds)) = (peak_memory(process.pid()), cpu([process.pid()])) {
            (peak, taken) = (memory, seconds);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let said = process.logged();
    ensure!(process.exited() == Some(0), "{said}");
    Ok(Took { cpu: taken, peak, said })
}
