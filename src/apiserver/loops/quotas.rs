//! What quotas say is used: counted when a quota is new or changed, when something that was counted goes, soon after it
//! was charged (what was charged may not have been written), and now and then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::namespaces::is_stored;
use super::{Action, Look, Loop, Now, Seen, Step, served, split};
use crate::admission::pods::amounts;
use crate::admission::quota;
use crate::object::{Object, Objects, at, text};
use crate::resources::Resource;

/// After something went.
const SOON: Duration = Duration::from_millis(20);
/// After something was charged.
const LATER: Duration = Duration::from_secs(5);
/// Whatever happens.
const ANYWAY: Duration = Duration::from_secs(300);

/// How long what was charged may take to be written and seen; nothing is given back meanwhile,
const ON_ITS_WAY: Duration = Duration::from_millis(100);
/// but no longer than this, where something is charged all the time.
const AT_LAST: Duration = Duration::from_secs(1);

/// The loop. Its keys are `namespace/name` of quotas.
#[derive(Debug, Default)]
pub struct Quotas {
    /// By namespace and name.
    known: BTreeMap<String, BTreeMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    /// What it counts.
    counted: Vec<&'static Resource>,
    /// When it was charged last.
    charged: Instant,
    /// Since when there is something to be given back.
    waits: Option<Instant>,
}

impl Loop for Quotas {
    fn name(&self) -> &'static str {
        "quotas"
    }

    fn wants(&self, resource: &'static Resource) -> bool {
        resource.namespaced && resource.verbs.contains(&"list") && is_stored(resource)
    }

    fn observe(&mut self, seen: &Seen<'_>, now: Now) -> Vec<Look> {
        let mut looks = Vec::new();
        if seen.is("", "resourcequotas") {
            looks.extend(self.observe_quota(seen, now));
        }
        // Only what goes, or ends, is not told by whoever writes it.
        let Some(quotas) = self.known.get(seen.namespace) else { return looks };
        let ends = || {
            let ended = |phase: &str| matches!(phase, "Succeeded" | "Failed");
            seen.is("", "pods") && ended(text(&seen.object(), "/status/phase"))
        };
        if seen.gone || ends() {
            let of = |known: &Known| {
                known.counted.iter().any(|counted| {
                    counted.group == seen.resource.group && counted.plural == seen.resource.plural
                })
            };
            let concerned = quotas.iter().filter(|(_, known)| of(known));
            looks.extend(
                concerned.map(|(name, _)| Look::after(format!("{}/{name}", seen.namespace), SOON)),
            );
        }
        looks
    }

    fn step(&mut self, key: &str, objects: &dyn Objects, now: Now) -> Step {
        let (namespace, name) = split(key);
        let quotas = served("", "v1", "resourcequotas");
        let known = self.known.get_mut(namespace).and_then(|quotas| quotas.get_mut(name));
        let (Some(known), Some(mut quota)) = (known, objects.get(quotas, namespace, name)) else {
            return Step::idle();
        };
        let hard = at(&quota, "/spec/hard").cloned().unwrap_or_else(|| json!({}));
        let status = json!({"hard": hard, "used": quota::counted(&quota, objects, now.wall)});
        let again = Some(now.at + ANYWAY);
        if at(&quota, "/status") == Some(&status) {
            known.waits = None;
            return Step { again, ..Step::default() };
        }
        let settled = known.charged + ON_ITS_WAY;
        let waits = *known.waits.get_or_insert(now.at);
        if gives_back(&quota, &status) && now.at < settled && now.at < waits + AT_LAST {
            return Step::at(settled);
        }
        known.waits = None;
        quota.insert("status".to_owned(), status);
        Step { actions: vec![Action::Replace(quotas, "status", quota)], again, ..Step::default() }
    }
}

impl Quotas {
    fn observe_quota(&mut self, seen: &Seen<'_>, now: Now) -> Option<Look> {
        let key = format!("{}/{}", seen.namespace, seen.name);
        if seen.gone {
            let quotas = self.known.get_mut(seen.namespace)?;
            quotas.remove(seen.name);
            if quotas.is_empty() {
                self.known.remove(seen.namespace);
            }
            return None;
        }
        let quota: Object = seen.object();
        let none = Map::new();
        let hard = at(&quota, "/spec/hard").and_then(Value::as_object).unwrap_or(&none);
        let counted = quota::counted_by(hard.keys().map(String::as_str));
        let quotas = self.known.entry(seen.namespace.to_owned()).or_default();
        let waits = quotas.get(seen.name).and_then(|known| known.waits);
        quotas.insert(seen.name.to_owned(), Known { counted, charged: now.at, waits });
        let current = at(&quota, "/status/hard").and_then(Value::as_object) == Some(hard);
        Some(if current { Look::after(key, LATER) } else { Look::now(key) })
    }
}

/// Is less of something used than a quota says?
fn gives_back(quota: &Object, status: &Value) -> bool {
    let (said, counted) = (amounts(at(quota, "/status/used")), amounts(status.get("used")));
    said.iter().any(|(name, said)| counted.get(name).is_some_and(|counted| counted < said))
}
