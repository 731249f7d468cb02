//! The one definition that all layers obey: catalog, expressions, aggregates, time, epochs, the tidemark and the
//! stored forms of both views.
//!
//! Nothing here does I/O, is asynchronous or reads a clock: every function is a pure function of its arguments, so
//! that the speed layer, the batch layer and the serving layer can't disagree about what a record means. The one exception
//! is [`failpoint`], by which tests kill processes.

pub mod time;
pub mod offsets;
pub mod epoch;
pub mod tidemark;
pub mod codec;
pub mod interner;
pub mod event;
pub mod expression;
pub mod catalog;
pub mod metric;
pub mod aggregate;
pub mod view;
pub mod dense;
pub mod causes;
pub mod failpoint;
pub mod secret;
#[cfg(feature = "redis")]
pub mod redis_address;
#[cfg(any(test, feature = "testing"))]
pub mod laws;
