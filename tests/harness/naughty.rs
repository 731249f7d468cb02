//! Texts that break what handles text carelessly: each a legal value of a string field.

/// SQL, Redis' patterns and hash tags, paths, formats, NULLs that are none, controls, scripts of all directions.
pub const NAUGHTY: &[&str] = &[
    "",
    " ",
    "'; drop table tidemark.tidemark; --",
    "\" or \"\"=\"",
    "$1",
    "{a}b{",
    "*",
    "[a-z]?",
    "tm1:marks",
    "user_view_cnt_5m:a",
    "a:b%3Ac",
    "../../etc/passwd",
    "/",
    "a\\b",
    "\\N",
    "NULL",
    "null",
    "a\nb\r\n2016-06-14T00:00:00Z ERROR forged",
    "\u{1}\u{8}\t\u{1b}[31mred\u{1b}[0m\u{7f}\u{85}",
    "%s%n%d",
    "${jndi:ldap://x}",
    "<script>alert(1)</script>",
    "a,b\"c;d",
    "\u{202e}evil\u{2066}",
    "\u{feff}bom",
    "\u{200b}",
    "e\u{301}\u{e9}",
    "İıßſ",
    "👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "\u{10ffff}\u{fffd}",
    "田中さん ﷽",
    "__proto__",
    "1e999",
    "-0",
];

/// A text of so many bytes that no compression shortens.
pub fn noise(bytes: usize) -> String {
    let words = (0u64..).map(|n| format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&n.to_be_bytes())));
    let mut text: String = words.take(bytes / 16 + 1).collect();
    text.truncate(bytes);
    text
}
