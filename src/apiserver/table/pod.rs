//! What a pod is said to be doing: its containers, in order, have the last word.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::cells::{Cells, at_time, flag, number, of, or};

/// Name, Ready, Status, Restarts, Age, and for those who look closer IP, Node, Nominated Node, Readiness Gates.
pub(super) fn cells(pod: &Cells<'_>) -> Vec<Value> {
    let Seen { ready, all, status, restarts, restarted } = Seen::of(pod);
    let restarts = match restarted {
        Some(when) if restarts > 0 => {
            format!("{restarts} ({} ago)", super::cells::since(when, pod.now))
        }
        _ => restarts.to_string(),
    };
    let gates: Vec<_> = pod.items("/spec/readinessGates").collect();
    let hold = gates.iter().filter(|gate| pod.condition(of(gate, "conditionType")) == "True");
    let hold = hold.count();
    vec![
        pod.name(),
        format!("{ready}/{all}").into(),
        status.into(),
        restarts.into(),
        pod.age(),
        or(pod.text("/status/podIPs/0/ip"), "<none>"),
        or(pod.text("/spec/nodeName"), "<none>"),
        or(pod.text("/status/nominatedNodeName"), "<none>"),
        if gates.is_empty() { json!("<none>") } else { format!("{hold}/{}", gates.len()).into() },
    ]
}

struct Seen {
    ready: usize,
    all: usize,
    status: String,
    restarts: i64,
    restarted: Option<OffsetDateTime>,
}

/// How often containers were restarted, and when last.
#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i64,
    last: Option<OffsetDateTime>,
}

impl Restarts {
    fn add(&mut self, container: &Value) {
        self.count += number(container, "/restartCount");
        self.last = self.last.max(at_time(container.pointer("/lastState/terminated/finishedAt")));
    }
}

impl Seen {
    fn of(pod: &Cells<'_>) -> Self {
        let phase = pod.text("/status/phase");
        let reason = pod.text("/status/reason");
        let mut status = if reason.is_empty() { phase } else { reason }.to_owned();
        let gated = pod.items("/status/conditions").any(|condition| {
            of(condition, "type") == "PodScheduled" && of(condition, "reason") == "SchedulingGated"
        });
        if gated {
            "SchedulingGated".clone_into(&mut status);
        }
        let restartable = |name: &str| {
            pod.items("/spec/initContainers").any(|container| {
                of(container, "name") == name && of(container, "restartPolicy") == "Always"
            })
        };
        let init = pod.items("/spec/initContainers").count();
        let sidecars = pod
            .items("/spec/initContainers")
            .filter(|container| of(container, "restartPolicy") == "Always")
            .count();
        let all = pod.items("/spec/containers").count() + sidecars;

        let (mut ready, mut initializing) = (0, false);
        let (mut restarts, mut of_sidecars) = (Restarts::default(), Restarts::default());
        for (index, container) in pod.items("/status/initContainerStatuses").enumerate() {
            restarts.add(container);
            let stays = restartable(of(container, "name"));
            if stays {
                of_sidecars.add(container);
            }
            let terminated = container.pointer("/state/terminated");
            let waits = container.pointer("/state/waiting/reason").and_then(Value::as_str);
            match (terminated, waits.unwrap_or_default()) {
                (Some(end), _) if number(end, "/exitCode") == 0 => continue,
                _ if stays && flag(container, "/started") => {
                    ready += usize::from(flag(container, "/ready"));
                    continue;
                }
                (Some(end), _) => status = format!("Init:{}", ended(end)),
                (None, "" | "PodInitializing") => status = format!("Init:{index}/{init}"),
                (None, waits) => status = format!("Init:{waits}"),
            }
            initializing = true;
            break;
        }
        if !initializing || pod.condition("Initialized") == "True" {
            restarts = of_sidecars;
            let mut running = false;
            // The first one listed has the last word.
            let containers: Vec<_> = pod.items("/status/containerStatuses").collect();
            for container in containers.into_iter().rev() {
                restarts.add(container);
                let waits = container.pointer("/state/waiting/reason").and_then(Value::as_str);
                match (waits.unwrap_or_default(), container.pointer("/state/terminated")) {
                    ("", Some(end)) => status = ended(end),
                    ("", None) => {
                        if flag(container, "/ready")
                            && container.pointer("/state/running").is_some()
                        {
                            running = true;
                            ready += 1;
                        }
                    }
                    (waits, _) => waits.clone_into(&mut status),
                }
            }
            if status == "Completed" && running {
                let is_ready = pod.condition("Ready") == "True";
                if is_ready { "Running" } else { "NotReady" }.clone_into(&mut status);
            }
        }
        if pod.is_deleted() {
            if reason == "NodeLost" {
                "Unknown".clone_into(&mut status);
            } else if !matches!(phase, "Succeeded" | "Failed") {
                "Terminating".clone_into(&mut status);
            }
        }
        Self { ready, all, status, restarts: restarts.count, restarted: restarts.last }
    }
}

/// How a container ended.
fn ended(end: &Value) -> String {
    match (of(end, "reason"), number(end, "/signal")) {
        ("", 0) => format!("ExitCode:{}", number(end, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}
