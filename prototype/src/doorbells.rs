//! The doorbells of MSI controllers: which of them guests get to see, and where.
//!
//! An MSI is a write like any other, so that a guest whose device interrupts needs the doorbell's page mapped. Only a
//! controller that tells devices apart is mapped: the guest itself can write what is.

use iommu_assign::assign::Granule;
use iommu_assign::dt::{Msi, MsiController, MsiIsolation};

use crate::names::Names;

/// A doorbell that guests have mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Doorbell {
    /// The path of the controller.
    pub(crate) controller: String,
    /// The register, in physical memory.
    pub(crate) register: u64,
    /// The page, in physical memory.
    pub(crate) page: u64,
    /// The page, as guests address it.
    pub(crate) guest_page: u64,
}

impl Doorbell {
    /// The register, as guests address it.
    pub(crate) const fn guest_register(&self) -> u64 {
        self.guest_page.wrapping_add(self.register.wrapping_sub(self.page))
    }
}

/// All that are mapped.
#[derive(Debug, Default)]
pub(crate) struct Doorbells(Vec<Doorbell>);

impl Doorbells {
    /// The doorbell of one of these controllers that can be mapped, if there is one; each has one place for all guests.
    pub(crate) fn place(&mut self, msi: &Msi) -> Option<Doorbell> {
        let safe = |one: &&MsiController| one.enabled && one.isolation() == MsiIsolation::ByDevice;
        let (controller, doorbell) = msi.controllers.iter().filter(safe).find_map(|one| Some((one, one.doorbell?)))?;
        if let Some(known) = self.0.iter().find(|known| known.controller == controller.path) {
            return Some(known.clone());
        }
        let number = u64::try_from(self.0.len()).unwrap_or(u64::MAX);
        let placed = Doorbell {
            controller: controller.path.clone(),
            register: doorbell.register().value(),
            page: doorbell.page(Granule::Kib4).value(),
            guest_page: FIRST.saturating_add(number.saturating_mul(0x1_0000)),
        };
        self.0.push(placed.clone());
        Some(placed)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Doorbell> {
        self.0.iter()
    }
}

/// What happens to the MSIs of functions behind a host bridge, in a few words.
pub(crate) fn remark(msi: &Msi, names: &Names) -> Option<String> {
    let first = msi.controllers.first()?;
    let name = |one: &MsiController| names.name(&one.path);
    let told_apart = msi.controllers.iter().find(|one| one.enabled && one.isolation() == MsiIsolation::ByDevice);
    Some(match (told_apart, msi.isolation()) {
        (Some(one), _) => format!("MSIs through {}, which tells devices apart", name(one)),
        (None, MsiIsolation::NotIsolated) => {
            format!("no MSIs: {} does not tell devices apart, its doorbell is not mapped", name(first))
        }
        (None, _) => format!("no MSIs: where the doorbell of {} is, is not known", name(first)),
    })
}

/// The guest-physical page of the first doorbell.
const FIRST: u64 = 0x4020_0000;
