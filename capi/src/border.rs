//! From C's values to the library's and back. The only code that follows a pointer which C gave.
//!
//! # Invariants
//!
//! 1. What a parameter or a struct's member points to is valid during the call, as the header promises: strings end with a
//!    NUL, arrays have as many elements as their count says, and neither changes meanwhile.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_void};
use core::fmt;
use core::mem::MaybeUninit;

use iommu_assign::assign::Label;

use crate::error::{Failure, iommu_error};
use crate::platform;
use crate::status::iommu_status;

/// Runs one call of the interface: not before `iommu_init`, and no panic gets out of it. Fills `error`, where there is one.
pub(crate) fn run(
    error: Option<&mut MaybeUninit<iommu_error>>,
    call: impl FnOnce() -> Result<(), Failure>,
) -> iommu_status {
    let result = if platform::is_there() {
        caught(call).unwrap_or(Err(Failure::Of(iommu_status::Panicked)))
    } else {
        Err(Failure::Of(iommu_status::NotInitialised))
    };
    let status = result.as_ref().map_or_else(Failure::status, |()| iommu_status::Ok);
    if let Some(error) = error {
        error.write(iommu_error::of(result.as_ref().err()));
    }
    status
}

/// Runs a call that cannot fail, and lets no panic out.
pub(crate) fn quietly<T>(otherwise: T, call: impl FnOnce() -> T) -> T {
    caught(call).unwrap_or(otherwise)
}

#[cfg(feature = "std")]
fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    // What a panic has left half done is the library's own, which never panics; the caller is told.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).ok()
}

#[cfg(not(feature = "std"))]
fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    Some(call())
}

/// An argument that must not be NULL.
pub(crate) fn need<T>(argument: Option<T>) -> Result<T, Failure> {
    argument.ok_or(Failure::Argument("a needed pointer is NULL"))
}

/// Where the caller wants a handle. NULL stands there until there is one.
pub(crate) struct Out<'a, T> {
    place: &'a mut MaybeUninit<Option<Box<T>>>,
    /// Taken before the call: nothing is left to fail when it has succeeded.
    room: Box<MaybeUninit<T>>,
}

/// A place in C's memory for a handle.
pub(crate) type Place<'a, T> = Option<&'a mut MaybeUninit<Option<Box<T>>>>;

impl<'a, T> Out<'a, T> {
    pub(crate) fn at(place: Place<'a, T>) -> Result<Self, Failure> {
        let place = need(place)?;
        place.write(None);
        Ok(Self { place, room: room()? })
    }

    pub(crate) fn give(self, handle: T) {
        self.place.write(Some(Box::write(self.room, handle)));
    }
}

/// Memory for a handle.
pub(crate) fn room<T>() -> Result<Box<MaybeUninit<T>>, Failure> {
    let one = list(1, [Ok(MaybeUninit::<T>::uninit())])?.into_boxed_slice();
    // SAFETY: a slice of one element is laid out as that element, and the box gives up what it owned.
    Ok(unsafe { Box::from_raw(Box::into_raw(one).cast::<MaybeUninit<T>>()) })
}

/// What comes of `count` elements, or the first failure.
pub(crate) fn list<T>(count: usize, elements: impl IntoIterator<Item = Result<T, Failure>>) -> Result<Vec<T>, Failure> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).map_err(|_| Failure::Of(iommu_status::OutOfMemory))?;
    for element in elements.into_iter().take(count) {
        list.push(element?);
    }
    Ok(list)
}

/// Writes a result where the caller wants it, if he does.
pub(crate) fn put<T>(place: Option<&mut MaybeUninit<T>>, value: T) {
    if let Some(place) = place {
        place.write(value);
    }
}

/// The integrator's own pointer, for his callbacks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context(pub(crate) *mut c_void);

// SAFETY: it is never followed here, and the integrator's callbacks may be called from any CPU.
unsafe impl Send for Context {}
// SAFETY: as for `Send`.
unsafe impl Sync for Context {}

/// A string of C's; the empty one for NULL.
pub(crate) fn string<'a>(text: *const c_char) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Ok("");
    }
    // SAFETY: not null, and a string that ends with a NUL (invariant 1). Callers use it during their call only.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failure::Argument("a string is not UTF-8"))
}

/// A name that C gives to something.
pub(crate) fn label(text: *const c_char) -> Result<Label, Failure> {
    match string(text)? {
        "" => Err(Failure::Argument("a name is missing")),
        text => Ok(Label::from(text)),
    }
}

/// Why a callback failed: NULL says that it did not. The string is never freed (contract of the callback).
pub(crate) fn reason(text: *const c_char) -> Result<(), &'static str> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: not null, ends with a NUL, and is there for good: the callbacks that return it promise so.
    let text: &'static CStr = unsafe { CStr::from_ptr(text) };
    Err(text.to_str().unwrap_or("for a reason that is not UTF-8"))
}

