//! What routers say beside addresses and routes, which the kernel takes itself: resolvers and domains
//! (RFC 8106), and whether DHCPv6 has more (RFC 4861 §4.2).
//!
//! [`Advertisement::decode`] reads bytes from the wire and never panics. [`Learned`] keeps what was said
//! for as long as it holds, and only so much of it, whoever sends how many.

use std::net::Ipv6Addr;
use std::time::Duration;

use crate::machine::Uptime;
use crate::wire::names_in;

/// A router advertisement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertisement {
    /// DHCPv6 has addresses.
    pub managed: bool,
    /// DHCPv6 has other settings.
    pub other: bool,
    /// Resolvers, each with the seconds it holds for.
    pub resolvers: Vec<(Ipv6Addr, u32)>,
    /// Domains to search, likewise.
    pub search: Vec<(String, u32)>,
}

const ROUTER_ADVERTISEMENT: u8 = 134;
const HEADER: usize = 16;
const RDNSS: u8 = 25;
const DNSSL: u8 = 31;
/// More than resolvers of the C library read; RFC 8106 §5.3.1 asks for at least three.
const MAX_ENTRIES: usize = 8;
const FOR_EVER: u32 = u32::MAX;

impl Advertisement {
    /// Reads an ICMPv6 message. `None` when it is none, or an option has no length (RFC 4861 §6.1.2).
    #[must_use]
    pub fn decode(message: &[u8]) -> Option<Self> {
        let (header, mut options) = message.split_at_checked(HEADER)?;
        if header[..2] != [ROUTER_ADVERTISEMENT, 0] {
            return None;
        }
        let mut advertisement = Self {
            managed: header[5] & 0x80 != 0,
            other: header[5] & 0x40 != 0,
            ..Self::default()
        };
        while let [kind, units, ..] = *options {
            let length = usize::from(units) * 8;
            let (option, rest) = options.split_at_checked(length).filter(|_| length > 0)?;
            if let Some((lifetime, value)) = option[4..].split_first_chunk::<4>() {
                advertisement.option(kind, u32::from_be_bytes(*lifetime), value);
            }
            options = rest;
        }
        Some(advertisement)
    }

    fn option(&mut self, kind: u8, lifetime: u32, value: &[u8]) {
        match kind {
            RDNSS => {
                let (addresses, _) = value.as_chunks::<16>();
                let addresses = addresses.iter().map(|bytes| Ipv6Addr::from(*bytes));
                let usable = addresses.filter(|address| of_a_host(*address));
                self.resolvers.extend(usable.map(|address| (address, lifetime)));
                self.resolvers.truncate(MAX_ENTRIES);
            }
            DNSSL => {
                self.search.extend(names_in(value).into_iter().map(|name| (name, lifetime)));
                self.search.truncate(MAX_ENTRIES);
            }
            _ => {}
        }
    }
}

/// Whether an address can be that of a host on another link: of this one they would need its name in
/// `resolv.conf`, which has none.
pub(crate) fn of_a_host(address: Ipv6Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unicast_link_local())
}

/// Lets through what comes at a pace that a network may have, and no more of a flood.
#[derive(Debug)]
pub struct Pace {
    /// What may come at once.
    left: u32,
    burst: u32,
    /// Until one more may.
    interval: Duration,
    filled_at: Uptime,
    refused_at: Option<Uptime>,
}

/// Whether something is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It is.
    Taken,
    /// It is not, and this is news.
    RefusedAtLast,
    /// It is not, like those before it.
    Refused,
}

/// After so long without a refusal, one is news again.
const CALM: Duration = Duration::from_secs(600);

impl Pace {
    /// So many at once, and then one in each interval.
    #[must_use]
    pub fn new(burst: u32, interval: Duration) -> Self {
        Self { left: burst, burst, interval, filled_at: Duration::ZERO, refused_at: None }
    }

    /// One comes.
    pub fn enter(&mut self, now: Uptime) -> Entry {
        let passed = now.saturating_sub(self.filled_at).as_millis();
        let more = passed / self.interval.as_millis().max(1);
        if more > 0 {
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(more).min(self.burst);
            self.filled_at = now;
        }
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            return Entry::Taken;
        }
        match self.refused_at.replace(now) {
            Some(before) if now.saturating_sub(before) < CALM => Entry::Refused,
            _ => Entry::RefusedAtLast,
        }
    }
}

/// What holds of all that was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    resolvers: Vec<(Ipv6Addr, Option<Uptime>)>,
    search: Vec<(String, Option<Uptime>)>,
}

impl Learned {
    /// Takes in what an advertisement of time `now` says.
    pub fn take(&mut self, now: Uptime, advertisement: &Advertisement) {
        for (address, lifetime) in &advertisement.resolvers {
            put(&mut self.resolvers, address.to_owned(), now, *lifetime);
        }
        for (domain, lifetime) in &advertisement.search {
            put(&mut self.search, domain.clone(), now, *lifetime);
        }
        self.expire(now);
    }

    /// Forgets what does not hold any more.
    pub fn expire(&mut self, now: Uptime) {
        let holds = |until: &Option<Uptime>| until.is_none_or(|until| now < until);
        self.resolvers.retain(|(_, until)| holds(until));
        self.search.retain(|(_, until)| holds(until));
    }

