//! The banks of each domain, found without a search.

use alloc::vec::Vec;

use crate::assign::DomainId;
use crate::few;
use crate::smmu::hardware::part::BankIndex;
use crate::smmu::stream::number_set::BankSet;

/// A set of banks for each remainder of a domain's number. Numbers follow each other, so that few domains share a set; whose a
/// bank of the set is the bank itself says.
pub(super) struct ByDomain(Vec<BankSet>);

impl ByDomain {
    /// Without a bank.
    pub(super) const NONE: Self = Self(Vec::new());

    /// No bank is anybody's. `None` when memory could not be reserved.
    pub(super) fn new(banks: u8) -> Option<Self> {
        // Twice as many: some of the numbers that follow each other have no bank here.
        let count = usize::from(banks).next_power_of_two().saturating_mul(2);
        let mut sets = Vec::new();
        sets.try_reserve_exact(count).ok()?;
        few::extend_within(&mut sets, (0..count).map(|_| BankSet::EMPTY));
        Some(Self(sets))
    }

    /// Puts a bank in, or takes it out.
    pub(super) fn put(&mut self, domain: DomainId, bank: BankIndex, member: bool) {
        let place = self.place(domain);
        if let Some(set) = self.0.get_mut(place) {
            set.put(bank, member);
        }
    }

    /// The domain's banks, and maybe others.
    pub(super) fn near(&self, domain: DomainId) -> BankSet {
        self.0.get(self.place(domain)).copied().unwrap_or_default()
    }

    fn place(&self, domain: DomainId) -> usize {
        let [low, ..] = domain.number().to_le_bytes();
        usize::from(low) & self.0.len().wrapping_sub(1)
    }
}
