/* Verdicts over the facts of clusters that no test machine is. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/doctor.h"

enum { HOSTS = 300 };

static struct doctor_facts all[HOSTS];
static struct doctor_report report;

/* One rank a host, nothing wrong anywhere. */
static int set_up(void **state)
{
    (void)state;
    memset(all, 0, sizeof all);
    memset(&report, 0, sizeof report);
    for (int r = 0; r < HOSTS; r++) {
        struct doctor_facts *f = &all[r];
        snprintf(f->host, sizeof f->host, "h%d", r);
        strcpy(f->version, "1");
        strcpy(f->mpi, "Open MPI");
        strcpy(f->huge, "madvise");
        strcpy(f->interface, r ? "eth0" : "");
        f->node_size = f->threads = 1;
        f->cores = f->host_cores = 4;
        f->yields = true;
        f->notices_s = 6;
        f->memlock = f->files_max = -1;
        f->available = (int64_t)64 << 30;
        f->memory_gb_s = 10;
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    doctor_close(&report);
    return 0;
}

static const struct doctor_line *line(const char *name)
{
    for (int i = 0; i < report.n_lines; i++)
        if (strcmp(report.line[i].name, name) == 0) return &report.line[i];
    fail_msg("no line %s", name);
    return NULL;
}

static void assert_line(enum doctor_verdict v, const char *name, const char *words)
{
    const struct doctor_line *l = line(name);
    if (l->verdict != v || !strstr(l->text, words))
        fail_msg("%s %s: %s", doctor_verdict_name(l->verdict), name, l->text);
}

static void many_hosts(void **state)
{
    (void)state;
    doctor_judge(&report, all, HOSTS);
    assert_int_equal(doctor_worst(&report), DOCTOR_OK);
    int reached = 0;
    for (int i = 0; i < report.n_lines; i++) reached += strcmp(report.line[i].name, "network") == 0;
    assert_int_equal(reached, HOSTS - 1);
    all[HOSTS - 1].interface[0] = 0;
    doctor_judge(&report, all, HOSTS);
    assert_int_equal(doctor_worst(&report), DOCTOR_FAIL);
}

/* Neither is far from rank 0's. */
static void clocks_of_two_others(void **state)
{
    (void)state;
    all[1].skew_us = -300000;
    all[3].skew_us = 300000;
    doctor_judge(&report, all, 4);
    assert_line(DOCTOR_WARN, "clocks", "at most 0.600 s apart: h1 and h3");
}

static void huge_pages_of_another_host(void **state)
{
    (void)state;
    strcpy(all[2].huge, "never");
    doctor_judge(&report, all, 4);
    assert_line(DOCTOR_WARN, "huge pages", "h2: transparent: never");
}

/* No binding can give it more cores than the host has. */
static void threads_beyond_the_host(void **state)
{
    (void)state;
    all[1].threads = 4;
    all[1].cores = 1;
    doctor_judge(&report, all, 2);
    assert_line(DOCTOR_WARN, "binding", "--bind-to none");
    doctor_close(&report);
    all[1].threads = 5;
    doctor_judge(&report, all, 2);
    assert_line(DOCTOR_WARN, "binding", "rank 1 on h1 has 5 threads for 4 cores: lower --threads");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(many_hosts),
        TEST(clocks_of_two_others),
        TEST(huge_pages_of_another_host),
        TEST(threads_beyond_the_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
