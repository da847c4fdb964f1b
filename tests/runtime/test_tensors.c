/* test_tensors.c - safetensors files written here byte by byte: lookup, layout rules, folders, hostile
 * headers. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/tensors.h"

/* ------------------------------------------------------------------------------------------ helpers */

static char folder[] = "/tmp/test_tensors_XXXXXX";

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder); /* every test removes its own files */
}

static const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_bytes(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(path_of(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void write_text(const char *name, const char *text) { write_bytes(name, text, strlen(text)); }

static void remove_file(const char *name) { assert_int_equal(remove(path_of(name)), 0); }

/* A file with this header text and n_data bytes 0, 1, 2, ...; the caller frees. */
static unsigned char *make_file(const char *header, size_t n_data, size_t *bytes)
{
    size_t n = strlen(header);
    unsigned char *file = malloc(8 + n + n_data + 1);
    for (int i = 0; i < 8; i++) file[i] = (unsigned char)((uint64_t)n >> 8 * i);
    memcpy(file + 8, header, n);
    for (size_t i = 0; i < n_data; i++) file[8 + n + i] = (unsigned char)i;
    *bytes = 8 + n + n_data;
    return file;
}

static void write_file(const char *name, const char *header, size_t n_data)
{
    size_t bytes;
    unsigned char *file = make_file(header, n_data, &bytes);
    write_bytes(name, file, bytes);
    free(file);
}

static void assert_one_line(const char *text)
{
    assert_true(text[0] != '\0' && strlen(text) < 511);
    assert_null(strpbrk(text, "\n\r\t"));
}

/* Opens the test folder, which must be refused with a line that holds `part`. */
static void refuse_folder(const char *part)
{
    struct tensors *t = (void *)1;
    struct reason why;
    assert_int_equal(tensors_open(&t, folder, &why), STATUS_BAD_MODEL);
    assert_null(t);
    assert_one_line(why.text);
    if (!strstr(why.text, part)) fail_msg("the line does not say \"%s\": %s", part, why.text);
}

static struct tensors *open_folder(void)
{
    struct tensors *t;
    struct reason why;
    if (tensors_open(&t, folder, &why) != STATUS_OK) fail_msg("%s", why.text);
    return t;
}

/* Two of ours and one that nobody may ask for; the header is padded as writers do, and "b" lies unaligned. */
#define GOOD                                                                                                 \
    "{\"__metadata__\": {\"format\": \"pt\"},"                                                               \
    "\"b\": {\"dtype\": \"F32\", \"shape\": [1, 2], \"data_offsets\": [9, 17]},"                             \
    "\"a\": {\"dtype\": \"BF16\", \"shape\": [3], \"data_offsets\": [0, 6]},"                                \
    "\"mask\": {\"dtype\": \"BOOL\", \"shape\": [3, 1, 1], \"data_offsets\": [6, 9]},"                       \
    "\"none\": {\"dtype\": \"F16\", \"shape\": [0, 7], \"data_offsets\": [9, 9]},"                           \
    "\"one\": {\"dtype\": \"F16\", \"shape\": [], \"data_offsets\": [17, 19]}}     "
#define GOOD_DATA 19

/* ------------------------------------------------------------------------------------------ good files */

static void test_single_file(void **state)
{
    (void)state;
    const struct tensor *found;
    struct reason why;
    write_file("model.safetensors", GOOD, GOOD_DATA);
    struct tensors *t = open_folder();
    assert_int_equal(tensors_count(t), 5);
    assert_int_equal(tensors_total_bytes(t), 19);
    static const char *const by_place[] = {"a", "mask", "none", "b", "one"};
    for (int i = 0; i < 5; i++) assert_string_equal(tensors_at(t, i)->name, by_place[i]);
    const struct tensor *a = tensors_find(t, "a"), *b = tensors_find(t, "b"), *one = tensors_find(t, "one");
    assert_true(a->dtype == DTYPE_BF16 && a->n_dims == 1 && a->shape[0] == 3 && a->bytes == 6);
    assert_string_equal(a->dtype_text, "BF16");
    assert_string_equal(a->file, path_of("model.safetensors"));
    for (int i = 0; i < 8; i++) assert_int_equal(((const unsigned char *)b->data)[i], 9 + i);
    assert_true(b->dtype == DTYPE_F32 && b->n_dims == 2 && b->shape[0] == 1 && b->shape[1] == 2 &&
                b->bytes == 8);
    assert_true(one->n_dims == 0 && one->bytes == 2 && one->dtype == DTYPE_F16);
    assert_int_equal(tensors_find(t, "none")->bytes, 0);
    assert_int_equal(tensors_find(t, "mask")->dtype, DTYPE_COUNT);
    assert_null(tensors_find(t, "__metadata__"));
    assert_null(tensors_find(t, ""));
    assert_null(tensors_find(t, "zzz"));

    assert_int_equal(tensors_require(t, "b", 2, (int64_t[]){1, 2}, &found, &why), STATUS_OK);
    assert_ptr_equal(found, b);
    assert_int_equal(tensors_require(t, "one", 0, NULL, &found, &why), STATUS_OK);
    assert_int_equal(tensors_require(t, "b", 2, (int64_t[]){2, 1}, &found, &why), STATUS_BAD_MODEL);
    assert_null(found);
    assert_non_null(
        strstr(why.text, "model.safetensors: tensor b has shape [1, 2], config.json implies [2, 1]"));
    assert_int_equal(tensors_require(t, "b", 1, (int64_t[]){2}, &found, &why), STATUS_BAD_MODEL);
    assert_int_equal(tensors_require(t, "a", 2, (int64_t[]){3, 1}, &found, &why), STATUS_BAD_MODEL);
    assert_int_equal(tensors_require(t, "c", 2, (int64_t[]){4096, 5}, &found, &why), STATUS_BAD_MODEL);
    assert_non_null(strstr(why.text, "tensor c [4096, 5] is missing"));
    assert_int_equal(tensors_require(t, "mask", 3, (int64_t[]){3, 1, 1}, &found, &why), STATUS_BAD_MODEL);
    assert_non_null(strstr(why.text, "tensor mask is BOOL"));
    assert_int_equal(tensors_require(t, "mask", 3, (int64_t[]){3, 1, 1}, &found, NULL), STATUS_BAD_MODEL);
    tensors_close(t);
    tensors_close(NULL);
    remove_file("model.safetensors");
}

/* ------------------------------------------------------------------------------------------ digests */

/* The digest of one file's tensors, with the byte at `changed` of its data another one; -1: as make_file made it. */
static void digest_of(const char *header, size_t n_data, int64_t changed, uint8_t digest[SHA256_BYTES])
{
    struct tensors *t = tensors_new();
    struct reason why;
    size_t bytes;
    unsigned char *file = make_file(header, n_data, &bytes);
    if (changed >= 0) file[bytes - n_data + (size_t)changed] ^= 0x10;
    assert_int_equal(tensors_add_header(t, "f", file, bytes, &why), STATUS_OK);
    tensors_digest(t, digest);
    tensors_close(t);
    free(file);
}

#define BIG "{\"x\": {\"dtype\": \"BF16\", \"shape\": [50000], \"data_offsets\": [0, 100000]}}"
#define BIG_DATA 100000

static void test_digest_names_the_weights(void **state)
{
    (void)state;
    uint8_t good[SHA256_BYTES], big[SHA256_BYTES], other[SHA256_BYTES];
    digest_of(GOOD, GOOD_DATA, -1, good);
    digest_of(GOOD, GOOD_DATA, -1, other);
    assert_memory_equal(good, other, sizeof good);
    for (int i = 0; i < GOOD_DATA; i++) { /* small ones whole */
        digest_of(GOOD, GOOD_DATA, i, other);
        assert_memory_not_equal(good, other, sizeof good);
    }
    digest_of(BIG, BIG_DATA, -1, big);
    for (int i = 0; i < 8; i++) /* first and last byte of each piece */
        for (int end = 0; end < 2; end++) {
            digest_of(BIG, BIG_DATA, (int64_t)(BIG_DATA - 4096) * i / 7 + end * 4095, other);
            assert_memory_not_equal(big, other, sizeof big);
        }
    static const char *const others[] = {
        "{\"y\": {\"dtype\": \"BF16\", \"shape\": [50000], \"data_offsets\": [0, 100000]}}",
        "{\"x\": {\"dtype\": \"F16\", \"shape\": [50000], \"data_offsets\": [0, 100000]}}",
        "{\"x\": {\"dtype\": \"BF16\", \"shape\": [50000, 1], \"data_offsets\": [0, 100000]}}",
        "{\"x\": {\"dtype\": \"BF16\", \"shape\": [500, 100], \"data_offsets\": [0, 100000]}}"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        digest_of(others[i], BIG_DATA, -1, other);
        assert_memory_not_equal(big, other, sizeof big);
    }
}

/* Two files hold what one held. */
static void test_digest_does_not_see_files(void **state)
{
    (void)state;
    struct reason why;
    size_t bytes, more_bytes;
    uint8_t one[SHA256_BYTES], two[SHA256_BYTES];
    digest_of("{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]},"
              "\"b\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [4, 8]}}",
              8, -1, one);
    unsigned char *b =
        make_file("{\"b\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}", 4, &bytes);
    unsigned char *a =
        make_file("{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}", 4, &more_bytes);
    for (int i = 0; i < 4; i++) b[bytes - 4 + (size_t)i] = (unsigned char)(4 + i);
    struct tensors *t = tensors_new();
    assert_int_equal(tensors_add_header(t, "b", b, bytes, &why), STATUS_OK);
    assert_int_equal(tensors_add_header(t, "a", a, more_bytes, &why), STATUS_OK);
    tensors_digest(t, two);
    assert_memory_equal(one, two, sizeof one);
    tensors_close(t);
    free(a);
    free(b);
}

static void test_advise(void **state)
{
    (void)state;
    write_file("model.safetensors",
               "{\"x\": {\"dtype\": \"BF16\", \"shape\": [50000], \"data_offsets\": [0, 100000]}}", 100000);
    struct tensors *t = open_folder();
    const struct tensor *x = tensors_find(t, "x");
    const unsigned char *bytes = x->data;
    static const enum tensors_advice advices[] = {TENSORS_SOON, TENSORS_PIECES, TENSORS_DONE};
    for (int i = 0; i < 3; i++)
        for (size_t first = 0; first < 100000; first += 7777)
            tensors_advise(bytes + first, 100000 - first, advices[i]);
    tensors_advise(bytes, 0, TENSORS_SOON);
    tensors_advise(bytes + 1, 1, TENSORS_DONE);
    for (size_t i = 0; i < 100000; i++) assert_int_equal(bytes[i], (unsigned char)i);
    tensors_close(t);
    remove_file("model.safetensors");
}

static void test_many_names(void **state)
{
    (void)state;
    enum { N = 5000 };
    char *header = malloc(N * 100), *at = header;
    size_t bytes;
    for (int i = 0; i < N; i++) { /* names in no order of theirs: 7919 is prime to 5000 */
        int k = (int)((int64_t)i * 7919 % N);
        at +=
            sprintf(at, "%s\"layers.%d.w\": {\"dtype\": \"F16\", \"shape\": [1], \"data_offsets\": [%d, %d]}",
                    i ? "," : "{", k, 2 * i, 2 * i + 2);
    }
    strcpy(at, "}");
    unsigned char *file = make_file(header, 2 * N, &bytes);
    struct reason why;
    struct tensors *t = tensors_new();
    assert_int_equal(tensors_add_header(t, "f", file, bytes, &why), STATUS_OK);
    for (int i = 0; i < N; i++) {
        char name[32];
        snprintf(name, sizeof name, "layers.%d.w", (int)((int64_t)i * 7919 % N));
        const struct tensor *found = tensors_find(t, name);
        assert_non_null(found);
        assert_string_equal(found->name, name);
        assert_int_equal(((const unsigned char *)found->data)[0], (unsigned char)(2 * i));
        name[0] = 'L';
        assert_null(tensors_find(t, name));
    }
    tensors_close(t);
    free(file);
    free(header);
}

/* ------------------------------------------------------------------------------------------ bad headers */

#define T(type, shape, offsets) "{\"dtype\": " type ", \"shape\": " shape ", \"data_offsets\": " offsets "}"

static const struct {
    const char *header;
    size_t n_data;
    const char *line; /* what the line must hold */
} refusals[] = {
    {"{\"x\": " T("\"F32\"", "[2]", "[0, 8]") "}", 7, "cut short: its header speaks of 77 bytes, it has 76"},
    {"{\"x\": " T("\"F32\"", "[2]", "[0, 8]") "}", 0, "cut short"},
    {"{\"x\": " T("\"F32\"", "[2]", "[0, 8]") "}", 9, "too long"},
    {"{\"x\": " T("\"F32\"", "[2]", "[1, 9]") "}", 9, "tensor x: leaves a gap"},
    {"{\"x\": " T("\"F32\"", "[2]", "[0, 8]") ", \"y\": " T("\"F32\"", "[1]", "[4, 8]") "}", 8,
     "tensor y: overlaps"},
    {"{\"x\": " T("\"F32\"", "[2]", "[0, 8]") ", \"y\": " T("\"F32\"", "[2]", "[0, 8]") "}", 8, "overlaps"},
    {"{\"x\": " T("\"F32\"", "[1]", "[0, 4]") ", \"y\": " T("\"F32\"", "[1]", "[8, 12]") "}", 12,
     "tensor y: leaves a gap"},
    {"{\"x\": " T("\"F32\"", "[1]", "[0, 4]") ", \"x\": " T("\"F32\"", "[1]", "[4, 8]") "}", 8, "duplicate"},
    {"{\"x\": " T("\"F32\"", "[3]", "[0, 8]") "}", 8,
     "tensor x: 8 bytes of F32 do not hold its shape, 12 bytes do"},
    {"{\"x\": " T("\"Q4\"", "[2]", "[0, 8]") "}", 8, "tensor x: dtype"},
    {"{\"x\": " T("4", "[2]", "[0, 8]") "}", 8, "tensor x: dtype"},
    {"{\"x\": {\"shape\": [2], \"data_offsets\": [0, 8]}}", 8, "tensor x: dtype"},
    {"{\"x\": {\"dtype\": \"F32\", \"data_offsets\": [0, 8]}}", 8, "tensor x: shape"},
    {"{\"x\": {\"dtype\": \"F32\", \"shape\": [2]}}", 8, "tensor x: data_offsets"},
    {"{\"x\": 5}", 0, "tensor x: its entry"},
    {"{\"x\": null}", 0, "tensor x"},
    {"{\"x\": " T("\"F32\"", "2", "[0, 8]") "}", 8, "tensor x: shape"},
    {"{\"x\": " T("\"F32\"", "[2.0]", "[0, 8]") "}", 8, "tensor x: shape"},
    {"{\"x\": " T("\"F32\"", "[-2]", "[0, 8]") "}", 8, "tensor x: shape"},
    {"{\"x\": " T("\"F32\"", "[-1, -2]", "[0, 8]") "}", 8, "tensor x: shape"},
    {"{\"x\": " T("\"F32\"", "[1, 1, 1, 1, 2]", "[0, 8]") "}", 8, "tensor x: has more than 4 dimensions"},
    {"{\"x\": " T("\"F32\"", "[4294967296, 4294967296]", "[0, 0]") "}", 0, "tensor x: the product"},
    {"{\"x\": " T("\"F32\"", "[9223372036854775807]", "[0, 8]") "}", 8, "tensor x: its size"},
    {"{\"x\": " T("\"F32\"", "[576460752303423488]", "[0, 0]") "}", 0,
     "tensor x: its size"}, /* times 32 wraps to 0 */
    {"{\"x\": " T("\"F4\"", "[3]", "[0, 2]") "}", 2, "tensor x: its size"},
    {"{\"x\": " T("\"F32\"", "[2]", "[0]") "}", 8, "tensor x: data_offsets"},
    {"{\"x\": " T("\"F32\"", "[2]", "[0, 8, 8]") "}", 8, "tensor x: data_offsets"},
    {"{\"x\": " T("\"F32\"", "[2]", "[0, 8.0]") "}", 8, "tensor x: data_offsets"},
    {"{\"x\": " T("\"F32\"", "[2]", "[\"0\", \"8\"]") "}", 8, "tensor x: data_offsets"},
    {"{\"x\": " T("\"F32\"", "[2]", "[8, 0]") "}", 8, "tensor x: data_offsets"},
    {"{\"x\": " T("\"F32\"", "[2]", "[-8, 0]") "}", 8, "tensor x: data_offsets"},
    {"{\"x\": " T("\"F32\"", "[1152921504606846976]", "[0, 4611686018427387904]") "}", 8,
     "tensor x: its size"},
    {"{\"x\": " T("\"U8\"", "[1152921504606846975]", "[0, 1152921504606846975]") "}", 8, "cut short"},
    {"{\"x\": " T("\"F32\"", "[0]", "[9223372036854775807, 9223372036854775807]") "}", 0, "gap"},
    {"{\"x\": " T("\"F32\"", "[2]", "[0, 99999999999999999999]") "}", 8, "line 1"},
    {"{\"x\": ", 8, "line 1"},
    {"{} {}", 0, "line 1"},
    {"[]", 0, "does not begin with '{'"},
    {" {}", 0, "does not begin with '{'"},
    {"{}", 1, "too long"},
    {"{\"\\u0000\": 1}", 0, "line 1"},
    {"{\"a\\nb\": 1}", 0, "tensor a?b"},
    {"{\"\xff\": 1}", 0, "line 1"},
};

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        size_t bytes;
        unsigned char *file = make_file(refusals[i].header, refusals[i].n_data, &bytes);
        struct reason why = {""};
        struct tensors *t = tensors_new();
        if (tensors_add_header(t, "f.safetensors", file, bytes, &why) != STATUS_BAD_MODEL)
            fail_msg("accepted: %s", refusals[i].header);
        assert_one_line(why.text);
        if (!strstr(why.text, refusals[i].line) || strncmp(why.text, "f.safetensors: ", 15) != 0)
            fail_msg("%s: the line does not say \"%s\": %s", refusals[i].header, refusals[i].line, why.text);
        assert_int_equal(tensors_count(t), 0);
        tensors_close(t);
        free(file);
    }
    struct tensors *t = tensors_new();
    assert_int_equal(tensors_add_header(t, "empty", "\2\0\0\0\0\0\0\0{}", 10, NULL), STATUS_OK);
    assert_int_equal(tensors_count(t), 0);
    tensors_close(t);
}

static void test_header_length(void **state)
{
    (void)state;
    struct reason why;
    unsigned char file[64] = {0};
    struct tensors *t = tensors_new();
    for (size_t bytes = 0; bytes < 10; bytes++)
        assert_int_equal(tensors_add_header(t, "f", file, bytes, &why), STATUS_BAD_MODEL);
    static const uint64_t lengths[] = {
        0, 1, 57, 63, 64, 100000000, 100000001, UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_MAX - 7};
    memset(file, '{', sizeof file);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (int k = 0; k < 8; k++) file[k] = (unsigned char)(lengths[i] >> 8 * k);
        assert_int_equal(tensors_add_header(t, "f", file, sizeof file, &why), STATUS_BAD_MODEL);
        assert_one_line(why.text);
    }
    assert_non_null(strstr(why.text, "100000000"));
    tensors_close(t);
}

