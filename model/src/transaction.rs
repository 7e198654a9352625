//! DMA transactions: what a master asks for, and what becomes of it.

use alloc::vec;
use alloc::vec::Vec;

use crate::fault::Fault;
use crate::flight::TransactionId;
use crate::memory::{Memory, PAGE};
use crate::registers::{field, gfsynr0};
use crate::smmu::Smmu;

/// Read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Memory to device.
    Read,
    /// Device to memory.
    Write,
}

/// What a DMA master puts on the bus.
///
/// No burst crosses a 4 KiB boundary: bytes beyond it are not transferred. A [`Master`] splits longer transfers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Stream ID.
    pub stream: u16,
    /// Input address.
    pub address: u64,
    /// Direction.
    pub access: Access,
    /// Bytes to transfer.
    pub length: u16,
    /// The bytes of a write; missing ones are zero.
    pub data: Vec<u8>,
    /// Privileged, as the bus marks it.
    pub privileged: bool,
    /// Instruction fetch, as the bus marks it.
    pub instruction: bool,
}

impl Transaction {
    /// An unprivileged data read of `length` bytes.
    pub fn read(stream: u16, address: u64, length: u16) -> Self {
        Self { stream, address, access: Access::Read, length, data: Vec::new(), privileged: false, instruction: false }
    }

    /// An unprivileged data write of `data`.
    pub fn write(stream: u16, address: u64, data: &[u8]) -> Self {
        let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
        Self { access: Access::Write, data: data.to_vec(), ..Self::read(stream, address, length) }
    }

    /// The same, privileged.
    pub fn privileged(mut self) -> Self {
        self.privileged = true;
        self
    }

    /// The same, as an instruction fetch.
    pub fn instruction(mut self) -> Self {
        self.instruction = true;
        self
    }

    /// Bytes that one burst transfers.
    pub(crate) fn burst(&self) -> u64 {
        u64::from(self.length).min(PAGE.wrapping_sub(self.address & PAGE.wrapping_sub(1)))
    }

    /// The attributes as `S2CR.INSTCFG` and `PRIVCFG` leave them.
    pub(crate) fn overridden(mut self, s2cr: u32) -> Self {
        match field(s2cr, 26, 2) {
            2 => self.instruction = false,
            3 => self.instruction = true,
            _ => (),
        }
        match field(s2cr, 24, 2) {
            2 => self.privileged = false,
            3 => self.privileged = true,
            _ => (),
        }
        self
    }

    pub(crate) fn global_syndrome(&self, nested: bool) -> u32 {
        let mut syndrome = 0;
        for (set, bit) in [
            (nested, gfsynr0::NESTED),
            (self.access == Access::Write, gfsynr0::WNR),
            (self.privileged, gfsynr0::PNU),
            (self.instruction, gfsynr0::IND),
        ] {
            syndrome |= if set { bit } else { 0 };
        }
        syndrome
    }
}

/// Why a transaction passed untranslated before any bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// `sCR0.CLIENTPD` = 1.
    ClientsDisabled,
    /// No entry matched and `sCR0.USFCFG` = 0.
    Unmatched,
    /// Several entries matched and `sCR0.SMCFCFG` = 0.
    Conflict,
    /// The entry's `S2CR.TYPE` is bypass.
    Stream {
        /// Which stream-map entry.
        entry: u8,
        /// `S2CR.VMID`.
        vmid: u8,
    },
}

/// How a transaction reached memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Untranslated, before any bank.
    Bypass(Bypass),
    /// Untranslated, through a bank whose `SCTLR.M` is 0.
    BankOff {
        /// Which stream-map entry.
        entry: u8,
        /// Which bank.
        bank: u8,
    },
    /// Translated.
    Translated {
        /// Which stream-map entry.
        entry: u8,
        /// The bank that translated; of a nested pair the second.
        bank: u8,
        /// Its VMID.
        vmid: u16,
        /// Root of the table in which the descriptor was found, also when it was cached long ago.
        root: u64,
        /// No descriptor was read for it: the TLB had it.
        cached: bool,
    },
}

