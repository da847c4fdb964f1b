#include "runtime/batch_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/buffer.h"

/* "PATH: No space left on device: make room and run the same command again". */
static enum status failed(const char *path, int error, struct reason *why)
{
    bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
    return status_fail(why, STATUS_IO, "%s: %s%s", path, strerror(error),
                       full ? ": make room and run the same command again, finished results are kept" : "");
}

static char *temporary(const char *path)
{
    struct buffer b = {0};
    buffer_append_string(&b, path);
    buffer_append_string(&b, ".tmp");
    return buffer_take(&b);
}

enum status batch_file_create(struct batch_file *f, const char *path, struct reason *why)
{
    f->path = temporary(path);
    f->file = fopen(f->path, "wbe");
    if (f->file) return STATUS_OK;
    enum status status = failed(f->path, errno, why);
    free(f->path);
    return status;
}

enum status batch_file_append(struct batch_file *f, const char *bytes, size_t n, struct reason *why)
{
    return fwrite(bytes, 1, n, f->file) == n ? STATUS_OK : failed(f->path, errno, why);
}

enum status batch_file_close(struct batch_file *f, enum status status, struct reason *why)
{
    if (status == STATUS_OK && (fflush(f->file) != 0 || fsync(fileno(f->file)) != 0))
        status = failed(f->path, errno, why);
    if (fclose(f->file) != 0 && status == STATUS_OK) status = failed(f->path, errno, why);
    if (status != STATUS_OK) unlink(f->path);
    free(f->path);
    return status;
}

enum status batch_file_rename(const char *path, struct reason *why)
{
    char *from = temporary(path);
    enum status status = rename(from, path) == 0 ? STATUS_OK : failed(path, errno, why);
    free(from);
    return status == STATUS_OK ? batch_file_sync_folder(path, why) : status;
}

enum status batch_file_write(int fd, const void *bytes, size_t n, int64_t at, const char *path,
                             struct reason *why)
{
    for (size_t done = 0; done < n;) {
        ssize_t k = pwrite(fd, (const char *)bytes + done, n - done, (off_t)at + (off_t)done);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return failed(path, errno, why);
        done += (size_t)k;
    }
    return STATUS_OK;
}

static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    struct buffer b = {0};
    if (slash) buffer_append(&b, path, slash == path ? 1 : (size_t)(slash - path));
    else buffer_append_string(&b, ".");
    return buffer_take(&b);
}

static bool one_inode(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static const char *name_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool batch_file_same(const char *a, const char *b)
{
    if (one_inode(a, b)) return true;
    if (access(a, F_OK) == 0 || access(b, F_OK) == 0) return false;
    char *folder[] = {folder_of(a), folder_of(b)};
    bool same = strcmp(name_of(a), name_of(b)) == 0 && one_inode(folder[0], folder[1]);
    free(folder[0]);
    free(folder[1]);
    return same;
}

bool batch_file_pending(const char *path)
{
    char *name = temporary(path);
    bool pending = access(name, F_OK) == 0;
    free(name);
    return pending;
}

int batch_file_folder_error(const char *path)
{
    struct stat st;
    char *folder = folder_of(path);
    int error = stat(folder, &st) == 0 && access(folder, W_OK | X_OK) == 0 ? 0 : errno;
    if (!error && !S_ISDIR(st.st_mode)) error = ENOTDIR;
    free(folder);
    return error;
}

enum status batch_file_sync_folder(const char *path, struct reason *why)
{
    char *folder = folder_of(path);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* Some file systems know no fsync of a folder (EINVAL) and need none. */
    bool bad = fd < 0 || (fsync(fd) != 0 && errno != EINVAL);
    enum status status = bad ? failed(folder, errno, why) : STATUS_OK;
    if (fd >= 0) close(fd);
    free(folder);
    return status;
}
