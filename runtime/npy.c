#include "runtime/npy.h"

#include <errno.h>
#include <string.h>

enum status npy_open(struct npy *n, const char *flag, const char *path, int64_t rows, int64_t cols,
                     struct reason *why)
{
    *n = (struct npy){.file = fopen(path, "wb"), .flag = flag, .path = path, .rows = rows, .cols = cols};
    if (!n->file) return status_fail(why, STATUS_IO, "%s %s: %s", flag, path, strerror(errno));
    /* Magic, version 1.0, u16 length of a header padded so that the data begins at a multiple of 64. */
    char header[128];
    memset(header, ' ', sizeof header);
    memcpy(header, "\x93NUMPY\x01\x00\x76\x00", 10);
    int length = snprintf(header + 10, sizeof header - 10,
                          "{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %lld), }",
                          (long long)rows, (long long)cols);
    header[10 + length] = ' ';
    header[sizeof header - 1] = '\n';
    if (fwrite(header, sizeof header, 1, n->file) == 1) return STATUS_OK;
    status_fail(why, STATUS_IO, "%s %s: %s", flag, path, strerror(errno));
    fclose(n->file);
    n->file = NULL;
    return STATUS_IO;
}

enum status npy_write_row(struct npy *n, const float *row, struct reason *why)
{
    n->written++;
    if (fwrite(row, sizeof *row, (size_t)n->cols, n->file) == (size_t)n->cols) return STATUS_OK;
    return status_fail(why, STATUS_IO, "%s %s: %s", n->flag, n->path, strerror(errno));
}

enum status npy_close(struct npy *n, struct reason *why)
{
    if (!n->file) return STATUS_OK;
    int failed = fclose(n->file);
    n->file = NULL;
    if (failed) return status_fail(why, STATUS_IO, "%s %s: %s", n->flag, n->path, strerror(errno));
    if (n->written != n->rows)
        return status_fail(why, STATUS_IO, "%s %s: %lld of %lld rows", n->flag, n->path,
                           (long long)n->written, (long long)n->rows);
    return STATUS_OK;
}
