//! What is read from the machine's tree beside SMMUs, host bridges and their masters.

use core::fmt;
use core::ops::Range;

use alloc::vec::Vec;
use iommu_assign::dt::{Node, Region, Tree};

/// How PSCI is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conduit {
    /// `hvc`: the firmware is a hypervisor below.
    Hvc,
    /// `smc`: the firmware is at EL3.
    Smc,
}

/// The interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GicRegions {
    /// Distributor and CPU interface.
    V2(Region, Region),
    /// Distributor and redistributors.
    V3(Region, Region),
}

impl fmt::Display for GicRegions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (version, distributor, other) = match self {
            Self::V2(distributor, interface) => (2, distributor, interface),
            Self::V3(distributor, redistributors) => (3, distributor, redistributors),
        };
        write!(f, "GICv{version} at {:#x} and {:#x}", distributor.base(), other.base())
    }
}

/// The console that `/chosen` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Console {
    /// Arm's PrimeCell UART.
    Pl011(Region),
    /// Cadence's UART, in Zynq and ZynqMP.
    Cadence(Region),
}

fn is_compatible(node: &Node<'_, '_>, names: &[&str]) -> bool {
    node.strings("compatible").is_ok_and(|mut own| own.any(|own| names.contains(&own)))
}

/// The first enabled node that is one of these.
pub(crate) fn compatible<'t, 'a>(tree: &'t Tree<'a>, names: &[&str]) -> Option<Node<'t, 'a>> {
    tree.nodes().find(|node| node.is_enabled() && is_compatible(node, names))
}

/// All enabled nodes that are one of these.
pub(crate) fn all_compatible<'t, 'a>(tree: &'t Tree<'a>, names: &[&str]) -> impl Iterator<Item = Node<'t, 'a>> {
    tree.nodes().filter(|node| node.is_enabled() && is_compatible(node, names))
}

/// A property's cells.
pub(crate) fn cells<'a>(node: &Node<'_, 'a>, property: &str) -> impl Iterator<Item = u32> + use<'a> {
    let value = node.property(property).map_or(&[][..], |property| property.value());
    value.chunks_exact(4).filter_map(|cell| cell.try_into().ok().map(u32::from_be_bytes))
}

fn text<'a>(node: &Node<'_, 'a>, property: &str) -> Option<&'a str> {
    let value = node.property(property)?.value();
    core::str::from_utf8(value).ok().map(|text| text.trim_end_matches('\0'))
}

/// RAM, without what the tree wants unmapped.
pub(crate) fn memory(tree: &Tree<'_>) -> Vec<Range<usize>> {
    // What is the Secure side's alone is there too, disabled.
    let is_memory = |node: &Node<'_, '_>| node.is_enabled() && text(node, "device_type") == Some("memory");
    let regions = tree.nodes().filter(is_memory).filter_map(|node| node.regions().ok()).flatten();
    let mut memory: Vec<Range<usize>> = regions.filter_map(range).filter(|range| !range.is_empty()).collect();
    let reserved = tree.find("/reserved-memory");
    let unmapped = reserved.iter().flat_map(Node::children).filter(|node| node.property("no-map").is_some());
    for hole in unmapped.filter_map(|node| node.regions().ok()).flatten().filter_map(range) {
        memory = memory.into_iter().flat_map(|all| without(all, &hole)).collect();
    }
    memory
}

fn range(region: Region) -> Option<Range<usize>> {
    let start = usize::try_from(region.base()).ok()?;
    Some(start..start.checked_add(usize::try_from(region.size()).ok()?)?)
}

fn without(all: Range<usize>, hole: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let below = all.start..all.end.min(hole.start);
    let above = all.start.max(hole.end)..all.end;
    [below, above].into_iter().filter(|part| part.start < part.end)
}

/// What the loader's command line says of `name`, as in `name=value`.
pub(crate) fn argument<'a>(tree: &Tree<'a>, name: &str) -> Option<&'a str> {
    let chosen = tree.find("/chosen")?;
    let words = text(&chosen, "bootargs")?.split_whitespace();
    words.filter_map(|word| word.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The console: `stdout-path`, which may be an alias and may have options behind a colon.
pub(crate) fn console(tree: &Tree<'_>) -> Option<Console> {
    let chosen = tree.find("/chosen")?;
    let name = text(&chosen, "stdout-path").or_else(|| text(&chosen, "linux,stdout-path"))?;
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    let path = if name.starts_with('/') { name } else { text(&tree.find("/aliases")?, name)? };
    let node = tree.find(path)?;
    let registers = *node.regions().ok()?.first()?;
    if is_compatible(&node, &["arm,pl011"]) {
        return Some(Console::Pl011(registers));
    }
    is_compatible(&node, &["cdns,uart-r1p12", "cdns,uart-r1p8", "xlnx,xuartps"]).then_some(Console::Cadence(registers))
}

/// How PSCI is called; `None` where there is no firmware to call.
pub(crate) fn psci(tree: &Tree<'_>) -> Option<Conduit> {
    let node = compatible(tree, &["arm,psci-1.0", "arm,psci-0.2"])?;
    match text(&node, "method")? {
        "hvc" => Some(Conduit::Hvc),
        "smc" => Some(Conduit::Smc),
        _ => None,
    }
}

/// The CPUs by MPIDR affinity, in the tree's order.
pub(crate) fn cpus(tree: &Tree<'_>) -> Vec<u64> {
    let cpus = tree.find("/cpus");
    let is_cpu = |node: &Node<'_, '_>| node.is_enabled() && text(node, "device_type") == Some("cpu");
    let affinity = |node: Node<'_, '_>| cells(&node, "reg").fold(0, |sum: u64, cell| sum << 32 | u64::from(cell));
    cpus.iter().flat_map(Node::children).filter(is_cpu).map(affinity).collect()
}

/// The interrupt controller's registers.
pub(crate) fn gic(tree: &Tree<'_>) -> Option<GicRegions> {
    let pair = |names: &[&str]| {
        let regions = compatible(tree, names)?.regions().ok()?;
        Some((*regions.first()?, *regions.get(1)?))
    };
    if let Some((distributor, redistributors)) = pair(&["arm,gic-v3"]) {
        return Some(GicRegions::V3(distributor, redistributors));
    }
    let (distributor, interface) = pair(&["arm,gic-400", "arm,cortex-a15-gic", "arm,cortex-a9-gic"])?;
    Some(GicRegions::V2(distributor, interface))
}

/// The number of the GIC interrupt that a specifier of three cells means (binding `arm,gic`).
pub(crate) fn interrupt(mut specifier: impl Iterator<Item = u32>) -> Option<u32> {
    match (specifier.next()?, specifier.next()?) {
        (0, spi) => spi.checked_add(32),
        (1, ppi) => ppi.checked_add(16),
        _ => None,
    }
}

/// The private interrupt of EL2's physical timer: the fourth of the timer node.
pub(crate) fn timer(tree: &Tree<'_>) -> Option<u32> {
    let node = compatible(tree, &["arm,armv8-timer"])?;
    interrupt(cells(&node, "interrupts").skip(9))
}
