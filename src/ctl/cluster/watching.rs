//! `nodes --watch`: nodes as they arrive, change and go.
//!
//! The curator's Watch says that something has changed, GetNodes what there is now. Health is in no watch:
//! it is looked at every few seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use orlop_proto::metropolis::node::core::curator::proto::api::{
    WatchEvent, WatchRequest, watch_request,
};
use orlop_proto::metropolis::proto::api::Node;
use serde_json::Value;
use tokio::time::{interval, sleep};
use tonic::Streaming;

use super::nodes::get;
use super::session::{Session, curator};
use super::view::{self, Chosen, Layout, Row};
use super::{Context, Error, Format};
use crate::error::Error as CommandError;
use crate::table::print;

/// Between two looks when nothing has been told.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What comes in so short a time is shown together.
const TOGETHER: Duration = Duration::from_millis(100);

/// Runs until Ctrl-C, or nobody reads any more.
pub(super) async fn run(
    context: &Context<'_>,
    session: &Session,
    filter: &str,
    columns: &Chosen,
) -> Result<(), CommandError> {
    context.only_stdout()?;
    let mut shown = Shown::new(columns.clone(), context.flags.format);
    let follow = async {
        let mut ticks = interval(LOOK_EVERY);
        loop {
            let mut changes = changes(session).await?;
            loop {
                let text = shown.refresh(get(session, filter).await?);
                if !text.is_empty() {
                    print(text.as_bytes())?;
                }
                // Both are cancel-safe: a stream keeps what it has not handed out.
                let ended = tokio::select! {
                    event = changes.message() => !matches!(event, Ok(Some(_))),
                    _ = ticks.tick() => false,
                };
                if ended {
                    say!(note: "the leader of the cluster changes");
                    break;
                }
                sleep(TOGETHER).await;
            }
        }
    };
    tokio::select! {
        ended = follow => ended,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(CommandError::Signal),
    }
}

/// A stream that says something whenever a node has changed.
async fn changes(session: &Session) -> Result<Streaming<WatchEvent>, Error> {
    let kind = watch_request::Kind::NodesInCluster(watch_request::NodesInCluster {});
    let call =
        async |channel| curator(channel).watch(WatchRequest { kind: Some(kind.clone()) }).await;
    session.again("watch nodes", call).await
}

/// What is on the screen.
#[derive(Debug)]
struct Shown {
    columns: Chosen,
    format: Format,
    /// Set with the first lines: the columns stay where they are.
    layout: Option<Layout>,
    nodes: BTreeMap<String, (Row, Node)>,
}

impl Shown {
    fn new(columns: Chosen, format: Format) -> Self {
        Self { columns, format, layout: None, nodes: BTreeMap::new() }
    }

    /// What is to be printed now that these are the nodes.
    fn refresh(&mut self, nodes: Vec<Node>) -> String {
        let now: BTreeMap<_, _> =
            nodes.into_iter().map(|node| (view::id(&node), (Row::of(&node), node))).collect();
        let mut text = String::new();
        let layout = self.layout.get_or_insert_with(|| {
            let rows: Vec<_> = now.values().map(|(row, _)| row.clone()).collect();
            let layout = Layout::roomy(&rows, &self.columns);
            if self.format == Format::Plaintext {
                text = layout.heading();
            }
            layout
        });
        let news = |(id, (row, _)): &(&String, &(Row, Node))| {
            self.nodes.get(*id).is_none_or(|(before, _)| row.differs(before, &self.columns))
        };
        for (_, (row, node)) in now.iter().filter(news) {
            text += &one(self.format, layout, row, view::value(node));
        }
        for (_, (row, node)) in self.nodes.iter().filter(|(id, _)| !now.contains_key(*id)) {
            let mut value = view::value(node);
            value["state"] = view::GONE.into();
            text += &one(self.format, layout, &row.gone(), value);
        }
        self.nodes = now;
        text
    }
}

fn one(format: Format, layout: &Layout, row: &Row, value: Value) -> String {
    match format {
        Format::Plaintext => layout.row(row),
        // A line each, so that programs need not wait for an end.
        Format::Json => value.to_string() + "\n",
        Format::Yaml => "---\n".to_owned() + &format.render("", &value),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use orlop_proto::metropolis::proto::common::NodeState;

    use super::super::view::tests::node;
    use super::*;

    #[test]
    fn only_news_are_printed_and_columns_stay() {
        let columns = Chosen::parse("node id,state").unwrap();
        let mut shown = Shown::new(columns.clone(), Format::Plaintext);
        let (a, b) = (node(1, NodeState::Up), node(2, NodeState::New));
        let (id_a, id_b) = (view::id(&a), view::id(&b));
        let line = |id: &str, state: &str| format!("{id:<43}   {state:<14}   \n");
        let first = line("NODE ID", "STATE") + &line(&id_a, "UP");
        assert_eq!(shown.refresh(vec![a.clone()]), first);
        assert_eq!(shown.refresh(vec![a.clone()]), "");
        assert_eq!(shown.refresh(vec![a.clone(), b.clone()]), line(&id_b, "NEW"));
        let approved = Node { state: NodeState::Standby.into(), ..b };
        assert_eq!(shown.refresh(vec![a.clone(), approved]), line(&id_b, "STANDBY"));
        assert_eq!(shown.refresh(vec![a.clone()]), line(&id_b, "GONE"));
        let mut shown = Shown::new(columns, Format::Json);
        let line = shown.refresh(vec![a]);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((value["id"].as_str(), line.lines().count()), (Some(&*id_a), 1));
        let line = shown.refresh(Vec::new());
        assert!(line.contains("\"state\":\"GONE\""), "{line}");
    }
}
