//! A browser without a screen that a test drives, by the W3C's WebDriver protocol: JSON over HTTP to a chromedriver of
//! its own.
//!
//! It reaches nothing but loopback, keeps all that it writes in a folder of its own, and ends with its handle.

use crate::{PATIENCE, wait_for};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use local::install::{self, Installing, Need};
use local::servers::Chromedriver;
use local::servers::chromedriver::BY_PIPE;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The tabulator key.
pub const TAB: &str = "\u{e004}";
/// The enter key.
pub const ENTER: &str = "\u{e007}";
/// The escape key.
pub const ESCAPE: &str = "\u{e00c}";
/// The key of the arrow that points down.
pub const DOWN: &str = "\u{e015}";

/// Under what name the protocol passes an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// How the browser is started, beside what chromedriver itself gives it and its profile's folder.
const ARGUMENTS: [&str; 11] = [
    "--headless=new",
    BY_PIPE,
    // Root has no sandbox, and what is looked at is our own.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--window-size=1280,1600",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-features=OptimizationHints,MediaRouter",
    // Whatever the environment says of proxies, and whatever else asks for an address.
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
];

/// One browser with one tab. What is done in it either works or panics with what the browser says of it.
pub struct Browser {
    http: reqwest::Client,
    /// The address of its session.
    session: String,
    /// What was taken from its console: a level such as `SEVERE`, and a text.
    console: Mutex<Vec<(String, String)>>,
    _driver: Chromedriver,
    // Last: goes away after those who write in it.
    scratch: tempfile::TempDir,
}

