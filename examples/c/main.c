/*
 * The C interface in use: a board with two SMMUs, two guests, a fault, a hot removal. What is expected is checked; the
 * exit status says whether all of it was met.
 */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "board.h"
#include "iommu_assign.h"
#include "smmu.h"

static unsigned failures;

#define EXPECT(condition) \
    do { \
        if (!(condition)) { \
            failures++; \
            printf("NOT MET (%s:%d): %s\n", __FILE__, __LINE__, #condition); \
        } \
    } while (0)

/* What the last call said. */
static struct iommu_error error;

static void expect_status(enum iommu_status found, enum iommu_status wanted, int line)
{
    char name[64];
    iommu_status_describe(found, name, sizeof name);
    if (found != IOMMU_STATUS_OK && found == wanted)
        printf("  refused: %s\n", error.status == found ? error.text : name);
    if (found == wanted)
        return;
    failures++;
    printf("NOT MET (%s:%d): status %u (%s), not %u; %s\n", __FILE__, line, found, name, wanted, error.text);
}

#define EXPECT_STATUS(call, wanted) expect_status(call, wanted, __LINE__)
#define EXPECT_OK(call) EXPECT_STATUS(call, IOMMU_STATUS_OK)

/* --- the platform: what a hypervisor supplies --- */

static struct {
    size_t blocks, bytes, most; /* of memory that is given out */
    unsigned locked; /* how many locks are held */
    bool refuses; /* to give memory */
    unsigned lines; /* of log */
    uint64_t wakes;
} host;

static void *allocate(void *context, size_t size, size_t alignment)
{
    (void)context;
    EXPECT(host.locked == 0);
    if (host.refuses)
        return NULL;
    void *block = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    if (block) {
        host.blocks++;
        host.bytes += size;
        host.most = host.bytes > host.most ? host.bytes : host.most;
    }
    return block;
}

static void release(void *context, void *block, size_t size, size_t alignment)
{
    (void)context, (void)alignment;
    EXPECT(host.locked == 0);
    host.blocks--;
    host.bytes -= size;
    free(block);
}

static void lock(void *context, uint64_t *word)
{
    (void)context;
    while (__atomic_exchange_n(word, 1, __ATOMIC_ACQUIRE))
        continue;
    host.locked++;
}

static void unlock(void *context, uint64_t *word)
{
    (void)context;
    host.locked--;
    __atomic_store_n(word, 0, __ATOMIC_RELEASE);
}

static void barrier(void *context)
{
    (void)context;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static uint64_t now(void *context)
{
    (void)context;
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_nsec / 1000;
}

static void wake(void *context)
{
    (void)context;
    host.wakes++;
}

static uint64_t prepare(void *context)
{
    (void)context;
    return host.wakes;
}

/* There is one CPU: nobody will wake it while it waits. */
static bool wait_for(void *context, uint64_t ticket, uint64_t deadline)
{
    while (host.wakes == ticket)
        if (now(context) >= deadline)
            return false;
    return true;
}

/* What fails is logged too; here it is printed where it is expected. */
static void count_log(void *context, uint32_t level, const char *text, size_t length)
{
    (void)context;
    EXPECT(level >= 1 && strlen(text) == length);
    host.lines++;
}

static void stop(void *context, const char *text, size_t length)
{
    (void)context;
    fprintf(stderr, "%.*s\n", (int)length, text);
    abort();
}

static void platform(void)
{
    struct iommu_platform given = {
        .size = sizeof given, .version = IOMMU_ABI_VERSION, .allocate = allocate, .release = release,
        .lock = lock, .unlock = unlock, .barrier = barrier, .now = now, .wake = wake, .prepare = prepare,
        .wait = wait_for, .log = count_log, .abort = stop,
    };
    struct iommu_service *service;

    EXPECT(iommu_service_new(NULL, NULL, &service, &error) == IOMMU_STATUS_NOT_INITIALISED);
    EXPECT(iommu_init(NULL) == IOMMU_STATUS_INVALID_ARGUMENT);
    given.version++;
    EXPECT(iommu_init(&given) == IOMMU_STATUS_INVALID_ARGUMENT);
    given.version--;
    given.lock = NULL;
    EXPECT(iommu_init(&given) == IOMMU_STATUS_INVALID_ARGUMENT);
    given.lock = lock;
    EXPECT(iommu_init(&given) == IOMMU_STATUS_OK);
    EXPECT(iommu_init(&given) == IOMMU_STATUS_ALREADY_INITIALISED);
}

/* --- memory: two guests' tables, each with one page --- */

enum { EMPTY_ROOT = 0x10000, TABLES = 0x20000, PAGES = 0x30000 };
#define GUEST_PAGE UINT64_C(0x80001000)

static void put(uint64_t at, uint64_t entry)
{
    memcpy(memory + at, &entry, sizeof entry);
}

/* Tables of guest 0 or 1 from level 1 on: GUEST_PAGE is a page with that guest's letter. */
static struct iommu_stage2 tables(unsigned guest)
{
    uint64_t root = TABLES + guest * 0x3000, page = PAGES + guest * 0x1000;
    put(root + (GUEST_PAGE >> 30 & 0x1ff) * 8, (root + 0x1000) | 3);
    put(root + 0x1000 + (GUEST_PAGE >> 21 & 0x1ff) * 8, (root + 0x2000) | 3);
    put(root + 0x2000 + (GUEST_PAGE >> 12 & 0x1ff) * 8, page | 1u << 10 | 3u << 6 | 3);
    memory[page] = (uint8_t)('A' + guest);
    return (struct iommu_stage2){
        .root = root, .ipa_bits = 39, .start_level = 1, .granule = IOMMU_GRANULE_4K, .output_bits = 40,
    };
}

/* --- callbacks --- */

static struct {
    unsigned events, assigned, removed, named, in_handler, quiesced, reset, released;
    struct iommu_service *service;
} seen;

static void event(void *context, const struct iommu_event *told)
{
    (void)context;
    seen.events++;
    seen.assigned += told->kind == IOMMU_EVENT_KIND_ASSIGNED;
    seen.removed += told->kind == IOMMU_EVENT_KIND_REMOVED;
    printf("  %s\n", told->text);
}

static const char *quiesce(void *context, const struct iommu_device *device, const struct iommu_chain *chain)
{
    (void)context;
    /* From in here the library may be called; to wait for what this very operation holds could never end. */
    struct iommu_call from_here = {.chain = chain, .wait = 1, .deadline = IOMMU_NO_DEADLINE};
    seen.quiesced++;
    EXPECT_STATUS(iommu_deassign(seen.service, &from_here, device, NULL, &error), IOMMU_STATUS_WOULD_DEADLOCK);
    return NULL;
}

static const char *reset(void *context, const struct iommu_device *device, const struct iommu_chain *chain)
{
    (void)device, (void)chain;
    seen.reset++;
    return *(const bool *)context ? "it does not answer" : NULL;
}

static void released(void *context, const struct iommu_device *device, const struct iommu_chain *chain)
{
    (void)context, (void)device, (void)chain;
    seen.released++;
}

static void fault(void *context, const struct iommu_fault *told)
{
    struct iommu_fault *kept = context;
    *kept = *told;
    EXPECT(told->has_stream && told->has_address);
    seen.in_handler += told->device == NULL;
    if (told->device) {
        seen.named++;
        printf("  fault of %s in %s: stream %#x, address %#" PRIx64 "\n", told->device, told->domain, told->stream, told->address);
    }
}

static void line_of_text(void *context, const char *text, size_t length)
{
    (void)context;
    printf("%.*s", (int)length, text);
}

static void finding(void *context, const char *text)
{
    (void)context;
    printf("  audit: %s\n", text);
}

static void usage(void *context, const struct iommu_usage *told)
{
    unsigned *banks = context;
    *banks += told->kind == IOMMU_RESOURCE_BANK && told->domain;
}

static void unknown_stream(void *context, uint32_t stream, uint32_t count)
{
    EXPECT(stream == 0x800);
    *(unsigned *)context += count;
}

static void storm(void *context, const struct iommu_storm *told)
{
    char name[64];
    unsigned *storms = context;
    EXPECT(told->device && !told->error && !told->silenced && told->has_stream);
    iommu_device_name(told->device, name, sizeof name);
    printf("  a storm of %s in %s: %u faults\n", name, told->domain, told->faults);
    ++*storms;
}

/* --- the board --- */

static struct smmu media, io;
static struct iommu_board *board;

/* A PCI function that its source takes along when it goes. */
static void source_goes(struct iommu_service *service)
{
    struct iommu_source *source;
    struct iommu_device *device;
    struct iommu_stream stream;
    EXPECT_OK(iommu_board_requester_stream(board, 0, 0x0008, &stream, &error));
    EXPECT(stream.iommu == 0x14000000 && stream.id == 0x88);
    EXPECT_OK(iommu_source_new(service, &source));
    struct iommu_device_spec spec = {
        .key = {.source = IOMMU_SOURCE_PCI, .lower = 0x0008}, .name = "0000:00:01.0", .streams = &stream, .stream_count = 1,
        .flags = IOMMU_DEVICE_LAZY, .source = source,
    };
    EXPECT_OK(iommu_add(service, NULL, &spec, &device, &error));
    struct iommu_stream streams[2];
    EXPECT(iommu_device_streams(device, streams, 2) == 1 && streams[0].id == stream.id);
    iommu_source_put(source);
    EXPECT_OK(iommu_reap(service));
    EXPECT_STATUS(iommu_remove(service, NULL, &spec.key, NULL, &error), IOMMU_STATUS_NOT_FOUND);
    iommu_device_put(device);
}

static struct {
    bool there;
    int users;
} power_supply = {.there = true};

static bool get_if_on(void *context)
{
    (void)context;
    power_supply.users += power_supply.there;
    return power_supply.there;
}

static const char *get(void *context)
{
    return get_if_on(context) ? NULL : "it is switched off";
}

static void put_back(void *context)
{
    (void)context;
    power_supply.users--;
}

static void register_smmus(struct iommu_service *service)
{
    for (size_t index = 0; index < iommu_board_smmus(board); index++) {
        struct iommu_board_smmu node;
        struct iommu_notes notes;
        char path[64];
        EXPECT_OK(iommu_board_get_smmu(board, index, EMPTY_ROOT, 0x1000, &node, &error));
        EXPECT(iommu_board_smmu_path(board, index, path, sizeof path) == node.path_length);
        node.config.timeout = 2000; /* a mock answers at once */
        struct smmu *mock = node.config.base == 0x12000000 ? &media : node.config.base == 0x14000000 ? &io : NULL;
        if (!mock) {
            printf("  %s: left out\n", path);
            continue;
        }
        EXPECT(smmu_power_up(mock, (uint32_t)node.config.region_size, node.config.coherent));
        EXPECT(smmu_dma(mock, 0x800, 0, false, &(uint8_t){0}) == WENT_AROUND);
        struct iommu_registers registers = smmu_registers(mock);
        struct iommu_power power = {.get = get, .get_if_on = get_if_on, .put = put_back};
        struct iommu_setup setup = {.registers = &registers, .register_count = 1, .power = &power};
        power_supply.there = false;
        EXPECT_STATUS(iommu_register(service, &node.config, &setup, &notes, &error), IOMMU_STATUS_NO_POWER);
        power_supply.there = true;
        EXPECT_OK(iommu_register(service, &node.config, &setup, &notes, &error));
        EXPECT(notes.register_bytes == 0 && notes.coherency_differs == false);
        printf("  %s: %u register writes to bring every stream to fault\n", path, mock->writes);
        unsigned writes = mock->writes;
        EXPECT_STATUS(iommu_register(service, &node.config, &setup, NULL, &error), IOMMU_STATUS_ALREADY_REGISTERED);
        EXPECT(mock->writes == writes);
        EXPECT(smmu_dma(mock, 0x800, 0, false, &(uint8_t){0}) == UNKNOWN_STREAM);
        struct iommu_instance *instance;
        EXPECT_OK(iommu_instance_find(service, node.config.base, &instance));
        struct iommu_fault kept;
        EXPECT_OK(iommu_take_faults(instance, IOMMU_LINE_GLOBAL, fault, &kept, NULL));
        EXPECT(kept.cause == IOMMU_FAULT_CAUSE_UNKNOWN_STREAM && kept.stream == 0x800);
        unsigned unknown = 0;
        struct iommu_fault_counts counts;
        EXPECT_OK(iommu_each_unknown_stream(instance, unknown_stream, &unknown));
        EXPECT_OK(iommu_get_fault_counts(instance, &counts));
        EXPECT(unknown == 1 && counts.lost == 0);
        iommu_instance_put(instance);
        EXPECT_OK(iommu_enable_reports(service, node.config.base, &error));
    }
}

static unsigned add_devices(struct iommu_service *service, const struct iommu_hooks *hooks)
{
    unsigned added = 0;
    for (size_t index = 0; index < iommu_board_devices(board); index++) {
        struct iommu_board_device node;
        struct iommu_device *device;
        EXPECT_OK(iommu_board_get_device(board, index, &node, &error));
        enum iommu_status status = iommu_board_add(service, NULL, board, index, hooks, &device, &error);
        if (status == IOMMU_STATUS_OK)
            added++;
        else
            EXPECT_STATUS(status, node.offered ? IOMMU_STATUS_PROVIDER_MISSING : IOMMU_STATUS_NOT_OFFERED);
        EXPECT((device == NULL) == (status != IOMMU_STATUS_OK));
        iommu_device_put(device);
    }
    return added;
}

/* The handle of the device at a path; its caller puts it. */
static struct iommu_device *find(struct iommu_service *service, const char *path)
{
    struct iommu_device_info info;
    struct iommu_device *device = NULL;
    char name[64];
    for (enum iommu_status status = iommu_next_device(service, NULL, &info, &device); status == IOMMU_STATUS_OK;
         status = iommu_next_device(service, &info.key, &info, &device)) {
        if (iommu_device_name(device, name, sizeof name) == strlen(path) && !strcmp(name, path))
            return device;
        iommu_device_put(device);
    }
    return NULL;
}

static struct iommu_device_info info_of(struct iommu_service *service, const struct iommu_device *device)
{
    struct iommu_device_info info = {0};
    struct iommu_device_key key, wanted;
    EXPECT_OK(iommu_device_get_key(device, &wanted));
    for (enum iommu_status status = iommu_next_device(service, NULL, &info, NULL); status == IOMMU_STATUS_OK;
         status = iommu_next_device(service, &key, &info, NULL)) {
        key = info.key;
        if (!memcmp(&key.upper, &wanted.upper, 16) && key.source == wanted.source)
            break;
    }
    return info;
}

/* What a device reads there: a letter, or '-' where its transaction does not get through. */
static char reads(struct smmu *smmu, uint32_t stream, uint64_t address)
{
    uint8_t byte = 0;
    enum outcome outcome = smmu_dma(smmu, stream, address, false, &byte);
    EXPECT(outcome != WENT_AROUND);
    return outcome == DONE ? (char)byte : '-';
}

int main(void)
{
    struct iommu_service *service;
    struct iommu_domain *guests[2];
    bool broken = false;
    struct iommu_hooks hooks = {.context = &broken, .quiesce = quiesce, .reset = reset, .release = released};
    struct iommu_events events = {.event = event};
    struct iommu_outcome outcome;
    struct iommu_fault_answer answer;
    struct iommu_fault kept;
    size_t differences;
    unsigned banks = 0;

    setvbuf(stdout, NULL, _IONBF, 0);
    platform();
    size_t before = host.blocks;

    printf("The board: every stream of its SMMUs to fault, its devices registered\n");
    EXPECT_OK(iommu_service_new(NULL, &events, &service, &error));
    seen.service = service;
    EXPECT_STATUS(iommu_board_read(board_blob, 100, 0, &board, &error), IOMMU_STATUS_BAD_DEVICE_TREE);
    EXPECT_OK(iommu_board_read(board_blob, board_blob_size, 0, &board, &error));
    register_smmus(service);
    printf("  %u devices\n", add_devices(service, &hooks));
    source_goes(service);

    printf("Two guests\n");
    for (unsigned guest = 0; guest < 2; guest++) {
        struct iommu_stage2 stage2 = tables(guest);
        EXPECT_OK(iommu_create_domain(service, guest ? "guest B" : "guest A", &stage2, &guests[guest], &error));
    }
    struct iommu_device *display = find(service, "/soc/display@20000000");
    struct iommu_device *ethernet = find(service, "/soc/ethernet@24010000");
    struct iommu_device *unmarked = find(service, "/soc/ethernet@24000000");
    struct iommu_device *dma = find(service, "/soc/dma-controller@22000000"), *crypto = find(service, "/soc/crypto@22010000");
    EXPECT(display && ethernet && unmarked && dma && crypto);
    EXPECT_OK(iommu_test_assign(service, display, guests[0], &error));
    EXPECT_OK(iommu_assign(service, NULL, display, guests[0], &error));
    EXPECT_OK(iommu_assign(service, NULL, ethernet, guests[1], &error));
    EXPECT_STATUS(iommu_assign(service, NULL, unmarked, guests[1], &error), IOMMU_STATUS_DENIED);
    EXPECT_OK(iommu_assign(service, NULL, dma, guests[0], &error));
    EXPECT_STATUS(iommu_assign(service, NULL, crypto, guests[1], &error), IOMMU_STATUS_GROUP_CONFLICT);
    EXPECT(error.blame == IOMMU_BLAME_CALLER && error.left == IOMMU_LEFT_UNCHANGED);
    EXPECT_STATUS(iommu_assign(service, NULL, NULL, guests[1], &error), IOMMU_STATUS_INVALID_ARGUMENT);
    EXPECT(reads(&media, 0x801, GUEST_PAGE) == 'A' && reads(&io, 0x21, GUEST_PAGE) == 'B');
    EXPECT(reads(&io, 0x20, GUEST_PAGE) == '-');
    EXPECT(info_of(service, display).state == IOMMU_DEVICE_STATE_ASSIGNED);
    EXPECT(info_of(service, display).domain == iommu_domain_id(guests[0]));
    EXPECT_OK(iommu_write_tree(service, line_of_text, NULL));

    struct iommu_device *nothing = display;
    struct iommu_device_key key;
    EXPECT_OK(iommu_device_get_key(display, &key));
    host.refuses = true;
    EXPECT_STATUS(iommu_find(service, &key, &nothing), IOMMU_STATUS_OUT_OF_MEMORY);
    host.refuses = false;
    EXPECT(nothing == NULL);

    printf("A fault\n");
    EXPECT(reads(&media, 0x800, 0x40000000) == '-');
    EXPECT_OK(iommu_handle_fault(service, 0x12000000, 0, fault, &kept, &answer, &error));
    EXPECT(kept.cause == IOMMU_FAULT_CAUSE_TRANSLATION && kept.address == 0x40000000 && kept.bank >= 0 && !answer.mask);
    EXPECT_OK(iommu_tend_faults(service, 0x12000000, NULL, NULL, NULL, &error));

    printf("A storm\n");
    struct iommu_device *gpu = find(service, "/soc/gpu@21000000");
    struct iommu_quarantine silence = {
        .kind = IOMMU_QUARANTINE_SILENCE,
        .space = {.root = EMPTY_ROOT, .ipa_bits = 39, .start_level = 1, .granule = IOMMU_GRANULE_4K, .output_bits = 40},
    };
    struct iommu_instance *instance;
    unsigned storms = 0, told = 0;
    EXPECT_OK(iommu_instance_find(service, 0x12000000, &instance));
    EXPECT_OK(iommu_assign(service, NULL, gpu, guests[1], &error));
    for (answer.mask = false; !answer.mask && told < 1000; told++) {
        EXPECT(reads(&media, 0x900, 0) == '-');
        EXPECT_OK(iommu_take_faults(instance, kept.bank + 1, NULL, NULL, &answer));
        if (!answer.mask)
            EXPECT_OK(iommu_take_faults(instance, kept.bank, NULL, NULL, &answer));
    }
    printf("  the handler is to mask its line after %u faults\n", told);
    EXPECT_OK(iommu_tend_faults(service, 0x12000000, &silence, storm, &storms, &error));
    EXPECT(storms == 1 && info_of(service, gpu).state == IOMMU_DEVICE_STATE_QUARANTINED);
    iommu_device_put(gpu);

    printf("A page is taken from guest A\n");
    struct iommu_flush_range range = {.start = GUEST_PAGE, .size = 0x1000, .leaf = 0x1000};
    unsigned syncs = media.syncs;
    put(TABLES + 0x2000 + (GUEST_PAGE >> 12 & 0x1ff) * 8, 0);
    EXPECT_OK(iommu_flush_range(service, guests[0], &range, &error));
    EXPECT(media.syncs > syncs && reads(&media, 0x801, GUEST_PAGE) == '-');
    range.leaf = 5;
    EXPECT_STATUS(iommu_flush_range(service, guests[0], &range, &error), IOMMU_STATUS_INVALID_ARGUMENT);
    EXPECT_STATUS(iommu_flush_range_in_interrupt(service, guests[0], &range), IOMMU_STATUS_NOT_SUPPLIED);

    printf("The display moves to guest B\n");
    EXPECT_OK(iommu_reassign(service, NULL, display, guests[1], &error));
    EXPECT(seen.quiesced == 1 && seen.reset == 1 && reads(&media, 0x801, GUEST_PAGE) == 'B');

    printf("Its reset fails\n");
    broken = true;
    EXPECT_STATUS(iommu_deassign(service, NULL, display, &outcome, &error), IOMMU_STATUS_HOOK_FAILED);
    EXPECT(error.left == IOMMU_LEFT_QUARANTINED && reads(&media, 0x801, GUEST_PAGE) == '-');
    EXPECT(info_of(service, display).lacks_reset);
    broken = false;

    printf("Somebody has reserved it\n");
    struct iommu_reservation *reservation;
    EXPECT_OK(iommu_reserve(service, display, guests[0], &reservation, &error));
    EXPECT_OK(iommu_reservation_abandon(reservation, &error));
    struct iommu_call waiting = {.wait = 1, .deadline = now(NULL) + 1000};
    EXPECT_OK(iommu_reserve(service, display, guests[1], &reservation, &error));
    EXPECT_STATUS(iommu_assign(service, NULL, display, guests[0], &error), IOMMU_STATUS_BUSY);
    EXPECT_STATUS(iommu_assign(service, &waiting, display, guests[0], &error), IOMMU_STATUS_TIMED_OUT);
    EXPECT_STATUS(iommu_service_put(service), IOMMU_STATUS_IN_USE);
    EXPECT_OK(iommu_reservation_commit(reservation, &error));
    EXPECT(reads(&media, 0x801, GUEST_PAGE) == 'B');

    printf("An SMMU sleeps, and loses its registers\n");
    EXPECT_OK(iommu_suspend(service, 0x12000000, &error));
    power_supply.there = false;
    uint32_t size = media.size;
    smmu_power_down(&media);
    EXPECT(smmu_power_up(&media, size, true));
    EXPECT_STATUS(iommu_resume(service, 0x12000000, &error), IOMMU_STATUS_NO_POWER);
    power_supply.there = true;
    EXPECT_OK(iommu_resume(service, 0x12000000, &error));
    EXPECT(reads(&media, 0x801, GUEST_PAGE) == 'B');

    printf("The crypto engine is kept from everybody, and with it what shares its streams\n");
    EXPECT_OK(iommu_quarantine_group(service, NULL, crypto, NULL, &error));
    EXPECT(reads(&media, 0x704, GUEST_PAGE) == '-' && info_of(service, dma).lacks_reset);
    EXPECT_OK(iommu_assign_group(service, NULL, dma, guests[1], &error));
    EXPECT_OK(iommu_reassign_group(service, NULL, dma, guests[0], &error));

    printf("The ethernet is unplugged while guest B has it\n");
    struct iommu_device_call inside;
    EXPECT_OK(iommu_device_get_key(ethernet, &key));
    EXPECT_OK(iommu_device_enter(ethernet, &inside));
    EXPECT_STATUS(iommu_remove(service, NULL, &key, &outcome, &error), IOMMU_STATUS_STILL_IN_USE);
    EXPECT(error.left == IOMMU_LEFT_GOING && reads(&io, 0x21, GUEST_PAGE) == '-');
    iommu_device_leave(&inside);
    EXPECT_OK(iommu_remove(service, NULL, &key, &outcome, &error));
    EXPECT(outcome.removal == IOMMU_REMOVAL_DONE && outcome.count == 0 && seen.removed == 2 && seen.released == 1);
    EXPECT_STATUS(iommu_assign(service, NULL, ethernet, guests[1], &error), IOMMU_STATUS_GONE);
    EXPECT(find(service, "/soc/ethernet@24010000") == NULL);

    printf("The codec goes, and what stands behind it\n");
    struct iommu_device *codec = find(service, "/soc/video-codec@20200000");
    EXPECT_OK(iommu_device_get_key(codec, &key));
    EXPECT_STATUS(iommu_remove(service, NULL, &key, &outcome, &error), IOMMU_STATUS_HAS_CHILDREN);
    EXPECT_OK(iommu_remove_tree(service, NULL, &key, &outcome, &error));
    EXPECT(seen.removed == 4 && find(service, "/soc/video-codec@20200000/video-firmware") == NULL);
    iommu_device_put(codec);

    printf("What is there, against what is believed\n");
    EXPECT_OK(iommu_audit(service, finding, NULL, &differences));
    EXPECT(differences == 0);
    EXPECT_OK(iommu_each_usage(service, 0x12000000, usage, &banks));
    EXPECT(banks > 0);
    media.words[0xc00 / 4] ^= 1u << 17; /* somebody else writes an S2CR */
    EXPECT_OK(iommu_audit(service, finding, NULL, &differences));
    EXPECT(differences == 1);
    media.words[0xc00 / 4] ^= 1u << 17;

    printf("The end\n");
    EXPECT_STATUS(iommu_destroy_domain(service, NULL, guests[0], &error), IOMMU_STATUS_IN_USE);
    EXPECT_OK(iommu_deassign_group(service, NULL, dma, &outcome, &error));
    EXPECT_OK(iommu_destroy_domain(service, NULL, guests[0], &error));
    struct iommu_tables *held;
    EXPECT_STATUS(iommu_retire_domain(service, guests[1], &held, &error), IOMMU_STATUS_IN_USE);

    printf("An SMMU does not answer: the tables of guest B are not free yet\n");
    media.stuck = true;
    EXPECT_STATUS(iommu_deassign(service, NULL, display, &outcome, &error), IOMMU_STATUS_SYNC_TIMEOUT);
    EXPECT(error.blame == IOMMU_BLAME_HARDWARE && info_of(service, display).lacks_drain);
    EXPECT_STATUS(iommu_destroy_domain(service, NULL, guests[1], &error), IOMMU_STATUS_SYNC_TIMEOUT);
    EXPECT_OK(iommu_retire_domain(service, guests[1], &held, &error));
    EXPECT(held != NULL);
    EXPECT_STATUS(iommu_tables_redeem(&held, &error), IOMMU_STATUS_SYNC_TIMEOUT);
    EXPECT(held != NULL);
    media.stuck = false;
    EXPECT_OK(iommu_tables_redeem(&held, &error));
    EXPECT(held == NULL);
    EXPECT_STATUS(iommu_assign(service, NULL, display, guests[1], &error), IOMMU_STATUS_DOMAIN_GONE);
    EXPECT_STATUS(iommu_unregister(service, NULL, 0x14000000, &error), IOMMU_STATUS_IN_USE);
    EXPECT_OK(iommu_force_unregister(service, 0x14000000, &error));
    EXPECT_STATUS(iommu_deassign(service, NULL, unmarked, NULL, &error), IOMMU_STATUS_NOT_ASSIGNED);
    struct iommu_instance *none;
    EXPECT_STATUS(iommu_instance_find(service, 0x14000000, &none), IOMMU_STATUS_NOT_FOUND);
    EXPECT(none == NULL);
    EXPECT_OK(iommu_shutdown(service, &error));
    EXPECT_STATUS(iommu_crash(instance), IOMMU_STATUS_OK);
    iommu_instance_put(instance);
    EXPECT(reads(&media, 0x801, GUEST_PAGE) == '-');
    iommu_device_put(display);
    iommu_device_put(ethernet);
    iommu_device_put(unmarked);
    iommu_device_put(dma);
    iommu_device_put(crypto);
    iommu_domain_put(guests[0]);
    iommu_domain_put(guests[1]);
    EXPECT_OK(iommu_service_put(service));
    iommu_board_put(board);
    EXPECT(host.blocks == before && host.locked == 0 && power_supply.users == 0);
    smmu_power_down(&media);
    smmu_power_down(&io);
    printf("%u expectations not met; at most %zu bytes were used, %u lines were logged\n", failures, host.most, host.lines);
    return failures != 0;
}
