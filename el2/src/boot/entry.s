// The first instructions: an arm64 Image header, the way down to EL2, relocation, a stack, and into Rust.

.section .head, "ax"
.global _head
_head:
    b       entry
    .long   0
    .quad   0                               // text_offset: anywhere
    .quad   __image_end - _head             // what the loader keeps free, .bss and heap included
    .quad   0b1010                          // little-endian, 4 KiB pages, any 2 MiB boundary
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

// x0: the device tree. MMU and caches are off.
entry:
    mov     x20, x0
    bl      to_el2
    bl      set_up_el2

    // The image was linked at 0: every relocation adds the address that it was loaded at.
    adr     x0, _head
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
0:  cmp     x1, x2
    b.hs    1f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     w4, #1027                       // R_AARCH64_RELATIVE
    b.ne    stop
    add     x5, x5, x0
    str     x5, [x0, x3]
    b       0b

1:  adrp    x1, __bss_start
    add     x1, x1, :lo12:__bss_start
    adrp    x2, __bss_end
    add     x2, x2, :lo12:__bss_end
2:  cmp     x1, x2
    b.hs    3f
    stp     xzr, xzr, [x1], #16
    b       2b

3:  adrp    x1, {stacks}
    add     x1, x1, :lo12:{stacks}
    mov     x2, #{stack_size}
    add     sp, x1, x2
    mov     x0, x20
    mov     x29, xzr
    mov     x30, xzr
    b       {main}

