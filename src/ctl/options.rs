//! The command line: global flags and the table of commands.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::endpoint::Endpoint;
use crate::stranger::Stranger;
use crate::{
    apply, capture, clock, cluster, containers, context, copy, dashboard, disks, etcd, events,
    files, generate, health, images, kubeconfig, logs, memory, meta, metrics, mounts, netstat,
    network, power, processes, restart, services, support, timeline, upgrade, validate, version,
    wipe,
};

/// Drives nodes through their API.
#[derive(Debug, Parser)]
#[command(name = "orlopctl", version = orlop_rt::version::TAG)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster and which nodes: the same for all commands.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Which nodes")]
pub(crate) struct Global {
    /// Client configuration; else $TALOSCONFIG, else ~/.talos/config
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) talosconfig: Option<PathBuf>,
    /// Context of the client configuration; else its current one
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Nodes that are meant, comma-separated or repeated; else the context's; else the first endpoint
    #[arg(short, long, global = true, value_delimiter = ',', value_name = "NODE")]
    pub(crate) nodes: Vec<String>,
    /// Where to connect, tried in turn: HOST, HOST:PORT or [IPv6]:PORT; else the context's
    #[arg(short, long, global = true, value_delimiter = ',', value_name = "ENDPOINT")]
    pub(crate) endpoints: Vec<Endpoint>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Give a machine configuration to nodes
    #[command(visible_alias = "apply")]
    ApplyConfig(apply::ApplyOptions),
    /// Start the cluster on this one node
    Bootstrap(etcd::BootstrapOptions),
    /// Look after a cluster: its nodes, their roles, its ownership
    Cluster(cluster::Options),
    /// Show and change the client configuration
    #[command(subcommand)]
    Config(context::Command),
    /// List containers
    #[command(visible_alias = "c")]
    Containers(containers::Options),
    /// Copy files and folders of a node
    #[command(visible_alias = "cp")]
    Copy(copy::Options),
    /// Watch nodes live: load, memory, rates, services, processes, log
    Dashboard(dashboard::Options),
    /// List disks
    Disks(disks::Options),
    /// Read the kernel's log
    Dmesg(logs::DmesgOptions),
    /// Look after etcd
    #[command(subcommand)]
    Etcd(etcd::Command),
    /// Follow what nodes do
    Events(events::Options),
    /// Generate configurations
    #[command(subcommand)]
    Gen(generate::Command),
    /// Wait until nodes are healthy, and say for what it waits
    Health(health::Options),
    /// Look after images
    #[command(subcommand)]
    Image(images::Command),
    /// Print the references of images
    Images(images::Whose),
    /// List network interfaces and their addresses
    Interfaces(network::Options),
    /// Fetch a configuration for kubectl
    Kubeconfig(kubeconfig::Options),
    /// List files
    #[command(visible_alias = "ls")]
    List(files::ListOptions),
    /// Read the log of a service
    Logs(logs::Options),
    /// Make and change machine configurations
    #[command(subcommand, visible_alias = "mc")]
    Machineconfig(generate::MachineCommand),
    /// Show memory usage
    #[command(visible_aliases = ["m", "free"])]
    Memory(memory::Options),
    /// Change what nodes keep in their partition META
    #[command(subcommand)]
    Meta(meta::Command),
    /// Print the figures of nodes as Prometheus reads them
    Metrics(metrics::Options),
    /// List file systems
    #[command(visible_alias = "mount")]
    Mounts(mounts::Options),
    /// List sockets
    Netstat(netstat::Options),
    /// Capture what passes a link
    Pcap(capture::Options),
    /// List running processes
    #[command(visible_aliases = ["p", "ps"])]
    Processes(processes::Options),
    /// Print a file
    Read(files::ReadOptions),
    /// Reboot nodes
    Reboot(power::Wait),
    /// Bring a lost control plane back (generation v0.8)
    Recover(etcd::RecoverOptions),
    /// Wipe what nodes keep, and switch them off
    Reset(apply::ResetOptions),
    /// Restart a container
    Restart(restart::Options),
    /// Start the release before this one again
    Rollback,
    /// List network routes
    #[command(visible_alias = "route")]
    Routes(network::Options),
    /// Show, start, stop or restart services
    #[command(visible_alias = "services")]
    Service(services::Options),
    /// Shut nodes down
    Shutdown(power::Wait),
    /// Show what containers use
    Stats(containers::Options),
    /// Collect what helps to understand what nodes do, without secrets
    #[command(visible_alias = "crashdump")]
    Support(support::Options),
    /// Compare the clocks of nodes with a time server
    Time(clock::Options),
    /// Show how the boot went, step by step
    Timeline(timeline::Options),
    /// Install another release beside the one that runs, and start it
    Upgrade(upgrade::Options),
    /// Show how much room files take
    #[command(visible_alias = "du")]
    Usage(files::UsageOptions),
    /// Check a machine configuration as a node would
    Validate(validate::Options),
    /// Show the version of this program and of the nodes
    Version(version::Options),
    /// Clear disks
    #[command(subcommand)]
    Wipe(wipe::Command),
    /// Print a script that completes commands in a shell
    Completion {
        #[arg(value_enum)]
        shell: Shell,
    },
}

