//! Faults: taken in interrupt handlers, named in waiting context, and their storms ended by a worker.

use core::ffi::{c_char, c_void};
use core::mem::MaybeUninit;

use iommu_assign::assign::{FaultAnswer, FaultLine, FaultRecord, IommuKey, RawFault, Storm, StreamId};

use crate::border::{self, Text, need, put};
use crate::error::{Failure, iommu_error};
use crate::service::iommu_service;
use crate::smmus::iommu_instance;
use crate::status::iommu_status;
use crate::told::{iommu_fault, iommu_fault_sink, line, name};
use crate::values::{iommu_device, iommu_quarantine};

/// What a fault handler does next: return, or mask the line at the interrupt controller and wake the worker, which calls
/// `iommu_tend_faults` and has it unmasked.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct iommu_fault_answer {
    /// Whether the line is to be masked.
    pub mask: bool,
    /// The line: the one that was asked about.
    pub line: u32,
}

fn answer_of(answer: FaultAnswer, asked: u32) -> iommu_fault_answer {
    match answer {
        FaultAnswer::Done => iommu_fault_answer { mask: false, line: asked },
        FaultAnswer::Mask(FaultLine::Global) => iommu_fault_answer { mask: true, line: crate::told::IOMMU_LINE_GLOBAL },
        FaultAnswer::Mask(FaultLine::Context(line)) => iommu_fault_answer { mask: true, line: line.into() },
    }
}

/// Reads, clears and tells what faulted on a line of an SMMU, and says whether the line is to be masked.
///
/// @param asked `IOMMU_LINE_GLOBAL`, or a context line counted from 0.
/// @param sink is called for each fault, without names, in the handler's context; it must not call the library. May be
/// NULL.
/// @param answer what to do next; may be NULL, and a storm goes on then.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: interrupt handlers: it takes no lock, allocates and frees nothing.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_take_faults(
    instance: Option<&iommu_instance>,
    asked: u32,
    sink: iommu_fault_sink,
    context: *mut c_void,
    answer: Option<&mut MaybeUninit<iommu_fault_answer>>,
) -> iommu_status {
    border::run(None, || {
        let mut told = |fault: RawFault| {
            if let Some(sink) = sink {
                sink(context, &iommu_fault::of(&fault, None, None));
            }
        };
        put(answer, answer_of(need(instance)?.0.take_faults(line(asked)?, &mut told), asked));
        Ok(())
    })
}

/// Reads, clears, names and tells what faulted on a line of an SMMU, and says whether the line is to be masked.
///
/// @param sink is called for each fault with no lock of the library held. May be NULL: events tell of them too.
/// @param answer what to do next; may be NULL, and a storm goes on then.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`.
///
/// Context: waiting: the handler's bottom half.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_handle_fault(
    service: Option<&iommu_service>,
    iommu: u64,
    asked: u32,
    sink: iommu_fault_sink,
    context: *mut c_void,
    answer: Option<&mut MaybeUninit<iommu_fault_answer>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let mut told = |record: &FaultRecord| {
            if let Some(sink) = sink {
                let (device, domain) = (record.device.as_ref().map(Text::of), record.domain.as_ref().map(Text::of));
                sink(context, &iommu_fault::of(&record.raw, device.as_ref(), domain.as_ref()));
            }
        };
        let done = need(service)?.service.handle_fault(IommuKey::new(iommu), line(asked)?, &mut told)?;
        put(answer, answer_of(done, asked));
        Ok(())
    })
}

/// Something that faulted too often. Valid during the callback.
#[repr(C)]
#[derive(Debug)]
pub struct iommu_storm<'a> {
    /// How many faults were taken of it.
    pub faults: u32,
    /// The stream, where `has_stream`.
    pub stream: u32,
    /// Whether the stream is known.
    pub has_stream: bool,
    /// No device is to blame, and the reports that it came by are silenced until a later call finds them quiet.
    pub silenced: bool,
    /// The domain whose context faulted; NULL where none is known.
    pub domain: *const c_char,
    /// The device whose group was quarantined; NULL where no device is to blame, or that failed. Not to be put.
    pub device: Option<&'a iommu_device>,
    /// Why a device could not be quarantined: its storm goes on. NULL where nothing failed.
    pub error: Option<&'a iommu_error>,
}

/// The worker's part of fault handling at an SMMU: quarantines the group of every device that has stormed since the last
/// call. Afterwards lines that were masked can be unmasked. To be called from time to time also without a storm: limits on
/// records count from one call to the next.
///
/// @param place where their DMA ends; NULL for faults.
/// @param sink is called for each storm with no lock of the library held. May be NULL.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_tend_faults(
    service: Option<&iommu_service>,
    iommu: u64,
    place: Option<&iommu_quarantine>,
    sink: Option<extern "C" fn(context: *mut c_void, storm: &iommu_storm<'_>)>,
    context: *mut c_void,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let place = place.copied().unwrap_or_default().read()?;
        let mut told = |storm: &Storm| {
            let Some(sink) = sink else { return };
            let (device, failed) = match &storm.ended {
                Some(Ok(device)) => (Some(iommu_device(device.clone())), None),
                Some(Err(error)) => (None, Some(iommu_error::of(Some(&Failure::from(error.clone()))))),
                None => (None, None),
            };
            let domain = storm.domain.as_ref().map(Text::of);
            let storm = iommu_storm {
                faults: storm.faults,
                stream: storm.stream.map_or(0, StreamId::value),
                has_stream: storm.stream.is_some(),
                silenced: storm.silenced,
                domain: name(domain.as_ref()),
                device: device.as_ref(),
                error: failed.as_ref(),
            };
            sink(context, &storm);
        };
        Ok(need(service)?.service.tend_faults(IommuKey::new(iommu), place, &mut told)?)
    })
}

/// Faults that were not reported, since the SMMU was registered.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct iommu_fault_counts {
    /// At least so many came while a record stood, and were never recorded by the hardware.
    pub lost: u64,
    /// Recorded, and beyond their stream's limit.
    pub limited: u64,
    /// By unknown streams for which there was no room to count them one by one.
    pub unknown_elsewhere: u64,
}

/// Says what was counted instead of being reported.
///
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_get_fault_counts(
    instance: Option<&iommu_instance>,
    counts: Option<&mut MaybeUninit<iommu_fault_counts>>,
) -> iommu_status {
    border::run(None, || {
        let place = need(counts)?;
        let counts = need(instance)?.0.fault_counts();
        let (lost, limited, unknown_elsewhere) = (counts.lost, counts.limited, counts.unknown_elsewhere);
        place.write(iommu_fault_counts { lost, limited, unknown_elsewhere });
        Ok(())
    })
}

/// Tells of the streams that no entry matched, with how often they came.
///
/// @param sink must not call the library.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_each_unknown_stream(
    instance: Option<&iommu_instance>,
    sink: Option<extern "C" fn(context: *mut c_void, stream: u32, count: u32)>,
    context: *mut c_void,
) -> iommu_status {
    border::run(None, || {
        let (instance, sink) = (need(instance)?, need(sink)?);
        instance.0.unknown_streams(&mut |stream, count| sink(context, stream.value(), count));
        Ok(())
    })
}