/* Cut anywhere, refused; with a byte changed, refused or understood with every tensor inside the file. */
static void test_damaged(void **state)
{
    (void)state;
    size_t bytes;
    struct reason why;
    unsigned char *file = make_file(GOOD, GOOD_DATA, &bytes);
    for (size_t n = 0; n < bytes; n++) {
        unsigned char *cut = malloc(n ? n : 1); /* its own block: a read past the end is seen by ASan */
        memcpy(cut, file, n);
        struct tensors *t = tensors_new();
        assert_int_equal(tensors_add_header(t, "f", cut, n, &why), STATUS_BAD_MODEL);
        assert_one_line(why.text);
        tensors_close(t);
        free(cut);
    }
    for (size_t i = 0; i < bytes - GOOD_DATA; i++)
        for (int k = 0; k < 17; k++) {
            unsigned char kept = file[i];
            file[i] = (unsigned char)"\"{}[]:,0-9e.n \\\x80"[k];
            struct tensors *t = tensors_new();
            enum status status = tensors_add_header(t, "f", file, bytes, &why);
            for (int n = 0; n < tensors_count(t); n++) {
                const struct tensor *x = tensors_at(t, n);
                const unsigned char *data = x->data;
                assert_int_equal(status, STATUS_OK);
                assert_true(data >= file + 8 && data + x->bytes <= file + bytes);
            }
            tensors_close(t);
            file[i] = kept;
        }
    free(file);
}

