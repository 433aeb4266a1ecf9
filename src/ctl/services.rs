//! `services`, `service ID`: the state of a node's services, and their start, stop and restart.

use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use orlop_proto::machine::{
    ServiceEvent, ServiceInfo, ServiceList, ServiceRestartRequest, ServiceStartRequest,
    ServiceStopRequest,
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::client::{Answer, Client, machine};
use crate::error::{Error, Failure};
use crate::table::{Cell, Column, Format, Output, Table, align, escape, print};
use crate::units::{seconds, since};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The service; all services when left out
    id: Option<String>,
    /// What to do with it
    #[arg(value_enum, default_value_t)]
    action: Action,
    /// Do not wait until a restarted service is up again
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    output: Output,
}

/// A restarted service gets this long to be up again,
const UP_LIMIT: Duration = Duration::from_secs(60);
/// and is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Show its state and history
    #[default]
    Status,
    /// Start it
    Start,
    /// Stop it
    Stop,
    /// Stop it, then start it
    Restart,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    let Options { id, action, no_wait, output } = options;
    let Some(id) = id else {
        return list(&listed(client).await?, SystemTime::now()).print(*output);
    };
    let doing = |action| format!("{action} service {id:?}");
    let id = id.clone();
    let answers = match action {
        Action::Status => return status(client, &id, *output).await,
        Action::Start => {
            let request = ServiceStartRequest { id };
            let call = async |node| machine(node).service_start(request.clone()).await;
            responses(client.ask(&doing("start"), call).await?, |message| message.resp)
        }
        Action::Stop => {
            let request = ServiceStopRequest { id };
            let call = async |node| machine(node).service_stop(request.clone()).await;
            responses(client.ask(&doing("stop"), call).await?, |message| message.resp)
        }
        Action::Restart => {
            let before = if *no_wait { Vec::new() } else { listed(client).await? };
            let request = ServiceRestartRequest { id: id.clone() };
            let call = async |node| machine(node).service_restart(request.clone()).await;
            let answers = client.ask(&doing("restart"), call).await?;
            if !no_wait {
                let nodes: Vec<_> = answers.iter().map(|answer| answer.node.as_str()).collect();
                let asked = asked_for_health(&before, &id);
                wait_up(client, &id, &nodes, &asked).await?;
            }
            responses(answers, |message| message.resp)
        }
    };
    answers.print(*output)
}

/// The nodes where something asks for the health of `id`, by what was known of it.
fn asked_for_health(answers: &[Answer<ServiceList>], id: &str) -> Vec<String> {
    let known = |service: &ServiceInfo| {
        service.id == id && service.health.as_ref().is_some_and(|health| !health.unknown)
    };
    let asked = answers.iter().filter(|answer| answer.message.services.iter().any(known));
    asked.map(|answer| answer.node.clone()).collect()
}

