//! Items in pieces that Redis takes or gives in one go. It serves nobody else meanwhile, so a piece is bounded by what it
//! weighs, and not only by how many items there are.

/// How much goes into one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Items at most.
    pub(crate) items: usize,
    /// What they weigh together at most, unless one alone weighs more.
    pub(crate) weight: usize,
}

/// All pieces of `items`, in order. None is empty.
pub(crate) fn pieces<T>(items: &[T], bounds: Bounds, weight: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut pieces, mut rest) = (Vec::new(), items);
    while !rest.is_empty() {
        let mut sum = 0_usize;
        let fits = |item: &&T| {
            sum = sum.saturating_add(weight(item));
            sum <= bounds.weight
        };
        let count = rest.iter().take(bounds.items).take_while(fits).count();
        let (piece, others) = rest.split_at(count.max(1));
        pieces.push(piece);
        rest = others;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { items: 4, weight: 100 };

    #[test]
    fn a_piece_ends_by_number_or_by_weight() {
        for (weights, expected) in [
            (vec![], vec![]),
            // Many small ones.
            (vec![1; 9], vec![4, 4, 1]),
            (vec![0; 5], vec![4, 1]),
            // Few large ones.
            (vec![40; 5], vec![2, 2, 1]),
            (vec![50, 50, 1], vec![2, 1]),
            // One that is larger than the bound goes alone.
            (vec![101, 1, 1], vec![1, 2]),
            (vec![1, 101, 1], vec![1, 1, 1]),
            (vec![usize::MAX, usize::MAX], vec![1, 1]),
        ] {
            let lengths: Vec<usize> =
                pieces(&weights, BOUNDS, |weight| *weight).iter().map(|piece| piece.len()).collect();
            assert_eq!(lengths, expected, "{weights:?}");
        }
    }

    proptest! {
        #[test]
        fn pieces_are_all_items_in_order(weights in prop::collection::vec(0_usize..150, 0..40)) {
            let pieces = pieces(&weights, BOUNDS, |weight| *weight);
            prop_assert_eq!(&pieces.concat(), &weights);
            for piece in pieces {
                let is_light = piece.iter().sum::<usize>() <= BOUNDS.weight;
                prop_assert!((1..=BOUNDS.items).contains(&piece.len()) && (is_light || piece.len() == 1));
            }
        }
    }
}
