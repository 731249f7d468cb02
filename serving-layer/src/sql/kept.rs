//! What a client keeps under names of its own, prepared statements and portals: no more than a bound of each connection.

use datafusion_postgres::pgwire::messages::PgWireFrontendMessage;
use datafusion_postgres::pgwire::messages::extendedquery::{
    TARGET_TYPE_BYTE_PORTAL as PORTAL, TARGET_TYPE_BYTE_STATEMENT as STATEMENT,
};
use std::collections::HashMap;

/// The most names.
const MAX_NAMES: usize = 1_000;
/// The most bytes of statements' texts and of portals' parameters; a plan takes several times that.
const MAX_BYTES: usize = 1 << 20;

/// What a name stands for, as the protocol has it, and the name.
type Name = (u8, String);

/// A name that something is kept under, and the bytes of what was before.
pub(super) type Change = (Name, Option<usize>);

/// How much a client keeps under which names.
#[derive(Debug, Default)]
pub(super) struct Kept(HashMap<Name, usize>);

impl Kept {
    /// Takes in what a message keeps or lets go of; gives the name that it keeps something under, and what was kept there.
    ///
    /// # Errors
    /// Where that would be too much: then nothing is taken in.
    pub(super) fn take(&mut self, message: &PgWireFrontendMessage) -> Result<Option<Change>, String> {
        let (kind, name, bytes) = match message {
            PgWireFrontendMessage::Parse(parse) => (STATEMENT, parse.name.as_deref(), parse.query.len()),
            PgWireFrontendMessage::Bind(bind) => {
                let bytes = bind.parameters.iter().flatten().map(|bytes| bytes.len()).sum();
                (PORTAL, bind.portal_name.as_deref(), bytes)
            }
            PgWireFrontendMessage::Close(close) => {
                self.0.remove(&(close.target_type, close.name.clone().unwrap_or_default()));
                return Ok(None);
            }
            _ => return Ok(None),
        };
        // What has no name is replaced by the next.
        match name {
            Some(name) if !name.is_empty() => self.put((kind, name.to_owned()), bytes).map(Some),
            _ => Ok(None),
        }
    }

    /// Takes in a cursor that is declared.
    ///
    /// # Errors
    /// As [`Kept::take`].
    pub(super) fn declare(&mut self, name: &str, bytes: usize) -> Result<(), String> {
        self.put((PORTAL, name.to_owned()), bytes).map(drop)
    }

    /// Lets go of a cursor, or of all.
    pub(super) fn close(&mut self, name: Option<&str>) {
        self.0.retain(|kept, _| kept.0 != PORTAL || name.is_some_and(|name| kept.1 != name));
    }

    fn put(&mut self, name: Name, bytes: usize) -> Result<Change, String> {
        let before = self.0.get(&name).copied();
        let names = self.0.len() + usize::from(before.is_none());
        let all = self.0.values().sum::<usize>() - before.unwrap_or(0) + bytes;
        if names > MAX_NAMES || all > MAX_BYTES {
            return Err(format!(
                "{names} names of statements and portals with {all} bytes are more than the limit of {MAX_NAMES} and \
                 {MAX_BYTES}: close those that are done with"
            ));
        }
        self.0.insert(name.clone(), bytes);
        Ok((name, before))
    }

    /// Takes a change back, of which nothing came.
    pub(super) fn undo(&mut self, (name, before): Change) {
        match before {
            Some(bytes) => self.0.insert(name, bytes),
            None => self.0.remove(&name),
        };
    }

    /// Lets go of a prepared statement, or of all; gives their names.
    pub(super) fn deallocate(&mut self, name: Option<&str>) -> Vec<String> {
        let is_meant = |kept: &Name| kept.0 == STATEMENT && name.is_none_or(|name| kept.1 == name);
        self.0.extract_if(|kept, _| is_meant(kept)).map(|((_, name), _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion_postgres::pgwire::messages::extendedquery::{Bind, Close, Parse};

    fn parse(name: &str, length: usize) -> PgWireFrontendMessage {
        PgWireFrontendMessage::Parse(Parse::new(Some(name.to_owned()), "x".repeat(length), Vec::new()))
    }

    #[test]
    fn a_client_keeps_so_much_and_no_more_until_it_lets_go() {
        let mut kept = Kept::default();
        for at in 0..MAX_NAMES {
            assert!(kept.take(&parse(&format!("s{at}"), 1)).unwrap().is_some());
        }
        assert!(kept.take(&parse("one more", 1)).unwrap_err().contains("1001 names"));
        // Again under the same name, or under none.
        assert!(kept.take(&parse("s7", 2)).is_ok());
        assert_eq!(kept.take(&parse("", 1)), Ok(None));
        assert_eq!(kept.deallocate(Some("s7")), ["s7"]);
        assert_eq!(kept.deallocate(Some("s7")), [] as [&str; 0]);
        assert!(kept.take(&parse("one more", 1)).is_ok());
        let close = Close::new(STATEMENT, Some("s8".to_owned()));
        assert_eq!(kept.take(&PgWireFrontendMessage::Close(close)), Ok(None));
        assert_eq!(kept.deallocate(None).len(), MAX_NAMES - 1);
        let parameters = vec![Some(vec![0; MAX_BYTES].into()), None];
        let bind = |parameters| Bind::new(Some("p".to_owned()), None, Vec::new(), parameters, Vec::new());
        let change = kept.take(&PgWireFrontendMessage::Bind(bind(parameters))).unwrap().unwrap();
        assert!(kept.take(&parse("s", 1)).unwrap_err().contains("1048577 bytes"));
        kept.undo(change);
        let first = kept.take(&parse("s", 1)).unwrap().unwrap();
        let second = kept.take(&parse("s", 7)).unwrap().unwrap();
        kept.undo(second);
        assert_eq!(kept.0[&first.0], 1);
        kept.declare("c", MAX_BYTES - 1).unwrap();
        assert!(kept.declare("d", 1).is_err());
        kept.close(Some("d"));
        assert!(kept.declare("d", 1).is_err());
        kept.close(Some("c"));
        kept.declare("d", 1).unwrap();
        kept.close(None);
        assert_eq!(kept.0.len(), 1, "a statement is no cursor");
    }
}
