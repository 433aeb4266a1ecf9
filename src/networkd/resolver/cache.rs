//! Answers that were had before, for as long as they hold (RFC 1035 §3.2.1, RFC 2181 §8, RFC 2308). It
//! holds so many bytes and no more: what was not asked for longest goes first.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};

use super::message::Question;
use crate::machine::Uptime;

/// Answers by question.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Question, Entry>,
    /// By when they were last of use; each entry is in it once.
    by_use: BTreeMap<u64, Question>,
    uses: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    /// As it came: smaller than the records.
    message: Vec<u8>,
    since: Uptime,
    until: Uptime,
    used: u64,
}

/// What all entries may occupy.
pub const MOST_BYTES: usize = 512 << 10;
/// What an entry occupies beside its message and twice its name, rather more than less.
const OVERHEAD: usize = 400;
/// No answer holds for longer, whatever it says.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// And none that there is nothing (RFC 2308 §5).
const LONGEST_NOTHING: Duration = Duration::from_secs(3600);

impl Cache {
    /// The answer, if there is one that holds; its lifetimes are what is left of them.
    pub fn get(&mut self, now: Uptime, question: &Question) -> Option<Message> {
        let entry = self.entries.get_mut(question)?;
        if entry.until <= now {
            self.remove(question);
            return None;
        }
        let age = now.saturating_sub(entry.since).as_secs();
        let mut message = Message::from_vec(&entry.message).ok()?;
        let used = std::mem::replace(&mut entry.used, self.uses);
        if let Some(question) = self.by_use.remove(&used) {
            self.by_use.insert(self.uses, question);
        }
        self.uses += 1;
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        let Message { answers, authorities, additionals, .. } = &mut message;
        for record in answers.iter_mut().chain(authorities).chain(additionals) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    /// Keeps an answer for as long as it says it holds.
    pub fn put(&mut self, now: Uptime, question: &Question, message: &Message) {
        let Some(lifetime) = lifetime(question, message) else { return };
        self.put_for(now, question, message, lifetime);
    }

    /// Keeps an answer for this long.
    pub fn put_for(
        &mut self,
        now: Uptime,
        question: &Question,
        message: &Message,
        lifetime: Duration,
    ) {
        self.remove(question);
        let Ok(message) = message.to_vec() else { return };
        let used = self.uses;
        self.uses += 1;
        self.bytes += cost(question, &message);
        let entry = Entry { message, since: now, until: now + lifetime, used };
        self.entries.insert(question.clone(), entry);
        self.by_use.insert(used, question.clone());
        while self.bytes > MOST_BYTES
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.remove(&oldest);
        }
    }

    /// Forgets everything: another network may answer otherwise.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many bytes it occupies, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn remove(&mut self, question: &Question) {
        if let Some(entry) = self.entries.remove(question) {
            self.by_use.remove(&entry.used);
            self.bytes -= cost(question, &entry.message);
        }
    }
}

fn cost(question: &Question, message: &[u8]) -> usize {
    message.len() + 2 * question.query.name().len() + OVERHEAD
}

/// How long an answer holds; `None` when it must not be kept at all.
fn lifetime(question: &Question, message: &Message) -> Option<Duration> {
    if message.metadata.truncation {
        return None;
    }
    let wanted = question.query.query_type();
    let found = message
        .answers
        .iter()
        .any(|record| record.record_type() == wanted || wanted == RecordType::ANY);
    let (holds, longest) = match message.metadata.response_code {
        ResponseCode::NoError if found => (None, LONGEST),
        // Without an SOA it is not said how long there is nothing (RFC 2308 §5).
        ResponseCode::NoError | ResponseCode::NXDomain => {
            (Some(message.authorities.iter().find_map(nothing_for)?), LONGEST_NOTHING)
        }
        _ => return None,
    };
    // Of a chain of aliases, the one that ends first.
    let secs = message.answers.iter().map(seconds).chain(holds).min()?;
    let lifetime = Duration::from_secs(secs.into()).min(longest);
    (!lifetime.is_zero()).then_some(lifetime)
}

/// RFC 2181 §8: what has the highest bit set counts as zero.
fn seconds(record: &Record) -> u32 {
    if record.ttl > i32::MAX.unsigned_abs() { 0 } else { record.ttl }
}

