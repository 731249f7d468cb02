//! Tests of whole answers: against views in memory, filled by a naive fold of a small log.

mod access;
mod boards;
mod caching;
mod export;
mod facts;
mod formats;
mod law;
mod limits;
mod on_servers;
mod openapi;
mod over_http;
mod patience;
mod push;
mod rows;
mod schema;
mod several;
mod validation;
mod world;
pub(crate) use world::catalog;
