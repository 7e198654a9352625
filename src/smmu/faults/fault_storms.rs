//! What a storm is blamed on: a device, or, where no device can be named, the report itself, which is silenced.

use super::fault_counters::Counted;
use crate::assign::{DeviceId, DomainId, StormReport};
use crate::few;
use crate::smmu::hardware::FaultLimits;
use crate::smmu::hardware::part::BankIndex;

/// How many records, of whatever streams, are a storm in a bank, or on the global line.
pub(in crate::smmu) fn bound(limits: FaultLimits, bank: Option<BankIndex>) -> u64 {
    bank.map_or(limits.line, |_| limits.storm).into()
}

/// Tells of every device that stormed in a bank or, with `None`, on the global line, and of the busiest stream that no
/// device has, if that stormed. Where so many different streams did that none stands out, the device with the most
/// faults is told of, or the report itself. Says whether the report is to be silenced.
///
/// `faults` were taken there since the last call, whichever streams they named. `suspects` are the streams that
/// faulted, with the devices that have them, sorted by bank and device; in a bank only a device that translates through
/// the bank counts.
pub(in crate::smmu) fn accuse(
    bank: Option<BankIndex>,
    domain: Option<DomainId>,
    faults: u64,
    suspects: &[(Option<DeviceId>, Counted)],
    limits: FaultLimits,
    storming: &mut dyn FnMut(StormReport),
) -> bool {
    let report = |stream, faults, device: Option<DeviceId>| StormReport {
        stream,
        domain,
        faults,
        device,
        silenced: device.is_none(),
    };
    let (mut told, mut silence) = (false, false);
    let mut most = report(None, 0, None);
    for of_device in few::runs(suspects, |one, two| (one.0, one.1.bank) == (two.0, two.1.bank)) {
        let busiest = of_device.iter().max_by_key(|(_, counted)| counted.faults).copied();
        let Some((device, busiest)) = busiest.filter(|(_, busiest)| busiest.bank == bank) else { continue };
        let sum = of_device.iter().map(|(_, counted)| counted.faults).fold(0, u32::saturating_add);
        if sum > most.faults {
            most = report(Some(busiest.stream), sum, device);
        }
        // In a bank a stream that no device has there is not to be believed.
        let most_of_it = if device.is_some() { sum } else { busiest.faults };
        if most_of_it >= limits.storm && (device.is_some() || bank.is_none()) {
            told = true;
            silence |= device.is_none();
            storming(report(Some(busiest.stream), most_of_it, device));
        }
    }
    if !told && faults >= bound(limits, bank) {
        let blamed =
            if most.device.is_some() { most } else { report(None, u32::try_from(faults).unwrap_or(u32::MAX), None) };
        silence = blamed.silenced;
        storming(blamed);
    }
    silence
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::assign::StreamId;

    /// Bank 1 of domain 7: stream, device and count of each suspect, and what is told of them.
    fn told(bank: Option<u8>, faults: u64, all: &[(u32, u64, u32)]) -> Vec<(u32, u64, u32, bool)> {
        let suspects = all.iter().map(|(stream, device, faults)| {
            let device = (*device != 0).then(|| DeviceId::new(*device));
            (device, Counted { bank, stream: StreamId::new(*stream), faults: *faults })
        });
        let mut suspects: Vec<_> = suspects.collect();
        suspects.push((suspects[0].0, Counted { bank: Some(9), ..suspects[0].1 }));
        suspects.sort_unstable_by_key(|(device, counted)| (counted.bank, *device));
        let domain = bank.map(|_| DomainId::new(7));
        let limits = FaultLimits { records: 10, storm: 10, line: 20 };
        let (mut told, mut hushed) = (Vec::new(), false);
        let silenced = accuse(bank, domain, faults, &suspects, limits, &mut |report| {
            hushed |= report.silenced;
            assert_eq!(report.domain, domain);
            let stream = report.stream.map_or(0, StreamId::value);
            told.push((stream, report.device.map_or(0, DeviceId::number), report.faults, report.silenced));
        });
        assert_eq!(silenced, hushed);
        told
    }

    #[test]
    fn a12_a_device_is_blamed_for_all_of_its_streams() {
        assert_eq!(told(Some(1), 12, &[(1, 5, 6), (2, 6, 1), (3, 5, 4)]), [(1, 5, 10, false)]);
        assert_eq!(told(None, 12, &[(1, 5, 6), (2, 6, 1), (3, 5, 4)]), [(1, 5, 10, false)]);
        assert_eq!(told(Some(1), 9, &[(1, 5, 9)]), []);
    }

    #[test]
    fn a12_the_one_with_the_most_faults_is_blamed_where_nobody_reached_the_limit() {
        assert_eq!(told(Some(1), 25, &[(1, 5, 8), (2, 6, 9), (3, 0, 8)]), [(2, 6, 9, false)]);
        assert_eq!(told(Some(1), 25, &[(1, 5, 3), (0, 0, 22)]), [(0, 0, 25, true)]);
    }

    #[test]
    fn a12_streams_of_nobody_silence_the_global_report_one_by_one_or_together() {
        assert_eq!(told(None, 12, &[(1, 0, 11), (2, 0, 1)]), [(1, 0, 11, true)]);
        assert_eq!(told(None, 25, &[(1, 0, 1), (2, 0, 1)]), [(0, 0, 25, true)]);
        assert_eq!(told(None, 19, &[(1, 0, 1), (2, 0, 1)]), []);
    }
}
