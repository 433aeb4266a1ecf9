//! Whom to believe: selection, clustering and combining (RFC 5905 §11.2), pure functions of what each
//! source says now.

/// A source as the algorithms see it. All figures are in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// What must be added to the local clock.
    pub offset: f64,
    /// How far the offset may be from the truth, at most (root distance).
    pub distance: f64,
    /// How much its offsets vary.
    pub jitter: f64,
    /// Of the server.
    pub stratum: u8,
}

/// The indices of `candidates` that tell the truth, as far as a majority can know: those whose offset
/// lies in the smallest interval that more than half of all have in common (§11.2.1). Empty when there
/// is no such majority.
///
/// The result is the same in whatever order the candidates stand.
#[must_use]
pub fn truechimers(candidates: &[Candidate]) -> Vec<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Edge {
        Lower,
        Middle,
        Upper,
    }
    let mut edges: Vec<(f64, Edge)> = Vec::with_capacity(3 * candidates.len());
    for Candidate { offset, distance, .. } in candidates {
        edges.push((offset - distance, Edge::Lower));
        edges.push((*offset, Edge::Middle));
        edges.push((offset + distance, Edge::Upper));
    }
    let rank = |edge: Edge| match edge {
        // Intervals that only touch have a point in common.
        Edge::Lower => 0,
        Edge::Middle => 1,
        Edge::Upper => 2,
    };
    orlop_rt::sort_by(&mut edges, |(a, x), (b, y)| a.total_cmp(b).then(rank(*x).cmp(&rank(*y))));
    let count = candidates.len();
    for false_ones in 0..count.div_ceil(2) {
        let needed = count - false_ones;
        // Walks inwards from one side until enough intervals overlap; counts the middles passed by.
        let walk = |edges: &mut dyn Iterator<Item = &(f64, Edge)>, opens: Edge, closes: Edge| {
            let (mut open, mut middles) = (0, 0);
            for (at, edge) in edges {
                if *edge == opens {
                    open += 1;
                    if open >= needed {
                        return Some((*at, middles));
                    }
                } else if *edge == closes {
                    open -= 1;
                } else {
                    middles += 1;
                }
            }
            None
        };
        let low = walk(&mut edges.iter(), Edge::Lower, Edge::Upper);
        let high = walk(&mut edges.iter().rev(), Edge::Upper, Edge::Lower);
        let (Some((low, below)), Some((high, above))) = (low, high) else { continue };
        if low <= high && below + above <= false_ones {
            return (0..count).filter(|i| (low..=high).contains(&candidates[*i].offset)).collect();
        }
    }
    Vec::new()
}

/// Of those that tell the truth, the ones to follow: outliers go as long as they spread more than the
/// best source varies by itself, and more than [`FEWEST`] are left (§11.2.2). The best comes first.
#[must_use]
pub fn cluster(candidates: &[Candidate], mut chosen: Vec<usize>) -> Vec<usize> {
    let metric = |i: &usize| f64::from(candidates[*i].stratum) * 1.5 + candidates[*i].distance;
    orlop_rt::sort_by(&mut chosen, |a, b| metric(a).total_cmp(&metric(b)));
    while chosen.len() > FEWEST {
        let spread = |i: usize| {
            let squares =
                chosen.iter().map(|j| (candidates[i].offset - candidates[*j].offset).powi(2));
            #[expect(clippy::cast_precision_loss, reason = "a handful")]
            let others = (chosen.len() - 1) as f64;
            (squares.sum::<f64>() / others).sqrt()
        };
        let steadiest = chosen.iter().map(|i| candidates[*i].jitter).fold(f64::INFINITY, f64::min);
        let outlier =
            (0..chosen.len()).max_by(|a, b| spread(chosen[*a]).total_cmp(&spread(chosen[*b])));
        let Some(outlier) = outlier.filter(|at| spread(chosen[*at]) > steadiest) else { break };
        chosen.remove(outlier);
    }
    chosen
}

