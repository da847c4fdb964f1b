/* test_batch_journal.c - a batch's journal: every way to cut or damage it, other batches, a full disk, and
 * the files of results that come of it. */
#define _GNU_SOURCE
#include <jansson.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "runtime/batch_journal.h"
#include "tests/runtime/random.h"

enum { LINES = 12 };

static char folder[] = "/tmp/test_batch_journal_XXXXXX";
static char output[64], errors[64], journal[80];
static json_t *settings;
static struct batch_identity identity = {
    .input_bytes = 100, .input_sha256 = "ab", .input_lines = LINES, .created = 5};

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(output, sizeof output, "%s/out.jsonl", folder);
    snprintf(errors, sizeof errors, "%s/err.jsonl", folder);
    snprintf(journal, sizeof journal, "%s.journal", output);
    settings = json_pack("{s:s, s:i}", "--policy", "retro", "--window", 2);
    identity.settings = settings;
    return settings ? 0 : -1;
}

static int clear(void **state)
{
    (void)state;
    unlink(output);
    unlink(errors);
    unlink(journal);
    return 0;
}

static int remove_folder(void **state)
{
    clear(state);
    json_decref(settings);
    return rmdir(folder); /* fails when a temporary file was left behind */
}

static void opens(struct batch_journal *j, const char *errors_path)
{
    struct reason why = {""};
    if (batch_journal_open(j, output, errors_path, &identity, &why) != STATUS_OK)
        print_error("%s\n", why.text);
    assert_string_equal(why.text, "");
}

static void refuses(const char *errors_path, const struct batch_identity *id, const char *word)
{
    struct batch_journal j;
    struct reason why;
    assert_int_equal(batch_journal_open(&j, output, errors_path, id, &why), STATUS_BAD_OPTION);
    if (!strstr(why.text, word)) print_error("%s: %s\n", word, why.text);
    assert_non_null(strstr(why.text, word));
}

/* The record of a line: of its own length, with what JSON may hold. */
static size_t record_of(int64_t line, char text[256])
{
    return (size_t)snprintf(
        text, 256, "{\"id\":%d,\"record\":\"%.*s\\n\xc3\xa4\"}", (int)line, (int)line * 9 % 80,
        "\\\\\\\\crc crc,\\\"crc\\\":\\\"00000000\\\"}{}{}{}{}{}{}{}{}{}{}{}{}{}{}{}{}{}{}{}{}{}");
}

static void add(struct batch_journal *j, int64_t line)
{
    char text[256];
    struct reason why;
    assert_false(batch_journal_has(j, line));
    assert_int_equal(batch_journal_add(j, line, line % 4 == 0, text, record_of(line, text), &why), STATUS_OK);
    assert_true(batch_journal_has(j, line));
}

static void add_all(struct batch_journal *j)
{
    for (int i = 1; i <= LINES; i++) add(j, i);
}

static char *contents(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *bytes = malloc(1 << 16);
    assert_non_null(bytes);
    *n = fread(bytes, 1, (1 << 16) - 1, f);
    bytes[*n] = 0;
    fclose(f);
    return bytes;
}

