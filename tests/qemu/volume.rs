//! Labelled volumes: with a configuration on them, as `talos.config=metal-iso` looks for, or empty.

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
    let image = folder.join(format!("{label}.ext4"));
    fs::File::create(&image)?.set_len(32 << 20).context("make room for an ext4 volume")?;
    run(Command::new("mkfs.ext4").args(["-q", "-L", label]).arg(&image))?;
    Ok(image)
}

fn write(folder: &Path, config: &str) -> Result<PathBuf> {
    let path = folder.join(FILE);
    fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
