//! One vocabulary of operations for property tests, fuzzing and schedule exploration: what can happen to a small
//! machine with two SMMUs, three guests and a dozen devices.
//!
//! An [`Op`] names everything by a small closed set, so that every value is meaningful, sequences shrink well, and the
//! `Debug` form of a failing [`Script`] is Rust that can be pasted into a regression test.

use std::fmt;

use iommu_assign::assign::{DeviceKey, IommuKey, Label, Source, Stream, StreamId, StreamMask};
use iommu_assign::pci::{Bus, DeviceFunction, HostBridgeNumber, PciKey, Sbdf, Segment};

/// One thing that a source, a toolstack, a guest, a device or the hardware does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Op {
    /// A source offers the device.
    Add(Slot),
    /// The device goes, whatever its state.
    Remove(Slot),
    /// The device alone goes to a guest.
    Assign(Slot, Guest),
    /// All devices of its group go to a guest.
    AssignGroup(Slot, Guest),
    /// The device alone changes its guest.
    Reassign(Slot, Guest),
    /// All assigned devices of its group change their guest.
    ReassignGroup(Slot, Guest),
    /// The device alone is taken from its guest.
    Deassign(Slot),
    /// All assigned devices of its group are taken from their guest.
    DeassignGroup(Slot),
    /// Would an assign be refused?
    TestAssign(Slot, Guest),
    /// An assign of the device alone is planned and kept: until it ends, its group is claimed.
    Reserve(Slot, Guest),
    /// What was reserved for the device is carried out.
    Commit(Slot),
    /// What was reserved for the device is given back.
    Abandon(Slot),
    /// A request is put in the queue.
    Submit(Ask),
    /// The oldest request about the device that has no answer is cancelled.
    Cancel(Slot),
    /// The queue's worker begins a round, up to the first request that it can answer.
    Work,
    /// Someone still holds the handle of the device's registration before the present one, and assigns it.
    AssignOld(Slot, Guest),
    /// A guest is started: its tables are built, its domain is created.
    Create(Guest),
    /// Its domain is destroyed; after success its tables' memory is overwritten.
    Destroy(Guest),
    /// The hypervisor maps the guest's second page, each time to other memory than the last time.
    Map(Guest),
    /// The hypervisor unmaps it. Nothing is flushed.
    Unmap(Guest),
    /// The domain is flushed.
    Flush(Guest),
    /// The device writes to the guest's first page, with one of its stream IDs.
    Dma(Slot, u8),
    /// The device writes to the guest's second page, with one of its stream IDs.
    DmaSecond(Slot, u8),
    /// A stream that no device has writes.
    DmaUnknown(Side),
    /// The global fault line of an SMMU is handled.
    HandleGlobal(Side),
    /// A context fault line of an SMMU is handled.
    HandleContext(Side, u8),
    /// Registers, shadow and registry are compared.
    Audit,
    /// An SMMU is taken out of service.
    Unregister(Side),
    /// An SMMU is taken out of service, whoever uses it.
    ForceUnregister(Side),
    /// An SMMU is probed and put into service.
    Register(Side),
    /// From now on no sync of this SMMU completes.
    Stick(Side),
    /// The next sync of this SMMU is slower than the operation that waits for it.
    LoseSync(Side),
    /// The SMMU works again.
    Heal(Side),
    /// The SMMU cannot be given power. Its registers keep what they hold.
    CutPower(Side),
    /// It can.
    RestorePower(Side),
    /// The next hook that is called for the device fails.
    BreakHook(Slot),
    /// [`Slot::Card`] is put into its slot, which says so.
    Plug,
    /// Someone wants to take the card out: what stands behind it and the card itself are made quiet and removed.
    Unplug,
    /// The card is pulled out, as a surprise.
    Pull,
    /// The card's virtual functions are switched on.
    SwitchOn,
    /// They are switched off.
    SwitchOff,
    /// An overlay is put onto the device tree.
    Apply(Sheet),
    /// It is taken off again.
    Revert(Sheet),
}

/// An overlay, which brings one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Sheet {
    /// Brings [`Slot::Fan`].
    One,
    /// Brings [`Slot::Pump`].
    Two,
}

