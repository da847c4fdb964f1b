/* check.h - checks for tests that run on several ranks.
 *
 * A failed check ends all ranks at once: a cmocka assertion would leave the others waiting in a collective
 * until the test's time is over. */
#ifndef RETRO_TESTS_COMM_CHECK_H
#define RETRO_TESTS_COMM_CHECK_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "comm/comm.h"
#include "runtime/base/die.h"

#define CHECK(condition, ...)                                                                                \
    do {                                                                                                     \
        if (!(condition)) DIE(EXIT_CODE_BUG, #condition, __VA_ARGS__);                                       \
    } while (0)

#endif
