//! Plain values that go over the border in both directions.

use iommu_assign::assign::{
    CallChain, Changed, Device, DeviceKey, Error, FlushRange, Granule, IommuKey, PhysicalAddress, Quarantine, Service,
    Source, Stage2, Stream, StreamId, StreamMask, TableMemory, Within,
};

use crate::error::Failure;
use crate::platform::{self, Hypervisor, IOMMU_NO_DEADLINE};
use crate::status::iommu_status;

// --- handles ---

/// A device's handle. It keeps the object, not the device: after a removal every call with it gets `IOMMU_STATUS_GONE`.
#[derive(Debug)]
pub struct iommu_device(pub(crate) Device);

/// The operations above a callback, as the callback was handed them. Valid until the callback returns, on its CPU.
#[derive(Debug)]
pub struct iommu_chain<'a>(pub(crate) CallChain<'a>);

// --- names ---

/// Who describes a device: `iommu_device_key.source`.
pub const IOMMU_SOURCE_DT: u32 = 0;
/// A PCI function.
pub const IOMMU_SOURCE_PCI: u32 = 1;

/// What a source calls a device: unique among the registered devices, and never changed. The number's halves are free for
/// the source to use; a PCI source must not use the bus number, which can change.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct iommu_device_key {
    /// `IOMMU_SOURCE_DT` or `IOMMU_SOURCE_PCI`.
    pub source: u32,
    /// Upper half of the source's number. For the device tree it is 0.
    pub upper: u64,
    /// Lower half of the source's number. For the device tree the hash of the node's path (`iommu_board_device.key`).
    pub lower: u64,
}

impl iommu_device_key {
    pub(crate) fn read(self) -> Result<DeviceKey, Failure> {
        let source = match self.source {
            IOMMU_SOURCE_DT => Source::Dt,
            IOMMU_SOURCE_PCI => Source::Pci,
            _ => return Err(Failure::Argument("a device key has an unknown source")),
        };
        Ok(DeviceKey::new(source, u128::from(self.upper) << 64 | u128::from(self.lower)))
    }
}

impl From<DeviceKey> for iommu_device_key {
    #[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
    fn from(key: DeviceKey) -> Self {
        let source = if key.source() == Source::Pci { IOMMU_SOURCE_PCI } else { IOMMU_SOURCE_DT };
        Self { source, upper: (key.number() >> 64) as u64, lower: key.number() as u64 }
    }
}

/// A set of stream IDs at one IOMMU: those that equal `id` in the bits that are 0 in `mask`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct iommu_stream {
    /// The IOMMU: the CPU physical address of its registers, which names it everywhere.
    pub iommu: u64,
    /// The stream ID.
    pub id: u32,
    /// Bits that are ignored (SMR.MASK polarity: 1 ignores).
    pub mask: u32,
}

impl From<iommu_stream> for Stream {
    fn from(stream: iommu_stream) -> Self {
        Self::new(IommuKey::new(stream.iommu), StreamId::new(stream.id), StreamMask::new(stream.mask))
    }
}

impl From<Stream> for iommu_stream {
    fn from(stream: Stream) -> Self {
        Self { iommu: stream.iommu().base(), id: stream.id().value(), mask: stream.mask().value() }
    }
}

// --- forms of a call ---

/// How a call is made. NULL, or all zero: from outside of every callback, in the try form, which says
/// `IOMMU_STATUS_BUSY` where another operation is in the way.
#[repr(C)]
#[derive(Debug)]
pub struct iommu_call<'a> {
    /// What a callback was handed, where the call is made from inside one; NULL outside.
    pub chain: Option<&'a iommu_chain<'a>>,
    /// Not 0: waits until nothing is in the way. Needs `prepare` and `wait` of `struct iommu_platform`.
    pub wait: u32,
    /// Until when, on the integrator's own clock; `IOMMU_NO_DEADLINE` for ever.
    pub deadline: u64,
}

/// A call's form, checked.
#[derive(Clone, Copy)]
pub(crate) struct Form<'a> {
    pub(crate) chain: CallChain<'a>,
    /// Whether it waits, and until when.
    pub(crate) wait: Option<Option<u64>>,
}

impl<'a> Form<'a> {
    pub(crate) fn of(call: Option<&iommu_call<'a>>) -> Result<Self, Failure> {
        let Some(call) = call else { return Ok(Self { chain: CallChain::default(), wait: None }) };
        let wait = (call.wait != 0).then(|| Some(call.deadline).filter(|deadline| *deadline != IOMMU_NO_DEADLINE));
        if wait.is_some() && !platform::can_wait() {
            return Err(Failure::Of(iommu_status::NotSupplied));
        }
        Ok(Self { chain: call.chain.map_or_else(CallChain::default, |chain| chain.0), wait })
    }

