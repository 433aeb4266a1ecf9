use std::net::Ipv4Addr;

use super::*;

const START: u64 = 1_798_700_000;

fn moment(secs: u64) -> Moment {
    Moment { up: Duration::from_secs(secs), unix: Duration::from_secs(START + secs), random: 0 }
}

fn address(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, host))
}

fn engine(names: &[&str]) -> Engine {
    let servers = names.iter().map(|name| TimeServer::Ntp((*name).to_owned())).collect();
    Engine::new(servers, Duration::ZERO, 0.0, true)
}

fn sample(offset: f64, leap: Leap) -> Sample {
    Sample {
        offset,
        delay: 0.02,
        precision: 1e-6,
        root_delay: 0.0,
        root_dispersion: 0.001,
        stratum: 2,
        leap,
        reference: [0; 4],
    }
}

fn queries(actions: &[Action]) -> Vec<(SourceId, Era, Place)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Query(id, era, place) => Some((*id, *era, place.clone())),
            _ => None,
        })
        .collect()
}

#[test]
fn a_single_name_gives_up_to_four_sources_and_several_one_each() {
    let all: Vec<IpAddr> = (1..=6).map(address).collect();
    let mut pool = engine(&["pool.example.org"]);
    assert_eq!(pool.handle(moment(0), Event::Timer), [Action::Resolve(ServerId(0))]);
    assert_eq!(
        queries(&pool.handle(moment(1), Event::Resolved(ServerId(0), all.clone()))).len(),
        4
    );
    let mut two = engine(&["a.example.org", "b.example.org"]);
    assert_eq!(two.handle(moment(0), Event::Timer).len(), 2);
    let asked = queries(&two.handle(moment(1), Event::Resolved(ServerId(1), all)));
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].2, Place::Server(ServerId(1), address(1)));
}

#[test]
fn a_silent_address_gives_way_to_the_next_of_its_name() {
    let mut engine = engine(&["a.example.org", "b.example.org"]);
    engine.handle(moment(0), Event::Timer);
    let mut asked = queries(
        &engine.handle(moment(0), Event::Resolved(ServerId(0), vec![address(1), address(2)])),
    );
    let mut places = Vec::new();
    for _ in 0..6 {
        places.push(asked[0].2.clone());
        let now = moment(places.len() as u64 * 100);
        asked = queries(&engine.handle(now, Event::Missed(asked[0].0, Miss::Nothing)));
        let at = engine.wake_at().unwrap_or_default();
        let later = Moment { up: at.max(now.up), ..now };
        asked.extend(queries(&engine.handle(later, Event::Timer)));
    }
    assert!(
        places[..4].iter().all(|place| *place == Place::Server(ServerId(0), address(1))),
        "{places:?}"
    );
    assert_eq!(places[4], Place::Server(ServerId(0), address(2)), "{places:?}");
}

#[test]
fn samples_of_before_a_step_are_not_used_after_it() {
    let mut engine = engine(&["a.example.org"]);
    engine.handle(moment(0), Event::Timer);
    let asked = queries(
        &engine.handle(moment(0), Event::Resolved(ServerId(0), vec![address(1), address(2)])),
    );
    let (first, second) = (asked[0].clone(), asked[1].clone());
    engine.handle(moment(1), Event::Sampled(first.0, first.1, sample(50.0, Leap::None)));
    let actions =
        engine.handle(moment(1), Event::Sampled(second.0, second.1, sample(50.0, Leap::None)));
    assert!(actions.iter().any(|action| matches!(action, Action::Step(step) if !step.panic)));
    // On its way when the clock was set.
    let late = engine.handle(moment(2), Event::Sampled(first.0, first.1, sample(50.0, Leap::None)));
    assert!(
        !late.iter().any(|action| matches!(action, Action::Step(_) | Action::Report(_))),
        "{late:?}"
    );
    assert!(
        engine.view(Duration::from_secs(3)).sources.iter().all(|source| source.offset.is_none())
    );
}

#[test]
fn a_leap_second_is_told_on_the_last_day_of_a_month_only() {
    // 1798700000 is 2026-12-31T06:53:20Z.
    for (days_before, told) in [(1, Leap::None), (0, Leap::Insert)] {
        let mut engine = engine(&["a.example.org"]);
        engine.handle(moment(0), Event::Timer);
        let asked =
            queries(&engine.handle(moment(0), Event::Resolved(ServerId(0), vec![address(1)])));
        let now = Moment { unix: Duration::from_secs(START - days_before * 86_400), ..moment(1) };
        let event = Event::Sampled(asked[0].0, asked[0].1, sample(0.0, Leap::Insert));
        let actions = engine.handle(now, event);
        let report = actions.iter().find_map(|action| match action {
            Action::Report(report) => Some(report.leap),
            _ => None,
        });
        assert_eq!(report, Some(told), "{actions:?}");
    }
}

