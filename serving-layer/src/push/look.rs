//! What is looked at for subscribers: a request that plain HTTP takes too, answered by the same calls.

use super::history::Found;
use crate::access::Scoped;
use crate::answer::answer;
use crate::error::{Fault, FaultKind, ServeError};
use crate::http::{heads, live_metric, live_reply};
use crate::live::LiveRequest;
use crate::query::Request;
use crate::reply::Reply;
use crate::table::Format;
use serde::Serialize;
use serde_json::Value as Json;
use std::sync::Arc;

/// The longest reply that is pushed, in bytes: up to so much may be on its way to a client that doesn't read.
const LONGEST: usize = 1 << 20;
/// The longest query that is subscribed to, in bytes: as long as one in an address may be.
const LONGEST_QUERY: usize = 64 << 10;

/// A request without a fault.
#[derive(Debug, Clone)]
pub(super) enum Look {
    /// For a sliding counter or a live top-k.
    Live {
        /// Under which name.
        name: String,
        /// Of which key.
        request: LiveRequest,
    },
    /// For one query or several. What it says relative to now is understood anew at each look.
    Query(Json),
}

impl Look {
    /// The look at a live value.
    ///
    /// # Errors
    /// As plain HTTP refuses it.
    pub(super) fn live(
        scoped: &Scoped,
        name: &str,
        parameters: &[(String, String)],
    ) -> Result<Look, ServeError> {
        let (metric, _) = live_metric(scoped, name)?;
        let request = LiveRequest::parse(metric, parameters)?;
        scoped.allow(metric, &request.by)?;
        // Both of a metric's names mean the same, and are answered by its live one.
        Ok(Look::Live { name: metric.live_name.as_ref().unwrap_or(&metric.name).clone(), request })
    }

    /// The look at a query.
    ///
    /// # Errors
    /// As plain HTTP refuses it, and where it asks for another form than JSON.
    pub(super) async fn query(scoped: &Scoped, request: Json) -> Result<Look, ServeError> {
        let length = request.to_string().len();
        if length > LONGEST_QUERY {
            return Err(ServeError::Limit(format!(
                "a query of {length} bytes is longer than the {LONGEST_QUERY} that may be subscribed to: list fewer values"
            )));
        }
        let format = scoped.service.in_turn(async { Ok(read(scoped, &request)?.format) }).await?;
        if format != Format::Json {
            return Err(ServeError::Invalid(vec![Fault {
                kind: FaultKind::Unanswerable,
                field: "format".to_owned(),
                message: "answers are pushed as json alone".to_owned(),
                allowed: vec!["json".to_owned()],
            }]));
        }
        Ok(Look::Query(request))
    }

    /// Equal looks have equal keys.
    pub(super) fn key(&self) -> Arc<str> {
        match self {
            Look::Live { name, request } => format!("live {name} {request:?}").into(),
            Look::Query(request) => {
                let mut key = "query ".to_owned();
                canonical(request, &mut key);
                key.into()
            }
        }
    }

    /// Looks once.
    pub(super) async fn taken(&self, scoped: &Scoped) -> Result<Found, ServeError> {
        match self {
            Look::Live { name, request } => found(&live_reply(scoped, name, request).await?),
            Look::Query(request) => {
                let Scoped { service, .. } = scoped;
                let views = &service.views;
                let work = async {
                    let request = read(scoped, request)?;
                    let answers = answer(views, &request.queries, request.at).await?;
                    Ok((request, answers))
                };
                let (request, answers) = service.in_turn(work).await?;
                let heads = heads(scoped, &request, &answers)?;
                found(&Reply::new(&request, heads, answers))
            }
        }
    }
}

fn read(scoped: &Scoped, request: &Json) -> Result<Request, ServeError> {
    let Scoped { service, .. } = scoped;
    let views = &service.views;
    let read = Request::read(request, Format::Json, &views.catalog, &views.limits, (service.clock)());
    scoped.restricted(read)
}

/// Text and value are both written from the reply: neither is read back, which could change a number's last bit.
fn found(reply: &impl Serialize) -> Result<Found, ServeError> {
    let unwritten =
        |error: serde_json::Error| ServeError::Limit(format!("the reply can't be written: {error}"));
    let text = serde_json::to_string(reply).map_err(unwritten)?;
    if text.len() > LONGEST {
        return Err(ServeError::Limit(format!(
            "an answer of {} bytes is longer than the {LONGEST} that are pushed: filter more, group by fewer columns, give \
             a limit, or ask for it by plain HTTP",
            text.len()
        )));
    }
    Ok(Found::Reply(text, serde_json::to_value(reply).map_err(unwritten)?))
}

/// JSON as text, each object's members in the order of their names.
fn canonical(value: &Json, text: &mut String) {
    match value {
        Json::Object(object) => {
            let mut members: Vec<_> = object.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            text.push('{');
            for (name, value) in members {
                text.push_str(&Json::from(name.as_str()).to_string());
                text.push(':');
                canonical(value, text);
                text.push(',');
            }
            text.push('}');
        }
        Json::Array(list) => {
            text.push('[');
            for value in list {
                canonical(value, text);
                text.push(',');
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    #[test]
    fn equal_requests_have_equal_keys() {
        let key = |text: &str| Look::Query(serde_json::from_str(text).unwrap()).key();
        assert_eq!(
            key(r#"{"a": [1, {"x": 2, "b": "c"}], "b": null}"#),
            key(r#"{"b":null,"a":[1,{"b":"c","x":2}]}"#)
        );
        let others = [
            r#"{"a": 1}"#,
            r#"{"a": "1"}"#,
            r#"{"a": [1]}"#,
            r#"{"a:1,b": 1}"#,
            r#"{"a": 1.0}"#,
            "{}",
            "[]",
            r#""{}""#,
        ];
        let keys: BTreeSet<Arc<str>> = others.iter().map(|text| key(text)).collect();
        assert_eq!(keys.len(), others.len());
        assert_ne!(key(r#"{"a":{"b":1},"c":2}"#), key(r#"{"a":{"b":1,"c":2}}"#));
        assert_eq!(&*Look::Query(json!({ "a": [1, "b"] })).key(), r#"query {"a":[1,"b",],}"#);
    }

    #[test]
    fn a_reply_that_is_too_long_is_an_error() {
        assert!(found(&"x".repeat(LONGEST - 2)).is_ok());
        let refused = found(&"x".repeat(LONGEST - 1)).unwrap_err();
        assert!(refused.to_string().starts_with("an answer of 1048577 bytes"), "{refused}");
    }
}
