//! The resolver against simulated servers, in simulated time.

use hickory_proto::op::MessageType;
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::super::message::tests::{address, asks};
use super::*;
use crate::names::HostEntry;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn server(last: u8) -> Server {
    Server::plain(([192, 0, 2, last], 53).into())
}

/// What a server does with a question.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Works,
    Silent,
    /// Answers with this code.
    Says(ResponseCode),
    /// The port is closed, or the connection breaks.
    Fails,
    /// Answers cut short, except on connections.
    CutsShort,
    /// Takes only questions without EDNS.
    Old,
    /// Sends these many bytes of garbage first, and the answer under another id and to another question.
    Lies,
}

struct World {
    now: Uptime,
    resolver: Resolver,
    moods: Vec<Mood>,
    delay: Duration,
    /// What arrives when.
    on_the_way: Vec<(Uptime, u64, Option<Vec<u8>>)>,
    /// Whom was asked when and how.
    asked: Vec<(Uptime, u8, Transport)>,
    awaited: Vec<u64>,
    replies: Vec<(u64, Message)>,
    random: u16,
    ids: Vec<u16>,
}

impl World {
    fn new(moods: &[Mood]) -> Self {
        let mut world = Self {
            now: Duration::from_secs(100),
            resolver: Resolver::default(),
            moods: moods.to_vec(),
            delay: millis(5),
            on_the_way: Vec::new(),
            asked: Vec::new(),
            awaited: Vec::new(),
            replies: Vec::new(),
            random: 7,
            ids: Vec::new(),
        };
        let count = u8::try_from(moods.len()).unwrap();
        let hosts = Hosts::new(&[HostEntry {
            address: "10.0.0.9".parse().unwrap(),
            names: vec!["registry".to_owned()],
        }]);
        let known = Known { servers: (0..count).map(server).collect(), hosts };
        world.event(Event::Known(&known));
        world
    }

    fn event(&mut self, event: Event<'_>) {
        let mut random = self.random;
        let mut ids = Vec::new();
        let actions = self.resolver.handle(
            self.now,
            &mut || {
                random = random.wrapping_mul(25_173).wrapping_add(13_849);
                ids.push(random);
                random
            },
            event,
        );
        self.random = random;
        self.ids.extend(ids);
        for action in actions {
            match action {
                Action::Reply { client, message } => {
                    self.replies.push((client, Message::from_vec(&message).unwrap()));
                }
                Action::Ignore(_) => {}
                Action::Forget(attempt) => self.awaited.retain(|it| *it != attempt),
                Action::Ask { attempt, server, transport, message } => {
                    self.awaited.push(attempt);
                    self.serve(attempt, &server, transport, &message);
                }
            }
        }
    }

    fn serve(&mut self, attempt: u64, server: &Server, transport: Transport, question: &[u8]) {
        let std::net::IpAddr::V4(v4) = server.address.ip() else { panic!("{server:?}") };
        let which = v4.octets()[3];
        self.asked.push((self.now, which, transport));
        let read = Message::from_vec(question).unwrap();
        let mut answer = read.clone();
        answer.metadata.message_type = MessageType::Response;
        let name = read.queries[0].name().clone();
        answer.answers.push(Record::from_rdata(name, 60, address(which)));
        let at = self.now + self.delay;
        let mut say = |message: &Message| {
            self.on_the_way.push((at, attempt, Some(message.to_vec().unwrap())));
        };
        match self.moods[usize::from(which)] {
            Mood::Works => say(&answer),
            Mood::Silent => {}
            Mood::Fails => self.on_the_way.push((at, attempt, None)),
            Mood::Old if read.edns.is_none() => say(&answer),
            Mood::CutsShort if transport != Transport::Udp => say(&answer),
            Mood::CutsShort => {
                answer.answers.clear();
                answer.metadata.truncation = true;
                say(&answer);
            }
            Mood::Says(_) | Mood::Old => {
                answer.answers.clear();
                answer.metadata.response_code = match self.moods[usize::from(which)] {
                    Mood::Says(code) => code,
                    _ => ResponseCode::FormErr,
                };
                say(&answer);
            }
            Mood::Lies => {
                answer.metadata.id ^= 1;
                say(&answer);
                answer.metadata.id ^= 1;
                let other = Name::from_ascii("other.org.").unwrap();
                answer.queries[0].set_name(other);
                say(&answer);
                self.on_the_way.push((at, attempt, Some(vec![0xff; 3000])));
            }
        }
    }

