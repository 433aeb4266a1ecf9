//! The client against a simulated server and network, in simulated time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const LEASE_SECS: u32 = 1000;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// What a server answers when it is asked by `request`.
fn reply(kind: ReplyKind, request: &Request) -> Reply {
    Reply {
        kind,
        xid: request.xid,
        mac: request.mac,
        address: Ipv4Addr::new(10, 0, 0, 5),
        server: Some(SERVER),
        lease_secs: Some(LEASE_SECS),
        renewal_secs: None,
        rebinding_secs: None,
        prefix_len: Some(24),
        routers: vec![SERVER],
        classless_routes: None,
        dns: vec![],
        ntp: vec![],
        host_name: None,
        domain: None,
        search: vec![],
        mtu: None,
    }
}

/// A client with the network around it.
struct World {
    now: Uptime,
    client: Client,
    server: Server,
    /// What arrives when, in order of time.
    on_the_way: BTreeMap<(Uptime, u64), Packet>,
    network: Network,
    /// What the client uses.
    lease: Option<Lease>,
    /// All that it sent: when, what, where to.
    sent: Vec<(Uptime, Request, Ipv4Addr)>,
    /// Other hosts of the link.
    owners: BTreeMap<Ipv4Addr, Mac>,
    arps: Vec<(Uptime, Arp)>,
    contested: Vec<(Ipv4Addr, Mac)>,
}

enum Packet {
    ToServer(Request),
    ToClient(Reply),
    Claim(Arp),
}

/// Per hundred, and how late at most.
#[derive(Clone, Copy)]
struct Network {
    lost: u64,
    doubled: u64,
    delay: Duration,
    random: u64,
    serial: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Server {
    Works,
    IsSilent,
    Refuses,
    /// Answers only what is sent to everyone, as when it was replaced by another.
    HearsBroadcast,
}

impl Network {
    fn good() -> Self {
        Self { lost: 0, doubled: 0, delay: Duration::ZERO, random: 1, serial: 0 }
    }

    /// xorshift64*: good enough to lose packets by.
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    fn arrivals(&mut self, now: Uptime) -> Vec<(Uptime, u64)> {
        let copies = match self.random() % 100 {
            chance if chance < self.lost => 0,
            chance if chance < self.lost + self.doubled => 2,
            _ => 1,
        };
        (0..copies)
            .map(|_| {
                self.serial += 1;
                let late = u32::try_from(self.random() % 1000).unwrap();
                (now + Duration::from_millis(1) + self.delay * late / 1000, self.serial)
            })
            .collect()
    }
}

impl World {
    fn new() -> Self {
        Self {
            now: secs(100),
            client: Client::new(MAC, Wishes::default()),
            server: Server::Works,
            on_the_way: BTreeMap::new(),
            network: Network::good(),
            lease: None,
            sent: Vec::new(),
            owners: BTreeMap::new(),
            arps: Vec::new(),
            contested: Vec::new(),
        }
    }

    fn started() -> Self {
        let mut world = Self::new();
        world.event(Event::Started(Remembered::Nothing));
        world
    }

    /// With a lease that was given at `now`.
    fn bound() -> Self {
        let mut world = Self::started();
        world.run_for(secs(1));
        assert!(world.lease.is_some());
        world.sent.clear();
        world
    }

