/* fuzz_safetensors.c - libFuzzer target: two bytes n, then a safetensors file whose last n bytes are a second
 * file of the same set (none when n is 0). What is accepted must lie inside its file, once, and be found by
 * name; what is refused must leave the set as it was and say one line. Seeds: tests/fuzz/corpus/safetensors.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/tensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Each file in a block of its own, so that AddressSanitizer sees a read past its end. */
struct file {
    uint8_t *bytes;
    size_t n;
};

static struct file copy_file(const uint8_t *data, size_t n)
{
    struct file f = {malloc(n ? n : 1), n};
    ASSERT(f.bytes);
    if (n) memcpy(f.bytes, data, n);
    return f;
}

static int64_t check_file(const struct tensors *t, const char *name, const struct file *f)
{
    int64_t total = 0;
    for (int i = 0; i < tensors_count(t); i++) {
        const struct tensor *x = tensors_at(t, i), *out;
        if (strcmp(x->file, name) != 0) continue;
        const uint8_t *first = x->data;
        ASSERT(first >= f->bytes + 8 && x->bytes <= f->n && first + x->bytes <= f->bytes + f->n);
        ASSERT(tensors_find(t, x->name) == x && x->n_dims >= 0 && x->n_dims <= TENSOR_DIMS_MAX);
        volatile uint8_t sum = 0;
        for (size_t k = 0; k < x->bytes; k++) sum = (uint8_t)(sum + first[k]);
        enum status status = tensors_require(t, x->name, x->n_dims, x->shape, &out, NULL);
        ASSERT(status == (x->dtype == DTYPE_COUNT ? STATUS_BAD_MODEL : STATUS_OK));
        if (status == STATUS_OK) {
            size_t n = 1;
            for (int k = 0; k < x->n_dims; k++) n *= (size_t)x->shape[k];
            ASSERT(out == x && n * dtype_bytes(x->dtype) == x->bytes);
        }
        total += (int64_t)x->bytes;
    }
    return total;
}

static void add_file(struct tensors *t, const char *name, const struct file *f)
{
    struct reason why = {""};
    int n_before = tensors_count(t);
    int64_t bytes_before = tensors_total_bytes(t);
    enum status status = tensors_add_header(t, name, f->bytes, f->n, &why);
    if (status != STATUS_OK) {
        ASSERT(status == STATUS_BAD_MODEL && tensors_count(t) == n_before);
        ASSERT(tensors_total_bytes(t) == bytes_before && strncmp(why.text, name, strlen(name)) == 0);
        ASSERT(!strchr(why.text, '\n') && strlen(why.text) < sizeof why.text - 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    size_t rest = size - 2, n_second = (size_t)data[0] | (size_t)data[1] << 8;
    if (n_second > rest) n_second = rest;
    size_t n_first = rest - n_second;
    struct file one = copy_file(data + 2, n_first), two = copy_file(data + 2 + n_first, n_second);
    struct tensors *t = tensors_new();
    add_file(t, "one", &one);
    if (n_second) add_file(t, "two", &two);
    ASSERT(check_file(t, "one", &one) + check_file(t, "two", &two) == tensors_total_bytes(t));
    tensors_close(t);
    free(one.bytes);
    free(two.bytes);
    return 0;
}
