//! How evenly tenants are served.

/// Jain's fairness index: 1 where all have alike, 1/n where one of n has everything.
/// Where nobody has anything, all have alike.
#[must_use]
pub fn jain_index(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for value in values {
        (count, sum, squares) = (count + 1.0, sum + value, squares + value * value);
    }
    if squares > 0.0 { sum * sum / (count * squares) } else { 1.0 }
}

/// What a tenant asked for and got, and its weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    pub(crate) weight: f64,
    pub(crate) asked: f64,
    pub(crate) got: f64,
}

/// A tenant that got less than this part of what it asked for wanted more. The rest is on
/// its way when the last request comes.
const SATISFIED: f64 = 0.9;

/// Jain's index of the cost served by weight, among tenants that wanted more; `None` where
/// there are fewer than two.
pub(crate) fn among_backlogged(services: &[Service]) -> Option<f64> {
    let backlogged = || services.iter().filter(|s| s.got < SATISFIED * s.asked);
    (backlogged().count() > 1).then(|| jain_index(backlogged().map(|s| s.got / s.weight)))
}

/// Jain's index of what each tenant that asked for anything got, by what it would have got
/// if the same service had been shared out max-min fairly: everybody its part by weight, but
/// nobody more than it asked for, and what is left over to the others.
pub(crate) fn among_all(services: &[Service]) -> f64 {
    let mut askers: Vec<_> = services.iter().filter(|s| s.asked > 0.0).copied().collect();
    askers.sort_by(|a, b| (a.asked / a.weight).total_cmp(&(b.asked / b.weight)));
    let mut left: f64 = askers.iter().map(|s| s.got).sum();
    let mut weights: f64 = askers.iter().map(|s| s.weight).sum();
    jain_index(askers.iter().map(|s| {
        let fair = s.asked.min(left / weights * s.weight);
        (left, weights) = (left - fair, weights - s.weight);
        if fair > 0.0 { s.got / fair } else { 0.0 }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(asked: [f64; 3], got: [f64; 3]) -> [Service; 3] {
        std::array::from_fn(|i| Service { weight: 1.0, asked: asked[i], got: got[i] })
    }

    #[test]
    fn who_asks_for_little_and_gets_it_is_treated_fairly() {
        assert!((among_all(&of([10.0, 80.0, 90.0], [10.0, 45.0, 45.0])) - 1.0).abs() < 1e-9);
        // The third takes what is the first's, who asked for no more than its part.
        let robbed = of([10.0, 80.0, 90.0], [0.0, 45.0, 55.0]);
        assert!(among_all(&robbed) < 0.7, "{}", among_all(&robbed));
        assert_eq!(among_backlogged(&of([10.0, 20.0, 90.0], [10.0, 20.0, 70.0])), None);
        let uneven = among_backlogged(&of([10.0, 80.0, 90.0], [10.0, 30.0, 60.0]));
        assert!((uneven.expect("two wanted more") - 0.9).abs() < 1e-9);
    }

    #[test]
    fn the_index_is_a_part_of_the_number() {
        assert!((jain_index([5.0, 5.0, 5.0]) - 1.0).abs() < 1e-12);
        assert!((jain_index([5.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-12);
        assert!((jain_index([0.0, 0.0]) - 1.0).abs() < 1e-12);
    }
}