    fn event(&mut self, event: Event<'_>) {
        let random = u32::try_from(self.network.random()).unwrap();
        for action in self.client.handle(self.now, random, event) {
            match action {
                Action::Configure(lease) => self.lease = Some(lease),
                Action::Deconfigure => self.lease = None,
                Action::Remember | Action::Trouble(_) => {}
                Action::Contested { address, by } => self.contested.push((address, by)),
                Action::SendArp(arp) => {
                    let probed = arp.sender_address.is_unspecified();
                    let owner = self.owners.get(&arp.target_address).filter(|_| probed);
                    if let Some(owner) = owner {
                        self.network.serial += 1;
                        let answer = Arp::announcement(*owner, arp.target_address);
                        let at = (self.now + Duration::from_millis(1), self.network.serial);
                        self.on_the_way.insert(at, Packet::Claim(answer));
                    }
                    self.arps.push((self.now, arp));
                }
                Action::Send { request, source, destination } => {
                    assert_eq!(source, request.ciaddr);
                    let heard = self.server != Server::HearsBroadcast || destination.is_broadcast();
                    self.sent.push((self.now, request.clone(), destination));
                    for at in self.network.arrivals(self.now).into_iter().filter(|_| heard) {
                        self.on_the_way.insert(at, Packet::ToServer(request.clone()));
                    }
                }
            }
        }
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        let mut turns_at_one_time = 0;
        loop {
            let arrival = self.on_the_way.keys().next().map(|(at, _)| *at);
            let timer = self.client.wake_at();
            let Some(next) = arrival.into_iter().chain(timer).min().filter(|next| *next <= end)
            else {
                self.now = end;
                return;
            };
            // What arrives is not its doing.
            let its_turn = arrival != Some(next);
            turns_at_one_time =
                if next > self.now { 0 } else { turns_at_one_time + u32::from(its_turn) };
            assert!(turns_at_one_time < 10, "the client spins at {next:?}");
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let (_, packet) = self.on_the_way.pop_first().unwrap();
                self.arrive(packet);
            } else {
                self.event(Event::TimerFired);
            }
            self.check();
        }
    }

    fn arrive(&mut self, packet: Packet) {
        match packet {
            Packet::ToClient(reply) => self.event(Event::Received(&reply)),
            Packet::Claim(arp) => self.event(Event::Claimed(&arp)),
            Packet::ToServer(request) => {
                let kind = match (self.server, request.kind) {
                    (Server::IsSilent, _) | (_, RequestKind::Decline | RequestKind::Release) => {
                        return;
                    }
                    (_, RequestKind::Discover) => ReplyKind::Offer,
                    (Server::Refuses, RequestKind::Request) => ReplyKind::Nak,
                    (Server::Works | Server::HearsBroadcast, RequestKind::Request) => {
                        ReplyKind::Ack
                    }
                };
                for at in self.network.arrivals(self.now) {
                    self.on_the_way.insert(at, Packet::ToClient(reply(kind, &request)));
                }
            }
        }
    }

    /// What must hold at any time.
    fn check(&self) {
        if let Some(lease) = &self.lease {
            assert!(lease.holds(self.now), "an address is used after its time");
        }
    }

    fn last_sent(&self) -> &(Uptime, Request, Ipv4Addr) {
        self.sent.last().unwrap()
    }
}

#[test]
fn a_lease_is_had_with_two_messages() {
    let mut world = World::started();
    world.run_for(secs(1));
    let kinds: Vec<_> = world.sent.iter().map(|(_, request, _)| request.kind).collect();
    assert_eq!(kinds, [RequestKind::Discover, RequestKind::Request]);
    let lease = world.lease.as_ref().unwrap();
    assert_eq!(lease.address, "10.0.0.5/24".parse().unwrap());
    assert_eq!(lease.routes, [("0.0.0.0/0".parse().unwrap(), Some(SERVER))]);
    let (_, request, destination) = world.last_sent();
    assert_eq!((request.server, destination), (Some(SERVER), &Ipv4Addr::BROADCAST));
}

#[test]
fn renew_at_t1_unicasts_to_the_leasing_server() {
    let mut world = World::bound();
    let before = world.lease.clone().unwrap().times.unwrap();
    world.run_for(secs(u64::from(LEASE_SECS) / 2 + 1));
    let [(at, request, destination)] = &world.sent[..] else { panic!("{:?}", world.sent) };
    assert_eq!((*at, *destination), (before.renew_at, SERVER));
    assert_eq!(request.ciaddr, Ipv4Addr::new(10, 0, 0, 5));
    assert_eq!((request.address, request.server), (None, None), "RFC 2131 table 5");
    assert!(world.lease.unwrap().times.unwrap().expires_at > before.expires_at);
}

