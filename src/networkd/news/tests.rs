//! What is told of changes, in simulated time.

use proptest::prelude::*;

use super::*;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn link(index: u32) -> LinkState {
    LinkState {
        index,
        name: format!("eth{index}"),
        mtu: 1500,
        mac: None,
        up: true,
        carrier: true,
        master: None,
    }
}

fn address(index: u32, net: &str) -> AddressState {
    AddressState { index, net: net.parse().unwrap() }
}

fn route(index: u32, destination: &str) -> RouteState {
    RouteState {
        index: Some(index),
        destination: destination.parse().unwrap(),
        gateway: None,
        source: None,
        metric: 0,
        table: Table::MAIN,
        kind: 1,
    }
}

fn look(links: &[u32], nets: &[&str]) -> Look {
    Look {
        links: links.iter().map(|index| link(*index)).collect(),
        addresses: nets.iter().map(|net| address(1, net)).collect(),
        routes: nets.iter().map(|net| route(1, net)).collect(),
        host_name: "n1".to_owned(),
    }
}

/// One that was shown `first`.
fn shown(first: Look) -> Reporter {
    let mut reporter = Reporter::default();
    reporter.look(secs(0), first).unwrap();
    reporter
}

#[test]
fn the_first_look_is_no_change() {
    let mut reporter = Reporter::default();
    let nets =
        ["127.0.0.1/8", "10.0.0.5/24", "10.0.0.5/32", "169.254.0.9/16", "fe80::1/64", "fd00::5/64"];
    let notice = reporter.look(secs(9), look(&[1], &nets)).unwrap();
    let addresses = ["10.0.0.5", "fd00::5"].map(|it| it.parse().unwrap()).to_vec();
    assert_eq!(notice.standing, Standing { host_name: "n1".to_owned(), addresses });
    assert_eq!((notice.changes, notice.more, reporter.wake_at()), (vec![], 0, None));
}

#[test]
fn what_comes_together_is_told_together_and_by_name() {
    let mut reporter = shown(look(&[], &[]));
    assert_eq!(reporter.look(secs(10), look(&[1], &[])), None);
    assert_eq!(reporter.wake_at(), Some(secs(10) + GATHER));
    assert_eq!(reporter.due(secs(10)), None);
    assert_eq!(reporter.look(secs(10), look(&[1], &["10.0.0.5/24"])), None);
    let notice = reporter.due(secs(10) + GATHER).unwrap();
    let name = || "eth1".to_owned();
    let all = vec![
        What::Link(link(1)),
        What::Address(name(), address(1, "10.0.0.5/24")),
        What::Route(name(), route(1, "10.0.0.5/24")),
    ];
    let told = |action, what: &[What]| -> Vec<_> {
        what.iter().map(|what| Change { action, what: what.clone() }).collect()
    };
    assert_eq!(notice.changes, told(Action::Added, &all));
    // It went away with its link; the names are still known.
    reporter.look(secs(60), look(&[], &[]));
    let notice = reporter.due(secs(61)).unwrap();
    let gone: Vec<_> = all.into_iter().rev().collect();
    assert_eq!(notice.changes, told(Action::Removed, &gone));
    assert_eq!(notice.standing.addresses, [] as [IpAddr; 0]);
}

#[test]
fn a_link_that_loses_its_carrier_is_another() {
    let mut reporter = shown(look(&[1, 2], &[]));
    let mut after = look(&[1, 2], &[]);
    after.links[1].carrier = false;
    reporter.look(secs(1), after);
    let notice = reporter.due(secs(2)).unwrap();
    let what = What::Link(LinkState { carrier: false, ..link(2) });
    assert_eq!(notice.changes, [Change { action: Action::Changed, what }]);
}

#[test]
fn what_comes_and_goes_and_another_order_are_not_told() {
    let mut reporter = shown(look(&[1, 2], &["10.0.0.5/24"]));
    reporter.look(secs(1), look(&[1, 2], &[]));
    reporter.look(secs(1), look(&[2, 1], &["10.0.0.5/24"]));
    assert_eq!(reporter.due(secs(2)), None);
    assert_eq!(reporter.wake_at(), None);
}

#[test]
fn another_host_name_is_told() {
    let mut reporter = shown(look(&[1], &[]));
    reporter.look(secs(1), Look { host_name: "n2".to_owned(), ..look(&[1], &[]) });
    let notice = reporter.due(secs(2)).unwrap();
    assert_eq!((notice.changes, notice.standing.host_name.as_str()), (vec![], "n2"));
}

