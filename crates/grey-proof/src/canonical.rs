//! Canonical JSON (RFC 8785, the part that statements need): one sequence of bytes for one value.
//!
//! Keys are written by the caller in ascending order, which debug builds assert. Numbers are integers that every JSON
//! reader holds exactly.

use crate::error::ProofError;

/// The largest integer that a double holds together with its neighbours: 2^53 − 1.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// Writes one JSON object or array after another into a buffer, without building a tree.
pub(crate) struct CanonicalWriter<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
    #[cfg(debug_assertions)]
    last_key: Option<String>,
}

impl<'a> CanonicalWriter<'a> {
    /// Writes an object whose members `members` adds.
    pub(crate) fn object(
        out: &'a mut Vec<u8>,
        members: impl FnOnce(&mut CanonicalWriter<'_>) -> Result<(), ProofError>,
    ) -> Result<(), ProofError> {
        out.push(b'{');
        let mut writer = CanonicalWriter {
            out,
            first: true,
            #[cfg(debug_assertions)]
            last_key: None,
        };
        members(&mut writer)?;
        writer.out.push(b'}');
        Ok(())
    }

    fn key(&mut self, key: &str) {
        #[cfg(debug_assertions)]
        {
            debug_assert!(self.last_key.as_deref().is_none_or(|last| last < key), "{key} is out of order");
            self.last_key = Some(key.to_owned());
        }
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        debug_assert!(!key.bytes().any(needs_escape), "{key} would need an escape");
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    pub(crate) fn string(&mut self, key: &str, value: &str) {
        self.key(key);
        write_string(self.out, value);
    }

    pub(crate) fn digest(&mut self, key: &str, value: &crate::Digest) {
        self.key(key);
        let mut digits = [b'"'; 66];
        let [_, pairs @ .., _] = &mut digits;
        for (pair, byte) in pairs.chunks_exact_mut(2).zip(value.0) {
            pair.copy_from_slice(&HEX[usize::from(byte)]);
        }
        self.out.extend_from_slice(&digits);
    }

    pub(crate) fn number(&mut self, key: &'static str, value: u64) -> Result<(), ProofError> {
        if value > MAX_INTEGER {
            return Err(ProofError::NumberOutOfRange { field: key, value });
        }
        self.key(key);
        write_number(self.out, value);
        Ok(())
    }

    pub(crate) fn null(&mut self, key: &str) {
        self.key(key);
        self.out.extend_from_slice(b"null");
    }

    pub(crate) fn nested(
        &mut self,
        key: &str,
        members: impl FnOnce(&mut CanonicalWriter<'_>) -> Result<(), ProofError>,
    ) -> Result<(), ProofError> {
        self.key(key);
        CanonicalWriter::object(self.out, members)
    }

    /// An array of one object.
    pub(crate) fn array_of_one(
        &mut self,
        key: &str,
        members: impl FnOnce(&mut CanonicalWriter<'_>) -> Result<(), ProofError>,
    ) -> Result<(), ProofError> {
        self.key(key);
        self.out.push(b'[');
        CanonicalWriter::object(self.out, members)?;
        self.out.push(b']');
        Ok(())
    }

    pub(crate) fn numbers(&mut self, key: &str, values: &[u32]) {
        self.key(key);
        self.out.push(b'[');
        for (position, value) in values.iter().enumerate() {
            if position > 0 {
                self.out.push(b',');
            }
            write_number(self.out, u64::from(*value));
        }
        self.out.push(b']');
    }
}

/// Both hexadecimal digits of every byte.
const HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut table = [[0u8; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    table
};

fn write_number(out: &mut Vec<u8>, mut value: u64) {
    let start = out.len();
    loop {
        out.push(b'0' + (value % 10) as u8);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    if !text.bytes().any(needs_escape) {
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\r' => out.extend_from_slice(b"\\r"),
            0x00..=0x1f => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&HEX[usize::from(byte)]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// Milliseconds since 1970 as RFC 3339 in UTC with three digits of a second: `2026-11-24T09:30:00.000Z`.
/// The calendar is computed after H. Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
pub(crate) fn rfc3339(field: &'static str, unix_ms: u64) -> Result<String, ProofError> {
    /// The first millisecond of the year 10000.
    const END_MS: u64 = 253_402_300_800_000;
    if unix_ms >= END_MS {
        return Err(ProofError::TimeOutOfRange { field });
    }
    let (days, in_day_ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (in_day_ms / 3_600_000, in_day_ms / 60_000 % 60);
    let (second, milli) = (in_day_ms / 1_000 % 60, in_day_ms % 1_000);
    let mut text = String::with_capacity(24);
    let parts = [(year, 1_000, '-'), (month, 10, '-'), (day, 10, 'T'), (hour, 10, ':'), (minute, 10, ':')];
    for (value, unit, end) in parts.into_iter().chain([(second, 10, '.'), (milli, 100, 'Z')]) {
        push_digits(&mut text, value, unit);
        text.push(end);
    }
    Ok(text)
}

/// Milliseconds since 1970 as people read them, in UTC and as RFC 3339 has it: `2026-11-24T09:30:00.000Z`. Nothing from the year 10000 on.
pub fn utc(unix_ms: u64) -> Option<String> {
    rfc3339("time", unix_ms).ok()
}

/// Decimal digits from the one of `unit` down to the ones. Formatting machinery costs more than all else of a time.
fn push_digits(text: &mut String, value: u64, unit: u64) {
    let mut unit = unit;
    while unit > 0 {
        text.push(char::from(b'0' + (value / unit % 10) as u8));
        unit /= 10;
    }
}

/// Reads what [`rfc3339`] writes, and nothing else.
/// The calendar is computed after H. Hinnant, "chrono-compatible low-level date algorithms", `days_from_civil`.
pub(crate) fn parse_rfc3339(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| -> Option<u64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second, milli) = (number(11, 13)?, number(14, 16)?, number(17, 19)?, number(20, 23)?);
    let shifted_year = year.checked_sub(u64::from(month <= 2))?;
    let shifted_month = if month > 2 { month.checked_sub(3)? } else { month + 9 };
    let year_of_era = shifted_year % 400;
    let day_of_year = (153 * shifted_month + 2) / 5 + day.checked_sub(1)?;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (shifted_year / 400 * 146_097 + day_of_era).checked_sub(719_468)?;
    let unix_ms = days * 86_400_000 + hour * 3_600_000 + minute * 60_000 + second * 1_000 + milli;
    // Writing it again refuses a 31st of February, an hour of 25 and a separator that is none.
    rfc3339("time", unix_ms).is_ok_and(|written| written == text).then_some(unix_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_512_600_123, "2026-11-24T09:30:00.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339("t", unix_ms).unwrap(), text);
            assert_eq!(parse_rfc3339(text), Some(unix_ms));
        }
        for wrong in [
            "",
            "2026-02-30T00:00:00.000Z",
            "2026-11-24T25:00:00.000Z",
            "2026-11-24 09:30:00.123Z",
            "é".repeat(12).as_str(),
        ] {
            assert_eq!(parse_rfc3339(wrong), None, "{wrong}");
        }
        assert!(rfc3339("t", 253_402_300_800_000).is_err());
    }

    proptest! {
        #[test]
        fn any_string_and_number_reads_back_by_a_json_reader(text in "\\PC*|[\\x00-\\x1f\"\\\\]*", number in 0..=MAX_INTEGER) {
            let mut out = Vec::new();
            CanonicalWriter::object(&mut out, |object| {
                object.number("a", number)?;
                object.string("b", &text);
                Ok(())
            }).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(value["a"].as_u64(), Some(number));
            prop_assert_eq!(value["b"].as_str(), Some(text.as_str()));
        }
    }
}
