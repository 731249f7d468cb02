//! Records that aren't as they should be: refused, of strange times, large, and come again. One program, whose tests run side by side.

#[path = "dead_letters.rs"]
mod dead_letters;
#[path = "event_times.rs"]
mod event_times;
#[path = "large_records.rs"]
mod large_records;
#[path = "repeats.rs"]
mod repeats;
