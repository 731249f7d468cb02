//! The value columns of an answer, by the names that order and `having` know them by.

use crate::query::OrderBy;
use shared_model::event::FieldType;

/// The value columns of an answer, by name.
pub(super) struct Values {
    /// Each with the type that it is compared as; `None`: a list.
    pub(super) columns: Vec<(String, Option<FieldType>)>,
    /// Whether those of the period that is compared with are there too, as `previous.<name>`.
    pub(super) compared: bool,
}

impl Values {
    pub(super) fn find(&self, name: &str) -> Option<OrderBy> {
        let place = |name: &str| self.columns.iter().position(|(own, _)| own == name);
        match name.strip_prefix(PREVIOUS).filter(|_| self.compared) {
            Some(name) => place(name).map(OrderBy::Previous),
            None => place(name).map(OrderBy::Value),
        }
    }

    /// The type that a value column is compared as; `None`: a list.
    pub(super) fn type_of(&self, column: OrderBy) -> Option<FieldType> {
        match column {
            OrderBy::Value(place) | OrderBy::Previous(place) => self.columns.get(place)?.1,
            _ => None,
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let names = self.columns.iter().map(|(name, _)| name);
        let previous = names.clone().filter(|_| self.compared).map(|name| format!("{PREVIOUS}{name}"));
        names.cloned().chain(previous).collect()
    }
}

/// What comes before the name of a value column of the period that is compared with.
const PREVIOUS: &str = "previous.";
