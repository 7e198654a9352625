//! What nodes depend on: the properties of the field's bindings that refer to other nodes.
//!
//! Facts: Devicetree Specification v0.4; the consumer bindings of the kernel's `Documentation/devicetree/bindings`; which of
//! them a kernel follows to order its drivers, `drivers/of/property.c`.

use alloc::string::String;
use alloc::vec::Vec;

/// What kind of thing a node depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Dependency {
    /// A clock: an input, or one whose parent or rate the node wants set.
    Clock,
    /// Another device that has streams of its own: it comes to the guest when it is assigned too. Also a host bridge, whose
    /// functions do.
    Device,
    /// A channel of a DMA controller.
    DmaChannel,
    /// A line of a GPIO controller.
    Gpio,
    /// A path through an interconnect.
    Interconnect,
    /// An interrupt that the integrator does not give the guest.
    Interrupt,
    /// A channel of a mailbox.
    Mailbox,
    /// Memory that firmware reserves.
    Memory,
    /// An MSI controller.
    MsiController,
    /// Cells of a non-volatile memory: a calibration, a MAC address.
    Nvmem,
    /// Anything else that a binding refers to.
    Other,
    /// A PHY, by any of the bindings.
    Phy,
    /// A setting of pins.
    Pins,
    /// A power domain, or an operating point of one.
    PowerDomain,
    /// A regulator.
    Regulator,
    /// A reset line.
    Reset,
}

/// Something that a node depends on and that the guest's tree does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// Full path of the node, on the host.
    pub node: String,
    /// What it is.
    pub kind: Dependency,
    /// The property that refers to it; of a [`Device`](Dependency::Device) below the node, none.
    pub property: Option<String>,
    /// How the node calls it (`clock-names` and its like).
    pub name: Option<String>,
    /// Full path of what is referred to, where the reference can be followed.
    pub target: Option<String>,
    /// The cells behind the reference: which clock, which line.
    pub specifier: Vec<u32>,
}

/// How a property refers to other nodes: a list of phandles, each with a specifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) kind: Dependency,
    /// The target's property that says how many cells a specifier has; none has any without.
    pub(super) cells: Option<&'static str>,
    /// The property that names the entries.
    pub(super) names: Option<&'static str>,
}

/// What becomes of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// It means the same in the guest.
    Copied,
    /// It is left out: written anew, or of no meaning without what is left out.
    Dropped,
    /// It refers to other nodes.
    Refers(Binding),
}

/// What becomes of the property `name`.
pub(super) fn treatment(name: &str) -> Treatment {
    if names_an_iommu(name) || DROPPED.contains(&name) {
        return Treatment::Dropped;
    }
    if TABLE.iter().any(|(_, binding)| binding.names == Some(name)) {
        // Written with what it names.
        return Treatment::Dropped;
    }
    if let Some((_, binding)) = TABLE.iter().find(|entry| entry.0 == name) {
        return Treatment::Refers(*binding);
    }
    if name.strip_prefix("pinctrl-").is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
        return Treatment::Refers(Binding { kind: Dependency::Pins, cells: None, names: None });
    }
    if name.ends_with("-supply") {
        return Treatment::Refers(Binding { kind: Dependency::Regulator, cells: None, names: None });
    }
    let is_gpio = matches!(name, "gpios" | "gpio") || name.ends_with("-gpios") || name.ends_with("-gpio");
    // A flag of SoC vendors, and a count.
    if is_gpio && !matches!(name, "nr-gpios" | "snps,nr-gpios" | "ngpios") {
        return Treatment::Refers(Binding { kind: Dependency::Gpio, cells: Some("#gpio-cells"), names: None });
    }
    Treatment::Copied
}

/// Whether a property is of an IOMMU's binding, by whatever vendor.
fn names_an_iommu(name: &str) -> bool {
    ["iommu", "smmu", "mmu-masters", "stream-id", "stream-match"].iter().any(|part| name.contains(part))
}

