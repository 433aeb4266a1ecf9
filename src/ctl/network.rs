//! `interfaces` and `routes`: what networkd says of a node's links.

use orlop_proto::network::{Interfaces, Routes};

use crate::client::{Answer, Client, network};
use crate::error::Error;
use crate::table::{Cell, Column, Output, Table};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn list_interfaces(client: &Client, options: &Options) -> Result<(), Error> {
    let call = async |node| network(node).interfaces(()).await;
    let answers = client.ask("list interfaces", call).await?;
    interfaces(&answers).print(options.output)
}

pub(crate) async fn list_routes(client: &Client, options: &Options) -> Result<(), Error> {
    let call = async |node| network(node).routes(()).await;
    let answers = client.ask("list routes", call).await?;
    routes(&answers).print(options.output)
}

const INTERFACES: &[Column] = &[
    ("NODE", "node"),
    ("INDEX", "index"),
    ("NAME", "name"),
    ("MAC", "mac"),
    ("MTU", "mtu"),
    ("ADDRESS", "address"),
];

/// One row an address; a link without any still has its row.
pub(crate) fn interfaces(answers: &[Answer<Interfaces>]) -> Table {
    let mut table = Table::new(INTERFACES);
    for Answer { node, message } in answers {
        for link in &message.interfaces {
            let none = [String::new()];
            let addresses = if link.ipaddress.is_empty() { &none[..] } else { &link.ipaddress };
            for address in addresses {
                table.push([
                    Cell::text(node),
                    Cell::number(link.index),
                    Cell::text(&link.name),
                    Cell::text(&link.hardwareaddr),
                    Cell::number(link.mtu),
                    Cell::text(address),
                ]);
            }
        }
    }
    table
}

const ROUTES: &[Column] = &[
    ("NODE", "node"),
    ("INTERFACE", "interface"),
    ("DESTINATION", "destination"),
    ("GATEWAY", "gateway"),
    ("METRIC", "metric"),
];

pub(crate) fn routes(answers: &[Answer<Routes>]) -> Table {
    let mut table = Table::new(ROUTES);
    for Answer { node, message } in answers {
        for route in &message.routes {
            table.push([
                Cell::text(node),
                Cell::text(&route.interface),
                Cell::text(&route.destination),
                Cell::text(&route.gateway),
                Cell::number(route.metric),
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use orlop_proto::network::{Interface, Route};

    use super::*;
    use crate::golden;
    use crate::table::Format;

    #[test]
    fn an_interface_has_a_row_for_each_address() {
        let link = |index, name: &str, mac: &str, mtu, addresses: &[&str]| Interface {
            index,
            mtu,
            name: name.to_owned(),
            hardwareaddr: mac.to_owned(),
            flags: 19,
            ipaddress: addresses.iter().map(|&address| address.to_owned()).collect(),
        };
        let links = vec![
            link(1, "lo", "", 65536, &["127.0.0.1/8"]),
            link(
                2,
                "eth0",
                "52:54:00:12:34:56",
                1500,
                &["10.0.2.15/24", "fe80::5054:ff:fe12:3456/64"],
            ),
            link(3, "eth1", "52:54:00:12:34:57", 1500, &[]),
        ];
        let message = Interfaces { metadata: None, interfaces: links };
        let text = interfaces(&[Answer { node: "n".to_owned(), message }]).render(Format::Table);
        golden::check("interfaces.txt", &text);
    }

    #[test]
    fn routes_are_in_the_kernels_order() {
        let route = |destination: &str, gateway: &str, metric| Route {
            interface: "eth0".to_owned(),
            destination: destination.to_owned(),
            gateway: gateway.to_owned(),
            metric,
            ..Route::default()
        };
        let routes_of = vec![route("0.0.0.0/0", "10.0.2.2/32", 1024), route("10.0.2.0/24", "", 0)];
        let message = Routes { metadata: None, routes: routes_of };
        let text = routes(&[Answer { node: "n".to_owned(), message }]).render(Format::Table);
        golden::check("routes.txt", &text);
    }
}
