//! A board's device tree: its SMMUs and its devices.
//!
//! What turns a node into what the service wants stands here and nowhere else.

use alloc::boxed::Box;
use core::ffi::{c_char, c_void};
use core::mem::MaybeUninit;

use iommu_assign::assign::{DeviceSpec, PhysicalAddress};
use iommu_assign::dt::{Board, DtDevice, SmmuNode};
use iommu_assign::smmu::EmptyRoot;

use crate::border::{self, Out, need};
use crate::callbacks::iommu_hooks;
use crate::devices;
use crate::error::{Failure, iommu_error};
use crate::service::iommu_service;
use crate::smmu_config::iommu_smmu_config;
use crate::status::iommu_status;
use crate::values::{iommu_call, iommu_device, iommu_device_key, iommu_stream};

/// A board, as its device tree describes it. It refers to the blob.
#[derive(Debug)]
pub struct iommu_board(pub(crate) Board<'static>);

/// Reads a flattened device tree, version 16 or 17.
///
/// @param blob the bytes, which stay the caller's, unchanged until the board is put.
/// @param size how many there are at most; those past the tree's own size are ignored.
/// @param lenient not 0: a bad node does not take the board away; it is not offered, and counted by
/// `iommu_board_refusals`.
/// @param board gets a handle that the caller owns until `iommu_board_put`; NULL is written there on failure.
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_BAD_DEVICE_TREE`: the sentence names the node; `IOMMU_STATUS_OUT_OF_MEMORY`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_read(
    blob: *const c_void,
    size: usize,
    lenient: u32,
    board: Option<&mut MaybeUninit<Option<Box<iommu_board>>>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let out = Out::at(board)?;
        let blob: &'static [u8] = border::slice(blob.cast(), size)?;
        let read = if lenient == 0 { Board::read(blob) } else { Board::read_lenient(blob) };
        out.give(iommu_board(read?));
        Ok(())
    })
}

/// Gives a board back. What was made of it stays.
///
/// @param board may be NULL.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_put(board: Option<Box<iommu_board>>) {
    border::quietly((), || drop(board));
}

/// Counts the bad nodes that a lenient reading has left out.
///
/// @return how many; 0 for NULL.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_refusals(board: Option<&iommu_board>) -> usize {
    board.map_or(0, |board| board.0.refusals().len())
}

/// Why one of these nodes is left out, as a sentence in the caller's buffer.
///
/// @param index below `iommu_board_refusals`.
/// @return the sentence's length without its NUL. Where it is not below `size`, it was cut; 0 where there is none.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_refusal(
    board: Option<&iommu_board>,
    index: usize,
    text: *mut c_char,
    size: usize,
) -> usize {
    border::quietly(0, || {
        let refusal = board.and_then(|board| board.0.refusals().get(index));
        refusal.map_or(0, |refusal| border::describe(refusal, text, size))
    })
}

// --- SMMUs ---

/// An SMMU's node.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_board_smmu {
    /// What `iommu_register` wants, with the empty root that was given.
    pub config: iommu_smmu_config,
    /// Bytes of the node's path without its NUL: see `iommu_board_smmu_path`.
    pub path_length: usize,
    /// How many further instances are programmed alike (Tegra), and listed in `config.instances`: see
    /// `iommu_board_smmu_mirror`. Each wants its entry in `iommu_setup.registers`, after the first.
    pub mirror_count: usize,
    /// How many interrupts the node lists.
    pub interrupt_count: usize,
    /// How many of them, the first ones, report global faults; the others report context banks'.
    pub global_interrupts: u32,
    /// Whether the node and all its ancestors are enabled.
    pub enabled: bool,
}

fn smmu(board: Option<&iommu_board>, index: usize) -> Result<&SmmuNode<'static>, Failure> {
    need(board)?.0.smmus().get(index).ok_or(Failure::Argument("the board has no SMMU of that index"))
}

/// Counts a board's SMMUs, disabled ones too.
///
/// @return how many; 0 for NULL.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_smmus(board: Option<&iommu_board>) -> usize {
    board.map_or(0, |board| board.0.smmus().len())
}

/// What a board says of an SMMU.
///
/// @param index below `iommu_board_smmus`.
/// @param empty_root see `iommu_smmu_config.empty_root`.
/// @param empty_root_size see there.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_get_smmu(
    board: Option<&iommu_board>,
    index: usize,
    empty_root: u64,
    empty_root_size: u64,
    info: Option<&mut MaybeUninit<iommu_board_smmu>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let (place, node) = (need(info)?, smmu(board, index)?);
        let empty = EmptyRoot { address: PhysicalAddress::new(empty_root), size: empty_root_size };
        place.write(iommu_board_smmu {
            config: iommu_smmu_config::of(&node.config(empty)),
            path_length: node.path.len(),
            mirror_count: node.mirrors.len(),
            interrupt_count: node.interrupts.len(),
            global_interrupts: node.global_irqs,
            enabled: node.enabled,
        });
        Ok(())
    })
}

/// The path of an SMMU's node, in the caller's buffer.
///
/// @return its length without its NUL. Where it is not below `size`, it was cut; 0 where there is no such SMMU.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_smmu_path(
    board: Option<&iommu_board>,
    index: usize,
    text: *mut c_char,
    size: usize,
) -> usize {
    border::quietly(0, || smmu(board, index).map_or(0, |node| border::describe(&node.path, text, size)))
}

/// The registers of a further instance that is programmed alike.
///
/// @param mirror below `iommu_board_smmu.mirror_count`.
/// @param base gets the CPU physical address.
/// @param size gets the bytes.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_smmu_mirror(
    board: Option<&iommu_board>,
    index: usize,
    mirror: usize,
    base: Option<&mut MaybeUninit<u64>>,
    size: Option<&mut MaybeUninit<u64>>,
) -> iommu_status {
    border::run(None, || {
        let (base, size) = (need(base)?, need(size)?);
        let region = smmu(board, index)?.mirrors.get(mirror);
        let region = region.ok_or(Failure::Argument("the SMMU has no mirror of that index"))?;
        base.write(region.base());
        size.write(region.size());
        Ok(())
    })
}

/// An interrupt of an SMMU's node: the cells of its specifier, which mean what the interrupt controller's binding says.
///
/// @param interrupt below `iommu_board_smmu.interrupt_count`, global ones first.
/// @param cells may be NULL with a `room` of 0.
/// @return how many cells there are; where that is more than `room`, only the first were written. 0 where there is none.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_smmu_interrupt(
    board: Option<&iommu_board>,
    index: usize,
    interrupt: usize,
    cells: *mut u32,
    room: usize,
) -> usize {
    border::quietly(0, || {
        let interrupt = smmu(board, index).ok().and_then(|node| node.interrupts.get(interrupt));
        let (Some(interrupt), Ok(places)) = (interrupt, border::buffer(cells, room)) else { return 0 };
        for (place, cell) in places.iter_mut().zip(interrupt.specifier()) {
            place.write(cell);
        }
        interrupt.specifier().count()
    })
}

// --- devices ---

/// A device's node.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_board_device {
    /// The device's key, under which `iommu_board_add` registers it.
    pub key: iommu_device_key,
    /// Bytes of the node's path without its NUL: see `iommu_board_device_path`.
    pub path_length: usize,
    /// How many streams it has: see `iommu_board_device_streams`.
    pub stream_count: usize,
    /// Whether the node and all its ancestors are enabled.
    pub enabled: bool,
    /// One of its SMMUs is not enabled: it cannot be isolated, and must not be assigned.
    pub on_disabled_smmu: bool,
    /// IOMMUs of other kinds, which nobody here programs, see its DMA too.
    pub on_foreign_iommu: bool,
    /// Firmware marks it for passthrough (`xen,passthrough`).
    pub passthrough: bool,
    /// `iommu_board_add` takes it: it is enabled, and no IOMMU sees its DMA but SMMUs that are enabled.
    pub offered: bool,
}

fn device(board: Option<&iommu_board>, index: usize) -> Result<&DtDevice, Failure> {
    need(board)?.0.devices().get(index).ok_or(Failure::Argument("the board has no device of that index"))
}

/// Counts a board's devices behind SMMUs, disabled ones too. Parents come before children.
///
/// @return how many; 0 for NULL.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_devices(board: Option<&iommu_board>) -> usize {
    board.map_or(0, |board| board.0.devices().len())
}

/// What a board says of a device.
///
/// @param index below `iommu_board_devices`.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_get_device(
    board: Option<&iommu_board>,
    index: usize,
    info: Option<&mut MaybeUninit<iommu_board_device>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let (place, node) = (need(info)?, device(board, index)?);
        place.write(iommu_board_device {
            key: node.device_key().into(),
            path_length: node.path.len(),
            stream_count: node.streams.len(),
            enabled: node.enabled,
            on_disabled_smmu: node.on_disabled_smmu,
            on_foreign_iommu: !node.foreign_iommus.is_empty(),
            passthrough: node.passthrough,
            offered: node.not_offered().is_none(),
        });
        Ok(())
    })
}

/// The path of a device's node, in the caller's buffer.
///
/// @return its length without its NUL. Where it is not below `size`, it was cut; 0 where there is no such device.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_device_path(
    board: Option<&iommu_board>,
    index: usize,
    text: *mut c_char,
    size: usize,
) -> usize {
    border::quietly(0, || device(board, index).map_or(0, |node| border::describe(&node.path, text, size)))
}

/// A device's streams, in the caller's array.
///
/// @param streams may be NULL with a `room` of 0.
/// @return how many there are; where that is more than `room`, only the first were written.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_device_streams(
    board: Option<&iommu_board>,
    index: usize,
    streams: *mut iommu_stream,
    room: usize,
) -> usize {
    border::quietly(0, || device(board, index).map_or(0, |node| devices::copy(&node.streams, streams, room)))
}

/// Registers a device of a board: `iommu_add` with the node's key, path, streams, mark and parent. In the
/// order of their indices, devices find their parents registered.
///
/// @param hooks what the source does for it; copied, NULL for nothing.
/// @param added gets a handle that the caller owns until `iommu_device_put`; NULL is written there on failure.
/// @return as for `iommu_add`; `IOMMU_STATUS_NOT_OFFERED` where it is disabled, or not confined by SMMUs alone;
/// `IOMMU_STATUS_PROVIDER_MISSING` where one of its SMMUs is not registered yet.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_add(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    board: Option<&iommu_board>,
    index: usize,
    hooks: Option<&iommu_hooks>,
    added: Option<&mut MaybeUninit<Option<Box<iommu_device>>>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        devices::add(service, call, added, || {
            let node = device(board, index)?;
            let spec = node.spec().map_err(Failure::NotOffered)?;
            Ok(DeviceSpec { hooks: iommu_hooks::read(hooks), ..spec })
        })
    })
}
