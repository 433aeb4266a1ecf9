//! From the global flags and the client configuration to a [`Client`]; and `config`, which shows and
//! changes that file.

use std::path::{Path, PathBuf};

use orlop_config::client::{self, Configuration, Context};

use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::options::Global;
use crate::table::{Cell, Column, Output, Table, escape};

/// A client for the nodes that the command line and the client configuration name.
///
/// # Errors
/// When the configuration cannot be read, or has nothing usable for the context.
pub(crate) fn open(global: &Global) -> Result<Client, Error> {
    let path = path(global)?;
    let configuration = Configuration::read(&path)?;
    let (name, context) = choose(&path, &configuration, global.context.as_deref())?;
    let endpoints = endpoints(&path, name, context, &global.endpoints)?;
    let nodes = if global.nodes.is_empty() { &context.nodes } else { &global.nodes };
    let broken = |source| Error::Identity { path: path.clone(), context: name.to_owned(), source };
    let tls =
        orlop_pki::tls::client_config(&context.ca, Some((&context.crt, context.key.expose())))
            .map_err(broken)?;
    let identity = format!("context {name:?} of {}", path.display());
    Client::new(endpoints, nodes.clone(), identity, tls)
}

/// Where the client configuration is: `--talosconfig`, `$TALOSCONFIG`, `~/.talos/config`.
fn path(global: &Global) -> Result<PathBuf, Error> {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let given = global.talosconfig.clone().or_else(|| named("TALOSCONFIG"));
    given.or_else(|| Some(named("HOME")?.join(".talos/config"))).ok_or(Error::NoHome)
}

/// The endpoints given, else those of the context.
fn endpoints(
    path: &Path,
    name: &str,
    context: &Context,
    given: &[Endpoint],
) -> Result<Vec<Endpoint>, Error> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    if context.endpoints.is_empty() {
        return Err(Error::NoEndpoint { path: path.to_owned(), context: name.to_owned() });
    }
    Ok(context.endpoints.iter().map(|typed| typed.parse()).collect::<Result<_, _>>()?)
}

/// The context asked for, else the file's current one.
fn choose<'a>(
    path: &Path,
    configuration: &'a Configuration,
    asked: Option<&str>,
) -> Result<(&'a str, &'a Context), Error> {
    let known = || configuration.contexts.keys().cloned().collect();
    let path = path.to_owned();
    let name = asked.unwrap_or(&configuration.context);
    if name.is_empty() {
        return Err(Error::NoContext { path, known: known() });
    }
    let found = configuration.contexts.get_key_value(name);
    let unknown = || Error::UnknownContext { path, name: name.to_owned(), known: known() };
    found.map(|(name, context)| (name.as_str(), context)).ok_or_else(unknown)
}

/// `config`: the client configuration itself.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the contexts
    #[command(visible_alias = "get-contexts")]
    Contexts(Output),
    /// Choose the current context
    #[command(visible_alias = "use-context")]
    Context {
        /// Its name
        name: String,
    },
    /// Set the endpoints of the context
    #[command(visible_alias = "endpoints")]
    Endpoint {
        /// Where to connect, tried in turn
        #[arg(required = true)]
        endpoints: Vec<Endpoint>,
    },
    /// Set the nodes that are meant when none are given; none clears them
    #[command(visible_alias = "nodes")]
    Node {
        /// Addresses or names, without port
        nodes: Vec<String>,
    },
    /// Add the contexts of another file, and make its current one current
    Merge {
        /// The other client configuration
        from: PathBuf,
    },
}

/// Shows or changes the client configuration.
pub(crate) fn run(global: &Global, command: &Command) -> Result<(), Error> {
    let path = path(global)?;
    let mut configuration = match (Configuration::read(&path), command) {
        // The first one may be merged into nothing.
        (Err(client::Error::Missing { .. }), Command::Merge { .. }) => Configuration::default(),
        (configuration, _) => configuration?,
    };
    match command {
        Command::Contexts(output) => return contexts(&configuration).print(*output),
        Command::Context { name } => {
            choose(&path, &configuration, Some(name))?;
            configuration.context = name.clone();
        }
        Command::Endpoint { endpoints } => {
            let endpoints = endpoints.iter().map(ToString::to_string).collect();
            chosen(&path, &mut configuration, global)?.endpoints = endpoints;
        }
        Command::Node { nodes } => {
            chosen(&path, &mut configuration, global)?.nodes.clone_from(nodes);
        }
        Command::Merge { from } => {
            for (old, new) in configuration.merge(Configuration::read(from)?) {
                say!("renamed talosconfig context {old:?} -> {new:?}");
            }
        }
    }
    Ok(configuration.write(&path)?)
}

fn chosen<'a>(
    path: &Path,
    configuration: &'a mut Configuration,
    global: &Global,
) -> Result<&'a mut Context, Error> {
    let (name, _) = choose(path, configuration, global.context.as_deref())?;
    let name = name.to_owned();
    Ok(configuration.contexts.get_mut(&name).expect("chosen among them above"))
}

const COLUMNS: &[Column] =
    &[("CURRENT", "current"), ("NAME", "name"), ("ENDPOINTS", "endpoints"), ("NODES", "nodes")];

fn contexts(configuration: &Configuration) -> Table {
    let mut table = Table::new(COLUMNS);
    for (name, context) in &configuration.contexts {
        let current = *name == configuration.context;
        table.push([
            Cell::shown(if current { "*" } else { "" }, current),
            Cell::text(name),
            Cell::shown(escape(&context.endpoints.join(",")), context.endpoints.clone()),
            Cell::shown(escape(&context.nodes.join(",")), context.nodes.clone()),
        ]);
    }
    table
}
