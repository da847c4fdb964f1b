/* amx.h - the tile registers of AMX. Their functions only for files that are compiled with it. */
#ifndef RETRO_KERNELS_CPU_AMX_H
#define RETRO_KERNELS_CPU_AMX_H

enum {
    AMX_TILE = 16,      /* rows of a tile; f32 of a row */
    AMX_ROW_BYTES = 64, /* 32 bf16, or pairs of them for 16 columns */
    AMX_TILE_BYTES = AMX_TILE * AMX_ROW_BYTES,
    AMX_STEP = 32, /* products that are added to a sum at once: what k, or E, must be a multiple of */
};

#if defined(__AMX_TILE__) || defined(__AMXTILE__) /* gcc, clang */
#include <immintrin.h>
#include <stdint.h>

/* To the compiler a tile load reads no memory: what was stored before must be there by now. */
#define AMX_STORED(p) __asm__ volatile("" ::"r"(p) : "memory")

/* Tiles 0 to 3 are sums and 4 and 5 left operands, of `rows` rows, 6 and 7 right ones. For this thread, until
 * _tile_release. */
static inline void amx_configure(int rows)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.row_bytes[i] = AMX_ROW_BYTES;
        c.rows[i] = (uint8_t)(i < 6 ? rows : AMX_TILE);
    }
    AMX_STORED(&c);
    _tile_loadconfig(&c);
}
#endif

#endif
