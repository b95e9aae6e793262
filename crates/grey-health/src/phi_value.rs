//! The value of phi. This is the only file that computes with floats, and it keeps none: integers come in, an integer goes
//! out. The functions are those of the crate `libm`, in software and with the same result on every platform, and the
//! other operations are exact by IEEE 754.

use core::f64::consts::SQRT_2;

use crate::limits;
use crate::samples::Samples;

/// The tail below which phi has reached its bound.
const SMALLEST_TAIL: f64 = 1e-100;

const _: () = assert!(limits::PHI_MILLI == 100_000);

/// Phi = −log10(1 − F(elapsed)), in thousandths, rounded down, at most [`limits::PHI_MILLI`]; F is the normal distribution
/// with the samples' mean plus the acceptable pause, and their deviation but at least the floor (Hayashibara, Défago, Yared,
/// Katayama: "The φ accrual failure detector", SRDS 2004). It never falls while the silence grows.
pub(crate) fn phi_milli(elapsed_ms: u64, samples: &Samples, pause_ms: u64, deviation_floor_ms: u64) -> u32 {
    let count = samples.count() as f64;
    let mean = samples.sum_ms() as f64 / count + pause_ms as f64;
    let deviation = (libm::sqrt(samples.scaled_variance() as f64) / count).max(deviation_floor_ms as f64);
    let distance = (elapsed_ms as f64 - mean) / deviation;
    let tail = libm::erfc(distance / SQRT_2) / 2.0;
    if tail <= SMALLEST_TAIL {
        return limits::PHI_MILLI;
    }
    // The conversion saturates, so that no value is out of range; a tail of one gives zero.
    (-libm::log10(tail) * 1_000.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Quantiles of the normal distribution, in deviations above the mean, with their phi in thousandths.
    #[test]
    fn phi_of_known_quantiles_is_what_tables_say() {
        let mut samples = Samples::assumed(2, 1_000_000);
        samples.push(1_000_000);
        samples.push(1_000_000);
        let quantiles = [
            (0, 301),
            (1_281_552, 1_000),
            (2_326_348, 2_000),
            (3_090_232, 3_000),
            (4_753_424, 6_000),
            (5_612_001, 8_000),
        ];
        for (above, expected) in quantiles {
            let phi = phi_milli(1_000_000 + above, &samples, 0, 1_000_000);
            assert!(phi.abs_diff(expected) <= 1, "{above}: {phi}");
            assert_eq!(
                phi_milli(1_000_500 + above, &samples, 500, 1_000_000),
                phi,
                "a pause shifts the mean"
            );
        }
    }

    #[test]
    fn the_ends_are_finite() {
        let samples = Samples::assumed(10, 50);
        assert_eq!(phi_milli(0, &samples, u64::MAX, 1), 0);
        assert_eq!(phi_milli(u64::MAX, &samples, 0, 1), limits::PHI_MILLI);
        assert_eq!(phi_milli(u64::MAX, &samples, 0, u64::MAX), 799, "one deviation above");
    }
}
