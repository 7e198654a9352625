//! What a stream's DMA must come to, by the registry alone: who has the stream, and who owns him.

use iommu_assign::assign::{
    DeviceInfo, DeviceState, FaultCause, FaultRecord, IommuKey, Label, Stream, StreamId, StreamMask,
};
use machine::Reached;

use crate::stage::Stage;

/// What a stream's DMA to the guests' page must come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Must {
    /// It reaches this guest's page, at this address.
    Reach(Label, u64),
    /// It faults for this reason.
    Fault(FaultCause),
    /// Its device is in fault, but others of its group are not: where the entry that serves it serves one of theirs, it
    /// reaches their guest, else it is blocked.
    ReachOrFault(Label, u64),
    /// It faults, as unknown, or as blocked where the group that its device has left keeps an entry that captures it.
    Forgotten,
}

impl Must {
    /// Whether that is what came of it.
    pub(crate) fn agrees(&self, reached: Option<Reached>) -> bool {
        match (self, reached) {
            (Self::Reach(_, backing) | Self::ReachOrFault(_, backing), Some(Reached::Memory(at))) => at == *backing,
            (Self::Fault(_) | Self::ReachOrFault(..) | Self::Forgotten, Some(Reached::Fault)) => true,
            _ => false,
        }
    }

    /// The guest that may be reached, and where.
    pub(crate) fn guest(&self) -> Option<(&Label, u64)> {
        match self {
            Self::Reach(guest, backing) | Self::ReachOrFault(guest, backing) => Some((guest, *backing)),
            Self::Fault(_) | Self::Forgotten => None,
        }
    }

    /// Whether a fault may have this cause.
    pub(crate) fn allows(&self, cause: FaultCause) -> bool {
        match self {
            Self::Reach(..) => false,
            Self::Fault(only) => cause == *only,
            Self::ReachOrFault(..) => cause == FaultCause::Blocked,
            Self::Forgotten => matches!(cause, FaultCause::Blocked | FaultCause::UnknownStream),
        }
    }

    /// It in a few words.
    pub(crate) fn result(&self) -> String {
        match self {
            Self::Reach(guest, _) => format!("reach {guest}"),
            Self::Fault(cause) => format!("fault: {cause}"),
            Self::ReachOrFault(guest, _) => format!("reach {guest} or fault"),
            Self::Forgotten => "fault".to_owned(),
        }
    }

    /// It as an expectation.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Reach(guest, backing) => format!("to reach {guest} at {backing:#x}"),
            Self::Fault(cause) => format!("to fault: {cause}"),
            Self::ReachOrFault(guest, backing) => format!("to reach {guest} at {backing:#x}, or to fault as blocked"),
            Self::Forgotten => "to fault as unknown, or as blocked by an entry of its old group".to_owned(),
        }
    }
}

impl Stage<'_> {
    /// What a stream's DMA to the guests' page must come to, by what the registry says of its devices.
    pub(crate) fn must(&self, unit: IommuKey, id: StreamId) -> Must {
        match self.owner_of(unit, id) {
            Some((guest, backing)) => Must::Reach(guest, backing),
            None => match self.users_of(unit, id).next() {
                Some(user) => self.companion_of(unit, &user),
                None if self.was_anyones(unit, id) => Must::Forgotten,
                None => Must::Fault(FaultCause::UnknownStream),
            },
        }
    }

    /// Whether a device had the stream ID that is not registered now.
    fn was_anyones(&self, unit: IommuKey, id: StreamId) -> bool {
        let mut added = self.world.subjects.iter().filter(|subject| subject.refused.is_none());
        added.any(|subject| subject.spec.streams.iter().any(|stream| holds(*stream, unit, id)))
    }

    /// What a device in fault comes to, by those that may share entries with it.
    fn companion_of(&self, unit: IommuKey, user: &DeviceInfo) -> Must {
        let mut owners =
            self.companions(unit, user.device.streams()).into_iter().filter_map(|info| self.guest_of(&info));
        owners.next().map_or(Must::Fault(FaultCause::Blocked), |(guest, backing)| Must::ReachOrFault(guest, backing))
    }

    /// The devices that may share entries of an SMMU with one that has these streams: whose streams overlap those, or overlap
    /// those of another such device.
    pub(crate) fn companions(&self, unit: IommuKey, streams: &[Stream]) -> Vec<DeviceInfo> {
        let mut rest: Vec<DeviceInfo> = self.world.service.devices().collect();
        let mut reached: Vec<Stream> = streams.iter().filter(|stream| stream.iommu() == unit).copied().collect();
        let mut found = Vec::new();
        loop {
            let overlaps = |info: &DeviceInfo| {
                info.device.streams().iter().any(|one| reached.iter().any(|other| one.overlaps(*other)))
            };
            let (near, far): (Vec<_>, Vec<_>) = rest.into_iter().partition(overlaps);
            if near.is_empty() {
                return found;
            }
            let at_unit = near.iter().flat_map(|info| info.device.streams()).filter(|stream| stream.iommu() == unit);
            reached = at_unit.copied().collect();
            found.extend(near);
            rest = far;
        }
    }

    /// The guest that a device is assigned to.
    pub(crate) fn guest_of(&self, info: &DeviceInfo) -> Option<(Label, u64)> {
        match info.state {
            DeviceState::Assigned(domain) => self.guests.get(&domain).cloned(),
            _ => None,
        }
    }

    /// The registered devices that a stream ID belongs to.
    pub(crate) fn users_of(&self, unit: IommuKey, id: StreamId) -> impl Iterator<Item = DeviceInfo> {
        let devices = self.world.service.devices();
        devices.filter(move |info| info.device.streams().iter().any(|stream| holds(*stream, unit, id)))
    }

    pub(crate) fn owner_of(&self, unit: IommuKey, id: StreamId) -> Option<(Label, u64)> {
        self.users_of(unit, id).find_map(|info| self.guest_of(&info))
    }

    /// Whether the report names a device that has the stream, or none where none has it. A shared stream has several,
    /// and the hardware cannot tell whose transaction it was.
    pub(crate) fn names_who_it_can(&self, record: &FaultRecord, unit: IommuKey, id: StreamId) -> bool {
        let users: Vec<Label> = self.users_of(unit, id).map(|info| info.device.label().clone()).collect();
        record.device.as_ref().map_or(users.is_empty(), |named| users.contains(named))
    }

    /// Whether the hardware's streams have so many bits: what is wider cannot be on its bus.
    pub(crate) fn carries(&self, unit: IommuKey, id: StreamId) -> bool {
        let service = self.world.in_service().find(|(one, _)| one.key == unit).map(|(_, service)| service);
        service.is_some_and(|service| id.value() >> u32::from(service.geometry.stream_id_bits).min(31) == 0)
    }
}

/// Whether a stream ID is one of the stream's.
pub(crate) fn holds(stream: Stream, unit: IommuKey, id: StreamId) -> bool {
    stream.overlaps(Stream::new(unit, id, StreamMask::NONE))
}
