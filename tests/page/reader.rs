//! The page for who hears it, and for who has no mouse.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use tidemark_tests::browser::{Browser, ENTER, ESCAPE, TAB};

use crate::board::NO_DIALOG;

/// The roles of what must have a name, as the browser calls them. What it makes up inside of a field is its own.
const NAMED: [&str; 15] = [
    "alertdialog",
    "button",
    "checkbox",
    "combobox",
    "dialog",
    "image",
    "img",
    "link",
    "listbox",
    "menu",
    "menuitem",
    "radio",
    "region",
    "searchbox",
    "textbox",
];

/// What a page is made of, as its elements say, and which fields and pictures go without a word.
const PARTS: &str = "const many = css => document.querySelectorAll(css).length;
    const all = css => [...document.querySelectorAll(css)];
    return {
        language: document.documentElement.lang, title: document.title, first: many('h1'),
        landmarks: [many('body > header'), many('main')],
        ids: many('[id]') - new Set(all('[id]').map(({ id }) => id)).size,
        untitled: many('section.chart') - many('section.chart h2'),
        untold: [
            ...all('input, select, textarea').filter(one => !one.labels.length && !one.ariaLabel),
            ...all('canvas, img, svg').filter(one => !one.closest('[role=img][aria-label], [alt]')),
        ].map(one => one.outerHTML),
        expanded: all('[aria-expanded]').filter(button =>
            button.ariaExpanded !== String(!button.parentElement.querySelector('.items').hidden)).length,
    }";

/// All that can be used or looked at has a name, whatever is open. Gives how many there are of each role.
pub(crate) async fn everything_is_named(browser: &Browser) -> BTreeMap<String, usize> {
    let told = browser.accessible().await;
    let mut roles: BTreeMap<String, usize> = BTreeMap::new();
    let mut nameless = Vec::new();
    for (role, name) in told.iter().filter(|(role, _)| NAMED.contains(&role.as_str())) {
        *roles.entry(role.clone()).or_default() += 1;
        if name.trim().is_empty() {
            nameless.push(role);
        }
    }
    assert!(nameless.is_empty() && !roles.is_empty(), "without a name: {nameless:?}, of {told:#?}");
    let parts = browser.script(PARTS, json!([])).await;
    let expected = json!({
        "language": "en", "title": "Tidemark", "first": 1, "landmarks": [1, 1], "ids": 0, "untitled": 0, "untold": [],
        "expanded": 0,
    });
    assert_eq!(parts, expected);
    roles
}

/// The dialog that is open is told of as one, keeps the keyboard to itself, and gives the focus back to where it was.
pub(crate) async fn the_dialog(browser: &Browser, opener: &str) {
    let roles = everything_is_named(browser).await;
    assert_eq!(roles.get("dialog"), Some(&1), "{roles:?}");
    let strays =
        "const others = [...document.querySelectorAll('a, button, input, select, textarea, [tabindex]')];
        const taken = others.filter(one => !one.closest('dialog')).filter(one => {
            one.focus();
            return document.activeElement === one;
        });
        return [taken.map(one => one.outerHTML), document.activeElement.closest('dialog') !== null]";
    assert_eq!(browser.script(strays, json!([])).await, json!([[], true]));
    browser.press(ESCAPE).await;
    browser.until("the dialog's end", NO_DIALOG).await;
    has_focus(browser, opener).await;
}

/// Whether the focus is at the first element that a selector finds.
pub(crate) async fn has_focus(browser: &Browser, css: &str) {
    let focus = "const at = document.activeElement;
        return [at === document.querySelector(arguments[0]), at.outerHTML.slice(0, 120)]";
    let found = browser.script(focus, json!([css])).await;
    assert_eq!(found[0], true, "{css}: {found}");
}

/// Has the page note what changes in regions that are read aloud of themselves.
pub(crate) async fn listen(browser: &Browser) {
    let listen = "window.aloud = [];
        new MutationObserver(changes => changes.forEach(({ target }) => {
            const element = target.nodeType === Node.ELEMENT_NODE ? target : target.parentElement;
            const region = element?.closest('[aria-live], [role=alert], [role=log], [role=status]');
            if (region) aloud.push(region.outerHTML.slice(0, 120));
        })).observe(document.body, { subtree: true, childList: true, characterData: true })";
    browser.script(listen, json!([])).await;
}

/// What was read aloud since.
pub(crate) async fn heard(browser: &Browser) -> Value {
    browser.script("return aloud", json!([])).await
}

/// All that the keyboard must reach, in the order of the document.
const CONTROLS: &str = "window.controls =
    [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex]')].filter(control =>
        control.tabIndex >= 0 && !control.disabled && !control.closest('[inert]')
        && control.checkVisibility({ visibilityProperty: true }));
    return controls.map(control => control.outerHTML.slice(0, 120))";

/// Whether a menu is open.
const OPEN: &str = "[...document.querySelectorAll('#board button.edit')]
    .some(item => item.checkVisibility({ visibilityProperty: true }))";

/// Tab by tab through the whole page, and a menu that opens and closes.
pub(crate) async fn the_keyboard(browser: &Browser) {
    let controls = browser.script(CONTROLS, json!([])).await;
    let controls: Vec<String> = serde_json::from_value(controls).expect("controls");
    for css in ["#board-menu", "#range", "#zone", "#filter-dimension", "#filter-value", "#filter-add"] {
        let is_one =
            browser.script("return controls.some(of => of.matches(arguments[0]))", json!([css])).await;
        assert_eq!(is_one, true, "{css}");
    }
    let mut reached = Vec::new();
    // What can be scrolled may have a stop of its own.
    for _ in 0..2 * controls.len() {
        browser.press(TAB).await;
        let at = browser.script("return controls.indexOf(document.activeElement)", json!([])).await;
        reached.extend(at.as_u64());
        if at == controls.len() - 1 {
            break;
        }
    }
    assert!(reached.iter().copied().eq(0..controls.len() as u64), "{reached:?} of {controls:#?}");

    browser.script("document.querySelector('#board button.menu').focus()", json!([])).await;
    browser.press(ENTER).await;
    browser.until("a menu that opens", OPEN).await;
    browser.press(ESCAPE).await;
    browser.until("a menu that closes", &format!("!{OPEN}")).await;
    has_focus(browser, "#board button.menu").await;
}
