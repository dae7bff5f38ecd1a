//! The little statistics that judging needs: how sure a share of samples is, and
//! the smallest share that samples could have shown.
//!
//! Must not: know metrics, units or verdicts. Sources stand in STATISTICS.md.

/// One-sided 99 %: the 0.99 quantile of the normal distribution.
const Z: f64 = 2.326_347_874_040_841;

/// Square root of a finite number that is not negative; zero for others. (`core`
/// has none.) Newton's method from half the exponent: five rounds are exact.
pub(super) fn sqrt(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 0.0;
    }
    let mut root = f64::from_bits((value.to_bits() >> 1) + 0x1FF8_0000_0000_0000);
    for _ in 0..5 {
        root = 0.5 * (root + value / root);
    }
    root
}

/// The lower end of the one-sided 99 % Wilson score interval of a share: the true
/// share lies below it in one of a hundred cases. 0 to 1.
pub(super) fn wilson_lower(hits: f64, total: f64) -> f64 {
    bound(hits, total, -1.0)
}

/// The upper end; see [`wilson_lower`].
pub(super) fn wilson_upper(hits: f64, total: f64) -> f64 {
    bound(hits, total, 1.0)
}

fn bound(hits: f64, total: f64, side: f64) -> f64 {
    if total <= 0.0 {
        return if side < 0.0 { 0.0 } else { 1.0 };
    }
    let share = (hits / total).clamp(0.0, 1.0);
    let z2 = Z * Z;
    let spread = Z * sqrt(share * (1.0 - share) / total + z2 / (4.0 * total * total));
    ((share + z2 / (2.0 * total) + side * spread) / (1.0 + z2 / total)).clamp(0.0, 1.0)
}

/// Rule of three: nothing seen in so many samples still allows this share (95 %).
pub(super) fn smallest_share(samples: u64) -> f64 {
    if samples == 0 { 1.0 } else { (3.0 / samples as f64).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots() {
        for value in [1e-300, 1e-9, 0.25, 2.0, 144.0, 1e10, 1e300] {
            let root = sqrt(value);
            assert!((root * root / value - 1.0).abs() < 1e-14, "{value}: {root}");
        }
        assert_eq!([sqrt(0.0), sqrt(-1.0), sqrt(f64::NAN), sqrt(f64::INFINITY)], [0.0; 4]);
    }

    #[test]
    fn wilson_bounds_solve_the_score_equation() {
        // The bounds are where the score test just rejects: |p̂ − p| = z·√(p(1−p)/n).
        for (hits, total) in [(0.0, 10.0), (1.0, 300.0), (6.0, 300.0), (150.0, 300.0), (299.0, 300.0), (300.0, 300.0)] {
            for (p, side) in [(wilson_lower(hits, total), 1.0), (wilson_upper(hits, total), -1.0)] {
                if p > 1e-9 && p < 1.0 - 1e-9 {
                    let score = side * (hits / total - p) / sqrt(p * (1.0 - p) / total);
                    assert!((score - Z).abs() < 1e-6, "{hits}/{total}: {p} has score {score}");
                }
            }
        }
        assert_eq!(wilson_lower(0.0, 10.0), 0.0);
        assert_eq!(wilson_upper(10.0, 10.0), 1.0);
        assert_eq!((wilson_lower(0.0, 0.0), wilson_upper(0.0, 0.0)), (0.0, 1.0));
        // Two of a hundred do not show more than 1 %, twenty of a thousand do.
        assert!(wilson_lower(2.0, 100.0) < 0.01);
        assert!(wilson_lower(20.0, 1_000.0) > 0.01);
    }
}