/// What the chosen say together: each weighs as much as it is near to the truth (§11.2.3). `None` of
/// nobody.
#[must_use]
pub fn combine(candidates: &[Candidate], chosen: &[usize]) -> Option<Combined> {
    let weight = |i: &usize| 1.0 / candidates[*i].distance.max(1e-9);
    let total: f64 = chosen.iter().map(weight).sum();
    let best = chosen.first()?;
    let mean = |of: fn(&Candidate) -> f64| {
        chosen.iter().map(|i| weight(i) * of(&candidates[*i])).sum::<f64>() / total
    };
    let offset = mean(|candidate| candidate.offset);
    let spread =
        chosen.iter().map(|i| weight(i) * (candidates[*i].offset - offset).powi(2)).sum::<f64>();
    let variance =
        chosen.iter().map(|i| (weight(i) / total * candidates[*i].jitter).powi(2)).sum::<f64>();
    Some(Combined {
        offset,
        noise: variance.sqrt(),
        spread: (spread / total).sqrt(),
        distance: candidates[*best].distance,
        stratum: candidates[*best].stratum,
    })
}

/// What several sources say together, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Combined {
    /// What must be added to the local clock.
    pub offset: f64,
    /// The standard deviation of that, if the sources err independently.
    pub noise: f64,
    /// How far the sources are apart.
    pub spread: f64,
    /// Of the best source.
    pub distance: f64,
    /// Of the best source.
    pub stratum: u8,
}

/// Never fewer than these are left by clustering (`NMIN`).
pub const FEWEST: usize = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(offset: f64, distance: f64) -> Candidate {
        Candidate { offset, distance, jitter: 0.001, stratum: 2 }
    }

    #[test]
    fn a_majority_is_believed_and_a_tie_is_not() {
        let near = |offset| of(offset, 0.02);
        assert_eq!(truechimers(&[]), [0usize; 0]);
        assert_eq!(truechimers(&[near(7.0)]), [0]);
        assert_eq!(truechimers(&[near(0.0), near(7.0)]), [0usize; 0], "one word against another");
        assert_eq!(truechimers(&[near(0.0), near(0.01), near(7.0)]), [0, 1]);
        assert_eq!(
            truechimers(&[near(7.0), near(0.0), near(7.01), near(0.01), near(-0.01)]),
            [1, 3, 4]
        );
        let four = [near(0.0), near(0.01), near(7.0), near(7.01)];
        assert_eq!(truechimers(&four), [0usize; 0], "two against two");
    }

    #[test]
    fn a_wide_interval_does_not_make_an_offset_true() {
        let candidates = [of(0.0, 0.01), of(0.005, 0.01), of(0.4, 0.5)];
        assert_eq!(truechimers(&candidates), [0, 1]);
    }

    #[test]
    fn outliers_go_until_three_are_left_and_the_best_comes_first() {
        let mut candidates =
            [of(0.0, 0.03), of(0.001, 0.02), of(0.0, 0.05), of(0.02, 0.04), of(0.0005, 0.06)];
        candidates[2].stratum = 1;
        let chosen = cluster(&candidates, vec![0, 1, 2, 3, 4]);
        assert_eq!(chosen, [2, 1, 0, 4]);
        assert_eq!(cluster(&candidates, vec![0, 3]), [0, 3]);
    }

    #[test]
    fn the_nearest_weighs_most() {
        let candidates = [of(0.0, 0.01), of(0.030, 0.02)];
        let combined = combine(&candidates, &[0, 1]);
        assert!(combined.is_some_and(|all| (all.offset - 0.010).abs() < 1e-9), "{combined:?}");
        assert_eq!(combine(&candidates, &[]), None);
    }

    proptest! {
        /// Whatever up to half minus one of them say: the others are right within their distance, and
        /// whoever is believed is in their interval.
        #[test]
        fn liars_in_the_minority_are_never_followed_far(
            honest in proptest::collection::vec((-1.0f64..1.0, 0.001f64..0.05), 2..8),
            lies in proptest::collection::vec((-1e3f64..1e3, 1e-6f64..1.0), 0..7),
        ) {
            let lies = &lies[..lies.len().min(honest.len() - 1)];
            // The truth is 0: an honest source is off by less than its distance.
            let honest = honest.iter().map(|(off, distance)| of(off * distance, *distance));
            let widest = honest.clone().map(|one| one.distance).fold(0.0, f64::max);
            let all: Vec<_> =
                lies.iter().map(|(off, distance)| of(*off, *distance)).chain(honest).collect();
            for i in truechimers(&all) {
                prop_assert!(all[i].offset.abs() <= 2.0 * widest, "{i} of {all:?}");
            }
            let mut turned = all.clone();
            turned.reverse();
            prop_assert_eq!(truechimers(&all).len(), truechimers(&turned).len());
        }
    }
}
