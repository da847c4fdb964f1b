/* fields.c - see fields.h. Nothing here knows what a field means. */
#include "runtime/fields.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum status fields_parse(json_t **out, const char *text, size_t text_bytes, const char *file,
                         struct reason *why)
{
    *out = NULL;
    json_error_t error;
    json_t *root = json_loadb(text, text_bytes, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return status_fail(why, STATUS_BAD_MODEL,
                           "%s: line %d, column %d: %.120s: fetch or write the file again", file, error.line,
                           error.column, error.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return status_fail(why, STATUS_BAD_MODEL, "%s: is not a JSON object: fetch the file again", file);
    }
    *out = root;
    return STATUS_OK;
}

/* The whole of an open regular file, or NULL with errno (0: it got shorter while it was read). */
static char *read_all(int fd, size_t bytes)
{
    char *text = malloc(bytes + 1);
    if (!text) return NULL;
    size_t done = 0;
    while (done < bytes) {
        errno = 0;
        ssize_t n = read(fd, text + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            free(text);
            return NULL;
        }
        done += (size_t)n;
    }
    return text;
}

enum status fields_load(json_t **out, const char *file, size_t limit_bytes, struct reason *why)
{
    *out = NULL;
    struct stat st;
    /* O_NONBLOCK: a FIFO of that name must not hang us; for regular files it means nothing. */
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return status_fail(why, STATUS_BAD_MODEL, "%s: %s: --model needs a Hugging Face model folder", file,
                           strerror(errno));
    enum status status = STATUS_OK;
    char *text = NULL;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        status = status_fail(why, STATUS_BAD_MODEL, "%s: is not a regular file", file);
    else if ((uintmax_t)st.st_size > limit_bytes)
        status = status_fail(why, STATUS_BAD_MODEL,
                             "%s: has %lld bytes, at most %zu are read: is it the right file?", file,
                             (long long)st.st_size, limit_bytes);
    else if (!(text = read_all(fd, (size_t)st.st_size)))
        status = status_fail(why, STATUS_BAD_MODEL, "%s: cannot be read: %s", file,
                             errno ? strerror(errno) : "it got shorter meanwhile");
    close(fd);
    if (status == STATUS_OK) status = fields_parse(out, text, (size_t)st.st_size, file, why);
    free(text);
    return status;
}

struct line {
    char *text;
    size_t n, room; /* room for text; the terminator is extra */
};

static int append(const char *chunk, size_t size, void *data)
{
    struct line *l = data;
    size_t fits = size < l->room - l->n ? size : l->room - l->n;
    memcpy(l->text + l->n, chunk, fits);
    l->n += fits;
    return fits < size ? -1 : 0; /* -1 ends the dump: the rest may be megabytes */
}

void fields_show(const json_t *value, char *text, size_t text_bytes)
{
    struct line l = {.text = text, .room = text_bytes - 4};
    int cut = json_dump_callback(value, append, &l, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII);
    memcpy(text + l.n, cut ? "..." : "", cut ? 4 : 1);
}

const json_t *fields_get(const struct fields *f, const char *name)
{
    const json_t *value = json_object_get(f->object, name);
    return json_is_null(value) ? NULL : value;
}

void fields_fail(struct fields *f, const char *name, const char *format, ...)
{
    if (f->status != STATUS_OK) return;
    char text[256], shown[72];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    const json_t *value = json_object_get(f->object, name);
    /* The end of a long file name says more than its beginning, and the field must fit behind it. */
    size_t length = strlen(f->file), most = 120;
    const char *file = length > most ? f->file + length - most : f->file;
    if (value) {
        fields_show(value, shown, sizeof shown);
        f->status = status_fail(f->why, STATUS_BAD_MODEL, "%s%s: %s%s is %s: %s", length > most ? "..." : "",
                                file, f->path, name, shown, text);
    } else {
        f->status = status_fail(f->why, STATUS_BAD_MODEL, "%s%s: %s%s is missing: %s",
                                length > most ? "..." : "", file, f->path, name, text);
    }
}

int fields_int(struct fields *f, const char *name, int fallback, int min, int max)
{
    const json_t *value = fields_get(f, name);
    if (f->status != STATUS_OK || !value) return fallback;
    json_int_t n = json_integer_value(value);
    if (!json_is_integer(value) || n < min || n > max) {
        fields_fail(f, name, "needs an integer from %d to %d; correct the file or fetch it again", min, max);
        return fallback;
    }
    return (int)n;
}

double fields_number(struct fields *f, const char *name, double fallback, double min, double max)
{
    const json_t *value = fields_get(f, name);
    if (f->status != STATUS_OK || !value) return fallback;
    double x = json_number_value(value);
    if (!json_is_number(value) || !isfinite(x) || x < min || x > max) {
        fields_fail(f, name, "needs a number from %g to %g; correct the file or fetch it again", min, max);
        return fallback;
    }
    return x;
}

bool fields_bool(struct fields *f, const char *name, bool fallback)
{
    const json_t *value = fields_get(f, name);
    if (f->status != STATUS_OK || !value) return fallback;
    if (!json_is_boolean(value)) {
        fields_fail(f, name, "needs true or false; correct the file or fetch it again");
        return fallback;
    }
    return json_is_true(value);
}

const char *fields_string(struct fields *f, const char *name, const char *fallback)
{
    const json_t *value = fields_get(f, name);
    if (f->status != STATUS_OK || !value) return fallback;
    if (!json_is_string(value)) {
        fields_fail(f, name, "needs a string; correct the file or fetch it again");
        return fallback;
    }
    return json_string_value(value);
}