/* A refused file leaves the set as it was, names and all, however the lists moved in between. */
static void test_refused_file_leaves_the_set(void **state)
{
    (void)state;
    size_t bytes, bad_bytes, more_bytes;
    struct reason why;
    unsigned char *good = make_file(GOOD, GOOD_DATA, &bytes);
    unsigned char *more = make_file("{\"c\": " T("\"F32\"", "[2]", "[0, 8]") "}", 8, &more_bytes);
    unsigned char *bad =
        make_file("{\"d\": " T("\"F32\"", "[1]", "[0, 4]") ", \"e\": " T(
                      "\"F32\"", "[1]", "[4, 8]") ", \"f\": " T("\"F32\"", "[9]", "[0, 4]") "}",
                  8, &bad_bytes);
    struct tensors *t = tensors_new();
    assert_int_equal(tensors_add_header(t, "bad", bad, bad_bytes, &why), STATUS_BAD_MODEL);
    assert_int_equal(tensors_add_header(t, "good", good, bytes, &why), STATUS_OK);
    for (int i = 0; i < 50; i++)
        assert_int_equal(tensors_add_header(t, "bad", bad, bad_bytes, &why), STATUS_BAD_MODEL);
    assert_int_equal(tensors_add_header(t, "again", good, bytes, &why),
                     STATUS_BAD_MODEL); /* the same names */
    assert_string_equal(why.text, "again: tensor a is in good too; remove one of the files");
    assert_int_equal(tensors_count(t), 5);
    assert_non_null(tensors_find(t, "b"));
    assert_null(tensors_find(t, "d"));
    assert_int_equal(tensors_add_header(t, "more", more, more_bytes, &why), STATUS_OK);
    assert_string_equal(tensors_find(t, "c")->file, "more");
    assert_string_equal(tensors_find(t, "b")->file, "good");
    assert_int_equal(tensors_total_bytes(t), 27);
    tensors_close(t);
    free(good);
    free(more);
    free(bad);
}