fn nothing_for(record: &Record) -> Option<u32> {
    match &record.data {
        RData::SOA(soa) => Some(soa.minimum.min(seconds(record))),
        _ => None,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use hickory_proto::rr::Name;
    use hickory_proto::rr::rdata::{CNAME, SOA};
    use proptest::prelude::*;

    use super::super::message::tests::{address, question};
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn found(question: &Question, ttl: u32) -> Message {
        let mut message = question.code(ResponseCode::NoError);
        message.add_answer(Record::from_rdata(question.query.name().clone(), ttl, address(1)));
        message
    }

    fn nothing(question: &Question, code: ResponseCode, ttl: u32, minimum: u32) -> Message {
        let mut message = question.code(code);
        let soa = SOA::new(name("ns.org."), name("root.org."), 1, 2, 3, 4, minimum);
        message.add_authority(Record::from_rdata(name("org."), ttl, RData::SOA(soa)));
        message
    }

    /// How long a cache that has nothing else gives it.
    fn kept(question: &Question, message: &Message) -> Option<u64> {
        let mut cache = Cache::default();
        cache.put(secs(100), question, message);
        let holds = |at: u64| {
            let mut cache = Cache::default();
            cache.put(secs(100), question, message);
            cache.get(secs(100 + at), question).is_some()
        };
        cache.get(secs(100), question)?;
        // The first second without it.
        let (mut low, mut high) = (0, 200_000);
        while high - low > 1 {
            let middle = (low + high) / 2;
            if holds(middle) { low = middle } else { high = middle }
        }
        Some(high)
    }

    #[test]
    fn answers_hold_as_long_as_they_say_within_bounds() {
        let asked = question("a.org.", RecordType::A);
        for (ttl, holds) in [(30, Some(30)), (0, None), (1 << 31, None), (1_000_000, Some(86_400))]
        {
            assert_eq!(kept(&asked, &found(&asked, ttl)), holds, "{ttl}");
        }
        let mut chain = asked.code(ResponseCode::NoError);
        let alias = RData::CNAME(CNAME(name("b.org.")));
        chain.add_answer(Record::from_rdata(name("a.org."), 20, alias));
        assert_eq!(kept(&asked, &chain), None, "an alias alone, without an SOA");
        chain.add_answer(Record::from_rdata(name("b.org."), 90, address(1)));
        assert_eq!(kept(&asked, &chain), Some(20));
        chain.metadata.truncation = true;
        assert_eq!(kept(&asked, &chain), None);
    }

    #[test]
    fn that_there_is_nothing_holds_as_the_zone_says() {
        let asked = question("a.org.", RecordType::A);
        for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
            assert_eq!(kept(&asked, &nothing(&asked, code, 60, 300)), Some(60));
            assert_eq!(kept(&asked, &nothing(&asked, code, 600, 300)), Some(300));
            assert_eq!(kept(&asked, &nothing(&asked, code, 90_000, 90_000)), Some(3600));
            assert_eq!(kept(&asked, &asked.code(code)), None, "no SOA");
        }
        assert_eq!(kept(&asked, &nothing(&asked, ResponseCode::ServFail, 60, 60)), None);
    }

    #[test]
    fn lifetimes_are_what_is_left_of_them() {
        let asked = question("a.org.", RecordType::A);
        let mut cache = Cache::default();
        cache.put(secs(100), &asked, &found(&asked, 30));
        assert_eq!(cache.get(secs(112), &asked).unwrap().answers[0].ttl, 18);
        assert_eq!(cache.get(secs(112), &question("a.org.", RecordType::AAAA)), None);
        let signed = Question { dnssec_ok: true, ..asked.clone() };
        assert_eq!(cache.get(secs(112), &signed), None, "it would lack the signatures");
        assert!(cache.get(secs(112), &question("A.ORG.", RecordType::A)).is_some());
        assert_eq!(cache.get(secs(130), &asked), None);
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn a_full_cache_forgets_what_nobody_asks_for() {
        let mut cache = Cache::default();
        let favourite = question("favourite.org.", RecordType::A);
        cache.put(secs(0), &favourite, &found(&favourite, 3600));
        for number in 0..20_000 {
            let other = question(&format!("n{number}.org."), RecordType::A);
            cache.put(secs(1), &other, &found(&other, 3600));
            assert!(cache.bytes() <= MOST_BYTES);
            assert!(cache.get(secs(1), &favourite).is_some());
        }
        assert!(cache.bytes() > MOST_BYTES / 2);
        assert_eq!(cache.get(secs(1), &question("n0.org.", RecordType::A)), None);
        cache.clear();
        assert_eq!(cache.bytes(), 0);
    }

    proptest! {
        #[test]
        fn its_books_are_right(steps in proptest::collection::vec((0u8..3, 0u8..8, 0u32..50), 1..80)) {
            let mut cache = Cache::default();
            for (now, (what, which, ttl)) in steps.into_iter().enumerate() {
                let (now, asked) = (secs(now as u64), question(&format!("n{which}."), RecordType::A));
                match what {
                    0 => drop(cache.get(now, &asked)),
                    _ => cache.put(now, &asked, &found(&asked, ttl)),
                }
                prop_assert_eq!(cache.entries.len(), cache.by_use.len());
                let bytes: usize =
                    cache.entries.iter().map(|(asked, entry)| cost(asked, &entry.message)).sum();
                prop_assert_eq!(bytes, cache.bytes());
            }
        }
    }
}
