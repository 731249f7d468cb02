//! The routes of boards: what is asked, by whom, and what is answered.

use super::{About, BoardError, Boards, Draft, wrong_board, wrong_name};
use crate::access::Scoped;
use crate::error::{Fault, FaultKind, ServeError};
use crate::http;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query as Parameters};
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared_model::time::show;
use std::collections::BTreeMap;

/// A board but for what is on it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BoardAbout {
    /// Its name.
    pub name: String,
    /// Whether all may read it.
    pub shared: bool,
    /// Whether it belongs to the key that asks, which alone may change it.
    pub own: bool,
    /// 1 when it is made, one more at each change.
    pub version: i64,
    /// When it was last put.
    pub updated_at: String,
}

/// The boards that may be read.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BoardsReply {
    /// Own and shared ones, each name once, in the order of their names' bytes.
    pub boards: Vec<BoardAbout>,
}

/// A board.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BoardReply {
    /// What is told beside it.
    #[serde(flatten)]
    pub about: BoardAbout,
    /// What is on it, byte for byte as it was put.
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub board: Box<RawValue>,
}

/// A board that is put.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BoardBody<'a> {
    #[serde(borrow)]
    board: &'a RawValue,
    #[serde(default)]
    shared: bool,
    #[serde(default)]
    version: Option<i64>,
}

/// Which version is to be deleted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfVersion {
    version: i64,
}

type Name = Result<Path<String>, PathRejection>;

impl BoardAbout {
    fn new(about: About, reader: &str) -> BoardAbout {
        let About { owner, name, shared, version, updated } = about;
        BoardAbout { own: owner == reader, name, shared, version, updated_at: show(updated) }
    }
}

/// `GET /api/v1/boards`
pub(crate) async fn list(scoped: Scoped) -> Result<Json<BoardsReply>, ServeError> {
    let reader = scoped.owner();
    let boards = kept(&scoped)?.list(reader).await?;
    let boards = boards.into_iter().map(|about| BoardAbout::new(about, reader)).collect();
    Ok(Json(BoardsReply { boards }))
}

/// `GET /api/v1/boards/{name}`
pub(crate) async fn read(scoped: Scoped, name: Name) -> Result<Json<BoardReply>, ServeError> {
    let (boards, reader) = (kept(&scoped)?, scoped.owner());
    let name = named(name)?;
    let found = boards.read(reader, &name).await?;
    let (about, text) = found.ok_or(BoardError::Unknown(name))?;
    let board = RawValue::from_string(text).map_err(|error| BoardError::Unavailable(error.to_string()))?;
    Ok(Json(BoardReply { about: BoardAbout::new(about, reader), board }))
}

/// `PUT /api/v1/boards/{name}`
pub(crate) async fn write(
    scoped: Scoped,
    name: Name,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<BoardAbout>, ServeError> {
    let (boards, owner) = (kept(&scoped)?, scoped.owner());
    let body = http::whole(&scoped, body)?;
    // A list of the members' values would be read as well.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(ServeError::Body("it must be a JSON object".to_owned()));
    }
    let asked: BoardBody<'_> =
        serde_json::from_slice(&body).map_err(|error| ServeError::Body(error.to_string()))?;
    let (name, board) = (text_of(name)?, asked.board.get());
    refuse([("name", wrong_name(&name)), ("board", wrong_board(board))])?;
    if asked.shared && !scoped.administers_all() {
        let why = "this key is no admin of everything, which alone may share a board: leave shared out";
        return Err(ServeError::Forbidden(why.to_owned()));
    }
    let draft = Draft { owner, name: &name, shared: asked.shared, board };
    let about = boards.write(draft, asked.version, (scoped.service.clock)()).await?;
    Ok(Json(BoardAbout::new(about, owner)))
}

/// `DELETE /api/v1/boards/{name}`
pub(crate) async fn delete(
    scoped: Scoped,
    name: Name,
    version: Result<Parameters<OfVersion>, QueryRejection>,
) -> Result<StatusCode, ServeError> {
    let boards = kept(&scoped)?;
    let name = named(name)?;
    let Parameters(read) = version.map_err(|rejection| ServeError::Body(rejection.body_text()))?;
    boards.delete(scoped.owner(), &name, read.version).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Where boards are kept.
///
/// # Errors
/// [`ServeError::NoBoards`]
fn kept(scoped: &Scoped) -> Result<&dyn Boards, ServeError> {
    scoped.service.boards.as_deref().ok_or(ServeError::NoBoards)
}

/// The name in the address, decoded.
fn text_of(name: Name) -> Result<String, ServeError> {
    let Path(name) = name.map_err(|rejection| ServeError::Body(rejection.body_text()))?;
    Ok(name)
}

/// The same, of a form that a board's may have.
fn named(name: Name) -> Result<String, ServeError> {
    let name = text_of(name)?;
    refuse([("name", wrong_name(&name))])?;
    Ok(name)
}

/// Refuses a request for what is wrong with its parts.
fn refuse<const PARTS: usize>(parts: [(&str, Option<String>); PARTS]) -> Result<(), ServeError> {
    let fault = |(field, wrong): (&str, Option<String>)| {
        let (kind, field) = (FaultKind::Malformed, field.to_owned());
        wrong.map(|message| Fault { kind, field, message, allowed: Vec::new() })
    };
    let faults: Vec<Fault> = parts.into_iter().filter_map(fault).collect();
    if faults.is_empty() { Ok(()) } else { Err(ServeError::Invalid(faults)) }
}
