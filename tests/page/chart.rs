//! Charts as people handle them: made in the form, changed, laid over each other, taken along as CSV, curl and SQL, looked
//! behind, removed; each shows the oracle's numbers.

use local::oracle::{Key, METRICS, Oracle};
use serde_json::{Value, json};
use simulator::generate::Generator;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use std::collections::{BTreeMap, BTreeSet};
use tidemark_tests::browser::{Browser, DOWN, ENTER, TAB};
use tidemark_tests::events::town;
use tidemark_tests::stack::{Stack, outbrain};
use tidemark_tests::wait_for;

use crate::board::{Board, NO_DIALOG, READY, css};
use crate::reader::{everything_is_named, has_focus, heard, listen, the_dialog};
use crate::{LAYERS, MINUTE, SEED, picture};

/// The hour of all events.
const HOUR: [i64; 2] = [1_465_876_800_000, 1_465_876_800_000 + 60 * MINUTE];

// The charts of the board: those that are there at first, and those that are made.
const VIEWS: &str = "c1";
const NOW: &str = "c2";
const CLICKS: &str = "c3";
const USERS: &str = "c4";
const OVERLAID: &str = "c5";

/// The board at first, of that hour, asked once.
fn at_first() -> String {
    let charts = json!([
        { "title": "Views", "kind": "number", "metrics": ["user_view_cnt"] },
        { "title": "Now", "kind": "number", "live": "active_user_5m" },
        { "title": "Clicks", "kind": "line", "metrics": ["doc_cnt"] },
    ]);
    format!("#range=2016-06-14T04:00/2016-06-14T05:00&zone=UTC&every=0&charts={charts}")
}

/// Names, or times, and numbers.
type Rows = Vec<(String, i64)>;

/// What the oracle counts of a metric in some span, by key.
fn counted(oracle: &Oracle, name: &str, [from, to]: [i64; 2]) -> BTreeMap<String, i64> {
    let metric = METRICS.iter().find(|metric| metric.name == name).expect("a shipped metric");
    let counts = oracle.count(metric, from, to, i64::MAX).into_iter();
    let text = |key: Key| key.into_iter().next().flatten().unwrap_or_else(|| "∅".to_owned());
    counts.map(|((_, key), count)| (text(key), count)).collect()
}

/// What it counts over all keys, in each five minutes.
fn by_bucket(oracle: &Oracle, name: &str) -> Vec<i64> {
    let [from, to] = HOUR;
    let starts = (from..to).step_by(5 * MINUTE as usize);
    starts.map(|start| counted(oracle, name, [start, start + 5 * MINUTE]).into_values().sum()).collect()
}

/// Rows are the greatest of what was counted, the greatest first; of equal ones it may be any.
fn are_the_greatest(rows: &[(String, i64)], counted: &BTreeMap<String, i64>, most: usize) {
    let mut greatest: Vec<i64> = counted.values().copied().collect();
    greatest.sort_unstable_by(|a, b| b.cmp(a));
    greatest.truncate(most);
    let numbers: Vec<i64> = rows.iter().map(|(_, number)| *number).collect();
    assert!(numbers == greatest && !rows.is_empty(), "{rows:?} for {greatest:?}");
    for (name, number) in rows {
        assert_eq!(counted.get(name), Some(number), "{name}");
    }
    let names: BTreeSet<_> = rows.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), rows.len(), "{rows:?}");
}

/// A whole number as it is shown.
fn number(text: &str) -> i64 {
    text.replace(',', "").parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

/// Rows of a name and a number, as they are shown.
fn rows_of(cells: &Value) -> Rows {
    let rows: Vec<Vec<String>> = serde_json::from_value(cells.clone()).expect("rows of texts");
    rows.iter().map(|row| (row[0].clone(), number(&row[1]))).collect()
}

/// The bars that a chart shows.
async fn bars(board: &Board, chart: &str) -> Rows {
    let bars = "return [...document.querySelectorAll(arguments[0])].map(bar =>
        [bar.querySelector('button').textContent, bar.querySelector('.amount').textContent])";
    rows_of(&board.browser.script(bars, json!([css(chart, ".bars li")])).await)
}

/// The table that a chart shows: its head, then its rows.
async fn table(board: &Board, chart: &str) -> Vec<Vec<String>> {
    let table = "return [...document.querySelectorAll(arguments[0])].map(row =>
        [...row.children].map(cell => cell.textContent))";
    let rows = board.browser.script(table, json!([css(chart, ".scroll tr")])).await;
    serde_json::from_value(rows).expect("rows of texts")
}

