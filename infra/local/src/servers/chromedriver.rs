//! A chromedriver on loopback, for tests: it starts browsers and does in them what it is told.
//!
//! Invariant: it admits clients of this machine alone, and no browser outlives it: each is led through a pipe, and ends
//! when that closes.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{Kind, Seat};
use crate::install::{BrowserAt, Found};
use crate::process::{Folder, Program};

/// What a browser has to be given, so that the driver leads it through a pipe.
pub const BY_PIPE: &str = "--remote-debugging-pipe";

/// A running chromedriver; ended when dropped.
#[derive(Debug)]
pub struct Chromedriver {
    seat: Seat<Driver, 1>,
}

impl Chromedriver {
    /// Starts it on a free port, its log and its browsers' home in `folder`, and waits until it answers.
    ///
    /// # Errors
    /// When the folder is in use, or it doesn't come up: with the end of its log.
    pub async fn start(found: &Found, folder: &Path) -> anyhow::Result<Chromedriver> {
        let at = found.browser.clone().context("a browser was not asked for when servers were looked for")?;
        let seat = Seat::start(Folder::claim(folder)?, Driver { at, log: PathBuf::new() }).await?;
        Ok(Chromedriver { seat })
    }

    /// Its address: `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        url(self.seat.ports()[0])
    }

    /// The browser of its version.
    pub fn browser(&self) -> &Path {
        &self.seat.kind.at.browser
    }
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

#[derive(Debug)]
struct Driver {
    at: BrowserAt,
    log: PathBuf,
}

impl Kind<1> for Driver {
    const NAME: &'static str = "chromedriver";

    fn prepare(&mut self, folder: &Path, [port]: [u16; 1]) -> anyhow::Result<Program> {
        self.log = folder.join("chromedriver.log");
        let home = folder.to_str().context("the folder's path is no text")?.to_owned();
        Ok(Program {
            name: Self::NAME,
            command: self.at.driver.clone(),
            args: vec![format!("--port={port}").into()],
            // The browsers' too: what they keep beside their profiles isn't kept in the user's.
            environment: vec![("HOME".to_owned(), home)],
            user: None,
            log: self.log.clone(),
            stop: Signal::TERM,
            orphaned: "KILL",
        })
    }

    /// When one says that it is ready, and ours that it got the port.
    async fn answers(&self, [port]: [u16; 1], _pid: i32) -> anyhow::Result<()> {
        let status: Value = reqwest::get(format!("{}/status", url(port))).await?.json().await?;
        ensure!(status["value"]["ready"] == true, "its status is {status}");
        let log = std::fs::read_to_string(&self.log)?;
        ensure!(log.contains(&format!("started successfully on port {port}")), "another one has port {port}");
        Ok(())
    }
}
