//! The folder of the owner's key, certificate and the cluster's authority (spec of the cluster API, §7.2).
//!
//! `metroctl` keeps the same files in the same place: either program can go on where the other was left.

use std::path::{Path, PathBuf};
use std::{fs, io};

use orlop_pki::cluster::{RawKey, Shown, authority_key};
use orlop_pki::encoding::{certificate_to_pem, certificates};

use super::Error;
use crate::error::Error as CommandError;

/// The PEM type of the owner's key.
const KEY_LABEL: &str = "METROPOLIS INITIAL OWNER PRIVATE KEY";

/// What a file of the folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `owner-key.pem`: seed and public half.
    Key,
    /// `owner.pem`.
    Certificate,
    /// `ca.pem`.
    Authority,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Key => "owner-key.pem",
            Self::Certificate => "owner.pem",
            Self::Authority => "ca.pem",
        }
    }

    fn mode(self) -> u32 {
        match self {
            Self::Key | Self::Authority => 0o600,
            Self::Certificate => 0o644,
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Key => "owner's key",
            Self::Certificate => "certificate",
            Self::Authority => "cluster's authority",
        }
    }
}

/// The folder.
#[derive(Debug)]
pub(crate) struct Keyring {
    folder: PathBuf,
}

/// The owner, as servers see him.
#[derive(Debug)]
pub(crate) struct Owner {
    /// DER.
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: RawKey,
}

impl Keyring {
    /// The folder that was named, or the usual one; it need not be there.
    pub(crate) fn open(named: Option<&Path>) -> Result<Self, Error> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let usual = || {
            let configuration = variable("XDG_CONFIG_HOME").map(PathBuf::from);
            let home = || Some(PathBuf::from(variable("HOME")?).join(".config"));
            Some(configuration.or_else(home)?.join("metroctl"))
        };
        let folder = named.map(Path::to_owned).or_else(usual).ok_or(Error::NoHome)?;
        Ok(Self { folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn path(&self, kind: Kind) -> PathBuf {
        self.folder.join(kind.name())
    }

    /// The owner's key; none if there is no file.
    pub(crate) fn key(&self) -> Result<Option<RawKey>, CommandError> {
        let Some(text) = self.read(Kind::Key)? else { return Ok(None) };
        let key = RawKey::from_pem(&text);
        Ok(Some(key.map_err(|error| self.wrong(Kind::Key, &error))?))
    }

    /// The owner's key, which must be there.
    pub(crate) fn owned_key(&self) -> Result<RawKey, CommandError> {
        Ok(self.key()?.ok_or_else(|| Error::NoKey(self.path(Kind::Key)))?)
    }

    /// The owner's certificate (DER); none if there is no file.
    pub(crate) fn certificate(&self) -> Result<Option<Vec<u8>>, CommandError> {
        self.der(Kind::Certificate)
    }

    /// The cluster's authority (DER); none if there is no file.
    pub(crate) fn authority(&self) -> Result<Option<Vec<u8>>, CommandError> {
        self.der(Kind::Authority)
    }

    /// Both, which must be there and belong together.
    pub(crate) fn owner(&self) -> Result<Owner, CommandError> {
        let key = self.owned_key()?;
        let path = self.path(Kind::Certificate);
        let certificate = self.certificate()?.ok_or_else(|| Error::NoCertificate(path.clone()))?;
        let shown =
            Shown::read(&certificate).map_err(|error| self.wrong(Kind::Certificate, &error))?;
        if shown.public_key != Some(key.public()) {
            return Err(Error::OtherKey(path).into());
        }
        Ok(Owner { certificate, key })
    }

    /// Makes a key, or returns the one that is there; and whether it was.
    pub(crate) fn key_or_new(&self) -> Result<(RawKey, bool), CommandError> {
        if let Some(key) = self.key()? {
            return Ok((key, true));
        }
        let key = RawKey::generate().map_err(Error::Keys)?;
        self.write(Kind::Key, key.to_raw_pem(KEY_LABEL).expose())?;
        Ok((key, false))
    }

    /// Keeps a certificate (DER).
    pub(crate) fn keep(&self, kind: Kind, der: &[u8]) -> Result<PathBuf, CommandError> {
        self.write(kind, &certificate_to_pem(der))
    }

    fn der(&self, kind: Kind) -> Result<Option<Vec<u8>>, CommandError> {
        let Some(text) = self.read(kind)? else { return Ok(None) };
        let der = read_certificate(kind, &text);
        Ok(Some(der.map_err(|error| self.wrong(kind, &error))?))
    }

    fn read(&self, kind: Kind) -> Result<Option<String>, CommandError> {
        let path = self.path(kind);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CommandError::Read { path, source }),
        }
    }

