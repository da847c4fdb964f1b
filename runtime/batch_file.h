/* batch_file.h - writing that survives a crash: whole files that appear by rename, lines at a given place.
 *
 * Every failure is one line with the path and what to do; a file that could not be written whole is removed.
 */
#ifndef RETRO_BATCH_FILE_H
#define RETRO_BATCH_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "runtime/base/status.h"

/* PATH.tmp being written. */
struct batch_file {
    FILE *file;
    char *path; /* owned */
};

enum status batch_file_create(struct batch_file *f, const char *path, struct reason *why);
enum status batch_file_append(struct batch_file *f, const char *bytes, size_t n, struct reason *why);
/* To the disk. When `status` is not OK, or this fails, PATH.tmp is removed; returns the first failure. */
enum status batch_file_close(struct batch_file *f, enum status status, struct reason *why);
/* PATH.tmp becomes PATH, on the disk. */
enum status batch_file_rename(const char *path, struct reason *why);

/* All of bytes[0..n) at offset `at`. */
enum status batch_file_write(int fd, const void *bytes, size_t n, int64_t at, const char *path,
                             struct reason *why);
/* Whether PATH.tmp is there. */
bool batch_file_pending(const char *path);

/* Whether two paths lead to one file, be it there already or not. */
bool batch_file_same(const char *a, const char *b);
/* Why no file can be made at `path` (errno), or 0: else it would be noticed when the batch is done. */
int batch_file_folder_error(const char *path);

/* The names in the folder of `path` are on the disk. */
enum status batch_file_sync_folder(const char *path, struct reason *why);

#endif
