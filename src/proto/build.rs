//! Generates the Rust types and services of `proto/` into `OUT_DIR`.

const FILES: [&str; 8] =
    ["common", "google/rpc/status", "health", "machine", "network", "orlop", "security", "storage"];
const ROOT: &str = "../../proto";

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed={ROOT}");
    let files = FILES.map(|name| format!("{ROOT}/{name}.proto"));
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::codec::SmallCodec")
        .generate_default_stubs(true)
        .compile_protos(&files, &[ROOT.to_owned()])
}