/* ------------------------------------------------------------------------------------------ folders */

static void test_index(void **state)
{
    (void)state;
    static const char name[] = "model.safetensors.index.json";
    refuse_folder("has neither");
    write_file("model-1.safetensors", GOOD, GOOD_DATA);
    write_file("model-2.safetensors", "{\"c\": " T("\"F32\"", "[2]", "[0, 8]") "}", 8);
    write_text(name, "{\"metadata\": {\"total_size\": 27}, \"weight_map\": {\"c\": \"model-2.safetensors\","
                     "\"a\": \"model-1.safetensors\", \"b\": \"model-1.safetensors\"}}");
    struct tensors *t = open_folder();
    assert_int_equal(tensors_count(t), 6);
    assert_string_equal(tensors_find(t, "c")->file, path_of("model-2.safetensors"));
    assert_int_equal(tensors_total_bytes(t), 27);
    tensors_close(t);

    static const char *const bad[][2] = {
        {"{\"weight_map\": {\"c\": \"model-1.safetensors\"}}", "tensor c is not in model-1.safetensors"},
        {"{\"weight_map\": {\"zz\": \"model-1.safetensors\"}}", "tensor zz is not in"},
        {"{\"weight_map\": {\"c\": \"model-3.safetensors\"}}", "model-3.safetensors: No such file"},
        {"{\"weight_map\": {\"c\": \"../model-2.safetensors\"}}", "same folder"},
        {"{\"weight_map\": {\"c\": \"/etc/passwd\"}}", "same folder"},
        {"{\"weight_map\": {\"c\": \"sub/model-2.safetensors\"}}", "same folder"},
        {"{\"weight_map\": {\"c\": \"..\"}}", "same folder"},
        {"{\"weight_map\": {\"c\": \".\"}}", "same folder"},
        {"{\"weight_map\": {\"c\": \"\"}}", "same folder"},
        {"{\"weight_map\": {\"c\": 2}}", "same folder"},
        {"{\"weight_map\": {\"c\": null}}", "same folder"},
        {"{\"weight_map\": {}}", "weight_map is missing or empty"},
        {"{\"weight_map\": []}", "weight_map is missing or empty"},
        {"{}", "weight_map is missing or empty"},
        {"[]", "not a JSON object"},
        {"", "line 1"},
        {"{\"weight_map\": {\"c\": \"model-2.safetensors\", \"c\": \"model-1.safetensors\"}}", "duplicate"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_text(name, bad[i][0]);
        refuse_folder(bad[i][1]);
    }
    write_text(name, "{\"weight_map\": {\"c\": \"model-2.safetensors\", \"x\": \"model-4.safetensors\"}}");
    write_file("model-4.safetensors", "{\"c\": " T("\"F32\"", "[2]", "[0, 8]") "}", 8);
    refuse_folder("model-4.safetensors: tensor c is in "); /* two files claim one name */
    write_file("model-4.safetensors", "{\"x\": " T("\"F32\"", "[2]", "[0, 8]") "}", 5);
    refuse_folder("model-4.safetensors: is cut short: its header speaks of 77 bytes, it has 74");
    write_text("model-4.safetensors", "");
    refuse_folder("model-4.safetensors: has 0 bytes");
    remove_file("model-4.safetensors");
    assert_int_equal(mkfifo(path_of("model-4.safetensors"), 0600), 0); /* refused, not waited for */
    refuse_folder("not a regular file");
    remove_file("model-4.safetensors");
    assert_int_equal(mkdir(path_of("model-4.safetensors"), 0700), 0);
    refuse_folder("not a regular file");
    remove_file("model-4.safetensors");
    /* The single file wins, as in the published loader; a link into a cache of blobs is followed. */
    assert_int_equal(symlink("model-2.safetensors", path_of("model.safetensors")), 0);
    t = open_folder();
    assert_int_equal(tensors_count(t), 1);
    tensors_close(t);
    remove_file("model.safetensors");
    remove_file("model-1.safetensors");
    remove_file("model-2.safetensors");
    remove_file(name);
}

static void test_long_folder_name(void **state)
{
    (void)state;
    char *name = malloc(10001);
    struct tensors *t;
    struct reason why;
    memset(name, 'a', 10000);
    name[10000] = '\0';
    assert_int_equal(tensors_open(&t, name, &why), STATUS_BAD_MODEL);
    name[4020] = '\0';
    assert_int_equal(tensors_open(&t, name, &why), STATUS_BAD_MODEL);
    assert_one_line(why.text);
    free(name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_single_file),
        cmocka_unit_test(test_digest_names_the_weights),
        cmocka_unit_test(test_digest_does_not_see_files),
        cmocka_unit_test(test_advise),
        cmocka_unit_test(test_many_names),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_header_length),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_refused_file_leaves_the_set),
        cmocka_unit_test(test_index),
        cmocka_unit_test(test_long_folder_name),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
