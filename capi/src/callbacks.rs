//! What the integrator decides, is told, and does: policy, events, hooks, power. Each is a struct of functions with a
//! context that they are handed.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ffi::{c_char, c_void};
use core::fmt;

use iommu_assign::assign::{
    DeviceHooks, Event, EventSink, FirmwareMarks, HookContext, HookError, NoHooks, Policy, PolicyRequest, Why,
};
use iommu_assign::smmu::{Power, PowerError};

use crate::border::{Context, Text, reason};
use crate::error::Failure;
use crate::told::{iommu_fault, name};
use crate::values::{iommu_chain, iommu_device};

// --- policy ---

/// What the policy is asked. Valid during the callback.
#[repr(C)]
#[derive(Debug)]
pub struct iommu_policy_request<'a> {
    /// The device in question. The callback must not put it.
    pub device: &'a iommu_device,
    /// The name of the domain that would reach its DMA.
    pub domain: *const c_char,
    /// NULL: the device itself is to be assigned. Otherwise it shares a stream with this device, whose assignment would
    /// open it.
    pub shares_with: Option<&'a iommu_device>,
    /// Firmware marked the device for passthrough.
    pub marked: bool,
    /// For calls of the library from the callback.
    pub chain: &'a iommu_chain<'a>,
}

/// Decides who may be assigned what. All zero: yes for what firmware marked (`xen,passthrough`), no for all else.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_policy {
    /// Handed to `allows`.
    pub context: *mut c_void,
    /// Whether the request may go on. Called in waiting context with no lock of the library held; it may call the library
    /// with the request's `chain`.
    pub allows: Option<extern "C" fn(context: *mut c_void, request: &iommu_policy_request<'_>) -> bool>,
}

struct Asked {
    context: Context,
    allows: extern "C" fn(*mut c_void, &iommu_policy_request<'_>) -> bool,
}

impl iommu_policy {
    pub(crate) fn read(&self) -> Box<dyn Policy> {
        match self.allows {
            Some(allows) => Box::new(Asked { context: Context(self.context), allows }),
            None => Box::new(FirmwareMarks),
        }
    }
}

impl Policy for Asked {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        let device = iommu_device(request.device.clone());
        let other = match request.why {
            Why::Shares { with } => Some(iommu_device(with.clone())),
            _ => None,
        };
        let (domain, chain) = (Text::<256>::of(request.domain), iommu_chain(request.chain));
        let asked = iommu_policy_request {
            device: &device,
            domain: domain.as_ptr(),
            shares_with: other.as_ref(),
            marked: request.device.passthrough(),
            chain: &chain,
        };
        (self.allows)(self.context.0, &asked)
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked")
    }
}

// --- events ---

/// What has happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum iommu_event_kind {
    /// Something that this version has no code for.
    Other = 0,
    /// A device is registered, in fault.
    Added,
    /// A device's DMA goes through the domain's tables from now on.
    Assigned,
    /// A device is in fault, and what it had in flight has drained.
    Deassigned,
    /// A domain was made.
    DomainCreated,
    /// A domain has ended: its tables can be freed.
    DomainDestroyed,
    /// Something faulted.
    Fault,
    /// An IOMMU is in service: devices that were refused for want of it can be offered again.
    IommuRegistered,
    /// An IOMMU is out of service.
    IommuUnregistered,
    /// An operation failed after its first write: the device is in fault and owned by nobody.
    Quarantined,
    /// A device is no longer registered.
    Removed,
}

/// An event. Valid during the callback.
#[repr(C)]
#[derive(Debug)]
pub struct iommu_event {
    /// What has happened.
    pub kind: iommu_event_kind,
    /// The IOMMU; 0 where the event is not about one.
    pub iommu: u64,
    /// The device's name; NULL where the event is not about one.
    pub device: *const c_char,
    /// The domain's name; NULL where the event is not about one.
    pub domain: *const c_char,
    /// The fault; NULL for other events.
    pub fault: *const iommu_fault,
    /// The event as a line for people.
    pub text: *const c_char,
}

/// Hears of every change, after the hardware has followed it. All zero: nobody does.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_events {
    /// Handed to `event`.
    pub context: *mut c_void,
    /// Called in waiting context with no lock of the library held, while the group that it tells of is still claimed: it
    /// may call the library about other devices, in the try forms.
    pub event: Option<extern "C" fn(context: *mut c_void, event: &iommu_event)>,
}

struct Told {
    context: Context,
    event: extern "C" fn(*mut c_void, &iommu_event),
}

impl iommu_events {
    pub(crate) fn read(&self) -> Option<Box<dyn EventSink>> {
        let event = self.event?;
        Some(Box::new(Told { context: Context(self.context), event }))
    }
}

