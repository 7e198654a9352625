#ifndef IOMMU_ASSIGN_H
#define IOMMU_ASSIGN_H

/* Made by cbindgen from capi/src: `UPDATE_HEADER=1 cargo test -p iommu-assign-c --test header`. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
/*
 * Device assignment for Type-1 hypervisors on Arm: which guest a DMA-capable device may reach, and SMMUv1/v2 hardware
 * driven so that it reaches nobody else.
 *
 * The order: iommu_init, iommu_service_new; iommu_register for each SMMU; iommu_add or iommu_board_add for each device;
 * iommu_create_domain and iommu_assign for each guest; iommu_flush after a mapping was removed. In interrupt handlers
 * iommu_take_faults, in a worker iommu_tend_faults.
 *
 * What holds for every call
 *
 * - Results. `enum iommu_status` says what became of the call. Where there is a `struct iommu_error *error`, it may be
 *   NULL; else it is filled in whole, with a sentence. NULL where a pointer is needed is IOMMU_STATUS_INVALID_ARGUMENT.
 *   Every call before iommu_init is IOMMU_STATUS_NOT_INITIALISED.
 * - Pointers. What is passed is valid, aligned and unchanged during the call. Strings end with a NUL and are UTF-8. Nothing
 *   that is passed is kept, but for the blob of a board. What a callback is handed is valid until it returns.
 * - Ownership. A call that makes a handle says by which call it is given back; that is done once. Handles of devices,
 *   domains and SMMUs keep memory, not what they name. They may be used from several CPUs at once, but not while or after
 *   they are given back.
 * - Context. "Waiting": no lock is held that another call could want, and polls of the hardware and callbacks take their
 *   time. "Atomic": the call does not sleep. "Any": interrupt handlers too.
 * - Callbacks return; they do not unwind or jump out. Those that are handed a `struct iommu_chain` may call the library with
 *   it (`struct iommu_call`).
 */


/**
 * The version of this interface: what `iommu_platform.version` must be. It changes with every struct and function.
 */
#define IOMMU_ABI_VERSION 1

/**
 * A deadline that never comes.
 */
#define IOMMU_NO_DEADLINE UINT64_MAX

/**
 * Bytes of the sentence in a `struct iommu_error`, its NUL included.
 */
#define IOMMU_TEXT_SIZE 256

/**
 * Who describes a device: `iommu_device_key.source`.
 */
#define IOMMU_SOURCE_DT 0

/**
 * A PCI function.
 */
#define IOMMU_SOURCE_PCI 1

/**
 * Pages of 4 KiB: `iommu_stage2.granule`.
 */
#define IOMMU_GRANULE_4K 12

/**
 * Pages of 16 KiB.
 */
#define IOMMU_GRANULE_16K 14

/**
 * Pages of 64 KiB.
 */
#define IOMMU_GRANULE_64K 16

/**
 * Where a quarantined device's DMA ends: in faults, which are reported.
 */
#define IOMMU_QUARANTINE_FAULTS 0

/**
 * Nowhere, without a report: `space.root` is an empty root of the integrator's. For a device that storms.
 */
#define IOMMU_QUARANTINE_SILENCE 1

/**
 * In a scratch page of the integrator's tables, for a device that does not bear faults.
 */
#define IOMMU_QUARANTINE_SCRATCH 2

/**
 * The line of faults that belong to no context; other values are context interrupt lines, counted from 0 in firmware's
 * order, one that is listed several times once.
 */
#define IOMMU_LINE_GLOBAL UINT32_MAX

/**
 * SMMUv1: `iommu_smmu_config.architecture`.
 */
#define IOMMU_SMMU_V1 1

/**
 * SMMUv2.
 */
#define IOMMU_SMMU_V2 2

/**
 * No implementation that is known by name: `iommu_smmu_config.implementation`.
 */
#define IOMMU_SMMU_GENERIC 0

/**
 * Arm MMU-400.
 */
#define IOMMU_SMMU_MMU400 1

/**
 * Arm MMU-401.
 */
#define IOMMU_SMMU_MMU401 2

/**
 * Arm MMU-500.
 */
#define IOMMU_SMMU_MMU500 3

/**
 * Cavium ThunderX.
 */
#define IOMMU_SMMU_CAVIUM 4

/**
 * Marvell AP806 and its successors.
 */
#define IOMMU_SMMU_MARVELL_AP806 5

/**
 * NVIDIA Tegra, one to three instances in step.
 */
#define IOMMU_SMMU_NVIDIA 6

/**
 * Qualcomm's own SMMUv2.
 */
#define IOMMU_SMMU_QUALCOMM 7

/**
 * Qualcomm's MMU-500, below its firmware.
 */
#define IOMMU_SMMU_QUALCOMM_MMU500 8

/**
 * No chip whose firmware keeps context banks to itself: `iommu_smmu_config.chip`.
 */
#define IOMMU_CHIP_UNNAMED 0

/**
 * Qualcomm MSM8998.
 */
#define IOMMU_CHIP_MSM8998 1

/**
 * Qualcomm SDM630 and SDM660.
 */
#define IOMMU_CHIP_SDM630 2

/**
 * Firmware marked the device for passthrough: `iommu_device_spec.flags`.
 */
#define IOMMU_DEVICE_PASSTHROUGH 1

/**
 * Its stream-map entries are taken at its first assign, not at its add.
 */
#define IOMMU_DEVICE_LAZY 2

/**
 * Devices with the same `isolation` are not isolated from each other by their bus (missing ACS): one group.
 */
#define IOMMU_DEVICE_SHARES_BUS 4

/**
 * What became of a call. Values are never given another meaning; new ones come at the end.
 */
enum iommu_status {
    /**
     * Done.
     */
    IOMMU_STATUS_OK = 0,
    /**
     * A needed pointer is NULL, or a value is none that the parameter has.
     */
    IOMMU_STATUS_INVALID_ARGUMENT,
    /**
     * `iommu_init` was not called, or refused.
     */
    IOMMU_STATUS_NOT_INITIALISED,
    /**
     * `iommu_init` was called before.
     */
    IOMMU_STATUS_ALREADY_INITIALISED,
    /**
     * The platform has no waiter, or its lock does not keep interrupts off, and the call needs that.
     */
    IOMMU_STATUS_NOT_SUPPLIED,
    /**
     * The library panicked: a defect. Only with the feature `std`; without it `abort` is called.
     */
    IOMMU_STATUS_PANICKED,
    /**
     * Another operation has the group, domain or IOMMU: nothing changed, try again.
     */
    IOMMU_STATUS_BUSY,
    /**
     * The deadline of a wait form came first.
     */
    IOMMU_STATUS_TIMED_OUT,
    /**
     * From inside a callback, this wait could never end.
     */
    IOMMU_STATUS_WOULD_DEADLOCK,
    /**
     * Nothing is registered under this key.
     */
    IOMMU_STATUS_NOT_FOUND,
    /**
     * The object was removed or destroyed.
     */
    IOMMU_STATUS_GONE,
    /**
     * The domain was destroyed.
     */
    IOMMU_STATUS_DOMAIN_GONE,
    /**
     * A removal was asked for while the operation ran, and has been carried out.
     */
    IOMMU_STATUS_REMOVED,
    /**
     * The source object has gone.
     */
    IOMMU_STATUS_SOURCE_ENDED,
    /**
     * The key is in use.
     */
    IOMMU_STATUS_ALREADY_REGISTERED,
    /**
     * The device, or one of its group, is assigned already.
     */
    IOMMU_STATUS_ALREADY_ASSIGNED,
    /**
     * The device is assigned to nobody.
     */
    IOMMU_STATUS_NOT_ASSIGNED,
    /**
     * The policy did not say yes.
     */
    IOMMU_STATUS_DENIED,
    /**
     * A device that the hardware cannot tell from this one has another owner.
     */
    IOMMU_STATUS_GROUP_CONFLICT,
    /**
     * Devices behind this one must be removed first.
     */
    IOMMU_STATUS_HAS_CHILDREN,
    /**
     * Something still refers to the object.
     */
    IOMMU_STATUS_IN_USE,
    /**
     * Calls are inside the device: its DMA is cut, remove it again.
     */
    IOMMU_STATUS_STILL_IN_USE,
    /**
     * The device has no stream at any IOMMU.
     */
    IOMMU_STATUS_NO_STREAMS,
    /**
     * The device that it stands behind is not registered.
     */
    IOMMU_STATUS_PARENT_MISSING,
    /**
     * An IOMMU that its streams name is not registered.
     */
    IOMMU_STATUS_PROVIDER_MISSING,
    /**
     * The IOMMU was taken out of service.
     */
    IOMMU_STATUS_PROVIDER_GONE,
    /**
     * One of the integrator's hooks failed.
     */
    IOMMU_STATUS_HOOK_FAILED,
    /**
     * Memory could not be reserved.
     */
    IOMMU_STATUS_OUT_OF_MEMORY,
    /**
     * Entries, banks or VMIDs are used up.
     */
    IOMMU_STATUS_EXHAUSTED,
    /**
     * The IOMMU cannot follow the domain's tables.
     */
    IOMMU_STATUS_INCOMPATIBLE,
    /**
     * A stream ID or mask does not fit the hardware.
     */
    IOMMU_STATUS_TOO_WIDE,
    /**
     * The IOMMU has no power.
     */
    IOMMU_STATUS_NO_POWER,
    /**
     * The IOMMU did not come back from its suspension.
     */
    IOMMU_STATUS_NOT_RESUMED,
    /**
     * The hardware did not confirm an invalidation in time.
     */
    IOMMU_STATUS_SYNC_TIMEOUT,
    /**
     * A register did not keep what was written.
     */
    IOMMU_STATUS_WRITE_LOST,
    /**
     * The IOMMU's driver cannot do that.
     */
    IOMMU_STATUS_UNSUPPORTED,
    /**
     * The IOMMU cannot be driven: the sentence says why.
     */
    IOMMU_STATUS_PROBE_FAILED,
    /**
     * The device tree is malformed, or a node in it.
     */
    IOMMU_STATUS_BAD_DEVICE_TREE,
    /**
     * Firmware describes the device or bridge in a way that leaves nothing to assign: the sentence says why.
     */
    IOMMU_STATUS_NOT_OFFERED,
    /**
     * Something that this version has no code for: the sentence says what.
     */
    IOMMU_STATUS_OTHER,
};

