/*
 * A hypervisor that has no memory left for an object of fixed size: the library ends in its `abort`, and not elsewhere.
 * For the library without `std`; with it the host's runtime aborts.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "iommu_assign.h"

static unsigned left = 1;

static void *allocate(void *context, size_t size, size_t alignment)
{
    (void)context;
    return left-- ? aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment) : NULL;
}

static void release(void *context, void *block, size_t size, size_t alignment)
{
    (void)context, (void)size, (void)alignment;
    free(block);
}

static void lock(void *context, uint64_t *word)
{
    (void)context, (void)word;
}

static void stop(void *context, const char *text, size_t length)
{
    (void)context;
    printf("stopped: %s\n", text);
    exit(strlen(text) == length && strstr(text, "alloc") ? EXIT_SUCCESS : EXIT_FAILURE);
}

static void event(void *context, const struct iommu_event *told)
{
    (void)context, (void)told;
}

int main(void)
{
    struct iommu_platform platform = {
        .size = sizeof platform, .version = IOMMU_ABI_VERSION, .allocate = allocate, .release = release,
        .lock = lock, .unlock = lock, .abort = stop,
    };
    struct iommu_events events = {.event = event};
    struct iommu_service *service;
    if (iommu_init(&platform) == IOMMU_STATUS_OK)
        iommu_service_new(NULL, &events, &service, NULL);
    printf("NOT MET: it went on\n");
    return EXIT_FAILURE;
}
