//! `nodes` and `node`: who is in the cluster, and what becomes of them.

use std::fmt::Write as _;

use orlop_proto::metropolis::proto::api::{
    ApproveNodeRequest, DecommissionNodeRequest, DeleteNodeRequest, GetNodesRequest, Node,
    UpdateNodeLabelsRequest, UpdateNodeRolesRequest, decommission_node_request,
    delete_node_request, reboot_request, update_node_labels_request, update_node_roles_request,
};
use orlop_proto::metropolis::proto::common::NodeState;

use super::session::{Session, drain, management};
use super::view::{self, Chosen};
use super::{Context, Error, Format, machines, watching};
use crate::error::Error as CommandError;

#[derive(Debug, clap::Args)]
pub(crate) struct ListOptions {
    /// Only these
    ids: Vec<String>,
    /// Only those for which this holds, in CEL: 'node.state == NODE_STATE_UP && node.health == HEALTH_HEALTHY'
    #[arg(long, default_value = "", hide_default_value = true, value_name = "CEL")]
    pub(super) filter: String,
    /// Only these columns, as "node id,state,labels"
    #[arg(long, default_value = "", hide_default_value = true, value_name = "COLUMNS")]
    pub(super) columns: String,
    /// Go on, and show nodes as they arrive, change and go
    #[arg(short, long)]
    watch: bool,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the ids of nodes
    List(ListOptions),
    /// Show nodes, all their columns
    Describe(ListOptions),
    /// Let nodes in that wait for it
    Approve(ApproveOptions),
    /// Give roles to nodes, and take them away
    SetRole(RoleOptions),
    /// Give something to nodes
    #[command(subcommand)]
    Add(RoleCommand),
    /// Take something from nodes
    #[command(subcommand)]
    Remove(RoleCommand),
    /// Set and remove labels of a node
    Label(LabelOptions),
    /// End the membership of nodes without roles: they forget their keys
    Decommission(TargetOptions),
    /// Forget nodes
    Delete(DeleteOptions),
    /// Reboot nodes
    Reboot(RebootOptions),
    /// Switch nodes off
    Poweroff(TargetOptions),
    /// Read the log of a node
    Logs(machines::LogOptions),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ApproveOptions {
    /// The nodes' ids; without one, those that wait are listed
    ids: Vec<String>,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum RoleCommand {
    /// A role
    Role {
        /// ConsensusMember (cm), KubernetesController (kc) or KubernetesWorker (kw)
        role: String,
        /// The nodes' ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct RoleOptions {
    /// A role to give: ConsensusMember (cm), KubernetesController (kc) or KubernetesWorker (kw)
    #[arg(long, value_delimiter = ',', value_name = "ROLE")]
    add: Vec<String>,
    /// A role to take away
    #[arg(long, value_delimiter = ',', value_name = "ROLE")]
    remove: Vec<String>,
    /// The nodes' ids
    #[arg(required = true)]
    ids: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LabelOptions {
    /// The node's id
    id: String,
    /// KEY=VALUE sets a label, KEY- removes it
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    changes: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TargetOptions {
    /// The nodes' ids
    #[arg(required = true)]
    ids: Vec<String>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeleteOptions {
    #[command(flatten)]
    targets: TargetOptions,
    /// Even those that have roles
    #[arg(long)]
    bypass_has_roles: bool,
    /// Even those that are up
    #[arg(long)]
    bypass_not_decommissioned: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RebootOptions {
    #[command(flatten)]
    targets: TargetOptions,
    /// By kexec, past the firmware
    #[arg(long, conflicts_with = "firmware")]
    kexec: bool,
    /// Through the firmware, which is usual
    #[arg(long)]
    firmware: bool,
    /// Into the release before this one
    #[arg(long)]
    rollback: bool,
}

pub(super) async fn run(context: &Context<'_>, command: &Command) -> Result<(), CommandError> {
    match command {
        Command::List(options) => {
            let session = Session::open(context).await?;
            let nodes = chosen(&session, options).await?;
            let ids: Vec<_> = nodes.iter().map(view::id).collect();
            let lines = ids.iter().fold(String::new(), |text, id| text + id + "\n");
            context.tell(&lines, &ids.into())
        }
        Command::Describe(options) => list(context, options).await,
        Command::Approve(options) => approve(context, options).await,
        Command::SetRole(RoleOptions { add, remove, ids }) => {
            set_roles(context, add, remove, ids).await
        }
        Command::Add(RoleCommand::Role { role, ids }) => {
            set_roles(context, std::slice::from_ref(role), &[], ids).await
        }
        Command::Remove(RoleCommand::Role { role, ids }) => {
            set_roles(context, &[], std::slice::from_ref(role), ids).await
        }
        Command::Label(options) => label(context, options).await,
        Command::Decommission(options) => decommission(context, options).await,
        Command::Delete(options) => delete(context, options).await,
        Command::Reboot(RebootOptions { targets, kexec, firmware: _, rollback }) => {
            let kind = match kexec {
                true => reboot_request::Type::Kexec,
                false => reboot_request::Type::Firmware,
            };
            let next = match rollback {
                true => reboot_request::NextBoot::StartRollback,
                false => reboot_request::NextBoot::StartNormal,
            };
            machines::reboot(context, &targets.ids, targets.dry_run, kind, next).await
        }
        Command::Poweroff(TargetOptions { ids, dry_run }) => {
            let (kind, next) =
                (reboot_request::Type::PowerOff, reboot_request::NextBoot::StartNormal);
            machines::reboot(context, ids, *dry_run, kind, next).await
        }
        Command::Logs(options) => machines::logs(context, options).await,
    }
}

pub(super) async fn list(context: &Context<'_>, options: &ListOptions) -> Result<(), CommandError> {
    let columns = Chosen::parse(&options.columns)?;
    let session = Session::open(context).await?;
    if options.watch {
        return watching::run(context, &session, &filter(options)?, &columns).await;
    }
    let nodes = chosen(&session, options).await?;
    context.print(&view::nodes(&nodes, &columns, context.flags.format))
}

/// The nodes that the command line names; one that is named must be there.
async fn chosen(session: &Session, options: &ListOptions) -> Result<Vec<Node>, CommandError> {
    let nodes = get(session, &filter(options)?).await?;
    let missing = named(options).find(|id| !nodes.iter().any(|node| view::id(node) == **id));
    match missing {
        // With a filter, a node that is left out is no surprise.
        Some(id) if options.filter.is_empty() => Err(Error::NoNode(id.clone()).into()),
        _ => Ok(nodes),
    }
}

/// `all` means what none means.
fn named(options: &ListOptions) -> impl Iterator<Item = &String> {
    let all = options.ids.iter().any(|id| id == "all");
    options.ids.iter().filter(move |_| !all)
}

/// The filter given, and the ids.
fn filter(options: &ListOptions) -> Result<String, Error> {
    let ids = named(options).map(|id| by_id(id)).collect::<Result<Vec<_>, _>>()?.join(" || ");
    Ok(match (ids.is_empty(), options.filter.is_empty()) {
        (true, _) => options.filter.clone(),
        (false, true) => ids,
        (false, false) => format!("({ids}) && ({})", options.filter),
    })
}

/// The expression that keeps one node.
fn by_id(id: &str) -> Result<String, Error> {
    let sound = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if id.is_empty() || !id.chars().all(sound) {
        return Err(Error::Value { what: "node's id", given: id.to_owned() });
    }
    Ok(format!("node.id == \"{id}\""))
}

/// Nodes for which a filter holds, by id.
pub(super) async fn get(session: &Session, filter: &str) -> Result<Vec<Node>, Error> {
    let what = "list nodes";
    let call = async |channel| {
        management(channel).get_nodes(GetNodesRequest { filter: filter.to_owned() }).await
    };
    let stream = session.again(what, call).await?;
    let mut nodes = Vec::new();
    drain(what, stream, |node| nodes.push(node)).await?;
    Ok(nodes)
}

/// One node.
pub(super) async fn one(session: &Session, id: &str) -> Result<Node, Error> {
    let mut nodes = get(session, &by_id(id)?).await?;
    nodes.pop().ok_or_else(|| Error::NoNode(id.to_owned()))
}

/// Does something to each node, tells what became of it, and fails if it failed for one.
pub(super) async fn each(
    what: &'static str,
    ids: &[String],
    act: impl AsyncFn(&str) -> Result<String, CommandError>,
) -> Result<(), CommandError> {
    let mut failed = Vec::new();
    for id in ids {
        match act(id).await {
            Ok(done) => say!("{done}"),
            Err(error) => {
                say!(error: "{id}: {}", orlop_rt::Chain(&error));
                error.hint().iter().for_each(|hint| say!(hint: "{hint}"));
                failed.push(error);
            }
        }
    }
    match (failed.pop(), ids.len()) {
        (None, _) => Ok(()),
        (Some(_), all) => Err(Error::Some { what, failed: failed.len() + 1, all }.into()),
    }
}

pub(super) async fn approve(
    context: &Context<'_>,
    ApproveOptions { ids }: &ApproveOptions,
) -> Result<(), CommandError> {
    let session = Session::open(context).await?;
    if ids.is_empty() {
        let waiting = get(&session, "node.state == NODE_STATE_NEW").await?;
        if waiting.is_empty() && context.flags.format == Format::Plaintext {
            say!("no node waits to be approved");
            return Ok(());
        }
        let columns = Chosen::default();
        return context.print(&view::nodes(&waiting, &columns, context.flags.format));
    }
    each("approve", ids, async |id| {
        let node = one(&session, id).await?;
        let pubkey = &node.pubkey;
        let call = async |channel| {
            let request = ApproveNodeRequest { pubkey: pubkey.clone() };
            management(channel).approve_node(request).await
        };
        session.again("approve", call).await?;
        Ok(match node.state() {
            NodeState::New => format!("{id} approved"),
            _ => format!("{id} was approved already"),
        })
    })
    .await
}

/// What is to become of roles; unset: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Roles {
    consensus_member: Option<bool>,
    kubernetes_controller: Option<bool>,
    kubernetes_worker: Option<bool>,
}

impl Roles {
    fn of(add: &[String], remove: &[String]) -> Result<Self, Error> {
        let mut roles = Self::default();
        let adding = add.iter().map(|role| (role, true));
        for (name, wanted) in adding.chain(remove.iter().map(|role| (role, false))) {
            let role = match name.to_ascii_lowercase().as_str() {
                "consensusmember" | "cm" => &mut roles.consensus_member,
                "kubernetescontroller" | "kc" => &mut roles.kubernetes_controller,
                "kubernetesworker" | "kw" => &mut roles.kubernetes_worker,
                _ => return Err(Error::Role(name.clone())),
            };
            *role = Some(wanted);
        }
        if roles == Self::default() { Err(Error::NoChange) } else { Ok(roles) }
    }
}

async fn set_roles(
    context: &Context<'_>,
    add: &[String],
    remove: &[String],
    ids: &[String],
) -> Result<(), CommandError> {
    let roles = Roles::of(add, remove)?;
    let session = Session::open(context).await?;
    each("set roles", ids, async |id| {
        by_id(id)?;
        let Roles { consensus_member, kubernetes_controller, kubernetes_worker } = roles;
        let call = async |channel| {
            let node = Some(update_node_roles_request::Node::Id(id.to_owned()));
            let request = UpdateNodeRolesRequest {
                node,
                consensus_member,
                kubernetes_controller,
                kubernetes_worker,
            };
            management(channel).update_node_roles(request).await
        };
        session.once("set roles", call).await?;
        Ok(format!("{id} updated"))
    })
    .await
}

async fn label(context: &Context<'_>, options: &LabelOptions) -> Result<(), CommandError> {
    let (upsert, delete) = labels(&options.changes)?;
    by_id(&options.id)?;
    let session = Session::open(context).await?;
    let call = async |channel| {
        let request = UpdateNodeLabelsRequest {
            node: Some(update_node_labels_request::Node::Id(options.id.clone())),
            upsert: upsert.clone(),
            delete: delete.clone(),
        };
        management(channel).update_node_labels(request).await
    };
    // Labels that are set twice are the same.
    session.again("label", call).await?;
    say!("{} labelled", options.id);
    Ok(())
}

type LabelChanges = (Vec<update_node_labels_request::Pair>, Vec<String>);

fn labels(changes: &[String]) -> Result<LabelChanges, Error> {
    let (mut upsert, mut delete) = (Vec::new(), Vec::new());
    for change in changes {
        match (change.split_once('='), change.strip_suffix('-')) {
            (Some((key, value)), _) => upsert.push(update_node_labels_request::Pair {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            (None, Some(key)) => delete.push(key.to_owned()),
            (None, None) => {
                let what = "change of a label; write KEY=VALUE, or KEY- to remove it";
                return Err(Error::Value { what, given: change.clone() });
            }
        }
    }
    Ok((upsert, delete))
}

async fn decommission(
    context: &Context<'_>,
    TargetOptions { ids, dry_run }: &TargetOptions,
) -> Result<(), CommandError> {
    let session = Session::open(context).await?;
    each("decommission", ids, async |id| {
        let node = one(&session, id).await?;
        if *dry_run {
            return Ok(foreseen("decommission", &node, why_not_decommission(&node)));
        }
        let call = async |channel| {
            let node = Some(decommission_node_request::Node::Id(id.to_owned()));
            management(channel).decommission_node(DecommissionNodeRequest { node }).await
        };
        session.again("decommission", call).await?;
        Ok(format!("{id} decommissioned"))
    })
    .await
}

async fn delete(context: &Context<'_>, options: &DeleteOptions) -> Result<(), CommandError> {
    let DeleteOptions { targets, bypass_has_roles, bypass_not_decommissioned } = options;
    let bypass = (*bypass_has_roles, *bypass_not_decommissioned);
    let session = Session::open(context).await?;
    each("delete", &targets.ids, async |id| {
        let node = one(&session, id).await?;
        if targets.dry_run {
            return Ok(foreseen("delete", &node, why_not_delete(&node, bypass)));
        }
        let call = async |channel| {
            let has_roles = delete_node_request::SafetyBypassHasRoles {};
            let not_decommissioned = delete_node_request::SafetyBypassNotDecommissioned {};
            let request = DeleteNodeRequest {
                node: Some(delete_node_request::Node::Id(id.to_owned())),
                safety_bypass_has_roles: bypass.0.then_some(has_roles),
                safety_bypass_not_decommissioned: bypass.1.then_some(not_decommissioned),
            };
            management(channel).delete_node(request).await
        };
        session.once("delete", call).await?;
        Ok(format!("{id} deleted"))
    })
    .await
}

/// What `--dry-run` says of a node.
pub(super) fn foreseen(verb: &str, node: &Node, why_not: Option<&'static str>) -> String {
    let mut text = format!("would {verb} {}, which is {}", view::id(node), view::state(node));
    let roles = view::roles(node.roles.as_ref()).join(",");
    // Writing to a string does not fail.
    if !roles.is_empty() {
        let _ = write!(text, " and has {roles}");
    }
    if let Some(why) = why_not {
        let _ = write!(text, "; the cluster would refuse: {why}");
    }
    text
}

fn why_not_decommission(node: &Node) -> Option<&'static str> {
    match node.state() {
        NodeState::Decommissioned => None,
        NodeState::Up if view::roles(node.roles.as_ref()).is_empty() => None,
        NodeState::Up => {
            Some("it has roles; orlopctl cluster node set-role --remove ROLE takes them")
        }
        _ => Some("it is not up; orlopctl cluster node delete forgets it"),
    }
}

fn why_not_delete(
    node: &Node,
    (has_roles, not_decommissioned): (bool, bool),
) -> Option<&'static str> {
    let roles = view::roles(node.roles.as_ref());
    if !roles.is_empty() && !has_roles {
        return Some("it has roles, and --bypass-has-roles is not given");
    }
    if node.state() == NodeState::Up && !not_decommissioned {
        return Some("it is up, and --bypass-not-decommissioned is not given");
    }
    None
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use orlop_proto::metropolis::proto::common::{NodeRoles, node_roles};

    use super::super::view::tests::node;
    use super::*;

    fn options(ids: &[&str], filter: &str) -> ListOptions {
        ListOptions {
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            filter: filter.to_owned(),
            columns: String::new(),
            watch: false,
        }
    }

    #[test]
    fn ids_become_a_filter_and_cannot_smuggle_one_in() {
        let filter = |ids: &[&str], given: &str| filter(&options(ids, given));
        assert_eq!(filter(&[], "").unwrap(), "");
        assert_eq!(filter(&["all", "x"], "a").unwrap(), "a");
        assert_eq!(filter(&["x"], "").unwrap(), "node.id == \"x\"");
        let both = "(node.id == \"x\" || node.id == \"y\") && (a || b)";
        assert_eq!(filter(&["x", "y"], "a || b").unwrap(), both);
        for id in ["", "x\" || \"\" == \"", "a b", "a/b"] {
            assert!(filter(&[id], "").is_err(), "{id}");
        }
    }

    #[test]
    fn roles_have_short_names_and_at_least_one_is_meant() {
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let roles = Roles::of(&names(&["CM", "KubernetesWorker"]), &names(&["kc"])).unwrap();
        let expected = Roles {
            consensus_member: Some(true),
            kubernetes_controller: Some(false),
            kubernetes_worker: Some(true),
        };
        assert_eq!(roles, expected);
        assert!(matches!(Roles::of(&names(&["king"]), &[]), Err(Error::Role(_))));
        assert!(matches!(Roles::of(&[], &[]), Err(Error::NoChange)));
    }

    #[test]
    fn labels_are_set_and_removed_as_with_kubectl() {
        let changes = ["a=b".to_owned(), "c=".to_owned(), "d-".to_owned(), "e=f=g".to_owned()];
        let (upsert, delete) = labels(&changes).unwrap();
        let pairs: Vec<_> = upsert.iter().map(|pair| (&*pair.key, &*pair.value)).collect();
        assert_eq!(pairs, [("a", "b"), ("c", ""), ("e", "f=g")]);
        assert_eq!(delete, ["d"]);
        assert!(labels(&["x".to_owned()]).is_err());
    }

    #[test]
    fn a_dry_run_foresees_what_the_cluster_would_say() {
        let new = node(1, NodeState::New);
        let up = node(2, NodeState::Up);
        let mut busy = node(3, NodeState::Up);
        let worker = Some(node_roles::KubernetesWorker {});
        busy.roles = Some(NodeRoles { kubernetes_worker: worker, ..NodeRoles::default() });
        let gone = node(4, NodeState::Decommissioned);
        assert_eq!(why_not_delete(&new, (false, false)), None);
        assert_eq!(why_not_delete(&gone, (false, false)), None);
        assert!(why_not_delete(&up, (true, false)).is_some_and(|why| why.contains("is up")));
        assert_eq!(why_not_delete(&up, (false, true)), None);
        assert!(why_not_delete(&busy, (false, true)).is_some_and(|why| why.contains("roles")));
        assert_eq!(why_not_delete(&busy, (true, true)), None);
        assert_eq!(why_not_decommission(&up), None);
        assert_eq!(why_not_decommission(&gone), None);
        assert!(why_not_decommission(&busy).is_some() && why_not_decommission(&new).is_some());
        let text = foreseen("delete", &busy, why_not_delete(&busy, (false, false)));
        let id = view::id(&busy);
        let expected = format!(
            "would delete {id}, which is UP and has KubernetesWorker; the cluster would refuse: it has \
             roles, and --bypass-has-roles is not given"
        );
        assert_eq!(text, expected);
    }
}
