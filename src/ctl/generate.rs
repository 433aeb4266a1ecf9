//! `gen config`: the configurations of a new cluster, and the client configuration for it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use orlop_config::client;
use orlop_config::generate::{self, Bundle, Mirror, generate};
use orlop_config::machine::{self, Mode};

use crate::error::Error;
use crate::keys;
use crate::options::Global;
use crate::patch;
use crate::table::print;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make controlplane.yaml, worker.yaml and talosconfig, with new secrets
    ///
    /// The endpoints given with -e become those of the client configuration.
    Config(Box<Options>),
    /// Make the secrets of a new cluster, for gen config --with-secrets
    Secrets(SecretsOptions),
    /// Make an authority: NAME.crt, NAME.key and NAME.sha256
    Ca(keys::CaOptions),
    /// Make an Ed25519 key: NAME.key
    Key(keys::KeyOptions),
    /// Make a request for a key
    Csr(keys::CsrOptions),
    /// Make a certificate of a request: NAME.crt
    Crt(keys::CrtOptions),
    /// Make a key and a certificate that nobody else vouches for
    Keypair(keys::PairOptions),
}

/// `machineconfig`: machine configurations as files.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum MachineCommand {
    /// The same as gen config
    Gen(Box<Options>),
    /// Change a machine configuration
    Patch(PatchOptions),
}

