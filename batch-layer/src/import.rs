//! Bulk history from files straight into the archive (being written).
