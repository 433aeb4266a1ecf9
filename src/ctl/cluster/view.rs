//! Nodes as they are printed (spec of the cluster API, §7.3).

use std::fmt::Write as _;

use orlop_pki::cluster::{KEY_LENGTH, node_id};
use orlop_proto::metropolis::proto::api::{Node, node::Health};
use orlop_proto::metropolis::proto::common::{NodeRoles, NodeState, NodeTpmUsage};
use orlop_proto::version::spec::{Version, version::git_information::BuildTreeState};
use serde_json::{Map, Value, json};

use super::{Error, Format};
use crate::table::escape;

/// The headings, in their order.
pub(super) const COLUMNS: [&str; 9] =
    ["NODE ID", "STATE", "ADDRESS", "HEALTH", "ROLES", "TPM", "VERSION", "HEARTBEAT", "LABELS"];
const STATE: usize = 1;
const ADDRESS: usize = 2;
const HEALTH: usize = 3;
/// Which of them is left out when no node has a value for it.
const VERSION: usize = 6;
const HEARTBEAT: usize = 7;
/// The state of a node that is forgotten.
pub(super) const GONE: &str = "GONE";
/// Between columns.
const GAP: usize = 3;

/// A node's line: a text for each of [`COLUMNS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row([String; COLUMNS.len()]);

/// The columns somebody chose; none: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chosen(Vec<usize>);

impl Chosen {
    /// `node id,state`, in any case. They are printed in the order of the table.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let mut chosen = Vec::new();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let known = COLUMNS.iter().position(|column| column.eq_ignore_ascii_case(name));
            chosen.push(known.ok_or_else(|| Error::Column(name.to_owned()))?);
        }
        Ok(Self(chosen))
    }

    fn has(&self, column: usize) -> bool {
        self.0.is_empty() || self.0.contains(&column)
    }
}

impl Row {
    pub(super) fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let address = status.map(|status| status.external_address.as_str());
        let address = address.filter(|address| !address.is_empty()).unwrap_or("unknown");
        let version = status.and_then(|status| status.version.as_ref()).map(version);
        let texts = [
            id(node),
            state(node).to_owned(),
            address.to_owned(),
            health(node).to_owned(),
            roles(node.roles.as_ref()).join(","),
            tpm(node).to_owned(),
            version.unwrap_or_default(),
            format!("{}s", heartbeat(node)),
            labels(node).map(|(key, value)| format!("{key}:{value}")).collect::<Vec<_>>().join(","),
        ];
        Self(texts.map(|text| escape(&text)))
    }

    /// The line of a node that is forgotten.
    pub(super) fn gone(&self) -> Self {
        let mut texts = self.0.clone();
        texts[STATE] = GONE.to_owned();
        Self(texts)
    }

    /// Whether one of the columns shows something new: how long ago the last heartbeat was is no news.
    pub(super) fn differs(&self, other: &Self, chosen: &Chosen) -> bool {
        let news = |column: usize| column != HEARTBEAT && self.0[column] != other.0[column];
        (0..COLUMNS.len()).any(|column| chosen.has(column) && news(column))
    }
}

/// How wide the columns are, and which there are.
#[derive(Clone, Debug)]
pub(super) struct Layout(Vec<(usize, usize)>);

impl Layout {
    /// Fits all these rows. The version is there when a node has told one.
    pub(super) fn of(rows: &[Row], chosen: &Chosen) -> Self {
        let told = rows.iter().any(|row| !row.0[VERSION].is_empty());
        let shown = |column: &usize| chosen.has(*column) && (*column != VERSION || told);
        let width = |column: usize| {
            let texts = rows.iter().map(|row| row.0[column].chars().count());
            texts.chain([COLUMNS[column].len()]).max().unwrap_or_default()
        };
        Self((0..COLUMNS.len()).filter(shown).map(|column| (column, width(column))).collect())
    }

    /// With room for what these columns can still become.
    pub(super) fn roomy(rows: &[Row], chosen: &Chosen) -> Self {
        let Self(mut columns) = Self::of(rows, chosen);
        for (column, width) in &mut columns {
            let longest = match *column {
                STATE => "DECOMMISSIONED",
                ADDRESS => "255.255.255.255",
                HEALTH => "HEARTBEAT_TIMEOUT",
                _ => "",
            };
            *width = longest.len().max(*width);
        }
        Self(columns)
    }

    pub(super) fn heading(&self) -> String {
        self.line(COLUMNS)
    }

    pub(super) fn row(&self, row: &Row) -> String {
        self.line(row.0.each_ref().map(String::as_str))
    }

