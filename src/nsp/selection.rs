//! What a watch asks for: an empty name and an absent parent match everything (spec/ambassador §1, "filter").

use orlop_proto::nsp::v1::target::Status;
use orlop_proto::nsp::v1::{Attractor, Conduit, Flow, Gateway, Stream, Target, Trench, Vip};

/// Something that can also stand for all that is like it.
pub trait Filter {
    /// Is `other` what this asks for?
    fn asks_for(&self, other: &Self) -> bool;
}

/// A parent, as far as it is given.
fn parent<T: Filter + Default>(filter: Option<&T>, other: Option<&T>) -> bool {
    filter.is_none_or(|filter| match other {
        Some(other) => filter.asks_for(other),
        None => filter.asks_for(&T::default()),
    })
}

fn name(filter: &str, other: &str) -> bool {
    filter.is_empty() || filter == other
}

impl Filter for Trench {
    fn asks_for(&self, other: &Self) -> bool {
        name(&self.name, &other.name)
    }
}

impl Filter for Conduit {
    fn asks_for(&self, other: &Self) -> bool {
        name(&self.name, &other.name) && parent(self.trench.as_ref(), other.trench.as_ref())
    }
}

impl Filter for Stream {
    fn asks_for(&self, other: &Self) -> bool {
        name(&self.name, &other.name) && parent(self.conduit.as_ref(), other.conduit.as_ref())
    }
}

impl Filter for Flow {
    fn asks_for(&self, other: &Self) -> bool {
        name(&self.name, &other.name) && parent(self.stream.as_ref(), other.stream.as_ref())
    }
}

impl Filter for Vip {
    fn asks_for(&self, other: &Self) -> bool {
        name(&self.name, &other.name) && parent(self.trench.as_ref(), other.trench.as_ref())
    }
}

impl Filter for Attractor {
    fn asks_for(&self, other: &Self) -> bool {
        name(&self.name, &other.name) && parent(self.trench.as_ref(), other.trench.as_ref())
    }
}

impl Filter for Gateway {
    fn asks_for(&self, other: &Self) -> bool {
        name(&self.name, &other.name) && parent(self.trench.as_ref(), other.trench.as_ref())
    }
}

/// The type is always compared, the status unless any will do.
impl Filter for Target {
    fn asks_for(&self, other: &Self) -> bool {
        (self.status() == Status::Any || self.status == other.status)
            && self.r#type == other.r#type
            && parent(self.stream.as_ref(), other.stream.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(name: &str, conduit: &str, trench: &str) -> Stream {
        let trench = Some(Trench { name: trench.to_owned() });
        let conduit = Conduit { name: conduit.to_owned(), trench, ..Conduit::default() };
        Stream { name: name.to_owned(), conduit: Some(conduit), max_targets: 5 }
    }

    #[test]
    fn what_is_not_said_matches_all() {
        let have = stream("s", "c", "t");
        let rows = [
            (Stream::default(), true),
            (stream("", "", ""), true),
            (stream("s", "", "t"), true),
            (stream("", "c", ""), true),
            (Stream { name: "s".to_owned(), ..Stream::default() }, true),
            (stream("x", "", ""), false),
            (stream("s", "x", "t"), false),
            (stream("s", "c", "x"), false),
        ];
        for (filter, fits) in rows {
            assert_eq!(filter.asks_for(&have), fits, "{filter:?}");
        }
        // Who has no parent is of none that has a name.
        let orphan = Stream { name: "s".to_owned(), ..Stream::default() };
        assert!(!stream("", "c", "").asks_for(&orphan));
        assert!(stream("", "", "").asks_for(&orphan));
    }

    #[test]
    fn an_empty_target_asks_for_those_that_are_enabled() {
        let enabled = Target { stream: Some(stream("s", "c", "t")), ..Target::default() };
        let disabled = Target { status: Status::Disabled.into(), ..enabled.clone() };
        let any = Target { status: Status::Any.into(), ..Target::default() };
        let frontend = Target { r#type: 1, ..enabled.clone() };
        assert!(Target::default().asks_for(&enabled) && !Target::default().asks_for(&disabled));
        assert!(any.asks_for(&enabled) && any.asks_for(&disabled) && !any.asks_for(&frontend));
    }
}