/**
 * What has happened.
 */
enum iommu_event_kind {
    /**
     * Something that this version has no code for.
     */
    IOMMU_EVENT_KIND_OTHER = 0,
    /**
     * A device is registered, in fault.
     */
    IOMMU_EVENT_KIND_ADDED,
    /**
     * A device's DMA goes through the domain's tables from now on.
     */
    IOMMU_EVENT_KIND_ASSIGNED,
    /**
     * A device is in fault, and what it had in flight has drained.
     */
    IOMMU_EVENT_KIND_DEASSIGNED,
    /**
     * A domain was made.
     */
    IOMMU_EVENT_KIND_DOMAIN_CREATED,
    /**
     * A domain has ended: its tables can be freed.
     */
    IOMMU_EVENT_KIND_DOMAIN_DESTROYED,
    /**
     * Something faulted.
     */
    IOMMU_EVENT_KIND_FAULT,
    /**
     * An IOMMU is in service: devices that were refused for want of it can be offered again.
     */
    IOMMU_EVENT_KIND_IOMMU_REGISTERED,
    /**
     * An IOMMU is out of service.
     */
    IOMMU_EVENT_KIND_IOMMU_UNREGISTERED,
    /**
     * An operation failed after its first write: the device is in fault and owned by nobody.
     */
    IOMMU_EVENT_KIND_QUARANTINED,
    /**
     * A device is no longer registered.
     */
    IOMMU_EVENT_KIND_REMOVED,
};

/**
 * What a transaction wanted.
 */
enum iommu_access {
    /**
     * To read.
     */
    IOMMU_ACCESS_READ = 0,
    /**
     * To write.
     */
    IOMMU_ACCESS_WRITE,
    /**
     * To fetch instructions.
     */
    IOMMU_ACCESS_EXECUTE,
    /**
     * Something that this version has no code for.
     */
    IOMMU_ACCESS_OTHER,
};

/**
 * Why a transaction was stopped.
 */
enum iommu_fault_cause {
    /**
     * Another cause.
     */
    IOMMU_FAULT_CAUSE_OTHER = 0,
    /**
     * The address is not mapped.
     */
    IOMMU_FAULT_CAUSE_TRANSLATION,
    /**
     * The mapping does not allow the access.
     */
    IOMMU_FAULT_CAUSE_PERMISSION,
    /**
     * The mapping's access flag is clear.
     */
    IOMMU_FAULT_CAUSE_ACCESS_FLAG,
    /**
     * An address is too large.
     */
    IOMMU_FAULT_CAUSE_ADDRESS_SIZE,
    /**
     * A table could not be read, or the access failed on the bus.
     */
    IOMMU_FAULT_CAUSE_EXTERNAL,
    /**
     * The stream is known and blocked.
     */
    IOMMU_FAULT_CAUSE_BLOCKED,
    /**
     * No entry matches the stream.
     */
    IOMMU_FAULT_CAUSE_UNKNOWN_STREAM,
    /**
     * Several entries match the stream.
     */
    IOMMU_FAULT_CAUSE_STREAM_CONFLICT,
    /**
     * A register access was refused.
     */
    IOMMU_FAULT_CAUSE_CONFIGURATION,
    /**
     * The context is not usable.
     */
    IOMMU_FAULT_CAUSE_BAD_CONTEXT,
};

/**
 * Who has to act.
 */
enum iommu_blame {
    /**
     * Nobody: there is no error.
     */
    IOMMU_BLAME_NOBODY = 0,
    /**
     * The caller.
     */
    IOMMU_BLAME_CALLER,
    /**
     * Firmware.
     */
    IOMMU_BLAME_FIRMWARE,
    /**
     * The hardware.
     */
    IOMMU_BLAME_HARDWARE,
    /**
     * Whoever uses up what there is a fixed number of.
     */
    IOMMU_BLAME_EXHAUSTED,
    /**
     * The integrator's hook.
     */
    IOMMU_BLAME_SOURCE,
};

/**
 * What a failed call left.
 */
enum iommu_left {
    /**
     * Nothing changed.
     */
    IOMMU_LEFT_UNCHANGED = 0,
    /**
     * The device is in fault, or in its scratch page, and owned by no domain.
     */
    IOMMU_LEFT_QUARANTINED,
    /**
     * The device is assigned as before, but only some of its streams translate: deassign it again.
     */
    IOMMU_LEFT_PARTLY_ASSIGNED,
    /**
     * The device is in fault and on its way out: remove it again.
     */
    IOMMU_LEFT_GOING,
    /**
     * The device is on its way out, but its DMA is not cut: remove it again.
     */
    IOMMU_LEFT_GOING_LIVE,
    /**
     * The running operation removes the device when it ends.
     */
    IOMMU_LEFT_PENDING,
    /**
     * The device is removed.
     */
    IOMMU_LEFT_REMOVED,
    /**
     * Old translations may still be in use: flush again.
     */
    IOMMU_LEFT_STALE,
    /**
     * The IOMMU takes nothing new, and is not out of service yet: call again.
     */
    IOMMU_LEFT_CLOSING,
    /**
     * Something that this version has no code for.
     */
    IOMMU_LEFT_UNKNOWN,
};

/**
 * What an SMMU can run out of.
 */
enum iommu_resource {
    /**
     * Something that this version has no code for.
     */
    IOMMU_RESOURCE_OTHER = 0,
    /**
     * Stream-map entries.
     */
    IOMMU_RESOURCE_ENTRY,
    /**
     * Context banks.
     */
    IOMMU_RESOURCE_BANK,
    /**
     * Tags for cached translations.
     */
    IOMMU_RESOURCE_VMID,
};

/**
 * What a removal did.
 */
enum iommu_removal {
    /**
     * The device is gone.
     */
    IOMMU_REMOVAL_DONE = 0,
    /**
     * The device is gone, but devices of its group keep a live entry that captures its streams: they reach that domain
     * until the entry is in fault.
     */
    IOMMU_REMOVAL_STILL_REACHABLE,
    /**
     * Another operation of its group is running: it finishes the removal when it ends.
     */
    IOMMU_REMOVAL_PENDING,
};

/**
 * Where a device's DMA goes.
 */
enum iommu_device_state {
    /**
     * It is being added, or is in a state that this version has no code for.
     */
    IOMMU_DEVICE_STATE_ADDING = 0,
    /**
     * In faults.
     */
    IOMMU_DEVICE_STATE_BLOCKED,
    /**
     * In faults, or in its scratch page; it lacks what `lacks_drain` and `lacks_reset` say.
     */
    IOMMU_DEVICE_STATE_QUARANTINED,
    /**
     * Through the domain's tables.
     */
    IOMMU_DEVICE_STATE_ASSIGNED,
    /**
     * It is on its way out.
     */
    IOMMU_DEVICE_STATE_GOING,
};

/**
 * A board, as its device tree describes it. It refers to the blob.
 */
struct iommu_board;

/**
 * The operations above a callback, as the callback was handed them. Valid until the callback returns, on its CPU.
 */
struct iommu_chain;

/**
 * A device's handle. It keeps the object, not the device: after a removal every call with it gets `IOMMU_STATUS_GONE`.
 */
struct iommu_device;

/**
 * A domain's handle. It keeps the object, not the domain: after it was destroyed every call with it gets
 * `IOMMU_STATUS_GONE` or `IOMMU_STATUS_DOMAIN_GONE`.
 */
struct iommu_domain;

/**
 * An SMMU's handle, for fault handlers and for the end. It keeps the object's memory, not its service.
 */
struct iommu_instance;

/**
 * An assign that has been planned and cannot be refused any more. It ends with `iommu_reservation_commit` or
 * `iommu_reservation_abandon`; until then its service cannot be put.
 */
struct iommu_reservation;

/**
 * The assignment service: one for a machine. Every call that is given one may be made from several CPUs at once.
 */
struct iommu_service;

/**
 * A source's own object: while it lives, so do the registrations that name it.
 */
struct iommu_source;

/**
 * A domain that has ended, whose tables some IOMMU may still read. Their memory must not be given to anyone before
 * `iommu_tables_redeem` says so.
 */
struct iommu_tables;

/**
 * What the hypervisor supplies. Zero the struct, set `size` to `sizeof(struct iommu_platform)`, `version` to
 * `IOMMU_ABI_VERSION`, and the members that are needed. Each function is handed `context`, and may be called from any
 * CPU. None of them may call the library.
 */