    fn line(&self, texts: [&str; COLUMNS.len()]) -> String {
        let mut line = String::new();
        for (column, width) in &self.0 {
            // Writing to a string does not fail.
            let _ = write!(line, "{:<width$}{:GAP$}", texts[*column], "");
        }
        line + "\n"
    }
}

/// The table of nodes, or what programs get.
pub(super) fn nodes(nodes: &[Node], chosen: &Chosen, format: Format) -> String {
    if format != Format::Plaintext {
        return format.render("", &nodes.iter().map(value).collect::<Vec<_>>().into());
    }
    let rows: Vec<_> = nodes.iter().map(Row::of).collect();
    let layout = Layout::of(&rows, chosen);
    rows.iter().fold(layout.heading(), |text, row| text + &layout.row(row))
}

/// A node for programs.
pub(super) fn value(node: &Node) -> Value {
    let status = node.status.as_ref();
    let address = status.map(|status| status.external_address.clone());
    let told = address.filter(|address| !address.is_empty());
    let labels: Map<_, _> =
        labels(node).map(|(key, value)| (key.to_owned(), value.into())).collect();
    // The largest time means that there was none.
    let since = node.time_since_heartbeat.filter(|since| since.seconds < i64::MAX / 1_000_000_000);
    json!({
        "id": id(node),
        "pubkey": hex(&node.pubkey),
        "state": state(node),
        "address": told,
        "health": health(node),
        "roles": roles(node.roles.as_ref()),
        "tpm": node.tpm_usage().as_str_name().trim_start_matches("NODE_TPM_USAGE_"),
        "version": status.and_then(|status| status.version.as_ref()).map(version),
        "heartbeat_seconds": since.map(|since| since.seconds),
        "labels": labels,
    })
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Its id; of old clusters that do not tell it, that of its key.
pub(super) fn id(node: &Node) -> String {
    match <&[u8; KEY_LENGTH]>::try_from(&node.pubkey[..]) {
        Ok(key) if node.id.is_empty() => node_id(key),
        _ => node.id.clone(),
    }
}

/// `NEW`, `STANDBY`, `UP`, `DECOMMISSIONED`.
pub(super) fn state(node: &Node) -> &'static str {
    let state = NodeState::try_from(node.state).unwrap_or_default();
    state.as_str_name().trim_start_matches("NODE_STATE_")
}

/// `UNKNOWN`, `HEALTHY`, `HEARTBEAT_TIMEOUT`.
pub(super) fn health(node: &Node) -> &'static str {
    let health = Health::try_from(node.health).unwrap_or_default();
    health.as_str_name().trim_start_matches("HEALTH_")
}

/// By name, sorted.
pub(super) fn roles(roles: Option<&NodeRoles>) -> Vec<&'static str> {
    let Some(roles) = roles else { return Vec::new() };
    let all = [
        ("ConsensusMember", roles.consensus_member.is_some()),
        ("KubernetesController", roles.kubernetes_controller.is_some()),
        ("KubernetesWorker", roles.kubernetes_worker.is_some()),
    ];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

fn tpm(node: &Node) -> &'static str {
    match NodeTpmUsage::try_from(node.tpm_usage) {
        Ok(NodeTpmUsage::PresentAndUsed) => "yes",
        Ok(NodeTpmUsage::PresentButUnused) => "unused",
        Ok(NodeTpmUsage::NotPresent) => "no",
        Ok(NodeTpmUsage::Invalid) | Err(_) => "unk",
    }
}

fn heartbeat(node: &Node) -> i64 {
    node.time_since_heartbeat.unwrap_or_default().seconds
}

fn labels(node: &Node) -> impl Iterator<Item = (&str, &str)> {
    let pairs = node.labels.iter().flat_map(|labels| &labels.pairs);
    pairs.map(|pair| (pair.key.as_str(), pair.value.as_str()))
}

