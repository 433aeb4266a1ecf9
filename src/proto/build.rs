//! Generates the Rust types and services of `proto/` into `OUT_DIR`.

use std::fs;

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
        .compile_with_config(config, &files, &[ROOT.to_owned()])?;
    for file in fs::read_dir(&out)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            fs::write(&path, share(&fs::read_to_string(&path)?))?;
        }
    }
    Ok(())
}

/// How tonic's generated code makes a codec; and in a client how it waits until it may call.
const CODEC: &str = "let codec = crate::codec::SmallCodec::default();\n";
const READY: &str = r#"            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
"#;

/// Has generated services go through what all methods share: see `codec.rs`. Streams of requests stay as they are.
fn share(text: &str) -> String {
    let mut methods = text.split(CODEC);
    let mut shared = methods.next().unwrap_or_default().replace(READY, "");
    for method in methods {
        // One for each direction; behind it begins another method, which brings its own.
        let bare = ["grpc.unary(method, req)", "grpc.server_streaming(method, req)"];
        let is_bare = bare.iter().any(|call| method.contains(call));
        shared += if is_bare { "let codec = crate::codec::Bare;\n" } else { CODEC };
        let mut method = method.replace(READY, "");
        for (ours, theirs) in [
            ("grpc.unary(crate::codec::unary(method), req)", bare[0]),
            ("grpc.server_streaming(crate::codec::server_streaming(method), req)", bare[1]),
            (
                "crate::codec::call(&mut self.inner, req, path, codec)",
                "self.inner.unary(req, path, codec)",
            ),
            (
                "crate::codec::ready(&mut self.inner).await?.server_streaming(req, path, codec)",
                "self.inner.server_streaming(req, path, codec)",
            ),
            (
                "crate::codec::ready(&mut self.inner).await?.client_streaming(req, path, codec)",
                "self.inner.client_streaming(req, path, codec)",
            ),
            (
                "crate::codec::ready(&mut self.inner).await?.streaming(req, path, codec)",
                "self.inner.streaming(req, path, codec)",
            ),
        ] {
            method = method.replace(theirs, ours);
        }
        shared += &method;
    }
    let left = [".ready()", "self.inner.unary", "self.inner.streaming(", "grpc.unary(method"];
    let left = left.into_iter().find(|left| shared.contains(left));
    assert_eq!(left, None, "tonic generates something else than it did, and this must know of it");
    shared
}