struct iommu_platform {
    /**
     * `sizeof(struct iommu_platform)`.
     */
    uint32_t size;
    /**
     * `IOMMU_ABI_VERSION`.
     */
    uint32_t version;
    /**
     * Handed to each function below.
     */
    void *context;
    /**
     * Needed. `size` bytes, aligned to `alignment` (a power of two), or NULL. The library has no other memory. Called in
     * waiting context with no lock of the library held, and never in an interrupt handler.
     */
    void *(*allocate)(void *context, size_t size, size_t alignment);
    /**
     * Needed. Takes back what `allocate` gave, with the same size and alignment. Context as for `allocate`.
     */
    void (*release)(void *context, void *memory, size_t size, size_t alignment);
    /**
     * Needed. Waits for the lock whose state is `*word`: 0 while it is free, whatever the integrator likes while it is
     * taken. Acquires: what the last holder wrote is seen. Holds are short; no callback and no poll runs under one. With
     * `interrupts_masked` it masks interrupts, and may note in the word what was masked.
     */
    void (*lock)(void *context, uint64_t *word);
    /**
     * Needed. Lets go of the lock, and leaves `*word` 0. Releases: the next holder sees what was written.
     */
    void (*unlock)(void *context, uint64_t *word);
    /**
     * Orders earlier stores to memory before later stores to device registers, as the SMMU's table walker sees them.
     * NULL: `dsb sy` on Arm.
     */
    void (*barrier)(void *context);
    /**
     * Microseconds on a clock that never goes back. NULL: without a clock the hardware is polled a number of times
     * instead of a span of time.
     */
    uint64_t (*now)(void *context);
    /**
     * Wakes whoever waits in `wait`. Called whenever something was given back. NULL: nobody waits.
     */
    void (*wake)(void *context);
    /**
     * Takes a ticket to wait from: how often `wake` was called, for example. NULL: there are no wait forms.
     */
    uint64_t (*prepare)(void *context);
    /**
     * Waits until `wake` was called after `ticket` was taken (true), or until `deadline` on the integrator's own clock
     * (false); `IOMMU_NO_DEADLINE` never comes. To return true too early is allowed. NULL: there are no wait forms.
     */
    bool (*wait)(void *context, uint64_t ticket, uint64_t deadline);
    /**
     * A line of log: `level` 1 for errors, 2 for warnings, 3 and above for less. `text` has `length` bytes and a NUL,
     * and is the library's. Never called under a lock or in an interrupt handler. NULL: no log.
     */
    void (*log)(void *context, uint32_t level, const char *text, size_t length);
    /**
     * Needed. Stops the hypervisor and does not return: the library met a state that it cannot have, or `allocate` gave
     * nothing for an object of fixed size. `text` says which.
     */
    void (*abort)(void *context, const char *text, size_t length);
    /**
     * Not 0: `lock` keeps interrupts off until `unlock`, and `wake` may be called in interrupt handlers. Without it
     * `iommu_flush_range_in_interrupt` is refused.
     */
    uint32_t interrupts_masked;
};

/**
 * What the policy is asked. Valid during the callback.
 */
struct iommu_policy_request {
    /**
     * The device in question. The callback must not put it.
     */
    const struct iommu_device *device;
    /**
     * The name of the domain that would reach its DMA.
     */
    const char *domain;
    /**
     * NULL: the device itself is to be assigned. Otherwise it shares a stream with this device, whose assignment would
     * open it.
     */
    const struct iommu_device *shares_with;
    /**
     * Firmware marked the device for passthrough.
     */
    bool marked;
    /**
     * For calls of the library from the callback.
     */
    const struct iommu_chain *chain;
};

/**
 * Decides who may be assigned what. All zero: yes for what firmware marked (`xen,passthrough`), no for all else.
 */
struct iommu_policy {
    /**
     * Handed to `allows`.
     */
    void *context;
    /**
     * Whether the request may go on. Called in waiting context with no lock of the library held; it may call the library
     * with the request's `chain`.
     */
    bool (*allows)(void *context, const struct iommu_policy_request *request);
};

/**
 * A fault, valid while the callback runs that is told of it.
 */
struct iommu_fault {
    /**
     * The IOMMU.
     */
    uint64_t iommu;
    /**
     * The address that the device asked for, where `has_address`.
     */
    uint64_t address;
    /**
     * The number of the domain whose context faulted; 0 without one.
     */
    uint64_t domain_id;
    /**
     * The stream, where `has_stream`.
     */
    uint32_t stream;
    /**
     * The context bank; -1 without one.
     */
    int32_t bank;
    /**
     * What the device wanted.
     */
    enum iommu_access access;
    /**
     * Why it was stopped.
     */
    enum iommu_fault_cause cause;
    /**
     * Whether the hardware named an address.
     */
    bool has_address;
    /**
     * Whether the hardware named a stream.
     */
    bool has_stream;
    /**
     * At least one more came and was not recorded.
     */
    bool more_lost;
    /**
     * The device's name; NULL where none is known, and in interrupt handlers.
     */
    const char *device;
    /**
     * The domain's name; NULL where none is known, and in interrupt handlers.
     */
    const char *domain;
};

/**
 * An event. Valid during the callback.
 */
struct iommu_event {
    /**
     * What has happened.
     */
    enum iommu_event_kind kind;
    /**
     * The IOMMU; 0 where the event is not about one.
     */
    uint64_t iommu;
    /**
     * The device's name; NULL where the event is not about one.
     */
    const char *device;
    /**
     * The domain's name; NULL where the event is not about one.
     */
    const char *domain;
    /**
     * The fault; NULL for other events.
     */
    const struct iommu_fault *fault;
    /**
     * The event as a line for people.
     */
    const char *text;
};

/**
 * Hears of every change, after the hardware has followed it. All zero: nobody does.
 */
struct iommu_events {
    /**
     * Handed to `event`.
     */
    void *context;
    /**
     * Called in waiting context with no lock of the library held, while the group that it tells of is still claimed: it
     * may call the library about other devices, in the try forms.
     */
    void (*event)(void *context, const struct iommu_event *event);
};

/**
 * What went wrong, in the caller's memory. Each call that is given one fills it in whole, also where nothing went wrong:
 * the caller need not.
 */
struct iommu_error {
    /**
     * What the call returned.
     */
    enum iommu_status status;
    /**
     * Who has to act.
     */
    enum iommu_blame blame;
    /**
     * What was left.
     */
    enum iommu_left left;
    /**
     * The sentence's bytes without its NUL.
     */
    size_t length;
    /**
     * One line: which operation, on whom, why, what was left. Cut where it does not fit; empty without an error.
     */
    char text[IOMMU_TEXT_SIZE];
};

/**
 * What tables every registered SMMU can follow.
 */
struct iommu_limits {
    /**
     * Most bits of a guest-physical address.
     */
    uint8_t ipa_bits;
    /**
     * Most bits of an output address.
     */
    uint8_t output_bits;
    /**
     * Pages of 4 KiB can be walked.
     */
    bool granule_4k;
    /**
     * Pages of 16 KiB can be walked.
     */
    bool granule_16k;
    /**
     * Pages of 64 KiB can be walked.
     */
    bool granule_64k;
    /**
     * Walks are coherent with the CPU's caches.
     */
    bool coherent;
    /**
     * Blocks above the last level may be used.
     */
    bool blocks;
};

/**
 * One of something scarce that is in use. Valid during the callback.
 */
struct iommu_usage {
    /**
     * What it is one of, for people: "stream-map entries", "context banks", "VMIDs".
     */
    const char *resource;
    /**
     * `IOMMU_RESOURCE_ENTRY` and so on.
     */
    enum iommu_resource kind;
    /**
     * Its number.
     */
    uint32_t index;
    /**
     * A device that uses it; NULL where none is known.
     */
    const char *device;
    /**
     * The domain that it serves; NULL without one.
     */
    const char *domain;
};

/**
 * An SMMU as firmware and the integrator describe it. `iommu_board_smmu` fills it from a device tree. Members that are 0
 * stand for what suits hardware, where a comment says so.
 */
struct iommu_smmu_config {
    /**
     * What names the SMMU everywhere: the CPU physical address of its registers.
     */
    uint64_t base;
    /**
     * Bytes of the register region, as firmware gives it; of several, of the shortest.
     */
    uint64_t region_size;
    /**
     * CPU physical address of zeroed memory that retired context banks are pointed to, aligned to `empty_root_size`. It
     * stays zero, readable by the walker, for good.
     */
    uint64_t empty_root;
    /**
     * Bytes of it: what the start level of any domain walks, 4 KiB to 1 MiB.
     */
    uint64_t empty_root_size;
    /**
     * `IOMMU_SMMU_V1` or `IOMMU_SMMU_V2`.
     */
    uint32_t architecture;
    /**
     * `IOMMU_SMMU_GENERIC` and so on.
     */
    uint32_t implementation;
    /**
     * `IOMMU_CHIP_UNNAMED` and so on.
     */
    uint32_t chip;
    /**
     * How many register regions firmware lists here, each of an instance that is programmed alike; 0 for one. All of
     * them must be in `iommu_setup.registers`.
     */
    uint32_t instances;
    /**
     * How many entries of `context_lines` count; 0 where one line is for all context interrupts.
     */
    uint32_t context_interrupts;
    /**
     * Not 0: there are so many lines, and firmware does not say which context interrupt raises which.
     */
    uint32_t unordered_lines;
    /**
     * The line that each context interrupt raises, counted from 0 in firmware's order, one that is listed several times
     * once.
     */
    uint8_t context_lines[128];
    /**
     * Where context bank 0 is, in bytes from the base, on boards where IDR1 does not tell; 0 elsewhere.
     */
    uint32_t bank_base;
    /**
     * Not 0: firmware says that walks are coherent (`dma-coherent`).
     */
    uint32_t coherent;
    /**
     * Not 0: `calxeda,smmu-secure-config-access`.
     */
    uint32_t secure_config_access;
    /**
     * Not 0: a Qualcomm GPU's (`qcom,adreno-smmu`).
     */
    uint32_t adreno;
    /**
     * Not 0: every write that isolates is read back.
     */
    uint32_t read_back;
    /**
     * How long the hardware is waited for, in microseconds, where there is a clock; 0 for a second.
     */
    uint64_t timeout;
    /**
     * The same in atomic context and for a crashing hypervisor; 0 for 2 ms.
     */
    uint64_t atomic_timeout;
    /**
     * How often a status is read where there is no clock; 0 for a million.
     */
    uint32_t polls;
    /**
     * The same in atomic context and for a crashing hypervisor; 0 for 20,000.
     */
    uint32_t atomic_polls;
    /**
     * Records of one stream that are reported between two calls of the worker; 0 for 10.
     */
    uint32_t fault_records;
    /**
     * Records of one stream or context after which it storms; 0 for 100.
     */
    uint32_t fault_storm;
    /**
     * Records on one line after which it is to be masked; 0 for 1,000.
     */
    uint32_t fault_line;
};

/**
 * The registers of one SMMU instance. Either `base` says where they are mapped, or the four functions access them.
 */
