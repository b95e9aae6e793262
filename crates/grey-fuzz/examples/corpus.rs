//! Writes the corpus that Grey's own encoders make: `cargo run -p grey-fuzz --example corpus`.
//!
//! Files named `made-*` are its own and are written anew; all others were found and stay.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for target in grey_fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name);
        std::fs::create_dir_all(&folder)?;
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let is_made =
                path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("made-"));
            if is_made {
                std::fs::remove_file(path)?;
            }
        }
        for (number, input) in (target.corpus)().iter().enumerate() {
            std::fs::write(folder.join(format!("made-{number:02}")), input)?;
        }
    }
    Ok(())
}
