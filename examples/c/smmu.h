/*
 * A mock of an SMMUv2: a register file and what DMA makes of it, just enough to see what the library programs. It stands
 * for hardware in this example; a hypervisor hands the library mapped registers instead.
 */
#ifndef SMMU_H
#define SMMU_H

#include <stdbool.h>
#include <stdint.h>

#include "iommu_assign.h"

/* Memory as SMMUs see it: physical addresses from 0 on. */
#define MEMORY_SIZE 0x100000u
extern uint8_t memory[MEMORY_SIZE];

/* One instance: 16 entries, 4 context banks. */
struct smmu {
    uint32_t *words;
    uint32_t size;
    uint32_t banks; /* offset of context bank 0 */
    bool stuck;     /* no sync completes */
    _Atomic unsigned writes;
    _Atomic unsigned syncs; /* completed ones */
};

/* What became of a transaction. */
enum outcome { DONE, UNKNOWN_STREAM, BLOCKED, NOT_MAPPED, WENT_AROUND };

/* Powers up `size` bytes of registers; entries hold what was left there. */
bool smmu_power_up(struct smmu *smmu, uint32_t size, bool coherent);
void smmu_power_down(struct smmu *smmu);
struct iommu_registers smmu_registers(struct smmu *smmu);

/* A device reads a byte, or writes it. */
enum outcome smmu_dma(struct smmu *smmu, uint32_t stream, uint64_t address, bool write, uint8_t *byte);

#endif
