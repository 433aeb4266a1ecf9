//! Generates the Rust types and services of `proto/` into `OUT_DIR`.

const FILES: [&str; 29] = [
    "cluster",
    "common",
    "cri",
    "etcd",
    "google/rpc/status",
    "grpc/health/v1/health",
    "health",
    "image",
    "inside",
    "lifecycle",
    "machine",
    "metropolis/node/core/curator/proto/api/api",
    "metropolis/node/core/curator/proto/private/lock",
    "metropolis/node/core/curator/proto/private/storage",
    "metropolis/proto/api/aaa",
    "metropolis/proto/api/configuration",
    "metropolis/proto/api/debug",
    "metropolis/proto/api/management",
    "metropolis/proto/common/common",
    "metropolis/proto/ext/authorization",
    "metropolis/proto/private/private",
    "network",
    "orlop",
    "osbase/logtree/proto/logtree",
    "osbase/net/proto/net",
    "security",
    "storage",
    "time",
    "version/spec/spec",
];
const ROOT: &str = "../../proto";

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed={ROOT}");
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let mut config = tonic_prost_build::Config::new();
    // Comments would double the descriptors.
    config.skip_source_info();
    let files = FILES.map(|name| format!("{ROOT}/{name}.proto"));
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::codec::SmallCodec")
        .generate_default_stubs(true)
        .file_descriptor_set_path(out.join("descriptors.bin"))
        .compile_with_config(config, &files, &[ROOT.to_owned()])
}
