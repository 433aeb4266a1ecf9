//! `k8s`: a kubeconfig that reaches the cluster's Kubernetes as the owner (spec of the cluster API, §7.4).
//!
//! A node with the role KubernetesController has a proxy on port 6444 that takes the owner's certificate.
//! kubectl gets it from us each time (`k8scredplugin`): the key is in one file only.

use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_pki::cluster::{Shown, client_config};
use orlop_pki::encoding::certificate_to_pem;
use orlop_rpc::leader::Place;
use serde_json::json;
use serde_yaml::{Mapping, Value};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::session::seeds;
use super::{Context, Error, trust};
use crate::error::Error as CommandError;
use crate::kubeconfig::{merge, parse, written};
use crate::table::print;

/// The proxy's port.
const PORT: u16 = 6444;
/// How long it may take to greet us.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Put the cluster into the kubeconfig: $KUBECONFIG, else ~/.kube/config
    #[command(visible_alias = "kubeconfig")]
    Configure {
        /// What the context, and what it consists of, is called
        #[arg(long = "context-name", default_value = "metroctl", value_name = "NAME")]
        name: String,
    },
}

pub(super) async fn run(
    context: &Context<'_>,
    Command::Configure { name }: &Command,
) -> Result<(), CommandError> {
    let owner = context.keyring.owner()?;
    let seeds = seeds(context)?;
    let authority = trust::authority(context, &seeds).await?;
    let identity = Some((&owner.certificate[..], &owner.key));
    let tls = client_config(&authority, identity, None).map_err(Error::Keys)?;
    // Bounded by what was typed: a first endpoint is always there.
    let place = Place { host: seeds[0].host.clone(), port: PORT };
    let greeted = async {
        let host = ServerName::try_from(place.host.clone()).map_err(io::Error::other)?;
        let stream = TcpStream::connect((&*place.host, place.port)).await?;
        let stream = TlsConnector::from(tls).connect(host, stream).await?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let shown = shown.first().map(|own| Shown::read(own)).transpose();
        shown.map_err(io::Error::other)?.ok_or_else(|| io::Error::other("no certificate"))
    };
    let greeted = timeout(LIMIT, greeted).await;
    let unserved = |why: String| Error::NoKubernetes(place.to_string(), why);
    let shown = greeted
        .map_err(|_| unserved(format!("no answer within {} s", LIMIT.as_secs())))?
        .map_err(|error| unserved(error.to_string()))?;
    let [server] = &shown.dns[..] else {
        return Err(unserved("its certificate does not have exactly one name".to_owned()).into());
    };
    let path = path()?;
    let there = match fs::read_to_string(&path) {
        Ok(text) => {
            let whose = path.display().to_string();
            parse(&text).map_err(|why| CommandError::Kubeconfig { whose, why })?
        }
        Err(source) if source.kind() == io::ErrorKind::NotFound => Mapping::new(),
        Err(source) => return Err(CommandError::Read { path, source }),
    };
    let arguments = arguments(context)?;
    let text = written(&joined(there, name, &place, server, &authority, &arguments));
    let failed = |source| CommandError::Write { path: path.clone(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    orlop_rt::replace(&path, 0o600, text.as_bytes()).map_err(failed)?;
    say!("wrote {}; try: kubectl --context {name} get namespaces", path.display());
    Ok(())
}

/// What kubectl runs for our certificate; it must find the folder from wherever it is.
fn arguments(context: &Context<'_>) -> Result<Vec<String>, CommandError> {
    let folder = context.keyring.folder();
    let folder = std::path::absolute(folder)
        .map_err(|source| CommandError::Read { path: folder.to_owned(), source })?;
    let folder = folder.display().to_string();
    Ok(["cluster", "k8scredplugin", "--config", &folder].map(str::to_owned).into())
}

fn path() -> Result<PathBuf, CommandError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(list) = variable("KUBECONFIG") {
        // Of several, kubectl writes to the first.
        if let Some(first) = std::env::split_paths(&list).next() {
            return Ok(first);
        }
    }
    let home = variable("HOME").ok_or(CommandError::NoKubeconfigHome)?;
    Ok(PathBuf::from(home).join(".kube/config"))
}

/// `there` with our entries; the context becomes the current one where there is none.
fn joined(
    there: Mapping,
    name: &str,
    place: &Place,
    server: &str,
    authority: &[u8],
    arguments: &[String],
) -> Mapping {
    let data = STANDARD.encode(certificate_to_pem(authority));
    let chosen = there.get("current-context").and_then(Value::as_str).unwrap_or_default();
    let current = if chosen.is_empty() { name } else { chosen }.to_owned();
    let ours = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": name, "cluster": {
            "server": format!("https://{place}"),
            "certificate-authority-data": data,
            "tls-server-name": server,
        }}],
        "users": [{ "name": name, "user": { "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "orlopctl",
            "args": arguments,
            "interactiveMode": "Never",
        }}}],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name }}],
        "current-context": current,
    });
    let ours = serde_yaml::to_value(&ours).expect("what is JSON is YAML");
    let Value::Mapping(ours) = ours else { unreachable!("an object is a mapping") };
    merge(there, ours, true).0
}

/// What kubectl asks for each time.
pub(super) fn credentials(context: &Context<'_>) -> Result<(), CommandError> {
    let owner = context.keyring.owner()?;
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {
            "clientCertificateData": certificate_to_pem(&owner.certificate),
            "clientKeyData": owner.key.to_plain_pem().expose(),
        },
    });
    print(format!("{credential}\n").as_bytes())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn our_context_is_put_beside_others_and_chosen_where_there_is_none() {
        let place = Place { host: "fd00::1".to_owned(), port: PORT };
        let arguments = ["cluster".to_owned(), "k8scredplugin".to_owned()];
        let ours = joined(Mapping::new(), "metroctl", &place, "metropolis-1", b"ca", &arguments);
        crate::golden::check("cluster-kubeconfig.yaml", &written(&ours));
        let other = "current-context: other\nusers:\n- {name: metroctl, user: {token: old}}\n- {name: x, user: {}}\n";
        let both = joined(parse(other).unwrap(), "metroctl", &place, "n", b"ca", &arguments);
        assert_eq!(both["current-context"], "other");
        assert_eq!(both["users"].as_sequence().unwrap().len(), 2, "{both:?}");
    }
}
