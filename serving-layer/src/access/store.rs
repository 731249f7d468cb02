//! The database of keys: the schema `access`, of which this layer's other role knows nothing.
//!
//! Whatever changes a key, a person's SQL too, changes what [`Store::version`] says.

mod boards;

use super::{Entry, Key};
use shared_model::time::Millis;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{PgPool, Row as _};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::OnceCell;

const SCHEMA: &str = include_str!("schema.sql");

/// The database can't be used; the cause never has a part of its URL.
#[derive(Debug, Error)]
#[error("the database of keys: {0}")]
pub struct StoreError(String);

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> StoreError {
        StoreError(error.to_string())
    }
}

impl StoreError {
    /// It didn't answer in time.
    pub(super) fn slow() -> StoreError {
        StoreError("no answer in time".to_owned())
    }
}

/// What tells one state of the keys from another: a hash of them all.
pub type Known = String;

/// The keys, the log and the boards in Postgres. Connects when first needed, again and again.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    /// What boards are read and written by.
    boards: PgPool,
    /// Whether the schema was found, or made, for them.
    prepared: Arc<OnceCell<()>>,
}

impl Store {
    /// Names the server; nothing is connected yet.
    ///
    /// # Errors
    /// Where the URL is none.
    pub fn new(url: &str) -> Result<Store, sqlx::Error> {
        let options = PgConnectOptions::from_str(url)?.application_name("tidemark-access");
        let pool = |connections: u32| {
            let pool = PgPoolOptions::new().max_connections(connections);
            pool.acquire_timeout(Duration::from_secs(3)).connect_lazy_with(options.clone())
        };
        Ok(Store { pool: pool(3), boards: pool(4), prepared: Arc::default() })
    }

    /// Makes the schema where it isn't there.
    ///
    /// # Errors
    /// [`StoreError`] where the database can't be reached, or the role may not make it.
    pub async fn prepare(&self) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Which state of the keys there is.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn version(&self) -> Result<Known, StoreError> {
        let sql = "select md5(coalesce(string_agg(key::text, ' ' order by key_id), '')) from access.key key";
        Ok(sqlx::query_scalar(sql).fetch_one(&self.pool).await?)
    }

    /// All keys, the oldest first; in place of one whose grants are of a form that this version doesn't know, why.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn keys(&self) -> Result<Vec<Result<Key, StoreError>>, StoreError> {
        let sql = "select key_id, name, secret_hash, grants, rate_per_second,
                          (extract(epoch from created_at) * 1000)::bigint as created,
                          (extract(epoch from expires_at) * 1000)::bigint as expires,
                          (extract(epoch from revoked_at) * 1000)::bigint as revoked
                   from access.key order by created_at, key_id";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await?;
        Ok(rows.iter().map(key).collect())
    }

    /// Stores a new key.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn insert(&self, key: &Key) -> Result<(), StoreError> {
        let sql = "insert into access.key (key_id, name, secret_hash, grants, rate_per_second, created_at, expires_at)
                   values ($1, $2, $3, $4, $5, to_timestamp($6::float8 / 1000), to_timestamp($7::float8 / 1000))";
        let grants = serde_json::to_value(&key.grants).map_err(|error| StoreError(error.to_string()))?;
        let query = sqlx::query(sql).bind(&key.id).bind(&key.name).bind(&key.hash[..]).bind(grants);
        let query = query.bind(key.rate).bind(key.created).bind(key.expires);
        query.execute(&self.pool).await?;
        Ok(())
    }

    /// Revokes a key; `false` where there is none of this id that isn't revoked.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn revoke(&self, id: &str, now: Millis) -> Result<bool, StoreError> {
        let sql = "update access.key set revoked_at = to_timestamp($2::float8 / 1000)
                   where key_id = $1 and revoked_at is null";
        let done = sqlx::query(sql).bind(id).bind(now).execute(&self.pool).await?;
        Ok(done.rows_affected() > 0)
    }

    /// Writes entries of the log.
    ///
    /// # Errors
    /// [`StoreError`]; then none of them is written.
    pub async fn append(&self, entries: &[Entry]) -> Result<(), StoreError> {
        let sql = "insert into access.log
                   select to_timestamp(asked_at::float8 / 1000), query_id, key_id, key_name, method, route, asked, status, took
                   from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                               $8::smallint[], $9::bigint[])
                        as entry (asked_at, query_id, key_id, key_name, method, route, asked, status, took)";
        fn each<'a, T>(entries: &'a [Entry], of: impl Fn(&'a Entry) -> T) -> Vec<T> {
            entries.iter().map(of).collect()
        }
        let query = sqlx::query(sql)
            .bind(each(entries, |entry| entry.at))
            .bind(each(entries, |entry| entry.query_id.as_str()))
            .bind(each(entries, |entry| entry.key.as_str()))
            .bind(each(entries, |entry| entry.name.as_str()))
            .bind(each(entries, |entry| entry.method.as_str()))
            .bind(each(entries, |entry| entry.route.as_str()))
            .bind(each(entries, |entry| entry.asked.as_str()))
            .bind(each(entries, |entry| entry.status as i16))
            .bind(each(entries, |entry| entry.took.as_millis() as i64));
        query.execute(&self.pool).await?;
        Ok(())
    }

    /// Deletes what was asked before a time.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn forget(&self, before: Millis) -> Result<u64, StoreError> {
        let sql = "delete from access.log where asked_at < to_timestamp($1::float8 / 1000)";
        Ok(sqlx::query(sql).bind(before).execute(&self.pool).await?.rows_affected())
    }
}

fn key(row: &PgRow) -> Result<Key, StoreError> {
    let id: String = row.try_get("key_id")?;
    let hash: Vec<u8> = row.try_get("secret_hash")?;
    let grants = serde_json::from_value(row.try_get("grants")?);
    Ok(Key {
        name: row.try_get("name")?,
        hash: hash.try_into().map_err(|_| StoreError(format!("the hash of key {id} has not 32 bytes")))?,
        grants: grants.map_err(|error| StoreError(format!("the grants of key {id}: {error}")))?,
        rate: row.try_get("rate_per_second")?,
        created: row.try_get("created")?,
        expires: row.try_get("expires")?,
        revoked: row.try_get("revoked")?,
        id,
    })
}
