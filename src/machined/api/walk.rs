//! A tree of files, entry by entry: folders before their content, the entries of a folder by name.
//!
//! Symbolic links are followed at the root only. Memory is bounded whatever lies in the tree: of all
//! folders on the way down together about [`NAMES`] names are held, and a folder that has more is
//! walked in several lots, each by name.

use std::ffi::OsString;
use std::fs::{self, Metadata, ReadDir};
use std::io;
use std::path::{Component, Path, PathBuf};

/// Names held at a time.
const NAMES: usize = 8192;
/// However many are held: a lot is not smaller than this.
const LEAST_LOT: usize = 16;

/// The tree below a root.
#[derive(Debug)]
pub(super) struct Walk {
    root: PathBuf,
    /// Levels below the root that are entered; `None`: all.
    depth: Option<usize>,
    /// The folder that is being walked, or is to be entered next.
    folder: PathBuf,
    levels: Vec<Level>,
    next: Next,
    held: usize,
}

/// One folder on the way down.
#[derive(Debug)]
struct Level {
    /// The last is the next.
    names: Vec<OsString>,
    /// Where the names after these come from.
    rest: Option<ReadDir>,
}

#[derive(Debug)]
enum Next {
    Root(Metadata),
    Enter,
    /// The folder could not be entered.
    Leave,
    Continue,
}

/// What a walk comes by.
#[derive(Debug)]
pub(super) enum Step {
    /// An entry; if it is a folder that is entered, its content comes next, and then [`Step::Left`].
    Found(Entry),
    /// An entry, or the content of the folder found just now, that cannot be read.
    Failed(Failure),
    /// All below the folder has been walked.
    Left,
}

/// A file of any kind.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    /// Below the root; `.` is the root itself, a root that is no folder has its own name.
    pub(super) relative: PathBuf,
    /// 0: the root.
    pub(super) depth: usize,
    /// Of the entry itself, not of what a link leads to.
    pub(super) metadata: Metadata,
}

/// What could not be read.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) path: PathBuf,
    pub(super) relative: PathBuf,
    /// With what was done to what.
    pub(super) error: String,
}

impl Walk {
    /// Begins at `root`, absolute; if that is a symbolic link, at what it leads to.
    ///
    /// # Errors
    /// When it is not there or cannot be reached.
    pub(super) fn new(root: &Path, depth: Option<usize>) -> io::Result<Self> {
        let mut root = root.to_owned();
        let mut metadata = fs::symlink_metadata(&root)?;
        if metadata.is_symlink() {
            root = fs::canonicalize(&root)?;
            metadata = fs::symlink_metadata(&root)?;
        }
        let (folder, levels, next) = (root.clone(), Vec::new(), Next::Root(metadata));
        Ok(Self { root, depth, folder, levels, next, held: 0 })
    }

    fn relative(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.root) {
            Ok(below) if !below.as_os_str().is_empty() => below.to_owned(),
            _ => ".".into(),
        }
    }

    fn failed(&self, doing: &str, path: PathBuf, error: &io::Error) -> Step {
        let error = told(doing, &path, error);
        Step::Failed(Failure { relative: self.relative(&path), path, error })
    }

    /// An entry of the current folder; it is entered next if it is a folder and not too deep.
    fn found(&mut self, path: PathBuf, metadata: Metadata) -> Step {
        let depth = self.levels.len();
        let mut relative = self.relative(&path);
        if metadata.is_dir() {
            if self.depth.is_none_or(|limit| depth < limit) {
                self.folder.clone_from(&path);
                self.next = Next::Enter;
            }
        } else if depth == 0 {
            relative = path.file_name().map(PathBuf::from).unwrap_or(relative);
        }
        Step::Found(Entry { path, relative, depth, metadata })
    }

    fn enter(&mut self) -> Option<Step> {
        match fs::read_dir(&self.folder) {
            Ok(rest) => {
                self.levels.push(Level { names: Vec::new(), rest: Some(rest) });
                None
            }
            Err(error) => {
                self.next = Next::Leave;
                Some(self.failed("open", self.folder.clone(), &error))
            }
        }
    }

    fn leave(&mut self) -> Step {
        if !self.levels.is_empty() {
            self.folder.pop();
        }
        Step::Left
    }

    /// The next name of the current folder; reads the next lot of them when there is none.
    fn name(&mut self) -> io::Result<Option<OsString>> {
        let lot = ((NAMES.saturating_sub(self.held)) / 2).max(LEAST_LOT);
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        if level.names.is_empty()
            && let Some(rest) = &mut level.rest
        {
            let mut failure = None;
            while level.names.len() < lot {
                match rest.next() {
                    Some(Ok(entry)) => level.names.push(entry.file_name()),
                    end => {
                        failure = end.and_then(Result::err);
                        level.rest = None;
                        break;
                    }
                }
            }
            self.held += level.names.len();
            level.names.sort_unstable_by(|a, b| b.cmp(a));
            if let Some(error) = failure {
                return Err(error);
            }
        }
        let name = level.names.pop();
        self.held -= usize::from(name.is_some());
        Ok(name)
    }
}