impl EventSink for Told {
    fn event(&self, event: &Event) {
        let (kind, device, domain) = match event {
            Event::Added { device } => (iommu_event_kind::Added, Some(device), None),
            Event::Assigned { device, domain } => (iommu_event_kind::Assigned, Some(device), Some(domain)),
            Event::Deassigned { device } => (iommu_event_kind::Deassigned, Some(device), None),
            Event::DomainCreated { domain } => (iommu_event_kind::DomainCreated, None, Some(domain)),
            Event::DomainDestroyed { domain } => (iommu_event_kind::DomainDestroyed, None, Some(domain)),
            Event::Fault(record) => (iommu_event_kind::Fault, record.device.as_ref(), record.domain.as_ref()),
            Event::IommuRegistered { .. } => (iommu_event_kind::IommuRegistered, None, None),
            Event::IommuUnregistered { .. } => (iommu_event_kind::IommuUnregistered, None, None),
            Event::Quarantined { device } => (iommu_event_kind::Quarantined, Some(device), None),
            Event::Removed { device } => (iommu_event_kind::Removed, Some(device), None),
            _ => (iommu_event_kind::Other, None, None),
        };
        let iommu = match event {
            Event::Fault(record) => record.raw.iommu.base(),
            Event::IommuRegistered { iommu } | Event::IommuUnregistered { iommu } => iommu.base(),
            _ => 0,
        };
        let (device, domain) = (device.map(Text::of), domain.map(Text::of));
        let fault = match event {
            Event::Fault(record) => Some(iommu_fault::of(&record.raw, device.as_ref(), domain.as_ref())),
            _ => None,
        };
        let text = Text::<512>::of(event);
        let told = iommu_event {
            kind,
            iommu,
            device: name(device.as_ref()),
            domain: name(domain.as_ref()),
            fault: fault.as_ref().map_or(core::ptr::null(), core::ptr::from_ref),
            text: text.as_ptr(),
        };
        (self.event)(self.context.0, &told);
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}

// --- a device's source ---

/// A hook that may fail: NULL says that it did not, else why, as a string that is there for good.
pub type iommu_hook =
    Option<extern "C" fn(context: *mut c_void, device: &iommu_device, chain: &iommu_chain<'_>) -> *const c_char>;

/// What a source does for one of its devices. Members that are NULL do nothing. Called in waiting context with no lock
/// of the library held; a reset may take its time. They may call the library with `chain`, and must not put `device`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_hooks {
    /// Handed to each function below.
    pub context: *mut c_void,
    /// Stops the device from starting new DMA; its streams are in fault already. Where it fails the device is quarantined.
    pub quiesce: iommu_hook,
    /// Brings the device to a state that carries nothing over from one owner to the next. Where it fails the device is
    /// quarantined.
    pub reset: iommu_hook,
    /// The device is unregistered, and none of these is called any more. Not called where its add failed.
    pub release: Option<extern "C" fn(context: *mut c_void, device: &iommu_device, chain: &iommu_chain<'_>)>,
}

struct Hooks {
    context: Context,
    quiesce: iommu_hook,
    reset: iommu_hook,
    release: Option<extern "C" fn(*mut c_void, &iommu_device, &iommu_chain<'_>)>,
}

impl iommu_hooks {
    pub(crate) fn read(hooks: Option<&Self>) -> Arc<dyn DeviceHooks> {
        match hooks.copied() {
            Some(Self { context, quiesce, reset, release }) => {
                Arc::new(Hooks { context: Context(context), quiesce, reset, release })
            }
            None => Arc::new(NoHooks),
        }
    }
}

impl Hooks {
    fn call(&self, hook: iommu_hook, context: &HookContext<'_>) -> Result<(), HookError> {
        let Some(hook) = hook else { return Ok(()) };
        let (device, chain) = (iommu_device(context.device.clone()), iommu_chain(context.chain));
        reason(hook(self.context.0, &device, &chain)).map_err(HookError)
    }
}

impl DeviceHooks for Hooks {
    fn quiesce(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        self.call(self.quiesce, context)
    }

    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        self.call(self.reset, context)
    }

    fn release(&self, context: &HookContext<'_>) {
        if let Some(release) = self.release {
            release(self.context.0, &iommu_device(context.device.clone()), &iommu_chain(context.chain));
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

// --- power ---

/// Power, clock and interconnect of an SMMU. All zero: it always has power. They are called with no lock of the library
/// held, around every use of a register, and must not call the library about this SMMU. `get` is called in waiting context
/// and may block. `get_if_on` and `put` wait for nothing: interrupt handlers call them, a flush in atomic context, and a
/// crashing hypervisor.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_power {
    /// Handed to each function below.
    pub context: *mut c_void,
    /// Sees to it that registers can be accessed until `put`. NULL for success, else why not, as a string that is there
    /// for good: no register is touched then.
    pub get: Option<extern "C" fn(context: *mut c_void) -> *const c_char>,
    /// Does what `get` does where the power is on, whoever has it; else says false and does nothing.
    pub get_if_on: Option<extern "C" fn(context: *mut c_void) -> bool>,
    /// Ends what one `get` or `get_if_on` began.
    pub put: Option<extern "C" fn(context: *mut c_void)>,
}

struct Supply {
    context: Context,
    get: extern "C" fn(*mut c_void) -> *const c_char,
    get_if_on: extern "C" fn(*mut c_void) -> bool,
    put: extern "C" fn(*mut c_void),
}

impl iommu_power {
    /// `None` where all of the functions are NULL: it is always on. An error where only some are.
    pub(crate) fn read(&self) -> Result<Option<Arc<dyn Power>>, Failure> {
        match *self {
            Self { context, get: Some(get), get_if_on: Some(get_if_on), put: Some(put) } => {
                Ok(Some(Arc::new(Supply { context: Context(context), get, get_if_on, put })))
            }
            Self { get: None, get_if_on: None, put: None, .. } => Ok(None),
            _ => Err(Failure::Argument("some of the power functions are NULL")),
        }
    }
}

impl Power for Supply {
    fn get(&self) -> Result<(), PowerError> {
        reason((self.get)(self.context.0)).map_err(PowerError)
    }

    fn get_if_on(&self) -> bool {
        (self.get_if_on)(self.context.0)
    }

    fn put(&self) {
        (self.put)(self.context.0);
    }
}

impl fmt::Debug for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Supply")
    }
}
