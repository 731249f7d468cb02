//! The serving layer's pages in a real browser, on real servers and real processes.
//!
//! `TIDEMARK_SCREENSHOTS=<folder>` keeps pictures of what the tests saw.

#[path = "page/board.rs"]
mod board;
#[path = "page/chart.rs"]
mod chart;
#[path = "page/keys.rs"]
mod keys;
#[path = "page/reader.rs"]
mod reader;

use board::{Board, Chart, READY};
use local::oracle::METRICS;
use local::probe::Serving;
use local::stack::with_layout;
use serde_json::{Value, json};
use shared_model::catalog::SITE;
use simulator::generate::{Data, Delivery, Generator, Options};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tidemark_tests::browser::{Browser, ENTER, TAB};
use tidemark_tests::events::town;
use tidemark_tests::stack::{LAYOUT, Stack};
use tidemark_tests::{now, wait_for};

const LAYERS: &str = env!("CARGO_BIN_EXE_layers");
const SEED: u64 = 97;
const MINUTE: i64 = 60_000;

/// Keeps a picture of what is to be seen, where pictures are wanted.
async fn picture(browser: &Browser, name: &str) {
    if let Some(folder) = std::env::var_os("TIDEMARK_SCREENSHOTS").map(PathBuf::from) {
        std::fs::create_dir_all(&folder).expect("a folder for pictures");
        browser.screenshot(&folder.join(format!("{name}.png"))).await;
    }
}

/// How many processes name this folder in their command line.
fn processes_of(folder: &Path) -> usize {
    let folder = folder.to_str().expect("a path that is text");
    let processes = std::fs::read_dir("/proc").expect("the processes").flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(folder)).count()
}