    /// A client of this number asks.
    fn ask(&mut self, client: u64, name: &str) {
        let message = asks(name, RecordType::A, u16::try_from(client).unwrap(), None);
        self.event(Event::Asked { client, way: Way::Udp, message: &message });
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        let mut turns = 0;
        loop {
            self.on_the_way.sort_by_key(|(at, ..)| *at);
            let arrives = self.on_the_way.first().map(|(at, ..)| *at);
            let wakes = self.resolver.wake_at();
            let Some(next) = arrives.into_iter().chain(wakes).min().filter(|at| *at <= end) else {
                break;
            };
            turns = if next > self.now { 0 } else { turns + 1 };
            assert!(turns < 1000, "it spins at {next:?}");
            self.now = self.now.max(next);
            if arrives == Some(next) {
                let (_, attempt, message) = self.on_the_way.remove(0);
                match message {
                    // The driver passes on what comes for attempts under way.
                    Some(bytes) if self.awaited.contains(&attempt) => {
                        self.event(Event::Answered { attempt, message: &bytes });
                    }
                    None if self.awaited.contains(&attempt) => self.event(Event::Failed(attempt)),
                    _ => {}
                }
            } else {
                self.event(Event::TimerFired);
            }
        }
        self.now = end;
    }

    /// What the client got: the code, and the last byte of the address, which is the server's number.
    fn reply(&self, client: u64) -> (ResponseCode, Option<u8>) {
        let mine: Vec<_> = self.replies.iter().filter(|(it, _)| *it == client).collect();
        let [(_, reply)] = mine[..] else { panic!("{mine:?}") };
        assert_eq!(u64::from(reply.metadata.id), client);
        let last = reply.answers.last().map(|record| match &record.data {
            RData::A(address) => address.0.octets()[3],
            other => panic!("{other:?}"),
        });
        (reply.metadata.response_code, last)
    }

    /// Nothing is left behind.
    fn is_idle(&self) -> bool {
        self.resolver.pending.is_empty()
            && self.resolver.by_question.is_empty()
            && self.resolver.attempts.is_empty()
            && self.awaited.is_empty()
            && self.resolver.wake_at().is_none()
    }
}

const GOOD: ResponseCode = ResponseCode::NoError;

#[test]
fn one_question_of_many_clients_is_asked_once_and_then_known() {
    let mut world = World::new(&[Mood::Works, Mood::Works]);
    for client in 0..50 {
        world.ask(client, if client % 2 == 0 { "a.org." } else { "A.Org." });
    }
    world.run_for(millis(10));
    world.ask(50, "a.org.");
    for client in 0..=50 {
        assert_eq!(world.reply(client), (GOOD, Some(0)));
    }
    assert_eq!(world.asked.len(), 1);
    assert!(world.is_idle());
    world.run_for(Duration::from_secs(60));
    world.ask(51, "a.org.");
    world.run_for(millis(10));
    assert_eq!((world.reply(51), world.asked.len()), ((GOOD, Some(0)), 2));
}

#[test]
fn when_the_first_server_is_silent_the_second_answers_and_is_remembered() {
    let mut world = World::new(&[Mood::Silent, Mood::Works]);
    for client in 0..2 {
        world.ask(client, &format!("n{client}.org."));
        world.run_for(Duration::from_secs(1));
        assert_eq!(world.reply(client), (GOOD, Some(1)));
    }
    assert_eq!(world.asked.iter().map(|(_, which, _)| *which).collect::<Vec<_>>(), [0, 1, 0, 1]);
    world.ask(2, "n2.org.");
    world.run_for(millis(6));
    assert_eq!(world.reply(2), (GOOD, Some(1)), "at once: the first one rests");
    world.moods[0] = Mood::Works;
    world.run_for(Duration::from_secs(30));
    world.ask(3, "n3.org.");
    world.run_for(millis(6));
    assert_eq!(world.reply(3), (GOOD, Some(0)), "it is back");
    assert!(world.is_idle());
}

