//! The paths of saved boards in the document, and the schema of what is put there.

use super::operations::{About, answers, headers, ok, operation};
use super::request::of;
use crate::boards::{MAX_BOARD, MAX_BOARDS, MAX_DEPTH, MAX_LISTED, MAX_NAME};
use crate::error::Code;
use serde_json::{Value as Json, json};

/// What everything about boards may fail with.
const OF_BOARDS: [Code; 2] = [Code::NoBoards, Code::Unavailable];

/// What is put.
pub(super) fn body() -> Json {
    let about = format!(
        "An object of the page's own, of at most {MAX_BOARD} bytes and {MAX_DEPTH} levels: it comes back byte for byte."
    );
    json!({ "type": "object", "description": "A board that is put.",
            "properties": {
                "board": { "type": "object", "additionalProperties": true, "description": about },
                "shared": { "type": "boolean", "default": false,
                    "description": "Whether all may read it: to be said by an admin of everything alone." },
                "version": version("The version that was read and is to be replaced; none for a new board.") },
            "required": ["board"], "additionalProperties": false })
}

fn version(about: &str) -> Json {
    json!({ "type": "integer", "minimum": 1, "maximum": i64::MAX, "description": about })
}

/// The paths, each with what it takes and answers.
pub(super) fn paths(about: About<'_>) -> [(&'static str, Json); 2] {
    let reply = |name: &str| json!({ "application/json": { "schema": of(name) } });
    let name = || {
        json!({ "name": "name", "in": "path", "required": true,
                "description": "The board's name, percent-encoded: no control characters, and neither `.` nor `..`.",
                "schema": { "type": "string", "minLength": 1, "maxLength": MAX_NAME } })
    };
    let errors = |codes: &[Code]| [&OF_BOARDS[..], codes].concat();
    let list = operation(
        "listBoards",
        "boards",
        "The boards that may be read",
        &format!("Own and shared ones, by name; the first {MAX_LISTED}."),
        vec![],
        None,
        answers(ok("The boards", reply("BoardsReply")), &OF_BOARDS, about),
    );
    let read = operation(
        "getBoard",
        "boards",
        "One board",
        "An own board of this name, else the shared one.",
        vec![name()],
        None,
        answers(
            ok("The board", reply("BoardReply")),
            &errors(&[Code::InvalidRequest, Code::InvalidBody, Code::UnknownBoard]),
            about,
        ),
    );
    let of_writing = [
        Code::InvalidRequest,
        Code::InvalidBody,
        Code::VersionConflict,
        Code::NameTaken,
        Code::LimitExceeded,
    ];
    let write = operation(
        "putBoard",
        "boards",
        "Keep a board",
        &format!("In place of the version that was read, or as a new one; a key may have {MAX_BOARDS}."),
        vec![name()],
        Some(json!({ "required": true, "content": reply("BoardBody") })),
        answers(ok("What is kept, without the board", reply("BoardAbout")), &errors(&of_writing), about),
    );
    let about_version = "The version that was read.";
    let read_version = json!({ "name": "version", "in": "query", "required": true,
                               "description": about_version, "schema": version(about_version) });
    let gone = json!({ "204": { "description": "It is no longer there.",
                                "headers": headers(&["XQueryId", "CacheControl"]) } });
    let of_deleting = [Code::InvalidRequest, Code::InvalidBody, Code::UnknownBoard, Code::VersionConflict];
    let delete = operation(
        "deleteBoard",
        "boards",
        "Delete a board",
        "An own board alone.",
        vec![name(), read_version],
        None,
        answers(gone, &errors(&of_deleting), about),
    );
    [
        ("/api/v1/boards", json!({ "get": list })),
        ("/api/v1/boards/{name}", json!({ "get": read, "put": write, "delete": delete })),
    ]
}
