//! Compiles the schema without a compiler of the system's.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schema = protox::compile(["proto/grey/node/v1/node.proto"], ["proto"])?;
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure().bytes(".").compile_fds(schema)?;
    Ok(())
}
