//! What is asked of a node itself, at its own API: its log, a reboot.

use orlop_proto::metropolis::proto::api::logs_request::{BacklogMode, StreamMode};
use orlop_proto::metropolis::proto::api::node_management_client::NodeManagementClient;
use orlop_proto::metropolis::proto::api::{LogsRequest, Node, RebootRequest, reboot_request};
use orlop_proto::metropolis::proto::common::{LogFilter, log_filter};
use tonic::transport::Channel;

use super::nodes::{each, foreseen, one};
use super::session::{Session, node_channel, of_node};
use super::{Context, Error, Format, log_lines};
use crate::error::Error as CommandError;
use crate::table::print;

#[derive(Debug, clap::Args)]
pub(crate) struct LogOptions {
    /// The node's id
    id: String,
    /// Go on with what is logged from now on
    #[arg(short, long)]
    follow: bool,
    /// What of it, as root.etcd; else all
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    dn: String,
    /// Only what is of --dn itself, not what is below
    #[arg(long)]
    exact: bool,
    /// Of where a line comes from, show the last part alone
    #[arg(short, long)]
    concise: bool,
    /// How many entries of before; -1: all there are
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "COUNT")]
    backlog: i64,
}

/// The API of a node, which must be the one that is meant.
async fn management(
    context: &Context<'_>,
    session: &Session,
    node: &Node,
) -> Result<NodeManagementClient<Channel>, CommandError> {
    let id = super::view::id(node);
    let address = node.status.as_ref().map(|status| status.external_address.as_str());
    let address = address.filter(|address| !address.is_empty());
    let address = address.ok_or_else(|| Error::NoAddress(id.clone()))?;
    let channel = node_channel(context, &session.authority, &id, address)?;
    Ok(NodeManagementClient::new(channel).max_decoding_message_size(orlop_rpc::MAX_MESSAGE))
}

pub(super) async fn reboot(
    context: &Context<'_>,
    ids: &[String],
    dry_run: bool,
    kind: reboot_request::Type,
    next: reboot_request::NextBoot,
) -> Result<(), CommandError> {
    let (what, done) = match kind {
        reboot_request::Type::PowerOff => ("switch off", "switches itself off"),
        _ => ("reboot", "reboots"),
    };
    let session = Session::open(context).await?;
    each(what, ids, async |id| {
        let node = one(&session, id).await?;
        if dry_run {
            return Ok(foreseen(what, &node, None));
        }
        let mut node = management(context, &session, &node).await?;
        let request = RebootRequest { r#type: kind.into(), next_boot: next.into() };
        of_node(what, node.reboot(request)).await?;
        Ok(format!("{id} {done}"))
    })
    .await
}

pub(super) async fn logs(context: &Context<'_>, options: &LogOptions) -> Result<(), CommandError> {
    context.only_stdout()?;
    let session = Session::open(context).await?;
    let node = one(&session, &options.id).await?;
    let mut node = management(context, &session, &node).await?;
    let what = "read the log";
    let mut stream = of_node(what, node.logs(request(options))).await?;
    let follow = async {
        while let Some(message) = stream.message().await.transpose() {
            let message = message.map_err(|status| Error::refused(what, &status))?;
            let entries = message.backlog_entries.iter().chain(&message.stream_entries);
            let text: String = match context.flags.format {
                Format::Plaintext => {
                    entries.map(|entry| log_lines::lines(entry, options.concise)).collect()
                }
                Format::Json => {
                    entries.map(|entry| log_lines::value(entry).to_string() + "\n").collect()
                }
                Format::Yaml => entries
                    .map(|entry| {
                        "---\n".to_owned() + &Format::Yaml.render("", &log_lines::value(entry))
                    })
                    .collect(),
            };
            print(text.as_bytes())?;
        }
        Ok(())
    };
    tokio::select! {
        ended = follow => ended,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(CommandError::Signal),
    }
}

fn request(options: &LogOptions) -> LogsRequest {
    let (mode, count) = match options.backlog {
        ..0 => (BacklogMode::All, 0),
        0 => (BacklogMode::Disable, 0),
        count => (BacklogMode::Count, count),
    };
    let stream = if options.follow { StreamMode::Unbuffered } else { StreamMode::Disable };
    let children = log_filter::Filter::WithChildren(log_filter::WithChildren {});
    let filters = match options.exact {
        true => Vec::new(),
        false => vec![LogFilter { filter: Some(children) }],
    };
    LogsRequest {
        dn: options.dn.clone(),
        filters,
        backlog_mode: mode.into(),
        backlog_count: count,
        stream_mode: stream.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_become_the_request() {
        let options = LogOptions {
            id: "x".to_owned(),
            follow: true,
            dn: "root".to_owned(),
            exact: false,
            concise: false,
            backlog: -1,
        };
        let all = request(&options);
        assert_eq!(
            (all.backlog_mode(), all.stream_mode()),
            (BacklogMode::All, StreamMode::Unbuffered)
        );
        assert_eq!((all.filters.len(), &*all.dn), (1, "root"));
        let some = request(&LogOptions { backlog: 3, exact: true, follow: false, ..options });
        assert_eq!((some.backlog_mode(), some.backlog_count), (BacklogMode::Count, 3));
        assert_eq!((some.stream_mode(), some.filters.len()), (StreamMode::Disable, 0));
        let none = request(&LogOptions { backlog: 0, ..options_of(some) });
        assert_eq!(none.backlog_mode(), BacklogMode::Disable);
    }

    fn options_of(request: LogsRequest) -> LogOptions {
        LogOptions {
            id: String::new(),
            follow: false,
            dn: request.dn,
            exact: true,
            concise: false,
            backlog: request.backlog_count,
        }
    }
}