/// Waits until `id` is up on all `nodes`. A node that does not answer is on its way: the service may
/// be what answers.
async fn wait_up(client: &Client, id: &str, nodes: &[&str], asked: &[String]) -> Result<(), Error> {
    let client = client.silent();
    let deadline = Instant::now() + UP_LIMIT;
    let call = async |node| machine(node).service_list(()).await;
    loop {
        let lacking = match client.gather("list services", call).await {
            Ok((answers, failures)) => lacking(id, nodes, asked, &answers, &failures),
            Err(error) => vec![orlop_rt::Chain(&error).to_string()],
        };
        if lacking.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let (id, why) = (id.to_owned(), lacking.join("; "));
            return Err(Error::NotUp { id, after: UP_LIMIT, why });
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The nodes of `nodes` where `id` is not up, with what it is instead.
fn lacking(
    id: &str,
    nodes: &[&str],
    asked: &[String],
    answers: &[Answer<ServiceList>],
    failures: &[Failure],
) -> Vec<String> {
    let mut lacking = Vec::new();
    for node in nodes {
        let answer = answers.iter().find(|answer| answer.node == *node);
        let service = answer
            .and_then(|answer| answer.message.services.iter().find(|service| service.id == id));
        let failure = failures.iter().find(|failure| failure.node == *node);
        let why = match (service, failure) {
            (Some(service), _) => match up(service, asked.iter().any(|asked| asked == node)) {
                Ok(()) => continue,
                Err(why) => why,
            },
            (None, Some(failure)) => failure.why.clone(),
            (None, None) => "no answer".to_owned(),
        };
        lacking.push(format!("{node}: {}", escape(&why)));
    }
    lacking
}

/// Whether a service is up, where its health is `asked` for or not.
///
/// # Errors
/// What it is instead.
pub(crate) fn up(service: &ServiceInfo, asked: bool) -> Result<(), String> {
    let health = health(service);
    match service.state.as_str() {
        "Running" if health == "OK" || (health == "?" && !asked) => Ok(()),
        "Finished" | "Skipped" => Ok(()),
        state => {
            let said = match &service.health {
                Some(health) if !health.last_message.is_empty() => &health.last_message,
                _ => events(service).last().map_or("", |event| &event.msg),
            };
            Err(format!("{state} ({said})"))
        }
    }
}

async fn listed(client: &Client) -> Result<Vec<Answer<ServiceList>>, Error> {
    client.ask("list services", async |node| machine(node).service_list(()).await).await
}

/// One service on every node that has it, with its whole story.
async fn status(client: &Client, id: &str, output: Output) -> Result<(), Error> {
    let mut answers = listed(client).await?;
    answers
        .iter_mut()
        .for_each(|answer| answer.message.services.retain(|service| service.id == id));
    if answers.iter().all(|answer| answer.message.services.is_empty()) {
        return Err(Error::NotRegistered { id: id.to_owned() });
    }
    match output.format {
        Format::Table => print(story(&answers, SystemTime::now()).as_bytes()),
        Format::Json | Format::Yaml => history(&answers).print(output),
    }
}

const SERVICES: &[Column] = &[
    ("NODE", "node"),
    ("SERVICE", "service"),
    ("STATE", "state"),
    ("HEALTH", "health"),
    ("LAST CHANGE", "last_change"),
    ("LAST EVENT", "last_event"),
];

fn list(answers: &[Answer<ServiceList>], now: SystemTime) -> Table {
    let mut table = Table::new(SERVICES);
    for Answer { node, message } in answers {
        for service in &message.services {
            let (change, event) = match events(service).last() {
                Some(event) => (ago(event, now), Cell::text(&event.msg)),
                None => (Cell::shown("", ()), Cell::shown("<none>", ())),
            };
            let health = Cell::text(health(service));
            let (id, state) = (Cell::text(&service.id), Cell::text(&service.state));
            table.push([Cell::text(node), id, state, health, change, event]);
        }
    }
    table
}

const HISTORY: &[Column] = &[
    ("NODE", "node"),
    ("ID", "service"),
    ("STATE", "state"),
    ("HEALTH", "health"),
    ("LAST HEALTH MESSAGE", "health_message"),
    ("EVENTS", "events"),
];

/// The story for programs, oldest event first.
pub(crate) fn history(answers: &[Answer<ServiceList>]) -> Table {
    let mut table = Table::new(HISTORY);
    for Answer { node, message } in answers {
        for service in &message.services {
            let said = service.health.as_ref().map_or("", |health| &health.last_message);
            let event = |ServiceEvent { msg, state, ts }: &ServiceEvent| json!({ "time": ts.map(|ts| ts.to_string()), "state": state, "message": msg });
            let events: Vec<Value> = events(service).iter().map(event).collect();
            let (id, state) = (Cell::text(&service.id), Cell::text(&service.state));
            let health = Cell::text(health(service));
            table.push([
                Cell::text(node),
                id,
                state,
                health,
                Cell::text(said),
                Cell::shown("", events),
            ]);
        }
    }
    table
}

/// Names and values in two columns.
fn story(answers: &[Answer<ServiceList>], now: SystemTime) -> String {
    let mut lines = Vec::new();
    for Answer { node, message } in answers {
        message.services.iter().for_each(|service| tell(&mut lines, node, service, now));
    }
    align(&lines.iter().map(|line| line.each_ref().map(String::as_str)).collect::<Vec<_>>())
}

fn tell(lines: &mut Vec<[String; 2]>, node: &str, service: &ServiceInfo, now: SystemTime) {
    let mut line = |name: &str, value: &str| lines.push([name.to_owned(), escape(value)]);
    line("NODE", node);
    line("ID", &service.id);
    line("STATE", &service.state);
    line("HEALTH", health(service));
    let said = service.health.as_ref().map_or("", |health| &health.last_message);
    if !said.is_empty() {
        line("LAST HEALTH MESSAGE", said);
    }
    let mut label = "EVENTS";
    for ServiceEvent { msg, state, ts } in events(service).iter().rev() {
        let ago = ts.map(|ts| format!(" ({} ago)", seconds(since(ts, now)))).unwrap_or_default();
        line(label, &format!("[{state}]: {msg}{ago}"));
        label = "";
    }
}

const RESPONSES: &[Column] = &[("NODE", "node"), ("RESPONSE", "response")];

fn responses<M>(answers: Vec<Answer<M>>, text: impl Fn(M) -> String) -> Table {
    let mut table = Table::new(RESPONSES);
    for Answer { node, message } in answers {
        table.push([Cell::text(&node), Cell::text(&text(message))]);
    }
    table
}

fn events(service: &ServiceInfo) -> &[ServiceEvent] {
    service.events.as_ref().map_or(&[], |events| &events.events)
}

fn ago(event: &ServiceEvent, now: SystemTime) -> Cell {
    match event.ts {
        Some(ts) => Cell::shown(format!("{} ago", seconds(since(ts, now))), ts.to_string()),
        None => Cell::shown("", ()),
    }
}

pub(crate) fn health(service: &ServiceInfo) -> &'static str {
    match &service.health {
        Some(health) if health.unknown => "?",
        Some(health) if health.healthy => "OK",
        Some(_) => "Fail",
        None => "?",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use orlop_proto::machine::{ServiceEvents, ServiceHealth, ServiceStart};
    use prost_types::Timestamp;

    use super::*;
    use crate::golden;

    const NOW: i64 = 1_700_003_600;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs())
    }

    fn service(
        id: &str,
        health: Option<(bool, bool, &str)>,
        events: &[(&str, &str, i64)],
    ) -> ServiceInfo {
        let event = |(state, msg, age): &(&str, &str, i64)| ServiceEvent {
            msg: (*msg).to_owned(),
            state: (*state).to_owned(),
            ts: Some(Timestamp { seconds: NOW - age, nanos: 0 }),
        };
        let events: Vec<_> = events.iter().map(event).collect();
        ServiceInfo {
            id: id.to_owned(),
            state: events.last().map_or("Initialized", |event| &event.state).to_owned(),
            events: Some(ServiceEvents { events }),
            health: health.map(|(unknown, healthy, said)| ServiceHealth {
                unknown,
                healthy,
                last_message: said.to_owned(),
                last_change: None,
            }),
        }
    }

    fn answers() -> [Answer<ServiceList>; 1] {
        let services = vec![
            service(
                "apid",
                Some((false, true, "")),
                &[
                    ("Preparing", "Running pre state", 65),
                    ("Running", "Started task apid (PID 300) for container apid", 64),
                    ("Running", "Health check successful", 3),
                ],
            ),
            service(
                "networkd",
                Some((false, false, "no address yet")),
                &[("Waiting", "Waiting for network", 5400)],
            ),
            service("udevd", Some((true, false, "")), &[]),
        ];
        [Answer { node: "10.0.0.2".to_owned(), message: ServiceList { metadata: None, services } }]
    }

    #[test]
    fn services_are_listed_with_their_last_event() {
        let table = list(&answers(), now());
        golden::check("services.txt", &table.render(Format::Table));
        golden::check("services.yaml", &table.render(Format::Yaml));
    }

    #[test]
    fn one_service_tells_its_history_newest_first() {
        let mut answers = answers();
        answers[0].message.services.truncate(2);
        golden::check("service.txt", &story(&answers, now()));
        golden::check("service.json", &history(&answers).render(Format::Json));
    }

    #[test]
    fn a_service_is_up_when_its_health_is_known_where_somebody_asks_for_it() {
        let running = [("Running", "Started task apid", 1)];
        for (service, asked, expected) in [
            (service("apid", Some((false, true, "")), &running), true, Ok(())),
            (service("apid", Some((true, false, "")), &running), false, Ok(())),
            (
                service("apid", Some((true, false, "")), &running),
                true,
                Err("Running (Started task apid)".to_owned()),
            ),
            (
                service("apid", Some((false, false, "no route")), &running),
                false,
                Err("Running (no route)".to_owned()),
            ),
            (
                service("x", None, &[("Stopping", "Sending SIGTERM", 1)]),
                false,
                Err("Stopping (Sending SIGTERM)".to_owned()),
            ),
            (service("x", None, &[("Finished", "", 1)]), false, Ok(())),
        ] {
            assert_eq!(up(&service, asked), expected, "{service:?}");
        }
        assert_eq!(asked_for_health(&answers(), "apid"), ["10.0.0.2"]);
        assert!(asked_for_health(&answers(), "udevd").is_empty());
    }

    #[test]
    fn what_a_node_answers_stands_beside_its_name() {
        let message = ServiceStart { metadata: None, resp: "Service \"timed\" started".to_owned() };
        let table =
            responses(vec![Answer { node: "n".to_owned(), message }], |message| message.resp);
        assert_eq!(
            table.render(Format::Table),
            "NODE   RESPONSE\nn      Service \"timed\" started\n"
        );
    }
}
