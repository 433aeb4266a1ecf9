//! `cluster`: the operator's side of the cluster API, as `metroctl` has it and a little more.
//!
//! Who we are lies in a folder that both programs share ([`keyring`]). The cluster's authority is pinned
//! there when it is first met ([`trust`]), and calls go to the curator that leads ([`session`]); those of
//! [`machines`] to a node itself. What is printed is made by pure functions ([`view`], [`log_lines`]).

mod configure;
mod error;
mod keyring;
mod kubernetes;
mod log_lines;
mod machines;
mod nodes;
mod parameters;
mod session;
mod status;
mod takeover;
mod trust;
mod view;
mod watching;

use std::path::PathBuf;

use crate::error::Error as CommandError;
use crate::options::Global;
use crate::table;

pub(crate) use error::Error;

/// Flags of all these commands.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Which cluster")]
pub(crate) struct Flags {
    /// Folder of the owner's key and certificate; else $XDG_CONFIG_HOME/metroctl, else ~/.config/metroctl
    #[arg(long, global = true, value_name = "DIR")]
    config: Option<PathBuf>,
    /// How to print what is found
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// Write it to a file
    #[arg(short, long, global = true, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Take the authority that the first curator names, and keep it, without asking
    #[arg(long, global = true)]
    insecure_accept_and_persist_first_encountered_ca: bool,
    /// Say which curator leads
    #[arg(long, global = true)]
    verbose: bool,
    /// Port of the nodes' own API
    #[arg(long, global = true, hide = true, default_value_t = orlop_rpc::leader::NODE_PORT)]
    node_port: u16,
}

/// For people, or for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns, or lines.
    #[default]
    Plaintext,
    /// Exact values.
    Json,
    /// The same.
    Yaml,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Become the owner of a cluster that was founded with our key
    Takeownership,
    /// Show nodes, all their columns
    Nodes(nodes::ListOptions),
    /// Look after nodes
    #[command(subcommand)]
    Node(nodes::Command),
    /// Let a node in that waits for it; without an id, list those that wait
    Approve(nodes::ApproveOptions),
    /// What new nodes show to be listened to
    #[command(subcommand)]
    Ticket(status::TicketCommand),
    /// Show what the cluster is like, and who may be asked
    Info,
    /// Show who leads, the members of the consensus, and how many nodes are well
    Status,
    /// Show and change what can be changed of the cluster
    #[command(subcommand)]
    Configure(configure::Command),
    /// Read the log of a node
    Logs(machines::LogOptions),
    /// Write what a new machine needs to found a cluster, or to join this one
    InstallParams(parameters::Options),
    /// Take the owner's certificate elsewhere
    #[command(subcommand)]
    Cert(takeover::CertCommand),
    /// Reach the cluster's Kubernetes
    #[command(subcommand)]
    K8s(kubernetes::Command),
    /// Print the owner's certificate and key for kubectl
    #[command(hide = true)]
    K8scredplugin,
}

/// Where a command finds what it needs.
struct Context<'a> {
    global: &'a Global,
    flags: &'a Flags,
    keyring: keyring::Keyring,
}

/// Runs one of the commands.
///
/// # Errors
/// Why it could not be done, wholly or for some nodes.
pub(crate) fn run(global: &Global, options: &Options) -> Result<(), CommandError> {
    let Options { flags, command } = options;
    if !global.nodes.is_empty() {
        let why = "these commands take the ids of nodes as arguments; curators are named with -e";
        return Err(CommandError::Impossible { flag: "--nodes", why });
    }
    let keyring = keyring::Keyring::open(flags.config.as_deref())?;
    let context = Context { global, flags, keyring };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(CommandError::Runtime)?;
    runtime.block_on(carry_out(&context, command))
}

async fn carry_out(context: &Context<'_>, command: &Command) -> Result<(), CommandError> {
    match command {
        Command::Takeownership => takeover::run(context).await,
        Command::Nodes(options) => nodes::list(context, options).await,
        Command::Node(command) => nodes::run(context, command).await,
        Command::Approve(options) => nodes::approve(context, options).await,
        Command::Ticket(command) => status::ticket(context, command).await,
        Command::Info => status::info(context).await,
        Command::Status => status::run(context).await,
        Command::Configure(command) => configure::run(context, command).await,
        Command::Logs(options) => machines::logs(context, options).await,
        Command::InstallParams(options) => parameters::run(context, options).await,
        Command::Cert(command) => takeover::certificate(context, command),
        Command::K8s(command) => kubernetes::run(context, command).await,
        Command::K8scredplugin => kubernetes::credentials(context),
    }
}

impl Context<'_> {
    /// Prints what was found, or writes it where `--output` says.
    fn print(&self, text: &str) -> Result<(), CommandError> {
        match &self.flags.output {
            None => table::print(text.as_bytes()),
            // A ticket is nobody else's.
            Some(path) => orlop_rt::replace(path, 0o600, text.as_bytes())
                .map_err(|source| CommandError::Write { path: path.clone(), source }),
        }
    }

    /// What has no end is not written to a file.
    fn only_stdout(&self) -> Result<(), CommandError> {
        match &self.flags.output {
            None => Ok(()),
            Some(_) => {
                let why = "what goes on and on is printed on stdout";
                Err(CommandError::Impossible { flag: "--output", why })
            }
        }
    }

    /// As [`Self::print`]: lines for people, or a value for programs.
    fn tell(&self, lines: &str, value: &serde_json::Value) -> Result<(), CommandError> {
        self.print(&self.flags.format.render(lines, value))
    }
}

impl Format {
    fn render(self, lines: &str, value: &serde_json::Value) -> String {
        match self {
            Self::Plaintext => lines.to_owned(),
            Self::Json => {
                let json = serde_json::to_string_pretty(value);
                json.expect("strings and numbers are always JSON") + "\n"
            }
            Self::Yaml => {
                serde_yaml::to_string(value).expect("strings and numbers are always YAML")
            }
        }
    }
}
