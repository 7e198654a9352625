//! SMMUv1/v2 nodes (binding `arm,smmu`).
//!
//! Claimed are the compatibles of the binding and no look-alike: `arm,smmu-v3`, `qcom,msm-iommu-v1` and other
//! vendors' IOMMUs have other registers.

use alloc::string::String;
use alloc::vec::Vec;

use super::cells::{Cells, Region};
use super::references::{IOMMU_CELLS, MMU_MASTERS, resolve};
use super::refusal::Refusals;
use super::tree::{Node, NodeId, Refused, Tree};
use super::{DtError, NodeFault};
use crate::assign::{IommuKey, StreamMask};
use crate::few;
use crate::smmu::{Architecture, Chip, ContextLines, EmptyRoot, Implementation, Lockstep, SmmuConfig};

/// An SMMUv1/v2 instance as its node describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SmmuNode<'a> {
    /// The node.
    pub node: NodeId,
    /// Full path of the node.
    pub path: String,
    /// What names the instance everywhere: the CPU address of its first region.
    pub key: IommuKey,
    /// Whether the node and all its ancestors are enabled.
    pub enabled: bool,
    /// The registers as the CPU sees them, never empty. What of them is used is for the ID registers to say.
    pub registers: Region,
    /// Further register regions: NVIDIA's second and third instance, which mirror the first. Never empty regions.
    pub mirrors: Vec<Region>,
    /// Cells of a stream specifier: 1 (ID) or 2 (ID and mask); 0 where nothing can refer to the instance by `iommus`,
    /// because it lists its masters by the old binding.
    pub iommu_cells: u32,
    /// Whether it lists its masters in `mmu-masters`, the binding of before `iommus`.
    pub mmu_masters: bool,
    /// The mask of every stream ID that comes without one; `stream-match-mask` has a meaning for `iommu_cells` 1 only.
    pub stream_match_mask: StreamMask,
    /// The interrupts as listed, global ones first. Boards list one line several times.
    pub interrupts: Vec<Interrupt<'a>>,
    /// How many of `interrupts` report global faults; the rest report context banks' faults.
    pub global_irqs: u32,
    /// How many of `interrupts` report context banks' faults. No count of banks: ID registers give that.
    pub context_irqs: u32,
    /// The different lines that those are: boards list one line for many banks. Several instances in step have a line
    /// each, and their list says nothing of banks.
    pub context_lines: ContextLines,
    /// Whether table walks are coherent with the CPU's caches: `dma-coherent` on the node itself. What a bus says for
    /// its children is not taken: to clean the cache needlessly costs time, not to clean it breaks isolation.
    pub coherent: bool,
    /// The architecture version of the most specific compatible that is known.
    pub architecture: Architecture,
    /// The implementation of the most specific compatible that is known.
    pub implementation: Implementation,
    /// Whether this is a Qualcomm GPU's SMMU (`qcom,adreno-smmu`).
    pub adreno: bool,
    /// The compatibles as listed, for quirks that go by a chip's name.
    pub compatibles: Vec<&'a str>,
    /// Global registers must be reached through their secure aliases (`calxeda,smmu-secure-config-access`).
    pub secure_config_access: bool,
    /// The node's phandle; without one nothing can refer to the instance.
    pub phandle: Option<u32>,
}

impl SmmuNode<'_> {
    /// The registers of every instance that firmware lists, each region mapped by `map`: what a probe wants beside
    /// [`config`](Self::config). One region on most boards; NVIDIA's list two or three.
    ///
    /// # Errors
    ///
    /// What `map` says of the first region that it cannot map.
    pub fn map<R, E>(&self, map: impl FnMut(Region) -> Result<R, E>) -> Result<Lockstep<R>, E> {
        self.regions().map(map).collect()
    }

    fn regions(&self) -> impl Iterator<Item = Region> {
        [self.registers].into_iter().chain(self.mirrors.iter().copied())
    }

    /// What the driver is told of it: all that firmware says, and defaults for the rest.
    #[must_use]
    pub fn config(&self, empty_root: EmptyRoot) -> SmmuConfig {
        let shortest = self.regions().map(Region::size).min().unwrap_or(0);
        SmmuConfig {
            instances: self.regions().count(),
            implementation: self.implementation,
            coherent: self.coherent,
            context_lines: self.context_lines.clone(),
            chip: Chip::of(&self.compatibles),
            secure_config_access: self.secure_config_access,
            adreno: self.adreno,
            ..SmmuConfig::new(self.key, shortest, self.architecture, empty_root)
        }
    }
}

