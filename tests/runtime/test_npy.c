/* test_npy.c - the .npy files that eval dumps: read back by the format's description, and by NumPy where the
 * test tools are installed (.venv, scripts/setup). */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "runtime/npy.h"

static char path[] = "/tmp/test_npy_XXXXXX";

static int make_file(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 || close(fd);
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(path);
}

static float value(int row, int col)
{
    return row == 1 && col == 0 ? -INFINITY : (float)row - (float)col / 7;
}

static void write_matrix(int rows, int cols)
{
    struct npy n;
    struct reason why;
    float *row = malloc((size_t)cols * sizeof *row);
    assert_non_null(row);
    assert_int_equal(npy_open(&n, "--dump-logits", path, rows, cols, &why), STATUS_OK);
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < cols; j++) row[j] = value(i, j);
        assert_int_equal(npy_write_row(&n, row, &why), STATUS_OK);
    }
    assert_int_equal(npy_close(&n, &why), STATUS_OK);
    assert_int_equal(npy_close(&n, &why), STATUS_OK); /* nothing left to close */
    free(row);
}

/* numpy.lib.format, version 1.0: magic, two bytes of version, u16 header length, a Python dict ending in a
 * newline, data aligned to 64. */
static void bytes_are_the_format(void **state)
{
    (void)state;
    static const int shapes[][2] = {{1, 1}, {3, 5}, {2, 49152}, {70, 1}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int rows = shapes[s][0], cols = shapes[s][1], got_rows, got_cols, n = 0;
        write_matrix(rows, cols);
        FILE *f = fopen(path, "rb");
        unsigned char head[10];
        assert_int_equal(fread(head, 1, 10, f), 10);
        assert_memory_equal(head, "\x93NUMPY\x01\x00", 8);
        int length = head[8] + 256 * head[9];
        char dict[512] = "";
        assert_int_equal((10 + length) % 64, 0);
        assert_int_equal(fread(dict, 1, (size_t)length, f), length);
        assert_int_equal(strlen(dict), length);
        assert_int_equal(dict[length - 1], '\n');
        assert_int_equal(sscanf(dict, "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }%n",
                                &got_rows, &got_cols, &n),
                         2);
        assert_true(n > 0 && got_rows == rows && got_cols == cols);
        for (; n < length - 1; n++) assert_int_equal(dict[n], ' ');
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < cols; j++) {
                float x;
                assert_int_equal(fread(&x, sizeof x, 1, f), 1);
                assert_true(x == value(i, j));
            }
        assert_int_equal(fgetc(f), EOF);
        fclose(f);
    }
}

static void numpy_reads_it(void **state)
{
    (void)state;
    if (access(".venv/bin/python", X_OK) != 0) skip();
    write_matrix(3, 1000);
    char command[1024];
    snprintf(command, sizeof command,
             ".venv/bin/python -c \"import numpy as n; a = n.load('%s', mmap_mode='r', allow_pickle=False); "
             "i, j = n.indices(a.shape).astype(n.float32); e = i - j / n.float32(7); e[1, 0] = -n.inf; "
             "assert a.dtype == n.dtype('<f4') and a.shape == (3, 1000) and a.flags.c_contiguous; "
             "assert (a == e).all()\"",
             path);
    assert_int_equal(system(command), 0);
}

static void a_wrong_number_of_rows_is_told(void **state)
{
    (void)state;
    const float row[4] = {1, 2, 3, 4};
    for (int written = 0; written <= 4; written++) {
        struct npy n;
        struct reason why = {""};
        assert_int_equal(npy_open(&n, "--dump-logits", path, 2, 4, &why), STATUS_OK);
        for (int i = 0; i < written; i++) assert_int_equal(npy_write_row(&n, row, &why), STATUS_OK);
        assert_int_equal(npy_close(&n, &why), written == 2 ? STATUS_OK : STATUS_IO);
        if (written == 1) assert_non_null(strstr(why.text, "1 of 2 rows"));
    }
}

static void a_full_disk_is_told(void **state)
{
    (void)state;
    struct npy n;
    struct reason why;
    static float row[20000];
    if (access("/dev/full", W_OK) != 0) skip();
    enum status s = npy_open(&n, "--dump-logits", "/dev/full", 3, 20000, &why);
    for (int i = 0; i < 3 && s == STATUS_OK; i++) s = npy_write_row(&n, row, &why);
    enum status closed = npy_close(&n, s == STATUS_OK ? &why : NULL);
    assert_true(s == STATUS_IO || closed == STATUS_IO);
    assert_non_null(strstr(why.text, "--dump-logits /dev/full: No space"));
    assert_int_equal(npy_open(&n, "--dump-logits", "/nowhere/file.npy", 1, 1, &why), STATUS_IO);
    assert_non_null(strstr(why.text, "/nowhere/file.npy: No such file"));
    assert_int_equal(npy_close(&n, &why), STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_are_the_format),
        cmocka_unit_test(numpy_reads_it),
        cmocka_unit_test(a_wrong_number_of_rows_is_told),
        cmocka_unit_test(a_full_disk_is_told),
    };
    return cmocka_run_group_tests(tests, make_file, remove_file);
}
