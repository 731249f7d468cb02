//! What the views of a web site look like: URL, referrer, status and load time, each a pure function of a page's rank
//! and a view's random bits.

/// The URL of a page. Its address is fixed by its rank; what follows `?`, where there is such, by the view.
pub(super) fn url(rank: i64, view: u64) -> String {
    let campaign = if view.is_multiple_of(16) { "?utm_source=letter" } else { "" };
    match rank % 10 {
        _ if rank == 1 => format!("https://www.example.org/{campaign}"),
        0..=3 => format!("https://www.example.org/product/{rank}{campaign}"),
        4 | 5 => format!("https://www.example.org/category/{rank}?page={}", 1 + view % 3),
        6 => format!("https://blog.example.org/{}/{rank}", 2015 + rank % 7),
        7 => format!("https://www.example.org/search?q=thing+{}", view % 50),
        8 => format!("https://api.example.org/v1/items/{rank}"),
        _ => {
            let place = ["cart", "checkout", "account", "help"][(rank / 10 % 4) as usize];
            format!("https://www.example.org/{place}{campaign}")
        }
    }
}

/// Where the visitor comes from, by Outbrain's traffic source (1 internal, 2 search, 3 social); `None`: typed in.
pub(super) fn referrer(traffic: Option<i64>, view: u64) -> Option<&'static str> {
    let one = |of: &[&'static str]| Some(of[(view >> 8) as usize % of.len()]);
    match traffic {
        Some(1) => {
            one(&["https://www.example.org/", "https://blog.example.org/", "https://partner.example.net/a"])
        }
        Some(2) => one(&[
            "https://www.google.com/",
            "https://duckduckgo.com/?q=thing",
            "https://www.bing.com/search",
        ]),
        Some(_) => one(&["https://www.facebook.com/", "https://t.co/x1", "https://www.reddit.com/r/things"]),
        None => None,
    }
}

/// The HTTP status: 1 view in 64 isn't found, 1 in 128 fails.
pub(super) fn status(view: u64) -> i64 {
    match (view >> 16) % 128 {
        0 => 503,
        1 | 2 => 404,
        _ => 200,
    }
}

/// How long the page took to load, in ms: 30 to about 2,000, most of them short.
pub(super) fn load_ms(view: u64) -> i64 {
    let part = |shift: u32| ((view >> shift) % 128) as i64;
    30 + part(24) * part(32) / 8
}