impl<'a> SmmuNode<'a> {
    /// The interrupts that are context lines 0, 1, ...: what a handler of `FaultLine::Context` stands on.
    pub fn context_line_interrupts(&self) -> impl Iterator<Item = Interrupt<'a>> {
        let context = || self.interrupts.iter().skip(usize::try_from(self.global_irqs).unwrap_or(usize::MAX)).take(128);
        let first = move |(at, irq): &(usize, &Interrupt<'a>)| !context().take(*at).any(|other| other == *irq);
        context().enumerate().filter(first).map(|(_, irq)| *irq)
    }
}

/// One entry of `interrupts` or `interrupts-extended`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt<'a> {
    controller: NodeId,
    specifier: Cells<'a>,
}

impl<'a> Interrupt<'a> {
    /// The interrupt controller, or the nexus that maps to one.
    #[must_use]
    pub const fn controller(&self) -> NodeId {
        self.controller
    }

    /// The specifier's cells, which mean what the controller's binding says.
    pub fn specifier(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.specifier
    }
}

/// The SMMUs of a tree, in the order of the blob; refuses nodes that say that they are one and make none.
pub(super) fn read<'a>(tree: &mut Tree<'a>, refusals: &mut Refusals) -> Result<Vec<SmmuNode<'a>>, DtError> {
    let mut smmus: Vec<SmmuNode<'a>> = Vec::new();
    for index in 0..tree.len() {
        let Some(node) = tree.nth(index).filter(|node| !node.is_metadata()) else { continue };
        let id = node.id();
        match (node.refused(), node.strings(COMPATIBLE).map(|mut names| names.find_map(recognise))) {
            (Refused::Whole, _) | (_, Ok(None)) => {}
            // Without its compatible a node can be an SMMU, and must not pass for another IOMMU.
            (Refused::Above, _) => refusals.add_below(tree, id)?,
            (_, Err(error)) => refusals.add(tree, id, Refused::Whole, error)?,
            (_, Ok(Some((architecture, implementation)))) => match read_one(&node, architecture, implementation) {
                Ok(smmu) => {
                    few::push(&mut smmus, smmu)?;
                }
                Err(error) => refusals.add(tree, id, Refused::Whole, error)?,
            },
        }
    }
    refuse_shared_registers(tree, refusals, &mut smmus)?;
    Ok(smmus)
}

/// Two drivers at the same registers would undo each other's work: neither SMMU is offered.
fn refuse_shared_registers(
    tree: &mut Tree<'_>,
    refusals: &mut Refusals,
    smmus: &mut Vec<SmmuNode<'_>>,
) -> Result<(), DtError> {
    let mut bases: Vec<(u64, NodeId)> = Vec::new();
    few::extend(&mut bases, smmus.iter().map(|smmu| (smmu.key.base(), smmu.node)))?;
    few::sort(&mut bases, &|one, other| one < other);
    for bases in few::runs(&bases, |one, next| one.0 == next.0) {
        let [first, second, ..] = bases else { continue };
        let all = bases.iter().skip(1).map(|other| (other, first)).chain([(first, second)]);
        for (&(base, node), (_, other)) in all {
            let error = tree.error_at(node, NodeFault::DuplicateBase { base, other: tree.path_of(*other)? });
            refusals.add(tree, node, Refused::Whole, error)?;
        }
    }
    smmus.retain(|smmu| tree.node(smmu.node).is_some_and(|node| node.refused() != Refused::Whole));
    Ok(())
}