#[test]
fn rebind_at_t2_asks_everyone() {
    let mut world = World::bound();
    world.server = Server::HearsBroadcast;
    let before = world.lease.clone().unwrap().times.unwrap();
    world.run_for(secs(u64::from(LEASE_SECS) * 7 / 8 + 1));
    let (at, request, destination) = world.last_sent();
    assert_eq!((*at, *destination), (before.rebind_at, Ipv4Addr::BROADCAST));
    assert_eq!(request.ciaddr, Ipv4Addr::new(10, 0, 0, 5));
    assert!(world.lease.unwrap().times.unwrap().expires_at > before.expires_at);
}

#[test]
fn between_tries_to_renew_half_of_the_time_passes_but_never_less_than_5_seconds() {
    let mut world = World::bound();
    world.server = Server::IsSilent;
    world.run_for(secs(u64::from(LEASE_SECS) - 1));
    for to in [SERVER, Ipv4Addr::BROADCAST] {
        let asked = world.sent.iter().filter(|(_, _, destination)| *destination == to);
        let asked: Vec<_> = asked.map(|(at, _, _)| *at).collect();
        let gaps: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap >= MIN_RENEWAL_RETRY), "{gaps:?}");
    }
    assert!((8..20).contains(&world.sent.len()), "{}", world.sent.len());
}

#[test]
fn an_expired_lease_is_given_up_to_the_second() {
    let mut world = World::bound();
    world.server = Server::IsSilent;
    let expires_at = world.lease.clone().unwrap().times.unwrap().expires_at;
    world.run_for(expires_at - world.now - Duration::from_millis(1));
    assert!(world.lease.is_some());
    world.run_for(Duration::from_millis(1));
    assert_eq!(world.lease, None);
    assert_eq!(world.last_sent().1.kind, RequestKind::Discover);
    world.server = Server::Works;
    world.run_for(secs(5));
    assert!(world.lease.is_some());
}

#[test]
fn a_nak_takes_the_lease_and_the_client_asks_anew_at_once() {
    let mut world = World::bound();
    world.server = Server::Refuses;
    let renew_at = world.lease.clone().unwrap().times.unwrap().renew_at;
    world.run_for(renew_at - world.now + Duration::from_millis(2));
    assert_eq!(world.lease, None);
    assert_eq!(world.last_sent().1.kind, RequestKind::Discover);
}

#[test]
fn a_server_that_only_refuses_is_not_asked_faster_and_faster() {
    let mut world = World::started();
    world.server = Server::Refuses;
    world.run_for(secs(3600));
    assert_eq!(world.lease, None);
    assert!(world.sent.len() < 300, "{} messages in an hour", world.sent.len());
    world.server = Server::Works;
    world.run_for(LAST_RESEND + secs(1));
    assert!(world.lease.is_some());
}

#[test]
fn silence_is_met_with_fewer_and_fewer_messages() {
    let mut world = World::started();
    world.server = Server::IsSilent;
    world.run_for(secs(3600));
    assert!((60..140).contains(&world.sent.len()), "{} in an hour", world.sent.len());
    let first_gap = world.sent[1].0 - world.sent[0].0;
    assert!(first_gap <= FIRST_RESEND);
    let (at, request, _) = world.last_sent();
    assert_eq!(u64::from(request.secs), (*at - world.sent[0].0).as_secs());
}

#[test]
fn a_chosen_server_that_falls_silent_is_given_up() {
    let mut world = World::started();
    let offer = reply(ReplyKind::Offer, &world.sent[0].1);
    world.server = Server::IsSilent;
    world.event(Event::Received(&offer));
    assert_eq!(world.last_sent().1.kind, RequestKind::Request);
    world.run_for(secs(16));
    assert_eq!(world.last_sent().1.kind, RequestKind::Discover);
}