#[test]
fn a_late_answer_of_the_first_server_counts_while_the_second_is_asked() {
    let mut world = World::new(&[Mood::Works, Mood::Silent]);
    world.delay = millis(1200);
    world.ask(0, "a.org.");
    world.run_for(millis(1201));
    assert_eq!((world.reply(0), world.asked.len()), ((GOOD, Some(0)), 2));
    assert!(world.is_idle());
}

#[test]
fn a_server_that_cannot_help_is_passed_over_at_once() {
    for mood in [Mood::Fails, Mood::Says(ResponseCode::ServFail), Mood::Says(ResponseCode::Refused)]
    {
        let mut world = World::new(&[mood, Mood::Works]);
        world.ask(0, "a.org.");
        world.run_for(millis(20));
        assert_eq!(world.reply(0), (GOOD, Some(1)), "{mood:?}");
    }
}

#[test]
fn when_nobody_can_help_the_client_is_told_before_it_asks_anew() {
    for (mood, code, within) in [
        (Mood::Silent, ResponseCode::ServFail, GIVE_UP),
        (Mood::Fails, ResponseCode::ServFail, millis(100)),
        (Mood::Says(ResponseCode::Refused), ResponseCode::Refused, millis(100)),
        (Mood::Lies, ResponseCode::ServFail, GIVE_UP),
    ] {
        let mut world = World::new(&[mood, mood]);
        world.ask(0, "a.org.");
        world.run_for(within);
        assert_eq!(world.reply(0), (code, None), "{mood:?}");
        assert!(world.is_idle() && world.asked.len() <= MOST_ATTEMPTS, "{mood:?}");
        let asked = world.asked.len();
        world.ask(1, "a.org.");
        assert_eq!((world.reply(1).0, world.asked.len()), (code, asked), "remembered a second");
        world.run_for(FAILURE_HOLDS);
        world.ask(2, "a.org.");
        assert!(world.asked.len() > asked);
    }
    let mut world = World::new(&[]);
    world.ask(0, "a.org.");
    assert_eq!(world.reply(0), (ResponseCode::ServFail, None), "no server");
}

#[test]
fn lies_are_passed_over_and_the_right_answer_counts() {
    let mut world = World::new(&[Mood::Lies, Mood::Works]);
    world.ask(0, "a.org.");
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.reply(0), (GOOD, Some(1)));
    // Garbage without end costs no more than so much of it.
    let mut world = World::new(&[Mood::Silent, Mood::Works]);
    world.ask(0, "a.org.");
    let attempt = world.awaited[0];
    for _ in 0..MOST_WRONG {
        world.event(Event::Answered { attempt, message: &[0; 40] });
    }
    world.run_for(millis(6));
    assert_eq!(world.reply(0), (GOOD, Some(1)), "the next one, without waiting");
}

#[test]
fn an_answer_cut_short_is_had_over_a_connection() {
    let mut world = World::new(&[Mood::CutsShort]);
    world.ask(0, "a.org.");
    world.run_for(millis(20));
    assert_eq!(world.reply(0), (GOOD, Some(0)));
    let ways: Vec<_> = world.asked.iter().map(|(_, _, way)| *way).collect();
    assert_eq!(ways, [Transport::Udp, Transport::Tcp]);
}

#[test]
fn a_server_without_edns_is_asked_without() {
    let mut world = World::new(&[Mood::Old]);
    world.ask(0, "a.org.");
    world.run_for(millis(20));
    assert_eq!((world.reply(0), world.asked.len()), ((GOOD, Some(0)), 2));
}

#[test]
fn with_tls_nothing_is_asked_in_clear_text() {
    let mut world = World::new(&[Mood::Silent, Mood::Works]);
    let tls = |last| Server { tls: Some("dns.example".into()), ..server(last) };
    let known = Known { servers: vec![tls(0), tls(1)], hosts: Hosts::default() };
    world.event(Event::Known(&known));
    world.ask(0, "a.org.");
    world.run_for(Duration::from_secs(4));
    assert_eq!(world.reply(0), (GOOD, Some(1)));
    assert!(world.asked.iter().all(|(_, _, way)| *way == Transport::Tls));
}

