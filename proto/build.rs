//! Compiles the protos with protox, so that no `protoc` is needed on the machine.

use std::path::PathBuf;

use prost::Message;

const PROTOS: [&str; 4] = [
    "assistant/tier/v1/tier.proto",
    "assistant/secret/v1/secret.proto",
    "assistant/egress/v1/egress.proto",
    "assistant/channel/v1/channel.proto",
];

#[allow(clippy::disallowed_methods, reason = "cargo tells a build script where to write through its environment")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let descriptors = protox::compile(PROTOS, ["."])?;
    std::fs::write(out.join("assistant.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    for proto in PROTOS {
        println!("cargo::rerun-if-changed={proto}");
    }
    Ok(())
}