#[test]
fn a_remembered_lease_is_used_at_once_and_confirmed() {
    let remembered = World::bound().lease.unwrap();
    let mut world = World::new();
    world.event(Event::Started(Remembered::Lease(remembered.clone())));
    assert_eq!(world.lease, Some(remembered));
    let (_, request, destination) = world.last_sent();
    assert_eq!(request.address, Some(Ipv4Addr::new(10, 0, 0, 5)));
    assert_eq!((request.server, request.ciaddr), (None, Ipv4Addr::UNSPECIFIED), "INIT-REBOOT");
    assert!(destination.is_broadcast());
    world.run_for(secs(1));
    assert!(matches!(world.client.state, State::Bound(_)));
}

#[test]
fn a_remembered_lease_that_nobody_objects_to_holds_until_it_ends() {
    let remembered = World::bound().lease.unwrap();
    let expires_at = remembered.times.unwrap().expires_at;
    let mut world = World::new();
    world.server = Server::IsSilent;
    world.event(Event::Started(Remembered::Lease(remembered)));
    world.run_for(expires_at - world.now - Duration::from_millis(1));
    assert!(world.lease.is_some());
    world.run_for(Duration::from_millis(1));
    assert_eq!(world.lease, None);
}

#[test]
fn a_remembered_lease_that_the_network_refuses_is_given_up() {
    let remembered = World::bound().lease.unwrap();
    let mut world = World::new();
    world.server = Server::Refuses;
    world.event(Event::Started(Remembered::Lease(remembered)));
    world.run_for(Duration::from_millis(2));
    assert_eq!(world.lease, None);
    assert_eq!(world.last_sent().1.kind, RequestKind::Discover);
}

#[test]
fn a_remembered_address_is_asked_for_but_not_used_before_it_is_given() {
    let mut world = World::new();
    world.event(Event::Started(Remembered::Address(Ipv4Addr::new(10, 0, 0, 5))));
    assert_eq!(world.lease, None);
    assert_eq!(world.last_sent().1.address, Some(Ipv4Addr::new(10, 0, 0, 5)));
    world.run_for(secs(1));
    assert!(world.lease.is_some());
    assert_eq!(world.sent.len(), 1);
}

#[test]
fn when_the_carrier_is_back_the_lease_is_confirmed() {
    let mut world = World::bound();
    world.event(Event::CarrierBack);
    assert!(world.lease.is_some());
    assert_eq!(world.last_sent().1.address, Some(Ipv4Addr::new(10, 0, 0, 5)));
    world.server = Server::Refuses;
    world.run_for(Duration::from_millis(2));
    assert_eq!(world.lease, None, "it was another network");
}

#[test]
fn a_link_that_runs_at_last_is_asked_on_at_once_unless_somebody_answered() {
    // The kernel drops what is sent in the first 400 ms.
    let mut world = World::new();
    world.network.lost = 100;
    world.event(Event::Started(Remembered::Nothing));
    world.run_for(Duration::from_millis(400));
    world.network.lost = 0;
    world.event(Event::LinkRuns);
    let [(_, first, _), (at, second, _)] = &world.sent[..] else { panic!("{:?}", world.sent) };
    assert_eq!((at, first.xid), (&world.now, second.xid));
    let probes = PROBE_INTERVAL * PROBES;
    world.run_for(probes + Duration::from_millis(10));
    assert!(world.lease.is_some());

    // Remembered: all tries are left, whatever was lost before.
    let mut world = World::new();
    world.server = Server::IsSilent;
    world.event(Event::Started(Remembered::Address(Ipv4Addr::new(10, 0, 0, 5))));
    world.event(Event::LinkRuns);
    assert_eq!(world.sent.len(), 2);
    assert_eq!(world.sent[1].1.address, Some(Ipv4Addr::new(10, 0, 0, 5)));

    // Answered: what is going on goes on.
    let mut world = World::bound();
    let sent = world.sent.len();
    world.event(Event::LinkRuns);
    assert_eq!((world.sent.len(), world.lease.is_some()), (sent, true));
}