/// What the tests do in a page works, in one whose content is known.
async fn the_documentation(browser: &Browser, serving: &Serving) {
    browser.open(&format!("{}/api/docs", serving.url)).await;
    assert!(browser.text("h1").await.ends_with("API"));
    assert_eq!(browser.attribute("main", "id").await.as_deref(), Some("content"));
    assert_eq!(browser.attribute("main", "class").await, None);
    browser.press(TAB).await;
    browser.press(ENTER).await;
    browser.until("the first link leading to the content", "location.hash === '#content'").await;
    browser.click("nav a[href='#schemas']").await;
    browser.until("the click leading to the schemas", "location.hash === '#schemas'").await;
    for scheme in ["dark", "light"] {
        browser.color_scheme(scheme).await;
        let query = format!("(prefers-color-scheme: {scheme})");
        assert_eq!(browser.script("return matchMedia(arguments[0]).matches", json!([query])).await, true);
        picture(browser, &format!("docs-{scheme}")).await;
    }
    // It has no form.
    let form = "document.body.innerHTML = '<input><select><option value=a><option value=\"b c\"></select>'";
    browser.script(form, json!([])).await;
    browser.type_in("input", "some ").await;
    browser.type_in("input", "text").await;
    browser.select("select", "b c").await;
    let filled = "return ['input', 'select'].map(name => document.querySelector(name).value)";
    assert_eq!(browser.script(filled, json!([])).await, json!(["some text", "b c"]));
    browser.clear("input").await;
    browser.script("addEventListener('click', click => { window.clicked = click.clientX })", json!([])).await;
    browser.click_at("input", [7, 0]).await;
    let near = "const { left, width } = document.querySelector('input').getBoundingClientRect();
        return [document.querySelector('input').value, Math.abs(clicked - left - width / 2 - 7) < 1]";
    assert_eq!(browser.script(near, json!([])).await, json!(["", true]));
    browser.script("document.querySelector('select').ariaLabel = 'Which one'", json!([])).await;
    let told = browser.accessible().await;
    assert!(told.iter().any(|(role, name)| !role.is_empty() && name == "Which one"), "{told:?}");
    browser.script("console.error('broken'); console.debug('fine')", json!([])).await;
    let console = browser.console().await;
    let said = |level, text| console.iter().any(|(of, said)| of == level && said.contains(text));
    assert!(said("SEVERE", "broken") && said("DEBUG", "fine"), "{console:?}");
    assert_eq!(browser.console().await.len(), console.len(), "what was said is kept, once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_does_what_it_is_told_and_ends_with_its_handle() {
    let stack = Stack::start(LAYERS, 1).await;
    stack.batch(&["run"]).await;
    let (_process, serving) = stack.serving().await;
    let browser = Browser::start().await;
    the_documentation(&browser, &serving).await;

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("seen.png");
    browser.screenshot(&file).await;
    let bytes = std::fs::read(&file).expect("a picture");
    assert!(bytes.starts_with(b"\x89PNG") && bytes[16..20] == 1280_u32.to_be_bytes(), "{:?}", &bytes[..24]);

    if cfg!(target_os = "linux") {
        let home = browser.home().to_owned();
        assert!(processes_of(&home) > 0);
        drop(browser);
        wait_for("the browser's end", async || match processes_of(&home) {
            0 => Ok(()),
            left => Err(format!("{left} processes")),
        })
        .await;
        assert!(!home.exists(), "{} is left", home.display());
    }
}

/// What the log holds of a metric of the shipped catalog, over all its keys.
fn counted(stack: &Stack, name: &str, from: i64, to: i64) -> usize {
    let metric = METRICS.iter().find(|metric| metric.name == name).expect("a shipped metric");
    let counted: i64 = stack.oracle().count(metric, from, to, i64::MAX).into_values().sum();
    usize::try_from(counted).expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_board_shows_what_is_sent_while_it_is_open() {
    let deliveries: Vec<_> = Generator::new(Options { span: 120 * MINUTE, ..town(3_000) }, SEED).collect();
    let (first, rest) = deliveries.split_at(60);
    let stack = Stack::start(LAYERS, 2).await;
    stack.send(first);
    let board = Board::open(stack).await;
    board.browser.select("#range", "last 30 days").await;
    let requests = board.requests().await;
    let numbers = board.numbers(&requests).await;
    let users: Vec<&String> =
        numbers.iter().filter(|(_, metric)| *metric == "active_user").map(|(id, _)| id).collect();
    assert!(!users.is_empty(), "{requests:#?}");
    let of_the_board = |(id, metric): &(&String, &String)| {
        *metric != "active_user" && requests[*id]["time_range"] == "last 30 days"
    };
    let (count, metric) = numbers.iter().find(of_the_board).expect("a count over the board's span");
    let all = |name: &str| counted(&board.stack, name, i64::MIN / 4, i64::MAX / 4);
    let at_first = [all("active_user"), all(metric)];
    board.shows(count, at_first[1]).await;
    for chart in &users {
        board.shows(chart, at_first[0]).await;
    }
    picture(&board.browser, "board-first").await;

    let before = board.chart(count).await.updates;
    board.stack.send(rest);
    board.stack.settle().await;
    let in_all = [all("active_user"), all(metric)];
    assert!(in_all[0] > at_first[0] && in_all[1] > at_first[1], "{in_all:?} after {at_first:?}");
    board.shows(count, in_all[1]).await;
    for chart in &users {
        board.shows(chart, in_all[0]).await;
    }
    let after = board.chart(count).await.updates;
    assert!(after > before, "{after} updates after {before}");
    picture(&board.browser, "board-last").await;

    // On the other side of the tidemark, in a page that is loaded anew, and over a part of it.
    board.stack.run_past_the_end().await;
    board.load("#range=last+30+days").await;
    board.shows(count, in_all[1]).await;
    board.load("#zone=UTC&range=2016-06-14T04:00/2016-06-14T05:00").await;
    let start = 1_465_876_800_000;
    let part = counted(&board.stack, metric, start, start + 60 * MINUTE);
    assert!(part > 0 && part < in_all[1], "{part}");
    board.shows(count, part).await;
    board.is_sound().await;
}

/// The site's views of the last two hours.
fn site_views() -> Vec<Delivery> {
    let span = 120 * MINUTE;
    let options = Options {
        data: Data::Site,
        records: 2_000,
        start: now() - span,
        span,
        users: 300,
        documents: 60,
        geos: 20,
        late: 0.0,
        malformed: 0.0,
        ..Options::default()
    };
    Generator::new(options, SEED).collect()
}

/// How many distinct ones are of a host.
fn views_of(deliveries: &[Delivery], host: &str) -> usize {
    let views = deliveries.iter().map(|delivery| serde_json::from_slice(&delivery.value).expect("JSON"));
    let of_host = views.filter(|view: &Value| view["url"].as_str().is_some_and(|url| url.contains(host)));
    let identities = of_host.map(|view| ["view_id", "at", "visitor"].map(|name| view[name].to_string()));
    identities.collect::<BTreeSet<_>>().len()
}

/// A board of the site's catalog.
async fn site(deliveries: &[Delivery]) -> Board {
    let stack = Stack::with_catalog(LAYERS, 2, &with_layout(SITE, LAYOUT)).await;
    stack.send(deliveries);
    Board::open(stack).await
}

/// Which charts ask for metrics that all have a dimension, and which for none that has it.
async fn split(board: &Board, requests: &BTreeMap<String, Value>, dimension: &str) -> [Vec<String>; 2] {
    let catalog = reqwest::get(format!("{}api/v1/metrics", board.url)).await.expect("the catalog");
    let catalog: Value = catalog.json().await.expect("JSON");
    let has = |metric: &Value| {
        let column = |column: &Value| column["name"] == dimension;
        metric["by"].as_array().is_some_and(|columns| columns.iter().any(column))
    };
    let [mut with, mut without] = [Vec::new(), Vec::new()];
    for (id, request) in requests {
        let names = request["metrics"].as_array().expect("a list");
        let metrics = catalog["metrics"].as_array().expect("a list").iter();
        let asked: Vec<_> = metrics.filter(|metric| names.contains(&metric["name"])).map(has).collect();
        if !asked.is_empty() && !asked.contains(&false) {
            with.push(id.clone());
        } else if !asked.contains(&true) {
            without.push(id.clone());
        }
    }
    assert!(!with.is_empty() && !without.is_empty(), "{dimension}: {requests:#?}");
    [with, without]
}

/// The grid of who came again has the API's numbers: how many came on a day, and of them as a share who came later.
async fn who_came_again(board: &Board, requests: &BTreeMap<String, Value>) {
    let request = requests.values().find(|request| request["retention"] == 7).expect("a grid");
    let asked = reqwest::Client::new().post(format!("{}api/v1/query", board.url)).json(request);
    let answer: Value = asked.send().await.expect("a reply").json().await.expect("JSON");
    let shown = |row: &Value| {
        let came: Vec<Option<f64>> =
            serde_json::from_value(row["values"]["session_cnt"].clone()).expect("a list");
        let share = |later: &Option<f64>| {
            later
                .map_or(String::new(), |later| format!("{:.0}%", 100.0 * later / came[0].unwrap_or_default()))
        };
        let day = row["bucket"].as_str().expect("a time")[..10].to_owned();
        let all = came[0].map_or(String::new(), |came| came.to_string());
        [day, all].into_iter().chain(came[1..].iter().map(share)).collect()
    };
    let expected: Vec<Vec<String>> = answer["rows"].as_array().expect("rows").iter().map(shown).collect();
    let cells = "return [...document.querySelectorAll('.chart.grid tbody tr')].map(row => \
                 [...row.children].map(cell => cell.textContent))";
    let found: Vec<Vec<String>> =
        serde_json::from_value(board.browser.script(cells, json!([])).await).expect("rows");
    assert!(found == expected && !expected.is_empty(), "{found:?} for {expected:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_is_in_every_chart_that_has_its_dimension_and_in_the_address() {
    let views = site_views();
    let board = site(&views).await;
    let (charts, requests) = (board.charts().await, board.requests().await);
    who_came_again(&board, &requests).await;
    let [with, without] = split(&board, &requests, "service").await;
    let numbers = board.numbers(&requests).await;
    let of_all_views = |(id, metric): &(&String, &String)| {
        ["view_cnt", "service_view_cnt"].contains(&metric.as_str())
            && requests[*id]["time_range"] == "last 24 hours"
    };
    let (number, _) = numbers.iter().find(of_all_views).expect("the views of a day");
    board.shows(number, views_of(&views, "")).await;

    board.browser.select("#filter-dimension", "service").await;
    board.browser.type_in("#filter-value", "blog").await;
    board.browser.press(ENTER).await;
    board.browser.until("a chip", "document.querySelectorAll('#filters .filter').length === 1").await;
    let chip = board.browser.text("#filters .filter").await;
    assert!(chip.contains("service") && chip.contains("blog"), "{chip}");
    // Those that change with time alone tell nothing.
    let of_the_day = |chart: &&Chart| requests[&chart.id]["time_range"] == "last 24 hours";
    for chart in charts.iter().filter(|chart| with.contains(&chart.id)).filter(of_the_day) {
        wait_for(&format!("{} being another one", chart.id), async || {
            let content = board.chart(&chart.id).await.content;
            if content == chart.content { Err(content) } else { Ok(()) }
        })
        .await;
    }
    board.shows(number, views_of(&views, "//blog.example.org/")).await;
    picture(&board.browser, "board-filtered").await;
    let filtered = board.requests().await;
    for (id, request) in &filtered {
        let mut expected = requests[id].clone();
        if with.contains(id) {
            expected["filters"] = json!([{ "dimension": "service", "op": "=", "value": "blog" }]);
        }
        assert!(*request == expected || !(with.contains(id) || without.contains(id)), "{id}: {request}");
    }

    // The address alone says which board it is.
    let state = board.state().await;
    assert!(!state.is_empty());
    let before = board.charts().await;
    board.load(&state).await;
    let named = |charts: &[Chart]| -> Vec<_> {
        charts.iter().map(|chart| [&chart.id, &chart.kind, &chart.title].map(String::clone)).collect()
    };
    assert_eq!(named(&board.charts().await), named(&before));
    assert_eq!(board.browser.text("#filters .filter").await, chip);
    assert_eq!(board.requests().await, filtered);
    assert_eq!(board.state().await, state);

    board.browser.click("#filters .filter button.remove").await;
    board.browser.until("no chip", "document.querySelectorAll('#filters .filter').length === 0").await;
    board.shows(number, views_of(&views, "")).await;
    assert_eq!(board.requests().await, requests);
    assert_ne!(board.state().await, state);
    board.is_sound().await;
}

/// The page's own files are small, and it asks for nothing from elsewhere.
async fn the_files(board: &Board) {
    let entries = "return ['navigation', 'resource'].flatMap(type => performance.getEntriesByType(type))
        .map(entry => [entry.name, entry.decodedBodySize])";
    let entries: Vec<(String, u64)> =
        serde_json::from_value(board.browser.script(entries, json!([])).await).expect("entries");
    let is_of_the_page = |url: &str| {
        let path = url.strip_prefix(&board.url).unwrap_or_else(|| panic!("{url} is elsewhere"));
        let path = path.split(['?', '#']).next().unwrap_or_default();
        path.is_empty() || path.starts_with("page/")
    };
    let own: Vec<_> = entries.iter().filter(|(url, _)| is_of_the_page(url)).collect();
    let bytes: u64 = own.iter().map(|(_, bytes)| bytes).sum();
    println!("the page: {bytes} bytes in {} files", own.len());
    assert!(own.len() > 1 && own.iter().all(|(_, bytes)| *bytes > 0), "{own:#?}");
    assert!(bytes < 300_000, "{bytes} bytes: {own:#?}");
}

/// How bright the page's ground is: 0 is black, 1 is white.
const BRIGHTNESS: &str = "const context = document.createElement('canvas').getContext('2d');
    for (const element of [document.documentElement, document.body]) {
        context.fillStyle = getComputedStyle(element).backgroundColor;
        context.fillRect(0, 0, 1, 1);
    }
    const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data;
    return alpha === 255 ? (red + green + blue) / 765 : null";

/// In a frame, the page is told its state and tells it: around it is a page of its own origin.
async fn the_frame(board: &Board) {
    board.browser.open(&format!("{}api/v1/metrics", board.url)).await;
    let frame = "window.states = [];
        addEventListener('message', ({ data }) => data?.tidemark === 'state' && states.push(data.state));
        window.frame = document.createElement('iframe');
        frame.src = '/';
        document.body.replaceChildren(frame)";
    board.browser.script(frame, json!([])).await;
    let ready = READY.replace("document.", "frame.contentDocument.");
    board.browser.until("the page in the frame", &ready).await;
    let filters = json!([{ "dimension": "service", "op": "=", "value": "blog" }]);
    let state = json!({ "range": "last 7 days", "filters": filters });
    let set = "frame.contentWindow.postMessage({ tidemark: 'set', state: arguments[0] }, '*')";
    board.browser.script(set, json!([state])).await;
    board.browser.until("the state being told", "states.some(state => state.range === 'last 7 days')").await;
    let told = board.browser.script("return states.at(-1)", json!([])).await;
    assert_eq!([&told["range"], &told["filters"]], [&state["range"], &state["filters"]]);
    let chips = "frame.contentDocument.querySelectorAll('#filters .filter').length === 1";
    board.browser.until("the chip in the frame", chips).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_board_is_small_and_for_the_keyboard_the_dark_and_a_frame() {
    let board = site(&site_views()).await;
    the_files(&board).await;
    let mut brightness = Vec::new();
    for scheme in ["light", "dark"] {
        board.browser.color_scheme(scheme).await;
        board.load("").await;
        let bright = board.browser.script(BRIGHTNESS, json!([])).await;
        brightness.push(bright.as_f64().expect("a ground that nothing shines through"));
        picture(&board.browser, &format!("board-{scheme}")).await;
    }
    assert!(brightness[0] > 0.7 && brightness[1] < 0.3, "{brightness:?}");
    // Drawn once: what is drawn anew while the keyboard is there, is another element.
    board.load("#every=0").await;
    reader::the_keyboard(&board.browser).await;
    board.is_sound().await;
    the_frame(&board).await;
}
