//! What a node keeps (spec §5.1): on what stands for the EFI system partition, what the next boot needs; on its data
//! volume, its certificate and its last roles. Each file is replaced as a whole, and is on the disk when that is told.
//!
//! `enrollment.pb` is there from the first start until all the rest is; `sealed_configuration.pb` comes last and says
//! that all the rest is there. `removed` stays when the cluster has done with the node.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use orlop_config::parameters::{self, Known};
use orlop_pki::Secret;
use orlop_pki::cluster::{RawKey, Shown};
use orlop_pki::encoding;
use orlop_proto::metropolis::proto::common::{ClusterDirectory, NodeRoles, NodeStorageSecurity};
use orlop_proto::metropolis::proto::private::SealedConfiguration;
use orlop_proto::orlop::inside::Enrollment;
use prost::Message;

use super::machine::Progress;

const ENROLLMENT: &str = "enrollment.pb";
const SEALED: &str = "sealed_configuration.pb";
const DIRECTORY: &str = "cluster_directory.pb";
const REMOVED: &str = "removed";
const CREDENTIALS: &str = "node/credentials";
const CA: &str = "ca.pem";
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "cert-key.pem";
const ROLES: &str = "node/roles.pb";

/// Why something is not read or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system.
    #[error("{doing} {}", path.display())]
    File {
        /// `read`, `write`, `remove`.
        doing: &'static str,
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is there, and is not what was written. Nothing is made anew in its place: what it belongs to would be lost.
    #[error(
        "{} is damaged: {why}; restore it, or wipe the node's volumes to let it register anew",
        path.display()
    )]
    Damaged {
        /// What.
        path: PathBuf,
        /// In what way.
        why: String,
    },
    /// Keys and certificates.
    #[error("make the node's keys")]
    Keys(#[source] orlop_pki::Error),
}

/// Both keys of a node.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Who it is.
    pub node: RawKey,
    /// What it shows after a reboot.
    pub join: RawKey,
}

/// What makes a node one of its cluster.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Its cluster's authority (DER).
    pub ca: Vec<u8>,
    /// Its certificate (DER).
    pub certificate: Vec<u8>,
    /// The key of that.
    pub key: RawKey,
}

/// Where all that is.
#[derive(Clone, Debug)]
pub struct Folders {
    /// On the volume that stands for the EFI system partition.
    pub state: PathBuf,
    /// On the data volume.
    pub data: PathBuf,
}

impl Folders {
    /// How far an earlier run came.
    ///
    /// # Errors
    /// When a file cannot be read, or is damaged.
    pub fn progress(&self) -> Result<Progress, Error> {
        if read(&self.state.join(REMOVED))?.is_some() {
            return Ok(Progress::Removed);
        }
        if self.sealed()?.is_some() {
            return match self.credentials()? {
                Some(_) => Ok(Progress::Home),
                None => Err(damaged(&self.data.join(CREDENTIALS), "the certificate is gone")),
            };
        }
        let Some(keys) = self.enrollment()? else { return Ok(Progress::Nothing) };
        // Torn between the three files, they are written once more.
        let whole = self.credentials().ok().flatten();
        Ok(match whole {
            Some(credentials) if credentials.key == keys.node => Progress::Certified,
            _ => Progress::Keys,
        })
    }

    /// Makes both keys, and keeps them.
    ///
    /// # Errors
    /// When there is no randomness, or the file cannot be written.
    pub fn make_keys(&self) -> Result<(), Error> {
        let make = || RawKey::generate().map_err(Error::Keys);
        let (node, join) = (make()?, make()?);
        let message =
            Enrollment { node_key: node.bytes().to_vec(), join_key: join.bytes().to_vec() };
        write(&self.state.join(ENROLLMENT), 0o600, &message.encode_to_vec())
    }

    /// The keys, of a node that is being taken in.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged.
    pub fn enrollment(&self) -> Result<Option<Keys>, Error> {
        let path = self.state.join(ENROLLMENT);
        let Some(Enrollment { node_key, join_key }) = message(&path)? else { return Ok(None) };
        let key = |bytes: &[u8]| RawKey::from_bytes(bytes).map_err(|error| damaged(&path, error));
        Ok(Some(Keys { node: key(&node_key)?, join: key(&join_key)? }))
    }

