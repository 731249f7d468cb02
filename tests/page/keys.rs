//! The page where keys are needed: it asks for one, keeps it to itself, and keeps boards by it, of which nobody's change is
//! lost.

use reqwest::Method;
use serde_json::{Value, json};
use simulator::generate::Generator;
use sqlx::{Connection as _, PgConnection};
use tidemark_tests::browser::{Browser, ENTER, ESCAPE};
use tidemark_tests::events::town;
use tidemark_tests::stack::Stack;
use tidemark_tests::wait_for;

use crate::board::{Board, NO_DIALOG, READY};
use crate::reader::{everything_is_named, has_focus, the_dialog};
use crate::{LAYERS, SEED, counted, picture};

const ROLES: &str = include_str!("../../infra/postgres/roles.sql");

/// A board that is asked once.
fn at_first() -> String {
    let charts = json!([{ "title": "Views", "kind": "number", "metrics": ["user_view_cnt"] }]);
    format!("#range=2016-06-14T04:00/2016-06-14T05:00&zone=UTC&every=0&charts={charts}")
}

/// The same board's parts as others put them.
fn theirs(title: &str) -> Value {
    let charts = json!([{ "title": title, "kind": "number", "metrics": ["user_view_cnt"] }]);
    json!({ "range": "last 7 days", "zone": "UTC", "filters": [], "charts": charts })
}

/// Who asks the API with the page's key, but elsewhere.
struct Other<'a> {
    board: &'a Board,
    token: &'a str,
    http: reqwest::Client,
}

impl Other<'_> {
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request =
            self.http.request(method, format!("{}api/v1/{path}", self.board.url)).bearer_auth(self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let reply = request.send().await.expect("a reply");
        (reply.status().as_u16(), reply.json().await.unwrap_or_default())
    }

    /// What is on a board, and of which version it is.
    async fn reads(&self, name: &str) -> (Value, Value) {
        let (status, mut reply) = self.ask(Method::GET, &format!("boards/{name}"), None).await;
        assert_eq!(status, 200, "{reply}");
        (reply["board"].take(), reply["version"].take())
    }

    /// Changes a board from a version.
    async fn puts(&self, name: &str, board: &Value, version: i64) {
        let body = json!({ "board": board, "version": version });
        let (status, reply) = self.ask(Method::PUT, &format!("boards/{name}"), Some(body)).await;
        assert_eq!((status, &reply["version"]), (200, &json!(version + 1)), "{reply}");
    }
}

/// A board whose serving layer asks for keys, and the key of an admin of everything, which it knows.
async fn guarded() -> (Board, String) {
    let mut stack = Stack::start(LAYERS, 1).await;
    let mut owner = PgConnection::connect(&stack.database).await.expect("postgres");
    sqlx::raw_sql(ROLES).execute(&mut owner).await.expect("roles");
    let access = stack.database.replace("tidemark@", "tidemark_access@");
    stack.environment.push(("TIDEMARK_ACCESS".to_owned(), access));
    stack.send(&Generator::new(town(300), SEED).collect::<Vec<_>>());
    let command = ["keys", "create", "page", "--admin", "*"];
    let run = stack.process_named("serving-layer", "keys", &command, &["catalog"]);
    assert_eq!(run.ended().await, 0, "{}", run.logged());
    let said = run.logged();
    let token = said.lines().find(|line| line.starts_with("tm_")).expect("a token").to_owned();
    let board = Board::start(stack).await;
    let other = Other { board: &board, token: &token, http: reqwest::Client::new() };
    wait_for("a key that is known", async || match other.ask(Method::GET, "metrics", None).await {
        (200, _) => Ok(()),
        refused => Err(format!("{refused:?}")),
    })
    .await;
    (board, token)
}

/// Answers the page's question for a key.
async fn give(browser: &Browser, key: &str) {
    browser.clear("#api-key").await;
    browser.type_in("#api-key", key).await;
    browser.press(ENTER).await;
}

/// Waits for what a dialog says of a fault.
async fn is_told(browser: &Browser, text: &str) {
    let told = format!("document.querySelector('dialog .fault').textContent.includes({})", json!(text));
    browser.until(text, &told).await;
}

/// Where a page could leave a key, but for the tab's own store, which is told apart.
const LEFT: &str =
    "const all = { address: location.href, cookies: document.cookie, kept: { ...localStorage },
        asked: performance.getEntries().map(({ name }) => name), shown: document.documentElement.outerHTML };
    return [JSON.stringify(all), Object.values({ ...sessionStorage })]";

/// Loads the page, which asks for a key.
async fn question(board: &Board) {
    board.browser.open("about:blank").await;
    board.browser.open(&format!("{}{}", board.url, at_first())).await;
    board.browser.until("a question for a key", "document.querySelector('dialog #api-key') !== null").await;
}

/// A page without a key shows nothing; with a wrong one it says so; with a right one it opens the board, and keeps it.
async fn the_key(board: &Board, token: &str) {
    let browser = &board.browser;
    question(board).await;
    browser.press(ESCAPE).await;
    browser.until("no question", NO_DIALOG).await;
    assert!(browser.text("#said").await.contains("without a key"));
    question(board).await;
    assert_eq!(browser.text("dialog .fault").await, "");
    has_focus(browser, "#api-key").await;
    everything_is_named(browser).await;
    picture(browser, "key").await;
    give(browser, "secret").await;
    is_told(browser, "that is no key").await;
    give(browser, &format!("tm_{}_{}", "0".repeat(16), "0".repeat(64))).await;
    is_told(browser, "not valid").await;
    give(browser, token).await;
    browser.until("all charts being ready", READY).await;

    for _ in 0..2 {
        browser.until("no question", NO_DIALOG).await;
        board.shows("c1", counted(&board.stack, "user_view_cnt", i64::MIN / 4, i64::MAX / 4)).await;
        let left = browser.script(LEFT, json!([])).await;
        assert!(!left[0].as_str().expect("a text").contains(token), "{left}");
        assert_eq!(left[1], json!([token]));
        let command = board.copied("c1", "copy-curl").await;
        assert!(command.contains("Bearer $TOKEN") && !command.contains(token), "{command}");
        // It is not asked for again.
        board.load(&at_first()).await;
    }
    board.choose_of_board("key").await;
    the_dialog(browser, "#board-menu").await;
}

