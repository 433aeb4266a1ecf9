//! Where a store is, as an operator writes it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::Error;

/// What `embedded:///PATH` or `etcd://HOST:PORT,…` says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Location {
    /// The file of an embedded store.
    Embedded(PathBuf),
    /// Members of an etcd cluster, `HOST:PORT` each.
    Etcd(Vec<String>),
}

/// As it is written.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(path) => write!(f, "embedded://{}", path.display()),
            Self::Etcd(members) => write!(f, "etcd://{}", members.join(",")),
        }
    }
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |why| Err(Error::Location { text: text.to_owned(), why });
        match text.split_once("://") {
            Some(("embedded", path)) if path.starts_with('/') => Ok(Self::Embedded(path.into())),
            Some(("embedded", _)) => wrong("the path is not absolute"),
            Some(("etcd", members)) => {
                let members: Vec<String> = members.split(',').map(str::to_owned).collect();
                let sound = |member: &String| {
                    member.rsplit_once(':').is_some_and(|(host, port)| {
                        !host.is_empty()
                            && !host.contains(['/', '@', ' '])
                            && port.parse::<u16>().is_ok_and(|port| port != 0)
                    })
                };
                if members.iter().all(sound) {
                    Ok(Self::Etcd(members))
                } else {
                    wrong("a member is not HOST:PORT")
                }
            }
            Some(_) => wrong("neither embedded nor etcd"),
            None => wrong("it has no ://"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_told_by_their_scheme() {
        assert_eq!(
            "embedded:///var/lib/orlop/store".parse::<Location>().ok(),
            Some(Location::Embedded("/var/lib/orlop/store".into()))
        );
        assert_eq!(
            "etcd://10.0.0.1:2379,[fd00::1]:2379".parse::<Location>().ok(),
            Some(Location::Etcd(vec!["10.0.0.1:2379".to_owned(), "[fd00::1]:2379".to_owned()]))
        );
    }

    #[test]
    fn both_kinds_are_written_as_they_are_read() {
        for text in ["embedded:///var/lib/orlop/store", "etcd://10.0.0.1:2379,[fd00::1]:2379"] {
            assert_eq!(text.parse::<Location>().expect("a place").to_string(), text);
        }
    }

    #[test]
    fn what_names_no_store_is_told_with_why_and_what_to_write() {
        for (text, why) in [
            ("/var/lib", "it has no ://"),
            ("embedded://store", "not absolute"),
            ("redis://a:1", "neither"),
            ("etcd://", "not HOST:PORT"),
            ("etcd://a:2379,", "not HOST:PORT"),
            ("etcd://a:0", "not HOST:PORT"),
            ("etcd://https://a:2379", "not HOST:PORT"),
        ] {
            let said =
                text.parse::<Location>().err().map(|error| error.to_string()).unwrap_or_default();
            assert!(
                said.contains(why) && said.contains("write embedded:///PATH"),
                "{text}: {said}"
            );
        }
    }
}