/// Fills in the form that is open: a list's choice is turned where it is named.
async fn fill(browser: &Browser, title: &str, kind: &str, choices: &[(&str, &str)]) {
    browser.type_in("dialog.editor input[name=title]", title).await;
    browser.select("dialog.editor select[name=kind]", kind).await;
    for (list, value) in choices {
        browser.select(&format!("dialog.editor select[name={list}]"), value).await;
    }
}

/// Takes what the form says, and waits until the board shows it.
async fn take(browser: &Browser) {
    browser.click("dialog.editor button.main").await;
    browser.until("the form's end", NO_DIALOG).await;
    browser.until("all charts being ready", READY).await;
}

async fn ids(board: &Board) -> Vec<String> {
    board.charts().await.into_iter().map(|chart| chart.id).collect()
}

/// A form that is refused, and one that is left, change nothing.
async fn the_form(board: &Board) {
    let state = board.state().await;
    board.choose_of_board("add").await;
    board.browser.click("dialog.editor button.main").await;
    assert!(board.browser.text("dialog.editor .fault").await.contains("choose a metric"));
    fill(&board.browser, "Hours", "heat", &[("metrics", "active_user")]).await;
    board.browser.click("dialog.editor button.main").await;
    assert!(board.browser.text("dialog.editor .fault").await.contains("hours by weekday"));
    picture(&board.browser, "editor").await;
    the_dialog(&board.browser, "#board-menu").await;
    assert_eq!(board.state().await, state);
    assert_eq!(ids(board).await, [VIEWS, NOW, CLICKS]);
}

/// A chart of bars, which becomes a table.
async fn bars_become_a_table(board: &Board, oracle: &Oracle) {
    let users = counted(oracle, "user_view_cnt", HOUR);
    assert!(users.len() > 20);
    board.choose_of_board("add").await;
    fill(&board.browser, "Users", "bars", &[("metrics", "user_view_cnt"), ("group_by", "uuid")]).await;
    take(&board.browser).await;
    assert_eq!(ids(board).await, [VIEWS, NOW, CLICKS, USERS]);
    are_the_greatest(&bars(board, USERS).await, &users, 10);
    everything_is_named(&board.browser).await;

    board.choose(USERS, "edit").await;
    board.browser.clear("dialog.editor input[name=title]").await;
    fill(&board.browser, "Users listed", "table", &[]).await;
    board.browser.type_in("dialog.editor input[name=limit]", "3").await;
    take(&board.browser).await;
    has_focus(&board.browser, &css(USERS, "button.menu")).await;
    assert_eq!(board.chart(USERS).await.title, "Users listed");
    let rows = table(board, USERS).await;
    assert_eq!(rows[0], ["uuid", "user_view_cnt"]);
    are_the_greatest(&rows_of(&json!(rows[1..])), &users, 3);
}

/// Three metrics over each other are three lines, and three columns as a table.
async fn three_metrics_are_three_lines(board: &Board, oracle: &Oracle) {
    board.choose_of_board("add").await;
    let choices = ["doc_cnt", "display_cnt", "active_user"].map(|metric| ("metrics", metric));
    fill(&board.browser, "Clicks and users", "line", &choices).await;
    take(&board.browser).await;
    let legends = "const series = [...document.querySelectorAll(arguments[0])].slice(1);
        const colour = one => getComputedStyle(one.querySelector('.u-marker')).borderTopColor;
        return [series.map(one => one.querySelector('.u-label').textContent), new Set(series.map(colour)).size]";
    let legends = board.browser.script(legends, json!([css(OVERLAID, ".u-legend .u-series")])).await;
    // The list's order, not that of the clicks.
    let mut names: Vec<String> = serde_json::from_value(legends[0].clone()).expect("names");
    assert_eq!(legends[1], 3, "as many colours: {legends}");
    let told = board.browser.attribute(&css(OVERLAID, ".plot"), "aria-label").await.unwrap_or_default();
    assert!(names.iter().all(|name| told.contains(name)), "{told}");
    picture(&board.browser, "overlaid").await;

    board.choose(OVERLAID, "as-table").await;
    let rows = table(board, OVERLAID).await;
    names.insert(0, "bucket".to_owned());
    assert_eq!(rows[0], names);
    for (i, name) in rows[0].iter().enumerate().skip(1) {
        let shown: Vec<i64> = rows[1..].iter().map(|row| number(&row[i])).collect();
        assert_eq!(shown, by_bucket(oracle, name), "{name}");
    }
    names.sort_unstable();
    assert_eq!(names, ["active_user", "bucket", "display_cnt", "doc_cnt"]);
    board.choose(OVERLAID, "as-table").await;
    let lines = format!("document.querySelector({})", json!(css(OVERLAID, ".u-over")));
    board.browser.until("the lines again", &lines).await;
}

