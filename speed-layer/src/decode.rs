//! From Kafka's message to the record that the fold takes in. What a value means is `shared_model::event`'s.

use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Headers as _, Timestamp};
use shared_model::event::{PRODUCED_HEADER, TICK_HEADER};
use shared_model::time::Millis;

/// One record of a partition's log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    /// Its offset.
    pub(crate) offset: i64,
    /// The broker's append time; `None` for a batch that no broker stamped, which moves no clock.
    pub(crate) append_time: Option<Millis>,
    /// What it carries.
    pub(crate) payload: Payload<'a>,
}

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload<'a> {
    /// Nothing but the time: it closes an epoch on an idle partition.
    Tick,
    /// An event's bytes, or nothing where an event should be.
    Value(Option<&'a [u8]>),
}

/// What the producer's header says of when it made the record.
pub(crate) fn produced(message: &BorrowedMessage<'_>) -> Option<Vec<u8>> {
    let header = message.headers()?.iter().find(|header| header.key == PRODUCED_HEADER)?;
    header.value.map(<[u8]>::to_vec)
}

/// Reads a message.
pub(crate) fn record<'a>(message: &'a BorrowedMessage<'_>) -> Record<'a> {
    let append_time = match message.timestamp() {
        Timestamp::LogAppendTime(time) => Some(time),
        Timestamp::CreateTime(_) | Timestamp::NotAvailable => None,
    };
    let is_tick = || message.headers().is_some_and(|headers| headers.iter().any(|h| h.key == TICK_HEADER));
    let payload = match message.payload() {
        None if is_tick() => Payload::Tick,
        value => Payload::Value(value),
    };
    Record { offset: message.offset(), append_time, payload }
}
