//! How often which stream has faulted: lists of a fixed size.

use smallvec::{Array, SmallVec};

use crate::assign::StreamId;
use crate::few;
use crate::smmu::hardware::part::BankIndex;

/// How often a stream faulted in a context bank, or in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::smmu) struct Counted {
    pub(in crate::smmu) bank: Option<BankIndex>,
    pub(in crate::smmu) stream: StreamId,
    pub(in crate::smmu) faults: u32,
}

/// Counts one more and says how many there are now. In a full list the stream takes the place of the one that faulted
/// least, if that is below `keep`: so a stream that storms finds a place among any number that fault now and then, and
/// is not replaced itself. `None` where there is no place. Allocates nothing.
pub(in crate::smmu) fn count<A: Array<Item = Counted>>(
    list: &mut SmallVec<A>,
    bank: Option<BankIndex>,
    stream: StreamId,
    keep: u32,
) -> Option<u32> {
    let new = Counted { bank, stream, faults: 0 };
    if !list.iter().any(|one| (one.bank, one.stream) == (bank, stream)) && !few::put(list, new) {
        *list.iter_mut().min_by_key(|one| one.faults).filter(|least| least.faults < keep)? = new;
    }
    let ours = list.iter_mut().find(|one| (one.bank, one.stream) == (bank, stream))?;
    ours.faults = ours.faults.saturating_add(1);
    Some(ours.faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a12_a_storm_finds_a_place_in_a_full_list_and_keeps_it() {
        let mut list = SmallVec::<[Counted; 4]>::new();
        (0..4).for_each(|id| assert_eq!(count(&mut list, None, StreamId::new(id), 5), Some(1)));
        assert_eq!(count(&mut list, None, StreamId::new(9), 0), None);
        (1..=5).for_each(|n| assert_eq!(count(&mut list, None, StreamId::new(9), 5), Some(n)));
        (10..100).for_each(|id| assert_eq!(count(&mut list, Some(3), StreamId::new(id), 5), Some(1)));
        assert_eq!(count(&mut list, None, StreamId::new(9), 5), Some(6));
        assert!(!list.spilled());
    }

    #[test]
    fn a_stream_counts_apart_in_each_bank() {
        let mut list = SmallVec::<[Counted; 4]>::new();
        let stream = StreamId::new(0xffff);
        for (bank, faults) in [(None, 1), (Some(127), 1), (Some(127), 2), (Some(0), 1)] {
            assert_eq!(count(&mut list, bank, stream, 0), Some(faults));
        }
        assert_eq!(list.get(1), Some(&Counted { bank: Some(127), stream, faults: 2 }));
    }
}