/// What is downloaded is what the API answers.
async fn the_csv(board: &Board) {
    let mut request = board.request(OVERLAID).await;
    request["format"] = json!("csv");
    let http = reqwest::Client::new();
    let answer = http.post(format!("{}api/v1/query", board.url)).json(&request).send().await.expect("asked");
    let expected = answer.bytes().await.expect("the answer");
    let file = board.browser.keep_downloads().await.join("Clicks_and_users.csv");
    board.choose(OVERLAID, "csv").await;
    let found = wait_for("the file", async || match std::fs::read(&file) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        other => Err(format!("{}: {other:?}", file.display())),
    })
    .await;
    let [found, expected] = [&found[..], &expected[..]].map(String::from_utf8_lossy);
    assert_eq!(found, expected);
    assert!(found.contains("doc_cnt") && found.lines().count() == 13, "{found}");
}

/// The rows of each statement that a chart's menu gives, as Postgres answers it.
async fn asked_of_postgres(board: &Board, chart: &str) -> Vec<Vec<Value>> {
    let script = board.copied(chart, "copy-sql").await;
    let mut connection = PgConnection::connect(&board.stack.database).await.expect("postgres");
    let mut answers = Vec::new();
    for statement in script.trim_end().trim_end_matches(';').split(";\n") {
        let sql = format!("select coalesce(json_agg(answer), '[]') from (\n{statement}\n) answer");
        let answer = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await;
        let Json(rows): Json<Vec<Value>> = answer.unwrap_or_else(|error| panic!("{error}: {statement}"));
        answers.push(rows);
    }
    answers
}

/// Once all lies below the tidemark, SQL has the same numbers.
async fn the_sql(board: &Board, oracle: &Oracle) {
    board.stack.run_past_the_end().await;
    let users = asked_of_postgres(board, USERS).await;
    let row = |row: &Value| {
        let (name, number) = (row["uuid"].as_str(), row["user_view_cnt"].as_i64());
        (name.unwrap_or("∅").to_owned(), number.unwrap_or_else(|| panic!("{row}")))
    };
    let users: Vec<Rows> = users.iter().map(|rows| rows.iter().map(row).collect()).collect();
    assert_eq!(users.len(), 1);
    are_the_greatest(&users[0], &counted(oracle, "user_view_cnt", HOUR), 3);

    let answers = asked_of_postgres(board, OVERLAID).await;
    assert_eq!(answers.len(), 3);
    for name in ["doc_cnt", "display_cnt"] {
        let has = |rows: &&Vec<Value>| rows.iter().any(|row| row[name].is_number());
        let rows = answers.iter().find(has).unwrap_or_else(|| panic!("no {name}: {answers:?}"));
        let counts: Vec<i64> = rows.iter().filter_map(|row| row[name].as_i64()).collect();
        assert_eq!(counts, by_bucket(oracle, name), "{name}");
    }
    let has = |rows: &&Vec<Value>| rows.iter().any(|row| row["estimate"].is_number());
    let rows = answers.iter().find(has).unwrap_or_else(|| panic!("no active_user: {answers:?}"));
    assert_eq!(rows.len(), 12, "a row for each five minutes");
}

/// What the dialog about a bucket says of each key.
async fn said_behind(browser: &Browser) -> Value {
    browser.until("what lies behind", "document.querySelector('dialog section table')").await;
    let parts = "return Object.fromEntries([...document.querySelectorAll('dialog section')].map(part => [
        part.querySelector('h3').textContent,
        [...part.querySelectorAll('tbody tr')].map(row => [...row.children].map(cell => cell.textContent))]))";
    browser.script(parts, json!([])).await
}