impl Iterator for Walk {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        match std::mem::replace(&mut self.next, Next::Continue) {
            Next::Root(metadata) => return Some(self.found(self.root.clone(), metadata)),
            Next::Enter => {
                if let Some(failed) = self.enter() {
                    return Some(failed);
                }
            }
            Next::Leave => return Some(self.leave()),
            Next::Continue => {}
        }
        if self.levels.is_empty() {
            return None;
        }
        Some(match self.name() {
            Ok(Some(name)) => {
                let path = self.folder.join(name);
                match fs::symlink_metadata(&path) {
                    Ok(metadata) => self.found(path, metadata),
                    Err(error) => self.failed("lstat", path, &error),
                }
            }
            Ok(None) => {
                self.levels.pop();
                self.leave()
            }
            Err(error) => self.failed("read", self.folder.clone(), &error),
        })
    }
}

/// `path` as an absolute one without `.`, `..`, and doubled or final `/`: by its text, as clients of
/// this API expect.
pub(super) fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// `lstat /x: no such file or directory`: what was done to what, and the kernel's reason.
pub(super) fn told(doing: &str, path: &Path, error: &io::Error) -> String {
    let reason = match error.raw_os_error() {
        Some(number) => {
            let text = nix::errno::Errno::from_raw(number).desc();
            text[..1].to_ascii_lowercase() + &text[1..]
        }
        None => error.to_string(),
    };
    format!("{doing} {}: {reason}", path.display())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// The steps in short: `name`, `name/` for a folder, `!name` for what failed, `^` for a folder left.
    fn steps(root: &Path, depth: Option<usize>) -> Vec<String> {
        let short = |step| match step {
            Step::Found(entry) => {
                let slash = if entry.metadata.is_dir() { "/" } else { "" };
                format!("{}{slash} {}", entry.relative.display(), entry.depth)
            }
            Step::Failed(failure) => format!("!{}", failure.relative.display()),
            Step::Left => "^".to_owned(),
        };
        Walk::new(root, depth).unwrap().map(short).collect()
    }

    #[test]
    fn folders_come_before_their_content_and_names_in_order() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path();
        fs::create_dir_all(root.join("b/c")).unwrap();
        for file in ["z", "a", "b/c/deep", "b/b"] {
            fs::write(root.join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("b", root.join("link")).unwrap();
        let all = [
            "./ 0",
            "a 1",
            "b/ 1",
            "b/b 2",
            "b/c/ 2",
            "b/c/deep 3",
            "^",
            "^",
            "link 1",
            "z 1",
            "^",
        ];
        assert_eq!(steps(root, None), all);
        assert_eq!(steps(root, Some(0)), ["./ 0"]);
        assert_eq!(steps(root, Some(1)), ["./ 0", "a 1", "b/ 1", "link 1", "z 1", "^"]);
        assert_eq!(steps(&root.join("a"), None), ["a 0"]);
        // A root that is a link is what it leads to.
        assert_eq!(steps(&root.join("link"), Some(1)), ["./ 0", "b 1", "c/ 1", "^"]);
        assert!(Walk::new(&root.join("nothing"), None).is_err());
    }

    #[test]
    fn a_folder_of_any_size_is_walked_whole_in_bounded_memory() {
        let home = tempfile::tempdir().unwrap();
        for number in 0..NAMES {
            fs::write(home.path().join(number.to_string()), "").unwrap();
        }
        let (mut found, mut most) = (std::collections::BTreeSet::new(), 0);
        let mut walk = Walk::new(home.path(), None).unwrap();
        while let Some(step) = walk.next() {
            most = most.max(walk.held);
            if let Step::Found(entry) = step {
                assert!(found.insert(entry.relative));
            }
        }
        assert_eq!(found.len(), NAMES + 1);
        assert!(most <= NAMES / 2);
    }

    #[test]
    fn a_tree_is_as_deep_as_paths_can_be() {
        let home = tempfile::tempdir().unwrap();
        let mut path = home.path().to_owned();
        for _ in 0..1000 {
            path.push("d");
            fs::create_dir(&path).unwrap();
        }
        let steps = steps(home.path(), None);
        assert_eq!(steps.len(), 2 * 1001);
        assert!(steps[1000].ends_with("d/d/ 1000"));
    }

    #[test]
    fn what_vanishes_or_refuses_is_told_and_the_walk_goes_on() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("b")).unwrap();
        fs::write(home.path().join("c"), "").unwrap();
        fs::write(home.path().join("d"), "").unwrap();
        let mut relative = Vec::new();
        for step in Walk::new(home.path(), None).unwrap() {
            match step {
                Step::Found(entry) if entry.relative == Path::new("b") => {
                    fs::remove_dir(&entry.path).unwrap();
                    fs::remove_file(home.path().join("c")).unwrap();
                }
                Step::Found(entry) => relative.push(entry.relative.display().to_string()),
                Step::Failed(failure) => relative.push(failure.error),
                Step::Left => relative.push("^".to_owned()),
            }
        }
        let at = |name: &str| home.path().join(name).display().to_string();
        let gone = "no such file or directory";
        let expected = [
            ".".to_owned(),
            format!("open {}: {gone}", at("b")),
            "^".to_owned(),
            format!("lstat {}: {gone}", at("c")),
            "d".to_owned(),
            "^".to_owned(),
        ];
        assert_eq!(relative, expected);
    }

    #[test]
    fn paths_are_cleaned_by_their_text() {
        for (path, expected) in [
            ("", "/"),
            ("/", "/"),
            ("//", "/"),
            ("etc", "/etc"),
            ("/etc/", "/etc"),
            ("/a//b/./c/../d", "/a/b/d"),
            ("/../..", "/"),
            ("../x", "/x"),
        ] {
            assert_eq!(clean(path), Path::new(expected), "{path}");
        }
    }
}
