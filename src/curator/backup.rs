//! A copy of the cluster's state in one file, and the way back into a store that has none.
//!
//! The file is a [snapshot](orlop_store::snapshot) of what a curator keeps: nodes, tickets, certificates and their
//! keys. Whoever has it can be the cluster's authority: it is written for its owner only.

use std::path::{Path, PathBuf};

use orlop_store::{Location, Revision, Store, snapshot};
use ring::digest::{SHA256, digest};
use tokio::fs::OpenOptions;
use tokio::io::AsyncReadExt as _;

use crate::moving::{self, belongs};
use crate::names::hex;

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store, or a file that is no backup.
    #[error(transparent)]
    Store(#[from] orlop_store::Error),
    /// The store has a cluster already.
    #[error(transparent)]
    Moving(#[from] moving::Failure),
    /// A snapshot of something else.
    #[error(
        "the file is a snapshot, but not of a cluster's state: it has {key:?}; `orlop curator backup` writes one"
    )]
    Foreign {
        /// What does not belong there.
        key: String,
    },
}

/// Writes what the curator keeps; `-` is standard output. A file has its name only when it is whole and on the disk.
///
/// # Errors
/// Any [`Error`]; a file of that name stays as it was then.
pub async fn write(store: &Store, path: &Path) -> Result<Revision, Error> {
    if path == Path::new("-") {
        return Ok(snapshot::write_those(store, belongs, &mut tokio::io::stdout()).await?);
    }
    let begun = path.with_added_extension("new");
    let failed = |doing| move |source| Error::File { doing, path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&begun).await.map_err(failed("write the backup"))?;
    let written = async {
        let revision = snapshot::write_those(store, belongs, &mut file).await?;
        file.sync_all().await.map_err(failed("write the backup"))?;
        tokio::fs::rename(&begun, path).await.map_err(failed("name the backup"))?;
        Ok(revision)
    };
    let written = written.await;
    if written.is_err() {
        // What is left of it is of no use; why it failed is told.
        tokio::fs::remove_file(&begun).await.ok();
    }
    written
}

/// Fills a store that has no cluster with a backup; `-` is standard input. How many keys there were. An embedded store
/// must have nothing at all, an etcd may have what others keep there. What broke off can be repeated with the same file.
///
/// # Errors
/// Any [`Error`].
pub async fn restore(store: &Store, location: &Location, path: &Path) -> Result<usize, Error> {
    let failed = |source| Error::File { doing: "read the backup", path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        tokio::io::stdin().read_to_end(&mut bytes).await
    } else {
        match tokio::fs::File::open(path).await {
            Ok(mut file) => file.read_to_end(&mut bytes).await,
            Err(error) => Err(error),
        }
    };
    read.map_err(failed)?;
    let mut entries = snapshot::parse(&bytes)?.entries;
    if let Some(entry) = entries.iter().find(|entry| !belongs(entry)) {
        let key = String::from_utf8_lossy(&entry.key).into_owned();
        return Err(Error::Foreign { key });
    }
    let count = entries.len();
    match store {
        Store::Embedded(_) => {
            snapshot::restore(store, &mut &bytes[..]).await?;
        }
        Store::Etcd(_) => {
            entries.sort_by_key(|entry| entry.modified);
            let id = format!("backup {}", hex(digest(&SHA256, &bytes).as_ref()));
            moving::fill(store, &location.to_string(), &id, entries).await?;
        }
    }
    Ok(count)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use orlop_store::{Embedded, Limits};

    use super::*;
    use crate::names::CURATOR;

    async fn open(folder: &Path, name: &str) -> (Store, Location) {
        let path = folder.join(name);
        let store = Embedded::open(&path, Limits::default()).await.unwrap();
        (Store::Embedded(store), Location::Embedded(path))
    }

    #[tokio::test]
    async fn a_backup_makes_the_same_cluster_again() {
        let folder = tempfile::tempdir().unwrap();
        let (from, _) = open(folder.path(), "from").await;
        let first = from.create(CURATOR.key("/nodes/a"), "1", None).await.unwrap();
        from.update(CURATOR.key("/nodes/a"), "2", first, None).await.unwrap();
        let lease = from.grant(std::time::Duration::from_secs(3600)).await.unwrap();
        from.create(CURATOR.key("/leader/1"), "a lock", Some(lease)).await.unwrap();
        let file = folder.path().join("backup");
        write(&from, &file).await.unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let (to, location) = open(folder.path(), "to").await;
        assert_eq!(restore(&to, &location, &file).await.unwrap(), 1);
        assert_eq!(moving::read(&to).await.unwrap(), moving::read(&from).await.unwrap());
        let again = restore(&to, &location, &file).await.unwrap_err().to_string();
        assert!(again.contains("not empty"), "{again}");
    }

    #[tokio::test]
    async fn what_is_no_backup_is_refused_and_nothing_written() {
        let folder = tempfile::tempdir().unwrap();
        let (from, _) = open(folder.path(), "from").await;
        from.create("/registry/pods/x", "", None).await.unwrap();
        let file = folder.path().join("snapshot");
        let mut out = Vec::new();
        snapshot::write(&from, &mut out).await.unwrap();
        std::fs::write(&file, &out).unwrap();
        let (to, location) = open(folder.path(), "to").await;
        let refused = restore(&to, &location, &file).await;
        assert!(
            matches!(&refused, Err(Error::Foreign { key }) if key.contains("pods")),
            "{refused:?}"
        );
        std::fs::write(&file, &out[..out.len() - 1]).unwrap();
        assert!(matches!(restore(&to, &location, &file).await, Err(Error::Store(_))));
        let none = restore(&to, &location, &folder.path().join("none")).await.unwrap_err();
        assert!(none.to_string().starts_with("read the backup"), "{none}");
        assert_eq!(to.range(orlop_store::Range::all()).await.unwrap().entries, []);
        let nowhere = write(&from, &folder.path().join("none/backup")).await.unwrap_err();
        assert!(nowhere.to_string().starts_with("write the backup"), "{nowhere}");
    }
}
