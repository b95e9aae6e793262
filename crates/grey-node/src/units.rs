//! Sizes and times as users write them: always with a unit.

/// Bytes: `64MiB`, `1GB`, `512B`.
///
/// # Errors
/// What is wrong with the text, and the units there are.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("B", 1),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    with_unit(text, &UNITS, "a size needs a number and a unit, such as 64MiB or 1GB")
}

/// Milliseconds: `30s`, `500ms`, `2h`.
///
/// # Errors
/// What is wrong with the text, and the units there are.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 5] =
        [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    with_unit(text, &UNITS, "a time needs a number and a unit, such as 30s, 500ms or 2h")
}

/// A whole number and one of several units with what each stands for.
///
/// # Errors
/// `help` and the units there are, or that the value is too large.
pub fn with_unit(text: &str, units: &[(&str, u64)], help: &str) -> Result<u64, String> {
    let split = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start()).map(|(_, factor)| *factor);
    let number: Option<u64> = digits.parse().ok();
    let (Some(number), Some(factor)) = (number, factor) else {
        let known: Vec<&str> = units.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
        return Err(format!("{help}; units: {}", known.join(", ")));
    };
    number.checked_mul(factor).ok_or_else(|| "the value is too large".to_owned())
}