#[test]
fn answers_to_nobody_change_nothing() {
    let mut world = World::started();
    let good = reply(ReplyKind::Offer, &world.sent[0].1);
    let bad = [
        Reply { xid: good.xid ^ 1, ..good.clone() },
        Reply { mac: Mac([9; 6]), ..good.clone() },
        Reply { server: None, ..good.clone() },
        Reply { lease_secs: Some(0), ..good.clone() },
        Reply { address: Ipv4Addr::UNSPECIFIED, ..good.clone() },
        Reply { address: Ipv4Addr::LOCALHOST, ..good.clone() },
        Reply { address: Ipv4Addr::new(10, 0, 0, 0), ..good.clone() },
        Reply { address: Ipv4Addr::new(10, 0, 0, 255), ..good.clone() },
        Reply { address: Ipv4Addr::new(224, 0, 0, 5), ..good.clone() },
        Reply { kind: ReplyKind::Ack, ..good.clone() },
        Reply { kind: ReplyKind::Nak, ..good.clone() },
    ];
    world.server = Server::IsSilent;
    for reply in &bad {
        world.event(Event::Received(reply));
        assert!(matches!(world.client.state, State::Selecting(_)), "{reply:?}");
    }
    world.event(Event::Received(&good));
    let other = Some(Ipv4Addr::new(10, 0, 0, 66));
    for kind in [ReplyKind::Ack, ReplyKind::Nak] {
        world.event(Event::Received(&Reply { kind, server: other, ..good.clone() }));
        assert!(
            matches!(world.client.state, State::Requesting { .. }),
            "another server's {kind:?}"
        );
    }
}

#[test]
fn classless_routes_replace_the_router() {
    let request = World::started().sent[0].1.clone();
    let on_link = ("10.9.0.0/16".parse().unwrap(), None);
    let classless =
        Reply { classless_routes: Some(vec![on_link]), ..reply(ReplyKind::Ack, &request) };
    assert_eq!(Lease::from_reply(&classless, secs(0)).unwrap().routes, [on_link]);
}

#[test]
fn a_lease_for_ever_is_not_renewed() {
    let mut world = World::started();
    let for_ever = |kind, request| Reply { lease_secs: Some(u32::MAX), ..reply(kind, request) };
    let request = world.last_sent().1.clone();
    world.event(Event::Received(&for_ever(ReplyKind::Offer, &request)));
    let request = world.last_sent().1.clone();
    world.event(Event::Received(&for_ever(ReplyKind::Ack, &request)));
    world.run_for(secs(10));
    assert_eq!(world.lease.clone().unwrap().times, None);
    assert_eq!(world.client.wake_at(), None);
}

#[test]
fn times_that_make_no_sense_are_replaced() {
    let times = |lease, t1, t2| {
        let times = Times::new(secs(0), lease, t1, t2);
        (times.renew_at.as_secs(), times.rebind_at.as_secs(), times.expires_at.as_secs())
    };
    assert_eq!(times(800, None, None), (400, 700, 800));
    assert_eq!(times(800, Some(10), Some(20)), (10, 20, 800));
    for (t1, t2) in [(0, 20), (30, 20), (10, 900), (u32::MAX, u32::MAX)] {
        assert_eq!(times(800, Some(t1), Some(t2)), (400, 700, 800), "{t1} {t2}");
    }
    let request = World::started().sent[0].1.clone();
    let silent = Reply { lease_secs: None, ..reply(ReplyKind::Ack, &request) };
    let lease = Lease::from_reply(&silent, secs(0)).unwrap();
    assert_eq!(lease.times.unwrap().expires_at, secs(1800), "the spec's default");
}

