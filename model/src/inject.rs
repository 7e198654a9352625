//! What a test makes go wrong.

use crate::smmu::{Hazard, Smmu};

/// A sync register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncRegister {
    /// `sTLBGSYNC`.
    Global,
    /// A bank's `TLBSYNC`.
    Bank(u8),
}

/// One thing that goes wrong. Several can be active at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Injection {
    /// Syncs started in this register never complete.
    StatusNeverClears(SyncRegister),
    /// The k-th sync that is started from now on, in whichever register, does not complete before the injections are
    /// cleared, or it is started anew; 1 is the next. It is used up by that.
    SyncTimesOut(u32),
    /// Writes to this offset change nothing, whatever their width.
    WriteDoesNotStick(usize),
    /// Only the k-th write from now on, whatever its offset, changes nothing; 1 is the next. It is used up by that.
    WriteIsLost(u32),
    /// Reads of the first offset give the second value: a contradicting ID register, a stuck status.
    ReadsAs(usize, u32),
    /// Every read gives all ones and every write is lost: power or clock is off.
    AllOnes,
}

impl Smmu {
    /// Makes something go wrong from now on.
    pub fn inject(&mut self, injection: Injection) {
        self.injections.push(injection);
    }

    /// Makes everything go right again. A sync that is stuck completes with the next look at its status.
    pub fn clear_injections(&mut self) {
        self.injections.clear();
        self.release_syncs();
    }

    pub(crate) fn injected_read(&mut self, offset: usize) -> Option<u32> {
        if self.injections.contains(&Injection::AllOnes) {
            self.hazard(Hazard::PoweredOff);
            return Some(u32::MAX);
        }
        self.injections.iter().find_map(|one| match one {
            Injection::ReadsAs(at, value) if *at == offset => Some(*value),
            _ => None,
        })
    }

    /// Whether the write to `offset` is lost.
    pub(crate) fn injected_write(&mut self, offset: usize) -> bool {
        if self.injections.contains(&Injection::AllOnes) {
            self.hazard(Hazard::PoweredOff);
            return true;
        }
        let lost = self.count_down(|one| match one {
            Injection::WriteIsLost(left) => Some(left),
            _ => None,
        });
        lost || self.injections.contains(&Injection::WriteDoesNotStick(offset))
    }

    pub(crate) fn sync_is_injected(&mut self, register: SyncRegister) -> bool {
        let times_out = self.count_down(|one| match one {
            Injection::SyncTimesOut(left) => Some(left),
            _ => None,
        });
        times_out || self.injections.contains(&Injection::StatusNeverClears(register))
    }

    /// Counts down every injection that `counter` picks; true when one came to its end, which removes it.
    fn count_down(&mut self, counter: fn(&mut Injection) -> Option<&mut u32>) -> bool {
        let mut fired = false;
        self.injections.retain_mut(|one| match counter(one) {
            Some(left) => {
                *left = left.saturating_sub(1);
                fired |= *left == 0;
                *left != 0
            }
            None => true,
        });
        fired
    }
}
