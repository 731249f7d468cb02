//! What a client keeps under names of its own, prepared statements and portals: no more than a bound of each connection.

use datafusion_postgres::pgwire::messages::PgWireFrontendMessage;
use datafusion_postgres::pgwire::messages::extendedquery::{
    TARGET_TYPE_BYTE_PORTAL, TARGET_TYPE_BYTE_STATEMENT,
};
use std::collections::HashMap;

/// The most names.
const MAX_NAMES: usize = 1_000;
/// The most bytes of statements' texts and of portals' parameters; a plan takes several times that.
const MAX_BYTES: usize = 1 << 20;

/// What a name stands for, as the protocol has it, and the name.
pub(super) type Name = (u8, String);

/// How much a client keeps under which names.
#[derive(Debug, Default)]
pub(super) struct Kept(HashMap<Name, usize>);

impl Kept {
    /// Takes in what a message keeps or lets go of; gives the name that it keeps something under.
    ///
    /// # Errors
    /// Where that would be too much: then nothing is taken in.
    pub(super) fn take(&mut self, message: &PgWireFrontendMessage) -> Result<Option<Name>, String> {
        let (name, bytes) = match message {
            PgWireFrontendMessage::Parse(parse) => {
                ((TARGET_TYPE_BYTE_STATEMENT, parse.name.as_deref()), parse.query.len())
            }
            PgWireFrontendMessage::Bind(bind) => {
                let bytes = bind.parameters.iter().flatten().map(|bytes| bytes.len()).sum();
                ((TARGET_TYPE_BYTE_PORTAL, bind.portal_name.as_deref()), bytes)
            }
            PgWireFrontendMessage::Close(close) => {
                self.forget(&(close.target_type, close.name.clone().unwrap_or_default()));
                return Ok(None);
            }
            _ => return Ok(None),
        };
        // What has no name is replaced by the next.
        let (kind, Some(name)) = name else { return Ok(None) };
        let name = (kind, name.to_owned());
        if name.1.is_empty() {
            return Ok(None);
        }
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
        Ok(Some(name))
    }

    /// Lets go of a name.
    pub(super) fn forget(&mut self, name: &Name) {
        self.0.remove(name);
    }

    /// Lets go of a prepared statement, or of all; gives their names.
    pub(super) fn deallocate(&mut self, name: Option<&str>) -> Vec<String> {
        let is_meant =
            |kept: &Name| kept.0 == TARGET_TYPE_BYTE_STATEMENT && name.is_none_or(|name| kept.1 == name);
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
        let close = Close::new(TARGET_TYPE_BYTE_STATEMENT, Some("s8".to_owned()));
        assert_eq!(kept.take(&PgWireFrontendMessage::Close(close)), Ok(None));
        assert_eq!(kept.deallocate(None).len(), MAX_NAMES - 1);
        let parameters = vec![Some(vec![0; MAX_BYTES].into()), None];
        let bind = |parameters| Bind::new(Some("p".to_owned()), None, Vec::new(), parameters, Vec::new());
        assert!(kept.take(&PgWireFrontendMessage::Bind(bind(parameters))).unwrap().is_some());
        assert!(kept.take(&parse("s", 1)).unwrap_err().contains("1048577 bytes"));
        kept.forget(&(TARGET_TYPE_BYTE_PORTAL, "p".to_owned()));
        assert!(kept.take(&parse("s", 1)).is_ok());
    }
}
