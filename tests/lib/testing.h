/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What all tests in C need of cmocka: its header, which wants others before it; a test that must
 * leave as many descriptors open as it found; a skip that says why.
 */
#ifndef TESTING_H
#define TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/lib/server.h"

/* Runs the test that *state is, and compares descriptors if it has passed so far. */
static inline void counted_run(void **state)
{
	void (*test)(void **state) = *state;
	int before = descriptors_count(0);

	*state = NULL;
	test(state);
	assert_int_equal(descriptors_count(0), before);
}

/* A test that must close every descriptor that it opens or is given. */
#define counted_test(test)                                                     \
	(struct CMUnitTest)                                                    \
	{                                                                      \
		.name = #test, .test_func = counted_run, .initial_state = test \
	}

/* Fails with a message of its own, for which cmocka's asserts have no place. */
#define assert_that(condition, ...)            \
	do {                                   \
		if (!(condition))              \
			fail_msg(__VA_ARGS__); \
	} while (0)

/* Skips the test, with the reason as a comment in the output. */
#define skip_because(...)                          \
	do {                                       \
		printf("# skipped: " __VA_ARGS__); \
		printf("\n");                      \
		skip();                            \
	} while (0)

#endif
