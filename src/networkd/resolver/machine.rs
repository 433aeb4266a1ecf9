//! The resolver's decisions: what to answer from memory, whom to ask the rest, when to ask another.
//! Owns no socket, reads no clock and throws no dice.
//!
//! A question under way is asked of servers only once, however many clients wait for it. The best server
//! ([`Upstreams`]) is asked first; when it is silent for longer than it usually is, the next one is asked
//! beside it, and the first good answer counts, whoever gives it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};

use super::cache::Cache;
use super::message::{self, Asked, Hosts, Question, Received, Way};
use super::upstreams::{Server, Upstreams};
use crate::machine::Uptime;

/// What the resolver goes by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Whom to ask, best first.
    pub servers: Vec<Server>,
    /// What needs no server.
    pub hosts: Hosts,
}

/// How a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A connection of its own: for answers that have no room in a datagram.
    Tcp,
    /// DNS over TLS (RFC 7858).
    Tls,
}

/// What happens to the resolver.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Other servers or names hold from now on.
    Known(&'a Known),
    /// A client asks something.
    Asked {
        /// Who.
        client: u64,
        /// How, and so how long the answer may be.
        way: Way,
        /// What it sent.
        message: &'a [u8],
    },
    /// Something came from a server.
    Answered {
        /// In answer to this, it says.
        attempt: u64,
        /// What came.
        message: &'a [u8],
    },
    /// The server cannot be asked, or closed the connection.
    Failed(u64),
    /// The time of [`Resolver::wake_at`] has come.
    TimerFired,
}

/// What the resolver wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer a client.
    Reply {
        /// Which.
        client: u64,
        /// With what.
        message: Vec<u8>,
    },
    /// Say nothing to a client: it asked nothing.
    Ignore(u64),
    /// Ask a server, and pass on all that comes from it until this is to be forgotten.
    Ask {
        /// What it is called.
        attempt: u64,
        /// Whom.
        server: Server,
        /// How.
        transport: Transport,
        /// What.
        message: Vec<u8>,
    },
    /// Nothing that comes in answer to this is of use any more.
    Forget(u64),
}

/// A caching stub resolver.
#[derive(Debug, Default)]
pub struct Resolver {
    hosts: Hosts,
    upstreams: Upstreams,
    cache: Cache,
    pending: BTreeMap<u64, Pending>,
    by_question: HashMap<Question, u64>,
    /// Which question an attempt is for.
    attempts: BTreeMap<u64, u64>,
    serial: u64,
}

/// A question that servers are asked.
#[derive(Debug)]
struct Pending {
    question: Question,
    waiting: Vec<(u64, Asked)>,
    attempts: Vec<Attempt>,
    /// How often a server was asked so far.
    asked: usize,
    /// Servers in the order to ask them in, again and again.
    servers: Vec<Server>,
    /// When the latest attempt has lasted too long.
    next_at: Uptime,
    give_up_at: Uptime,
    /// What a server said that could not help.
    refused: Option<Message>,
}

#[derive(Debug)]
struct Attempt {
    number: u64,
    server: Server,
    transport: Transport,
    edns: bool,
    id: u16,
    since: Uptime,
    /// What came in its answer's place.
    wrong: u32,
}

/// Questions under way, and clients that wait for one: more are turned away.
const MOST_PENDING: usize = 256;
const MOST_WAITING: usize = 128;
/// How often servers are asked one thing, and for how long at most: before that, clients ask anew.
const MOST_ATTEMPTS: usize = 6;
const GIVE_UP: Duration = Duration::from_secs(8);
/// Who sends that many wrong answers to one question guesses, or is broken.
const MOST_WRONG: u32 = 16;
/// That nobody answered is remembered so long (RFC 9520 §3.2).
const FAILURE_HOLDS: Duration = Duration::from_secs(1);

