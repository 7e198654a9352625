//! Who plays which part: devices are chosen from what a board has, so that each step of the scenario shows something.

use std::rc::Rc;

use iommu_assign::assign::Source;

use crate::policy::Rules;
use crate::stage::{Stage, shares};
use crate::world::Subject;

/// The parts. What a board has nobody for is left out of the scenario.
#[derive(Debug, Default)]
pub(crate) struct Cast {
    /// Firmware did not mark it: the policy says no.
    pub(crate) unmarked: Option<Rc<Subject>>,
    /// Goes from guest to guest.
    pub(crate) first: Option<Rc<Subject>>,
    /// Another device, for another guest.
    pub(crate) second: Option<Rc<Subject>>,
    /// A PCI function that is pulled out.
    pub(crate) function: Option<Rc<Subject>>,
    /// Two that share a stream.
    pub(crate) sharers: Option<(Rc<Subject>, Rc<Subject>)>,
    /// Two that share no stream, and that their bus does not keep apart.
    pub(crate) neighbours: Option<(Rc<Subject>, Rc<Subject>)>,
    /// All that the policy lets go.
    pub(crate) candidates: Vec<Rc<Subject>>,
}

impl Cast {
    /// Chooses among the devices that were added.
    pub(crate) fn choose(stage: &Stage<'_>) -> Self {
        let added: Vec<Rc<Subject>> =
            stage.world.subjects.iter().filter(|subject| stage.info(subject).is_some()).cloned().collect();
        let by_firmware = matches!(stage.world.rules, Rules::Firmware);
        // A device goes only with the yes for those whose streams go along.
        let may_go = |subject: &Subject| {
            let marked = |subject: &Subject| subject.spec.passthrough;
            !by_firmware || (marked(subject) && stage.mates(subject).iter().all(|mate| marked(mate)))
        };
        let candidates: Vec<Rc<Subject>> =
            added.iter().filter(|subject| !subject.is_bridge && may_go(subject)).cloned().collect();
        let of = |source: Source| candidates.iter().filter(move |subject| subject.key.source() == source);
        let alone = |subject: &&Rc<Subject>| stage.mates(subject).is_empty();

        let mut cast = Self {
            unmarked: added.iter().find(|subject| by_firmware && !subject.spec.passthrough).cloned(),
            ..Self::default()
        };
        let any_order = || of(Source::Dt).filter(alone).chain(of(Source::Dt)).chain(of(Source::Pci));
        cast.first = any_order().next().cloned();
        cast.function = of(Source::Pci).find(alone).or_else(|| of(Source::Pci).next()).cloned();
        let taken = |subject: &Subject| {
            let used = [&cast.first, &cast.function].into_iter().flatten();
            used.into_iter().any(|used| used.key == subject.key || is_mate(stage, used, subject))
        };
        let unit = |subject: &Subject| subject.spec.streams.first().map(|stream| stream.iommu());
        let first_unit = cast.first.as_deref().and_then(unit);
        // Two guests on one SMMU show more than two on two.
        let near = any_order().find(|subject| alone(subject) && !taken(subject) && unit(subject) == first_unit);
        let second = near.or_else(|| any_order().find(|subject| !taken(subject))).cloned();

        let pairs = |sharing: bool| {
            let mut pairs = candidates.iter().filter_map(|one| {
                let mate = stage.mates(one).into_iter().find(|mate| shares(one, mate) == sharing && !mate.is_bridge)?;
                Some((one.clone(), mate))
            });
            let all: Vec<_> = pairs.by_ref().collect();
            all.iter().find(|(one, _)| !taken(one)).or(all.first()).cloned()
        };
        let (sharers, neighbours) = (pairs(true), pairs(false));
        cast.second = second;
        cast.sharers = sharers;
        cast.neighbours = neighbours;
        cast.candidates = candidates;
        cast
    }
}

fn is_mate(stage: &Stage<'_>, one: &Subject, other: &Subject) -> bool {
    stage.mates(one).iter().any(|mate| mate.key == other.key)
}
