//! The streams that applications opened, in the order they did, with their status (spec/ambassador §2.4). Pure.

use orlop_proto::ambassador::v1::stream_status::Status;
use orlop_proto::ambassador::v1::{Conduit, Stream, StreamStatus, Trench};

/// A stream by its names.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name {
    /// Of the trench.
    pub trench: String,
    /// Of the conduit.
    pub conduit: String,
    /// Its own.
    pub stream: String,
}

/// Why a message names no stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unnamed {
    /// There is none.
    #[error("conduit cannot be nil")]
    NoConduit,
    /// There is none.
    #[error("trench cannot be nil")]
    NoTrench,
    /// One is the empty text.
    #[error("the {0} has no name")]
    Empty(&'static str),
}

impl TryFrom<Stream> for Name {
    type Error = Unnamed;

    fn try_from(stream: Stream) -> Result<Self, Unnamed> {
        let conduit = stream.conduit.ok_or(Unnamed::NoConduit)?;
        let trench = conduit.trench.ok_or(Unnamed::NoTrench)?;
        let name = Self { trench: trench.name, conduit: conduit.name, stream: stream.name };
        let parts =
            [("stream", &name.stream), ("conduit", &name.conduit), ("trench", &name.trench)];
        let empty = parts.into_iter().find(|(_, name)| name.is_empty());
        empty.map_or(Ok(()), |(part, _)| Err(Unnamed::Empty(part)))?;
        Ok(name)
    }
}

impl From<&Name> for Stream {
    fn from(name: &Name) -> Self {
        let trench = Some(Trench { name: name.trench.clone() });
        let conduit = Some(Conduit { name: name.conduit.clone(), trench });
        Self { name: name.stream.clone(), conduit }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.stream, self.conduit, self.trench)
    }
}

/// All of them. Two are equal when a watcher of everything could not tell them apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table(Vec<(Name, Status)>);

impl Table {
    /// Sets a status; one that is not there yet comes last. `true`: it is another.
    pub fn set(&mut self, name: &Name, status: Status) -> bool {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => std::mem::replace(known, status) != status,
            None => {
                self.0.push((name.clone(), status));
                true
            }
        }
    }

    /// Is it there?
    #[must_use]
    pub fn has(&self, name: &Name) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// Forgets a stream. `true`: it was there.
    pub fn remove(&mut self, name: &Name) -> bool {
        let before = self.0.len();
        self.0.retain(|(known, _)| known != name);
        self.0.len() != before
    }

    /// Those that a filter asks for: an empty name and an absent parent match everything.
    #[must_use]
    pub fn list(&self, filter: &Stream) -> Vec<StreamStatus> {
        let conduit = filter.conduit.as_ref();
        let trench = conduit.and_then(|conduit| conduit.trench.as_ref());
        let names = [
            filter.name.as_str(),
            conduit.map_or("", |conduit| &conduit.name),
            trench.map_or("", |trench| &trench.name),
        ];
        let fits = |name: &Name| {
            let own = [&name.stream, &name.conduit, &name.trench];
            names.iter().zip(own).all(|(filter, own)| filter.is_empty() || filter == own)
        };
        self.0
            .iter()
            .filter(|(name, _)| fits(name))
            .map(|(name, status)| StreamStatus {
                status: (*status).into(),
                stream: Some(name.into()),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(stream: &str, conduit: &str, trench: &str) -> Name {
        let [stream, conduit, trench] = [stream, conduit, trench].map(str::to_owned);
        Name { trench, conduit, stream }
    }

    #[test]
    fn what_names_no_stream_is_told_in_the_known_words() {
        let whole = Stream::from(&name("s", "c", "t"));
        assert_eq!(Name::try_from(whole.clone()), Ok(name("s", "c", "t")));
        let bare = Stream { name: "s".to_owned(), conduit: None };
        assert_eq!(
            Name::try_from(bare).map_err(|e| e.to_string()),
            Err("conduit cannot be nil".to_owned())
        );
        let orphan = Stream { conduit: Some(Conduit::default()), ..whole };
        assert_eq!(
            Name::try_from(orphan).map_err(|e| e.to_string()),
            Err("trench cannot be nil".to_owned())
        );
        for parts in [["", "c", "t"], ["s", "", "t"], ["s", "c", ""]] {
            let stream = Stream::from(&name(parts[0], parts[1], parts[2]));
            assert!(matches!(Name::try_from(stream), Err(Unnamed::Empty(_))));
        }
    }

    #[test]
    fn entries_keep_their_order_and_come_last_when_they_come_again() {
        let mut table = Table::default();
        let (a, b) = (name("a", "c", "t"), name("b", "d", "t"));
        assert!(table.set(&a, Status::Unavailable) && table.set(&b, Status::Pending));
        assert!(table.set(&a, Status::Open) && !table.set(&a, Status::Open));
        let shown = |table: &Table, filter: &Stream| -> Vec<String> {
            let list = table.list(filter).into_iter();
            list.map(|status| status.stream.expect("a stream").name).collect()
        };
        assert_eq!(shown(&table, &Stream::default()), ["a", "b"]);
        assert!(table.remove(&a) && !table.remove(&a));
        table.set(&a, Status::Undefined);
        assert_eq!(shown(&table, &Stream::default()), ["b", "a"]);
        let conduit = Conduit { name: "d".to_owned(), trench: None };
        assert_eq!(shown(&table, &Stream { name: String::new(), conduit: Some(conduit) }), ["b"]);
        assert!(shown(&table, &Stream { name: "x".to_owned(), conduit: None }).is_empty());
    }
}
