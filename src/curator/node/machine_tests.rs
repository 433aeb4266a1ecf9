use super::*;

/// The cluster's side, as far as one node sees it.
#[derive(Debug, Default)]
struct Cluster {
    state: Option<Entry>,
    certificates: u32,
    registrations: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    New,
    Standby,
    Up,
    Decommissioned,
}

/// What outlives a crash.
#[derive(Debug)]
struct Disk {
    progress: Progress,
    keys: u32,
}

/// When the process dies, relative to an effect.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Crash {
    Before,
    After,
}

struct World {
    cluster: Cluster,
    disk: Disk,
    now: Instant,
    task: Task,
    policy: StorageSecurityPolicy,
    /// A person approves after so many refusals.
    patience: u32,
    denied: u32,
    unreachable: u32,
}

impl World {
    fn new(task: Task) -> Self {
        Self {
            cluster: Cluster::default(),
            disk: Disk { progress: Progress::Nothing, keys: 0 },
            now: Instant::now(),
            task,
            policy: StorageSecurityPolicy::Permissive,
            patience: 3,
            denied: 0,
            unreachable: 0,
        }
    }

    /// The effect of an action, and what is told of it.
    fn perform(&mut self, action: &Action) -> Option<Event> {
        if self.unreachable > 0 && matches!(action, Action::Register | Action::Commit) {
            self.unreachable -= 1;
            return Some(Event::Answered(Answer::Failed("no way there".to_owned())));
        }
        let answer = match action {
            Action::KeepKeys => {
                assert_eq!(self.disk.progress, Progress::Nothing, "keys are made once");
                self.disk.keys += 1;
                self.disk.progress = Progress::Keys;
                return Some(Event::Kept);
            }
            Action::Found => {
                self.cluster.state = Some(Entry::Up);
                Answer::Certified
            }
            Action::Register => match self.cluster.state {
                None | Some(Entry::New) => {
                    self.cluster.registrations += u32::from(self.cluster.state.is_none());
                    self.cluster.state = Some(Entry::New);
                    Answer::Registered(self.policy)
                }
                Some(_) => Answer::Approved,
            },
            Action::Commit => match self.cluster.state {
                None => Answer::Unknown,
                Some(Entry::New) => {
                    self.denied += 1;
                    if self.denied >= self.patience {
                        self.cluster.state = Some(Entry::Standby);
                    }
                    Answer::NotYet
                }
                // The replay within ten minutes.
                Some(Entry::Standby | Entry::Up) => {
                    self.cluster.certificates += 1;
                    self.cluster.state = Some(Entry::Up);
                    Answer::Certified
                }
                Some(Entry::Decommissioned) => Answer::Failed("decommissioned".to_owned()),
            },
            Action::KeepCertificate => {
                assert_eq!(self.cluster.state, Some(Entry::Up));
                self.disk.progress = Progress::Certified;
                return Some(Event::Kept);
            }
            Action::Seal => {
                assert_eq!(self.disk.progress, Progress::Certified, "sealed is complete");
                self.disk.progress = Progress::Home;
                return Some(Event::Kept);
            }
            Action::Join => match self.cluster.state {
                None => Answer::Dismissed(Dismissal::Deleted),
                Some(Entry::Decommissioned) => Answer::Dismissed(Dismissal::Decommissioned),
                Some(_) => Answer::Welcome,
            },
            Action::Disown(_) => {
                self.disk.progress = Progress::Removed;
                return Some(Event::Kept);
            }
            Action::WakeAt(at) => {
                assert!(*at > self.now && *at <= self.now + RETRY.1, "within 30 s");
                self.now = *at;
                return Some(Event::Due);
            }
            Action::Live | Action::Rest => return None,
        };
        Some(Event::Answered(answer))
    }

    /// A process from its start until it rests, is home, or dies at its `nth` effect.
    fn run(&mut self, crash: Option<(u32, Crash)>) -> Option<(Machine, Action)> {
        let mut machine = Machine::new(Some(self.task));
        let mut event = Event::Started(self.disk.progress);
        for step in 0..1000_u32 {
            let action = machine.handle(self.now, step.wrapping_mul(0x9e37_79b9), event);
            if crash == Some((step, Crash::Before)) {
                return None;
            }
            let next = self.perform(&action);
            if crash == Some((step, Crash::After)) {
                return None;
            }
            match next {
                Some(next) => event = next,
                None => return Some((machine, action)),
            }
        }
        panic!("it never rests");
    }
}

#[test]
fn a_node_registers_waits_commits_and_is_home() {
    let mut world = World::new(Task::Join);
    let (machine, action) = world.run(None).expect("no crash");
    assert_eq!((action, machine.standing()), (Action::Live, ClusterState::Home));
    assert_eq!((world.disk.progress, world.disk.keys), (Progress::Home, 1));
    assert_eq!((world.cluster.registrations, world.cluster.certificates), (1, 1));
    // The next boot asks whether it is still wanted, and does no more.
    let (_, action) = world.run(None).expect("no crash");
    assert_eq!((action, world.cluster.certificates), (Action::Live, 1));
}

