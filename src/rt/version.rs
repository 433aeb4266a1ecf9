//! Which build this is.

/// Semantic version with a leading `v`, as `VersionInfo.tag` wants it.
pub const TAG: &str = concat!("v", env!("CARGO_PKG_VERSION"));
/// The short commit the binary was built from, `none` outside a checkout (set by the Makefile).
pub const SHA: &str = match option_env!("ORLOP_SHA") {
    Some(sha) => sha,
    None => "none",
};
/// When that commit was made, RFC 3339 (set by the Makefile); empty outside a checkout.
pub const BUILT: &str = match option_env!("ORLOP_BUILT") {
    Some(built) => built,
    None => "",
};
/// The compiler, shown where other implementations show their language's version.
pub const COMPILER: &str = concat!("rustc ", env!("CARGO_PKG_RUST_VERSION"));
