//! Rotary embeddings: their parameters and the table that follows.

use std::f64::consts::TAU;

/// Rotary embeddings (Su et al., 2021) over whole heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeParams {
    /// Elements of a head.
    pub head_dim: usize,
    /// The base of the frequencies.
    pub theta: f64,
    /// How the frequencies are scaled for long contexts.
    pub scaling: RopeScaling,
}

/// Scalings of RoPE's frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All frequencies divided by the factor (position interpolation, Chen et al., 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// The factor for low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high ones.
        high_freq_factor: f64,
        /// The context the model was first trained with.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al., 2023).
    Yarn {
        /// The factor.
        factor: f64,
        /// The context the model was first trained with.
        original_max_position_embeddings: usize,
        /// Rotations over the context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is divided.
        beta_slow: f64,
        /// Whether the borders of the ramp are rounded to whole dimensions.
        truncate: bool,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
}

impl RopeParams {
    /// Cosines and sines for positions `0 .. max_positions`, as
    /// [`sconce_kernels::Ops::rope_and_cache`] reads them:
    /// `[max_positions, head_dim]`, half cosines, half sines. Computed in f64.
    #[must_use]
    pub fn table(&self, max_positions: usize) -> Vec<f32> {
        let &Self { head_dim, theta, scaling } = self;
        let half = head_dim / 2;
        let frequencies = frequencies(head_dim, theta, scaling);
        let factor = match scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        };
        let mut table = Vec::with_capacity(max_positions * head_dim);
        for position in 0..max_positions {
            let angle = |i: usize| position as f64 * frequencies[i];
            table.extend((0..half).map(|i| (angle(i).cos() * factor) as f32));
            table.extend((0..half).map(|i| (angle(i).sin() * factor) as f32));
        }
        table
    }
}

/// Radians a position, `[head_dim / 2]`.
pub(crate) fn frequencies(head_dim: usize, theta: f64, scaling: RopeScaling) -> Vec<f64> {
    let dim = head_dim as f64;
    let base: Vec<f64> = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim)).collect();
    match scaling {
        RopeScaling::Default => base,
        RopeScaling::Linear { factor } => base.iter().map(|f| f / factor).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = original_max_position_embeddings as f64;
            let scale = |f: &f64| {
                let wavelength = TAU / f;
                if wavelength < original / high_freq_factor {
                    *f
                } else if wavelength > original / low_freq_factor {
                    f / factor
                } else {
                    let kept = (original / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - kept) * f / factor + kept * f
                }
            };
            base.iter().map(scale).collect()
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } => {
            // The dimension whose frequency turns so many times over the context.
            let dimension = |rotations: f64| {
                let turns = original_max_position_embeddings as f64 / (rotations * TAU);
                dim * turns.ln() / (2.0 * theta.ln())
            };
            let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, high) = (low.max(0.0), high.min(dim - 1.0));
            let width = if high == low { 0.001 } else { high - low };
            let scale = |(i, f): (usize, &f64)| {
                let divided = ((i as f64 - low) / width).clamp(0.0, 1.0);
                f / factor * divided + f * (1.0 - divided)
            };
            base.iter().enumerate().map(scale).collect()
        }
    }
}
