#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::{PermissionsExt as _, symlink};

use futures_util::StreamExt as _;
use tempfile::TempDir;

use super::super::threads::Threads;
use super::*;

/// What `work` sends, or how it fails.
async fn run<T: Send + 'static>(
    work: impl FnOnce(&Outlet<T>) -> Result<(), Stop> + Send + 'static,
) -> Result<Vec<T>, Status> {
    let items: Vec<_> = Threads::new().stream(2, work).await?.collect().await;
    items.into_iter().collect()
}

/// A root with `a/` (mode 2755), `a/big` (1000 bytes), `a/b/` (mode 1777), `a/b/small` (10 bytes),
/// `file` (100 bytes, mode 4640) and `link` to `a`.
fn tree() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/big"), [b'x'; 1000]).unwrap();
    fs::write(at("a/b/small"), [b'x'; 10]).unwrap();
    fs::write(at("file"), [b'x'; 100]).unwrap();
    symlink("a", at("link")).unwrap();
    for (name, mode) in [("a", 0o2755), ("a/b", 0o1777), ("file", 0o4640), ("a/big", 0o600)] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    home
}

async fn listing(request: ListRequest) -> Vec<FileInfo> {
    run(move |outlet| list(outlet, &request)).await.unwrap()
}

#[tokio::test]
async fn how_deep_a_list_goes_and_what_it_shows() {
    let home = tree();
    let root = home.path().to_str().unwrap();
    let (all, near) = (". a a/b a/b/small a/big file link", ". a file link");
    for (root, recurse, recursion_depth, types, expected) in [
        (root.to_owned(), false, 0, &[][..], near),
        (root.to_owned(), false, 5, &[], near),
        (root.to_owned(), true, 0, &[], all),
        (root.to_owned(), true, -1, &[], all),
        (root.to_owned(), true, 1, &[], near),
        (root.to_owned(), true, 2, &[], ". a a/b a/big file link"),
        (root[1..].to_owned() + "//", false, 0, &[], near),
        (format!("{root}/a/../link"), true, 0, &[], ". b b/small big"),
        (format!("{root}/file/"), true, 0, &[], "file"),
        (root.to_owned(), true, 0, &[Type::Regular], "a/b/small a/big file"),
        (root.to_owned(), true, 0, &[Type::Directory, Type::Symlink], ". a a/b link"),
    ] {
        let types = types.iter().map(|kind| (*kind).into()).collect();
        let request = ListRequest {
            root: root.clone(),
            recurse,
            recursion_depth,
            types,
            ..ListRequest::default()
        };
        let names: Vec<_> =
            listing(request).await.into_iter().map(|info| info.relative_name).collect();
        assert_eq!(names.join(" "), expected, "{root} {recurse} {recursion_depth}");
    }
}

#[tokio::test]
async fn an_entry_is_told_with_gos_mode_bits() {
    let home = tree();
    let root = home.path().to_str().unwrap().to_owned();
    if xattr::set(home.path().join("file"), "user.a", b"1").is_err() {
        println!("skipped: extended attributes: the file system has none");
    }
    let request = ListRequest { root: root.clone(), report_xattrs: true, ..ListRequest::default() };
    let infos = listing(request).await;
    let mode = |info: &FileInfo| info.mode;
    let [_, a, file, link] = &infos[..] else { panic!("{infos:?}") };
    assert_eq!(mode(a), 1 << 31 | 1 << 22 | 0o755);
    assert_eq!((mode(file), mode(link)), (1 << 23 | 0o640, 1 << 27 | 0o777));
    assert_eq!((a.is_dir, file.is_dir, link.is_dir), (true, false, false));
    assert_eq!((file.size, file.name.clone()), (100, format!("{root}/file")));
    let metadata = fs::metadata(home.path().join("file")).unwrap();
    assert_eq!(
        (file.modified, file.uid, file.gid),
        (metadata.mtime(), metadata.uid(), metadata.gid())
    );
    assert_eq!((&*link.link, &*file.link), ("a", ""));
    let expected = extended_attributes(&home.path().join("file")).unwrap();
    assert_eq!(file.xattrs, expected);
    let sticky = fs::metadata(home.path().join("a/b")).unwrap().mode();
    assert_eq!(go_mode(sticky), 1 << 31 | 1 << 20 | 0o777);
    for (kind, bits) in [
        (SFlag::S_IFCHR, 1 << 26 | 1 << 21),
        (SFlag::S_IFBLK, 1 << 26),
        (SFlag::S_IFIFO, 1 << 25),
        (SFlag::S_IFSOCK, 1 << 24),
    ] {
        assert_eq!(go_mode(kind.bits() | 0o4600), bits | 1 << 23 | 0o600);
    }
}

