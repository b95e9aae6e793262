//! Sizes, times and shares of a processor as users write them: always with a unit.

use grey_node::units::with_unit;
pub use grey_node::units::{duration_ms, size_bytes};

/// Thousandths of a processor core: `500m`, or `2` for two cores.
pub fn cpu_millicores(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 2] = [("m", 1), ("", 1_000)];
    with_unit(
        text,
        &UNITS,
        "a share of a processor is a number of cores, such as 2, or of thousandths, such as 500m",
    )
}

/// A variable: `NAME=VALUE`.
pub fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a variable is written NAME=VALUE".to_owned()),
    }
}

/// An idempotency key.
pub fn key(text: &str) -> Result<String, String> {
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    if visible && (1..=100).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("a key has 1 to 100 visible characters without spaces".to_owned())
    }
}

/// A label: `KEY=VALUE`.
pub fn label(text: &str) -> Result<(String, String), String> {
    variable(text).map_err(|_| "a label is written KEY=VALUE, such as zone=a".to_owned())
}

/// Devices of a kind: `KIND=COUNT`.
pub fn devices(text: &str) -> Result<(String, u32), String> {
    let parts = text.split_once('=').and_then(|(kind, count)| Some((kind, count.parse::<u32>().ok()?)));
    match parts {
        Some((kind, count)) if !kind.is_empty() && count > 0 => Ok((kind.to_owned(), count)),
        _ => Err("devices are written KIND=COUNT, such as gpu=1".to_owned()),
    }
}

/// A size for people.
pub fn shown_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1_024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    if unit == 0 { format!("{bytes} B") } else { format!("{}.{} {name}", tenths / 10, tenths % 10) }
}

/// A time of many hours or days for people: the largest unit in which it is a whole number.
pub fn shown_span(time_ms: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")];
    let unit = UNITS.iter().find(|(unit_ms, _)| time_ms >= *unit_ms && time_ms.is_multiple_of(*unit_ms));
    unit.map_or_else(|| format!("{time_ms} ms"), |(unit_ms, name)| format!("{} {name}", time_ms / unit_ms))
}

/// A time for people.
pub fn shown_time(duration_us: u64) -> String {
    match duration_us {
        0..1_000 => format!("{duration_us} µs"),
        1_000..1_000_000 => format!("{}.{} ms", duration_us / 1_000, duration_us % 1_000 / 100),
        1_000_000..60_000_000 => {
            format!("{}.{:02} s", duration_us / 1_000_000, duration_us % 1_000_000 / 10_000)
        }
        _ => {
            let seconds = duration_us / 1_000_000;
            format!("{} h {} min {} s", seconds / 3_600, seconds / 60 % 60, seconds % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_need_units_and_do_not_overflow() {
        assert_eq!(size_bytes("64MiB"), Ok(64 << 20));
        assert_eq!(size_bytes("1 GB"), Ok(1_000_000_000));
        assert_eq!(duration_ms("500ms"), Ok(500));
        assert_eq!(duration_ms("2h"), Ok(7_200_000));
        assert_eq!(cpu_millicores("500m"), Ok(500));
        assert_eq!(cpu_millicores("2"), Ok(2_000));
        for wrong in ["", "64", "MiB", "-1MiB", "1.5GiB", "1XB", "99999999999TiB", "18446744073709551616B"] {
            assert!(size_bytes(wrong).is_err(), "{wrong} was taken");
        }
        for wrong in ["", "30", "s", "1y", "-1s"] {
            assert!(duration_ms(wrong).is_err(), "{wrong} was taken");
        }
        assert!(cpu_millicores("half").is_err());
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert!(variable("=b").is_err() && variable("A").is_err());
    }

    #[test]
    fn figures_are_shown_in_the_unit_that_suits_them() {
        assert_eq!(shown_size(999), "999 B");
        assert_eq!(shown_size(3 * 1_024 * 1_024 + 200_000), "3.1 MiB");
        assert_eq!(shown_time(12_345), "12.3 ms");
        assert_eq!(shown_span(90 * 86_400_000), "90 d");
        assert_eq!((shown_span(90_000), shown_span(1_500)), ("90 s".to_owned(), "1500 ms".to_owned()));
        assert_eq!(shown_time(90_000_000), "0 h 1 min 30 s");
    }
}