impl Resolver {
    /// When [`Event::TimerFired`] is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<Uptime> {
        self.pending.values().map(|pending| pending.next_at.min(pending.give_up_at)).min()
    }

    /// Takes an event. `random` makes ids of messages that nobody can guess.
    pub fn handle(
        &mut self,
        now: Uptime,
        random: &mut dyn FnMut() -> u16,
        event: Event<'_>,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Known(known) => {
                self.hosts = known.hosts.clone();
                if self.upstreams.set(&known.servers) {
                    self.cache.clear();
                }
            }
            Event::Asked { client, way, message } => match message::receive(message, way) {
                Received::Question(asked) => self.ask(now, random, client, asked, &mut actions),
                Received::Wrong(message) => actions.push(Action::Reply { client, message }),
                Received::Nothing => actions.push(Action::Ignore(client)),
            },
            Event::Answered { attempt, message } => {
                self.receive(now, random, attempt, message, &mut actions);
            }
            Event::Failed(attempt) => {
                if let Some((key, place)) = self.place(attempt) {
                    self.fail(now, random, key, place, &mut actions);
                }
            }
            Event::TimerFired => {
                let due = |pending: &Pending| pending.next_at.min(pending.give_up_at) <= now;
                let due: Vec<_> =
                    self.pending.iter().filter(|(_, it)| due(it)).map(|(key, _)| *key).collect();
                for key in due {
                    self.time_out(now, random, key, &mut actions);
                }
            }
        }
        actions
    }

    fn ask(
        &mut self,
        now: Uptime,
        random: &mut dyn FnMut() -> u16,
        client: u64,
        asked: Asked,
        actions: &mut Vec<Action>,
    ) {
        let question = asked.question.clone();
        let known = self.hosts.answer(&question).or_else(|| self.cache.get(now, &question));
        if let Some(found) = known {
            actions.push(Action::Reply { client, message: asked.reply(&found) });
            return;
        }
        let too_much = |asked: &Asked| Action::Reply {
            client,
            message: asked.reply(&asked.question.code(ResponseCode::ServFail)),
        };
        if let Some(key) = self.by_question.get(&question) {
            if let Some(pending) = self.pending.get_mut(key) {
                if pending.waiting.len() < MOST_WAITING {
                    pending.waiting.push((client, asked));
                } else {
                    actions.push(too_much(&asked));
                }
            }
            return;
        }
        let servers = self.upstreams.order(now);
        if servers.is_empty() || self.pending.len() >= MOST_PENDING {
            actions.push(too_much(&asked));
            return;
        }
        self.serial += 1;
        let key = self.serial;
        self.by_question.insert(question.clone(), key);
        let pending = Pending {
            question,
            waiting: vec![(client, asked)],
            attempts: Vec::new(),
            asked: 0,
            servers,
            next_at: now,
            give_up_at: now + GIVE_UP,
            refused: None,
        };
        self.pending.insert(key, pending);
        self.next_server(now, random, key, actions);
    }

    /// Asks the next server, or gives up when that was done often enough and nothing is awaited.
    fn next_server(
        &mut self,
        now: Uptime,
        random: &mut dyn FnMut() -> u16,
        key: u64,
        actions: &mut Vec<Action>,
    ) {
        let Some(pending) = self.pending.get(&key) else { return };
        // Twice each: one lost packet must not cost an answer.
        let enough = MOST_ATTEMPTS.min(pending.servers.len() * 2);
        if pending.asked >= enough {
            if pending.attempts.is_empty() {
                self.give_up(now, key, actions);
            } else if let Some(pending) = self.pending.get_mut(&key) {
                pending.next_at = pending.give_up_at;
            }
            return;
        }
        let server = pending.servers[pending.asked % pending.servers.len()].clone();
        let transport = if server.tls.is_some() { Transport::Tls } else { Transport::Udp };
        self.attempt(now, random, key, (server, transport, true), actions);
    }

    fn attempt(
        &mut self,
        now: Uptime,
        random: &mut dyn FnMut() -> u16,
        key: u64,
        (server, transport, edns): (Server, Transport, bool),
        actions: &mut Vec<Action>,
    ) {
        let patience = self.upstreams.patience(&server);
        let Some(pending) = self.pending.get_mut(&key) else { return };
        self.serial += 1;
        let (number, id) = (self.serial, random());
        pending.asked += 1;
        // A connection takes a round trip more.
        pending.next_at = now + if transport == Transport::Tcp { patience * 2 } else { patience };
        let message = pending.question.ask(id, edns);
        let attempt =
            Attempt { number, server: server.clone(), transport, edns, id, since: now, wrong: 0 };
        pending.attempts.push(attempt);
        self.attempts.insert(number, key);
        actions.push(Action::Ask { attempt: number, server, transport, message });
    }

    /// Where an attempt is kept: its question, and which of that one's attempts it is.
    fn place(&self, attempt: u64) -> Option<(u64, usize)> {
        let key = *self.attempts.get(&attempt)?;
        let attempts = &self.pending.get(&key)?.attempts;
        Some((key, attempts.iter().position(|it| it.number == attempt)?))
    }

    fn receive(
        &mut self,
        now: Uptime,
        random: &mut dyn FnMut() -> u16,
        attempt: u64,
        bytes: &[u8],
        actions: &mut Vec<Action>,
    ) {
        let Some((key, place)) = self.place(attempt) else { return };
        let Some(pending) = self.pending.get_mut(&key) else { return };
        let tried = &mut pending.attempts[place];
        let Some(answer) = message::answer_to(&pending.question, tried.id, bytes) else {
            tried.wrong += 1;
            // On a connection nobody but the server can have said it.
            if tried.wrong >= MOST_WRONG || tried.transport != Transport::Udp {
                self.fail(now, random, key, place, actions);
            }
            return;
        };
        let (server, since) = (tried.server.clone(), tried.since);
        let (transport, edns) = (tried.transport, tried.edns);
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain
                if answer.metadata.truncation && transport == Transport::Udp =>
            {
                self.upstreams.answered(&server, now.saturating_sub(since));
                self.forget(key, place, actions);
                self.attempt(now, random, key, (server, Transport::Tcp, edns), actions);
            }
            ResponseCode::NoError | ResponseCode::NXDomain => {
                self.upstreams.answered(&server, now.saturating_sub(since));
                self.cache.put(now, &pending.question, &answer);
                self.finish(key, &answer, actions);
            }
            // RFC 6891 §7: it may be one that does not know EDNS.
            ResponseCode::FormErr if edns => {
                self.forget(key, place, actions);
                self.attempt(now, random, key, (server, transport, false), actions);
            }
            _ => {
                pending.refused = Some(answer);
                self.fail(now, random, key, place, actions);
            }
        }
    }

    /// An attempt has come to nothing: another one may not.
    fn fail(
        &mut self,
        now: Uptime,
        random: &mut dyn FnMut() -> u16,
        key: u64,
        place: usize,
        actions: &mut Vec<Action>,
    ) {
        let Some(pending) = self.pending.get(&key) else { return };
        let latest = place + 1 == pending.attempts.len();
        self.upstreams.failed(now, &pending.attempts[place].server);
        self.forget(key, place, actions);
        // If another one was asked meanwhile, that is waited for.
        let alone = self.pending.get(&key).is_some_and(|pending| pending.attempts.is_empty());
        if latest || alone {
            self.next_server(now, random, key, actions);
        }
    }

    fn time_out(
        &mut self,
        now: Uptime,
        random: &mut dyn FnMut() -> u16,
        key: u64,
        actions: &mut Vec<Action>,
    ) {
        let Some(pending) = self.pending.get(&key) else { return };
        if let Some(latest) = pending.attempts.last() {
            self.upstreams.failed(now, &latest.server);
        }
        if pending.give_up_at <= now {
            self.give_up(now, key, actions);
        } else {
            self.next_server(now, random, key, actions);
        }
    }

    fn give_up(&mut self, now: Uptime, key: u64, actions: &mut Vec<Action>) {
        let Some(pending) = self.pending.get_mut(&key) else { return };
        let failure = pending.question.code(ResponseCode::ServFail);
        let answer = pending.refused.take().unwrap_or(failure);
        self.cache.put_for(now, &pending.question, &answer, FAILURE_HOLDS);
        self.finish(key, &answer, actions);
    }

    fn finish(&mut self, key: u64, answer: &Message, actions: &mut Vec<Action>) {
        let Some(pending) = self.pending.remove(&key) else { return };
        self.by_question.remove(&pending.question);
        for attempt in pending.attempts {
            self.attempts.remove(&attempt.number);
            actions.push(Action::Forget(attempt.number));
        }
        let replies = pending.waiting.into_iter();
        actions.extend(replies.map(|(client, asked)| {
            let message = asked.reply(answer);
            Action::Reply { client, message }
        }));
    }

    fn forget(&mut self, key: u64, place: usize, actions: &mut Vec<Action>) {
        let Some(pending) = self.pending.get_mut(&key) else { return };
        let attempt = pending.attempts.remove(place);
        self.attempts.remove(&attempt.number);
        actions.push(Action::Forget(attempt.number));
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
