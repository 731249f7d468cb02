//! The page's board in a browser: what its charts show, and what they ask.

use local::layers::Layer;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tidemark_tests::browser::Browser;
use tidemark_tests::stack::Stack;

/// Whether there are charts, and all show something.
pub(crate) const READY: &str =
    "(charts => charts.length > 0 && charts.every(chart => chart.dataset.state === 'ready'))
    ([...document.querySelectorAll('#board section.chart')])";

/// The charts of the board.
const CHARTS: &str = "return [...document.querySelectorAll('#board section.chart')].map(chart => ({
    id: chart.dataset.chart, kind: chart.dataset.kind, updates: Number(chart.dataset.updates),
    title: chart.querySelector('h2').innerText,
    content: chart.innerHTML + [...chart.querySelectorAll('canvas')].map(canvas => canvas.toDataURL()) }))";

/// A chart as the page has it.
#[derive(Debug, Deserialize)]
pub(crate) struct Chart {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) updates: u64,
    pub(crate) title: String,
    pub(crate) content: String,
}

/// Whether no dialog is open.
pub(crate) const NO_DIALOG: &str = "document.querySelector('dialog') === null";

/// The selector of something in a chart.
pub(crate) fn css(chart: &str, inside: &str) -> String {
    format!("#board section.chart[data-chart={}] {inside}", json!(chart))
}

/// A board in a browser, over servers and layers of its own.
pub(crate) struct Board {
    pub(crate) browser: Browser,
    pub(crate) url: String,
    _layers: [Layer; 2],
    pub(crate) stack: Stack,
}

impl Board {
    /// Starts the layers, and opens the page once the realtime view holds all that was sent.
    pub(crate) async fn open(stack: Stack) -> Board {
        let board = Board::start(stack).await;
        board.load("").await;
        board
    }

    /// The same with a browser that is yet to open the page.
    pub(crate) async fn start(stack: Stack) -> Board {
        let (speed, process, serving) = stack.layers().await;
        stack.settle().await;
        let browser = Browser::start().await;
        Board { browser, url: format!("{}/", serving.url), _layers: [speed, process], stack }
    }

    /// Loads the page anew, in the state that an address has.
    pub(crate) async fn load(&self, state: &str) {
        self.browser.open("about:blank").await;
        self.browser.open(&format!("{}{state}", self.url)).await;
        self.browser.until("all charts being ready", READY).await;
    }

    pub(crate) async fn charts(&self) -> Vec<Chart> {
        serde_json::from_value(self.browser.script(CHARTS, json!([])).await).expect("charts")
    }

    pub(crate) async fn chart(&self, id: &str) -> Chart {
        self.charts().await.into_iter().find(|chart| chart.id == id).expect("a chart that was there before")
    }

    /// The state as the address has it.
    pub(crate) async fn state(&self) -> String {
        let state = self.browser.script("return location.hash", json!([])).await;
        state.as_str().expect("a text").to_owned()
    }

    /// Waits until a chart shows a number, whatever stands between its digits.
    pub(crate) async fn shows(&self, chart: &str, number: usize) {
        let value = format!("document.querySelector({}).innerText", json!(css(chart, ".value")));
        let is_it = format!("{value}.replace(/[^0-9]/g, '') === '{number}'");
        self.browser.until(&format!("{chart} showing {number}"), &is_it).await;
    }

    /// Chooses an item of a chart's menu.
    pub(crate) async fn choose(&self, chart: &str, item: &str) {
        self.browser.click(&css(chart, "button.menu")).await;
        self.browser.click(&css(chart, &format!(".items .{item}"))).await;
    }

    /// Chooses an item of the board's own menu.
    pub(crate) async fn choose_of_board(&self, item: &str) {
        self.browser.click("#board-menu").await;
        self.browser.click(&format!("#board-menu + .items .{item}")).await;
    }

    /// What an item of a chart's menu copies.
    pub(crate) async fn copied(&self, chart: &str, item: &str) -> String {
        let take =
            "window.copied = null; navigator.clipboard.writeText = async text => { window.copied = text }";
        self.browser.script(take, json!([])).await;
        self.choose(chart, item).await;
        self.browser.until(&format!("what {item} of {chart} copies"), "window.copied").await;
        let copied = self.browser.script("return window.copied", json!([])).await;
        copied.as_str().expect("a text").to_owned()
    }

    /// What a chart asks, by the command line that its menu gives.
    pub(crate) async fn request(&self, chart: &str) -> Value {
        let copied = self.copied(chart, "copy-curl").await;
        let body = copied.split_once(" -d '").and_then(|(_, body)| body.strip_suffix('\''));
        let body = body.unwrap_or_else(|| panic!("{copied}")).replace("'\\''", "'");
        serde_json::from_str(&body).expect("a request")
    }

    /// What each chart asks. Those that are pushed have no command line.
    pub(crate) async fn requests(&self) -> BTreeMap<String, Value> {
        let mut requests = BTreeMap::new();
        for Chart { id, .. } in self.charts().await {
            let is_there = "return document.querySelector(arguments[0]) !== null";
            if self.browser.script(is_there, json!([css(&id, ".copy-curl")])).await == true {
                let request = self.request(&id).await;
                requests.insert(id, request);
            }
        }
        requests
    }

    /// Which charts are a number of one metric alone, each with the metric's name.
    pub(crate) async fn numbers(&self, requests: &BTreeMap<String, Value>) -> BTreeMap<String, String> {
        let of_one = |chart: Chart| match requests.get(&chart.id)?["metrics"].as_array()?.as_slice() {
            [Value::String(metric)] if chart.kind == "number" => Some((chart.id, metric.clone())),
            _ => None,
        };
        self.charts().await.into_iter().filter_map(of_one).collect()
    }

    /// Nothing has failed in the page, nor is anything missing of it.
    pub(crate) async fn is_sound(&self) {
        self.is_sound_but_for(&[]).await;
    }

    /// The same where requests were to be refused, with these statuses: the browser tells of each.
    pub(crate) async fn is_sound_but_for(&self, refused: &[u16]) {
        let console = self.browser.console().await;
        let severe: Vec<_> = console.iter().filter(|(level, _)| level == "SEVERE").collect();
        let is =
            |(said, status): (&&(String, String), &u16)| said.1.contains(&format!("a status of {status} "));
        assert!(severe.len() == refused.len() && severe.iter().zip(refused).all(is), "{severe:#?}");
    }
}
