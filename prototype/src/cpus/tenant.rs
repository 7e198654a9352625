//! Guests: a domain each, with stage-2 tables and memory of its own.

use std::sync::{Mutex, PoisonError};

use ::scenario::PAGES;
use iommu_assign::assign::{Domain, Error, Label, Service, Stage2, Stage2Limits};
use machine::{Machine, Stage2Tables};

use super::platform::Threads;
use crate::guests::{self, PAGE};

/// A guest.
#[derive(Debug)]
pub(super) struct Tenant {
    domain: Domain<Threads>,
    tables: Mutex<Stage2Tables>,
    memory: u64,
    /// Its pages are flushed when they are unmapped. A test leaves that out.
    flushes: bool,
}

impl Tenant {
    /// A guest with all of its memory mapped, by tables that IOMMUs with these limits can follow.
    ///
    /// # Errors
    ///
    /// What the service says.
    pub(super) fn create(
        service: &Service<Threads>,
        machine: &Machine,
        number: u64,
        limits: Stage2Limits,
        flushes: bool,
    ) -> Result<Self, Error> {
        let (mut tables, memory) = guests::tables(machine, number, limits);
        for page in 1..PAGES {
            let at = page.wrapping_mul(::scenario::PAGE);
            tables.map(PAGE.wrapping_add(at), memory.wrapping_add(at), true);
        }
        let label = Label::from(format!("guest-{number}").as_str());
        let domain = service.create_domain(label, tables.stage2())?;
        Ok(Self { domain, tables: Mutex::new(tables), memory, flushes })
    }

    /// How the service was told of its tables.
    pub(super) fn stage2(&self) -> Stage2 {
        self.tables(|tables| tables.stage2())
    }

    fn tables<T>(&self, act: impl FnOnce(&mut Stage2Tables) -> T) -> T {
        act(&mut self.tables.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ::scenario::Guest for Tenant {
    type Platform = Threads;
    const MEMORY: u64 = PAGE;

    fn domain(&self) -> &Domain<Threads> {
        &self.domain
    }

    fn memory(&self) -> u64 {
        self.memory
    }

    fn unmap(&self, page: u64) {
        self.tables(|tables| tables.unmap(Self::address(page)));
    }

    fn map(&self, page: u64) {
        self.tables(|tables| tables.map(Self::address(page), self.physical(page), true));
    }

    fn flush(&self, service: &Service<Threads>, page: u64) -> Result<(), Error> {
        if self.flushes { service.flush_range(&self.domain, &Self::range(page)) } else { Ok(()) }
    }
}