#[test]
fn the_local_table_is_not_told_of() {
    let local = Route {
        table: Table::LOCAL,
        ..Route::through(1, "10.0.0.5/32".parse().unwrap(), None, 0, orlop_netlink::Protocol(2))
    };
    let main = Route { table: Table::MAIN, ..local.clone() };
    assert_eq!(Look::new(&[], &[], &[local, main], "").routes.len(), 1);
}

#[test]
fn more_than_fits_is_counted() {
    let mut reporter = shown(look(&[], &[]));
    let links: Vec<u32> = (1..=40).collect();
    reporter.look(secs(1), look(&links, &[]));
    let notice = reporter.due(secs(2)).unwrap();
    assert_eq!((notice.changes.len(), notice.more), (NAMED, 8));
}

#[test]
fn a_storm_is_told_of_ever_more_rarely_until_it_is_over() {
    let mut reporter = shown(look(&[1], &[]));
    let mut told_at = Vec::new();
    let mut now = secs(100);
    // Ten minutes of a link that flaps a hundred times a second.
    for turn in 0..60_000u32 {
        now += Duration::from_millis(10);
        let mut flapping = look(&[1], &[]);
        flapping.links[0].mtu = turn;
        reporter.look(now, flapping);
        told_at.extend(reporter.due(now).map(|_| now));
    }
    assert!(told_at[0] <= secs(100) + GATHER + Duration::from_millis(10));
    let pauses: Vec<_> = told_at.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(pauses[..6], [1, 2, 4, 8, 16, 30]);
    assert!(pauses[6..].iter().all(|pause| *pause == 30), "{pauses:?}");
    // The last word of it, then calm.
    now = reporter.wake_at().unwrap();
    reporter.due(now).unwrap();
    now += 2 * LONGEST_PAUSE;
    reporter.look(now, look(&[1], &[]));
    assert!(reporter.due(now + GATHER).is_some());
    reporter.look(now + secs(1), look(&[2], &[]));
    assert_eq!(reporter.wake_at(), Some(now + GATHER + PAUSE));
}

fn any_look() -> impl Strategy<Value = Look> {
    let nets = prop::sample::subsequence(
        vec!["10.0.0.1/24", "10.0.1.1/24", "fd00::1/64", "10.0.2.0/23"],
        0..4,
    );
    (prop::collection::btree_set(1u32..5, 0..4), nets, 1000u32..1002).prop_map(
        |(links, nets, mtu)| {
            let mut look = look(&links.into_iter().collect::<Vec<_>>(), &nets);
            for link in &mut look.links {
                link.mtu = mtu;
            }
            look
        },
    )
}

proptest! {
    /// Whoever writes down what is told knows what there is.
    #[test]
    fn nothing_is_forgotten(looks: Vec<(u16, bool)>, states in prop::collection::vec(any_look(), 1..20)) {
        let mut reporter = shown(Look::default());
        let mut known = (BTreeMap::new(), HashSet::new(), HashSet::new());
        let mut now = secs(1);
        let mut write_down = |notice: Notice| {
            assert_eq!(notice.more, 0);
            for change in notice.changes {
                let removed = change.action == Action::Removed;
                match change.what {
                    What::Link(link) if removed => assert_eq!(known.0.remove(&link.index), Some(link)),
                    What::Link(link) => {
                        let added = change.action == Action::Added;
                        assert_eq!(known.0.insert(link.index, link).is_none(), added);
                    }
                    What::Address(_, it) if removed => assert!(known.1.remove(&it)),
                    What::Address(_, it) => assert!(known.1.insert(it)),
                    What::Route(_, it) if removed => assert!(known.2.remove(&it)),
                    What::Route(_, it) => assert!(known.2.insert(it)),
                }
            }
            known.clone()
        };
        for ((millis, ask), state) in looks.iter().zip(&states) {
            now += Duration::from_millis((*millis).into());
            prop_assert_eq!(reporter.look(now, state.clone()), None);
            if *ask && let Some(notice) = reporter.due(now) {
                write_down(notice);
            }
        }
        let last = looks.len().min(states.len()).checked_sub(1).map(|last| states[last].clone());
        let last = last.unwrap_or_default();
        let notice = reporter.wake_at().and_then(|at| reporter.due(at)).unwrap_or_default();
        let (links, addresses, routes) = write_down(notice);
        prop_assert_eq!(reporter.wake_at(), None);
        let Look { links: l, addresses: a, routes: r, .. } = last;
        prop_assert_eq!(links, l.into_iter().map(|link| (link.index, link)).collect());
        prop_assert_eq!(addresses, a.into_iter().collect());
        prop_assert_eq!(routes, r.into_iter().collect());
    }
}
