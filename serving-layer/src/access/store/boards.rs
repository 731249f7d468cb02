//! The boards in the database of keys: the table `access.board`.
//!
//! What one owner writes is written one after the other, whichever process it comes to, so that boards are counted right and
//! the version that is compared is the one that is replaced. Boards have connections of their own: however many are asked
//! for, the keys are looked at, and the log is written.

use super::{Store, StoreError};
use crate::access::ANSWERED_WITHIN;
use crate::boards::{About, BoardError, Boards, Draft, MAX_LISTED, admit};
use futures::future::BoxFuture;
use shared_model::time::Millis;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{PgPool, Row as _};
use tokio::time::timeout;

impl From<StoreError> for BoardError {
    fn from(error: StoreError) -> BoardError {
        BoardError::Unavailable(error.to_string())
    }
}

impl From<sqlx::Error> for BoardError {
    fn from(error: sqlx::Error) -> BoardError {
        StoreError::from(error).into()
    }
}

impl Store {
    /// The connections of boards; the first who asks for them finds the schema, or makes it.
    async fn connections(&self) -> Result<&PgPool, StoreError> {
        self.prepared.get_or_try_init(|| self.prepare()).await?;
        Ok(&self.boards)
    }
}

/// Work that is given up where the database takes too long.
fn bounded<'a, T: 'a>(
    work: impl Future<Output = Result<T, BoardError>> + Send + 'a,
) -> BoxFuture<'a, Result<T, BoardError>> {
    Box::pin(async move {
        timeout(ANSWERED_WITHIN, work).await.unwrap_or_else(|_| Err(StoreError::slow().into()))
    })
}

impl Boards for Store {
    fn list<'a>(&'a self, owner: &'a str) -> BoxFuture<'a, Result<Vec<About>, BoardError>> {
        bounded(async move {
            let sql = "select distinct on (name) key_id, name, shared, version,
                              (extract(epoch from updated_at) * 1000)::bigint as updated
                       from access.board where key_id = $1 or shared
                       order by name, key_id = $1 desc limit $2";
            let query = sqlx::query(sql).bind(owner).bind(MAX_LISTED as i64);
            let rows = query.fetch_all(self.connections().await?).await?;
            rows.iter().map(about).collect()
        })
    }

    fn read<'a>(
        &'a self,
        owner: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<(About, String)>, BoardError>> {
        bounded(async move {
            let sql = "select key_id, name, shared, version,
                              (extract(epoch from updated_at) * 1000)::bigint as updated, board::text as text
                       from access.board where name = $2 and (key_id = $1 or shared)
                       order by key_id = $1 desc limit 1";
            let query = sqlx::query(sql).bind(owner).bind(name);
            let row = query.fetch_optional(self.connections().await?).await?;
            row.map(|row| Ok((about(&row)?, row.try_get("text")?))).transpose()
        })
    }

    fn write<'a>(
        &'a self,
        draft: Draft<'a>,
        read: Option<i64>,
        now: Millis,
    ) -> BoxFuture<'a, Result<About, BoardError>> {
        bounded(async move {
            let Draft { owner, name, shared, board } = draft;
            let mut transaction = self.connections().await?.begin().await?;
            let turn = sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 0))");
            turn.bind(format!("tidemark boards of {owner}")).execute(&mut *transaction).await?;
            let there = version(&mut transaction, owner, name).await?;
            let count = sqlx::query_scalar("select count(*) from access.board where key_id = $1");
            let boards: i64 = count.bind(owner).fetch_one(&mut *transaction).await?;
            admit(there, read, boards as usize)?;
            let sql = "insert into access.board as held (key_id, name, shared, board, version, updated_at)
                       values ($1, $2, $3, $4::json, 1, to_timestamp($5::float8 / 1000))
                       on conflict (key_id, name) do update
                       set shared = excluded.shared, board = excluded.board, version = held.version + 1,
                           updated_at = excluded.updated_at
                       returning version";
            let query = sqlx::query_scalar(sql).bind(owner).bind(name).bind(shared).bind(board).bind(now);
            let written: Result<i64, sqlx::Error> = query.fetch_one(&mut *transaction).await;
            let version = written.map_err(|error| {
                match error.as_database_error().and_then(|error| error.constraint()) {
                    Some("board_shared_name") => BoardError::NameTaken(name.to_owned()),
                    _ => error.into(),
                }
            })?;
            transaction.commit().await?;
            Ok(About { owner: owner.to_owned(), name: name.to_owned(), shared, version, updated: now })
        })
    }

    fn delete<'a>(
        &'a self,
        owner: &'a str,
        name: &'a str,
        read: i64,
    ) -> BoxFuture<'a, Result<(), BoardError>> {
        bounded(async move {
            let mut transaction = self.connections().await?.begin().await?;
            let there = version(&mut transaction, owner, name).await?;
            let there = there.ok_or_else(|| BoardError::Unknown(name.to_owned()))?;
            admit(Some(there), Some(read), 0)?;
            let query = sqlx::query("delete from access.board where key_id = $1 and name = $2");
            query.bind(owner).bind(name).execute(&mut *transaction).await?;
            Ok(transaction.commit().await?)
        })
    }
}

/// The version that is there of an owner's board, which nobody else changes until the transaction ends.
async fn version(
    transaction: &mut PgConnection,
    owner: &str,
    name: &str,
) -> Result<Option<i64>, sqlx::Error> {
    let sql = "select version from access.board where key_id = $1 and name = $2 for update";
    sqlx::query_scalar(sql).bind(owner).bind(name).fetch_optional(transaction).await
}

fn about(row: &PgRow) -> Result<About, BoardError> {
    Ok(About {
        owner: row.try_get("key_id")?,
        name: row.try_get("name")?,
        shared: row.try_get("shared")?,
        version: row.try_get("version")?,
        updated: row.try_get("updated")?,
    })
}
