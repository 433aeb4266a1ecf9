//! `kubeconfig`: a configuration for `kubectl`, fetched from a control plane and put beside those that
//! are there. Putting together is pure; the file is its owner's only.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde_yaml::{Mapping, Value};
use tar::Archive;

use crate::client::{Client, machine};
use crate::error::Error;
use crate::table::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// File or folder to write to, `-` for stdout; else ~/.kube/config, or ./kubeconfig without merging
    path: Option<PathBuf>,
    /// Write over a file or entries of the same name
    #[arg(short, long)]
    force: bool,
    /// Put it into a file that is there; --merge=false makes a file of its own
    #[arg(short, long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    merge: bool,
    /// Call the context, and what it consists of, like this
    #[arg(long, value_name = "NAME")]
    force_context_name: Option<String>,
}

/// Largest kubeconfig that is taken from a node.
const LIMIT: u64 = 1 << 20;

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    client.one_node("kubeconfig")?;
    let path = path(options)?;
    // What cannot be written is not asked for: each call makes a certificate.
    if !options.merge && !options.force && path.exists() {
        return Err(Error::Exists { path });
    }
    let mut zipped = Vec::new();
    let call = async |node| machine(node).kubeconfig(()).await;
    let each = |_: &str, data: orlop_proto::common::Data| {
        zipped.extend_from_slice(&data.bytes);
        Ok(())
    };
    client.follow("fetch the kubeconfig", call, each).await?;
    let mut fetched =
        unpack(&zipped).map_err(|why| Error::Kubeconfig { whose: "node".to_owned(), why })?;
    if let Some(name) = &options.force_context_name {
        rename(&mut fetched, name);
    }
    if path == Path::new("-") {
        return print(written(&fetched).as_bytes());
    }
    let failed = |source| Error::Write { path: path.clone(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let there = match fs::read_to_string(&path) {
        Ok(text) if options.merge => {
            let whose = path.display().to_string();
            parse(&text).map_err(|why| Error::Kubeconfig { whose, why })?
        }
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(Error::Read { path, source });
        }
        _ => Mapping::new(),
    };
    let (merged, renamed) = merge(there, fetched, options.force);
    for (old, new) in renamed {
        say!(note: "renamed {old:?} -> {new:?}; {} had another one of that name", path.display());
    }
    // kubectl never sees half a file.
    orlop_rt::replace(&path, 0o600, written(&merged).as_bytes()).map_err(failed)?;
    say!("wrote {}", path.display());
    Ok(())
}

fn path(options: &Options) -> Result<PathBuf, Error> {
    Ok(match &options.path {
        Some(path) if path.is_dir() => path.join("kubeconfig"),
        Some(path) => path.clone(),
        None if !options.merge => "kubeconfig".into(),
        None => {
            let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
            PathBuf::from(home.ok_or(Error::NoKubeconfigHome)?).join(".kube/config")
        }
    })
}

/// The only member of the archive that a node sends.
fn unpack(zipped: &[u8]) -> Result<Mapping, String> {
    let text = || -> io::Result<String> {
        let mut archive = Archive::new(GzDecoder::new(zipped));
        let missing = || io::Error::other("the archive is empty");
        let member = archive.entries()?.next().ok_or_else(missing)??;
        let mut text = String::new();
        member.take(LIMIT).read_to_string(&mut text)?;
        Ok(text)
    };
    parse(&text().map_err(|error| error.to_string())?)
}

pub(crate) fn parse(text: &str) -> Result<Mapping, String> {
    match serde_yaml::from_str(text) {
        Ok(Value::Mapping(mapping)) => Ok(mapping),
        Ok(Value::Null) => Ok(Mapping::new()),
        Ok(_) => Err("it is not a mapping".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) fn written(config: &Mapping) -> String {
    serde_yaml::to_string(config).expect("what was YAML is YAML")
}

/// The lists of a kubeconfig, and the key that names their entries' content.
const LISTS: [(&str, &str); 3] =
    [("clusters", "cluster"), ("users", "user"), ("contexts", "context")];

fn entries<'a>(config: &'a Mapping, list: &str) -> &'a [Value] {
    config.get(list).and_then(Value::as_sequence).map_or(&[], Vec::as_slice)
}

fn name(entry: &Value) -> Option<&str> {
    entry.get("name")?.as_str()
}

/// Gives everything in `config`, which has one context, the name `to`.
fn rename(config: &mut Mapping, to: &str) {
    for (list, _) in LISTS {
        let Some(entries) = config.get_mut(list).and_then(Value::as_sequence_mut) else { continue };
        for entry in entries {
            set(entry, "name", to);
            if let Some(context) = entry.get_mut("context") {
                set(context, "cluster", to);
                set(context, "user", to);
            }
        }
    }
    config.insert("current-context".into(), to.into());
}

fn set(entry: &mut Value, key: &str, to: &str) {
    if let Some(mapping) = entry.as_mapping_mut() {
        mapping.insert(key.into(), to.into());
    }
}

