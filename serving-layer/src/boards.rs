//! Saved boards: what a page of charts consists of, kept for whoever made it, and shown to all where it is shared.
//!
//! A board is the page's own JSON object: nothing of it is read here, and it comes back byte for byte as it was put. It
//! belongs to the key that made it, or to nobody where no keys are needed. Its owner alone changes it, and only from the
//! version that is there: of two changes made from one version the second is refused. Shared boards have each a name of
//! their own, so that to a reader a name means one board: an own one, else the shared one.

mod memory;
mod routes;

pub use memory::MemoryBoards;
pub use routes::{BoardAbout, BoardReply, BoardsReply};
pub(crate) use routes::{delete, list, read, write};

use futures::future::BoxFuture;
use shared_model::time::Millis;
use thiserror::Error;

/// The most characters of a board's name.
pub const MAX_NAME: usize = 100;
/// The most bytes of a board, as it was written.
pub const MAX_BOARD: usize = 64 << 10;
/// How deep the lists and objects of a board may lie within each other, the board itself counted.
pub const MAX_DEPTH: usize = 32;
/// The most boards of one key.
pub const MAX_BOARDS: usize = 200;
/// The most boards that are listed.
pub const MAX_LISTED: usize = 1_000;

/// A board but for what is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The id of the key that it belongs to; empty: nobody's.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// Whether all may read it.
    pub shared: bool,
    /// 1 when it is made, one more at each change.
    pub version: i64,
    /// When it was last put, ms since 1970.
    pub updated: Millis,
}

/// A board to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    /// As in [`About`].
    pub owner: &'a str,
    /// A name that `wrong_name` finds nothing wrong with.
    pub name: &'a str,
    /// Whether all may read it.
    pub shared: bool,
    /// A JSON object that `wrong_board` finds nothing wrong with.
    pub board: &'a str,
}

/// Why a board could not be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BoardError {
    /// Where they are kept can't be reached: the cause, for the log.
    #[error("the boards can't be reached at the moment: ask again later")]
    Unavailable(String),
    /// There is none of this name.
    #[error(
        "there is no board {0:?}, or none that you may change: /api/v1/boards lists yours and those that are shared"
    )]
    Unknown(String),
    /// The version that a change was made from is not the one that is there.
    #[error("{}", conflict(*there, *read))]
    Conflict {
        /// The version that is there; `None`: no board.
        there: Option<i64>,
        /// The version that was read; `None`: no board.
        read: Option<i64>,
    },
    /// There is another shared board of this name.
    #[error("there is another shared board {0:?}: share this one under another name")]
    NameTaken(String),
    /// There is no room for another one.
    #[error("there are {} boards of this key, as many as may be: delete one of them", MAX_BOARDS)]
    Full,
}

fn conflict(there: Option<i64>, read: Option<i64>) -> String {
    match (there, read) {
        (Some(there), Some(read)) => {
            format!("the board is of version {there}, and version {read} was to be changed: read it again")
        }
        (Some(there), None) => {
            format!(
                "there is such a board already, of version {there}: read it, and say which version you change"
            )
        }
        (None, _) => "you have no such board, or not any more: leave version out to make one".to_owned(),
    }
}

/// Where boards are kept.
pub trait Boards: Send + Sync {
    /// The boards of an owner and those that are shared, each name once, in the order of their bytes; the first
    /// [`MAX_LISTED`].
    fn list<'a>(&'a self, owner: &'a str) -> BoxFuture<'a, Result<Vec<About>, BoardError>>;

    /// What a name means to an owner, and the board's text; `None` where it means nothing.
    fn read<'a>(
        &'a self,
        owner: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<(About, String)>, BoardError>>;

    /// Keeps a board in place of the version `read`, or as a new one.
    fn write<'a>(
        &'a self,
        draft: Draft<'a>,
        read: Option<i64>,
        now: Millis,
    ) -> BoxFuture<'a, Result<About, BoardError>>;

    /// Deletes an owner's board of the version `read`.
    fn delete<'a>(
        &'a self,
        owner: &'a str,
        name: &'a str,
        read: i64,
    ) -> BoxFuture<'a, Result<(), BoardError>>;
}

/// Whether a board may be written in place of the version that is there, where its owner has so many.
///
/// # Errors
/// [`BoardError::Conflict`], [`BoardError::Full`]
pub(crate) fn admit(there: Option<i64>, read: Option<i64>, boards: usize) -> Result<(), BoardError> {
    if there != read {
        return Err(BoardError::Conflict { there, read });
    }
    if there.is_none() && boards >= MAX_BOARDS { Err(BoardError::Full) } else { Ok(()) }
}