#[test]
fn what_no_host_can_use_is_no_lease() {
    let world = World::started();
    let request = &world.sent[0].1;
    let with = |address: [u8; 4], secs, prefix_len| {
        let (address, lease_secs) = (address.into(), Some(secs));
        let ack = reply(ReplyKind::Ack, request);
        Lease::from_reply(&Reply { address, lease_secs, prefix_len, ..ack }, Duration::from_secs(5))
    };
    for address in
        [[0; 4], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4], [10, 0, 0, 0], [10, 0, 0, 255]]
    {
        assert_eq!(with(address, 60, Some(24)), None, "{address:?}");
    }
    assert_eq!(with([10, 0, 0, 5], 0, Some(24)), None, "no time");
    let giant = with([10, 0, 0, 5], u32::MAX - 1, Some(24)).unwrap();
    assert!(giant.holds(Duration::from_secs(u64::from(u32::MAX))));
    let shortest = with([10, 0, 0, 5], 1, Some(24)).unwrap().times.unwrap();
    assert_eq!(shortest.renew_at, shortest.expires_at, "not faster than each second");
    assert!(with([10, 0, 0, 255], 60, Some(16)).is_some());
    assert!(with([10, 0, 0, 5], 60, Some(32)).is_some());
}

#[test]
fn without_a_mask_the_class_decides() {
    let request = World::started().sent[0].1.clone();
    for (address, net) in [
        ([10, 0, 0, 5], "10.0.0.5/8"),
        ([172, 16, 0, 5], "172.16.0.5/16"),
        ([192, 168, 0, 5], "192.168.0.5/24"),
    ] {
        let old =
            Reply { prefix_len: None, address: address.into(), ..reply(ReplyKind::Ack, &request) };
        assert_eq!(Lease::from_reply(&old, secs(0)).unwrap().address, net.parse().unwrap());
    }
}

const STRANGER: Mac = Mac([2, 0, 0, 0, 0, 99]);

#[test]
fn an_address_is_used_only_after_nobody_answered_to_three_probes() {
    let mut world = World::started();
    world.run_for(Duration::from_millis(10));
    assert_eq!(world.lease, None, "given, but not asked for yet");
    world.run_for(PROBE_INTERVAL * PROBES);
    assert!(world.lease.is_some());
    world.run_for(secs(60));
    let address = Ipv4Addr::new(10, 0, 0, 5);
    let expected: Vec<_> = std::iter::repeat_n(Arp::probe(MAC, address), 3)
        .chain(std::iter::repeat_n(Arp::announcement(MAC, address), 2))
        .collect();
    assert_eq!(world.arps.iter().map(|(_, arp)| *arp).collect::<Vec<_>>(), expected);
}

#[test]
fn an_address_that_somebody_has_is_declined_and_not_asked_for_at_once() {
    let mut world = World::new();
    world.owners.insert(Ipv4Addr::new(10, 0, 0, 5), STRANGER);
    world.event(Event::Started(Remembered::Nothing));
    world.run_for(secs(9));
    assert_eq!(world.lease, None);
    let (_, decline, destination) = world.last_sent();
    assert_eq!((decline.kind, *destination), (RequestKind::Decline, Ipv4Addr::BROADCAST));
    assert_eq!((decline.address, decline.server), (Some([10, 0, 0, 5].into()), Some(SERVER)));
    assert_eq!(decline.ciaddr, Ipv4Addr::UNSPECIFIED, "RFC 2131 table 5");
    assert_eq!(world.contested, [([10, 0, 0, 5].into(), STRANGER)]);
    world.run_for(secs(3600));
    assert!(world.sent.len() < 600, "{} messages in an hour", world.sent.len());
    world.owners.clear();
    world.run_for(LAST_RESEND + secs(10));
    assert!(world.lease.is_some(), "the stranger left");
}

#[test]
fn another_that_probes_for_the_same_address_at_the_same_time_gets_it() {
    let mut world = World::started();
    world.run_for(Duration::from_millis(10));
    // Our own probe, as a loop in the network brings it back, means nothing.
    world.event(Event::Claimed(&Arp::probe(MAC, [10, 0, 0, 5].into())));
    world.event(Event::Claimed(&Arp::probe(STRANGER, [10, 0, 0, 6].into())));
    assert_ne!(world.last_sent().1.kind, RequestKind::Decline);
    world.event(Event::Claimed(&Arp::probe(STRANGER, [10, 0, 0, 5].into())));
    assert_eq!(world.last_sent().1.kind, RequestKind::Decline);
}

