//! Generates the Rust types and services of `proto/` into `OUT_DIR`.

const FILES: [&str; 36] = [
    "ambassador/v1/tap",
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
    "nsm/connection",
    "nsm/connectioncontext",
    "nsm/networkservice",
    "nsp/v1/configurationmanager",
    "nsp/v1/model",
    "nsp/v1/targetregistry",
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
    // What is compared, and sent to many, has one order.
    config.btree_map([".nsp.v1", ".connection", ".connectioncontext"]);
    let files = FILES.map(|name| format!("{ROOT}/{name}.proto"));
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::codec::SmallCodec")
        .generate_default_stubs(true)
        .file_descriptor_set_path(out.join("descriptors.bin"))
        .compile_with_config(config, &files, &[ROOT.to_owned()])
}