impl Sheet {
    /// Both.
    pub const ALL: [Self; 2] = [Self::One, Self::Two];

    /// The device that it brings.
    #[must_use]
    pub const fn slot(self) -> Slot {
        match self {
            Self::One => Slot::Fan,
            Self::Two => Slot::Pump,
        }
    }

    /// The overlay as a blob; [`BASE`](Self::BASE) is what it is put onto.
    #[must_use]
    pub const fn blob(self) -> &'static [u8] {
        match self {
            Self::One => include_bytes!("../../boards/overlays/fan.dtbo"),
            Self::Two => include_bytes!("../../boards/overlays/pump.dtbo"),
        }
    }

    /// The device tree without overlays: an SMMU, [`Side::A`].
    pub const BASE: &'static [u8] = include_bytes!("../../boards/overlays/universe.dtb");
}

/// What the queue can be asked for, about whatever device has the key when its turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Ask {
    /// [`Op::Add`].
    Offer(Slot),
    /// [`Op::Remove`].
    Unplug(Slot),
    /// [`Op::Assign`].
    Give(Slot, Guest),
    /// [`Op::Reassign`].
    Pass(Slot, Guest),
    /// [`Op::Deassign`].
    Take(Slot),
}

impl Ask {
    /// What is done when its turn comes.
    #[must_use]
    pub const fn op(self) -> Op {
        match self {
            Self::Offer(slot) => Op::Add(slot),
            Self::Unplug(slot) => Op::Remove(slot),
            Self::Give(slot, guest) => Op::Assign(slot, guest),
            Self::Pass(slot, guest) => Op::Reassign(slot, guest),
            Self::Take(slot) => Op::Deassign(slot),
        }
    }

    /// The device.
    #[must_use]
    pub const fn slot(self) -> Slot {
        match self {
            Self::Offer(slot) | Self::Unplug(slot) | Self::Give(slot, _) | Self::Pass(slot, _) | Self::Take(slot) => {
                slot
            }
        }
    }

    /// The guest that gets it.
    #[must_use]
    pub const fn guest(self) -> Option<Guest> {
        match self {
            Self::Give(_, guest) | Self::Pass(_, guest) => Some(guest),
            _ => None,
        }
    }
}

/// An SMMU of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Side {
    /// The first, with most devices.
    A,
    /// The second, smaller.
    B,
}

/// A guest, if it is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Guest {
    /// May have every device.
    Red,
    /// May not have [`Slot::Companion`] and [`Slot::Narrow`].
    Green,
    /// May not have [`Slot::Late`].
    Blue,
}

/// A device, if it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Slot {
    /// Separate streams that merge.
    Nic,
    /// Shares one of [`Slot::Nic`]'s streams, and nobody knew before it came.
    Late,
    /// One stream.
    Usb,
    /// The same stream as [`Slot::Usb`], and one more.
    Companion,
    /// Eight streams under one mask.
    Wide,
    /// Lies within [`Slot::Wide`].
    Narrow,
    /// Meets [`Slot::Wide`] in one ID only.
    Far,
    /// Has a stream at each SMMU.
    Both,
    /// Meets [`Slot::Both`] at the second SMMU.
    Mate,
    /// The parent of two functions.
    Bridge,
    /// Behind the bridge, not isolated from [`Slot::Second`] by the bus.
    First,
    /// Behind the bridge, not isolated from [`Slot::First`] by the bus.
    Second,
    /// Has a stream ID that no hardware holds.
    TooWide,
    /// Has no stream.
    Bare,
    /// A physical function of PCI, which comes by [`Op::Plug`] only.
    Card,
    /// Its first virtual function, which comes by [`Op::SwitchOn`] only.
    FirstVirtual,
    /// Its second.
    SecondVirtual,
    /// A node of the device tree, which comes by [`Op::Apply`] only.
    Fan,
    /// Another.
    Pump,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The instance's name.
    #[must_use]
    pub const fn key(self) -> IommuKey {
        match self {
            Self::A => IommuKey::new(0x5000_0000),
            Self::B => IommuKey::new(0x6000_0000),
        }
    }

    /// Which one a name means.
    #[must_use]
    pub fn of(key: IommuKey) -> Option<Self> {
        Self::ALL.into_iter().find(|side| side.key() == key)
    }
}

