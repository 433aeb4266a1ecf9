//! Verdicts that are believed for a while, so that a client which asks often is not proven each time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ring::digest::{Context, SHA256};
use rustls_pki_types::CertificateDer;

use super::Verdict;

/// How long: what was deleted or revoked since is noticed after that.
pub(super) const BELIEVED: Duration = Duration::from_secs(10);
/// How many: far more than clients a node has at once, and a few MiB.
const LIMIT: usize = 4096;

/// What was proven, without what proves it: the memory of this process shows no token.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn of_token(token: &str, audiences: &[String]) -> Self {
        let parts = std::iter::once(token).chain(audiences.iter().map(String::as_str));
        Self::of(b"token", parts.map(str::as_bytes))
    }

    pub(super) fn of_chain(chain: &[CertificateDer<'_>]) -> Self {
        Self::of(b"chain", chain.iter().map(AsRef::as_ref))
    }

    /// Each part behind its length, so that none runs into the next.
    fn of<'a>(kind: &[u8], parts: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(kind);
        for part in parts {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.finish().as_ref());
        Self(key)
    }
}

/// The verdicts, each with the time from and until which it is believed.
#[derive(Debug, Default)]
pub(super) struct Cache {
    /// Held for a look or an entry only.
    known: Mutex<HashMap<Key, (SystemTime, SystemTime, Verdict)>>,
}

impl Cache {
    pub(super) fn find(&self, key: &Key, now: SystemTime) -> Option<Verdict> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, until, verdict) = known.get(key)?;
        // A clock that was set back makes nothing young again.
        (*from <= now && now < *until).then(|| verdict.clone())
    }

    pub(super) fn keep(&self, key: Key, verdict: &Verdict, now: SystemTime) {
        let until = verdict.until.map_or(now + BELIEVED, |until| until.min(now + BELIEVED));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= LIMIT {
            known.retain(|_, (from, until, _)| *from <= now && now < *until);
        }
        if known.len() >= LIMIT {
            known.clear();
        }
        known.insert(key, (now, until, verdict.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::User;

    fn verdict(until: Option<SystemTime>) -> Verdict {
        Verdict { user: User::default(), audiences: Vec::new(), until }
    }

    #[test]
    fn a_verdict_is_believed_for_ten_seconds_and_never_past_its_own_end() {
        let (cache, now) = (Cache::default(), SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
        let second = Duration::from_secs(1);
        let (long, short) = (Key::of_token("a", &[]), Key::of_token("b", &[]));
        cache.keep(long, &verdict(None), now);
        cache.keep(short, &verdict(Some(now + 3 * second)), now);
        let found = |key, after: u32| cache.find(&key, now + after * second).is_some();
        assert_eq!([0, 9, 10].map(|after| found(long, after)), [true, true, false]);
        assert_eq!([2, 3].map(|after| found(short, after)), [true, false]);
        assert!(cache.find(&long, now - second).is_none(), "the clock was set back");
    }

    #[test]
    fn it_never_grows_past_its_limit() {
        let (cache, now) = (Cache::default(), SystemTime::UNIX_EPOCH);
        for n in 0..3 * LIMIT {
            cache.keep(Key::of_token(&n.to_string(), &[]), &verdict(None), now);
        }
        assert!(cache.known.lock().expect("no test panics in it").len() <= LIMIT);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let audiences = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            Key::of_token("t", &names)
        };
        assert_ne!(audiences(&["ab", "c"]), audiences(&["a", "bc"]));
        assert_ne!(audiences(&["a"]), audiences(&[]));
    }
}
