/* fuzz_chat.c - libFuzzer target: any text as a chat template; where it is recognised, conversations are
 * rendered. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/buffer.h"
#include "runtime/chat_shape.h"
#include "runtime/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct chat_message messages[] = {{"system", " brief\n"},
                                                   {"user", "\xe6\x97\xa5 "},
                                                   {"assistant", "<think>\nx</think>\n\ny"},
                                                   {"user", ""}};
    struct buffer template = {0};
    buffer_append(&template, (const char *)data, strnlen((const char *)data, size));
    if (utf8_valid_prefix(template.bytes, template.n) !=
        template.n) { /* JSON strings and the reader see to that */
        buffer_free(&template);
        return 0;
    }
    struct buffer ends[2] = {{0}, {0}};
    buffer_append_string(&ends[0], "<s>");
    buffer_append_string(&ends[1], "</s>");
    char *text = buffer_take(&template);
    struct chat_template c = {.bos = buffer_take(&ends[0]), .eos = buffer_take(&ends[1])};
    struct reason why = {{0}};
    if (chat_recognise(&c, text, &why) == STATUS_OK) {
        for (int first = 0; first < 4; first++) {
            char *out;
            if (chat_render(&c, messages + first, 4 - first, &out, &why) == STATUS_OK)
                ASSERT(utf8_valid_prefix(out, strlen(out)) == strlen(out));
            free(out);
        }
    } else {
        ASSERT(why.text[0] && !strchr(why.text, '\n'));
    }
    chat_close(&c);
    free(text);
    return 0;
}
