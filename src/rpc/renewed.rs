//! What a daemon is known by, in files that somebody else renews while it runs.
//!
//! machined puts keys and certificates into a folder of the daemon's and replaces them one by one, so
//! for a moment they may not belong together: what cannot be used is looked at again, and only told when
//! it stays so. Until then the daemon goes on with what it has.

use std::error::Error;
use std::fmt::Debug;
use std::time::Duration;

use orlop_rt::Chain;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

/// Where the files are, and what they are good for.
pub trait Source {
    /// What is in them.
    type Texts: PartialEq + Debug;
    /// What that makes.
    type Identity;
    /// Why they cannot be used.
    type Error: Error + 'static;
    /// How the log calls them.
    const WHAT: &'static str;

    /// Reads them. (Small files in memory: reading them does not block.)
    ///
    /// # Errors
    /// When one cannot be read.
    fn read(&self) -> Result<Self::Texts, Self::Error>;

    /// Makes an identity of what is in them.
    ///
    /// # Errors
    /// When they make none.
    fn identity(&self, texts: &Self::Texts) -> Result<Self::Identity, Self::Error>;
}

/// The files of a source, as they were last seen in good order.
#[derive(Debug)]
pub struct Files<S: Source> {
    source: S,
    texts: S::Texts,
    /// Looks in a row at files that could not be used.
    broken: u32,
}

impl<S: Source> Files<S> {
    /// Reads them for the first time.
    ///
    /// # Errors
    /// When they cannot be read or used.
    pub fn open(source: S) -> Result<(Self, S::Identity), S::Error> {
        let texts = source.read()?;
        let identity = source.identity(&texts)?;
        Ok((Self { source, texts, broken: 0 }, identity))
    }

    /// Reads them again; the new identity, when there is one.
    pub fn look(&mut self) -> Option<S::Identity> {
        let looked = self.source.read().and_then(|texts| {
            if texts == self.texts {
                return Ok(None);
            }
            Ok(Some((self.source.identity(&texts)?, texts)))
        });
        let found = match looked {
            Ok(found) => found,
            Err(error) => {
                self.broken = self.broken.saturating_add(1);
                if self.broken == 2 {
                    warn!(error = %Chain(&error), "new {} cannot be used, keeping the old", S::WHAT);
                }
                return None;
            }
        };
        self.broken = 0;
        let (identity, texts) = found?;
        self.texts = texts;
        info!("new {}", S::WHAT);
        Some(identity)
    }

    /// Looks `every` so often, and hands over each new identity. Never ends.
    pub async fn follow(mut self, every: Duration, mut become_known_as: impl FnMut(S::Identity)) {
        let mut look = interval(every);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            if let Some(identity) = self.look() {
                become_known_as(identity);
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::cell::RefCell;
    use std::io;

    use super::*;

    /// A number in a text.
    struct Number(RefCell<String>);

    impl Source for Number {
        type Texts = String;
        type Identity = u32;
        type Error = io::Error;
        const WHAT: &'static str = "numbers";

        fn read(&self) -> io::Result<String> {
            Ok(self.0.borrow().clone())
        }

        fn identity(&self, text: &String) -> io::Result<u32> {
            text.parse().map_err(io::Error::other)
        }
    }

    #[test]
    fn only_what_is_new_and_in_good_order_is_handed_over() {
        assert!(Files::open(Number(RefCell::new("x".to_owned()))).is_err());
        let (mut files, first) = Files::open(Number(RefCell::new("1".to_owned()))).unwrap();
        assert_eq!((first, files.look()), (1, None));
        for (text, seen, broken) in
            [("x", None, 1), ("", None, 2), ("1", None, 0), ("2", Some(2), 0), ("2", None, 0)]
        {
            *files.source.0.borrow_mut() = text.to_owned();
            assert_eq!((files.look(), files.broken), (seen, broken), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_identity_is_noticed_at_the_next_look() {
        let text = RefCell::new("1".to_owned());
        let (files, _) = Files::open(Number(text)).unwrap();
        *files.source.0.borrow_mut() = "7".to_owned();
        let (found, mut seen) = tokio::sync::mpsc::channel(1);
        let following = files.follow(Duration::from_secs(5), |number| {
            found.try_send(number).unwrap();
        });
        tokio::select! {
            () = following => {}
            number = seen.recv() => assert_eq!(number, Some(7)),
        }
    }
}