static void write_file(const char *path, const char *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* A file of results holds these lines in this order. */
static void holds(const char *path, bool results, bool bad)
{
    size_t n, at = 0;
    char *bytes = contents(path, &n), text[256];
    for (int64_t line = 1; line <= LINES; line++) {
        if (!(line % 4 == 0 ? bad : results)) continue;
        size_t k = record_of(line, text);
        assert_true(at + k < n);
        assert_memory_equal(bytes + at, text, k);
        assert_int_equal(bytes[at + k], '\n');
        at += k + 1;
    }
    assert_int_equal(at, n);
    free(bytes);
}

static void finish(struct batch_journal *j)
{
    struct reason why;
    for (int64_t line = 1; line <= LINES; line++)
        if (!batch_journal_has(j, line)) add(j, line);
    assert_int_equal(batch_journal_publish(j, &why), STATUS_OK);
    assert_true(j->complete);
}

static void results_come_in_input_order(void **state)
{
    (void)state;
    for (int separate = 0; separate < 2; separate++) {
        struct batch_journal j;
        const char *path = separate ? errors : NULL;
        clear(NULL);
        opens(&j, path);
        for (int i = 1; i <= 5; i++) add(&j, i * 5 % (LINES + 1));
        finish(&j);
        assert_int_equal(j.n_records, LINES);
        assert_int_equal(j.n_errors, LINES / 4);
        batch_journal_close(&j);
        holds(output, true, !separate);
        if (separate) holds(errors, false, true);
        assert_int_equal(access(errors, F_OK) == 0, separate);
        /* Again: nothing to do. */
        opens(&j, path);
        assert_true(j.complete);
        batch_journal_close(&j);
        unlink(output);
        refuses(path, &identity, "is gone");
    }
}

/* However many bytes of the journal survive, opening keeps the whole records among them, and the run that
 * goes on from there leaves the same files. */
static void any_cut_continues(void **state)
{
    (void)state;
    struct batch_journal j;
    size_t n, ends[LINES + 1];
    opens(&j, NULL);
    ends[0] = (size_t)j.n_bytes;
    for (int i = 1; i <= LINES; i++) {
        add(&j, i * 8 % (LINES + 1));
        ends[i] = (size_t)j.n_bytes;
    }
    batch_journal_close(&j);
    char *bytes = contents(journal, &n);
    assert_int_equal(n, ends[LINES]);
    for (size_t cut = 0; cut <= n; cut++) {
        int whole = 0;
        while (whole < LINES && ends[whole + 1] <= cut) whole++;
        clear(NULL);
        write_file(journal, bytes, cut);
        opens(&j, NULL);
        assert_int_equal(j.n_records, whole);
        assert_int_equal(j.n_lost, cut < ends[0] ? cut : cut - ends[whole]);
        assert_int_equal(j.created, 5);
        for (int i = 1; i <= LINES; i++)
            assert_int_equal(batch_journal_has(&j, i * 8 % (LINES + 1)), i <= whole);
        if (cut % 16 == 0) {
            finish(&j);
            holds(output, true, true);
        }
        batch_journal_close(&j);
    }
    free(bytes);
}

/* A changed byte, anywhere behind the head, ends the good part at its record. */
static void any_damage_is_noticed(void **state)
{
    (void)state;
    struct batch_journal j;
    size_t n, head;
    opens(&j, NULL);
    head = (size_t)j.n_bytes;
    add_all(&j);
    batch_journal_close(&j);
    char *bytes = contents(journal, &n);
    struct random r = {3};
    for (size_t at = head; at < n; at++) {
        char was = bytes[at];
        int before = 0;
        for (size_t k = head; k < at; k++) before += bytes[k] == '\n';
        bytes[at] = (char)(was ^ random_int(&r, 1, 255));
        clear(NULL);
        write_file(journal, bytes, n);
        opens(&j, NULL);
        assert_int_equal(j.n_records, before);
        batch_journal_close(&j);
        bytes[at] = was;
    }
    free(bytes);
}

static void a_line_twice_is_damage(void **state)
{
    (void)state;
    struct batch_journal j;
    struct buffer again = {0};
    char text[256];
    opens(&j, NULL);
    add(&j, 3);
    batch_record_format(&again, 3, false, text, record_of(3, text));
    FILE *f = fopen(journal, "ab");
    assert_non_null(f);
    assert_int_equal(fwrite(again.bytes, 1, again.n, f), again.n);
    fclose(f);
    batch_journal_close(&j);
    opens(&j, NULL);
    assert_int_equal(j.n_records, 1);
    assert_int_equal(j.n_lost, again.n);
    batch_journal_close(&j);
    buffer_free(&again);
}

static void other_batches_are_refused(void **state)
{
    (void)state;
    struct batch_journal j;
    struct batch_identity other = identity;
    opens(&j, NULL);
    refuses(NULL, &identity, "another retro batch is writing it");
    add(&j, 2);
    batch_journal_close(&j);
    other.input_sha256 = "ac";
    refuses(NULL, &other, "belongs to another --input");
    other = identity;
    other.input_bytes++;
    refuses(NULL, &other, "belongs to another --input");
    other = identity;
    other.created++; /* the file's time may change, the first one stays */
    opens(&j, NULL);
    assert_int_equal(j.created, 5);
    batch_journal_close(&j);
    json_t *changed = json_deep_copy(settings);
    json_object_set_new(changed, "--window", json_integer(4));
    other = identity;
    other.settings = changed;
    refuses(NULL, &other, "was begun with --window 2, this run has 4");
    json_decref(changed);
    opens(&j, NULL); /* none of this did any harm */
    assert_int_equal(j.n_records, 1);
    finish(&j);
    batch_journal_close(&j);
}

static void foreign_files_are_refused(void **state)
{
    (void)state;
    struct stat st;
    write_file(output, "mine\n", 5);
    refuses(NULL, &identity, "exists and is not of this batch");
    assert_int_not_equal(stat(journal, &st), 0);
    unlink(output);
    write_file(errors, "", 0);
    refuses(errors, &identity, "--errors");
    unlink(errors);
    refuses("/nowhere/errors", &identity, "/nowhere/errors: No such file");
    struct batch_journal j;
    opens(&j, errors);
    add(&j, 1);
    batch_journal_close(&j);
    write_file(errors, "mine\n", 5); /* since then */
    refuses(errors, &identity, "--errors");
    unlink(errors);
    unlink(journal);
    write_file(journal, "{\"mine\":1}\n", 11);
    refuses(NULL, &identity, "not a journal");
    write_file(journal, "no JSON\n", 8);
    refuses(NULL, &identity, "not a journal");
    unlink(journal);
    assert_int_equal(mkdir(journal, 0700), 0);
    refuses(NULL, &identity, journal);
    rmdir(journal);
}

/* A limit of the file size is a full disk that a test can make: the record that does not fit is refused
 * whole, the others stay, and with more room the run goes on. */
static void run_into_the_limit(rlim_t limit)
{
    struct batch_journal j;
    struct rlimit old, tight;
    struct reason why = {""};
    char text[256];
    int64_t line = 1;
    clear(NULL);
    opens(&j, NULL);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    tight = old;
    tight.rlim_cur = limit;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    enum status status = STATUS_OK;
    for (; line <= LINES; line++) {
        status = batch_journal_add(&j, line, false, text, record_of(line, text), &why);
        if (status != STATUS_OK) break;
    }
    if (status == STATUS_OK) {
        status = batch_journal_publish(&j, &why);
        assert_int_not_equal(access(output, F_OK), 0);
    }
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(status, STATUS_IO);
    assert_non_null(strstr(why.text, "make room and run the same command again"));
    batch_journal_close(&j);
    opens(&j, NULL);
    assert_int_equal(j.n_records, line - 1);
    assert_int_equal(j.n_lost, 0);
    finish(&j);
    batch_journal_close(&j);
}

static void a_full_disk_loses_nothing(void **state)
{
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    for (rlim_t limit = 300; limit < 900; limit += 37) run_into_the_limit(limit);
    signal(SIGXFSZ, SIG_DFL);
}

/* The output does not fit although the journal did: only a file of results can be the larger one. */
static void publishing_fails_whole(void **state)
{
    (void)state;
    struct batch_journal j;
    struct reason why;
    opens(&j, NULL);
    add_all(&j);
    char temporary[80];
    snprintf(temporary, sizeof temporary, "%s.tmp", output);
    assert_int_equal(mkdir(temporary, 0700), 0);
    assert_int_equal(batch_journal_publish(&j, &why), STATUS_IO);
    rmdir(temporary);
    assert_int_not_equal(access(output, F_OK), 0);
    batch_journal_close(&j);
    opens(&j, NULL);
    assert_int_equal(j.n_records, LINES);
    assert_false(j.complete);
    finish(&j);
    batch_journal_close(&j);
    holds(output, true, true);
}

/* Two batches with one --errors: the second to end leaves the first one's file alone. */
static void what_appeared_meanwhile_stays(void **state)
{
    (void)state;
    struct batch_journal j;
    struct reason why;
    size_t n;
    opens(&j, errors);
    add_all(&j);
    write_file(errors, "mine\n", 5);
    assert_int_equal(batch_journal_publish(&j, &why), STATUS_BAD_OPTION);
    assert_non_null(strstr(why.text, "--errors"));
    char *text = contents(errors, &n);
    assert_int_equal(n, 5);
    assert_memory_equal(text, "mine\n", 5);
    free(text);
    unlink(errors);
    assert_int_equal(batch_journal_publish(&j, &why), STATUS_OK);
    batch_journal_close(&j);
    holds(errors, false, true);
}

/* A crash after the files of results were renamed and before the journal was: they are its own, and it publishes
 * them again. */
static void a_crash_between_renames_is_mended(void **state)
{
    (void)state;
    struct batch_journal j;
    struct reason why;
    size_t n;
    opens(&j, errors);
    add_all(&j);
    char *before = contents(journal, &n), ended[100];
    snprintf(ended, sizeof ended, "%s.tmp", journal);
    for (int renamed = 1; renamed <= 2; renamed++) {
        finish(&j);
        batch_journal_close(&j);
        write_file(journal, before, n);
        write_file(ended, "", 0); /* the journal's end, not renamed yet */
        if (renamed == 1) unlink(output);
        opens(&j, errors);
        assert_false(j.complete);
        assert_int_equal(j.n_records, LINES);
    }
    assert_int_equal(batch_journal_publish(&j, &why), STATUS_OK);
    batch_journal_close(&j);
    holds(output, true, false);
    holds(errors, false, true);
    free(before);
}

/* A lock ends with its process, however that ends. */
static void a_killed_process_leaves_no_lock(void **state)
{
    (void)state;
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct batch_journal j;
        struct reason why;
        if (batch_journal_open(&j, output, NULL, &identity, &why) != STATUS_OK) _exit(1);
        if (write(ready[1], "", 1) != 1) _exit(1);
        for (;;) pause();
    }
    char byte;
    assert_int_equal(read(ready[0], &byte, 1), 1);
    refuses(NULL, &identity, "another retro batch is writing it");
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    struct batch_journal j;
    opens(&j, NULL);
    batch_journal_close(&j);
    close(ready[0]);
    close(ready[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(results_come_in_input_order, clear),
        cmocka_unit_test_setup(any_cut_continues, clear),
        cmocka_unit_test_setup(any_damage_is_noticed, clear),
        cmocka_unit_test_setup(a_line_twice_is_damage, clear),
        cmocka_unit_test_setup(other_batches_are_refused, clear),
        cmocka_unit_test_setup(foreign_files_are_refused, clear),
        cmocka_unit_test_setup(a_full_disk_loses_nothing, clear),
        cmocka_unit_test_setup(publishing_fails_whole, clear),
        cmocka_unit_test_setup(what_appeared_meanwhile_stays, clear),
        cmocka_unit_test_setup(a_crash_between_renames_is_mended, clear),
        cmocka_unit_test_setup(a_killed_process_leaves_no_lock, clear),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
