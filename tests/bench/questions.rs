//! What is asked of the serving layer, about which keys, and what is right.

use crate::events::{geo, uuid};
use crate::requests::{Request, Requests, Right};
use crate::world::END;
use bytes::Bytes;
use hyper::{Method, Uri};
use rand::RngExt as _;
use rand::rngs::SmallRng;
use serde_json::{Value, json};
use shared_model::time::{DAY, show};
use std::sync::{Arc, OnceLock};

/// So many users with the most records are asked about.
pub(crate) const FREQUENT: usize = 1_000;

/// Draws a key.
pub(crate) type Draw = Arc<dyn Fn(&mut SmallRng) -> String + Send + Sync>;

/// Questions to one serving layer.
pub(crate) struct Questions {
    address: String,
    /// The users of the last window, with their views in it.
    users: Arc<[(String, u64)]>,
    /// Where there are so many times as many keys and records as usual, every such user has as many records as one usually
    /// has.
    keys: usize,
}

impl Questions {
    /// Questions to the serving layer at a URL, about the users of the last window and about those with the most records.
    pub(crate) fn new(url: &str, users: Vec<(String, u64)>, keys: usize) -> Questions {
        Questions { address: url.trim_start_matches("http://").to_owned(), users: users.into(), keys }
    }

    /// Draws one of the users of the last window.
    pub(crate) fn recent(&self) -> Draw {
        let users = self.users.clone();
        Arc::new(move |random: &mut SmallRng| users[random.random_range(0..users.len())].0.clone())
    }

    /// Draws one of the users with the most records.
    pub(crate) fn frequent(&self) -> Draw {
        let keys = self.keys;
        Arc::new(move |random: &mut SmallRng| uuid(keys * random.random_range(0..FREQUENT)))
    }

    /// The live counter of one key.
    pub(crate) fn live(&self) -> Arc<Requests> {
        let users = self.users.clone();
        Requests::new(&self.address, Method::GET, move |random| {
            let (user, views) = &users[random.random_range(0..users.len())];
            let uri = uri(format!("/api/v1/live/user_view_cnt?strict=true&uuid={user}"));
            Request { uri, body: Bytes::new(), right: Right::Value(*views) }
        })
    }

    /// The live top 10 of the hottest place.
    pub(crate) fn top(&self) -> Arc<Requests> {
        let place = geo(0).replace('>', "%3E");
        let (uri, right) = (uri(format!("/api/v1/live/geo_top_doc?geo={place}&strict=true")), as_first());
        Requests::new(&self.address, Method::GET, move |_| Request {
            uri: uri.clone(),
            body: Bytes::new(),
            right: right.clone(),
        })
    }

    /// One key over the last days, merged.
    pub(crate) fn one_key(&self, days: i64) -> Arc<Requests> {
        let user = |rank: usize| views(&uuid(self.keys * rank), END - days * DAY);
        self.queries((0..FREQUENT).map(|rank| (user(rank), as_first())))
    }

    /// One key from a time on, merged; an answer is to be what `counts` says of the key, the n-th of those with the most
    /// records.
    pub(crate) fn counted(&self, from: i64, counts: Vec<u64>) -> Arc<Requests> {
        let user = |rank: usize| views(&uuid(self.keys * rank), from);
        self.queries(counts.into_iter().enumerate().map(|(rank, count)| (user(rank), Right::Views(count))))
    }

    /// 1,000 keys over the last days, merged.
    pub(crate) fn thousand_keys(&self, days: i64) -> Arc<Requests> {
        let documents: Vec<usize> = (1..=1_000).collect();
        let filters = json!([{ "dimension": "document_id", "op": "in", "values": documents }]);
        let query = query("doc_cnt", END - days * DAY, &["document_id"], filters);
        self.queries([(query, as_first())])
    }

    /// A request for the calls about one key, to the bare server at an address.
    pub(crate) fn behind(address: &str, draw: Draw) -> Arc<Requests> {
        Requests::new(address, Method::GET, move |random| Request {
            uri: uri(format!("/?{}", draw(random))),
            body: Bytes::new(),
            right: Right::Value(0),
        })
    }

    /// One of some queries each time, made here.
    fn queries(&self, queries: impl IntoIterator<Item = (Value, Right)>) -> Arc<Requests> {
        let queries = queries.into_iter().map(|(query, right)| (Bytes::from(query.to_string()), right));
        let (queries, uri): (Vec<_>, _) = (queries.collect(), uri("/api/v1/query".to_owned()));
        Requests::new(&self.address, Method::POST, move |random| {
            let (body, right) = &queries[random.random_range(0..queries.len())];
            Request { uri: uri.clone(), body: body.clone(), right: right.clone() }
        })
    }
}

fn as_first() -> Right {
    Right::AsFirst(Arc::new(OnceLock::new()))
}

fn uri(path: String) -> Uri {
    Uri::try_from(path).expect("a path, with what is asked about")
}

/// A query for what a metric counted from a time on, by its keys.
pub(crate) fn query(metric: &str, from: i64, by: &[&str], filters: Value) -> Value {
    json!({
        "metrics": [metric], "group_by": by, "filters": filters, "granularity": "none", "strict": true,
        "from": show(from), "to": show(END),
    })
}

/// A query for a user's views from a time on.
pub(crate) fn views(user: &str, from: i64) -> Value {
    query("user_view_cnt", from, &[], json!([{ "dimension": "uuid", "value": user }]))
}
