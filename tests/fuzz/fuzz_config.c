/* fuzz_config.c - libFuzzer target: the bytes are a config.json. What is accepted must hold the promises of
 * arch.h, what is refused must be refused with one line. Seeds: tests/fuzz/corpus/config and
 * tests/runtime/configs. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/arch.h"
#include "runtime/base/die.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_accepted(const struct arch *a)
{
    ASSERT(a->n_layers >= 1 && a->n_layers <= ARCH_LAYERS_MAX && a->hidden >= 1 && a->ffn >= 1 &&
           a->vocab >= 1);
    ASSERT(a->n_heads >= 1 && a->n_kv_heads >= 1 && a->n_heads % a->n_kv_heads == 0);
    ASSERT(a->head_dim >= 2 && a->head_dim % 2 == 0 && a->context >= 1);
    int64_t width = 0, largest = 0, bytes = 0;
    ASSERT(!__builtin_mul_overflow((int64_t)a->n_heads, (int64_t)a->head_dim, &width) && width <= INT32_MAX);
    int64_t rows = a->ffn > a->vocab ? a->ffn : a->vocab;
    ASSERT(!__builtin_mul_overflow(rows > width ? rows : width, (int64_t)a->hidden, &largest));
    ASSERT(!__builtin_mul_overflow(largest, (int64_t)ARCH_LAYERS_MAX * 4, &bytes));
    ASSERT(a->n_eos >= 0 && a->n_eos <= ARCH_EOS_MAX && a->bos >= -1 && a->bos < a->vocab);
    for (int i = 0; i < a->n_eos; i++) ASSERT(a->eos[i] >= 0 && a->eos[i] < a->vocab);
    for (int i = 0; i < a->n_layers; i++) ASSERT(!a->slides[i] || a->sliding_window >= 1);
    ASSERT(a->dtype < DTYPE_COUNT && a->rope.type < ROPE_TYPE_COUNT && a->norm_eps > 0);
    float *inv_freq = malloc((size_t)a->head_dim / 2 * sizeof *inv_freq), factor;
    ASSERT(inv_freq);
    arch_rope_frequencies(a, inv_freq, &factor);
    for (int i = 0; i < a->head_dim / 2; i++) ASSERT(isfinite(inv_freq[i]) && inv_freq[i] > 0);
    ASSERT(isfinite(factor) && factor > 0);
    free(inv_freq);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arch a;
    struct reason why = {""};
    enum status status = arch_parse(&a, (const char *)data, size, "config.json", &why);
    if (status == STATUS_OK) {
        check_accepted(&a);
    } else {
        ASSERT(status == STATUS_BAD_MODEL && strncmp(why.text, "config.json: ", 13) == 0);
        ASSERT(!strchr(why.text, '\n') && strlen(why.text) < sizeof why.text - 1);
    }
    return 0;
}
