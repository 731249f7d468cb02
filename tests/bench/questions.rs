//! What is asked of the serving layer, and about which keys.

use crate::events::{geo, uuid};
use crate::load::{Ask, Call};
use crate::world::END;
use anyhow::ensure;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use shared_model::time::{DAY, show};
use std::collections::HashMap;
use std::sync::Arc;

/// So many users with the most records are asked about.
pub(crate) const FREQUENT: usize = 1_000;

/// Draws a key.
pub(crate) type Draw = Arc<dyn Fn(&mut SmallRng) -> String + Send + Sync>;

/// Questions to one serving layer.
pub(crate) struct Questions {
    client: Client,
    url: String,
    /// Draws one of the users of the last window.
    pub(crate) recent: Draw,
    /// Draws one of the users with the most records.
    pub(crate) frequent: Draw,
}

impl Questions {
    /// Questions to the serving layer at an address; `users` are those of the last window. Where there are `keys` times as
    /// many keys and records as usual, every `keys`th user has as many records as one usually has.
    pub(crate) fn new(url: &str, users: Vec<String>, keys: usize) -> Questions {
        let recent = move |random: &mut SmallRng| users[random.random_range(0..users.len())].clone();
        let frequent = move |random: &mut SmallRng| uuid(keys * random.random_range(0..FREQUENT));
        Questions {
            client: Client::new(),
            url: url.to_owned(),
            recent: Arc::new(recent),
            frequent: Arc::new(frequent),
        }
    }

    /// The live counter of one key.
    pub(crate) fn live(&self) -> Ask {
        let (client, url) = (self.client.clone(), format!("{}/api/v1/live/user_view_cnt", self.url));
        about(&self.recent, move |user| {
            let request = client.get(format!("{url}?strict=true&uuid={user}"));
            async move { answered(request).await.map(drop) }
        })
    }

    /// The live top 10 of the hottest place.
    pub(crate) fn top(&self) -> Ask {
        let (client, url) = (self.client.clone(), format!("{}/api/v1/live/geo_top_doc", self.url));
        let hottest: Draw = Arc::new(|_: &mut SmallRng| geo(0));
        about(&hottest, move |place| {
            let request = client.get(url.as_str()).query(&[("geo", place.as_str()), ("strict", "true")]);
            async move { answered(request).await.map(drop) }
        })
    }

    /// One key over the last days, merged.
    pub(crate) fn one_key(&self, days: i64) -> Ask {
        let post = self.post();
        about(&self.frequent, move |user| {
            let request = post(views(&user, END - days * DAY));
            async move { answered(request).await.map(drop) }
        })
    }

    /// One key from a time on, merged; an answer is to be what `counts` says of the key.
    pub(crate) fn counted(&self, from: i64, counts: HashMap<String, u64>) -> Ask {
        let post = self.post();
        about(&self.frequent, move |user| {
            let (request, expected) = (post(views(&user, from)), counts[&user]);
            async move {
                let answer: Value = serde_json::from_slice(&answered(request).await?)?;
                let found = &answer["rows"][0]["values"]["user_view_cnt"];
                ensure!(*found == expected, "{expected} views of {user}: {answer}");
                anyhow::Ok(())
            }
        })
    }

    /// 1,000 keys over the last days, merged.
    pub(crate) fn thousand_keys(&self, days: i64) -> Ask {
        let post = self.post();
        let documents: Vec<usize> = (1..=1_000).collect();
        let filters = json!([{ "dimension": "document_id", "op": "in", "values": documents }]);
        let body = query("doc_cnt", END - days * DAY, &["document_id"], filters);
        Arc::new(move |_: &mut SmallRng| -> Call {
            let request = post(body.clone());
            Box::pin(async move { answered(request).await.map(drop) })
        })
    }

    /// Makes requests of queries.
    fn post(&self) -> impl Fn(Value) -> RequestBuilder + Send + Sync + use<> {
        let (client, url) = (self.client.clone(), format!("{}/api/v1/query", self.url));
        move |body: Value| client.post(url.as_str()).json(&body)
    }
}

/// Asks about a key that is drawn anew each time.
pub(crate) fn about<F>(draw: &Draw, call: impl Fn(String) -> F + Send + Sync + 'static) -> Ask
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let draw = draw.clone();
    Arc::new(move |random: &mut SmallRng| -> Call { Box::pin(call(draw(random))) })
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

/// The answer to a request; a refusal is an error.
async fn answered(request: RequestBuilder) -> anyhow::Result<bytes::Bytes> {
    let answer = request.send().await?;
    let status = answer.status();
    let body = answer.bytes().await?;
    ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
    Ok(body)
}