impl Guest {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Red, Self::Green, Self::Blue];

    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "green",
            Self::Blue => "blue",
        }
    }

    /// Whether the policy of the universe lets it have the device.
    #[must_use]
    pub const fn may_have(self, slot: Slot) -> bool {
        !matches!((self, slot), (Self::Green, Slot::Companion | Slot::Narrow) | (Self::Blue, Slot::Late))
    }
}

impl Slot {
    /// All of them, parents before children.
    pub const ALL: [Self; 19] = [
        Self::Nic,
        Self::Late,
        Self::Usb,
        Self::Companion,
        Self::Wide,
        Self::Narrow,
        Self::Far,
        Self::Both,
        Self::Mate,
        Self::Bridge,
        Self::First,
        Self::Second,
        Self::TooWide,
        Self::Bare,
        Self::Card,
        Self::FirstVirtual,
        Self::SecondVirtual,
        Self::Fan,
        Self::Pump,
    ];

    /// A stream ID that no device of the universe has.
    pub const STRANGER: u16 = 0x3f;

    /// The port that the card is plugged into.
    pub const PORT: Sbdf = Sbdf::new(Segment(0), Bus(0), DeviceFunction(0x08));
    /// Where the card answers.
    pub const PLACE: Sbdf = Sbdf::new(Segment(0), Bus(1), DeviceFunction(0));
    /// The host bridge above.
    pub const HOST: HostBridgeNumber = HostBridgeNumber(1);

    /// The key of [`PORT`](Self::PORT).
    #[must_use]
    pub const fn port() -> PciKey {
        PciKey::root(Self::HOST, Self::PORT.device_function)
    }

    /// Whether a source offers it by itself. The others come with what they stand in.
    #[must_use]
    pub const fn is_offered(self) -> bool {
        !matches!(self, Self::Card | Self::FirstVirtual | Self::SecondVirtual | Self::Fan | Self::Pump)
    }

    /// Whether it stands behind the port.
    #[must_use]
    pub const fn is_pluggable(self) -> bool {
        matches!(self, Self::Card | Self::FirstVirtual | Self::SecondVirtual)
    }

    /// What its source calls it. Of those that a source offers by itself every other one comes from PCI, which changes
    /// nothing.
    #[must_use]
    pub fn key(self) -> DeviceKey {
        let card = || Self::port().child(Self::PLACE.device_function).unwrap_or(Self::port());
        match self {
            Self::Card => card().into(),
            Self::FirstVirtual => card().virtual_function(0).unwrap_or(card()).into(),
            Self::SecondVirtual => card().virtual_function(1).unwrap_or(card()).into(),
            Self::Fan => DeviceKey::new(Source::Dt, 0x8c84_126c_9f34_2aab),
            Self::Pump => DeviceKey::new(Source::Dt, 0xdb27_fb2c_59cf_0071),
            _ => {
                let source = if (self as u8).is_multiple_of(2) { Source::Dt } else { Source::Pci };
                DeviceKey::new(source, self as u128)
            }
        }
    }

    /// Which one a key means.
    #[must_use]
    pub fn of(key: DeviceKey) -> Option<Self> {
        Self::ALL.into_iter().find(|slot| slot.key() == key)
    }

    /// What people call it.
    #[must_use]
    pub fn label(self) -> Label {
        Label::from(format!("{self:?}").as_str())
    }

    /// The device that people call so.
    #[must_use]
    pub fn named(label: &Label) -> Option<Self> {
        Self::ALL.into_iter().find(|slot| slot.label() == *label)
    }