/// What is wrong with a name. `.` and `..` are none: in an address they stand for other places.
fn wrong_name(name: &str) -> Option<String> {
    let length = name.chars().count();
    if !(1..=MAX_NAME).contains(&length) {
        return Some(format!("a name of {length} characters: it must have 1 to {MAX_NAME}"));
    }
    let why = match name {
        "." | ".." => "an address can't hold it",
        _ if name.chars().any(char::is_control) => "it has control characters",
        _ => return None,
    };
    Some(format!("{name:?} is no name of a board: {why}; choose another one"))
}

/// What is wrong with the JSON text of a board.
fn wrong_board(board: &str) -> Option<String> {
    if !board.starts_with('{') {
        return Some("it must be a JSON object".to_owned());
    }
    if board.len() > MAX_BOARD {
        return Some(format!(
            "it has {} bytes, of {MAX_BOARD} that it may have: split the board",
            board.len()
        ));
    }
    let depth = depth(board);
    (depth > MAX_DEPTH)
        .then(|| format!("it is {depth} levels deep, of {MAX_DEPTH} that it may be: flatten it"))
}

/// How deep lists and objects lie within each other in a valid JSON text.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_text, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    /// The depth as its definition has it.
    fn naive(value: &Json) -> usize {
        match value {
            Json::Array(list) => 1 + list.iter().map(naive).max().unwrap_or_default(),
            Json::Object(object) => 1 + object.values().map(naive).max().unwrap_or_default(),
            _ => 0,
        }
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let text = r#"[\[\]{}"\\a/ ]{0,6}"#;
        let leaf =
            prop_oneof![text.prop_map(Json::from), any::<i32>().prop_map(Json::from), Just(Json::Null)];
        leaf.prop_recursive(8, 60, 4, move |inner| {
            let list = prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from);
            let object = prop::collection::btree_map(text, inner, 0..4);
            prop_oneof![list, object.prop_map(|object| object.into_iter().collect::<Json>())]
        })
    }

    proptest! {
        #[test]
        fn the_depth_of_a_text_is_that_of_its_value(value in any_json()) {
            prop_assert_eq!(depth(&value.to_string()), naive(&value));
            prop_assert_eq!(depth(&format!("{value:#}")), naive(&value));
        }
    }

    #[test]
    fn names_are_judged_by_their_characters() {
        let (longest, too_long) = ("\u{1f600}".repeat(MAX_NAME), "x".repeat(MAX_NAME + 1));
        for name in ["a", " ", "...", "a/b", "..\\x", "%2F", "'; drop table access.board", &longest] {
            assert_eq!(wrong_name(name), None, "{name:?}");
        }
        for name in ["", ".", "..", "a\0", "a\nb", "\u{7f}", "\u{85}", &too_long] {
            assert!(wrong_name(name).is_some(), "{name:?}");
        }
    }

    #[test]
    fn boards_are_judged_at_their_limits() {
        let of_depth =
            |depth: usize| format!("{}{}{}", r#"{"a":"#.repeat(depth - 1), "{}", "}".repeat(depth - 1));
        let of_bytes = |bytes: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - 8));
        for board in ["{}".to_owned(), of_depth(MAX_DEPTH), of_bytes(MAX_BOARD)] {
            assert!(serde_json::from_str::<Json>(&board).is_ok_and(|board| board.is_object()));
            assert_eq!(wrong_board(&board), None);
        }
        assert_eq!(of_bytes(MAX_BOARD).len(), MAX_BOARD);
        for board in
            [json!([]).to_string(), "\"{\"".to_owned(), of_depth(MAX_DEPTH + 1), of_bytes(MAX_BOARD + 1)]
        {
            assert!(wrong_board(&board).is_some());
        }
    }

    #[test]
    fn a_board_is_written_in_place_of_what_was_read() {
        let conflict = |there, read| Err(BoardError::Conflict { there, read });
        assert_eq!(admit(None, None, MAX_BOARDS - 1), Ok(()));
        assert_eq!(admit(None, None, MAX_BOARDS), Err(BoardError::Full));
        assert_eq!(admit(Some(3), Some(3), MAX_BOARDS), Ok(()));
        for (there, read) in [(Some(3), Some(2)), (Some(3), None), (None, Some(3))] {
            assert_eq!(admit(there, read, MAX_BOARDS), conflict(there, read));
        }
    }
}
