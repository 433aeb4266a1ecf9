//! May a pod go? Its disruption budget says, and counts it.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::prepare::{set, stamp};
use super::validate::fits;
use crate::object::{Object, at, items, text};
use crate::status::{Cause, Status};

/// What an eviction does.
#[derive(Clone, Debug, PartialEq)]
pub enum Eviction {
    /// The pod is deleted.
    Delete,
    /// The budget is stored like this first, unless nothing is stored at all; then the pod is deleted.
    Disrupt(Object),
}

/// More evictions than this that nobody has seen are too many.
const UNSEEN_MOST: usize = 2000;

const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// Decides it. `budgets` are those of the pod's namespace.
///
/// # Errors
/// The budget does not allow it now (429), or there are two (500).
pub fn evict(pod: &Object, budgets: &[Object], now: OffsetDateTime) -> Result<Eviction, Status> {
    let over = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending");
    if over || at(pod, "/metadata/deletionTimestamp").is_some() {
        return Ok(Eviction::Delete);
    }
    let own = |budget: &&Object| {
        let selector = at(budget, "/spec/selector").filter(|selector| selector.is_object());
        selector.is_some_and(|selector| fits(selector, at(pod, "/metadata/labels")))
    };
    let mut own = budgets.iter().filter(own);
    let (Some(budget), second) = (own.next(), own.next()) else { return Ok(Eviction::Delete) };
    if second.is_some() {
        let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(Status { message: why.to_owned(), ..Status::internal(why) });
    }
    let number =
        |name: &str| at(budget, &format!("/status/{name}")).and_then(Value::as_i64).unwrap_or(0);
    // One that does not serve anybody is no loss, if the budget says so.
    let (desired, healthy) = (number("desiredHealthy"), number("currentHealthy"));
    let spare = match text(budget, "/spec/unhealthyPodEvictionPolicy") {
        "AlwaysAllow" => true,
        _ => healthy >= desired && desired > 0,
    };
    if spare && !is_ready(pod) {
        return Ok(Eviction::Delete);
    }
    disrupt(pod, budget, now).map(Eviction::Disrupt)
}

/// Counts the pod.
fn disrupt(pod: &Object, budget: &Object, now: OffsetDateTime) -> Result<Object, Status> {
    let name = text(budget, "/metadata/name");
    let number = |pointer: &str| at(budget, pointer).and_then(Value::as_i64).unwrap_or(0);
    if number("/status/observedGeneration") < number("/metadata/generation") {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refused(why, 10));
    }
    let allowed = number("/status/disruptionsAllowed");
    let unseen = at(budget, "/status/disruptedPods").and_then(Value::as_object);
    let forbidden = |why: &str| {
        let budgets = crate::resources::find("policy", "v1", "poddisruptionbudgets");
        Status::forbidden(budgets.expect("budgets are served"), name, why)
    };
    if allowed < 0 {
        return Err(forbidden("pdb disruptions allowed is negative"));
    }
    if unseen.is_some_and(|unseen| unseen.len() > UNSEEN_MOST) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(forbidden(why));
    }
    if allowed == 0 {
        let why = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("/status/desiredHealthy"),
            number("/status/currentHealthy")
        );
        return Err(refused(why, 0));
    }
    let mut budget = budget.clone();
    set(&mut budget, &["status", "disruptionsAllowed"], (allowed - 1).into());
    let pod = text(pod, "/metadata/name");
    set(&mut budget, &["status", "disruptedPods", pod], stamp(now).into());
    if allowed == 1 {
        exhausted(&mut budget, now);
    }
    Ok(budget)
}

