//! Stable sorting for lists of some hundred things at most: `slice::sort` is quicker with many, and brings 4 KB of code
//! for each type and order it is used with. This brings a hundred bytes.

use std::cmp::Ordering;

/// As `slice::sort`.
pub fn sort<T: Ord>(items: &mut [T]) {
    sort_by(items, T::cmp);
}

/// As `slice::sort_by_key`.
pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    sort_by(items, |one, other| key(one).cmp(&key(other)));
}

/// As `slice::sort_by`.
pub fn sort_by<T>(items: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    let swaps = swaps(items.len(), &|one, other| compare(&items[one], &items[other]));
    for (one, other) in swaps {
        items.swap(one, other);
    }
}

/// What is to be swapped, in this order, for so many things to be in order.
fn swaps(count: usize, compare: &dyn Fn(usize, usize) -> Ordering) -> Vec<(usize, usize)> {
    // Which thing belongs in each place.
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|one, other| compare(*one, *other));
    let mut swaps = Vec::new();
    for first in 0..count {
        // Each circle of things that stand in each other's places, from its first to its last.
        let mut place = first;
        while order[place] != first {
            let from = std::mem::replace(&mut order[place], place);
            swaps.push((place, from));
            place = from;
        }
        order[place] = place;
    }
    swaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_as_the_standard_library_does() {
        // Not random, but as mixed: 1 to 63 things, of which some are equal.
        for count in 0..64_u32 {
            for step in [1, 5, 7, 31, 61] {
                let list: Vec<_> = (0..count).map(|i| (i * step % 16, i)).collect();
                let (mut ours, mut theirs) = (list.clone(), list.clone());
                sort_by_key(&mut ours, |(key, _)| *key);
                theirs.sort_by_key(|(key, _)| *key);
                assert_eq!(ours, theirs);
                sort_by(&mut ours, |one, other| other.cmp(one));
                theirs.sort_by(|one, other| other.cmp(one));
                assert_eq!(ours, theirs);
                let mut names: Vec<_> = list.iter().map(|pair| format!("{pair:?}")).collect();
                let mut sorted = names.clone();
                sort(&mut names);
                sorted.sort();
                assert_eq!(names, sorted);
            }
        }
    }
}