impl Command {
    /// How a node in maintenance is meant, if one is.
    pub(crate) fn stranger(&self) -> Option<&Stranger> {
        let stranger = match self {
            Self::ApplyConfig(options) => &options.stranger,
            Self::Disks(options) => &options.stranger,
            Self::Meta(command) => command.stranger(),
            Self::Version(options) => &options.stranger,
            Self::Wipe(command) => command.stranger(),
            _ => return None,
        };
        stranger.insecure.then_some(stranger)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    /// Commands that do something, as they are typed.
    fn leaves(command: &clap::Command, before: &str, all: &mut Vec<String>) {
        for command in command.get_subcommands() {
            let path = format!("{before}{}", command.get_name());
            if command.has_subcommands() {
                leaves(command, &format!("{path} "), all);
            } else {
                all.push(path);
            }
        }
    }

    #[test]
    fn every_command_is_in_the_documentation() {
        let text = include_str!("../../docs/compatibility.md");
        let section =
            text.split("\n## ").find(|section| section.starts_with("Commands\n")).unwrap();
        let (done, missing) = section.split_once("\nNot there: ").unwrap();
        let mut commands = Vec::new();
        leaves(&Options::command(), "", &mut commands);
        assert!(commands.len() > 60, "{commands:?}");
        for command in &commands {
            assert!(done.contains(&format!("`{command}`")), "{command} is not told of");
            assert!(!missing.contains(&format!("`{command}`")), "{command} is there");
        }
        // Those of the specification (§10.1), both generations.
        let wanted = "memory processes mounts containers stats service interfaces routes disks time \
            version list usage copy read logs dmesg events health dashboard apply-config bootstrap \
            reboot shutdown rollback reset upgrade upgrade-k8s recover kubeconfig restart support \
            images validate cluster get edit patch netstat diskfree pcap cgroups rotate-ca debug \
            conformance";
        let below = [
            "etcd members",
            "etcd leave",
            "etcd forfeit-leadership",
            "etcd status",
            "etcd snapshot",
            "etcd defrag",
            "etcd remove-member",
            "config endpoint",
            "config node",
            "config context",
            "config contexts",
            "config add",
            "config merge",
            "config new",
            "config info",
            "config remove",
            "config proxy-url",
            "gen config",
            "gen ca",
            "gen key",
            "gen csr",
            "gen crt",
            "gen keypair",
            "gen secrets",
            "gen secureboot",
            "machineconfig gen",
            "machineconfig patch",
            "image list",
            "image pull",
            "image remove",
            "meta write",
            "meta delete",
            "wipe disk",
            "inject serviceaccount",
            "inspect dependencies",
        ];
        for command in wanted.split_whitespace().chain(below) {
            let there = commands.iter().any(|have| have == command);
            let told = missing.contains(&format!("`{command}`"));
            assert!(there != told, "{command}");
        }
    }
}
