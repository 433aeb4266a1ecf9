//! `/livez`, `/readyz` and, for old clients, `/healthz`: whether the server works, check by check, as the reference
//! tells it.

use std::fmt::Write as _;

/// What there is to know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct State {
    /// The store answers.
    pub store: bool,
    /// The cache has what the store has.
    pub follows: bool,
    /// The server takes its leave.
    pub stopping: bool,
}

/// Which of the paths.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Probe {
    Health,
    Live,
    Ready,
}

/// A check by its name.
struct Check {
    name: &'static str,
    holds: fn(&State) -> bool,
    /// It is of no matter to whether the server lives.
    only_ready: bool,
}

const fn check(name: &'static str, holds: fn(&State) -> bool) -> Check {
    Check { name, holds, only_ready: false }
}

const fn ready(name: &'static str, holds: fn(&State) -> bool) -> Check {
    Check { name, holds, only_ready: true }
}

/// What is done before the server listens holds by itself.
const CHECKS: &[Check] = &[
    check("ping", |_| true),
    check("log", |_| true),
    check("etcd", |state| state.store),
    ready("etcd-readiness", |state| state.store),
    ready("informer-sync", |state| state.follows),
    check("poststarthook/rbac/bootstrap-roles", |_| true),
    check("poststarthook/scheduling/bootstrap-system-priority-classes", |_| true),
    check("poststarthook/start-system-namespaces-controller", |_| true),
    ready("shutdown", |state| !state.stopping),
];

/// An answer in plain text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// 200, 404 or 500.
    pub code: u16,
    /// What is said.
    pub text: String,
}

/// Is it one of these paths?
#[must_use]
pub fn is_probe(path: &str) -> bool {
    probe(path).is_some()
}

/// The path's probe and what follows it.
fn probe(path: &str) -> Option<(Probe, &'static str, &str)> {
    let known = [(Probe::Health, "healthz"), (Probe::Live, "livez"), (Probe::Ready, "readyz")];
    known.into_iter().find_map(|(probe, name)| {
        let rest = path.strip_prefix('/')?.strip_prefix(name)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| (probe, name, rest.trim_matches('/')))
    })
}

/// Answers a probe: all checks but those of the parameters `exclude`, told one by one if any fails or with the
/// parameter `verbose`; or the one check that the path names.
#[must_use]
pub fn answer(path: &str, query: &[(&str, &str)], state: &State) -> Answer {
    let unknown = || Answer { code: 404, text: "404 page not found\n".to_owned() };
    let Some((probe, name, single)) = probe(path) else { return unknown() };
    let mut checks = CHECKS.iter().filter(|check| probe == Probe::Ready || !check.only_ready);
    if !single.is_empty() {
        return match checks.find(|check| check.name == single) {
            None => unknown(),
            Some(check) if (check.holds)(state) => Answer { code: 200, text: "ok".to_owned() },
            Some(check) => {
                let text = format!("internal server error: {} does not hold\n", check.name);
                Answer { code: 500, text }
            }
        };
    }
    let mut excluded: Vec<_> =
        query.iter().filter(|(name, _)| *name == "exclude").map(|(_, value)| *value).collect();
    let (mut told, mut fails) = (String::new(), false);
    for check in checks {
        let known = excluded.len();
        excluded.retain(|name| *name != check.name);
        let line = match (excluded.len() < known, (check.holds)(state)) {
            (true, _) => format!("[+]{} excluded: ok", check.name),
            (false, true) => format!("[+]{} ok", check.name),
            (false, false) => {
                fails = true;
                format!("[-]{} failed: reason withheld", check.name)
            }
        };
        let _ = writeln!(told, "{line}");
    }
    if !excluded.is_empty() {
        let names: Vec<_> = excluded.iter().map(|name| format!("{name:?}")).collect();
        let names = names.join(", ");
        let _ =
            writeln!(told, "warn: some health checks cannot be excluded: no matches for {names}");
    }
    let verbose = query.iter().any(|(name, _)| *name == "verbose");
    match (fails, verbose) {
        (true, _) => Answer { code: 500, text: format!("{told}{name} check failed\n") },
        (false, true) => Answer { code: 200, text: format!("{told}{name} check passed\n") },
        (false, false) => Answer { code: 200, text: "ok".to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: State = State { store: true, follows: true, stopping: false };

    fn said(path: &str, query: &[(&str, &str)], state: State) -> (u16, String) {
        let Answer { code, text } = answer(path, query, &state);
        (code, text)
    }

    #[test]
    fn what_is_well_says_ok_and_more_when_asked() {
        for path in ["/livez", "/readyz", "/healthz", "/livez/ping", "/readyz/shutdown", "/readyz/"]
        {
            assert_eq!(said(path, &[], WELL), (200, "ok".to_owned()), "{path}");
        }
        let (code, text) = said("/readyz", &[("verbose", "")], WELL);
        assert_eq!(code, 200);
        assert!(
            text.starts_with("[+]ping ok\n[+]log ok\n[+]etcd ok\n[+]etcd-readiness ok\n"),
            "{text}"
        );
        assert!(text.ends_with("[+]shutdown ok\nreadyz check passed\n"), "{text}");
        let (_, text) = said("/livez", &[("verbose", "true")], WELL);
        assert!(!text.contains("shutdown") && text.ends_with("livez check passed\n"), "{text}");
    }

    #[test]
    fn what_fails_is_told_without_its_reason() {
        let lost = State { store: false, ..WELL };
        let (code, text) = said("/healthz", &[], lost);
        assert_eq!(code, 500);
        assert!(text.contains("[-]etcd failed: reason withheld\n"), "{text}");
        assert!(text.ends_with("healthz check failed\n"), "{text}");
        assert_eq!(
            said("/livez/etcd", &[], lost),
            (500, "internal server error: etcd does not hold\n".to_owned())
        );
        assert_eq!(said("/livez", &[("exclude", "etcd")], lost), (200, "ok".to_owned()));
        let query = [("verbose", ""), ("exclude", "etcd"), ("exclude", "nobody")];
        let (code, text) = said("/livez", &query, lost);
        assert_eq!(code, 200);
        assert!(text.contains("[+]etcd excluded: ok\n"), "{text}");
        assert!(
            text.contains(
                "warn: some health checks cannot be excluded: no matches for \"nobody\"\n"
            )
        );
    }

    #[test]
    fn who_leaves_lives_but_is_not_ready() {
        let leaving = State { stopping: true, ..WELL };
        assert_eq!(said("/livez", &[], leaving).0, 200);
        assert_eq!(said("/readyz", &[], leaving).0, 500);
        assert_eq!(said("/readyz", &[], State { follows: false, ..WELL }).0, 500);
        assert_eq!(said("/livez", &[], State { follows: false, ..WELL }).0, 200);
    }

    #[test]
    fn other_paths_and_checks_are_not_there() {
        for path in ["/livez/nobody", "/livez/shutdown", "/healthzz", "/", "/live"] {
            assert_eq!(said(path, &[], WELL).0, 404, "{path}");
        }
        assert!(is_probe("/readyz/poststarthook/rbac/bootstrap-roles") && !is_probe("/readyzz"));
        let hook = "/readyz/poststarthook/rbac/bootstrap-roles";
        assert_eq!(said(hook, &[], WELL), (200, "ok".to_owned()));
    }
}