// A secondary CPU, from PSCI. x0: its `Start`, cleaned to memory.
.global secondary_entry
secondary_entry:
    mov     x20, x0
    bl      to_el2
    bl      set_up_el2
    ldp     x0, x1, [x20]
    ldp     x2, x3, [x20, #16]
    bl      enable_mmu
    ldp     x1, x0, [x20, #32]
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    b       {secondary_main}

// Returns at EL2, from EL2 or EL3. From EL1 there is no way up.
to_el2:
    mrs     x9, CurrentEL
    cmp     x9, #(2 << 2)
    b.eq    0f
    cmp     x9, #(3 << 2)
    b.ne    stop
    mov     x9, #0x531                      // SCR_EL3: RW, HCE, RES1, NS
    msr     scr_el3, x9
    msr     cptr_el3, xzr
    mrs     x9, id_aa64pfr0_el1
    ubfx    x9, x9, #24, #4                 // a GIC with system registers
    cbz     x9, 1f
    mov     x9, #0xf
    msr     s3_6_c12_c12_5, x9              // ICC_SRE_EL3: SRE, DFB, DIB, Enable
    isb
1:  mov     x9, #0x0830
    movk    x9, #0x30c5, lsl #16
    msr     sctlr_el2, x9
    mov     x9, #0x3c9                      // EL2h, everything masked
    msr     spsr_el3, x9
    msr     elr_el3, x30
    eret
0:  ret

// What every CPU needs at EL2 before Rust runs there: no MMU, interrupts routed here, no trap on FP or the GIC.
set_up_el2:
    mov     x9, #0x0830                     // RES1 bits only: MMU, caches and alignment checks off
    movk    x9, #0x30c5, lsl #16
    msr     sctlr_el2, x9
    mov     x9, #0x38                       // HCR_EL2: AMO, IMO, FMO; and RW
    orr     x9, x9, #(1 << 31)
    msr     hcr_el2, x9
    mov     x9, #0x33ff
    msr     cptr_el2, x9
    mov     x9, #3                          // EL1 may read the counter, as it is customary
    msr     cnthctl_el2, x9
    mrs     x9, id_aa64pfr0_el1
    ubfx    x9, x9, #24, #4
    cbz     x9, 0f
    mov     x9, #0xf
    msr     s3_4_c12_c9_5, x9               // ICC_SRE_EL2
0:  adrp    x9, vectors
    add     x9, x9, :lo12:vectors
    msr     vbar_el2, x9
    msr     spsel, #1
    isb
    ret

// x0: TTBR0_EL2, x1: MAIR_EL2, x2: TCR_EL2, x3: SCTLR_EL2. Code and stack are mapped where they are. The MMU is off in
// between: from one map to another no translation may be found in both. No data is touched meanwhile.
.global enable_mmu
enable_mmu:
    mov     x9, #0x0830
    movk    x9, #0x30c5, lsl #16
    msr     sctlr_el2, x9
    isb
    msr     ttbr0_el2, x0
    msr     mair_el2, x1
    msr     tcr_el2, x2
    ic      iallu
    tlbi    alle2
    dsb     nsh
    isb
    msr     sctlr_el2, x3
    isb
    ret

stop:
    wfe
    b       stop

// The exception vectors. Only this level runs: everything comes from EL2 with its own stack pointer.
.macro fatal kind
    .balign 0x80
    mov     x0, #\kind
    b       fatal_entry
.endm

.macro interrupt
    .balign 0x80
    b       interrupt_entry
.endm

.text
.balign 0x800
vectors:
    fatal   0
    fatal   1
    fatal   2
    fatal   3
    fatal   4
    interrupt
    interrupt
    fatal   7
    fatal   8
    fatal   9
    fatal   10
    fatal   11
    fatal   12
    fatal   13
    fatal   14
    fatal   15

fatal_entry:
    mrs     x1, esr_el2
    mrs     x2, elr_el2
    mrs     x3, far_el2
    mrs     x4, sp_el0
    b       {fatal}

// What a call may change is kept, the vector registers too: the compiler uses them for copies.
interrupt_entry:
    sub     sp, sp, #(32 * 16 + 24 * 8)
    stp     x0, x1, [sp, #(0 * 16)]
    stp     x2, x3, [sp, #(1 * 16)]
    stp     x4, x5, [sp, #(2 * 16)]
    stp     x6, x7, [sp, #(3 * 16)]
    stp     x8, x9, [sp, #(4 * 16)]
    stp     x10, x11, [sp, #(5 * 16)]
    stp     x12, x13, [sp, #(6 * 16)]
    stp     x14, x15, [sp, #(7 * 16)]
    stp     x16, x17, [sp, #(8 * 16)]
    stp     x18, x29, [sp, #(9 * 16)]
    mrs     x0, elr_el2
    stp     x30, x0, [sp, #(10 * 16)]
    mrs     x0, spsr_el2
    mrs     x1, fpsr
    stp     x0, x1, [sp, #(11 * 16)]
    add     x0, sp, #(24 * 8)
    stp     q0, q1, [x0, #(0 * 32)]
    stp     q2, q3, [x0, #(1 * 32)]
    stp     q4, q5, [x0, #(2 * 32)]
    stp     q6, q7, [x0, #(3 * 32)]
    stp     q8, q9, [x0, #(4 * 32)]
    stp     q10, q11, [x0, #(5 * 32)]
    stp     q12, q13, [x0, #(6 * 32)]
    stp     q14, q15, [x0, #(7 * 32)]
    stp     q16, q17, [x0, #(8 * 32)]
    stp     q18, q19, [x0, #(9 * 32)]
    stp     q20, q21, [x0, #(10 * 32)]
    stp     q22, q23, [x0, #(11 * 32)]
    stp     q24, q25, [x0, #(12 * 32)]
    stp     q26, q27, [x0, #(13 * 32)]
    stp     q28, q29, [x0, #(14 * 32)]
    stp     q30, q31, [x0, #(15 * 32)]
    bl      {interrupt}
    add     x0, sp, #(24 * 8)
    ldp     q0, q1, [x0, #(0 * 32)]
    ldp     q2, q3, [x0, #(1 * 32)]
    ldp     q4, q5, [x0, #(2 * 32)]
    ldp     q6, q7, [x0, #(3 * 32)]
    ldp     q8, q9, [x0, #(4 * 32)]
    ldp     q10, q11, [x0, #(5 * 32)]
    ldp     q12, q13, [x0, #(6 * 32)]
    ldp     q14, q15, [x0, #(7 * 32)]
    ldp     q16, q17, [x0, #(8 * 32)]
    ldp     q18, q19, [x0, #(9 * 32)]
    ldp     q20, q21, [x0, #(10 * 32)]
    ldp     q22, q23, [x0, #(11 * 32)]
    ldp     q24, q25, [x0, #(12 * 32)]
    ldp     q26, q27, [x0, #(13 * 32)]
    ldp     q28, q29, [x0, #(14 * 32)]
    ldp     q30, q31, [x0, #(15 * 32)]
    ldp     x0, x1, [sp, #(11 * 16)]
    msr     spsr_el2, x0
    msr     fpsr, x1
    ldp     x30, x0, [sp, #(10 * 16)]
    msr     elr_el2, x0
    ldp     x18, x29, [sp, #(9 * 16)]
    ldp     x16, x17, [sp, #(8 * 16)]
    ldp     x14, x15, [sp, #(7 * 16)]
    ldp     x12, x13, [sp, #(6 * 16)]
    ldp     x10, x11, [sp, #(5 * 16)]
    ldp     x8, x9, [sp, #(4 * 16)]
    ldp     x6, x7, [sp, #(3 * 16)]
    ldp     x4, x5, [sp, #(2 * 16)]
    ldp     x2, x3, [sp, #(1 * 16)]
    ldp     x0, x1, [sp, #(0 * 16)]
    add     sp, sp, #(32 * 16 + 24 * 8)
    eret