#[derive(Debug, clap::Args)]
pub(crate) struct PatchOptions {
    /// The machine configuration
    file: PathBuf,
    /// A part to lay over it or a JSON patch, as text or @FILE; may be repeated
    #[arg(short, long = "patch", required = true, value_name = "PATCH")]
    patches: Vec<String>,
    /// Where to write the result; else stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Makes or changes machine configurations.
pub(crate) fn machineconfig(global: &Global, command: &MachineCommand) -> Result<(), Error> {
    let PatchOptions { file, patches, output } = match command {
        MachineCommand::Gen(options) => return cluster(global, options),
        MachineCommand::Patch(options) => options,
    };
    let patched = patch::apply(&file.display().to_string(), &read(file)?, patches)?;
    let Some(path) = output else { return print(patched.as_bytes()) };
    create(path, &patched).map_err(|source| Error::Write { path: path.clone(), source })
}

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Name of the cluster
    name: String,
    /// URL of the Kubernetes API, like https://10.0.0.2:6443
    endpoint: String,
    /// Folder to write the files into; else the current one
    #[arg(short, long, value_name = "DIRECTORY")]
    output_dir: Option<PathBuf>,
    /// Write over files that are there
    #[arg(long)]
    force: bool,
    /// The cluster's secrets, as gen secrets makes them; else new ones
    #[arg(long, value_name = "FILE")]
    with_secrets: Option<PathBuf>,
    /// Disk to install to
    #[arg(long, value_name = "DISK", default_value = "/dev/sda")]
    install_disk: String,
    /// Image of the installer; else that of the node's version
    #[arg(long, value_name = "IMAGE")]
    install_image: Option<String>,
    /// Further names and addresses for the certificates of the nodes and the API server
    #[arg(long, value_delimiter = ',', value_name = "SAN")]
    additional_sans: Vec<String>,
    /// Domain of the cluster's services
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    dns_domain: String,
    /// Version of Kubernetes, like 1.20.1; else that of the nodes' version
    #[arg(long, value_name = "VERSION")]
    kubernetes_version: Option<String>,
    /// Whether nodes keep their configuration instead of fetching it at each boot
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    persist: bool,
    /// Where to fetch images from instead, as HOST=URL
    #[arg(long = "registry-mirror", value_delimiter = ',', value_name = "HOST=URL")]
    registry_mirrors: Vec<Mirror>,
    /// A part to lay over all machine configurations or a JSON patch, as text or @FILE; may be repeated
    #[arg(long = "config-patch", value_name = "PATCH")]
    patches: Vec<String>,
    /// The same, for those of control planes, after it
    #[arg(long = "config-patch-control-plane", value_name = "PATCH")]
    control_plane_patches: Vec<String>,
    /// The same, for those of workers, after it
    #[arg(long = "config-patch-worker", value_name = "PATCH")]
    worker_patches: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SecretsOptions {
    /// The file to write, - for stdout
    #[arg(short, long, value_name = "FILE", default_value = "secrets.yaml")]
    output_file: PathBuf,
    /// Take those of a control plane's machine configuration instead of new ones
    #[arg(long, value_name = "FILE")]
    from_controlplane_config: Option<PathBuf>,
    /// Write over a file that is there
    #[arg(short, long)]
    force: bool,
}

/// Makes what is asked for.
pub(crate) fn run(global: &Global, command: &Command) -> Result<(), Error> {
    match command {
        Command::Config(options) => cluster(global, options),
        Command::Secrets(options) => secrets(options),
        Command::Ca(options) => keys::ca(options),
        Command::Key(options) => keys::key(options),
        Command::Csr(options) => keys::csr(options),
        Command::Crt(options) => keys::crt(options),
        Command::Keypair(options) => keys::keypair(options),
    }
}

fn secrets(options: &SecretsOptions) -> Result<(), Error> {
    let SecretsOptions { output_file: path, from_controlplane_config, force } = options;
    let to_stdout = path == Path::new("-");
    if path.exists() && !force && !to_stdout {
        return Err(Error::Exists { path: path.clone() });
    }
    let bundle = match from_controlplane_config {
        Some(from) => {
            let config = machine::parse(&from.display().to_string(), &read(from)?);
            Bundle::of(&config.map_err(client::Error::Problems)?)
        }
        None => Bundle::generate(SystemTime::now()),
    };
    let text = bundle?.to_yaml();
    if to_stdout {
        return print(text.as_bytes());
    }
    create(path, &text).map_err(|source| Error::Write { path: path.clone(), source })?;
    print(format!("created {}\n", path.display()).as_bytes())
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// Writes all files, or none when one of them is there, and says which.
fn cluster(global: &Global, options: &Options) -> Result<(), Error> {
    let Options { name, endpoint, output_dir, force, .. } = options;
    let folder = output_dir.as_deref().unwrap_or(Path::new(""));
    let mut choices = generate::Options {
        additional_sans: options.additional_sans.clone(),
        install_disk: options.install_disk.clone(),
        install_image: options.install_image.clone(),
        dns_domain: options.dns_domain.clone(),
        kubernetes_version: options.kubernetes_version.clone(),
        persist: options.persist,
        registry_mirrors: options.registry_mirrors.clone(),
        ..generate::Options::default()
    };
    if let Some(file) = &options.with_secrets {
        let bundle = Bundle::parse(&file.display().to_string(), &read(file)?);
        choices.secrets = Some(bundle.map_err(client::Error::Problems)?);
    }
    if !global.endpoints.is_empty() {
        choices.endpoints = global.endpoints.iter().map(ToString::to_string).collect();
    }
    let made = generate(name, endpoint, &choices, SystemTime::now())?;
    let patched = |file, text: String, patches: &[String]| {
        let patches = [&options.patches, patches].concat();
        Ok::<_, Error>((file, patch::apply(file, &text, &patches)?))
    };
    let nodes = [
        patched("controlplane.yaml", made.control_plane.to_yaml(), &options.control_plane_patches)?,
        patched("worker.yaml", made.worker.to_yaml(), &options.worker_patches)?,
    ];
    // What a node would refuse is better refused here.
    for (file, text) in &nodes {
        machine::parse_for(Mode::Metal, file, text)?;
    }
    let files = nodes
        .into_iter()
        .chain([("talosconfig", made.client.to_yaml())])
        .map(|(file, text)| (folder.join(file), text))
        .collect::<Vec<_>>();
    if let Some((path, _)) = files.iter().find(|(path, _)| !force && path.exists()) {
        return Err(Error::Exists { path: path.clone() });
    }
    for (path, text) in &files {
        let failed = |source| Error::Write { path: path.clone(), source };
        fs::create_dir_all(folder).and_then(|()| create(path, text)).map_err(failed)?;
        print(format!("created {}\n", path.display()).as_bytes())?;
    }
    Ok(())
}

/// Makes a file anew that only its owner can read, whatever the mode of an older one.
pub(crate) fn create(path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
