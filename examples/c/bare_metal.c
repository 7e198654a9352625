/*
 * What a hypervisor on bare metal writes: no C library, no operating system. It is compiled and linked, not run: there is
 * no board below it.
 */
#include "iommu_assign.h"

/* --- the platform --- */

static unsigned char heap[1u << 20];
static size_t used;
static uint64_t heap_lock;

static void lock(void *context, uint64_t *word)
{
    (void)context;
    while (__atomic_exchange_n(word, 1, __ATOMIC_ACQUIRE))
        continue;
}

static void unlock(void *context, uint64_t *word)
{
    (void)context;
    __atomic_store_n(word, 0, __ATOMIC_RELEASE);
}

/* Gives from one end to the other; what comes back last is used again. A real one has lists. */
static void *allocate(void *context, size_t size, size_t alignment)
{
    void *block = NULL;
    lock(context, &heap_lock);
    size_t start = used + (-((size_t)heap + used) & (alignment - 1));
    if (size <= sizeof heap && start <= sizeof heap - size) {
        block = heap + start;
        used = start + size;
    }
    unlock(context, &heap_lock);
    return block;
}

static void release(void *context, void *block, size_t size, size_t alignment)
{
    (void)alignment;
    lock(context, &heap_lock);
    if ((unsigned char *)block + size == heap + used)
        used -= size;
    unlock(context, &heap_lock);
}

static uint64_t now(void *context)
{
    uint64_t count, hertz;
    (void)context;
    __asm__ volatile("isb; mrs %0, cntpct_el0" : "=r"(count));
    __asm__("mrs %0, cntfrq_el0" : "=r"(hertz));
    return count / hertz * 1000000 + count % hertz * 1000000 / hertz;
}

static void stop(void *context, const char *text, size_t length)
{
    (void)context, (void)text, (void)length;
    for (;;)
        __asm__ volatile("wfe");
}

static const struct iommu_platform platform = {
    .size = sizeof platform, .version = IOMMU_ABI_VERSION, .allocate = allocate, .release = release,
    .lock = lock, .unlock = unlock, .now = now, .abort = stop,
};

/* --- boot --- */

static struct iommu_service *service;

/* Every SMMU of the board to fault, every device registered. Registers are mapped one to one. */
static enum iommu_status bring_up(const struct iommu_board *board, uint64_t zeroed_megabyte)
{
    for (size_t index = 0; index < iommu_board_smmus(board); index++) {
        struct iommu_board_smmu node;
        enum iommu_status status = iommu_board_get_smmu(board, index, zeroed_megabyte, 0x100000, &node, NULL);
        if (status != IOMMU_STATUS_OK || !node.enabled)
            continue;
        struct iommu_registers registers = {.base = (void *)node.config.base, .size = node.config.region_size};
        struct iommu_setup setup = {.registers = &registers, .register_count = 1};
        status = iommu_register(service, &node.config, &setup, NULL, NULL);
        if (status != IOMMU_STATUS_OK)
            return status;
    }
    for (size_t index = 0; index < iommu_board_devices(board); index++) {
        struct iommu_device *device;
        iommu_board_add(service, NULL, board, index, NULL, &device, NULL);
        iommu_device_put(device);
    }
    return IOMMU_STATUS_OK;
}

/* Called by the boot code, with a stack and the device tree that firmware has left. */
enum iommu_status start(const void *blob, size_t size, uint64_t zeroed_megabyte, const struct iommu_stage2 *guest_tables)
{
    struct iommu_board *board;
    struct iommu_domain *guest;
    struct iommu_device_info info;
    struct iommu_device *device;
    enum iommu_status status = iommu_init(&platform);
    if (status == IOMMU_STATUS_OK)
        status = iommu_service_new(NULL, NULL, &service, NULL);
    if (status == IOMMU_STATUS_OK)
        status = iommu_board_read(blob, size, 1, &board, NULL);
    if (status == IOMMU_STATUS_OK)
        status = bring_up(board, zeroed_megabyte);
    if (status == IOMMU_STATUS_OK)
        status = iommu_create_domain(service, "guest", guest_tables, &guest, NULL);
    if (status != IOMMU_STATUS_OK)
        return status;
    /* What firmware marked for passthrough goes to the one guest. */
    status = iommu_next_device(service, NULL, &info, &device);
    while (status == IOMMU_STATUS_OK) {
        if (info.passthrough)
            iommu_assign(service, NULL, device, guest, NULL);
        iommu_device_put(device);
        status = iommu_next_device(service, &info.key, &info, &device);
    }
    return IOMMU_STATUS_OK;
}

/* The handler of an SMMU's global line. */
bool global_fault(const struct iommu_instance *instance)
{
    struct iommu_fault_answer answer = {0};
    iommu_take_faults(instance, IOMMU_LINE_GLOBAL, NULL, NULL, &answer);
    return answer.mask;
}
