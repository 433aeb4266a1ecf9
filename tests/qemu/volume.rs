//! Labelled volumes: with a configuration on them, as `talos.config=metal-iso` looks for, or those of a
//! node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

const LABEL: &str = "metal-iso";
const FILE: &str = "config.yaml";

/// An ISO 9660 disc in `folder`.
///
/// # Errors
/// When xorriso fails or is not there.
pub fn iso(folder: &Path, config: &str) -> Result<PathBuf> {
    let (image, source) = (folder.join("config.iso"), write(folder, config)?);
    let map = ["-V", LABEL, "-joliet", "-o"];
    let mut command = Command::new("xorriso");
    command.args(["-as", "mkisofs", "-quiet"]).args(map).arg(&image).arg(&source);
    run(&mut command)?;
    Ok(image)
}

/// A FAT file system on a disk without partitions, in `folder`. Its label is in capitals, because FAT
/// knows no others.
///
/// # Errors
/// When mkfs.vfat or mcopy fails or is not there.
pub fn fat(folder: &Path, config: &str) -> Result<PathBuf> {
    let (image, source) = (folder.join("config.fat"), write(folder, config)?);
    fs::File::create(&image)?.set_len(4 << 20).context("make room for a FAT volume")?;
    run(Command::new("mkfs.vfat").args(["-n", &LABEL.to_uppercase()]).arg(&image))?;
    run(Command::new("mcopy").arg("-i").arg(&image).arg(&source).arg(format!("::{FILE}")))?;
    Ok(image)
}

/// An ext4 file system with nothing on it, in `folder`.
///
/// # Errors
/// When mkfs.ext4 fails or is not there.
pub fn empty(folder: &Path, label: &str) -> Result<PathBuf> {
    ext4(folder, label, 32 << 20, None)
}

/// An ext4 file system of so many bytes, in `folder`, that holds what `contents` does.
///
/// # Errors
/// When mkfs.ext4 fails or is not there.
pub fn filled(folder: &Path, label: &str, bytes: u64, contents: &Path) -> Result<PathBuf> {
    ext4(folder, label, bytes, Some(contents))
}

fn ext4(folder: &Path, label: &str, bytes: u64, contents: Option<&Path>) -> Result<PathBuf> {
    let image = folder.join(format!("{label}.ext4"));
    fs::File::create(&image)?.set_len(bytes).context("make room for an ext4 volume")?;
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-L", label]);
    if let Some(contents) = contents {
        command.arg("-d").arg(contents);
    }
    run(command.arg(&image))?;
    Ok(image)
}

/// Whether the ext4 file system in `image` was unmounted.
///
/// # Errors
/// When dumpe2fs finds none.
pub fn is_unmounted(image: &Path) -> Result<bool> {
    let told = run(Command::new("dumpe2fs").arg("-h").arg(image))?;
    let value = |name: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).with_context(|| format!("dumpe2fs tells no {name}\n{told}"))
    };
    let recovers = value("Filesystem features:")?.contains("needs_recovery");
    Ok(value("Filesystem state:")? == "clean" && !recovers)
}

/// A disk with one partition, META of 1 MiB, in `folder`.
///
/// # Errors
/// When sfdisk fails or is not there.
pub fn meta(folder: &Path) -> Result<PathBuf> {
    let image = folder.join("meta.raw");
    fs::File::create(&image)?.set_len(3 << 20).context("make room for a disk")?;
    let table = folder.join("meta.table");
    fs::write(&table, "label: gpt\nstart=2048, size=2048, name=META\n")?;
    run(Command::new("sfdisk").arg("--quiet").arg(&image).stdin(fs::File::open(&table)?))?;
    Ok(image)
}

/// The value of a key in each of the two copies of META's tags (`src/machined/meta.rs`), on the disk that
/// [`meta`] made: the outer `None` is a copy that was not written to its end.
///
/// # Errors
/// When the disk cannot be read.
pub fn meta_values(image: &Path, key: u32) -> Result<[Option<Option<String>>; 2]> {
    const COPY: usize = 256 << 10;
    let disk = fs::read(image).with_context(|| format!("read {}", image.display()))?;
    let partition = &disk[1 << 20..];
    Ok([0, COPY].map(|at| meta_value(&partition[at..at + COPY], key)))
}

fn meta_value(block: &[u8], key: u32) -> Option<Option<String>> {
    let (body, tail) = block.split_at(block.len() - 36);
    let mut zeroed = block.to_vec();
    zeroed[body.len()..body.len() + 32].fill(0);
    let sum = ring::digest::digest(&ring::digest::SHA256, &zeroed);
    let whole = body.starts_with(&[0x5a, 0x4b, 0x3c, 0x2d]);
    if !whole || tail[..32] != *sum.as_ref() || tail[32..] != [0xa5, 0xb4, 0xc3, 0xd2] {
        return None;
    }
    let word = |at: usize| Some(u32::from_be_bytes(*body.get(at..)?.first_chunk()?));
    let mut at = 4;
    while let Some((tag, length)) = word(at).zip(word(at + 4)).filter(|tag| *tag != (0, 0)) {
        let end = at + 8 + length as usize;
        if tag == key {
            let value = body.get(at + 8..end)?;
            return Some(Some(String::from_utf8_lossy(value).into_owned()));
        }
        at = end;
    }
    Some(None)
}

fn write(folder: &Path, config: &str) -> Result<PathBuf> {
    let path = folder.join(FILE);
    fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// What it says.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