struct iommu_registers {
    /**
     * Where they are mapped as device memory (nGnRE or stronger), aligned to 8 bytes, readable and writable for as long as
     * the SMMU is registered and handles of it live. NULL: the functions below.
     */
    void *base;
    /**
     * Bytes that are mapped.
     */
    uint64_t size;
    /**
     * Handed to each function below.
     */
    void *context;
    /**
     * Reads the 32-bit register at a byte offset. None of the four may block, take a lock that is ever held around a call
     * of the library, or call the library: locks of the library are held. Writes reach the hardware in their order.
     */
    uint32_t (*read32)(void *context, uint32_t offset);
    /**
     * Writes the 32-bit register at a byte offset.
     */
    void (*write32)(void *context, uint32_t offset, uint32_t value);
    /**
     * Reads the 64-bit register at a byte offset.
     */
    uint64_t (*read64)(void *context, uint32_t offset);
    /**
     * Writes the 64-bit register at a byte offset, in one access.
     */
    void (*write64)(void *context, uint32_t offset, uint64_t value);
};

/**
 * Power, clock and interconnect of an SMMU. All zero: it always has power. They are called with no lock of the library
 * held, around every use of a register, and must not call the library about this SMMU. `get` is called in waiting context
 * and may block. `get_if_on` and `put` wait for nothing: interrupt handlers call them, a flush in atomic context, and a
 * crashing hypervisor.
 */
struct iommu_power {
    /**
     * Handed to each function below.
     */
    void *context;
    /**
     * Sees to it that registers can be accessed until `put`. NULL for success, else why not, as a string that is there
     * for good: no register is touched then.
     */
    const char *(*get)(void *context);
    /**
     * Does what `get` does where the power is on, whoever has it; else says false and does nothing.
     */
    bool (*get_if_on)(void *context);
    /**
     * Ends what one `get` or `get_if_on` began.
     */
    void (*put)(void *context);
};

/**
 * A set of stream IDs at one IOMMU: those that equal `id` in the bits that are 0 in `mask`.
 */
struct iommu_stream {
    /**
     * The IOMMU: the CPU physical address of its registers, which names it everywhere.
     */
    uint64_t iommu;
    /**
     * The stream ID.
     */
    uint32_t id;
    /**
     * Bits that are ignored (SMR.MASK polarity: 1 ignores).
     */
    uint32_t mask;
};

/**
 * A guest's stage 2, in the words of VTCR_EL2. The CPU uses the same tables.
 */
struct iommu_stage2 {
    /**
     * CPU physical address of the start level's first table.
     */
    uint64_t root;
    /**
     * Bits of a guest-physical address, 25 to 48.
     */
    uint8_t ipa_bits;
    /**
     * Level at which a walk starts, 0 to 3.
     */
    uint8_t start_level;
    /**
     * log2 of the page size: `IOMMU_GRANULE_4K` and so on.
     */
    uint8_t granule;
    /**
     * Bits of the addresses that the tables give out: 32, 36, 40, 42, 44 or 48.
     */
    uint8_t output_bits;
    /**
     * Not 0: the walker's reads are write-back and inner shareable, for walks that are coherent. 0: non-cacheable; the
     * hypervisor cleans table bytes to the point of coherency.
     */
    uint8_t write_back;
};

/**
 * Streams that firmware set up and that must go on through the take-over: a display that shows a boot picture.
 */
struct iommu_reserved {
    /**
     * The streams.
     */
    const struct iommu_stream *streams;
    /**
     * How many.
     */
    size_t stream_count;
    /**
     * What they may reach until a device that owns them is assigned: tables of the integrator's for these regions.
     */
    struct iommu_stage2 space;
};

/**
 * How an SMMU is reached, beside its description.
 */
struct iommu_setup {
    /**
     * One for each instance that is programmed alike; usually one. Copied.
     */
    const struct iommu_registers *registers;
    /**
     * How many, 1 or more.
     */
    size_t register_count;
    /**
     * Copied; NULL for one that always has power.
     */
    const struct iommu_power *power;
    /**
     * Streams that firmware reserved. Copied; may be NULL.
     */
    const struct iommu_reserved *reserved;
    /**
     * How many.
     */
    size_t reserved_count;
};

/**
 * What was odd at an SMMU and worked around.
 */
struct iommu_notes {
    /**
     * Bytes of registers as IDR1 tells them, where firmware gives another number; 0 where they agree.
     */
    uint64_t register_bytes;
    /**
     * IDR0.CTTW and firmware's `dma-coherent` differ: firmware is believed.
     */
    bool coherency_differs;
    /**
     * Banks that prefetch still: the Secure side keeps them locked.
     */
    uint8_t prefetching;
};

/**
 * How a call is made. NULL, or all zero: from outside of every callback, in the try form, which says
 * `IOMMU_STATUS_BUSY` where another operation is in the way.
 */
struct iommu_call {
    /**
     * What a callback was handed, where the call is made from inside one; NULL outside.
     */
    const struct iommu_chain *chain;
    /**
     * Not 0: waits until nothing is in the way. Needs `prepare` and `wait` of `struct iommu_platform`.
     */
    uint32_t wait;
    /**
     * Until when, on the integrator's own clock; `IOMMU_NO_DEADLINE` for ever.
     */
    uint64_t deadline;
};

/**
 * Part of a domain's addresses whose translation was removed or narrowed.
 */
struct iommu_flush_range {
    /**
     * First guest-physical address.
     */
    uint64_t start;
    /**
     * Bytes.
     */
    uint64_t size;
    /**
     * Bytes that one changed entry of the tables translated: a power of two, 4096 or more.
     */
    uint64_t leaf;
    /**
     * Not 0: entries that name tables were changed too, and the tables' memory is about to be reused.
     */
    uint32_t tables_freed;
};

/**
 * What a source calls a device: unique among the registered devices, and never changed. The number's halves are free for
 * the source to use; a PCI source must not use the bus number, which can change.
 */
struct iommu_device_key {
    /**
     * `IOMMU_SOURCE_DT` or `IOMMU_SOURCE_PCI`.
     */
    uint32_t source;
    /**
     * Upper half of the source's number. For the device tree it is 0.
     */
    uint64_t upper;
    /**
     * Lower half of the source's number. For the device tree the hash of the node's path (`iommu_board_device.key`).
     */
    uint64_t lower;
};

/**
 * A hook that may fail: NULL says that it did not, else why, as a string that is there for good.
 */
typedef const char *(*iommu_hook)(void *context,
                                  const struct iommu_device *device,
                                  const struct iommu_chain *chain);

/**
 * What a source does for one of its devices. Members that are NULL do nothing. Called in waiting context with no lock
 * of the library held; a reset may take its time. They may call the library with `chain`, and must not put `device`.
 */
struct iommu_hooks {
    /**
     * Handed to each function below.
     */
    void *context;
    /**
     * Stops the device from starting new DMA; its streams are in fault already. Where it fails the device is quarantined.
     */
    iommu_hook quiesce;
    /**
     * Brings the device to a state that carries nothing over from one owner to the next. Where it fails the device is
     * quarantined.
     */
    iommu_hook reset;
    /**
     * The device is unregistered, and none of these is called any more. Not called where its add failed.
     */
    void (*release)(void *context, const struct iommu_device *device, const struct iommu_chain *chain);
};

/**
 * A device as its source offers it. Everything is copied.
 */
struct iommu_device_spec {
    /**
     * What the source calls it.
     */
    struct iommu_device_key key;
    /**
     * What people call it: UTF-8, not empty.
     */
    const char *name;
    /**
     * The device that it stands behind, which must be registered; NULL for none.
     */
    const struct iommu_device_key *parent;
    /**
     * All streams that its DMA can carry, aliases and phantom functions included.
     */
    const struct iommu_stream *streams;
    /**
     * How many.
     */
    size_t stream_count;
    /**
     * `IOMMU_DEVICE_PASSTHROUGH` and so on.
     */
    uint32_t flags;
    /**
     * A number for `IOMMU_DEVICE_SHARES_BUS`.
     */
    uint64_t isolation;
    /**
     * The object with which the registration ends; NULL for none.
     */
    const struct iommu_source *source;
    /**
     * What the source does for it; NULL for nothing.
     */
    const struct iommu_hooks *hooks;
};

/**
 * Whom a deassign or a removal did not cut off, and why.
 */
struct iommu_outcome {
    /**
     * What the removal did. For a deassign `IOMMU_REMOVAL_DONE` or `IOMMU_REMOVAL_STILL_REACHABLE`.
     */
    enum iommu_removal removal;
    /**
     * How many devices keep a shared stream translated; 0 where the device is cut off.
     */
    size_t count;
    /**
     * Their names, with ", " between; cut where they do not fit.
     */
    char names[IOMMU_TEXT_SIZE];
};

/**
 * A device as a traversal shows it.
 */
struct iommu_device_info {
    /**
     * What its source calls it.
     */
    struct iommu_device_key key;
    /**
     * The key of one of its group's members, the same for all of them.
     */
    struct iommu_device_key group;
    /**
     * The key of the device that it stands behind; meaningful where `depth` is not 0.
     */
    struct iommu_device_key parent;
    /**
     * This registration's number.
     */
    uint64_t id;
    /**
     * The number of the domain that it is assigned to; 0 without one.
     */
    uint64_t domain;
    /**
     * Its state.
     */
    enum iommu_device_state state;
    /**
     * What it had in flight may still reach its last owner's memory: an assign drains it first.
     */
    bool lacks_drain;
    /**
     * It may carry something over from its last owner: an assign quiesces and resets it first.
     */
    bool lacks_reset;
    /**
     * Firmware marked it for passthrough.
     */
    bool passthrough;
    /**
     * How many devices it stands behind.
     */
    uint16_t depth;
    /**
     * How many streams it has.
     */
    size_t streams;
};

/**
 * Room for a call that touches a device's own registers. What is in it is the library's.
 */
struct iommu_device_call {
    uint64_t words[4];
};

/**
 * A place for a quarantined device's DMA.
 */
