//! What is said over a WebSocket: one JSON object a message, in both directions.
//!
//! A client names its subscriptions as it likes; every message about one has its `id`.

use super::history::{Event, Kind};
use super::look::Look;
use crate::access::Scoped;
use crate::error::ServeError;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

/// The longest name of a subscription in bytes.
const LONGEST_ID: usize = 200;

/// What a client asks for.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Message {
    /// To be told of a request.
    Subscribe(Subscribe),
    /// To be told no more, by its name.
    Unsubscribe(String),
}

/// A subscription that is asked for: to a live value or a query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Subscribe {
    /// Its name.
    pub(super) id: String,
    /// The version that the client has.
    pub(super) last: Option<String>,
    live: Option<String>,
    key: Option<Map<String, Json>>,
    k: Option<u64>,
    strict: Option<bool>,
    query: Option<Json>,
}

impl Message {
    pub(super) fn parse(text: &str) -> Result<Message, ServeError> {
        serde_json::from_str(text).map_err(|error| ServeError::Message(error.to_string()))
    }
}

impl Subscribe {
    /// What is to be looked at.
    ///
    /// # Errors
    /// As plain HTTP refuses it.
    pub(super) async fn look(self, scoped: &Scoped) -> Result<Look, ServeError> {
        if self.id.len() > LONGEST_ID {
            let why = format!("an id of {} bytes is longer than the limit of {LONGEST_ID}", self.id.len());
            return Err(ServeError::Message(why));
        }
        match (self.live, self.query) {
            (Some(name), None) => {
                let mut parameters = Vec::new();
                for (column, value) in self.key.unwrap_or_default() {
                    parameters.push((column.clone(), plain(&column, value)?));
                }
                parameters.extend(self.k.map(|k| ("k".to_owned(), k.to_string())));
                parameters.extend(self.strict.map(|strict| ("strict".to_owned(), strict.to_string())));
                Look::live(scoped, &name, &parameters)
            }
            (None, Some(query)) if self.key.is_none() && self.k.is_none() && self.strict.is_none() => {
                Look::query(scoped, query).await
            }
            (None, Some(_)) => {
                let why = "key, k and strict belong to live: a query says them in itself";
                Err(ServeError::Message(why.to_owned()))
            }
            _ => Err(ServeError::Message(
                "a subscription has live, the name of a live value, or query, a query's object".to_owned(),
            )),
        }
    }
}

/// A value of a key as parameters have it.
fn plain(column: &str, value: Json) -> Result<String, ServeError> {
    match value {
        Json::Null => Ok("\\N".to_owned()),
        Json::String(text) => Ok(text),
        Json::Bool(_) | Json::Number(_) => Ok(value.to_string()),
        Json::Array(_) | Json::Object(_) => Err(ServeError::Message(format!(
            "key.{column} is {value}: expected a text, a number, a truth value or null"
        ))),
    }
}

/// An event of a subscription.
pub(super) fn told(id: &str, event: &Event) -> String {
    let (id, name, version, data) = (Json::from(id), event.kind.name(), event.version, event.data());
    let told = match event.kind {
        Kind::Snapshot => format!("\"reply\":{data}}}"),
        Kind::Change => format!("\"patch\":{data}}}"),
        // An object of one member, `error`.
        Kind::Error => data.trim_start_matches('{').to_owned(),
    };
    format!("{{\"id\":{id},\"event\":\"{name}\",\"version\":\"{version}\",{told}")
}

/// Why nothing comes of a message; `id` where it is about one.
pub(super) fn refused(id: Option<&str>, error: &ServeError) -> String {
    error.note();
    json!({ "id": id, "event": "error", "error": error.reply().error }).to_string()
}

/// There will be no more events of a subscription: its name is free.
pub(super) fn unsubscribed(id: &str) -> String {
    json!({ "id": id, "event": "unsubscribed" }).to_string()
}