#[tokio::test]
async fn a_missing_root_fails_the_call_with_the_kernels_reason() {
    let request = ListRequest { root: "/no/such".to_owned(), ..ListRequest::default() };
    let status = run(move |outlet| list(outlet, &request)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
    assert_eq!(status.message(), "lstat /no/such: no such file or directory");
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_is_told_and_the_list_goes_on() {
    // A link whose target cannot be read is one of a process that has ended.
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = child.id();
    nix::sys::wait::waitid(
        nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap())),
        nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
    )
    .unwrap();
    let request = ListRequest { root: format!("/proc/{pid}"), ..ListRequest::default() };
    let infos = listing(request).await;
    child.wait().unwrap();
    let exe = infos.iter().find(|info| info.relative_name == "exe").unwrap();
    assert_eq!(exe.error, format!("readlink /proc/{pid}/exe: no such file or directory"));
    assert!(infos.iter().any(|info| info.relative_name == "status" && info.error.is_empty()));
}

async fn sums(request: DiskUsageRequest) -> Vec<(String, i64)> {
    let sent = run(move |outlet| usage(outlet, &request)).await.unwrap();
    let line = |DiskUsageInfo { relative_name, size, error, .. }| {
        (if error.is_empty() { relative_name } else { error }, size)
    };
    sent.into_iter().map(line).collect()
}

#[tokio::test]
async fn usage_is_summed_from_below_and_told_as_asked() {
    let home = tree();
    let root = home.path().to_str().unwrap().to_owned();
    let own = |name: &str| {
        i64::try_from(fs::symlink_metadata(home.path().join(name)).unwrap().size()).unwrap()
    };
    let b = own("a/b") + 10;
    let a = own("a") + b + 1000;
    let top = own("") + a + 100 + own("link");
    for (recursion_depth, all, threshold, expected) in [
        (0, false, 0, vec![("a/b", b), ("a", a), (".", top)]),
        (1, false, 0, vec![(".", top)]),
        (2, false, 0, vec![("a", a), (".", top)]),
        (
            0,
            true,
            0,
            vec![
                ("a/b/small", 10),
                ("a/b", b),
                ("a/big", 1000),
                ("a", a),
                ("file", 100),
                ("link", 1),
                (".", top),
            ],
        ),
        (2, true, 0, vec![("a", a), ("file", 100), ("link", 1), (".", top)]),
        (0, true, a, vec![("a", a), (".", top)]),
        (0, true, -100, vec![("a/b/small", 10), ("file", 100), ("link", 1)]),
    ] {
        let paths = vec![root.clone()];
        let request = DiskUsageRequest { recursion_depth, all, threshold, paths };
        let expected: Vec<_> =
            expected.into_iter().map(|(name, size)| (name.to_owned(), size)).collect();
        assert_eq!(sums(request).await, expected, "{recursion_depth} {all} {threshold}");
    }
}

#[tokio::test]
async fn all_paths_are_served_and_one_that_is_missing_is_told() {
    let home = tree();
    let root = home.path().to_str().unwrap();
    let paths = ["no", "file", "a/b"].map(|name| format!("{root}/{name}")).to_vec();
    let sums = sums(DiskUsageRequest { paths, ..DiskUsageRequest::default() }).await;
    let names: Vec<_> = sums.iter().map(|(name, _)| name.as_str()).collect();
    let error = format!("lstat {root}/no: no such file or directory");
    assert_eq!(names, [error.as_str(), "file", "."]);
}

async fn content(path: &str) -> Result<Vec<u8>, Status> {
    let request = ReadRequest { path: path.to_owned() };
    let pieces = run(move |outlet| read(outlet, &request)).await?;
    assert!(pieces.iter().all(|piece| (1..=CHUNK).contains(&piece.bytes.len())));
    Ok(pieces.into_iter().flat_map(|piece| piece.bytes).collect())
}

#[tokio::test]
async fn files_are_read_whole_whatever_size_they_claim() {
    let home = tree();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK] {
        let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
        fs::write(at("file"), &bytes).unwrap();
        assert!(content(&at("file")).await.unwrap() == bytes, "{length}");
    }
    assert_eq!(content(&at("link/b/small")).await.unwrap(), [b'x'; 10]);
    assert_eq!(fs::metadata("/proc/version").unwrap().len(), 0);
    assert_eq!(content("/proc/version").await.unwrap(), fs::read("/proc/version").unwrap());
    let attribute = "/sys/kernel/mm/transparent_hugepage/enabled";
    if Path::new(attribute).exists() {
        assert_eq!(content(attribute).await.unwrap(), fs::read(attribute).unwrap());
    }
}

#[tokio::test]
async fn only_regular_files_under_absolute_paths_are_read() {
    let home = tree();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    nix::unistd::mkfifo(&home.path().join("fifo"), Mode::S_IRUSR).unwrap();
    for path in [at("a"), at("fifo"), at("link"), "/dev/null".to_owned()] {
        let status = content(&path).await.unwrap_err();
        assert_eq!(status.message(), "path must be a regular file", "{path}");
    }
    let status = content(&at("nothing")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
    assert_eq!(status.message(), format!("stat {}: no such file or directory", at("nothing")));
    assert_eq!(
        content("etc/passwd").await.unwrap_err().message(),
        "path is not absolute etc/passwd"
    );
}