/// An array of C's; empty for a count of 0.
pub(crate) fn slice<'a, T>(first: *const T, count: usize) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    if first.is_null()
        || !first.is_aligned()
        || count.checked_mul(size_of::<T>()).is_none_or(|size| isize::try_from(size).is_err())
    {
        return Err(Failure::Argument("an array is NULL, not aligned or too long"));
    }
    // SAFETY: not null, aligned, not longer than an object can be, and `count` elements long (invariant 1). Elements are
    // plain C structs and integers, of which every value is valid. Callers use it during their call, but for blobs.
    Ok(unsafe { core::slice::from_raw_parts(first, count) })
}

/// An array of C's to be filled.
pub(crate) fn buffer<'a, T>(first: *mut T, count: usize) -> Result<&'a mut [MaybeUninit<T>], Failure> {
    let _ = slice(first.cast_const().cast::<MaybeUninit<T>>(), count)?;
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: checked above; it is the caller's own and used by nobody else during the call (invariant 1). Nothing is read.
    Ok(unsafe { core::slice::from_raw_parts_mut(first.cast(), count) })
}

/// Text in a caller's buffer: what fits, and a NUL where there is room for one. Returns the whole length without the NUL.
pub(crate) fn describe(what: &dyn fmt::Display, text: *mut c_char, size: usize) -> usize {
    let Ok(buffer) = buffer(text.cast::<u8>(), size) else { return 0 };
    let mut put = |at: usize, byte| {
        if let Some(place) = buffer.get_mut(at) {
            place.write(byte);
        }
    };
    Writer::write(size, &mut put, what).1
}

/// A text of up to `N` - 1 bytes, with a NUL: what is longer is cut.
pub(crate) struct Text<const N: usize> {
    bytes: [c_char; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    pub(crate) fn of(what: impl fmt::Display) -> Self {
        let mut bytes = [0; N];
        let mut put = |at: usize, byte| {
            if let Some(place) = bytes.get_mut(at) {
                *place = c_char::from_ne_bytes([byte]);
            }
        };
        let (length, _) = Writer::write(N, &mut put, &what);
        Self { bytes, length }
    }

    pub(crate) const fn as_ptr(&self) -> *const c_char {
        self.bytes.as_ptr()
    }

    /// Bytes that are there, without the NUL.
    pub(crate) const fn len(&self) -> usize {
        self.length
    }

    pub(crate) const fn into_bytes(self) -> [c_char; N] {
        self.bytes
    }
}

/// Writes what fits, and counts what there is.
struct Writer<'a> {
    put: &'a mut dyn FnMut(usize, u8),
    room: usize,
    written: usize,
    whole: usize,
}

impl<'a> Writer<'a> {
    /// Writes a text and a NUL into `size` bytes. Returns how long it is there, and how long it is.
    fn write(size: usize, put: &'a mut dyn FnMut(usize, u8), what: &dyn fmt::Display) -> (usize, usize) {
        let mut writer = Self { put, room: size.saturating_sub(1), written: 0, whole: 0 };
        // The writer never fails.
        let _ = fmt::write(&mut writer, format_args!("{what}"));
        if size > 0 {
            (writer.put)(writer.written, 0);
        }
        (writer.written, writer.whole)
    }
}

impl fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let mut bytes = [0; 4];
            let bytes = character.encode_utf8(&mut bytes).as_bytes();
            let end = self.written.saturating_add(bytes.len());
            // Never half a character, and nothing after one that did not fit.
            if self.written == self.whole && end <= self.room {
                (self.written..end).zip(bytes).for_each(|(at, byte)| (self.put)(at, *byte));
                self.written = end;
            }
            self.whole = self.whole.saturating_add(bytes.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer that ends too early, after a character and inside one.
    #[test]
    fn what_does_not_fit_is_counted_and_ends_with_a_nul() {
        for (size, expected) in [(0, ""), (1, ""), (2, "a"), (3, "a"), (4, "a\u{e9}"), (9, "a\u{e9}bc")] {
            let mut bytes = [0x7f_u8; 16];
            let whole = describe(&"a\u{e9}bc", bytes.as_mut_ptr().cast(), size);
            assert_eq!(whole, 5);
            assert_eq!(bytes.get(..expected.len()), Some(expected.as_bytes()), "{size}");
            assert_eq!(bytes.get(expected.len()), Some(if size == 0 { &0x7f } else { &0 }), "{size}");
            assert_eq!(bytes.get(size), Some(&0x7f), "nothing past the buffer");
        }
    }

    #[test]
    fn null_and_what_is_not_text_are_refused() {
        assert!(matches!(string(core::ptr::null()), Ok("")));
        assert!(label(core::ptr::null()).is_err());
        assert!(matches!(string(c"name".as_ptr()), Ok("name")));
        assert!(string(c"\xff".as_ptr()).is_err());
        assert!(slice::<u64>(core::ptr::null(), 1).is_err());
        assert!(slice::<u64>(core::ptr::without_provenance(4), 1).is_err(), "not aligned");
        assert!(slice::<u64>(core::ptr::dangling(), usize::MAX).is_err(), "longer than memory");
        assert!(matches!(slice::<u64>(core::ptr::null(), 0), Ok([])));
    }
}