/// Opens the dialog of the boards, and waits until it lists these.
async fn the_boards(board: &Board, names: &[&str]) {
    board.choose_of_board("boards").await;
    are_listed(&board.browser, names).await;
}

async fn are_listed(browser: &Browser, names: &[&str]) {
    let listed = "[...document.querySelectorAll('dialog .boards button.plain')].map(one => one.textContent)";
    let are_these = format!("JSON.stringify({listed}) === JSON.stringify({})", json!(names));
    browser.until(&format!("a list of {names:?}"), &are_these).await;
}

/// Saves what is shown under a name.
async fn save(browser: &Browser, name: &str) {
    browser.clear("#board-name").await;
    browser.type_in("#board-name", name).await;
    browser.click("dialog button.save").await;
}

async fn close(browser: &Browser) {
    browser.click("dialog button.cancel").await;
    browser.until("the dialog's end", NO_DIALOG).await;
    has_focus(browser, "#board-menu").await;
}

/// Chooses another span; gives the state that the address then has.
async fn turn_to(board: &Board, range: &str) -> String {
    board.browser.select("#range", range).await;
    let state = board.state().await;
    assert!(state.contains(&range.replace(' ', "+")), "{state}");
    state
}

/// What was saved comes back as it was, whatever the page shows meanwhile.
async fn a_board_comes_back(board: &Board, other: &Other<'_>) {
    let browser = &board.browser;
    let saved = turn_to(board, "last 30 days").await;
    the_boards(board, &[]).await;
    has_focus(browser, "#board-name").await;
    save(browser, "Morning").await;
    are_listed(browser, &["Morning"]).await;
    picture(browser, "boards").await;
    the_dialog(browser, "#board-menu").await;
    let (kept, version) = other.reads("Morning").await;
    assert_eq!(version, 1);
    assert_eq!(
        [&kept["range"], &kept["zone"], &kept["filters"]],
        [&json!("last 30 days"), &json!("UTC"), &json!([])]
    );
    assert_eq!(kept["charts"].as_array().map(Vec::len), Some(1), "{kept}");

    board.choose("c1", "remove").await;
    assert_ne!(turn_to(board, "last 7 days").await, saved);
    the_boards(board, &["Morning"]).await;
    browser.click("dialog .boards button.plain").await;
    browser.until("the board as it was", &format!("location.hash === {}", json!(saved))).await;
    browser.until("all charts being ready", READY).await;
    board.shows("c1", counted(&board.stack, "user_view_cnt", i64::MIN / 4, i64::MAX / 4)).await;
}

/// Who is slower is told so, and neither's work is lost.
async fn nobody_is_written_over(board: &Board, other: &Other<'_>) {
    let browser = &board.browser;
    other.puts("Morning", &theirs("Theirs"), 1).await;
    let mine = turn_to(board, "last 6 hours").await;
    the_boards(board, &["Morning"]).await;
    browser.click("dialog button.save").await;
    is_told(browser, "of version 2").await;
    everything_is_named(browser).await;
    assert_eq!(other.reads("Morning").await, (theirs("Theirs"), json!(2)));
    assert_eq!(board.state().await, mine);
    save(browser, "Mine").await;
    are_listed(browser, &["Mine", "Morning"]).await;
    assert_eq!(other.reads("Mine").await.0["range"], "last 6 hours");
    browser.click("dialog .boards li:last-child button.plain").await;
    browser.until("their board", "document.querySelector('#board h2')?.textContent === 'Theirs'").await;
    browser.until("all charts being ready", READY).await;
    browser.until("the dialog's end", NO_DIALOG).await;
}

/// A board is deleted as it was read; another one under its name isn't.
async fn boards_are_deleted(board: &Board, other: &Other<'_>) {
    let browser = &board.browser;
    the_boards(board, &["Mine", "Morning"]).await;
    other.puts("Morning", &theirs("Theirs again"), 2).await;
    browser.click("dialog button[aria-label='Delete Morning']").await;
    is_told(browser, "of version 3").await;
    assert_eq!(other.reads("Morning").await, (theirs("Theirs again"), json!(3)));
    browser.click("dialog button[aria-label='Delete Mine']").await;
    are_listed(browser, &["Morning"]).await;
    browser.until("the focus in the dialog", "document.activeElement.id === 'board-name'").await;
    assert_eq!(other.ask(Method::GET, "boards/Mine", None).await.0, 404);
    close(browser).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_asks_for_a_key_and_keeps_boards_by_it() {
    let (board, token) = guarded().await;
    the_key(&board, &token).await;
    let other = Other { board: &board, token: &token, http: reqwest::Client::new() };
    a_board_comes_back(&board, &other).await;
    nobody_is_written_over(&board, &other).await;
    boards_are_deleted(&board, &other).await;
    // Twice without a key, with a wrong one; saved and deleted from an old version.
    board.is_sound_but_for(&[401, 401, 401, 409, 409]).await;
}