/// The SMMU that `node` is, among all of them.
pub(super) fn find<'s, 'a>(smmus: &'s [SmmuNode<'a>], node: NodeId) -> Option<&'s SmmuNode<'a>> {
    let index = smmus.binary_search_by_key(&node, |smmu| smmu.node).ok()?;
    smmus.get(index)
}

fn read_one<'a>(
    node: &Node<'_, 'a>,
    architecture: Architecture,
    implementation: Implementation,
) -> Result<SmmuNode<'a>, DtError> {
    let mut regions = node.regions()?.into_iter();
    let registers = regions.next().ok_or_else(|| node.error(NodeFault::MissingProperty { property: "reg" }))?;
    let mut mirrors = Vec::new();
    few::extend(&mut mirrors, regions)?;
    let all = [registers].into_iter().chain(mirrors.iter().copied());
    if let Some((region, _)) = all.enumerate().find(|(_, region)| region.size() == 0) {
        return Err(node.error(NodeFault::EmptyRegion { region }));
    }

    let mmu_masters = node.property(MMU_MASTERS).is_some();
    let iommu_cells = match node.u32(IOMMU_CELLS)? {
        None if mmu_masters => 0,
        None => return Err(node.error(NodeFault::MissingProperty { property: IOMMU_CELLS })),
        Some(count @ (1 | 2)) => count,
        Some(count) => {
            return Err(node.error(NodeFault::CellCount { property: IOMMU_CELLS, count, allowed: "1 or 2" }));
        }
    };
    let stream_match_mask = node.u32("stream-match-mask")?.filter(|_| iommu_cells == 1).unwrap_or(0);

    let interrupts = interrupts(node)?;
    let listed = u32::try_from(interrupts.len()).unwrap_or(u32::MAX);
    let global_irqs = node.required_u32("#global-interrupts")?;
    let context_irqs = listed
        .checked_sub(global_irqs)
        .ok_or_else(|| node.error(NodeFault::TooFewInterrupts { global: global_irqs, listed }))?;
    let context = interrupts.iter().skip(usize::try_from(global_irqs).unwrap_or(usize::MAX));
    let context_lines = ContextLines::listed(context)?;
    let context_lines = if mirrors.is_empty() { context_lines } else { context_lines.without_order() };

    let names = node.strings(COMPATIBLE)?;
    let mut compatibles = Vec::new();
    few::extend(&mut compatibles, names)?;
    Ok(SmmuNode {
        node: node.id(),
        path: node.path()?,
        key: IommuKey::new(registers.base()),
        enabled: node.is_enabled(),
        registers,
        mirrors,
        iommu_cells,
        mmu_masters,
        stream_match_mask: StreamMask::new(stream_match_mask),
        interrupts,
        global_irqs,
        context_irqs,
        context_lines,
        coherent: node.property("dma-coherent").is_some(),
        architecture,
        implementation,
        adreno: compatibles.contains(&"qcom,adreno-smmu"),
        compatibles,
        secure_config_access: node.property("calxeda,smmu-secure-config-access").is_some(),
        phandle: node.phandle(),
    })
}