/// Puts the entries of `new` into `old`, whose other content stays as it is, and makes `new`'s context
/// current. Of entries with the same name, the new one replaces the old one when that is `forced`; else
/// it gets the suffix `-1`, `-2`, …, unless both are the same. The renamed ones are returned.
pub(crate) fn merge(
    mut old: Mapping,
    mut new: Mapping,
    forced: bool,
) -> (Mapping, Vec<(String, String)>) {
    if old.is_empty() {
        return (new, Vec::new());
    }
    let mut renamed = Vec::new();
    if !forced {
        for (list, _) in LISTS {
            for (name, free) in taken(&old, &new, list) {
                refer(&mut new, list, &name, &free);
                renamed.push((name, free));
            }
        }
    }
    for (list, _) in LISTS {
        let mut all: Vec<Value> = entries(&old, list).to_vec();
        let coming = entries(&new, list);
        all.retain(|entry| !coming.iter().any(|new| name(new) == name(entry)));
        all.extend_from_slice(coming);
        old.insert(list.into(), all.into());
    }
    for key in ["apiVersion", "kind", "current-context"] {
        if let Some(value) = new.get(key) {
            old.insert(key.into(), value.clone());
        }
    }
    renamed.dedup();
    (old, renamed)
}

/// The names of `list` in `new` that mean something else in `old`, each with one that is free in both.
fn taken(old: &Mapping, new: &Mapping, list: &str) -> Vec<(String, String)> {
    let known = |wanted: &str| {
        let both = entries(old, list).iter().chain(entries(new, list));
        both.filter_map(name).any(|name| name == wanted)
    };
    let other = |entry: &&Value| {
        entries(old, list).iter().any(|old| name(old) == name(entry) && old != *entry)
    };
    let clashing = entries(new, list).iter().filter(other).filter_map(name);
    clashing
        .map(|name| {
            let mut free = (1u32..).map(|suffix| format!("{name}-{suffix}"));
            let free = free.find(|free| !known(free)).expect("there are more numbers than entries");
            (name.to_owned(), free)
        })
        .collect()
}

/// Renames an entry of `list`, and what refers to it.
fn refer(config: &mut Mapping, list: &str, from: &str, to: &str) {
    let kind = LISTS.iter().find(|(known, _)| *known == list).map_or("", |(_, kind)| kind);
    for (list_at, _) in LISTS {
        let Some(entries) = config.get_mut(list_at).and_then(Value::as_sequence_mut) else {
            continue;
        };
        for entry in entries {
            if list_at == list && name(entry) == Some(from) {
                set(entry, "name", to);
            }
            if let Some(context) = entry.get_mut("context")
                && context.get(kind).and_then(Value::as_str) == Some(from)
            {
                set(context, kind, to);
            }
        }
    }
    if list == "contexts" && config.get("current-context").and_then(Value::as_str) == Some(from) {
        config.insert("current-context".into(), to.into());
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(cluster: &str, server: &str) -> Mapping {
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: {cluster}\n  cluster: {{server: {server}}}\n\
             users:\n- name: admin@{cluster}\n  user: {{token: {server}}}\ncontexts:\n\
             - name: admin@{cluster}\n  context: {{cluster: {cluster}, user: admin@{cluster}}}\n\
             current-context: admin@{cluster}\npreferences: {{colors: true}}\n"
        );
        parse(&text).unwrap()
    }

    fn names(config: &Mapping, list: &str) -> String {
        entries(config, list).iter().filter_map(name).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn another_cluster_stands_beside_those_that_are_there() {
        let (merged, renamed) = merge(config("a", "1"), config("b", "2"), false);
        assert_eq!(renamed, []);
        assert_eq!(names(&merged, "clusters"), "a b");
        assert_eq!(names(&merged, "contexts"), "admin@a admin@b");
        assert_eq!(merged["current-context"], "admin@b");
        assert_eq!(merged["preferences"], config("a", "1")["preferences"]);
        let (merged, _) = merge(Mapping::new(), config("b", "2"), false);
        assert_eq!(names(&merged, "users"), "admin@b");
    }

    #[test]
    fn what_is_there_is_kept_and_the_new_one_renamed_unless_forced() {
        let (merged, renamed) = merge(config("a", "1"), config("a", "2"), false);
        let pair = |old: &str, new: &str| (old.to_owned(), new.to_owned());
        let expected = [pair("a", "a-1"), pair("admin@a", "admin@a-1")];
        assert_eq!(renamed, expected);
        let added = &merged["contexts"][1];
        assert_eq!(added["context"]["cluster"], "a-1");
        assert_eq!(added["context"]["user"], "admin@a-1");
        assert_eq!(merged["current-context"], added["name"]);
        assert_eq!(merged["clusters"][1]["cluster"]["server"], 2);
        let (again, renamed) = merge(merged, config("a", "3"), false);
        assert_eq!(renamed[0], pair("a", "a-2"));
        assert_eq!(names(&again, "clusters"), "a a-1 a-2");
        let (merged, renamed) = merge(config("a", "1"), config("a", "2"), true);
        assert_eq!((renamed.len(), names(&merged, "contexts").as_str()), (0, "admin@a"));
        assert_eq!(merged["clusters"][0]["cluster"]["server"], 2);
        let (merged, renamed) = merge(config("a", "1"), config("a", "1"), false);
        assert_eq!((renamed.len(), merged), (0, config("a", "1")));
    }

    #[test]
    fn a_forced_name_is_that_of_everything() {
        let mut renamed = config("a", "1");
        rename(&mut renamed, "mine");
        for (list, _) in LISTS {
            assert_eq!(names(&renamed, list), "mine");
        }
        assert_eq!(renamed["contexts"][0]["context"]["user"], "mine");
        assert_eq!(renamed["current-context"], "mine");
    }

    proptest! {
        #[test]
        fn merging_what_somebody_wrote_never_panics(
            old in "((clusters|users|contexts|name|user|[ \n:{}\\[\\]a-])){0,30}", forced: bool,
        ) {
            if let Ok(old) = parse(&old) {
                let (merged, _) = merge(old, config("a", "1"), forced);
                prop_assert!(merged.contains_key("clusters"));
            }
        }
    }
}