    /// Makes the folder that the state of a new cluster lies in.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_room(&self, beneath: &str) -> Result<(), Error> {
        let path = self.data.join(beneath);
        make_folder(&path).map_err(|source| Error::File { doing: "make the folder", path, source })
    }

    /// Keeps what the cluster answered; the certificate is the last of the three.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn keep_credentials(&self, credentials: &Credentials) -> Result<(), Error> {
        let folder = self.data.join(CREDENTIALS);
        let Credentials { ca, certificate, key } = credentials;
        let (ca, certificate) =
            (encoding::certificate_to_pem(ca), encoding::certificate_to_pem(certificate));
        write(&folder.join(CA), 0o644, ca.as_bytes())?;
        write(&folder.join(KEY), 0o600, key.to_plain_pem().expose().as_bytes())?;
        write(&folder.join(CERTIFICATE), 0o644, certificate.as_bytes())
    }

    /// What makes it one of its cluster.
    ///
    /// # Errors
    /// When a file cannot be read, or they do not belong together.
    pub fn credentials(&self) -> Result<Option<Credentials>, Error> {
        let folder = self.data.join(CREDENTIALS);
        let path = |name| folder.join(name);
        let text = |name| -> Result<Option<Secret>, Error> {
            let bytes = read(&path(name))?;
            let text = bytes.map(|bytes| String::from_utf8(bytes).map(Secret::new));
            text.transpose().map_err(|_| damaged(&path(name), "it is not text"))
        };
        let (Some(ca), Some(key), Some(crt)) = (text(CA)?, text(KEY)?, text(CERTIFICATE)?) else {
            return Ok(None);
        };
        let der = |name, text: &Secret| -> Result<Vec<u8>, Error> {
            let all = encoding::certificates(text.expose()).map_err(|e| damaged(&path(name), e))?;
            let first = all.first().ok_or_else(|| damaged(&path(name), "it holds none"))?;
            Ok(first.to_vec())
        };
        let (ca, certificate) = (der(CA, &ca)?, der(CERTIFICATE, &crt)?);
        let key = RawKey::from_pem(key.expose()).map_err(|error| damaged(&path(KEY), error))?;
        let shown =
            Shown::read(&certificate).map_err(|error| damaged(&path(CERTIFICATE), error))?;
        if shown.public_key != Some(key.public()) || !shown.is_signed_by(&ca) {
            let why = "it is not for this key, or not of this authority";
            return Err(damaged(&path(CERTIFICATE), why));
        }
        Ok(Some(Credentials { ca, certificate, key }))
    }

    /// Keeps what the next boot needs, and lets go of what was for being taken in.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn seal(&self) -> Result<(), Error> {
        let (keys, credentials) = (self.enrollment()?, self.credentials()?);
        let (Some(keys), Some(credentials)) = (keys, credentials) else {
            return Err(damaged(&self.state.join(ENROLLMENT), "it, or the certificate, is gone"));
        };
        let message = SealedConfiguration {
            // Storage is not encrypted: there are no keys to it.
            node_unlock_key: Vec::new(),
            join_key: keys.join.bytes().to_vec(),
            cluster_ca: credentials.ca,
            storage_security: NodeStorageSecurity::Insecure.into(),
        };
        write(&self.state.join(SEALED), 0o600, &message.encode_to_vec())?;
        self.settle()
    }

    /// Lets go of what was for being taken in, if a run was cut off before it had.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn settle(&self) -> Result<(), Error> {
        remove(&self.state.join(ENROLLMENT))
    }

    /// The join key, of a node of a cluster.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged.
    pub fn sealed(&self) -> Result<Option<RawKey>, Error> {
        let path = self.state.join(SEALED);
        let Some(sealed) = message::<SealedConfiguration>(&path)? else { return Ok(None) };
        if sealed.storage_security() != NodeStorageSecurity::Insecure {
            return Err(damaged(&path, "it is of encrypted storage, which this release has not"));
        }
        RawKey::from_bytes(&sealed.join_key).map(Some).map_err(|error| damaged(&path, error))
    }

    /// Destroys what says that this machine is a node. That it was one is kept first.
    ///
    /// # Errors
    /// When a file cannot be written or removed.
    pub fn disown(&self) -> Result<(), Error> {
        write(&self.state.join(REMOVED), 0o644, b"by its cluster\n")?;
        let credentials = self.data.join(CREDENTIALS);
        for path in [
            self.state.join(SEALED),
            self.state.join(ENROLLMENT),
            credentials.join(KEY),
            credentials.join(CERTIFICATE),
            self.data.join(ROLES),
        ] {
            remove(&path)?;
        }
        Ok(())
    }

    /// The roles it had last.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged.
    pub fn roles(&self) -> Result<Option<NodeRoles>, Error> {
        message(&self.data.join(ROLES))
    }

    /// Keeps its roles.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep_roles(&self, roles: &NodeRoles) -> Result<(), Error> {
        write(&self.data.join(ROLES), 0o600, &roles.encode_to_vec())
    }

    /// Who led it to the leader last. One that is damaged is as good as none: it holds nothing of the node's own.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn directory(&self) -> Result<Vec<Known>, Error> {
        let path = self.state.join(DIRECTORY);
        let bytes = read(&path)?.unwrap_or_default();
        let decoded = ClusterDirectory::decode(&bytes[..]).ok();
        Ok(decoded.and_then(|message| parameters::known(&message).ok()).unwrap_or_default())
    }

    /// Keeps who may lead to the leader.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep_directory(&self, curators: &[(String, IpAddr)]) -> Result<(), Error> {
        let known: Vec<_> = curators
            .iter()
            .map(|(id, address)| Known { id: id.clone(), addresses: vec![*address] })
            .collect();
        let bytes = parameters::directory_message(&known).encode_to_vec();
        write(&self.state.join(DIRECTORY), 0o644, &bytes)
    }
}