#[test]
fn other_servers_answer_for_themselves() {
    let mut world = World::new(&[Mood::Works, Mood::Works]);
    world.ask(0, "a.org.");
    world.run_for(millis(10));
    world.event(Event::Known(&Known { servers: vec![server(1)], hosts: Hosts::default() }));
    world.ask(1, "a.org.");
    world.run_for(millis(10));
    assert_eq!(world.reply(1), (GOOD, Some(1)), "not what another network said");
}

#[test]
fn hosts_are_answered_without_a_server() {
    let mut world = World::new(&[Mood::Works]);
    world.ask(0, "registry.");
    assert_eq!(world.reply(0), (GOOD, Some(9)));
    assert_eq!(world.asked, []);
}

#[test]
fn that_there_is_no_such_name_is_known_then() {
    let mut world = World::new(&[Mood::Silent]);
    world.ask(0, "no.org.");
    let mut answer =
        Message::from_vec(&asks("no.org.", RecordType::A, world.ids[0], None)).unwrap();
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.response_code = ResponseCode::NXDomain;
    let name = |text| Name::from_ascii(text).unwrap();
    let soa = SOA::new(name("ns.org."), name("root.org."), 1, 2, 3, 4, 30);
    answer.add_authority(Record::from_rdata(name("org."), 60, RData::SOA(soa)));
    let attempt = world.awaited[0];
    world.event(Event::Answered { attempt, message: &answer.to_vec().unwrap() });
    world.run_for(Duration::from_secs(29));
    world.ask(1, "no.org.");
    assert_eq!(world.reply(1), (ResponseCode::NXDomain, None));
    assert_eq!(world.asked.len(), 1);
}

#[test]
fn a_flood_of_questions_is_turned_away_beyond_so_many() {
    let mut world = World::new(&[Mood::Silent]);
    for client in 0..1000 {
        world.ask(client, &format!("n{client}.org."));
    }
    assert_eq!(world.resolver.pending.len(), MOST_PENDING);
    assert_eq!(world.replies.len(), 1000 - MOST_PENDING);
    for client in 1000..2000 {
        world.ask(client, "n0.org.");
    }
    world.run_for(GIVE_UP);
    assert!(world.is_idle());
    assert_eq!(world.replies.len(), 2000, "everyone is told");
}

#[test]
fn ids_are_those_that_were_thrown() {
    let mut world = World::new(&[Mood::Works]);
    world.ask(1, "a.org.");
    world.ask(2, "b.org.");
    assert_eq!(world.ids.len(), 2);
    assert_ne!(world.ids[0], world.ids[1]);
}

fn mood() -> impl Strategy<Value = Mood> {
    prop_oneof![
        Just(Mood::Works),
        Just(Mood::Silent),
        Just(Mood::Fails),
        Just(Mood::CutsShort),
        Just(Mood::Old),
        Just(Mood::Lies),
        Just(Mood::Says(ResponseCode::ServFail)),
        Just(Mood::Says(ResponseCode::FormErr)),
    ]
}

proptest! {
    #[test]
    fn everyone_is_told_in_time_and_nothing_is_left_behind(
        moods in proptest::collection::vec(mood(), 1..4),
        steps in proptest::collection::vec((0u8..4, 0u64..3000), 1..30),
    ) {
        let mut world = World::new(&moods);
        let mut clients = 0;
        for (what, wait) in steps {
            match what {
                0..2 => {
                    world.ask(clients, &format!("n{}.org.", wait % 5));
                    clients += 1;
                }
                2 => {
                    let at = usize::try_from(wait).unwrap() % moods.len();
                    world.moods.swap(0, at);
                }
                _ => world.run_for(millis(wait)),
            }
        }
        world.run_for(GIVE_UP);
        prop_assert!(world.is_idle());
        prop_assert_eq!(world.replies.len() as u64, clients);
    }
}
