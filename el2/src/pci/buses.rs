//! Bus numbers and virtual functions, where no firmware has set them up.
//!
//! Buses are numbered depth first. A port that things can be plugged into keeps two numbers more than it has use for.

use iommu_assign::pci::{Bus, Capabilities, DeviceFunction, Ecam, FunctionConfig, HeaderType, HostBridge, Sbdf};

/// Numbers kept for what is plugged in later.
const SPARE: u8 = 2;
const BUS_NUMBERS: u16 = 0x18;
const COMMAND: u16 = 0x04;
/// Memory decoding and bus mastering: what is below a bridge reaches the host through it.
const FORWARD: u32 = 0b110;

/// Gives every bus behind `host` a number, unless its bridges have numbers already.
pub(crate) fn number(space: &Ecam, host: &HostBridge) {
    let mut next = host.buses.start().0;
    number_below(space, host, *host.buses.start(), &mut next);
}

/// Numbers what is below `bus`; `next` is the last number that was given.
fn number_below(space: &Ecam, host: &HostBridge, bus: Bus, next: &mut u8) {
    for function in functions(space, host, bus) {
        let Ok(config) = FunctionConfig::new(space, function) else { continue };
        let Ok(HeaderType::Bridge { secondary, .. }) = config.header_type() else { continue };
        if secondary.0 != 0 || *next >= host.buses.end().0.saturating_sub(SPARE) {
            continue;
        }
        *next += 1;
        let below = *next;
        write_numbers(&config, bus.0, below, host.buses.end().0);
        config.write(COMMAND, config.read(COMMAND) & 0xffff | FORWARD);
        let capabilities = Capabilities::read(&config).unwrap_or_default();
        enable_access_control(&config, &capabilities);
        number_below(space, host, Bus(below), next);
        if capabilities.express.is_some_and(|express| express.port_type.is_downstream_port()) {
            *next = (*next).max(below.saturating_add(SPARE)).min(host.buses.end().0);
        }
        write_numbers(&config, bus.0, below, *next);
    }
}

fn write_numbers(config: &FunctionConfig<'_, Ecam>, primary: u8, secondary: u8, subordinate: u8) {
    let [.., latency] = config.read(BUS_NUMBERS).to_le_bytes();
    config.write(BUS_NUMBERS, u32::from_le_bytes([primary, secondary, subordinate, latency]));
}

/// The functions that answer on a bus.
fn functions<'a>(space: &'a Ecam, host: &HostBridge, bus: Bus) -> impl Iterator<Item = Sbdf> + use<'a> {
    let segment = host.segment;
    (0..32_u8).flat_map(move |device| {
        let at = move |function| DeviceFunction::new(device, function).map(|place| Sbdf::new(segment, bus, place));
        let first = at(0).and_then(|first| FunctionConfig::new(space, first).ok());
        let several = first.as_ref().is_some_and(FunctionConfig::is_multi_function);
        let count = if several { 8 } else { u8::from(first.is_some()) };
        (0..count).filter_map(at).filter(|function| FunctionConfig::new(space, *function).is_ok())
    })
}

/// Switches on access control services of a downstream port, without which what is below could reach its peers around the
/// SMMU: source validation, request and completion redirection, upstream forwarding, as far as the port has them.
fn enable_access_control(config: &FunctionConfig<'_, Ecam>, capabilities: &Capabilities) {
    let Some(acs) = capabilities.acs else { return };
    let supported = config.read(acs.control()) & ACCESS_CONTROL;
    // The capability's word: what there is in the lower half, read-only, what is on in the upper half.
    config.write(acs.control(), supported << 16);
}

/// Switches on up to `wanted` virtual functions of a function that can have some. Returns how many there are.
pub(crate) fn enable_virtual_functions(space: &Ecam, function: Sbdf, wanted: u16) -> u16 {
    let Ok(config) = FunctionConfig::new(space, function) else { return 0 };
    let Some(sr_iov) = Capabilities::read(&config).ok().and_then(|capabilities| capabilities.sr_iov) else { return 0 };
    if sr_iov.enabled {
        return sr_iov.count;
    }
    let count = wanted.min(sr_iov.total);
    // The upper halves of both words are read-only or cleared by ones.
    config.write(sr_iov.number(), u32::from(count));
    config.write(sr_iov.control(), VF_ENABLE | VF_MEMORY_SPACE);
    count
}

const ACCESS_CONTROL: u32 = 0b1_1101;
const VF_ENABLE: u32 = 1 << 0;
const VF_MEMORY_SPACE: u32 = 1 << 3;