    fn write(&self, kind: Kind, text: &str) -> Result<PathBuf, CommandError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = self.path(kind);
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.folder);
        let written = made.and_then(|()| orlop_rt::replace(&path, kind.mode(), text.as_bytes()));
        written.map_err(|source| CommandError::Write { path: path.clone(), source })?;
        Ok(path)
    }

    fn wrong(&self, kind: Kind, error: &orlop_pki::Error) -> Error {
        let why = orlop_rt::Chain(error).to_string();
        Error::File { path: self.path(kind), what: kind.what(), why }
    }
}

/// The certificate (DER) that is first in a PEM text; an authority's is one that a cluster can have.
fn read_certificate(kind: Kind, text: &str) -> Result<Vec<u8>, orlop_pki::Error> {
    let der = certificates(text)?.swap_remove(0).to_vec();
    match kind {
        Kind::Authority => drop(authority_key(&der)?),
        Kind::Certificate | Kind::Key => drop(Shown::read(&der)?),
    }
    Ok(der)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::SystemTime;

    use orlop_pki::cluster::{CLUSTER_CA, ClusterAuthority, Profile};

    use super::*;

    fn keyring() -> (tempfile::TempDir, Keyring) {
        let folder = tempfile::tempdir().unwrap();
        let keyring = Keyring::open(Some(&folder.path().join("metroctl"))).unwrap();
        (folder, keyring)
    }

    #[test]
    fn the_files_are_those_of_metroctl() {
        let (_folder, keyring) = keyring();
        assert!(keyring.key().unwrap().is_none());
        let (key, there) = keyring.key_or_new().unwrap();
        assert!(!there);
        assert_eq!(keyring.key_or_new().unwrap(), (key.clone(), true));
        let authority = ClusterAuthority::generate(CLUSTER_CA, SystemTime::now()).unwrap();
        let profile = Profile::user("owner");
        let owner = authority.issue(&profile, &key.public(), None, SystemTime::now()).unwrap();
        keyring.keep(Kind::Certificate, &owner).unwrap();
        keyring.keep(Kind::Authority, authority.der()).unwrap();
        let expected = [
            (Kind::Key, 0o600, "METROPOLIS INITIAL OWNER PRIVATE KEY"),
            (Kind::Certificate, 0o644, "CERTIFICATE"),
            (Kind::Authority, 0o600, "CERTIFICATE"),
        ];
        for (kind, mode, label) in expected {
            let path = keyring.path(kind);
            let found = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode, "{kind:?}");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with(&format!("-----BEGIN {label}-----\n")), "{text}");
        }
        let mode = fs::metadata(keyring.folder()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let read = keyring.owner().unwrap();
        assert_eq!((read.certificate, read.key), (owner, key));
        assert_eq!(keyring.authority().unwrap().unwrap(), authority.der().to_vec());
    }

    #[test]
    fn what_is_missing_or_wrong_is_told_with_its_path_and_what_to_type() {
        let (_folder, keyring) = keyring();
        let told = |error: CommandError| (error.to_string(), error.hint().unwrap_or_default());
        let (text, hint) = told(keyring.owner().unwrap_err());
        assert!(text.contains("no owner's key at") && hint.contains("install-params"), "{text}");
        keyring.key_or_new().unwrap();
        let (text, hint) = told(keyring.owner().unwrap_err());
        assert!(text.contains("owner.pem") && hint.contains("takeownership -e HOST"), "{text}");
        let authority = ClusterAuthority::generate(CLUSTER_CA, SystemTime::now()).unwrap();
        keyring.keep(Kind::Certificate, authority.der()).unwrap();
        let (text, hint) = told(keyring.owner().unwrap_err());
        assert!(text.contains("not the certificate of the key") && hint.contains("move"), "{text}");
        fs::write(keyring.path(Kind::Authority), "no PEM").unwrap();
        let (text, _) = told(keyring.authority().unwrap_err());
        assert!(text.contains("ca.pem holds no cluster's authority: "), "{text}");
        fs::write(keyring.path(Kind::Key), "no PEM").unwrap();
        assert!(told(keyring.key().unwrap_err()).0.contains("holds no owner's key: "));
    }
}