/// `1.2.3-dev4.g0123abcd.dirty`, `1.2.3-nostamp`.
fn version(version: &Version) -> String {
    let release = version.release.unwrap_or_default();
    let mut text = format!("{}.{}.{}-", release.major, release.minor, release.patch);
    let Some(git) = &version.git_information else { return text + "nostamp" };
    if git.commits_since_release > 0 {
        let _ = write!(text, "dev{}.", git.commits_since_release);
    }
    let commit: String = git.commit_hash.chars().take(8).collect();
    let _ = write!(text, "g{commit}");
    if git.build_tree_state() != BuildTreeState::Clean {
        text.push_str(".dirty");
    }
    text
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) mod tests {
    use orlop_proto::metropolis::proto::common::node_labels::Pair;
    use orlop_proto::metropolis::proto::common::{NodeLabels, NodeStatus, node_roles};
    use orlop_proto::version::spec::version::{GitInformation, Release};
    use prost_types::Duration;

    use super::*;
    use crate::golden;

    pub(in crate::cluster) fn node(seed: u8, state: NodeState) -> Node {
        let pubkey = vec![seed; KEY_LENGTH];
        Node {
            id: node_id(&[seed; KEY_LENGTH]),
            pubkey,
            state: state.into(),
            health: Health::Unknown.into(),
            roles: Some(NodeRoles::default()),
            labels: Some(NodeLabels::default()),
            time_since_heartbeat: Some(Duration { seconds: 9_223_372_036, nanos: 854_775_807 }),
            ..Node::default()
        }
    }

    fn three() -> [Node; 3] {
        let pair = |key: &str, value: &str| Pair { key: key.to_owned(), value: value.to_owned() };
        let git = GitInformation {
            commit_hash: "0123abcdef".to_owned(),
            commits_since_release: 4,
            build_tree_state: BuildTreeState::Dirty.into(),
        };
        let release = Some(Release { major: 1, minor: 2, patch: 3 });
        let up = Node {
            status: Some(NodeStatus {
                external_address: "10.0.0.2".to_owned(),
                version: Some(Version { release, git_information: Some(git) }),
                ..NodeStatus::default()
            }),
            health: Health::Healthy.into(),
            roles: Some(NodeRoles {
                kubernetes_worker: Some(node_roles::KubernetesWorker {}),
                consensus_member: Some(node_roles::ConsensusMember::default()),
                kubernetes_controller: Some(node_roles::KubernetesController {}),
            }),
            labels: Some(NodeLabels { pairs: vec![pair("rack", "7"), pair("zone", "a")] }),
            tpm_usage: NodeTpmUsage::PresentAndUsed.into(),
            time_since_heartbeat: Some(Duration { seconds: 2, nanos: 999_999_999 }),
            ..node(1, NodeState::Up)
        };
        let standby = Node {
            id: String::new(),
            tpm_usage: NodeTpmUsage::NotPresent.into(),
            ..node(2, NodeState::Standby)
        };
        let hostile = Node {
            status: Some(NodeStatus {
                external_address: "\u{1b}[2J".to_owned(),
                ..NodeStatus::default()
            }),
            tpm_usage: NodeTpmUsage::PresentButUnused.into(),
            ..node(3, NodeState::New)
        };
        [up, standby, hostile]
    }

    #[test]
    fn nodes_are_shown_as_other_clients_show_them() {
        let all = Chosen::default();
        golden::check("cluster-nodes.txt", &nodes(&three(), &all, Format::Plaintext));
        golden::check("cluster-nodes.json", &nodes(&three(), &all, Format::Json));
        golden::check("cluster-nodes.yaml", &nodes(&three(), &all, Format::Yaml));
        let some = Chosen::parse("state, Node ID").unwrap();
        golden::check("cluster-nodes-columns.txt", &nodes(&three(), &some, Format::Plaintext));
    }

    #[test]
    fn without_any_version_there_is_no_such_column() {
        let text = nodes(&three()[1..], &Chosen::default(), Format::Plaintext);
        assert!(!text.contains("VERSION") && text.contains("HEARTBEAT"), "{text}");
        let error = Chosen::parse("id").unwrap_err();
        assert!(error.hint().unwrap().contains("NODE ID, STATE"));
    }

    #[test]
    fn versions_are_written_as_they_are_stamped() {
        let release = Some(Release { major: 1, minor: 2, patch: 3 });
        let git = |commits: u64, state: BuildTreeState| GitInformation {
            commit_hash: "0123abcdef".to_owned(),
            commits_since_release: commits,
            build_tree_state: state.into(),
        };
        let cases = [
            (None, "1.2.3-nostamp"),
            (Some(git(0, BuildTreeState::Clean)), "1.2.3-g0123abcd"),
            (Some(git(7, BuildTreeState::Clean)), "1.2.3-dev7.g0123abcd"),
            (Some(git(0, BuildTreeState::Dirty)), "1.2.3-g0123abcd.dirty"),
            (Some(git(0, BuildTreeState::Invalid)), "1.2.3-g0123abcd.dirty"),
        ];
        for (git_information, text) in cases {
            assert_eq!(version(&Version { release, git_information }), text);
        }
    }

    #[test]
    fn a_heartbeat_is_no_news() {
        let [mut up, ..] = three();
        let before = Row::of(&up);
        up.time_since_heartbeat = None;
        let all = Chosen::default();
        assert!(!Row::of(&up).differs(&before, &all));
        up.health = Health::HeartbeatTimeout.into();
        assert!(Row::of(&up).differs(&before, &all));
        assert!(!Row::of(&up).differs(&before, &Chosen::parse("state,heartbeat").unwrap()));
    }
}