#[test]
fn an_address_in_use_is_defended_but_not_in_a_storm() {
    let mut world = World::bound();
    world.run_for(secs(5));
    world.arps.clear();
    for _ in 0..1000 {
        world.event(Event::Claimed(&Arp::announcement(STRANGER, [10, 0, 0, 5].into())));
        world.run_for(Duration::from_millis(20));
    }
    assert!(world.lease.is_some(), "it stays");
    assert_eq!((world.arps.len(), world.contested.len()), (2, 2), "in twenty seconds");
    // Who only asks for it gets the kernel's answer, not ours.
    world.run_for(secs(10));
    world.event(Event::Claimed(&Arp::probe(STRANGER, [10, 0, 0, 5].into())));
    assert_eq!(world.arps.len(), 2);
}

#[test]
fn a_lease_is_given_back_to_its_server() {
    let mut world = World::bound();
    world.event(Event::Released);
    let (_, release, destination) = world.last_sent();
    assert_eq!((release.kind, *destination), (RequestKind::Release, SERVER));
    assert_eq!((release.ciaddr, release.server), ([10, 0, 0, 5].into(), Some(SERVER)));
    assert_eq!((release.address, &world.lease), (None, &None), "RFC 2131 table 5");
    assert_eq!(world.client.wake_at(), None, "and that is the end");
    let mut without = World::started();
    let sent = without.sent.len();
    without.event(Event::Released);
    assert_eq!(without.sent.len(), sent, "there was nothing to give back");
}

#[test]
fn a_lease_of_another_address_ends_the_old_one_at_once() {
    let mut world = World::bound();
    world.server = Server::IsSilent;
    let renew_at = world.lease.clone().unwrap().times.unwrap().renew_at;
    world.run_for(renew_at - world.now + secs(1));
    let request = world.last_sent().1.clone();
    let address = Ipv4Addr::new(10, 0, 0, 6);
    world.event(Event::Received(&Reply { address, ..reply(ReplyKind::Ack, &request) }));
    assert_eq!(world.lease, None, "the new one is probed for first");
    world.run_for(secs(1));
    assert_eq!(world.lease.unwrap().address.addr(), address);
}

#[test]
fn a_refusal_of_another_server_does_not_end_a_renewal() {
    let mut world = World::bound();
    world.server = Server::IsSilent;
    let renew_at = world.lease.clone().unwrap().times.unwrap().renew_at;
    world.run_for(renew_at - world.now + secs(1));
    let request = world.last_sent().1.clone();
    let other = Some(Ipv4Addr::new(10, 0, 0, 66));
    world.event(Event::Received(&Reply { server: other, ..reply(ReplyKind::Nak, &request) }));
    assert!(world.lease.is_some());
    world.event(Event::Received(&reply(ReplyKind::Nak, &request)));
    assert_eq!(world.lease, None);
}