fn damaged(path: &Path, why: impl ToString) -> Error {
    Error::Damaged { path: path.to_owned(), why: why.to_string() }
}

fn message<M: Message + Default>(path: &Path) -> Result<Option<M>, Error> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    M::decode(&bytes[..]).map(Some).map_err(|error| damaged(path, error))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { doing: "read", path: path.to_owned(), source }),
    }
}

fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Error> {
    make_folder(path.parent().unwrap_or(path))
        .and_then(|()| orlop_rt::replace(path, mode, bytes))
        .map_err(|source| Error::File { doing: "write", path: path.to_owned(), source })
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::File { doing: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use orlop_pki::cluster::{CLUSTER_CA, ClusterAuthority, Profile, node_id};

    use super::*;

    fn folders(home: &Path) -> Folders {
        Folders { state: home.join("esp/metropolis"), data: home.join("data") }
    }

    fn certified(folders: &Folders) -> Credentials {
        let now = SystemTime::now();
        let authority = ClusterAuthority::generate(CLUSTER_CA, now).expect("an authority");
        let key = folders.enrollment().expect("read").expect("keys").node;
        let profile = Profile::node(&node_id(&key.public()));
        let certificate = authority.issue(&profile, &key.public(), None, now).expect("one");
        Credentials { ca: authority.der().to_vec(), certificate, key }
    }

    #[test]
    fn each_step_is_found_again_and_the_last_one_leaves_only_what_is_needed() {
        let home = tempfile::tempdir().expect("a folder");
        let folders = folders(home.path());
        let at = |expected| assert_eq!(folders.progress().expect("read"), expected);
        at(Progress::Nothing);
        folders.make_keys().expect("kept");
        at(Progress::Keys);
        let keys = folders.enrollment().expect("read").expect("keys");
        folders.keep_credentials(&certified(&folders)).expect("kept");
        at(Progress::Certified);
        folders.seal().expect("sealed");
        at(Progress::Home);
        assert!(folders.enrollment().expect("read").is_none());
        assert_eq!(folders.sealed().expect("read"), Some(keys.join));
        assert_eq!(folders.credentials().expect("read").expect("there").key, keys.node);

        let address = "10.0.0.1".parse().expect("an address");
        folders.keep_directory(&[("metropolis-1".to_owned(), address)]).expect("kept");
        assert_eq!(folders.directory().expect("read")[0].addresses, [address]);
        let roles = NodeRoles { kubernetes_worker: Some(<_>::default()), ..NodeRoles::default() };
        folders.keep_roles(&roles).expect("kept");
        assert_eq!(folders.roles().expect("read"), Some(roles));

        folders.disown().expect("removed");
        at(Progress::Removed);
        assert!(folders.credentials().expect("read").is_none());
        assert!(folders.roles().expect("read").is_none());
    }

    #[test]
    fn a_certificate_of_another_key_or_torn_is_asked_for_again() {
        let home = tempfile::tempdir().expect("a folder");
        let folders = folders(home.path());
        folders.make_keys().expect("kept");
        let mut credentials = certified(&folders);
        credentials.key = RawKey::generate().expect("a key");
        folders.keep_credentials(&credentials).expect("kept");
        assert_eq!(folders.progress().expect("read"), Progress::Keys);
        let torn = home.path().join("data/node/credentials/cert.pem");
        fs::write(torn, "-----BEGIN CERT").expect("written");
        assert_eq!(folders.progress().expect("read"), Progress::Keys);
    }

    #[test]
    fn what_is_damaged_is_never_made_anew() {
        let home = tempfile::tempdir().expect("a folder");
        let folders = folders(home.path());
        folders.make_keys().expect("kept");
        folders.keep_credentials(&certified(&folders)).expect("kept");
        folders.seal().expect("sealed");
        let sealed = folders.state.join(SEALED);
        let good = fs::read(&sealed).expect("read");
        for (path, bytes) in [
            (&sealed, &b"\xff\xff"[..]),
            (&sealed, &b""[..]),
            (&folders.data.join(CREDENTIALS).join(CERTIFICATE), b"x"),
        ] {
            fs::write(path, bytes).expect("written");
            let error = folders.progress().expect_err("refused").to_string();
            assert!(error.contains("is damaged: ") && error.contains("wipe"), "{error}");
            fs::write(&sealed, &good).expect("written");
        }
        fs::remove_dir_all(&folders.data).expect("removed");
        let error = folders.progress().expect_err("refused").to_string();
        assert!(error.contains("the certificate is gone"), "{error}");
    }
}
