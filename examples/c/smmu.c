#include "smmu.h"

#include <stdlib.h>
#include <string.h>

enum { ENTRIES = 16, BANKS = 4, PAGE = 0x1000 };
/* Global space 0. */
enum { SCR0 = 0x000, IDR0 = 0x020, IDR1 = 0x024, IDR2 = 0x028, IDR7 = 0x03c, GFAR = 0x040, GFSR = 0x048 };
enum { GFSYNR0 = 0x050, GFSYNR1 = 0x054, GSYNC = 0x070, GSTATUS = 0x074, SMR = 0x800, S2CR = 0xc00 };
/* Global space 1, and a bank. */
enum { CBFRSYNRA = PAGE + 0x400, SCTLR = 0x000, TTBR0 = 0x020, FSR = 0x058, FAR = 0x060, FSYNR0 = 0x068 };
enum { SYNC = 0x7f0, STATUS = 0x7f4 };

#define VALID (1u << 31)
#define MULTI (1u << 31)

uint8_t memory[MEMORY_SIZE];

static bool inside(const struct smmu *smmu, uint32_t offset, uint32_t bytes)
{
    return offset % bytes == 0 && offset < smmu->size && smmu->size - offset >= bytes;
}

/* The offset inside a bank's page, or a value that is none. */
static uint32_t in_bank(const struct smmu *smmu, uint32_t offset)
{
    return offset >= smmu->banks && offset < smmu->banks + BANKS * PAGE ? offset % PAGE : UINT32_MAX;
}

static uint32_t read32(void *context, uint32_t offset)
{
    const struct smmu *smmu = context;
    if (smmu->stuck && (offset == GSTATUS || in_bank(smmu, offset) == STATUS))
        return 1;
    return inside(smmu, offset, 4) ? smmu->words[offset / 4] : UINT32_MAX;
}

static void write32(void *context, uint32_t offset, uint32_t value)
{
    struct smmu *smmu = context;
    if (!inside(smmu, offset, 4))
        return;
    smmu->writes++;
    uint32_t bank = in_bank(smmu, offset);
    if (offset == GSYNC || bank == SYNC)
        smmu->syncs++; /* nothing is ever in flight here: the status is clear at once, or never */
    else if (offset == GSTATUS || bank == STATUS || (offset >= IDR0 && offset <= IDR7))
        return; /* read only */
    else if (offset == GFSR || bank == FSR)
        smmu->words[offset / 4] &= ~value; /* write 1 to clear */
    else
        smmu->words[offset / 4] = value;
}

static uint64_t read64(void *context, uint32_t offset)
{
    if (!inside(context, offset, 8))
        return UINT64_MAX;
    return read32(context, offset) | (uint64_t)read32(context, offset + 4) << 32;
}

static void write64(void *context, uint32_t offset, uint64_t value)
{
    if (inside(context, offset, 8)) {
        write32(context, offset, (uint32_t)value);
        write32(context, offset + 4, (uint32_t)(value >> 32));
    }
}

bool smmu_power_up(struct smmu *smmu, uint32_t size, bool coherent)
{
    uint32_t exponent = 0;
    while ((2u << exponent) * PAGE < size / 2)
        exponent++;
    *smmu = (struct smmu){.words = calloc(size, 1), .size = size, .banks = (2u << exponent) * PAGE};
    if (!smmu->words)
        return false;
    smmu->words[SCR0 / 4] = 1; /* CLIENTPD: everything passes, as after a cold reset */
    /* Stage 2, stream matching, 15 ID bits, 16 entries; 4 banks; 40-bit addresses, AArch64 tables with 4 KiB pages. */
    smmu->words[IDR0 / 4] = 1u << 29 | 1u << 27 | (uint32_t)coherent << 14 | 1u << 16 | 15u << 9 | ENTRIES;
    smmu->words[IDR1 / 4] = exponent << 28 | BANKS;
    smmu->words[IDR2 / 4] = 1u << 12 | 2u << 4 | 2u;
    smmu->words[IDR7 / 4] = 0x21;
    for (uint32_t entry = 0; entry < ENTRIES; entry++) /* valid, and translated by bank 0 */
        smmu->words[SMR / 4 + entry] = VALID | entry;
    return true;
}