/// Behind a bucket of lines are the keys that it consists of; by the mouse and by the keyboard.
async fn behind_a_bucket(board: &Board, oracle: &Oracle) {
    let browser = &board.browser;
    let holds = async |bucket: i64| {
        let parts = said_behind(browser).await;
        let from = HOUR[0] + 5 * MINUTE * bucket;
        let expected = counted(oracle, "doc_cnt", [from, from + 5 * MINUTE]);
        assert_eq!(parts["In all"], json!([[expected.values().sum::<i64>().to_string()]]));
        are_the_greatest(&rows_of(&parts["By document_id"]), &expected, 20);
        let records = parts["Records"].as_array().expect("records");
        let most = expected.values().sum::<i64>().min(20) as usize;
        assert!((most..=20).contains(&records.len()), "{records:?}");
        for cells in records.iter().map(|row| row.as_array().expect("cells")) {
            let is_counted =
                cells.iter().any(|cell| cell.as_str().is_some_and(|text| expected.contains_key(text)));
            assert!(cells[1] == "events" && is_counted, "{cells:?}");
        }
        let title = browser.text("dialog h2").await;
        let times =
            [bucket, bucket + 1].map(|bucket| format!("{:02}:{:02}:00", 4 + bucket / 12, bucket % 12 * 5));
        assert!(title.starts_with("doc_cnt") && times.iter().all(|time| title.contains(time)), "{title}");
    };
    // The twelve buckets' starts lie at equal distances, the first at the left edge and the last at the right one.
    let over = css(CLICKS, ".u-over");
    let wide = browser.script("return document.querySelector(arguments[0]).clientWidth", json!([over])).await;
    let wide = wide.as_i64().expect("a width");
    browser.click_at(&over, [wide * 3 / 11 - wide / 2, 0]).await;
    holds(3).await;
    picture(browser, "behind").await;
    everything_is_named(browser).await;
    browser.click("dialog form button.main").await;
    browser.until("the dialog's end", NO_DIALOG).await;

    let menu = css(CLICKS, "button.menu");
    browser.script("document.querySelector(arguments[0]).focus()", json!([menu])).await;
    browser.press(ENTER).await;
    has_focus(browser, &css(CLICKS, ".items .as-table")).await;
    everything_is_named(browser).await;
    browser.press(DOWN).await;
    browser.press(ENTER).await;
    // The newest bucket is chosen.
    has_focus(browser, "dialog select").await;
    browser.press(TAB).await;
    browser.press(ENTER).await;
    holds(11).await;
    the_dialog(browser, &menu).await;
}

/// Where there is no clipboard, the text is shown.
async fn without_a_clipboard(board: &Board) {
    let none = "navigator.clipboard.writeText = async () => { throw new Error('not allowed') }";
    board.browser.script(none, json!([])).await;
    board.choose(OVERLAID, "copy-curl").await;
    let shown = "document.querySelector('dialog textarea').value.startsWith('curl ')";
    board.browser.until("the text", shown).await;
    the_dialog(&board.browser, &css(OVERLAID, "button.menu")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chart_is_made_changed_taken_along_and_removed() {
    let deliveries: Vec<_> = Generator::new(town(3_000), SEED).collect();
    let (first, rest) = deliveries.split_at(deliveries.len() - 100);
    let keeps = outbrain().replace("topic = \"events\"", "topic = \"events\"\nfacts = true");
    let stack = Stack::with_catalog(LAYERS, 2, &keeps).await;
    stack.send(first);
    let board = Board::start(stack).await;
    let oracle = board.stack.oracle();
    board.load(&at_first()).await;
    let views: i64 = counted(&oracle, "user_view_cnt", HOUR).into_values().sum();
    board.shows(VIEWS, usize::try_from(views).expect("a count")).await;
    everything_is_named(&board.browser).await;
    the_form(&board).await;
    bars_become_a_table(&board, &oracle).await;
    three_metrics_are_three_lines(&board, &oracle).await;
    the_csv(&board).await;
    without_a_clipboard(&board).await;
    the_sql(&board, &oracle).await;
    // All of it lies below the tidemark by now.
    behind_a_bucket(&board, &oracle).await;

    // What is removed is in the way back.
    board.choose(USERS, "remove").await;
    assert_eq!(ids(&board).await, [VIEWS, NOW, CLICKS, OVERLAID]);
    has_focus(&board.browser, "#board").await;
    board.browser.script("history.back()", json!([])).await;
    let again = format!("document.querySelector({})", json!(css(USERS, "h2")));
    board.browser.until("the chart again", &again).await;
    board.browser.until("all charts being ready", READY).await;
    assert_eq!(ids(&board).await, [VIEWS, NOW, CLICKS, USERS, OVERLAID]);

    // What is pushed moves on without a word.
    listen(&board.browser).await;
    let before = board.chart(NOW).await.updates;
    board.stack.send(rest);
    let later =
        format!("Number(document.querySelector({}).dataset.updates) > {before}", json!(css(NOW, "").trim()));
    board.browser.until("what is pushed", &later).await;
    assert_eq!(heard(&board.browser).await, json!([]));
    board.is_sound().await;
}
