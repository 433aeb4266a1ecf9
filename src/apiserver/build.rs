//! Packs the tables that are read but once, at the first use of what they tell: as text they are larger than all that
//! describes them.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::ZlibEncoder;

const TABLES: [&str; 6] = [
    "authz/bootstrap.txt",
    "schema/fields.tsv",
    "schema/meta.tsv",
    "schema/resources.tsv",
    "strategy/defaults.tsv",
    "strategy/validate/rules.tsv",
];

fn main() -> io::Result<()> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    for table in TABLES {
        println!("cargo::rerun-if-changed={table}");
        let name = table.rsplit('/').next().unwrap_or_default();
        let mut packed = ZlibEncoder::new(File::create(out.join(name))?, Compression::best());
        packed.write_all(&fs::read(table)?)?;
        packed.finish()?;
    }
    Ok(())
}