void smmu_power_down(struct smmu *smmu)
{
    free(smmu->words);
    smmu->words = NULL;
}

struct iommu_registers smmu_registers(struct smmu *smmu)
{
    return (struct iommu_registers){.context = smmu, .read32 = read32, .write32 = write32, .read64 = read64, .write64 = write64};
}

/* Walks stage-2 tables of 4 KiB pages from level 1 on. */
static bool walk(uint64_t table, uint64_t address, bool write, uint64_t *physical)
{
    for (int level = 1; level <= 3; level++) {
        uint64_t entry, at = table + (address >> (39 - 9 * level) & 0x1ff) * 8;
        if (at + sizeof entry > MEMORY_SIZE)
            return false;
        memcpy(&entry, memory + at, sizeof entry);
        if ((entry & 3) != 3)
            return false; /* a hole; blocks are not used here */
        table = entry & 0xfffffff000;
        if (level == 3 && !(entry >> (write ? 7 : 6) & 1))
            return false;
    }
    *physical = table | address % PAGE;
    return *physical < MEMORY_SIZE;
}

static enum outcome global_fault(struct smmu *smmu, enum outcome why, uint32_t stream, uint64_t address, bool write)
{
    uint32_t *words = smmu->words, status = why == UNKNOWN_STREAM ? 1u << 1 : 1u << 0;
    if (words[GFSR / 4]) {
        words[GFSR / 4] |= MULTI;
        return why;
    }
    words[GFSR / 4] = status;
    words[GFAR / 4] = (uint32_t)address;
    words[GFAR / 4 + 1] = (uint32_t)(address >> 32);
    words[GFSYNR0 / 4] = (uint32_t)write << 1;
    words[GFSYNR1 / 4] = stream;
    return why;
}

enum outcome smmu_dma(struct smmu *smmu, uint32_t stream, uint64_t address, bool write, uint8_t *byte)
{
    uint32_t *words = smmu->words;
    if (words[SCR0 / 4] & 1)
        return WENT_AROUND;
    for (uint32_t entry = 0; entry < ENTRIES; entry++) {
        uint32_t match = words[SMR / 4 + entry], action = words[S2CR / 4 + entry];
        if (!(match & VALID) || ((match ^ stream) & 0x7fff & ~(match >> 16)))
            continue;
        if ((action >> 16 & 3) != 0)
            return (action >> 16 & 3) == 1 ? WENT_AROUND : global_fault(smmu, BLOCKED, stream, address, write);
        uint32_t number = action & 0xff, *bank = words + (smmu->banks + number * PAGE) / 4;
        if (number >= BANKS || !(bank[SCTLR / 4] & 1))
            return WENT_AROUND; /* a bank that is off lets through */
        uint64_t physical, root = (bank[TTBR0 / 4] | (uint64_t)bank[TTBR0 / 4 + 1] << 32) & 0xfffffffff000;
        if (walk(root, address, write, &physical)) {
            if (write)
                memory[physical] = *byte;
            else
                *byte = memory[physical];
            return DONE;
        }
        bank[FSR / 4] = bank[FSR / 4] ? bank[FSR / 4] | MULTI : 1u << 1;
        bank[FAR / 4] = (uint32_t)address;
        bank[FAR / 4 + 1] = (uint32_t)(address >> 32);
        bank[FSYNR0 / 4] = (uint32_t)write << 4;
        words[CBFRSYNRA / 4 + number] = stream;
        return NOT_MAPPED;
    }
    return global_fault(smmu, UNKNOWN_STREAM, stream, address, write);
}