#[test]
fn whatever_step_it_dies_at_it_goes_on_with_the_same_keys() {
    for task in [Task::Found, Task::Join] {
        for first in 0..14 {
            for second in 0..14 {
                for crash in [Crash::Before, Crash::After] {
                    let mut world = World::new(task);
                    world.unreachable = 2;
                    // Killed twice, at any two steps.
                    for step in [first, second] {
                        world.run(Some((step, crash)));
                    }
                    let (_, action) = world.run(None).expect("no crash");
                    let told = format!("{task:?}, {crash:?} {first} and {second}");
                    assert_eq!(action, Action::Live, "{told}");
                    assert_eq!(
                        (world.disk.keys, world.disk.progress),
                        (1, Progress::Home),
                        "{told}"
                    );
                    assert_eq!(world.cluster.state, Some(Entry::Up), "{told}");
                    assert!(world.cluster.registrations <= 1, "{told}");
                }
            }
        }
    }
}

#[test]
fn who_was_deleted_before_it_was_approved_registers_again() {
    let mut world = World::new(Task::Join);
    let mut machine = Machine::new(Some(Task::Join));
    let mut event = Event::Started(world.disk.progress);
    let mut deleted = false;
    loop {
        let action = machine.handle(world.now, 7, event);
        if matches!(action, Action::Commit) && !deleted {
            deleted = true;
            world.cluster.state = None;
        }
        match world.perform(&action) {
            Some(next) => event = next,
            None => break,
        }
    }
    assert_eq!((machine.standing(), world.cluster.registrations), (ClusterState::Home, 2));
    assert_eq!(world.disk.keys, 1);
}

#[test]
fn who_is_removed_while_it_is_off_or_on_is_disowned_and_stays_so() {
    for (entry, expected) in
        [(None, Dismissal::Deleted), (Some(Entry::Decommissioned), Dismissal::Decommissioned)]
    {
        let mut world = World::new(Task::Join);
        world.run(None).expect("home");
        world.cluster.state = entry;
        let (machine, action) = world.run(None).expect("no crash");
        assert_eq!((action, machine.standing()), (Action::Rest, ClusterState::Disowning));
        assert_eq!(world.disk.progress, Progress::Removed);
        let (machine, _) = world.run(None).expect("no crash");
        assert!(machine.word().contains("wipe its STATE volume"), "{}", machine.word());

        // And by news, while it lives.
        let mut world = World::new(Task::Join);
        let (mut machine, _) = world.run(None).expect("home");
        let action = machine.handle(world.now, 0, Event::Dismissed(expected));
        assert_eq!(action, Action::Disown(expected));
        assert_eq!(machine.handle(world.now, 0, Event::Dismissed(expected)), Action::Rest);
        assert_eq!(machine.handle(world.now, 0, Event::Kept), Action::Rest);
        assert_eq!(machine.standing(), ClusterState::Disowning);
    }
}

#[test]
fn a_cluster_that_wants_encryption_is_told_of_and_asked_again() {
    let mut machine = Machine::new(Some(Task::Join));
    let now = Instant::now();
    machine.handle(now, 0, Event::Started(Progress::Keys));
    let wants = Answer::Registered(StorageSecurityPolicy::NeedsEncryption);
    let action = machine.handle(now, 0, Event::Answered(wants));
    assert_eq!(action, Action::WakeAt(now + Duration::from_secs(1)));
    assert!(machine.word().contains("--bootstrap-storage-security"), "{}", machine.word());
    assert_eq!(machine.standing(), ClusterState::Foreign);
    assert_eq!(machine.handle(now, 0, Event::Due), Action::Register);
}

#[test]
fn tries_become_rarer_and_a_waiting_person_is_answered_soon() {
    let mut machine = Machine::new(Some(Task::Join));
    let now = Instant::now();
    machine.handle(now, 0, Event::Started(Progress::Keys));
    let waits = |machine: &mut Machine, answer: Answer| -> Vec<u64> {
        let wait = |_| match machine.handle(now, 0, Event::Answered(answer.clone())) {
            Action::WakeAt(at) => (at - now).as_secs(),
            other => panic!("{other:?}"),
        };
        (0..7).map(wait).collect()
    };
    let failed = Answer::Failed("x".to_owned());
    assert_eq!(waits(&mut machine, failed), [1, 2, 4, 8, 16, 30, 30]);
    machine.handle(now, 0, Event::Answered(Answer::Registered(StorageSecurityPolicy::Permissive)));
    assert_eq!(waits(&mut machine, Answer::NotYet), [1, 2, 4, 5, 5, 5, 5]);
}

#[test]
fn a_machine_without_parameters_that_is_no_node_says_so() {
    let mut machine = Machine::new(None);
    let action = machine.handle(Instant::now(), 0, Event::Started(Progress::Nothing));
    assert_eq!(action, Action::Rest);
    assert!(machine.word().contains("no node parameters"));
    let mut machine = Machine::new(None);
    let action = machine.handle(Instant::now(), 0, Event::Started(Progress::Home));
    assert_eq!(action, Action::Join);
}