    /// Its streams: the SMMU, ID and mask of each.
    #[must_use]
    pub const fn streams(self) -> &'static [(Side, u32, u32)] {
        match self {
            Self::Nic => &[(Side::A, 0x10, 0), (Side::A, 0x11, 0), (Side::A, 0x12, 1), (Side::A, 0x16, 0)],
            Self::Late => &[(Side::A, 0x16, 0)],
            Self::Usb => &[(Side::A, 0x20, 0)],
            Self::Companion => &[(Side::A, 0x20, 0), (Side::A, 0x23, 0)],
            Self::Wide => &[(Side::A, 0x08, 0x07)],
            Self::Narrow => &[(Side::A, 0x0c, 0)],
            Self::Far => &[(Side::A, 0x0f, 0x20)],
            Self::Both => &[(Side::A, 0x30, 0), (Side::B, 0x30, 0)],
            Self::Mate => &[(Side::B, 0x30, 0x01)],
            Self::Bridge => &[(Side::B, 0x01, 0)],
            Self::First => &[(Side::B, 0x02, 0)],
            Self::Second => &[(Side::B, 0x04, 0)],
            Self::TooWide => &[(Side::A, 0x8_0000, 0)],
            Self::Bare => &[],
            Self::Card => &[(Side::B, 0x18, 0)],
            Self::FirstVirtual => &[(Side::B, 0x19, 0)],
            Self::SecondVirtual => &[(Side::B, 0x1a, 0)],
            Self::Fan => &[(Side::A, 0x28, 0)],
            Self::Pump => &[(Side::A, 0x29, 0)],
        }
    }

    /// The streams as the library takes them.
    #[must_use]
    pub fn offered(self) -> Vec<Stream> {
        let stream =
            |(side, id, mask): &(Side, u32, u32)| Stream::new(side.key(), StreamId::new(*id), StreamMask::new(*mask));
        self.streams().iter().map(stream).collect()
    }

    /// One of its stream IDs, chosen by any number. `None` for a device that cannot do DMA.
    #[must_use]
    pub fn stream_id(self, choice: u8) -> Option<(Side, u16)> {
        let ids: Vec<(Side, u16)> = Side::ALL.into_iter().flat_map(|side| self.ids(side)).collect();
        let at = usize::from(choice).checked_rem(ids.len())?;
        ids.get(at).copied()
    }

    /// All its stream IDs at one SMMU that a bus can carry.
    pub fn ids(self, side: Side) -> impl Iterator<Item = (Side, u16)> {
        let has = move |id: &u16| {
            self.streams().iter().any(|(at, base, mask)| *at == side && (u32::from(*id) ^ base) & !mask == 0)
        };
        (0..0x40).filter(has).map(move |id| (side, id))
    }

    /// The device that it stands behind.
    #[must_use]
    pub const fn parent(self) -> Option<Self> {
        match self {
            Self::First | Self::Second => Some(Self::Bridge),
            Self::FirstVirtual | Self::SecondVirtual => Some(Self::Card),
            _ => None,
        }
    }

    /// Whether a reset of its parent ends it.
    #[must_use]
    pub const fn ends_with_parent(self) -> bool {
        matches!(self, Self::FirstVirtual | Self::SecondVirtual)
    }

    /// Which devices its bus does not keep it apart from.
    #[must_use]
    pub const fn isolation(self) -> Option<u64> {
        match self {
            Self::First | Self::Second => Some(1),
            _ => None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(slot) => write!(f, "add {slot:?}"),
            Self::Remove(slot) => write!(f, "remove {slot:?}"),
            Self::Assign(slot, guest) => write!(f, "assign {slot:?} to {guest:?}"),
            Self::AssignGroup(slot, guest) => write!(f, "assign the group of {slot:?} to {guest:?}"),
            Self::Reassign(slot, guest) => write!(f, "reassign {slot:?} to {guest:?}"),
            Self::ReassignGroup(slot, guest) => write!(f, "reassign the group of {slot:?} to {guest:?}"),
            Self::Deassign(slot) => write!(f, "deassign {slot:?}"),
            Self::DeassignGroup(slot) => write!(f, "deassign the group of {slot:?}"),
            Self::TestAssign(slot, guest) => write!(f, "test whether {slot:?} can go to {guest:?}"),
            Self::Reserve(slot, guest) => write!(f, "reserve {slot:?} for {guest:?}"),
            Self::Commit(slot) => write!(f, "commit the reservation of {slot:?}"),
            Self::Abandon(slot) => write!(f, "abandon the reservation of {slot:?}"),
            Self::Submit(ask) => write!(f, "put in the queue: {}", ask.op()),
            Self::Cancel(slot) => write!(f, "cancel the oldest request about {slot:?}"),
            Self::Work => f.write_str("the queue's worker goes on"),
            Self::AssignOld(slot, guest) => write!(f, "assign an earlier registration of {slot:?} to {guest:?}"),
            Self::Create(guest) => write!(f, "create {guest:?}"),
            Self::Destroy(guest) => write!(f, "destroy {guest:?}"),
            Self::Map(guest) => write!(f, "map the second page of {guest:?}"),
            Self::Unmap(guest) => write!(f, "unmap the second page of {guest:?}"),
            Self::Flush(guest) => write!(f, "flush {guest:?}"),
            Self::Dma(slot, choice) => write!(f, "{slot:?} writes, stream {choice}"),
            Self::DmaSecond(slot, choice) => write!(f, "{slot:?} writes to the second page, stream {choice}"),
            Self::DmaUnknown(side) => write!(f, "an unknown stream writes through SMMU {side:?}"),
            Self::HandleGlobal(side) => write!(f, "handle the global faults of SMMU {side:?}"),
            Self::HandleContext(side, line) => write!(f, "handle context line {line} of SMMU {side:?}"),
            Self::Audit => f.write_str("audit"),
            Self::Unregister(side) => write!(f, "unregister SMMU {side:?}"),
            Self::ForceUnregister(side) => write!(f, "force SMMU {side:?} out of service"),
            Self::Register(side) => write!(f, "register SMMU {side:?}"),
            Self::Stick(side) => write!(f, "the syncs of SMMU {side:?} stick"),
            Self::LoseSync(side) => write!(f, "the next sync of SMMU {side:?} is late"),
            Self::Heal(side) => write!(f, "SMMU {side:?} works again"),
            Self::CutPower(side) => write!(f, "SMMU {side:?} cannot be given power"),
            Self::RestorePower(side) => write!(f, "SMMU {side:?} has power again"),
            Self::BreakHook(slot) => write!(f, "the next hook of {slot:?} fails"),
            Self::Plug => f.write_str("plug the card in"),
            Self::Unplug => f.write_str("take the card out in order"),
            Self::Pull => f.write_str("pull the card out"),
            Self::SwitchOn => f.write_str("switch the virtual functions on"),
            Self::SwitchOff => f.write_str("switch the virtual functions off"),
            Self::Apply(sheet) => write!(f, "apply overlay {sheet:?}"),
            Self::Revert(sheet) => write!(f, "revert overlay {sheet:?}"),
        }
    }
}

