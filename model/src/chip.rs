//! Several SMMUs that belong together: programmed in lockstep, or sharing one space of VMIDs.

use alloc::vec::Vec;

use crate::config::Config;
use crate::memory::Memory;
use crate::reach::Reach;
use crate::smmu::Smmu;
use crate::transaction::{Access, Outcome, Transaction};

/// What couples the members of a [`Chip`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coupling {
    /// The memory system sends each transaction to the member that its address selects; bits from this one up count.
    Interleaved { shift: u32 },
    /// Cached translations of one member are used by all.
    SharedCaches,
}

/// Several SMMUs that a driver has to treat as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chip {
    members: Vec<Smmu>,
    coupling: Coupling,
}

impl Chip {
    /// `count` equal SMMUs over which the memory system spreads every stream by address, 4 KiB in turn (NVIDIA
    /// Tegra194/234).
    ///
    /// Software has to write all of them alike; a member that it forgets treats its part of the addresses as out of
    /// reset.
    pub fn lockstep(config: &Config, count: u8) -> Self {
        let members = (0..count.max(1)).map(|_| Smmu::new(config.clone())).collect();
        Self { members, coupling: Coupling::Interleaved { shift: 12 } }
    }

    /// SMMUs that share cached translations, so that a VMID must mean one thing on all of them (Cavium CN88xx, erratum
    /// 27704).
    pub fn shared_vmids(configs: &[Config]) -> Self {
        Self { members: configs.iter().cloned().map(Smmu::new).collect(), coupling: Coupling::SharedCaches }
    }

    /// The members.
    pub fn members(&self) -> &[Smmu] {
        &self.members
    }

    /// Does something to member `n`, such as a register access; `None` if there is none.
    pub fn with<R>(&mut self, n: usize, action: impl FnOnce(&mut Smmu) -> R) -> Option<R> {
        let member = self.members.get_mut(n)?;
        let result = action(member);
        if self.coupling == Coupling::SharedCaches {
            let shared = member.tlb.clone();
            for (_, other) in self.members.iter_mut().enumerate().filter(|(other, _)| *other != n) {
                other.tlb.share(&shared);
            }
        }
        Some(result)
    }

    /// One whole transaction of a stream that is spread over all members, through the one that its address selects;
    /// where caches are shared, through the first.
    pub fn dma(&mut self, memory: &mut Memory, transaction: Transaction) -> Option<Outcome> {
        let n = match self.coupling {
            Coupling::Interleaved { shift } => {
                let turn = transaction.address.wrapping_shr(shift).checked_rem(self.members.len() as u64)?;
                usize::try_from(turn).ok()?
            }
            Coupling::SharedCaches => 0,
        };
        self.with(n, |member| member.dma(memory, transaction))
    }

    /// What a stream could reach through any member; see [`Smmu::reach`].
    pub fn reach(&self, memory: &Memory, stream: u16, address: u64, access: Access) -> Vec<Reach> {
        self.members.iter().flat_map(|member| member.reach(memory, stream, address, access)).collect()
    }

    /// Level of the global interrupt, which the members share.
    pub fn global_irq(&self) -> bool {
        self.members.iter().any(Smmu::global_irq)
    }

    /// Level of a context interrupt, which the members share.
    pub fn context_irq(&self, line: u8) -> bool {
        self.members.iter().any(|member| member.context_irq(line))
    }
}
