//! The console: the UART that `/chosen` names, and `log` on it.
//!
//! Speed and format stand as the loader set them up, as for an early console.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aarch64_cpu::registers::{Readable, TPIDR_EL2};
use arm_pl011_uart::{PL011Registers, Uart};
use iommu_assign::smmu::{Mmio, Registers};

use super::time;
use super::tree::{self, Console};
use crate::boot::mmu;
use crate::lock::Lock;

/// A UART that can be written to.
enum Port {
    Pl011(Uart<'static>),
    /// Its FIFO is at 0x30, its status at 0x2c with "transmit FIFO full" in bit 4 (ZynqMP TRM, UART registers).
    Cadence(Mmio),
}

// SAFETY: registers are reached alike from every CPU; the lock below orders them.
unsafe impl Send for Port {}

static PORT: Lock<Option<Port>> = Lock::new(None);

/// A CPU cannot go on, maybe with the port locked: its last words are written past the lock.
static SEIZED: AtomicBool = AtomicBool::new(false);

/// How many lines the library may log: a run makes it say much that was expected.
static LIBRARY_LINES: AtomicU64 = AtomicU64::new(60);
static UNSAID: AtomicU64 = AtomicU64::new(0);

impl Port {
    fn put(&mut self, byte: u8) {
        match self {
            Self::Pl011(uart) => {
                while uart.is_tx_fifo_full() {
                    core::hint::spin_loop();
                }
                uart.write_word(byte);
            }
            Self::Cadence(registers) => {
                while registers.read32(0x2c) & 1 << 4 != 0 {
                    core::hint::spin_loop();
                }
                registers.write32(0x30, byte.into());
            }
        }
    }
}

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}

/// The log of a hypervisor: time, CPU, and what is said.
struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("iommu_assign") && !SEIZED.load(Ordering::Relaxed) {
            let counted = LIBRARY_LINES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if counted.is_err() {
                UNSAID.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        let now = time::now().value();
        let level = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        line(format_args!("[{:5}.{:06}] cpu{} {level}{}", now / 1_000_000, now % 1_000_000, cpu(), record.args()));
    }

    fn flush(&self) {}
}

/// This CPU's number.
pub(crate) fn cpu() -> usize {
    TPIDR_EL2.get() as usize
}

/// Finds the console and has `log` write to it. Without one the image is mute, and goes on.
pub(crate) fn init(tree: &iommu_assign::dt::Tree<'_>) {
    *PORT.lock() = tree::console(tree).and_then(open);
    if log::set_logger(&Log).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

fn open(console: Console) -> Option<Port> {
    match console {
        Console::Pl011(region) => {
            let registers = mmu::map_device(region.base(), region.size().max(0x1000))?.cast::<PL011Registers>();
            // SAFETY: the region is mapped as device memory for ever, and this is its only user.
            let registers = unsafe { arm_pl011_uart::UniqueMmioPointer::new(registers) };
            Some(Port::Pl011(Uart::new(registers)))
        }
        Console::Cadence(region) => {
            let base = mmu::map_device(region.base(), region.size())?;
            // SAFETY: the region is mapped as device memory for ever, and this is its only user.
            let registers = unsafe { Mmio::new(base, usize::try_from(region.size()).ok()?) }?;
            // Without firmware the transmitter is off: Control has "off" in bit 5 and "on" in bit 4.
            registers.write32(0, registers.read32(0) & !(1 << 5) | 1 << 4);
            Some(Port::Cadence(registers))
        }
    }
}

/// One line as it is, for scripts to read: `el2: ...`.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    // Writing to the port does not fail.
    if SEIZED.load(Ordering::Relaxed) {
        // SAFETY: a holder of the lock may be in the middle of a character: a broken line, and nothing follows this one.
        if let Some(port) = unsafe { &mut *PORT.data_ptr() } {
            let _ = writeln!(port, "{text}");
        }
    } else if let Some(port) = &mut *PORT.lock() {
        let _ = writeln!(port, "{text}");
    }
}

/// The caller cannot go on: what it says is written even where another line is being written.
pub(crate) fn seize() {
    SEIZED.store(true, Ordering::Relaxed);
}

/// Lines of the library that were not printed.
pub(crate) fn unsaid() -> u64 {
    UNSAID.load(Ordering::Relaxed)
}

/// `el2: ...` on a line of its own.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::machine::console::line(format_args!("el2: {}", format_args!($($text)*))) };
}