#[test]
fn months_end_when_they_do() {
    // 2024-02-28, 2024-02-29, 2025-02-28, 2026-12-31, 2027-01-01.
    let days = [(19_781, false), (19_782, true), (20_147, true), (20_818, true), (20_819, false)];
    for (day, last) in days {
        assert_eq!(last_day_of_month(day * 86_400 + 5), last, "{day}");
    }
}

#[test]
fn a_device_is_asked_like_a_server() {
    let servers = vec![TimeServer::Ptp("/dev/ptp0".into())];
    let mut engine = Engine::new(servers, Duration::ZERO, 0.0, false);
    let actions = engine.handle(moment(0), Event::Timer);
    let later = engine.handle(moment(0), Event::Timer);
    let asked = queries(&[actions, later].concat());
    assert_eq!(asked[0].2, Place::Device("/dev/ptp0".into()));
    let event = Event::Sampled(asked[0].0, asked[0].1, sample(0.0, Leap::None));
    engine.handle(moment(1), event);
    assert!(engine.synchronized());
}

#[test]
fn servers_that_stay_are_kept_when_others_come_and_go() {
    let names = |names: &[&str]| {
        Event::Servers(names.iter().map(|name| name.parse().expect("a server")).collect())
    };
    let mut engine = engine(&["a.example.org", "b.example.org"]);
    engine.handle(moment(0), Event::Timer);
    for (server, host) in [(0, 1), (1, 2)] {
        let event = Event::Resolved(ServerId(server), vec![address(host)]);
        let asked = queries(&engine.handle(moment(0), event)).remove(0);
        engine.handle(moment(1), Event::Sampled(asked.0, asked.1, sample(0.01, Leap::None)));
    }
    let known = |engine: &Engine| {
        let sources = engine.view(Duration::from_secs(9)).sources;
        sources.into_iter().map(|one| (one.server, one.offset.is_some())).collect::<Vec<_>>()
    };
    let both = [("a.example.org".to_owned(), true), ("b.example.org".to_owned(), true)];
    assert_eq!(known(&engine), both);
    // One goes, one comes; the same twice is once.
    let actions = engine.handle(
        moment(2),
        names(&["c.example.org", "a.example.org", "c.example.org", "/dev/ptp0"]),
    );
    let resolves = actions.iter().filter(|action| matches!(action, Action::Resolve(_))).count();
    assert_eq!(resolves, 1, "{actions:?}");
    assert_eq!(known(&engine)[..1], both[..1]);
    assert!(engine.synchronized());
    // What was under way for who has gone is nobody's.
    let late = engine.handle(moment(3), Event::Resolved(ServerId(1), vec![address(2)]));
    let to_who_went =
        |(.., place): &(_, _, Place)| *place == Place::Server(ServerId(1), address(2));
    assert!(!queries(&late).iter().any(to_who_went), "{late:?}");
    // Back again, it is a stranger.
    engine.handle(moment(4), names(&["b.example.org", "a.example.org"]));
    assert_eq!(known(&engine), both[..1]);
    engine.handle(moment(5), names(&[]));
    assert_eq!(known(&engine), []);
}

#[test]
fn keys_are_exchanged_less_and_less_often_until_something_is_proven() {
    let mut engine = Engine::new(
        vec!["nts://a.example.org".parse().expect("a server")],
        Duration::ZERO,
        0.0,
        true,
    );
    let mut now = moment(0);
    let mut exchanges = Vec::new();
    // The server gives keys, and never knows its own cookies; now and then it gives no keys either.
    let mut answered = Vec::new();
    while now.up < Duration::from_secs(48 * 3600) {
        for action in engine.handle(now, Event::Timer) {
            match action {
                Action::Resolve(id) => {
                    exchanges.push(now.up);
                    let given = if exchanges.len() % 4 == 0 {
                        vec![]
                    } else {
                        vec![address(1), address(2)]
                    };
                    answered.push(Event::Resolved(id, given));
                }
                Action::Query(id, ..) => {
                    answered.push(Event::Missed(id, Miss::Kiss(Kiss(*b"NTSN"))));
                }
                _ => {}
            }
        }
        for event in std::mem::take(&mut answered) {
            let more = engine.handle(now, event);
            assert!(!more.iter().any(|action| matches!(action, Action::Step(_))));
            answered.extend(
                queries(&more).into_iter().map(|(id, ..)| Event::Missed(id, Miss::Keyless)),
            );
        }
        now = Moment { up: now.up + Duration::from_secs(1), ..now };
    }
    let gaps: Vec<_> = exchanges.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] >= Duration::from_secs(10), "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap >= Duration::from_secs(10)), "{gaps:?}");
    assert!((20..100).contains(&gaps.len()), "{} exchanges in two days", gaps.len());
    let sources = engine.view(now.up).sources;
    assert_eq!(sources.len(), 1, "keys of one server are of no use to another");
}
