/* chat_tool.c - drives runtime/chat.h for tests/runtime/chat_compare.py.
 *
 *   chat_tool DIR
 *
 * Each line of standard input is a JSON array of {"role", "content"}; each answer a JSON array on one line:
 * [true, text] or [false, reason]. A folder that is refused ends the program with code 2 and the reason on
 * standard error. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/chat.h"

#define MESSAGES_MAX 64

int main(int argc, char **argv)
{
    struct chat_template chat;
    struct reason why = {{0}};
    if (argc != 2 || chat_open(&chat, argv[1], &why) != STATUS_OK) {
        fprintf(stderr, "%s\n", why.text);
        return 2;
    }
    printf("%s\n", chat_format_name(chat.format));
    fflush(stdout);
    char *line = NULL;
    size_t capacity = 0;
    while (getline(&line, &capacity, stdin) > 0) {
        json_t *list = json_loads(line, 0, NULL);
        struct chat_message messages[MESSAGES_MAX];
        int n = 0;
        for (size_t i = 0; i < json_array_size(list) && n < MESSAGES_MAX; i++) {
            const json_t *entry = json_array_get(list, i);
            messages[n++] = (struct chat_message){json_string_value(json_object_get(entry, "role")),
                                                  json_string_value(json_object_get(entry, "content"))};
        }
        char *text;
        enum status status = chat_render(&chat, messages, n, &text, &why);
        json_t *answer = json_pack("[bs]", status == STATUS_OK, status == STATUS_OK ? text : why.text);
        json_dumpf(answer, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(answer);
        json_decref(list);
        free(text);
    }
    free(line);
    chat_close(&chat);
    return 0;
}
