/* test_chat.c - chat formats: one conversation per family as its documentation shows it, and what is refused.
 * That the text equals Jinja's for hundreds of conversations is in chat_compare.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/buffer.h"
#include "runtime/chat_scan.h"
#include "runtime/chat_shape.h"

static char *copy(const char *s)
{
    struct buffer b = {0};
    buffer_append_string(&b, s);
    return buffer_take(&b);
}

static enum status recognise(struct chat_template *c, const char *template, struct reason *why)
{
    *c = (struct chat_template){.bos = copy("<s>"), .eos = copy("</s>")};
    return chat_recognise(c, template, why);
}

static void expect(const char *template, enum chat_format format, const struct chat_message *m, int n,
                   const char *want)
{
    struct chat_template c;
    struct reason why = {{0}};
    char *text;
    if (recognise(&c, template, &why) != STATUS_OK) fail_msg("%s", why.text);
    assert_int_equal(c.format, format);
    if (chat_render(&c, m, n, &text, &why) != STATUS_OK) fail_msg("%s", why.text);
    assert_string_equal(text, want);
    free(text);
    chat_close(&c);
}

static const struct chat_message talk[] = {
    {"system", " Be brief. "}, {"user", " Hi "}, {"assistant", " Yes. "}, {"user", "Why?"}};

#define CHATML                                                                                               \
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "                \
    "'<|im_start|>system\\nDefault.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' "  \
    "+ "                                                                                                     \
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ "               \
    "'<|im_start|>assistant\\n' }}{% endif %}"

static void chatml(void **state)
{
    (void)state;
    expect(
        CHATML, CHAT_CHATML, talk, 4,
        "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
        "<|im_start|>assistant\n Yes. <|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n");
    expect(
        CHATML, CHAT_CHATML, talk + 3, 1,
        "<|im_start|>system\nDefault.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n");
}

static void llama3_trims_and_dates(void **state)
{
    (void)state;
    expect("{{ bos_token }}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
           "message['content'] "
           "| trim + '<|eot_id|>' }}",
           CHAT_LLAMA3, talk, 2,
           "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
           "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
    expect("{{- bos_token }}{%- set date_string = \"26 Jul 2024\" %}{{- \"<|start_header_id|>system\" }}{{- "
           "\"Cutting "
           "Knowledge Date: December 2023\\n\" }}{{- \"Today Date: \" + date_string + \"\\n\\n\" }}{{ "
           "message['content'] "
           "| trim }}",
           CHAT_LLAMA3, talk + 3, 1,
           "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday "
           "Date: 26 Jul "
           "2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>"
           "assistant"
           "<|end_header_id|>\n\n");
}

#define MISTRAL(which, open, close)                                                                          \
    "{{- bos_token }}{%- if loop." which " and system_message is defined %}{{- \"" open                      \
    "\" + system_message + "                                                                                 \
    "\"\\n\\n\" + message[\"content\"] + \"" close "\" }}{%- else %}{{- \"" open                             \
    "\" + message[\"content\"] + \"" close                                                                   \
    "\" }}{%- endif %}{{- \" \" + message[\"content\"]|trim + eos_token}}"

static void mistral_places_the_system_message(void **state)
{
    (void)state;
    expect(MISTRAL("last", "[INST] ", "[/INST]"), CHAT_MISTRAL, talk, 4,
           "<s>[INST]  Hi [/INST] Yes.</s>[INST]  Be brief. \n\nWhy?[/INST]");
    expect(MISTRAL("first", " [INST] ", " [/INST]"), CHAT_MISTRAL, talk, 4,
           "<s> [INST]  Be brief. \n\n Hi  [/INST] Yes.</s> [INST] Why? [/INST]");
}

static void llama2_wraps_the_system_message(void **state)
{
    (void)state;
    expect("{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{{ "
           "bos_token + "
           "'[INST] ' + content.strip() + ' [/INST]' }}{{ ' '  + content.strip() + ' ' + eos_token }}",
           CHAT_LLAMA2, talk, 4,
           "<s>[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\n Hi [/INST] Yes. </s><s>[INST] Why? [/INST]");
}

#define BAR "\xef\xbd\x9c"
static void deepseek_drops_reasoning(void **state)
{
    (void)state;
    const struct chat_message m[] = {{"user", "1"}, {"assistant", "<think>hm</think>2"}, {"user", "3"}};
    expect("{{bos_token}}{{'<" BAR "User" BAR
           ">' + message['content']}}{% set content = content.split('</think>')[-1] "
           "%}{{'<" BAR "Assistant" BAR ">' + content + '<end>'}}{% if add_generation_prompt %}{{'<" BAR
           "Assistant" BAR "><think>\\n'}}{% endif %}",
           CHAT_DEEPSEEK_R1, m, 3,
           "<s><" BAR "User" BAR ">1<" BAR "Assistant" BAR ">2<end><" BAR "User" BAR ">3<" BAR "Assistant" BAR
           "><think>\n");
}

static void foreign_templates_are_refused(void **state)
{
    (void)state;
    static const char *const foreign[] = {"",
                                          "plain text",
                                          "{{ '<start_of_turn>' }}",
                                          "{{'<|im_start|><|im_sep|>'}}",
                                          "{{ '[INST]' }}{{ message['content'] }}",
                                          "<" BAR "User" BAR ">"};
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        struct chat_template c;
        struct reason why = {{0}};
        assert_int_equal(recognise(&c, foreign[i], &why), STATUS_BAD_MODEL);
        assert_non_null(strstr(why.text, foreign[i]));
        chat_close(&c);
    }
}

static void bad_conversations_are_refused(void **state)
{
    (void)state;
    struct chat_template c;
    struct reason why;
    char *text;
    assert_int_equal(recognise(&c, CHATML, &why), STATUS_OK);
    assert_int_equal(chat_render(&c, talk, 0, &text, &why), STATUS_BAD_INPUT);
    assert_int_equal(chat_render(&c, &(struct chat_message){"tool", "x"}, 1, &text, &why), STATUS_BAD_INPUT);
    assert_non_null(strstr(why.text, "\"tool\""));
    assert_int_equal(chat_render(&c, &(struct chat_message){"user", "a\xff"}, 1, &text, &why),
                     STATUS_BAD_INPUT);
    assert_non_null(strstr(why.text, "byte 1 is 0xff"));
    assert_null(text);
    chat_close(&c);
    assert_int_equal(recognise(&c, MISTRAL("last", "[INST]", "[/INST]"), &why), STATUS_OK);
    assert_int_equal(chat_render(&c, talk + 2, 1, &text, &why), STATUS_BAD_INPUT);
    assert_non_null(strstr(why.text, "in turn"));
    chat_close(&c);
}

static void tags_are_read_as_jinja_reads_them(void **state)
{
    (void)state;
    struct chat_scan s;
    chat_scan_open(&s, "{# '{{' #}a{{- 'x}}\\'\\x41\\u65e5' + \"%}\" -}}{% set a.b = 1 %}{%set c='d'%}{{ "
                       "f('+', x) + 'y' }}{{ '");
    assert_int_equal(s.n_tags, 4);
    char *text = chat_tag_literal(&s.tags[0]);
    assert_string_equal(text, "x}}'A\xe6\x97\xa5%}");
    free(text);
    assert_string_equal(s.tags[1].set, "");
    assert_string_equal(s.tags[2].set, "c");
    assert_true(s.tags[3].has_other && s.tags[3].n_terms == 2);
    assert_null(chat_tag_literal(&s.tags[3]));
    chat_scan_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chatml),
        cmocka_unit_test(llama3_trims_and_dates),
        cmocka_unit_test(mistral_places_the_system_message),
        cmocka_unit_test(llama2_wraps_the_system_message),
        cmocka_unit_test(deepseek_drops_reasoning),
        cmocka_unit_test(foreign_templates_are_refused),
        cmocka_unit_test(bad_conversations_are_refused),
        cmocka_unit_test(tags_are_read_as_jinja_reads_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