impl Path {
    /// Whether the address went through untranslated.
    pub const fn is_untranslated(self) -> bool {
        matches!(self, Self::Bypass(_) | Self::BankOff { .. })
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It reached memory.
    Completed {
        /// Where.
        physical: u64,
        /// How.
        path: Path,
        /// What a read returned.
        data: Vec<u8>,
    },
    /// It was ended: reads give zeroes, writes are ignored.
    Faulted {
        /// Why.
        fault: Fault,
        /// The master was told by an abort (`sCR0.GFRE`, `SCTLR.CFRE`).
        aborted: bool,
    },
    /// It reached an address that answers with a bus error.
    BusError {
        /// Where.
        physical: u64,
        /// How.
        path: Path,
    },
    /// It waits for `RESUME` of this bank, and stays in flight.
    Stalled {
        /// Its name.
        id: TransactionId,
        /// The bank.
        bank: u8,
    },
    /// It waits since another bank is stalled and that stalls all; it stays in flight.
    Blocked {
        /// Its name.
        id: TransactionId,
    },
}

impl Outcome {
    /// The physical address, if it reached memory.
    pub const fn physical(&self) -> Option<u64> {
        match self {
            Self::Completed { physical, .. } | Self::BusError { physical, .. } => Some(*physical),
            _ => None,
        }
    }

    /// The fault, if it was ended by one.
    pub const fn fault(&self) -> Option<Fault> {
        match self {
            Self::Faulted { fault, .. } => Some(*fault),
            _ => None,
        }
    }
}

/// A device that does DMA: a stream ID and the marks that its transactions carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Master {
    /// Stream ID.
    pub stream: u16,
    /// Its transactions are privileged.
    pub privileged: bool,
    /// Its transactions are instruction fetches.
    pub instruction: bool,
}

impl Master {
    /// An unprivileged master of data.
    pub const fn new(stream: u16) -> Self {
        Self { stream, privileged: false, instruction: false }
    }

    /// The bursts that reading `length` bytes from `address` on takes, split at 4 KiB boundaries.
    pub fn read_bursts(&self, address: u64, length: usize) -> Vec<Transaction> {
        self.bursts(address, &vec![0; length], Access::Read)
    }

    /// The bursts that writing `data` from `address` on takes, split at 4 KiB boundaries.
    pub fn write_bursts(&self, address: u64, data: &[u8]) -> Vec<Transaction> {
        self.bursts(address, data, Access::Write)
    }

    /// Writes `data` from `address` on: one outcome for each burst.
    pub fn write(&self, smmu: &mut Smmu, memory: &mut Memory, address: u64, data: &[u8]) -> Vec<Outcome> {
        self.write_bursts(address, data).into_iter().map(|burst| smmu.dma(memory, burst)).collect()
    }

    /// Reads `length` bytes from `address` on: one outcome for each burst.
    pub fn read(&self, smmu: &mut Smmu, memory: &mut Memory, address: u64, length: usize) -> Vec<Outcome> {
        self.read_bursts(address, length).into_iter().map(|burst| smmu.dma(memory, burst)).collect()
    }

    fn bursts(&self, address: u64, data: &[u8], access: Access) -> Vec<Transaction> {
        let mut bursts = Vec::new();
        let (mut address, mut rest) = (address, data);
        while !rest.is_empty() {
            let room = PAGE.wrapping_sub(address & PAGE.wrapping_sub(1));
            let (now, later) = rest.split_at(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            let mut burst = Transaction::write(self.stream, address, now);
            if access == Access::Read {
                burst = Transaction::read(self.stream, address, burst.length);
            }
            burst.privileged = self.privileged;
            burst.instruction = self.instruction;
            bursts.push(burst);
            address = address.wrapping_add(now.len() as u64);
            rest = later;
        }
        bursts
    }
}