    /// Whether resolvers and domains are the same, for however long.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.resolvers().eq(other.resolvers()) && self.search().eq(other.search())
    }

    /// When something ends.
    #[must_use]
    pub fn wake_at(&self) -> Option<Uptime> {
        let resolvers = self.resolvers.iter().filter_map(|(_, until)| *until);
        resolvers.chain(self.search.iter().filter_map(|(_, until)| *until)).min()
    }

    /// The resolvers, those first that were heard of first.
    pub fn resolvers(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.resolvers.iter().map(|(address, _)| *address)
    }

    /// The domains to search.
    pub fn search(&self) -> impl Iterator<Item = &String> {
        self.search.iter().map(|(domain, _)| domain)
    }
}

/// Adds an entry or sets its end; a full list gives up what ends first (RFC 8106 §5.3.1).
fn put<T: PartialEq>(list: &mut Vec<(T, Option<Uptime>)>, entry: T, now: Uptime, lifetime: u32) {
    let until = (lifetime != FOR_EVER).then(|| now + Duration::from_secs(lifetime.into()));
    if let Some(there) = list.iter_mut().find(|(there, _)| *there == entry) {
        there.1 = until;
        return;
    }
    if list.len() == MAX_ENTRIES {
        let end = |until: Option<Uptime>| until.unwrap_or(Duration::MAX);
        let first = (0..list.len()).min_by_key(|at| end(list[*at].1));
        match first {
            Some(at) if end(list[at].1) < end(until) => drop(list.remove(at)),
            _ => return,
        }
    }
    list.push((entry, until));
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn message(flags: u8, options: &[u8]) -> Vec<u8> {
        let mut message = vec![134, 0, 0, 0, 64, flags, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        message.extend(options);
        message
    }

    fn resolver(last: u16, lifetime: u32) -> Vec<u8> {
        let mut option = vec![25, 3, 0, 0];
        option.extend(lifetime.to_be_bytes());
        option.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).octets());
        option
    }

    #[test]
    fn resolvers_domains_and_flags_are_read() {
        let mut options = resolver(0x53, 600);
        options.extend([1, 1, 2, 0, 0, 0, 0, 1]);
        options.extend([31, 3, 0, 0, 0, 0, 0, 100]);
        options.extend(b"\x01a\x03org\0\x01b\x03org\0\0\0");
        let read = Advertisement::decode(&message(0x40, &options)).unwrap();
        let expected = Advertisement {
            managed: false,
            other: true,
            resolvers: vec![("fd00::53".parse().unwrap(), 600)],
            search: vec![("a.org".to_owned(), 100), ("b.org".to_owned(), 100)],
        };
        assert_eq!(read, expected);
        assert!(Advertisement::decode(&message(0x80, &[])).unwrap().managed);
        assert_eq!(Advertisement::decode(&message(0, &[25, 0])), None, "an option without length");
        assert_eq!(Advertisement::decode(&message(0, &resolver(1, 1)[..20])), None, "cut off");
        assert_eq!(Advertisement::decode(&[133; 16]), None);
    }

    #[test]
    fn what_was_said_holds_until_it_ends_or_is_taken_back() {
        let mut learned = Learned::default();
        let says = |last, lifetime| Advertisement {
            resolvers: vec![(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last), lifetime)],
            ..Advertisement::default()
        };
        learned.take(secs(100), &says(1, 50));
        learned.take(secs(100), &says(2, FOR_EVER));
        assert_eq!((learned.resolvers().count(), learned.wake_at()), (2, Some(secs(150))));
        learned.take(secs(140), &says(1, 50));
        learned.expire(secs(189));
        assert_eq!(learned.resolvers().count(), 2);
        learned.expire(secs(190));
        assert_eq!(
            learned.resolvers().collect::<Vec<_>>(),
            ["fd00::2".parse::<Ipv6Addr>().unwrap()]
        );
        learned.take(secs(191), &says(2, 0));
        assert_eq!((learned.resolvers().count(), learned.wake_at()), (0, None));
    }

    #[test]
    fn of_a_flood_only_so_much_is_taken_and_one_is_told() {
        let mut pace = Pace::new(8, secs(1));
        let entries: Vec<_> = (0..10_000_u64)
            .map(|number| pace.enter(secs(100) + Duration::from_millis(number)))
            .collect();
        let count = |wanted| entries.iter().filter(|entry| **entry == wanted).count();
        assert_eq!(count(Entry::Taken), 8 + 9);
        assert_eq!(count(Entry::RefusedAtLast), 1);
        // Those of a quiet network are.
        let mut pace = Pace::new(8, secs(1));
        assert!((0..1000).all(|at| pace.enter(secs(at * 3)) == Entry::Taken));
    }

    #[test]
    fn a_flood_of_advertisements_fills_only_so_much() {
        let mut learned = Learned::default();
        for number in 0..10_000_u16 {
            let address = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, number);
            let flood = Advertisement {
                resolvers: vec![(address, 60 + u32::from(number) % 7)],
                search: vec![(format!("d{number}.org"), 60)],
                ..Advertisement::default()
            };
            learned.take(secs(100), &flood);
            assert!(learned.resolvers().count() <= MAX_ENTRIES);
            assert!(learned.search().count() <= MAX_ENTRIES);
        }
        learned.expire(secs(167));
        assert_eq!(learned, Learned::default());
    }

    proptest! {
        #[test]
        fn never_panics(tail: Vec<u8>, flags: u8) {
            if let Some(read) = Advertisement::decode(&message(flags, &tail)) {
                prop_assert!(read.resolvers.len() <= MAX_ENTRIES);
                prop_assert!(read.resolvers.iter().all(|(address, _)| of_a_host(*address)));
            }
            let _ = Advertisement::decode(&tail);
        }
    }
}
