//! The random draws of the generator: a stream of numbers fixed by (seed, index, purpose), and Zipf ranks.
//!
//! Nothing here keeps state between indices, so any record can be made again at any time, in any order, and the
//! same seed gives the same data whatever version of a random-number crate is current.

/// Mixes 64 bits so that neighbouring inputs give unrelated outputs (the finalizer of SplitMix64).
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A short sequence of random numbers (SplitMix64) that belongs to one thing and one purpose.
#[derive(Debug, Clone)]
pub(crate) struct Draw(u64);

impl Draw {
    /// The sequence of `index` for `purpose`.
    pub(crate) fn new(seed: u64, index: u64, purpose: u64) -> Draw {
        Draw(mix(mix(seed.wrapping_add(GOLDEN)) ^ mix(index.wrapping_mul(GOLDEN).wrapping_add(purpose))))
    }

    /// 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[0, bound)`; 0 where `bound` is 0. (The bias of at most 2^-64 x bound doesn't matter here.)
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// True with a probability. Always takes one number, so that what follows stays the same.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }
}

/// Ranks 1 to `n` with probability proportional to rank^-exponent, in constant memory.
///
/// An octave [2^k, 2^(k+1)) is chosen by its weight, a rank inside it uniformly, and accepted by the ratio of the
/// curve to the octave's step.
#[derive(Debug, Clone)]
pub(crate) struct Zipf {
    n: u64,
    exponent: f64,
    /// The cumulated weight at the end of each octave.
    octaves: Vec<f64>,
}

impl Zipf {
    /// Ranks 1 to `n` (at least 1).
    pub(crate) fn new(n: u64, exponent: f64) -> Zipf {
        let n = n.max(1);
        let mut total = 0.0;
        let octaves = (0..=n.ilog2())
            .map(|k| {
                total += 2f64.powf(f64::from(k) * (1.0 - exponent));
                total
            })
            .collect();
        Zipf { n, exponent, octaves }
    }

    /// One rank.
    pub(crate) fn rank(&self, draw: &mut Draw) -> u64 {
        let total = self.octaves[self.octaves.len() - 1];
        loop {
            let target = draw.unit() * total;
            let k = self.octaves.iter().position(|&end| target < end).unwrap_or(self.octaves.len() - 1);
            let step = 1u64 << k;
            let rank = step + draw.below(step);
            let accepted = draw.unit() < (step as f64 / rank as f64).powf(self.exponent);
            if rank <= self.n && accepted {
                return rank;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_the_curve_and_stay_in_range() {
        let (n, exponent) = (100u64, 1.1);
        let zipf = Zipf::new(n, exponent);
        let mut counts = vec![0u64; n as usize + 1];
        let mut draw = Draw::new(1, 0, 0);
        let draws = 200_000;
        (0..draws).for_each(|_| counts[zipf.rank(&mut draw) as usize] += 1);
        assert_eq!(counts[0], 0);
        let total: f64 = (1..=n).map(|rank| (rank as f64).powf(-exponent)).sum();
        for rank in [1u64, 2, 3, 4, 7, 8, 50, 100] {
            let expected = (rank as f64).powf(-exponent) / total * f64::from(draws);
            let found = counts[rank as usize] as f64;
            assert!((found - expected).abs() < 5.0 * expected.sqrt() + 1.0, "{rank}: {found} not {expected}");
        }
        assert_eq!(Zipf::new(1, 0.8).rank(&mut draw), 1);
    }
}