/// What a compatible says, where it is an SMMUv1's or v2's. `qcom,adreno-smmu` alone says nothing of registers.
fn recognise(compatible: &str) -> Option<(Architecture, Implementation)> {
    use Architecture::{V1, V2};
    Some(match compatible {
        "arm,smmu-v1" => (V1, Implementation::Generic),
        "arm,smmu-v2" => (V2, Implementation::Generic),
        "arm,mmu-400" => (V1, Implementation::Mmu400),
        "arm,mmu-401" => (V1, Implementation::Mmu401),
        "arm,mmu-500" => (V2, Implementation::Mmu500),
        "cavium,smmu-v2" => (V2, Implementation::Cavium),
        "marvell,ap806-smmu-500" => (V2, Implementation::MarvellAp806),
        "nvidia,smmu-500" | "nvidia,tegra186-smmu" | "nvidia,tegra194-smmu" | "nvidia,tegra234-smmu" => {
            (V2, Implementation::Nvidia)
        }
        "qcom,smmu-v2" => (V2, Implementation::Qualcomm),
        "qcom,smmu-500" => (V2, Implementation::QualcommMmu500),
        _ => {
            let chip_and_kind = compatible.strip_prefix("qcom,")?;
            let named = |suffix| chip_and_kind.strip_suffix(suffix).is_some_and(|chip| !chip.is_empty());
            if named("-smmu-v2") {
                (V2, Implementation::Qualcomm)
            } else if named("-smmu-500") {
                (V2, Implementation::QualcommMmu500)
            } else {
                return None;
            }
        }
    })
}

/// Both forms of the interrupt list; the extended one wins (Devicetree Specification v0.4, 2.4.1).
pub(super) fn interrupts<'a>(node: &Node<'_, 'a>) -> Result<Vec<Interrupt<'a>>, DtError> {
    let mut interrupts = Vec::new();
    if node.property(EXTENDED).is_none() {
        let mut cells = node.cells(INTERRUPTS)?;
        if cells.is_empty() {
            return Ok(interrupts);
        }
        let controller = interrupt_parent(node)?;
        let width = controller.required_u32(INTERRUPT_CELLS)?;
        while !cells.is_empty() {
            push(node, &mut interrupts, INTERRUPTS, controller.id(), width, &mut cells)?;
        }
    } else {
        let mut cells = node.cells(EXTENDED)?;
        while let Some(phandle) = cells.next() {
            let entry = interrupts.len();
            let controller = resolve(node, EXTENDED, entry, phandle)?;
            let width = controller.required_u32(INTERRUPT_CELLS)?;
            push(node, &mut interrupts, EXTENDED, controller.id(), width, &mut cells)?;
        }
    }
    Ok(interrupts)
}

fn push<'a>(
    node: &Node<'_, 'a>,
    interrupts: &mut Vec<Interrupt<'a>>,
    property: &'static str,
    controller: NodeId,
    width: u32,
    cells: &mut Cells<'a>,
) -> Result<(), DtError> {
    if width == 0 {
        // Such an entry would leave the list as long as it is, for ever.
        return Err(node.error(NodeFault::CellCount { property: INTERRUPT_CELLS, count: 0, allowed: "1 or more" }));
    }
    let entry = interrupts.len();
    let specifier = cells.split(width).ok_or_else(|| node.error(NodeFault::Truncated { property, entry }))?;
    few::push(interrupts, Interrupt { controller, specifier })?;
    Ok(())
}

/// The nearest node that says how wide an interrupt is: up the tree, with `interrupt-parent` in place of the parent
/// where a node has one.
fn interrupt_parent<'t, 'a>(node: &Node<'t, 'a>) -> Result<Node<'t, 'a>, DtError> {
    let tree = node.tree();
    let mut at = *node;
    // References can form a circle; a way without one meets no node twice.
    for _ in 0..tree.len() {
        let above = match at.u32(INTERRUPT_PARENT)? {
            Some(phandle) => Some(resolve(&at, INTERRUPT_PARENT, 0, phandle)?),
            None => at.parent(),
        };
        match above {
            Some(above) if above.property(INTERRUPT_CELLS).is_some() => return Ok(above),
            Some(above) => at = above,
            None => break,
        }
    }
    Err(node.error(NodeFault::NoInterruptParent))
}

const COMPATIBLE: &str = "compatible";
const EXTENDED: &str = "interrupts-extended";
const INTERRUPTS: &str = "interrupts";
const INTERRUPT_CELLS: &str = "#interrupt-cells";
const INTERRUPT_PARENT: &str = "interrupt-parent";