/// Two thousand nodes, each for half an hour beside a liar who sees their messages and answers at once,
/// in place of the server or for another client, with times and addresses from nowhere, and who claims
/// addresses by ARP. What must hold: `World::check`; no address that is no host's; few messages; and a
/// lease of the server within two minutes after the liar left.
#[test]
fn a_liar_beside_the_server_costs_time_but_no_rule() {
    for seed in 1..=2000 {
        let mut world = World::new();
        world.network = Network { lost: 20, doubled: 20, delay: secs(2), random: seed, serial: 0 };
        world.event(Event::Started(Remembered::Nothing));
        for _ in 0..60 {
            world.run_for(secs(30));
            let mut pick = |below: usize| usize::try_from(world.network.random()).unwrap() % below;
            let kind = [ReplyKind::Offer, ReplyKind::Ack, ReplyKind::Nak][pick(3)];
            let times = [0, 1, 59, 1 << 31, u32::MAX - 1, u32::MAX].map(Some);
            let addresses =
                ["0.0.0.0", "127.0.0.1", "255.255.255.255", "224.0.0.1", "10.0.0.0", "8.8.8.8"];
            let (address, mask) = (addresses[pick(6)].parse().unwrap(), pick(33));
            let (lease_secs, renewal_secs, rebinding_secs) =
                (times[pick(6)], times[pick(6)], times[pick(6)]);
            let (strange_xid, strange_mac, strange_server) =
                (pick(2) == 0, pick(2) == 0, pick(2) == 0);
            let claims = pick(2) == 0;
            let heard = world.last_sent().1.clone();
            let lie = Reply {
                xid: if strange_xid { !heard.xid } else { heard.xid },
                mac: if strange_mac { STRANGER } else { heard.mac },
                address,
                server: Some(if strange_server { [10, 0, 0, 66].into() } else { SERVER }),
                lease_secs,
                renewal_secs,
                rebinding_secs,
                prefix_len: u8::try_from(mask).ok(),
                ..reply(kind, &heard)
            };
            let before = world.lease.clone();
            world.event(Event::Received(&lie));
            if strange_xid || strange_mac {
                assert_eq!(world.lease, before, "seed {seed}: the answer was for somebody else");
            }
            if claims {
                world.event(Event::Claimed(&Arp::announcement(STRANGER, [10, 0, 0, 5].into())));
            }
            if let Some(lease) = &world.lease {
                assert!(of_a_host(lease.address.addr()), "seed {seed}: {}", lease.address);
            }
            world.check();
        }
        assert!(
            world.sent.len() < 600,
            "seed {seed}: {} messages in half an hour",
            world.sent.len()
        );
        // It may have given a lease for ever: the next loss of carrier ends that.
        world.network.lost = 0;
        world.event(Event::CarrierBack);
        world.run_for(secs(150));
        let address = world.lease.as_ref().map(|lease| lease.address.addr());
        assert_eq!(address, Some([10, 0, 0, 5].into()), "seed {seed}: after the liar left");
    }
}

#[test]
fn loss_delay_and_duplication_cost_time_but_no_rule() {
    for seed in 1..100 {
        let mut world = World::new();
        world.network = Network { lost: 40, doubled: 20, delay: secs(3), random: seed, serial: 0 };
        world.event(Event::Started(Remembered::Nothing));
        // `check` holds all the way; in a day it must have had a lease most of the time.
        let mut with_lease = 0;
        for _ in 0..24 * 60 {
            world.run_for(secs(60));
            with_lease += u32::from(world.lease.is_some());
        }
        assert!(with_lease > 24 * 60 * 9 / 10, "seed {seed}: {with_lease} minutes");
        assert!(world.sent.len() < 2000, "seed {seed}: {} messages", world.sent.len());
    }
}

proptest! {
    #[test]
    fn whatever_comes_the_client_neither_panics_nor_spins(
        events in proptest::collection::vec((0u8..7, any::<u32>(), 0u64..4000, any::<[u8; 8]>()), 1..60)
    ) {
        let mut world = World::started();
        for (what, number, millis, bytes) in events {
            world.server = match number % 4 {
                0 => Server::Works,
                1 => Server::IsSilent,
                2 => Server::Refuses,
                _ => Server::HearsBroadcast,
            };
            let request = world.last_sent().1.clone();
            let kind = [ReplyKind::Offer, ReplyKind::Ack, ReplyKind::Nak][usize::from(bytes[0] % 3)];
            let hostile = Reply {
                address: Ipv4Addr::from([bytes[1], bytes[2], bytes[3], bytes[4]]),
                lease_secs: Some(number),
                renewal_secs: Some(number / 3),
                rebinding_secs: Some(number / 2),
                prefix_len: Some(bytes[5] % 33),
                ..reply(kind, &request)
            };
            match what {
                0 => world.event(Event::CarrierBack),
                1 => world.event(Event::TimerFired),
                2 | 3 => world.event(Event::Received(&hostile)),
                4 => world.event(Event::LinkRuns),
                _ => world.run_for(Duration::from_millis(millis * 100)),
            }
            world.check();
        }
    }
}