impl Browser {
    /// Starts it; installs it first where that must and may be.
    pub async fn start() -> Browser {
        let ensure = || install::ensure(&[Need::Browser], Installing::Yes, &mut |_| {});
        let found =
            tokio::task::spawn_blocking(ensure).await.expect("the search for a browser").expect("a browser");
        let scratch = local::servers::scratch().expect("a temporary folder");
        let driver = Chromedriver::start(&found, scratch.path()).await.expect("chromedriver");
        let profile = format!("--user-data-dir={}", scratch.path().join("profile").display());
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([profile.as_str()]).collect();
        let capabilities = json!({
            "goog:chromeOptions": { "binary": driver.browser(), "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
        let sessions = format!("{}/session", driver.url());
        let request = json!({ "capabilities": { "alwaysMatch": capabilities } });
        let opened = post(&http, &sessions, &request).await.expect("a session");
        let session = format!("{sessions}/{}", opened["sessionId"].as_str().expect("its id"));
        Browser { http, session, console: Mutex::default(), _driver: driver, scratch }
    }

    /// The folder of all that it writes.
    pub fn home(&self) -> &Path {
        self.scratch.path()
    }

    /// One command of the protocol, by its path below the session.
    async fn command(&self, path: &str, request: &Value) -> Result<Value, String> {
        post(&self.http, &format!("{}/{path}", self.session), request).await
    }

    /// The same where nothing else will do than that it works.
    async fn must(&self, path: &str, request: Value) -> Value {
        match self.command(path, &request).await {
            Ok(value) => value,
            Err(error) => panic!("{path} {request}: {error}\n{}", self.seen().await),
        }
    }

    /// Loads a page, and waits until it and all that it names are loaded.
    pub async fn open(&self, url: &str) {
        self.must("url", json!({ "url": url })).await;
    }

    /// Runs the body of a function, with `arguments`; of a promise it waits for the value.
    pub async fn script(&self, body: &str, arguments: Value) -> Value {
        self.must("execute/sync", json!({ "script": body, "args": arguments })).await
    }

    /// The text of the first element that a selector finds, as it is shown.
    pub async fn text(&self, css: &str) -> String {
        let text = self.script("return document.querySelector(arguments[0]).innerText", json!([css])).await;
        text.as_str().expect("a text").to_owned()
    }

    /// An attribute of the first element that a selector finds, if it has it.
    pub async fn attribute(&self, css: &str, name: &str) -> Option<String> {
        let body = "return document.querySelector(arguments[0]).getAttribute(arguments[1])";
        self.script(body, json!([css, name])).await.as_str().map(str::to_owned)
    }

    /// The first element that a selector finds, as the protocol passes it.
    async fn found(&self, css: &str) -> Value {
        self.must("element", json!({ "using": "css selector", "value": css })).await
    }

    async fn element(&self, css: &str) -> String {
        format!("element/{}", self.found(css).await[ELEMENT].as_str().expect("its id"))
    }

    /// Clicks in the middle of the first element that a selector finds; it must be what is to be seen there.
    pub async fn click(&self, css: &str) {
        self.must(&format!("{}/click", self.element(css).await), json!({})).await;
    }

    /// Moves the mouse so many pixels from the middle of the first element that a selector finds, to the right and down,
    /// and clicks on whatever is there.
    pub async fn click_at(&self, css: &str, [right, down]: [i64; 2]) {
        self.script("document.querySelector(arguments[0]).scrollIntoView({ block: 'center' })", json!([css]))
            .await;
        let origin = self.found(css).await;
        let moved = json!({ "type": "pointerMove", "duration": 0, "origin": origin, "x": right, "y": down });
        let actions =
            json!([moved, { "type": "pointerDown", "button": 0 }, { "type": "pointerUp", "button": 0 }]);
        self.must(
            "actions",
            json!({ "actions": [{ "type": "pointer", "id": "mouse", "actions": actions }] }),
        )
        .await;
    }

    /// Empties the first field that a selector finds.
    pub async fn clear(&self, css: &str) {
        self.must(&format!("{}/clear", self.element(css).await), json!({})).await;
    }

    /// Types a text into the first element that a selector finds, behind what is there.
    pub async fn type_in(&self, css: &str, text: &str) {
        self.must(&format!("{}/value", self.element(css).await), json!({ "text": text })).await;
    }

    /// Chooses the option that has this value.
    pub async fn select(&self, css: &str, value: &str) {
        self.click(&format!("{css} option[value={}]", json!(value))).await;
    }

    /// Presses a key and lets it go: for whatever has the focus.
    pub async fn press(&self, key: &str) {
        let keys = json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        self.must("actions", json!({ "actions": [{ "type": "key", "id": "keys", "actions": keys }] })).await;
    }

    /// A command of the DevTools protocol.
    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.must("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    /// What assistive technology is told of: roles, such as `button`, and names.
    pub async fn accessible(&self) -> Vec<(String, String)> {
        let tree = self.devtools("Accessibility.getFullAXTree", json!({})).await;
        let nodes = tree["nodes"].as_array().expect("a tree's nodes").iter();
        let text = |node: &Value, of: &str| node[of]["value"].as_str().unwrap_or_default().to_owned();
        let told = nodes.filter(|node| node["ignored"] != true);
        told.map(|node| (text(node, "role"), text(node, "name"))).collect()
    }

    /// Has it keep what is downloaded from now on; gives the folder.
    pub async fn keep_downloads(&self) -> PathBuf {
        let folder = self.home().join("downloads");
        std::fs::create_dir_all(&folder).expect("a folder for downloads");
        let behavior = json!({ "behavior": "allow", "downloadPath": folder });
        self.devtools("Browser.setDownloadBehavior", behavior).await;
        folder
    }

    /// Has pages see a user who likes `dark` or `light` colours.
    pub async fn color_scheme(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// Writes what is to be seen as a PNG file.
    pub async fn screenshot(&self, path: &Path) {
        let taken = self.devtools("Page.captureScreenshot", json!({ "format": "png" })).await;
        let bytes = BASE64_STANDARD.decode(taken["data"].as_str().expect("a picture")).expect("base64");
        std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// What the console has said since the browser was started: a level such as `SEVERE`, and a text.
    pub async fn console(&self) -> Vec<(String, String)> {
        // What is asked for once isn't told again.
        let new = self.command("se/log", &json!({ "type": "browser" })).await.expect("the console");
        let said = |entry: &Value| {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            (text("level"), text("message"))
        };
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        console.extend(new.as_array().into_iter().flatten().map(said));
        console.clone()
    }

    /// The page's text and its console.
    async fn seen(&self) -> String {
        let script = json!({ "script": "return document.URL + '\\n' + document.body.innerText", "args": [] });
        let text = match self.command("execute/sync", &script).await {
            Ok(text) => text.as_str().unwrap_or_default().to_owned(),
            Err(error) => error,
        };
        let console = self.console().await;
        let lines: String = console.iter().map(|(level, text)| format!("{level} {text}\n")).collect();
        format!("the page: {text}\nits console:\n{lines}")
    }

    /// Waits until an expression is true; one that fails isn't yet.
    ///
    /// # Panics
    /// After [`PATIENCE`], with the page's text and its console.
    pub async fn until(&self, what: &str, expression: &str) {
        let script = json!({ "script": format!("return Boolean({expression})"), "args": [] });
        wait_for(what, async || match self.command("execute/sync", &script).await {
            Ok(Value::Bool(true)) => Ok(()),
            Ok(_) => Err(self.seen().await),
            Err(error) => Err(format!("{error}\n{}", self.seen().await)),
        })
        .await;
    }
}

/// Has the browser end, and waits until it has: what ends with its driver still writes in a folder that is to go.
impl Drop for Browser {
    fn drop(&mut self) {
        let Some((host, path)) = self.session.strip_prefix("http://").and_then(|url| url.split_once('/'))
        else {
            return;
        };
        let close = || -> std::io::Result<usize> {
            let mut stream = TcpStream::connect(host)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "DELETE /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
            stream.read(&mut [0; 1024])
        };
        if let Err(error) = close() {
            eprintln!("the browser is left to its driver's end: {error}");
        }
    }
}

/// The value that the driver answers with; else what it says of the error.
async fn post(http: &reqwest::Client, url: &str, request: &Value) -> Result<Value, String> {
    let answer = http.post(url).json(request).send().await.map_err(|error| format!("{error:?}"))?;
    let is_success = answer.status().is_success();
    let mut answer: Value = answer.json().await.map_err(|error| format!("{error:?}"))?;
    let value = answer["value"].take();
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    if is_success { Ok(value) } else { Err(format!("{}: {}", text("error"), text("message"))) }
}
