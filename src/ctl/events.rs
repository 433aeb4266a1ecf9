//! `events`: what nodes do, as they do it.

use std::time::Duration;

use orlop_proto::machine::{
    AddressEvent, Event, EventsRequest, PhaseEvent, RestartEvent, SequenceEvent, ServiceStateEvent,
    TaskEvent,
};
use orlop_proto::orlop::v1alpha1::network_change::What;
use orlop_proto::orlop::v1alpha1::{NetworkChange, NetworkEvent};
use prost::{DecodeError, Message};

use crate::client::{Client, machine};
use crate::error::Error;
use crate::table::{escape, print};
use crate::units::parse_duration;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Begin with the last N events; all that are kept when below zero
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
    tail: i32,
    /// Begin with the events of this long ago, like 90s or 10m
    #[arg(long, value_parser = parse_duration, value_name = "DURATION", conflicts_with = "tail")]
    duration: Option<Duration>,
    /// Begin with the events after this one; with all that are kept when the node does not know it
    #[arg(long, value_name = "ID", conflicts_with_all = ["tail", "duration"])]
    since: Option<String>,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    let seconds = options.duration.unwrap_or_default().as_secs();
    let request = EventsRequest {
        tail_events: options.tail,
        tail_id: options.since.clone().unwrap_or_default(),
        tail_seconds: i32::try_from(seconds).unwrap_or(i32::MAX),
    };
    let widest = client.nodes().iter().map(|node| node.chars().count()).max();
    let mut columns = Columns::new(widest.unwrap_or_default());
    print(columns.line(["NODE", "ID", "EVENT", "SOURCE", "MESSAGE"]).as_bytes())?;
    let call = async |node| machine(node).events(request.clone()).await;
    client
        .follow("follow events", call, |node, event| {
            print(columns.line(row(node, &event).each_ref().map(String::as_str)).as_bytes())
        })
        .await
}

fn row(node: &str, event: &Event) -> [String; 5] {
    let data = event.data.clone().unwrap_or_default();
    let name = data.type_url.rsplit('/').next().unwrap_or_default();
    let (source, message) = describe(name, &data.value)
        .unwrap_or_else(|error| (String::new(), format!("cannot be read: {error}")));
    [node, &event.id, &data.type_url, &source, &message].map(escape)
}

/// The subject of an event and what happened to it; the text of a kind we do not know says so.
///
/// # Errors
/// When the bytes are not the message they are said to be.
fn describe(name: &str, bytes: &[u8]) -> Result<(String, String), DecodeError> {
    Ok(match name {
        "machine.SequenceEvent" => {
            let event = SequenceEvent::decode(bytes)?;
            let action = event.action().as_str_name();
            let message = match event.error {
                Some(error) => format!("error: {}", error.message),
                None => action.to_owned(),
            };
            (event.sequence, message)
        }
        "machine.PhaseEvent" => {
            let event = PhaseEvent::decode(bytes)?;
            let action = event.action().as_str_name();
            (event.phase, action.to_owned())
        }
        "machine.TaskEvent" => {
            let event = TaskEvent::decode(bytes)?;
            let action = event.action().as_str_name();
            (event.task, action.to_owned())
        }
        "machine.ServiceStateEvent" => {
            let event = ServiceStateEvent::decode(bytes)?;
            let message = format!("{}: {}", event.action().as_str_name(), event.message);
            (event.service, message)
        }
        "machine.RestartEvent" => {
            let event = RestartEvent::decode(bytes)?;
            (String::new(), format!("reboot command {:#x}", event.cmd))
        }
        "machine.AddressEvent" => {
            let event = AddressEvent::decode(bytes)?;
            (event.hostname, format!("ADDRESSES: {}", event.addresses.join(",")))
        }
        "orlop.v1alpha1.NetworkEvent" => {
            let NetworkEvent { changes, more } = NetworkEvent::decode(bytes)?;
            let mut told: Vec<_> = changes.iter().map(change).collect();
            if more > 0 {
                told.push(format!("{more} more"));
            }
            ("network".to_owned(), told.join(", "))
        }
        _ => {
            (String::new(), format!("{} bytes of a kind this orlopctl does not know", bytes.len()))
        }
    })
}

fn change(change: &NetworkChange) -> String {
    let action = change.action().as_str_name();
    match &change.what {
        Some(What::Link(link)) => {
            let state = match (link.up, link.carrier) {
                (false, _) => "down",
                (true, false) => "no carrier",
                (true, true) => "up",
            };
            format!("link {} {action} ({state}, mtu {})", link.name, link.mtu)
        }
        Some(What::Address(it)) => format!("address {} of {} {action}", it.address, it.link),
        Some(What::Route(it)) => {
            let [via, of] = [("via", &it.gateway), ("of", &it.link)].map(|(word, what)| {
                if what.is_empty() { String::new() } else { format!(" {word} {what}") }
            });
            format!("route {}{via}{of} {action}", it.destination)
        }
        None => format!("something {action}"),
    }
}