    /// Runs an operation in this form.
    pub(crate) fn run<T>(
        self,
        service: &Service<Hypervisor>,
        mut operation: impl FnMut(&Within<'_, Hypervisor>) -> Result<T, Error>,
    ) -> Result<T, Failure> {
        let within = service.within(self.chain);
        Ok(match self.wait {
            Some(deadline) => within.wait(deadline, operation)?,
            None => operation(&within)?,
        })
    }
}

// --- address spaces ---

/// Pages of 4 KiB: `iommu_stage2.granule`.
pub const IOMMU_GRANULE_4K: u32 = 12;
/// Pages of 16 KiB.
pub const IOMMU_GRANULE_16K: u32 = 14;
/// Pages of 64 KiB.
pub const IOMMU_GRANULE_64K: u32 = 16;

/// A guest's stage 2, in the words of VTCR_EL2. The CPU uses the same tables.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct iommu_stage2 {
    /// CPU physical address of the start level's first table.
    pub root: u64,
    /// Bits of a guest-physical address, 25 to 48.
    pub ipa_bits: u8,
    /// Level at which a walk starts, 0 to 3.
    pub start_level: u8,
    /// log2 of the page size: `IOMMU_GRANULE_4K` and so on.
    pub granule: u8,
    /// Bits of the addresses that the tables give out: 32, 36, 40, 42, 44 or 48.
    pub output_bits: u8,
    /// Not 0: the walker's reads are write-back and inner shareable, for walks that are coherent. 0: non-cacheable; the
    /// hypervisor cleans table bytes to the point of coherency.
    pub write_back: u8,
}

impl iommu_stage2 {
    pub(crate) fn read(self) -> Result<Stage2, Failure> {
        let granule = match u32::from(self.granule) {
            IOMMU_GRANULE_4K => Granule::Kib4,
            IOMMU_GRANULE_16K => Granule::Kib16,
            IOMMU_GRANULE_64K => Granule::Kib64,
            _ => return Err(Failure::Argument("a granule is none of 12, 14 and 16")),
        };
        Ok(Stage2 {
            root: PhysicalAddress::new(self.root),
            ipa_bits: self.ipa_bits,
            start_level: self.start_level,
            granule,
            output_bits: self.output_bits,
            tables: if self.write_back == 0 { TableMemory::NonCacheable } else { TableMemory::WriteBackInnerShareable },
        })
    }
}

/// Part of a domain's addresses whose translation was removed or narrowed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct iommu_flush_range {
    /// First guest-physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes that one changed entry of the tables translated: a power of two, 4096 or more.
    pub leaf: u64,
    /// Not 0: entries that name tables were changed too, and the tables' memory is about to be reused.
    pub tables_freed: u32,
}

impl From<iommu_flush_range> for FlushRange {
    fn from(range: iommu_flush_range) -> Self {
        let iommu_flush_range { start, size, leaf, tables_freed } = range;
        Self { start, size, leaf, changed: if tables_freed == 0 { Changed::Leaf } else { Changed::TablesFreed } }
    }
}

/// Where a quarantined device's DMA ends: in faults, which are reported.
pub const IOMMU_QUARANTINE_FAULTS: u32 = 0;
/// Nowhere, without a report: `space.root` is an empty root of the integrator's. For a device that storms.
pub const IOMMU_QUARANTINE_SILENCE: u32 = 1;
/// In a scratch page of the integrator's tables, for a device that does not bear faults.
pub const IOMMU_QUARANTINE_SCRATCH: u32 = 2;

/// A place for a quarantined device's DMA.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct iommu_quarantine {
    /// `IOMMU_QUARANTINE_FAULTS` and so on.
    pub kind: u32,
    /// The tables, for the other two kinds.
    pub space: iommu_stage2,
}

impl iommu_quarantine {
    pub(crate) fn read(self) -> Result<Quarantine, Failure> {
        Ok(match self.kind {
            IOMMU_QUARANTINE_FAULTS => Quarantine::Faults,
            IOMMU_QUARANTINE_SILENCE => Quarantine::Silence(self.space.read()?),
            IOMMU_QUARANTINE_SCRATCH => Quarantine::Scratch(self.space.read()?),
            _ => return Err(Failure::Argument("a quarantine is of no known kind")),
        })
    }
}
