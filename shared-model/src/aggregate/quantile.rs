//! Placeholder; being written.
/// Placeholder.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {}