struct iommu_quarantine {
    /**
     * `IOMMU_QUARANTINE_FAULTS` and so on.
     */
    uint32_t kind;
    /**
     * The tables, for the other two kinds.
     */
    struct iommu_stage2 space;
};

/**
 * A function of the caller's that is told of faults.
 */
typedef void (*iommu_fault_sink)(void *context, const struct iommu_fault *fault);

/**
 * What a fault handler does next: return, or mask the line at the interrupt controller and wake the worker, which calls
 * `iommu_tend_faults` and has it unmasked.
 */
struct iommu_fault_answer {
    /**
     * Whether the line is to be masked.
     */
    bool mask;
    /**
     * The line: the one that was asked about.
     */
    uint32_t line;
};

/**
 * Something that faulted too often. Valid during the callback.
 */
struct iommu_storm {
    /**
     * How many faults were taken of it.
     */
    uint32_t faults;
    /**
     * The stream, where `has_stream`.
     */
    uint32_t stream;
    /**
     * Whether the stream is known.
     */
    bool has_stream;
    /**
     * No device is to blame, and the reports that it came by are silenced until a later call finds them quiet.
     */
    bool silenced;
    /**
     * The domain whose context faulted; NULL where none is known.
     */
    const char *domain;
    /**
     * The device whose group was quarantined; NULL where no device is to blame, or that failed. Not to be put.
     */
    const struct iommu_device *device;
    /**
     * Why a device could not be quarantined: its storm goes on. NULL where nothing failed.
     */
    const struct iommu_error *error;
};

/**
 * Faults that were not reported, since the SMMU was registered.
 */
struct iommu_fault_counts {
    /**
     * At least so many came while a record stood, and were never recorded by the hardware.
     */
    uint64_t lost;
    /**
     * Recorded, and beyond their stream's limit.
     */
    uint64_t limited;
    /**
     * By unknown streams for which there was no room to count them one by one.
     */
    uint64_t unknown_elsewhere;
};

/**
 * An SMMU's node.
 */
struct iommu_board_smmu {
    /**
     * What `iommu_register` wants, with the empty root that was given.
     */
    struct iommu_smmu_config config;
    /**
     * Bytes of the node's path without its NUL: see `iommu_board_smmu_path`.
     */
    size_t path_length;
    /**
     * How many further instances are programmed alike (Tegra), and listed in `config.instances`: see
     * `iommu_board_smmu_mirror`. Each wants its entry in `iommu_setup.registers`, after the first.
     */
    size_t mirror_count;
    /**
     * How many interrupts the node lists.
     */
    size_t interrupt_count;
    /**
     * How many of them, the first ones, report global faults; the others report context banks'.
     */
    uint32_t global_interrupts;
    /**
     * Whether the node and all its ancestors are enabled.
     */
    bool enabled;
};

/**
 * A device's node.
 */
struct iommu_board_device {
    /**
     * The device's key, under which `iommu_board_add` registers it.
     */
    struct iommu_device_key key;
    /**
     * Bytes of the node's path without its NUL: see `iommu_board_device_path`.
     */
    size_t path_length;
    /**
     * How many streams it has: see `iommu_board_device_streams`.
     */
    size_t stream_count;
    /**
     * Whether the node and all its ancestors are enabled.
     */
    bool enabled;
    /**
     * One of its SMMUs is not enabled: it cannot be isolated, and must not be assigned.
     */
    bool on_disabled_smmu;
    /**
     * IOMMUs of other kinds, which nobody here programs, see its DMA too.
     */
    bool on_foreign_iommu;
    /**
     * Firmware marks it for passthrough (`xen,passthrough`).
     */
    bool passthrough;
    /**
     * `iommu_board_add` takes it: it is enabled, and no IOMMU sees its DMA but SMMUs that are enabled.
     */
    bool offered;
};

/**
 * A range of addresses that a device sends, and that firmware reserves (`iommu-addresses`).
 */
struct iommu_board_reserved {
    /**
     * First address, as the device's SMMU sees it.
     */
    uint64_t iova;
    /**
     * Bytes.
     */
    uint64_t size;
    /**
     * First byte of the memory that it reaches, where `has_memory`: a mapping that must go on, and belongs into the tables
     * of an `iommu_reserved`.
     */
    uint64_t memory;
    /**
     * The device's index on the board, where `has_device`.
     */
    size_t device;
    /**
     * Whether there is memory behind it. Else it is a hole: addresses that the device must not be given.
     */
    bool has_memory;
    /**
     * Whether the device is one of the board's.
     */
    bool has_device;
};

/**
 * A host bridge's node, or another one with an `iommu-map`.
 */
