/*
 * Several CPUs at once, with the integrator's own lock and waiter: threads stand for CPUs. Each takes devices to guests
 * and back while another unplugs them; whoever meets a busy one waits. Afterwards nothing is left over.
 */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "iommu_assign.h"
#include "smmu.h"

enum { CPUS = 4, DEVICES = 3, ROUNDS = 150 };
#define BASE UINT64_C(0x12000000)

static atomic_uint failures;
static atomic_uint moved, removed, met; /* what happened */

#define EXPECT(condition) \
    do { \
        if (!(condition)) { \
            failures++; \
            printf("NOT MET (%s:%d): %s\n", __FILE__, __LINE__, #condition); \
        } \
    } while (0)

/* --- the platform --- */

static atomic_size_t blocks;
static _Thread_local unsigned held;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;
static uint64_t wakes;

static void *allocate(void *context, size_t size, size_t alignment)
{
    (void)context;
    EXPECT(held == 0);
    blocks++;
    return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

static void release(void *context, void *block, size_t size, size_t alignment)
{
    (void)context, (void)size, (void)alignment;
    EXPECT(held == 0);
    blocks--;
    free(block);
}

static void lock(void *context, uint64_t *word)
{
    (void)context;
    while (__atomic_exchange_n(word, 1, __ATOMIC_ACQUIRE))
        continue;
    held++;
}

static void unlock(void *context, uint64_t *word)
{
    (void)context;
    held--;
    __atomic_store_n(word, 0, __ATOMIC_RELEASE);
}

static void wake(void *context)
{
    (void)context;
    EXPECT(held == 0);
    pthread_mutex_lock(&mutex);
    wakes++;
    pthread_cond_broadcast(&woken);
    pthread_mutex_unlock(&mutex);
}

static uint64_t prepare(void *context)
{
    (void)context;
    pthread_mutex_lock(&mutex);
    uint64_t ticket = wakes;
    pthread_mutex_unlock(&mutex);
    return ticket;
}

/* Deadlines are seconds of the calendar, and long: to reach one is a failure. */
static bool wait_for(void *context, uint64_t ticket, uint64_t deadline)
{
    (void)context;
    struct timespec until = {.tv_sec = (time_t)deadline};
    bool in_time = true;
    met++;
    pthread_mutex_lock(&mutex);
    while (in_time && wakes == ticket)
        in_time = pthread_cond_timedwait(&woken, &mutex, &until) == 0;
    pthread_mutex_unlock(&mutex);
    return in_time;
}

static void stop(void *context, const char *text, size_t length)
{
    (void)context;
    fprintf(stderr, "%.*s\n", (int)length, text);
    abort();
}

/* --- the CPUs --- */

static struct iommu_service *service;
static struct iommu_domain *guests[2];

static struct iommu_device_key key_of(unsigned device)
{
    return (struct iommu_device_key){.source = IOMMU_SOURCE_DT, .lower = device};
}

/* A reset takes its time, and no lock is held: the others get on, and meet what is being reset. */
static const char *reset(void *context, const struct iommu_device *device, const struct iommu_chain *chain)
{
    static const struct timespec moment = {.tv_nsec = 20000};
    (void)context, (void)device, (void)chain;
    EXPECT(held == 0);
    nanosleep(&moment, NULL);
    return NULL;
}

static const struct iommu_hooks hooks = {.reset = reset};

/* Two streams each; the first two devices share one, and are a group. */
static enum iommu_status add(unsigned device, const struct iommu_call *call)
{
    static const char *const names[DEVICES] = {"/usb", "/usb-companion", "/dma"};
    struct iommu_stream streams[] = {
        {.iommu = BASE, .id = 0x10 + device},
        {.iommu = BASE, .id = device < 2 ? 0x20 : 0x21},
    };
    struct iommu_device_spec spec = {
        .key = key_of(device), .name = names[device], .streams = streams, .stream_count = 2,
        .flags = IOMMU_DEVICE_PASSTHROUGH, .hooks = &hooks,
    };
    struct iommu_device *added;
    enum iommu_status status = iommu_add(service, call, &spec, &added, NULL);
    iommu_device_put(added);
    return status;
}

static void *cpu(void *argument)
{
    unsigned number = *(const unsigned *)argument;
    struct iommu_call waiting = {.wait = 1, .deadline = (uint64_t)time(NULL) + 60};
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct iommu_device_key key = key_of((number + round) % DEVICES);
        struct iommu_device *device;
        struct iommu_error error;
        enum iommu_status status;
        if (number == 0 && round % 3 == 0) {
            /* This one unplugs, and plugs in again. */
            status = iommu_remove(service, &waiting, &key, NULL, &error);
            EXPECT(status == IOMMU_STATUS_OK);
            removed += status == IOMMU_STATUS_OK;
            do
                status = add((unsigned)key.lower, &waiting);
            while (status == IOMMU_STATUS_GROUP_CONFLICT); /* until its group-mate has no owner */
            EXPECT(status == IOMMU_STATUS_OK);
            continue;
        }
        if (iommu_find(service, &key, &device) != IOMMU_STATUS_OK)
            continue;
        status = iommu_assign(service, &waiting, device, guests[round % 2], &error);
        moved += status == IOMMU_STATUS_OK;
        if (status != IOMMU_STATUS_OK && status != IOMMU_STATUS_ALREADY_ASSIGNED && status != IOMMU_STATUS_GROUP_CONFLICT &&
            status != IOMMU_STATUS_GONE && status != IOMMU_STATUS_REMOVED) {
            failures++;
            printf("NOT MET: %s\n", error.text);
        }
        status = iommu_deassign_group(service, &waiting, device, NULL, &error);
        if (status != IOMMU_STATUS_OK && status != IOMMU_STATUS_NOT_ASSIGNED && status != IOMMU_STATUS_GONE &&
            status != IOMMU_STATUS_REMOVED) {
            failures++;
            printf("NOT MET: %s\n", error.text);
        }
        iommu_device_put(device);
    }
    return NULL;
}

int main(void)
{
    struct smmu smmu;
    struct iommu_platform platform = {
        .size = sizeof platform, .version = IOMMU_ABI_VERSION, .allocate = allocate, .release = release,
        .lock = lock, .unlock = unlock, .wake = wake, .prepare = prepare, .wait = wait_for, .abort = stop,
    };
    EXPECT(iommu_init(&platform) == IOMMU_STATUS_OK);
    EXPECT(iommu_service_new(NULL, NULL, &service, NULL) == IOMMU_STATUS_OK);
    EXPECT(smmu_power_up(&smmu, 0x40000, true));
    struct iommu_smmu_config config = {
        .base = BASE, .region_size = 0x40000, .empty_root = 0x10000, .empty_root_size = 0x1000,
        .architecture = IOMMU_SMMU_V2, .coherent = 1,
    };
    struct iommu_registers registers = smmu_registers(&smmu);
    struct iommu_setup setup = {.registers = &registers, .register_count = 1};
    struct iommu_stage2 stage2 = {
        .root = 0x20000, .ipa_bits = 39, .start_level = 1, .granule = IOMMU_GRANULE_4K, .output_bits = 40,
    };
    EXPECT(iommu_register(service, &config, &setup, NULL, NULL) == IOMMU_STATUS_OK);
    EXPECT(iommu_create_domain(service, "guest A", &stage2, &guests[0], NULL) == IOMMU_STATUS_OK);
    EXPECT(iommu_create_domain(service, "guest B", &stage2, &guests[1], NULL) == IOMMU_STATUS_OK);
    for (unsigned device = 0; device < DEVICES; device++)
        EXPECT(add(device, NULL) == IOMMU_STATUS_OK);

    pthread_t threads[CPUS];
    unsigned numbers[CPUS];
    for (unsigned number = 0; number < CPUS; number++) {
        numbers[number] = number;
        EXPECT(pthread_create(&threads[number], NULL, cpu, &numbers[number]) == 0);
    }
    for (unsigned number = 0; number < CPUS; number++)
        pthread_join(threads[number], NULL);

    size_t differences;
    EXPECT(iommu_audit(service, NULL, NULL, &differences) == IOMMU_STATUS_OK && differences == 0);
    for (unsigned device = 0; device < DEVICES; device++) {
        struct iommu_device_key key = key_of(device);
        EXPECT(iommu_remove(service, NULL, &key, NULL, NULL) == IOMMU_STATUS_OK);
    }
    for (unsigned guest = 0; guest < 2; guest++) {
        EXPECT(iommu_destroy_domain(service, NULL, guests[guest], NULL) == IOMMU_STATUS_OK);
        iommu_domain_put(guests[guest]);
    }
    EXPECT(iommu_unregister(service, NULL, BASE, NULL) == IOMMU_STATUS_OK);
    EXPECT(iommu_service_put(service) == IOMMU_STATUS_OK);
    smmu_power_down(&smmu);
    EXPECT(blocks == 0 && moved > 0 && removed > 0 && met > 0);
    printf("%u CPUs: %u assigns, %u removals, %u waits; %u expectations not met\n", CPUS, moved, removed, met, failures);
    return failures != 0;
}
