//! From the global flags and the client configuration to a [`Client`]; and `config`, which shows and
//! changes that file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use orlop_config::client::{self, Configuration, Context};
use orlop_pki::{Secret, certificate, encoding};
use orlop_proto::machine::GenerateClientConfigurationRequest;
use time::OffsetDateTime;

use crate::client::{Client, machine};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::generate::create;
use crate::options::Global;
use crate::table::{Cell, Column, Output, Table, align, escape, print};
use crate::units::parse_duration;

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
    let expired = match certificate::validity(&context.crt) {
        Ok((_, until)) if until < SystemTime::now() => {
            format!(", which expired on {}", OffsetDateTime::from(until).date())
        }
        // What cannot be read has been told above.
        _ => String::new(),
    };
    let identity = format!("context {name:?} of {}{expired}", path.display());
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
    /// Add a context of PEM files; -e and -n say where it leads
    Add(AddOptions),
    /// Ask a control plane for a new client configuration
    New(NewOptions),
    /// Show who we are to the cluster of the context
    Info,
    /// Remove a context
    Remove {
        /// Its name
        name: String,
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct AddOptions {
    /// Its name
    name: String,
    /// The machines' authority
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// Our certificate
    #[arg(long, value_name = "FILE")]
    crt: PathBuf,
    /// The certificate's key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Replace a context of that name
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct NewOptions {
    /// The file to write
    #[arg(default_value = "talosconfig")]
    path: PathBuf,
    /// What its owner may do
    #[arg(long, value_delimiter = ',', default_value = "os:admin", value_name = "ROLE")]
    roles: Vec<String>,
    /// How long it is good
    #[arg(long, value_parser = parse_lifetime, default_value = "8760h", value_name = "DURATION")]
    crt_ttl: prost_types::Duration,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
}

/// A lifetime as the API has it: more than nothing, and no more than a protobuf duration holds.
fn parse_lifetime(text: &str) -> Result<prost_types::Duration, String> {
    /// Ten thousand years (google/protobuf/duration.proto).
    const MOST_SECONDS: u64 = 315_576_000_000;
    let lifetime = parse_duration(text)?;
    if lifetime.is_zero() || lifetime.as_secs() > MOST_SECONDS {
        return Err(format!(
            "{text:?} is no lifetime; it must be more than 0s and at most 87660000h"
        ));
    }
    lifetime.try_into().map_err(|_| format!("{text:?} is longer than a lifetime can be"))
}

/// Shows or changes the client configuration.
pub(crate) fn run(global: &Global, command: &Command) -> Result<(), Error> {
    let path = path(global)?;
    let mut configuration = match (Configuration::read(&path), command) {
        // The first one may be put into nothing.
        (Err(client::Error::Missing { .. }), Command::Merge { .. } | Command::Add(_)) => {
            Configuration::default()
        }
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
        Command::Add(options) => add(&path, &mut configuration, global, options)?,
        Command::Info => {
            let (name, context) = choose(&path, &configuration, global.context.as_deref())?;
            let said = info(name, context, SystemTime::now());
            let broken = |source| Error::Identity { path, context: name.to_owned(), source };
            return print(said.map_err(broken)?.as_bytes());
        }
        Command::Remove { name, dry_run } => {
            choose(&path, &configuration, Some(name))?;
            if *dry_run {
                say!("would remove context {name:?} of {}", path.display());
                return Ok(());
            }
            configuration.contexts.remove(name);
            if configuration.context == *name {
                configuration.context.clear();
                say!(note: "{name:?} was the current context; choose another: orlopctl config context NAME");
            }
        }
        Command::New(_) => unreachable!("done with a node"),
    }
    Ok(configuration.write(&path)?)
}

/// Adds a context of files, which must belong together; the first one becomes current.
fn add(
    path: &Path,
    configuration: &mut Configuration,
    global: &Global,
    options: &AddOptions,
) -> Result<(), Error> {
    let AddOptions { name, ca, crt, key, force } = options;
    if configuration.contexts.contains_key(name) && !force {
        return Err(Error::ContextExists { path: path.to_owned(), name: name.clone() });
    }
    let read = |path: &PathBuf| {
        fs::read_to_string(path).map_err(|source| Error::Read { path: path.clone(), source })
    };
    let context = Context {
        endpoints: global.endpoints.iter().map(ToString::to_string).collect(),
        nodes: global.nodes.clone(),
        ca: read(ca)?,
        crt: read(crt)?,
        key: Secret::new(read(key)?),
    };
    orlop_pki::tls::client_config(&context.ca, Some((&context.crt, context.key.expose())))
        .map_err(Error::Files)?;
    configuration.contexts.insert(name.clone(), context);
    if configuration.context.is_empty() {
        configuration.context.clone_from(name);
    }
    Ok(())
}

/// Who we are, until when, and what is meant when nothing is said.
///
/// # Errors
/// When the certificate cannot be read.
fn info(name: &str, context: &Context, now: SystemTime) -> Result<String, orlop_pki::Error> {
    let or_not = |list: &[String], none: &str| match list {
        [] => none.to_owned(),
        list => escape(&list.join(", ")),
    };
    let roles = match encoding::certificates(&context.crt)?.first() {
        Some(der) => certificate::organizations(der)?,
        None => Vec::new(),
    };
    let until = certificate::not_after(&context.crt)?;
    let when = match until.duration_since(now) {
        Ok(left) => format!("in {}", span(left)),
        Err(gone) => format!("{} ago", span(gone.duration())),
    };
    let lines = [
        ["Current context:", &escape(name)],
        ["Nodes:", &or_not(&context.nodes, "not defined")],
        ["Endpoints:", &or_not(&context.endpoints, "not defined")],
        ["Roles:", &or_not(&roles, "none")],
        ["Certificate expires:", &format!("{when} ({})", OffsetDateTime::from(until).date())],
    ];
    Ok(align(&lines))
}

/// A length of time in its largest unit, rounded down.
fn span(duration: Duration) -> String {
    let hours = duration.as_secs() / 3600;
    let (count, unit) = match hours {
        0 => (duration.as_secs() / 60, "minute"),
        1..48 => (hours, "hour"),
        48..17520 => (hours / 24, "day"),
        _ => (hours / 8760, "year"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// Writes the client configuration that a control plane makes.
pub(crate) async fn new(client: &Client, options: &NewOptions) -> Result<(), Error> {
    let NewOptions { path, roles, crt_ttl, force } = options;
    client.one_node("config new")?;
    if path.exists() && !force {
        return Err(Error::Exists { path: path.clone() });
    }
    let request =
        GenerateClientConfigurationRequest { roles: roles.clone(), crt_ttl: Some(*crt_ttl) };
    let call = async |node| machine(node).generate_client_configuration(request.clone()).await;
    for answer in client.ask("make a client configuration", call).await? {
        let text = String::from_utf8_lossy(&answer.message.talosconfig).into_owned();
        // Only what we would take ourselves is worth keeping.
        let mut made = client::parse("the node's client configuration", &text)
            .map_err(client::Error::Problems)?;
        for context in made.contexts.values_mut().filter(|context| context.endpoints.is_empty()) {
            context.endpoints = client.endpoints();
        }
        let failed = |source| Error::Write { path: path.clone(), source };
        create(path, &made.to_yaml()).map_err(failed)?;
        print(format!("created {}\n", path.display()).as_bytes())?;
    }
    Ok(())
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use orlop_pki::{Authority, KeyKind, Leaf, Usage};

    use super::*;

    #[test]
    fn who_we_are_is_told_with_how_long_it_lasts() {
        let hour = Duration::from_secs(3600);
        let now = SystemTime::UNIX_EPOCH + 500_000 * hour;
        let ca = Authority::generate("talos", KeyKind::Ed25519, 9000 * hour, now).unwrap();
        let leaf = Leaf {
            common_name: "a".to_owned(),
            organizations: vec!["os:reader".to_owned(), "os:etcd:backup".to_owned()],
            usage: Usage::Client,
            dns: vec![],
            ips: vec![],
            lifetime: 73 * hour,
        };
        let pair = ca.issue(&leaf, now).unwrap();
        let endpoints = vec!["a".to_owned(), "b".to_owned()];
        let context = Context { endpoints, crt: pair.crt, ..Context::default() };
        let said = info("trial", &context, now).unwrap();
        let expected = "Current context:       trial\nNodes:                 not defined\n\
             Endpoints:             a, b\nRoles:                 os:reader, os:etcd:backup\n\
             Certificate expires:   in 3 days (2027-01-18)\n";
        assert_eq!(said, expected);
        let said = info("trial", &context, now + 75 * hour).unwrap();
        assert!(said.ends_with("2 hours ago (2027-01-18)\n"), "{said}");
        assert!(info("trial", &Context::default(), now).is_err());
    }

    #[test]
    fn a_lifetime_that_no_message_holds_is_refused() {
        assert_eq!(parse_lifetime("8760h").unwrap().seconds, 8760 * 3600);
        assert_eq!(parse_lifetime("87660000h").unwrap().seconds, 315_576_000_000);
        for bad in ["0s", "87660001h", "9999999999999999h", "x"] {
            parse_lifetime(bad).unwrap_err();
        }
    }

    #[test]
    fn lengths_of_time_have_one_unit() {
        let hours = |hours: u64| span(Duration::from_secs(hours * 3600));
        assert_eq!(
            [0, 1, 47, 48, 87_600].map(hours),
            ["0 minutes", "1 hour", "47 hours", "2 days", "10 years"]
        );
    }
}