/// Columns of a table that never ends: they only grow, and start at what is usual.
#[derive(Debug)]
struct Columns {
    widths: [usize; 4],
}

impl Columns {
    fn new(node: usize) -> Self {
        Self { widths: [node, 20, "talos/runtime/machine.ServiceStateEvent".len(), 16] }
    }

    /// A line 3 spaces between its columns, the last one not padded.
    fn line(&mut self, cells: [&str; 5]) -> String {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&mut self.widths) {
            let length = cell.chars().count();
            *width = length.max(*width);
            line += cell;
            line.extend(std::iter::repeat_n(' ', *width - length + 3));
        }
        line + cells[4] + "\n"
    }
}

#[cfg(test)]
mod tests {
    use orlop_proto::common;
    use orlop_proto::orlop::v1alpha1::{NetworkAddress, NetworkLink, NetworkRoute};
    use proptest::prelude::*;

    use super::*;
    use crate::golden;

    fn event(name: &str, message: &impl Message) -> Event {
        let type_url = format!("talos/runtime/{name}");
        let data = prost_types::Any { type_url, value: message.encode_to_vec() };
        Event { metadata: None, data: Some(data), id: "cqe7tq5n2o8g02u8d4l0".to_owned() }
    }

    fn route() -> NetworkRoute {
        NetworkRoute { destination: "0.0.0.0/0".to_owned(), ..NetworkRoute::default() }
    }

    #[test]
    fn every_kind_of_event_is_a_line() {
        let sequence = |action, error| SequenceEvent { sequence: "boot".to_owned(), action, error };
        let fatal = common::Error {
            code: 0,
            message: "sequence failed: no disk".to_owned(),
            details: vec![],
        };
        let service = "apid".to_owned();
        let message = "Health check\nsuccessful".to_owned();
        let state = ServiceStateEvent { service, action: 3, message };
        let addresses = vec!["10.0.0.2".to_owned(), "fd00::2".to_owned()];
        let addresses = AddressEvent { hostname: "control-1".to_owned(), addresses };
        let link = "eth0".to_owned();
        let whats = [
            (2, What::Route(NetworkRoute { destination: "10.1.0.0/16".to_owned(), ..route() })),
            (
                1,
                What::Link(NetworkLink {
                    name: link.clone(),
                    mtu: 1500,
                    up: true,
                    ..NetworkLink::default()
                }),
            ),
            (
                0,
                What::Address(NetworkAddress {
                    link: link.clone(),
                    address: "10.0.0.2/24".to_owned(),
                }),
            ),
            (0, What::Route(NetworkRoute { link, gateway: "10.0.0.1".to_owned(), ..route() })),
        ];
        let changes = whats.map(|(action, what)| NetworkChange { action, what: Some(what) });
        let network = NetworkEvent { changes: changes.to_vec(), more: 3 };
        let events = [
            event("machine.SequenceEvent", &sequence(1, None)),
            event("machine.PhaseEvent", &PhaseEvent { phase: "services".to_owned(), action: 0 }),
            event(
                "machine.TaskEvent",
                &TaskEvent { task: "startAllServices".to_owned(), action: 1 },
            ),
            event("machine.ServiceStateEvent", &state),
            event("machine.SequenceEvent", &sequence(0, Some(fatal))),
            event("machine.RestartEvent", &RestartEvent { cmd: 0x0123_4567 }),
            event("machine.AddressEvent", &addresses),
            event("orlop.v1alpha1.NetworkEvent", &network),
            event("machine.NewEvent", &PhaseEvent { phase: "x".to_owned(), action: 0 }),
            Event::default(),
        ];
        let mut columns = Columns::new(8);
        let mut text = columns.line(["NODE", "ID", "EVENT", "SOURCE", "MESSAGE"]);
        for event in &events {
            text += &columns.line(row("10.0.0.2", event).each_ref().map(String::as_str));
        }
        golden::check("events.txt", &text);
    }

    #[test]
    fn columns_grow_and_never_shrink() {
        let mut columns = Columns::new(1);
        columns.line(["long-node-name", "", "", "", ""]);
        assert!(columns.line(["n", "id", "", "", "m"]).starts_with("n                id"));
    }

    proptest! {
        #[test]
        fn describing_an_event_never_panics(kind in 0usize..8, bytes: Vec<u8>) {
            let names = ["machine.SequenceEvent", "machine.PhaseEvent", "machine.TaskEvent", "machine.ServiceStateEvent",
                "machine.RestartEvent", "machine.AddressEvent", "orlop.v1alpha1.NetworkEvent", "machine.X"];
            let _ = describe(names[kind], &bytes);
        }
    }
}