/// A sequence of operations. Its `Debug` form is a Rust array, one line, whatever the flags.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Script(pub Vec<Op>);

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, op) in self.0.iter().enumerate() {
            write!(f, "{}{op:?}", if index == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_script_prints_as_one_line_of_rust() {
        let script = Script(vec![Op::Add(Slot::Usb), Op::Assign(Slot::Usb, Guest::Red), Op::Audit]);
        assert_eq!(format!("{script:#?}"), "[Add(Usb), Assign(Usb, Red), Audit]");
    }

    #[test]
    fn keys_of_nodes_are_those_of_the_overlays() {
        for sheet in Sheet::ALL {
            let merged = iommu_assign::dt::overlay::merge(Sheet::BASE, sheet.blob()).unwrap();
            let board = iommu_assign::dt::Board::read(&merged).unwrap();
            let keys: Vec<DeviceKey> = board.devices().iter().map(iommu_assign::dt::DtDevice::device_key).collect();
            assert_eq!(keys, [sheet.slot().key()]);
            assert_eq!(board.devices()[0].streams, sheet.slot().offered());
        }
    }

    #[test]
    fn the_stranger_belongs_to_nobody() {
        for side in Side::ALL {
            assert!(Slot::ALL.iter().all(|slot| slot.ids(side).all(|(_, id)| id != Slot::STRANGER)));
        }
    }
}