/// The condition that says that no more may go.
fn exhausted(budget: &mut Object, now: OffsetDateTime) {
    let mut conditions: Vec<Value> = items(budget, "/status/conditions").cloned().collect();
    conditions.retain(|condition| condition["type"] != "DisruptionAllowed");
    let generation = at(budget, "/status/observedGeneration").cloned().unwrap_or_default();
    let mut condition = json!({
        "type": "DisruptionAllowed",
        "status": "False",
        "reason": "InsufficientPods",
        "message": "",
        "lastTransitionTime": stamp(now),
    });
    if generation.is_number() {
        condition["observedGeneration"] = generation;
    }
    conditions.push(condition);
    set(budget, &["status", "conditions"], conditions.into());
}

fn is_ready(pod: &Object) -> bool {
    items(pod, "/status/conditions")
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Without a time to try again clients do not try again by themselves, but tell their user.
fn refused(why: String, retry_after_seconds: u32) -> Status {
    let mut status = Status { message: REFUSED.to_owned(), ..Status::too_many_requests() };
    status.details.retry_after_seconds = retry_after_seconds;
    status.details.causes =
        vec![Cause { reason: "DisruptionBudget", message: why, field: String::new() }];
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        let Value::Object(object) = value else { unreachable!("it is an object") };
        object
    }

    fn budget(more: Value) -> Object {
        let mut status =
            object(json!({"disruptionsAllowed": 1, "desiredHealthy": 2, "currentHealthy": 3,
            "observedGeneration": 1}));
        status.extend(object(more));
        object(json!({"metadata": {"name": "b", "generation": 1}, "status": status,
            "spec": {"selector": {"matchLabels": {"app": "a"}}}}))
    }

    fn pod(phase: &str, ready: &str) -> Object {
        object(json!({"metadata": {"name": "p", "labels": {"app": "a"}},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}}))
    }

    #[test]
    fn a_budget_says_who_may_go_and_counts() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let running = pod("Running", "True");
        assert_eq!(evict(&running, &[], now), Ok(Eviction::Delete));
        let none = || json!({"disruptionsAllowed": 0});
        for phase in ["Pending", "Succeeded", "Failed"] {
            assert_eq!(evict(&pod(phase, "False"), &[budget(none())], now), Ok(Eviction::Delete));
        }
        let Ok(Eviction::Disrupt(after)) = evict(&running, &[budget(json!({}))], now) else {
            panic!("it may go")
        };
        let stamp = "1970-01-01T00:00:00Z";
        assert_eq!(
            after["status"],
            json!({"disruptionsAllowed": 0, "desiredHealthy": 2, "currentHealthy": 3, "observedGeneration": 1,
                "disruptedPods": {"p": stamp}, "conditions": [{"type": "DisruptionAllowed", "status": "False",
                "reason": "InsufficientPods", "message": "", "lastTransitionTime": stamp, "observedGeneration": 1}]})
        );
        let status = evict(&running, &[after], now).expect_err("no more may go");
        assert_eq!((status.code, status.message.as_str()), (429, REFUSED));
        assert_eq!(
            status.body()["details"],
            json!({"causes": [{"reason": "DisruptionBudget",
                "message": "The disruption budget b needs 2 healthy pods and has 3 currently"}]})
        );
        let unseen = budget(json!({"observedGeneration": 0}));
        let status = evict(&running, &[unseen], now).expect_err("nobody has looked at it");
        assert_eq!(status.details.retry_after_seconds, 10);
        let two = [budget(json!({})), budget(json!({}))];
        assert_eq!(evict(&running, &two, now).expect_err("there are two").code, 500);
        let unready = pod("Running", "False");
        assert_eq!(evict(&unready, &[budget(none())], now), Ok(Eviction::Delete));
        let short = budget(json!({"disruptionsAllowed": 0, "currentHealthy": 1}));
        assert_eq!(
            evict(&unready, std::slice::from_ref(&short), now).expect_err("too few").code,
            429
        );
        let mut any = short;
        set(&mut any, &["spec", "unhealthyPodEvictionPolicy"], "AlwaysAllow".into());
        assert_eq!(evict(&unready, &[any], now), Ok(Eviction::Delete));
    }
}