/// Written anew for the guest, or about what the guest does not have.
const DROPPED: [&str; 22] = [
    "#address-cells",
    "#size-cells",
    "assigned-clock-rates",
    "assigned-clock-rates-u64",
    "dma-coherent",
    "dma-noncoherent",
    "dma-ranges",
    "interrupt-map",
    "interrupt-map-mask",
    "interrupt-names",
    "interrupt-parent",
    "interrupts",
    "interrupts-extended",
    "linux,phandle",
    "msi-map",
    "msi-map-mask",
    "phandle",
    "pinctrl-names",
    "ranges",
    "reg",
    "status",
    "xen,passthrough",
];

const fn entry(
    property: &'static str,
    kind: Dependency,
    cells: Option<&'static str>,
    names: Option<&'static str>,
) -> (&'static str, Binding) {
    (property, Binding { kind, cells, names })
}

const TABLE: [(&str, Binding); 36] = [
    entry("access-controllers", Dependency::Other, Some("#access-controller-cells"), Some("access-controller-names")),
    entry("assigned-clock-parents", Dependency::Clock, Some("#clock-cells"), None),
    entry("assigned-clocks", Dependency::Clock, Some("#clock-cells"), None),
    entry("backlight", Dependency::Other, None, None),
    entry("clocks", Dependency::Clock, Some("#clock-cells"), Some("clock-names")),
    entry("ddc-i2c-bus", Dependency::Other, None, None),
    entry("dmas", Dependency::DmaChannel, Some("#dma-cells"), Some("dma-names")),
    entry("extcon", Dependency::Other, None, None),
    entry("hwlocks", Dependency::Other, Some("#hwlock-cells"), Some("hwlock-names")),
    entry("interconnects", Dependency::Interconnect, Some("#interconnect-cells"), Some("interconnect-names")),
    entry("io-backends", Dependency::Other, Some("#io-backend-cells"), Some("io-backend-names")),
    entry("io-channels", Dependency::Other, Some("#io-channel-cells"), Some("io-channel-names")),
    entry("leds", Dependency::Other, None, Some("led-names")),
    entry("mboxes", Dependency::Mailbox, Some("#mbox-cells"), Some("mbox-names")),
    entry("memory-region", Dependency::Memory, None, Some("memory-region-names")),
    entry("msi-parent", Dependency::MsiController, Some("#msi-cells"), None),
    entry("mux-controls", Dependency::Other, Some("#mux-control-cells"), Some("mux-control-names")),
    entry("nvmem", Dependency::Nvmem, None, Some("nvmem-names")),
    entry("nvmem-cells", Dependency::Nvmem, Some("#nvmem-cell-cells"), Some("nvmem-cell-names")),
    entry("operating-points-v2", Dependency::PowerDomain, None, None),
    entry("panel", Dependency::Other, None, None),
    entry("phy", Dependency::Phy, None, None),
    entry("phy-device", Dependency::Phy, None, None),
    entry("phy-handle", Dependency::Phy, None, None),
    entry("phys", Dependency::Phy, Some("#phy-cells"), Some("phy-names")),
    entry("post-init-providers", Dependency::Other, None, None),
    entry("power-domains", Dependency::PowerDomain, Some("#power-domain-cells"), Some("power-domain-names")),
    entry("pwms", Dependency::Other, Some("#pwm-cells"), Some("pwm-names")),
    entry("remote-endpoint", Dependency::Other, None, None),
    entry("required-opps", Dependency::PowerDomain, None, None),
    entry("resets", Dependency::Reset, Some("#reset-cells"), Some("reset-names")),
    entry("sound-dai", Dependency::Other, Some("#sound-dai-cells"), None),
    entry("syscon", Dependency::Other, None, None),
    entry("thermal-sensors", Dependency::Other, Some("#thermal-sensor-cells"), None),
    entry("usb-phy", Dependency::Phy, None, None),
    entry("wakeup-parent", Dependency::Other, None, None),
];
