/* tokenizer_config.c - reads tokenizer_config.json and other small optional files beside it. */
#include "runtime/tokenizer_config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/buffer.h"

#define BYTES_MAX ((size_t)16 << 20)

/* The rest of an open file into `text`; false with errno where it cannot be read. */
static bool read_rest(int fd, struct buffer *text)
{
    while (text->n <= BYTES_MAX) {
        ssize_t got = read(fd, buffer_reserve(text, 65536), 65536);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got == 0;
        text->n += (size_t)got;
    }
    errno = EFBIG;
    return false;
}

enum status tokenizer_config_read(char **text, size_t *n, const char *dir, const char *name,
                                  struct reason *why)
{
    *text = NULL;
    *n = 0;
    struct buffer path = {0}, content = {0};
    buffer_append_string(&path, dir);
    buffer_append_string(&path, "/");
    buffer_append_string(&path, name);
    char *file = buffer_take(&path);
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO of that name must not hang us */
    struct stat st;
    enum status status = STATUS_OK;
    if (fd < 0 && errno == ENOENT) {
        /* absent is fine */
    } else if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) || !read_rest(fd, &content)) {
        status = status_fail(why, STATUS_BAD_MODEL,
                             "%.300s: cannot be read: %s: make it readable or fetch it again", file,
                             errno ? strerror(errno) : "no regular file");
    } else {
        *n = content.n;
        *text = buffer_take(&content);
    }
    if (fd >= 0) close(fd);
    buffer_free(&content);
    free(file);
    return status;
}

enum status tokenizer_config_load(json_t **root, const char *dir, struct reason *why)
{
    *root = NULL;
    char *text;
    size_t n;
    enum status status = tokenizer_config_read(&text, &n, dir, "tokenizer_config.json", why);
    if (status != STATUS_OK || !text) return status;
    json_error_t error;
    *root = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &error);
    free(text);
    if (json_is_object(*root)) return STATUS_OK;
    bool parsed = *root != NULL;
    json_decref(*root);
    *root = NULL;
    return status_fail(why, STATUS_BAD_MODEL,
                       "%.200s/tokenizer_config.json: line %d: %.120s: fetch the file again", dir,
                       parsed ? 1 : error.line, parsed ? "is not a JSON object" : error.text);
}

const char *tokenizer_config_token(const json_t *root, const char *name)
{
    const json_t *value = json_object_get(root, name);
    if (json_is_object(value)) value = json_object_get(value, "content");
    return json_string_value(value);
}