struct iommu_board_bridge {
    /**
     * CPU physical address of its configuration space, where that is plain ECAM; else 0.
     */
    uint64_t ecam;
    /**
     * Bytes of it.
     */
    uint64_t ecam_size;
    /**
     * PCI segment, where firmware fixes it; else -1.
     */
    int32_t segment;
    /**
     * First bus below.
     */
    uint8_t first_bus;
    /**
     * Last bus below.
     */
    uint8_t last_bus;
    /**
     * It is a PCI host bridge.
     */
    bool is_pci;
    /**
     * Whether the node and all its ancestors are enabled.
     */
    bool enabled;
    /**
     * An entry names an SMMU that is not enabled: its functions cannot be isolated.
     */
    bool on_disabled_smmu;
    /**
     * Firmware marks it for passthrough.
     */
    bool passthrough;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Says what the hypervisor supplies: before every other call, once.
 *
 * @param platform is copied.
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_INVALID_ARGUMENT` for a NULL, a missing function, another version, or a struct
 * of another size; `IOMMU_STATUS_ALREADY_INITIALISED`.
 *
 * Context: boot, on one CPU. It allocates nothing.
 */
enum iommu_status iommu_init(const struct iommu_platform *platform);

/**
 * What a status means, as a sentence in the caller's buffer; who and where stands in `struct iommu_error`.
 *
 * @param status any value, also one that this version does not know.
 * @param text may be NULL with a `size` of 0.
 * @return the sentence's length without its NUL. Where it is not below `size`, it was cut.
 *
 * Context: any, interrupts included, also before `iommu_init`.
 */
size_t iommu_status_describe(uint32_t status, char *text, size_t size);

/**
 * Makes a service without devices, domains or SMMUs.
 *
 * @param policy is copied; NULL as all zero: only what firmware marked is assigned.
 * @param events is copied; may be NULL.
 * @param service gets the service; NULL is written there on failure. The caller owns it until `iommu_service_put`.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`, `IOMMU_STATUS_NOT_INITIALISED`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_service_new(const struct iommu_policy *policy,
                                    const struct iommu_events *events,
                                    struct iommu_service **service,
                                    struct iommu_error *error);

/**
 * Ends a service and frees it. The hardware stays as it is: call `iommu_shutdown` before, where streams are to fault.
 *
 * @param service no call with it may be running or follow. Handles of devices, domains and SMMUs may be put later.
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_IN_USE` while a reservation has not ended: the service stays.
 *
 * Context: waiting.
 */
enum iommu_status iommu_service_put(struct iommu_service *service);

/**
 * Releases the memory of what is registered no more, and ends registrations whose source object was put. To be called
 * by a worker after `wake`, or from time to time.
 *
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_reap(const struct iommu_service *service);

/**
 * Says what tables all registered SMMUs can follow, for a hypervisor that builds a guest's tables before it knows which
 * devices the guest gets.
 *
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_NOT_FOUND` without an SMMU.
 *
 * Context: waiting.
 */
enum iommu_status iommu_get_limits(const struct iommu_service *service,
                                   struct iommu_limits *limits);

/**
 * Says whether devices came or went.
 *
 * @return a number that changes whenever a device is registered or unregistered; 0 for NULL.
 *
 * Context: waiting.
 */
uint64_t iommu_generation(const struct iommu_service *service);

/**
 * Writes the whole state as a tree for a console: each device with its owner, group and streams.
 *
 * @param write is handed pieces of text that do not end with a NUL. It is called with no lock of the library held.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: waiting. Devices that come or go meanwhile may be there or not.
 */
enum iommu_status iommu_write_tree(const struct iommu_service *service,
                                   void (*write)(void *context, const char *text, size_t length),
                                   void *context);

/**
 * Tells who uses what there is a fixed number of at an SMMU.
 *
 * @param sink is called for each with no lock of the library held, and must not call the library.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_each_usage(const struct iommu_service *service,
                                   uint64_t iommu,
                                   void (*sink)(void *context, const struct iommu_usage *usage),
                                   void *context);

/**
 * Compares the registry with the drivers and these with their registers. Changes nothing.
 *
 * @param sink is called for each difference, with a line of text. May be NULL: they are only counted.
 * @param count gets how many there are; may be NULL.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: waiting. Meaningful while no operation runs.
 */
enum iommu_status iommu_audit(const struct iommu_service *service,
                              void (*sink)(void *context, const char *text),
                              void *context,
                              size_t *count);

/**
 * Probes an SMMU, brings all of its streams to fault, enables it and puts it into service. From here on what no device
 * is assigned for faults.
 *
 * @param config is copied.
 * @param setup is copied.
 * @param notes may be NULL.
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_ALREADY_REGISTERED`, with no register touched; `IOMMU_STATUS_PROBE_FAILED`,
 * `IOMMU_STATUS_SYNC_TIMEOUT`, `IOMMU_STATUS_NO_POWER`, `IOMMU_STATUS_OUT_OF_MEMORY`: it is not enabled.
 *
 * Context: waiting; a sync is polled. Not about one SMMU twice at the same time.
 */
enum iommu_status iommu_register(const struct iommu_service *service,
                                 const struct iommu_smmu_config *config,
                                 const struct iommu_setup *setup,
                                 struct iommu_notes *notes,
                                 struct iommu_error *error);

/**
 * Takes an SMMU out of service. No device may be registered on it. Afterwards none of its registers is touched.
 *
 * @param iommu the CPU physical address of its registers.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`, `IOMMU_STATUS_IN_USE`, `IOMMU_STATUS_BUSY`, and
 * `IOMMU_STATUS_SYNC_TIMEOUT` where an earlier drain is still not confirmed: it stays in service.
 *
 * Context: waiting.
 */
enum iommu_status iommu_unregister(const struct iommu_service *service,
                                   const struct iommu_call *call,
                                   uint64_t iommu,
                                   struct iommu_error *error);

/**
 * Takes an SMMU out of service though devices use it: every stream faults, what they acquire there gets
 * `IOMMU_STATUS_PROVIDER_GONE`, and what they release is done in software.
 *
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`; `IOMMU_STATUS_NOT_RESUMED` or `IOMMU_STATUS_NO_POWER`: its
 * streams could not be silenced; others: it is not out of service yet, call again.
 *
 * Context: waiting.
 */
enum iommu_status iommu_force_unregister(const struct iommu_service *service,
                                         uint64_t iommu,
                                         struct iommu_error *error);

/**
 * Ends all SMMUs: every stream faults, clients stay enabled. Goes on past a failure and tells the first.
 *
 * @return `IOMMU_STATUS_OK`, or what the first one says that is not out of service: call again.
 *
 * Context: waiting.
 */
enum iommu_status iommu_shutdown(const struct iommu_service *service, struct iommu_error *error);

/**
 * Says that an SMMU is about to lose its power. All of its masters must have been stopped. Operations go on, on paper,
 * and count from `iommu_resume` on.
 *
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`, `IOMMU_STATUS_BUSY` where an operation there does not end in time.
 *
 * Context: waiting.
 */
enum iommu_status iommu_suspend(const struct iommu_service *service,
                                uint64_t iommu,
                                struct iommu_error *error);

/**
 * Brings an SMMU back to what the service believes of it.
 *
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`, or what the driver says: it stays suspended.
 *
 * Context: waiting.
 */
enum iommu_status iommu_resume(const struct iommu_service *service,
                               uint64_t iommu,
                               struct iommu_error *error);

/**
 * Lets faults of an SMMU raise interrupts: handlers stand on all of its lines.
 *
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`, or what the driver says.
 *
 * Context: waiting.
 */
enum iommu_status iommu_enable_reports(const struct iommu_service *service,
                                       uint64_t iommu,
                                       struct iommu_error *error);

/**
 * Finds an SMMU that is in service, for its fault handlers and for the end.
 *
 * @param instance gets a handle that the caller owns until `iommu_instance_put`; NULL is written there on failure.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_instance_find(const struct iommu_service *service,
                                      uint64_t iommu,
                                      struct iommu_instance **instance);

/**
 * Gives an SMMU's handle back.
 *
 * @param instance may be NULL. No handler may be using it.
 *
 * Context: waiting.
 */
void iommu_instance_put(struct iommu_instance *instance);

/**
 * Every stream of an SMMU to fault, for a hypervisor that is crashing: no lock, a bounded number of polls. Nothing but
 * this may follow.
 *
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_SYNC_TIMEOUT`: what was in flight may not have drained;
 * `IOMMU_STATUS_NO_POWER`: nothing was touched, give it power and call again.
 *
 * Context: any.
 */
enum iommu_status iommu_crash(const struct iommu_instance *instance);

/**
 * Makes a domain of a guest's stage 2. Its tables stay the caller's.
 *
 * @param name what people call it: UTF-8, not empty. Copied.
 * @param stage2 is copied.
 * @param domain gets a handle that the caller owns until `iommu_domain_put`; NULL is written there on failure.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`; `IOMMU_STATUS_INCOMPATIBLE` for tables that no SMMU could
 * follow.
 *
 * Context: waiting.
 */
enum iommu_status iommu_create_domain(const struct iommu_service *service,
                                      const char *name,
                                      const struct iommu_stage2 *stage2,
                                      struct iommu_domain **domain,
                                      struct iommu_error *error);

/**
 * Ends a domain. After `IOMMU_STATUS_OK` no IOMMU uses its tables: they can be freed. The handle stays the caller's.
 *
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_IN_USE` while a device refers to it; `IOMMU_STATUS_BUSY`; `IOMMU_STATUS_GONE`;
 * `IOMMU_STATUS_SYNC_TIMEOUT` and others of an IOMMU: the domain and its tables must stay, try again.
 *
 * Context: waiting.
 */
enum iommu_status iommu_destroy_domain(const struct iommu_service *service,
                                       const struct iommu_call *call,
                                       const struct iommu_domain *domain,
                                       struct iommu_error *error);

/**
 * `iommu_destroy_domain`, also where an IOMMU does not confirm that it forgot the tables: the domain ends then all the
 * same, and its tables are held.
 *
 * @param tables gets NULL where the tables can be freed at once, else a handle that the caller owns: they can be freed
 * when `iommu_tables_redeem` says so.
 * @return as for `iommu_destroy_domain`, but for `IOMMU_STATUS_SYNC_TIMEOUT`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_retire_domain(const struct iommu_service *service,
                                      const struct iommu_domain *domain,
                                      struct iommu_tables **tables,
                                      struct iommu_error *error);

/**
 * Asks every IOMMU once more to forget the tables of a domain that has ended.
 *
 * @param tables the handle. After `IOMMU_STATUS_OK` it is freed, NULL is written there, and the tables' memory is free;
 * else it stays the caller's, to be tried again.
 * @return `IOMMU_STATUS_OK`, or what the first IOMMU says that does not confirm.
 *
 * Context: waiting.
 */
enum iommu_status iommu_tables_redeem(struct iommu_tables **tables,
                                      struct iommu_error *error);

/**
 * Gives up on tables that no IOMMU confirmed to have forgotten: their memory can never be used again.
 *
 * @param tables may be NULL.
 *
 * Context: waiting.
 */
void iommu_tables_put(struct iommu_tables *tables);

/**
 * Makes a second handle of a domain.
 *
 * @param copy gets a handle that the caller owns until `iommu_domain_put`; NULL is written there on failure.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_domain_get(const struct iommu_domain *domain, struct iommu_domain **copy);

/**
 * Gives a domain's handle back. The domain stays until it is destroyed.
 *
 * @param domain may be NULL.
 *
 * Context: waiting.
 */
void iommu_domain_put(struct iommu_domain *domain);

/**
 * A domain's number.
 *
 * @return the number, which is never given again; 0 for NULL.
 *
 * Context: any.
 */
uint64_t iommu_domain_id(const struct iommu_domain *domain);

/**
 * Makes every IOMMU forget what it cached of a domain's tables: needed after a mapping was removed or narrowed, never
 * after one was added.
 *
 * @return `IOMMU_STATUS_OK`, or what an IOMMU says: stale translations may still be in use there, the others were flushed.
 *
 * Context: waiting.
 */
enum iommu_status iommu_flush(const struct iommu_service *service,
                              const struct iommu_domain *domain,
                              struct iommu_error *error);

/**
 * `iommu_flush` of part of a domain: by page where the hardware can and it is worth it.
 *
 * @return as for `iommu_flush`; `IOMMU_STATUS_INVALID_ARGUMENT` for a `leaf` that is no power of two, or below 4096.
 *
 * Context: waiting.
 */
enum iommu_status iommu_flush_range(const struct iommu_service *service,
                                    const struct iommu_domain *domain,
                                    const struct iommu_flush_range *range,
                                    struct iommu_error *error);

/**
 * `iommu_flush_range` with a smaller bound of its own, and nothing logged.
 *
 * @return as for `iommu_flush_range`, and `IOMMU_STATUS_NO_POWER`.
 *
 * Context: atomic: where nothing may sleep, under a spin lock of the caller's own. Not in interrupt handlers.
 */
enum iommu_status iommu_flush_range_atomic(const struct iommu_service *service,
                                           const struct iommu_domain *domain,
                                           const struct iommu_flush_range *range,
                                           struct iommu_error *error);

/**
 * `iommu_flush_range_atomic` for interrupt handlers.
 *
 * @return as there; `IOMMU_STATUS_NOT_SUPPLIED` where `interrupts_masked` of `struct iommu_platform` is 0.
 *
 * Context: any, interrupts included. The caller keeps the domain, and whoever takes an SMMU out of service keeps a
 * handle of it until no handler can be in here.
 */
enum iommu_status iommu_flush_range_in_interrupt(const struct iommu_service *service,
                                                 const struct iommu_domain *domain,
                                                 const struct iommu_flush_range *range);

/**
 * Registers a device: its streams take their stream-map entries, in fault, and it joins the group that they overlap.
 *
 * @param device gets a handle that the caller owns until `iommu_device_put`; NULL is written there on failure.
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_NO_STREAMS`; `IOMMU_STATUS_PROVIDER_MISSING`: offer it again when the IOMMU is
 * registered; `IOMMU_STATUS_ALREADY_REGISTERED`; `IOMMU_STATUS_PARENT_MISSING`; `IOMMU_STATUS_GROUP_CONFLICT`;
 * `IOMMU_STATUS_BUSY`; `IOMMU_STATUS_SOURCE_ENDED`; `IOMMU_STATUS_REMOVED`; `IOMMU_STATUS_OUT_OF_MEMORY`; and what the
 * IOMMUs say. Nothing is changed then, but with `IOMMU_LEFT_GOING`: the device is registered, and is to be removed.
 *
 * Context: waiting.
 */
enum iommu_status iommu_add(const struct iommu_service *service,
                            const struct iommu_call *call,
                            const struct iommu_device_spec *spec,
                            struct iommu_device **device,
                            struct iommu_error *error);

/**
 * Removes a device, whatever its state: its DMA is cut, then it is forgotten. To remove an assigned device is legal: a
 * surprise unplug, the domain loses it.
 *
 * @param key what its source calls it.
 * @param outcome what the removal did; may be NULL. With `IOMMU_REMOVAL_PENDING` the running operation finishes it. A
 * call that waits does so until the device is gone.
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_NOT_FOUND`; `IOMMU_STATUS_HAS_CHILDREN`; `IOMMU_STATUS_BUSY`;
 * `IOMMU_STATUS_STILL_IN_USE` while calls are inside the device: its DMA is cut, call again; what an IOMMU says, with
 * `IOMMU_LEFT_GOING` or `IOMMU_LEFT_GOING_LIVE`: call again.
 *
 * Context: waiting.
 */
enum iommu_status iommu_remove(const struct iommu_service *service,
                               const struct iommu_call *call,
                               const struct iommu_device_key *key,
                               struct iommu_outcome *outcome,
                               struct iommu_error *error);

/**
 * Removes a device and everything that stands behind it, children first. From the call on no child can be added there.
 *
 * @return as for `iommu_remove`, but for children; of several failures the first.
 *
 * Context: waiting.
 */
enum iommu_status iommu_remove_tree(const struct iommu_service *service,
                                    const struct iommu_call *call,
                                    const struct iommu_device_key *key,
                                    struct iommu_outcome *outcome,
                                    struct iommu_error *error);

/**
 * Makes an object for a source to keep: when it goes, what names it is removed.
 *
 * @param source gets a handle that the caller owns until `iommu_source_end` or `iommu_source_put`.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_source_new(const struct iommu_service *service, struct iommu_source **source);

/**
 * Ends a source's object and the registrations that name it, the last one first.
 *
 * @param source is freed in every case.
 * @return as for `iommu_remove`: the first failure. `iommu_reap` goes on with what is left.
 *
 * Context: waiting.
 */
enum iommu_status iommu_source_end(const struct iommu_service *service,
                                   struct iommu_source *source,
                                   struct iommu_error *error);

/**
 * Ends a source's object: the registrations that name it end with the next `iommu_reap`, for which it wakes.
 *
 * @param source may be NULL.
 *
 * Context: waiting.
 */
void iommu_source_put(struct iommu_source *source);

/**
 * Finds the device that is registered under a key.
 *
 * @param device gets a handle that the caller owns until `iommu_device_put`; NULL is written there on failure.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_find(const struct iommu_service *service,
                             const struct iommu_device_key *key,
                             struct iommu_device **device);

/**
 * Steps to the device after a key, in the order of keys. A traversal of such steps holds nothing between them, never
 * skips or repeats a device that stays, and survives the removal of the one that it stands on.
 *
 * @param after NULL for the first device.
 * @param info what it is now; may be NULL.
 * @param device gets a handle that the caller owns until `iommu_device_put`; may be NULL.
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_NOT_FOUND` after the last device.
 *
 * Context: waiting.
 */
enum iommu_status iommu_next_device(const struct iommu_service *service,
                                    const struct iommu_device_key *after,
                                    struct iommu_device_info *info,
                                    struct iommu_device **device);

/**
 * Makes a second handle of a device: the way to keep one that a callback was handed.
 *
 * @param copy gets a handle that the caller owns until `iommu_device_put`; NULL is written there on failure.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_device_get(const struct iommu_device *device, struct iommu_device **copy);

/**
 * Gives a device's handle back. The device stays registered.
 *
 * @param device may be NULL; not one that a callback was handed.
 *
 * Context: waiting.
 */
void iommu_device_put(struct iommu_device *device);

/**
 * What a device's source calls it.
 *
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: any.
 */
enum iommu_status iommu_device_get_key(const struct iommu_device *device, struct iommu_device_key *key);

/**
 * What people call a device, in the caller's buffer.
 *
 * @param text may be NULL with a `size` of 0.
 * @return the name's length without its NUL. Where it is not below `size`, it was cut; 0 for a device that is NULL.
 *
 * Context: any.
 */
size_t iommu_device_name(const struct iommu_device *device,
                         char *text,
                         size_t size);

/**
 * A device's streams, canonical and without repetition, in the caller's array.
 *
 * @param streams may be NULL with a `room` of 0.
 * @param room how many fit.
 * @return how many there are; where that is more than `room`, only the first were written.
 *
 * Context: any.
 */
size_t iommu_device_streams(const struct iommu_device *device, struct iommu_stream *streams, size_t room);

/**
 * Enters a device: until `iommu_device_leave` a removal does not get past the point where the device's own registers may
 * not be touched any more. It must not be held over a callback, nor over a call of the library about the device.
 *
 * @param device stays the caller's, who keeps it until he has left.
 * @param inside is filled in, and is not moved or copied until he has left.
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_GONE` once a removal was asked for: nothing of the device may be touched.
 *
 * Context: any, interrupts included.
 */
enum iommu_status iommu_device_enter(const struct iommu_device *device,
                                     struct iommu_device_call *inside);

/**
 * Leaves a device that `iommu_device_enter` has entered, once.
 *
 * Context: any, interrupts included; whoever leaves last calls `wake`.
 */
void iommu_device_leave(struct iommu_device_call *inside);

/**
 * Lets a domain's tables translate a device's DMA. A quarantined device is drained, quiesced and reset first.
 *
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_GROUP_CONFLICT`, `IOMMU_STATUS_ALREADY_ASSIGNED`, `IOMMU_STATUS_DENIED`,
 * `IOMMU_STATUS_BUSY`, `IOMMU_STATUS_GONE`, `IOMMU_STATUS_DOMAIN_GONE`, and what the IOMMUs say: nothing is changed then,
 * and no register written. With `IOMMU_LEFT_QUARANTINED` the hardware or a hook failed after the first write.
 *
 * Context: waiting.
 */
enum iommu_status iommu_assign(const struct iommu_service *service,
                               const struct iommu_call *call,
                               const struct iommu_device *device,
                               const struct iommu_domain *domain,
                               struct iommu_error *error);

/**
 * `iommu_assign`, for all devices of the device's group at once.
 *
 * @return as for `iommu_assign`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_assign_group(const struct iommu_service *service,
                                     const struct iommu_call *call,
                                     const struct iommu_device *device,
                                     const struct iommu_domain *domain,
                                     struct iommu_error *error);

/**
 * Moves a device from the domain that owns it to another: it is in fault, drained, quiesced and reset in between.
 *
 * @return as for `iommu_assign`, and `IOMMU_STATUS_NOT_ASSIGNED`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_reassign(const struct iommu_service *service,
                                 const struct iommu_call *call,
                                 const struct iommu_device *device,
                                 const struct iommu_domain *domain,
                                 struct iommu_error *error);

/**
 * `iommu_reassign`, for all assigned devices of the device's group at once.
 *
 * @return as for `iommu_reassign`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_reassign_group(const struct iommu_service *service,
                                       const struct iommu_call *call,
                                       const struct iommu_device *device,
                                       const struct iommu_domain *domain,
                                       struct iommu_error *error);

/**
 * Takes a device from its domain: its streams fault, what was in flight has drained, and it was quiesced and reset.
 *
 * @param outcome says who keeps a shared stream translated, through which the device still reaches the domain. May be
 * NULL.
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_NOT_ASSIGNED`, `IOMMU_STATUS_BUSY`, `IOMMU_STATUS_GONE`,
 * `IOMMU_STATUS_NO_POWER`: nothing changed; `IOMMU_STATUS_SYNC_TIMEOUT`, `IOMMU_STATUS_HOOK_FAILED`: it is quarantined.
 *
 * Context: waiting.
 */
enum iommu_status iommu_deassign(const struct iommu_service *service,
                                 const struct iommu_call *call,
                                 const struct iommu_device *device,
                                 struct iommu_outcome *outcome,
                                 struct iommu_error *error);

/**
 * `iommu_deassign`, for all assigned devices of the device's group at once.
 *
 * @return as for `iommu_deassign`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_deassign_group(const struct iommu_service *service,
                                       const struct iommu_call *call,
                                       const struct iommu_device *device,
                                       struct iommu_outcome *outcome,
                                       struct iommu_error *error);

/**
 * Takes the group of a device from its domain, if it has one, and keeps it owned by nobody; its DMA ends where `place`
 * says. An assign drains, quiesces and resets it first.
 *
 * @param place NULL for faults.
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_BUSY`, `IOMMU_STATUS_GONE`, `IOMMU_STATUS_OUT_OF_MEMORY`,
 * `IOMMU_STATUS_NO_POWER`: nothing changed; others with `IOMMU_LEFT_QUARANTINED`: its DMA faults.
 *
 * Context: waiting.
 */
enum iommu_status iommu_quarantine_group(const struct iommu_service *service,
                                         const struct iommu_call *call,
                                         const struct iommu_device *device,
                                         const struct iommu_quarantine *place,
                                         struct iommu_error *error);

/**
 * Says whether `iommu_assign` would be refused now.
 *
 * @return what `iommu_assign` would say.
 *
 * Context: waiting. It writes no register, but to finish an earlier drain that keeps back all contexts there are.
 */
enum iommu_status iommu_test_assign(const struct iommu_service *service,
                                    const struct iommu_device *device,
                                    const struct iommu_domain *domain,
                                    struct iommu_error *error);

/**
 * Checks and plans an assign, and keeps the plan. Until it ends every other operation on the group gets
 * `IOMMU_STATUS_BUSY`, and a removal waits for it.
 *
 * @param reservation gets a handle that the caller ends with `iommu_reservation_commit` or `_abandon`; NULL is written
 * there on failure.
 * @return what `iommu_assign` would say: nothing is kept then.
 *
 * Context: waiting.
 */
enum iommu_status iommu_reserve(const struct iommu_service *service,
                                const struct iommu_device *device,
                                const struct iommu_domain *domain,
                                struct iommu_reservation **reservation,
                                struct iommu_error *error);

/**
 * Carries a reserved assign out.
 *
 * @param reservation is freed in every case.
 * @return `IOMMU_STATUS_OK`; what an IOMMU says when the hardware fails: the device is quarantined;
 * `IOMMU_STATUS_REMOVED` when a removal was asked for meanwhile.
 *
 * Context: waiting.
 */
enum iommu_status iommu_reservation_commit(struct iommu_reservation *reservation, struct iommu_error *error);

/**
 * Gives back what was reserved.
 *
 * @param reservation is freed in every case.
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_REMOVED` when a removal was asked for meanwhile: it is carried out now.
 *
 * Context: waiting.
 */
enum iommu_status iommu_reservation_abandon(struct iommu_reservation *reservation,
                                            struct iommu_error *error);

/**
 * Reads, clears and tells what faulted on a line of an SMMU, and says whether the line is to be masked.
 *
 * @param asked `IOMMU_LINE_GLOBAL`, or a context line counted from 0.
 * @param sink is called for each fault, without names, in the handler's context; it must not call the library. May be
 * NULL.
 * @param answer what to do next; may be NULL, and a storm goes on then.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: interrupt handlers: it takes no lock, allocates and frees nothing.
 */
enum iommu_status iommu_take_faults(const struct iommu_instance *instance,
                                    uint32_t asked,
                                    iommu_fault_sink sink,
                                    void *context,
                                    struct iommu_fault_answer *answer);

/**
 * Reads, clears, names and tells what faulted on a line of an SMMU, and says whether the line is to be masked.
 *
 * @param sink is called for each fault with no lock of the library held. May be NULL: events tell of them too.
 * @param answer what to do next; may be NULL, and a storm goes on then.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`.
 *
 * Context: waiting: the handler's bottom half.
 */
enum iommu_status iommu_handle_fault(const struct iommu_service *service,
                                     uint64_t iommu,
                                     uint32_t asked,
                                     iommu_fault_sink sink,
                                     void *context,
                                     struct iommu_fault_answer *answer,
                                     struct iommu_error *error);

/**
 * The worker's part of fault handling at an SMMU: quarantines the group of every device that has stormed since the last
 * call. Afterwards lines that were masked can be unmasked. To be called from time to time also without a storm: limits on
 * records count from one call to the next.
 *
 * @param place where their DMA ends; NULL for faults.
 * @param sink is called for each storm with no lock of the library held. May be NULL.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_tend_faults(const struct iommu_service *service,
                                    uint64_t iommu,
                                    const struct iommu_quarantine *place,
                                    void (*sink)(void *context, const struct iommu_storm *storm),
                                    void *context,
                                    struct iommu_error *error);

/**
 * Says what was counted instead of being reported.
 *
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: any.
 */
enum iommu_status iommu_get_fault_counts(const struct iommu_instance *instance,
                                         struct iommu_fault_counts *counts);

/**
 * Tells of the streams that no entry matched, with how often they came.
 *
 * @param sink must not call the library.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: any.
 */
enum iommu_status iommu_each_unknown_stream(const struct iommu_instance *instance,
                                            void (*sink)(void *context, uint32_t stream, uint32_t count),
                                            void *context);

/**
 * Reads a flattened device tree, version 16 or 17.
 *
 * @param blob the bytes, which stay the caller's, unchanged until the board is put.
 * @param size how many there are at most; those past the tree's own size are ignored.
 * @param lenient not 0: a bad node does not take the board away; it is not offered, and counted by
 * `iommu_board_refusals`.
 * @param board gets a handle that the caller owns until `iommu_board_put`; NULL is written there on failure.
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_BAD_DEVICE_TREE`: the sentence names the node; `IOMMU_STATUS_OUT_OF_MEMORY`.
 *
 * Context: waiting.
 */
enum iommu_status iommu_board_read(const void *blob,
                                   size_t size,
                                   uint32_t lenient,
                                   struct iommu_board **board,
                                   struct iommu_error *error);

/**
 * Gives a board back. What was made of it stays.
 *
 * @param board may be NULL.
 *
 * Context: waiting.
 */
void iommu_board_put(struct iommu_board *board);

/**
 * Counts the bad nodes that a lenient reading has left out.
 *
 * @return how many; 0 for NULL.
 *
 * Context: any.
 */
size_t iommu_board_refusals(const struct iommu_board *board);

/**
 * Why one of these nodes is left out, as a sentence in the caller's buffer.
 *
 * @param index below `iommu_board_refusals`.
 * @return the sentence's length without its NUL. Where it is not below `size`, it was cut; 0 where there is none.
 *
 * Context: any.
 */
size_t iommu_board_refusal(const struct iommu_board *board,
                           size_t index,
                           char *text,
                           size_t size);

/**
 * Counts a board's SMMUs, disabled ones too.
 *
 * @return how many; 0 for NULL.
 *
 * Context: any.
 */
size_t iommu_board_smmus(const struct iommu_board *board);

/**
 * What a board says of an SMMU.
 *
 * @param index below `iommu_board_smmus`.
 * @param empty_root see `iommu_smmu_config.empty_root`.
 * @param empty_root_size see there.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: any.
 */
enum iommu_status iommu_board_get_smmu(const struct iommu_board *board,
                                       size_t index,
                                       uint64_t empty_root,
                                       uint64_t empty_root_size,
                                       struct iommu_board_smmu *info,
                                       struct iommu_error *error);

/**
 * The path of an SMMU's node, in the caller's buffer.
 *
 * @return its length without its NUL. Where it is not below `size`, it was cut; 0 where there is no such SMMU.
 *
 * Context: any.
 */
size_t iommu_board_smmu_path(const struct iommu_board *board,
                             size_t index,
                             char *text,
                             size_t size);

/**
 * The registers of a further instance that is programmed alike.
 *
 * @param mirror below `iommu_board_smmu.mirror_count`.
 * @param base gets the CPU physical address.
 * @param size gets the bytes.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: any.
 */
enum iommu_status iommu_board_smmu_mirror(const struct iommu_board *board,
                                          size_t index,
                                          size_t mirror,
                                          uint64_t *base,
                                          uint64_t *size);

/**
 * An interrupt of an SMMU's node: the cells of its specifier, which mean what the interrupt controller's binding says.
 *
 * @param interrupt below `iommu_board_smmu.interrupt_count`, global ones first.
 * @param cells may be NULL with a `room` of 0.
 * @return how many cells there are; where that is more than `room`, only the first were written. 0 where there is none.
 *
 * Context: any.
 */
size_t iommu_board_smmu_interrupt(const struct iommu_board *board,
                                  size_t index,
                                  size_t interrupt,
                                  uint32_t *cells,
                                  size_t room);

/**
 * Counts a board's devices behind SMMUs, disabled ones too. Parents come before children.
 *
 * @return how many; 0 for NULL.
 *
 * Context: any.
 */
size_t iommu_board_devices(const struct iommu_board *board);

/**
 * What a board says of a device.
 *
 * @param index below `iommu_board_devices`.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: any.
 */
enum iommu_status iommu_board_get_device(const struct iommu_board *board,
                                         size_t index,
                                         struct iommu_board_device *info,
                                         struct iommu_error *error);

/**
 * The path of a device's node, in the caller's buffer.
 *
 * @return its length without its NUL. Where it is not below `size`, it was cut; 0 where there is no such device.
 *
 * Context: any.
 */
size_t iommu_board_device_path(const struct iommu_board *board,
                               size_t index,
                               char *text,
                               size_t size);

/**
 * A device's streams, in the caller's array.
 *
 * @param streams may be NULL with a `room` of 0.
 * @return how many there are; where that is more than `room`, only the first were written.
 *
 * Context: any.
 */
size_t iommu_board_device_streams(const struct iommu_board *board,
                                  size_t index,
                                  struct iommu_stream *streams,
                                  size_t room);

/**
 * Registers a device of a board: `iommu_add` with the node's key, path, streams, mark and parent. In the
 * order of their indices, devices find their parents registered.
 *
 * @param hooks what the source does for it; copied, NULL for nothing.
 * @param added gets a handle that the caller owns until `iommu_device_put`; NULL is written there on failure.
 * @return as for `iommu_add`; `IOMMU_STATUS_NOT_OFFERED` where it is disabled, or not confined by SMMUs alone;
 * `IOMMU_STATUS_PROVIDER_MISSING` where one of its SMMUs is not registered yet.
 *
 * Context: waiting.
 */
enum iommu_status iommu_board_add(const struct iommu_service *service,
                                  const struct iommu_call *call,
                                  const struct iommu_board *board,
                                  size_t index,
                                  const struct iommu_hooks *hooks,
                                  struct iommu_device **added,
                                  struct iommu_error *error);

/**
 * Counts what firmware reserves of devices' address spaces.
 *
 * @return how many ranges; 0 for NULL.
 *
 * Context: any.
 */
size_t iommu_board_reserved_ranges(const struct iommu_board *board);

/**
 * What firmware reserves.
 *
 * @param index below `iommu_board_reserved_ranges`.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: any.
 */
enum iommu_status iommu_board_get_reserved(const struct iommu_board *board,
                                           size_t index,
                                           struct iommu_board_reserved *range,
                                           struct iommu_error *error);

/**
 * Counts the nodes of a board that have an `iommu-map` to an SMMU.
 *
 * @return how many; 0 for NULL.
 *
 * Context: any.
 */
size_t iommu_board_bridges(const struct iommu_board *board);

/**
 * What a board says of a host bridge.
 *
 * @param index below `iommu_board_bridges`.
 * @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
 *
 * Context: any.
 */
enum iommu_status iommu_board_get_bridge(const struct iommu_board *board,
                                         size_t index,
                                         struct iommu_board_bridge *info,
                                         struct iommu_error *error);

/**
 * The stream that a requester ID below a host bridge has. A function has one for itself and for each alias (phantom
 * functions, bridges to conventional PCI), all of which belong to its `iommu_device_spec`.
 *
 * @param requester bus, device and function: `bus << 8 | device << 3 | function`.
 * @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_NO_STREAMS` for an ID that no entry maps to an SMMU: the sentence says why.
 *
 * Context: any.
 */
enum iommu_status iommu_board_requester_stream(const struct iommu_board *board,
                                               size_t index,
                                               uint16_t requester,
                                               struct iommu_stream *stream,
                                               struct iommu_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* IOMMU_ASSIGN_H */
