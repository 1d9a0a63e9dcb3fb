/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What all tests in C need of cmocka: its header, which wants others before it; a test that must
 * leave as many descriptors open as it found; a skip that says why; what the random parts start
 * from.
 */
#ifndef TESTING_H
#define TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/client.h"
#include "tests/lib/deadline.h"
#include "tests/lib/server.h"

/* ONLY='word*' runs no other tests than those whose names match. */
__attribute__((constructor)) static inline void tests_choose(void)
{
	const char *pattern = getenv("ONLY");

	if (pattern && *pattern)
		cmocka_set_test_filter(pattern);
}

/* What the random parts of a test start from: SEED repeats a run. Returns false with errno. */
static inline bool seed_choose(unsigned int *seed)
{
	const char *given = getenv("SEED");

	if (given && *given) {
		*seed = (unsigned int)strtoul(given, NULL, 10);
		return true;
	}
	return getrandom(seed, sizeof(*seed), 0) == sizeof(*seed);
}

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

/* Starts the server with -p and these arguments. */
#define assert_start(server, ...) \
	assert_that(server_start(server, SERVER_ARGS(__VA_ARGS__)), "%s", (server)->error)

/* Connects n clients, with these options, and reads nothing yet. */
#define assert_connect(server, clients, n, ...)                            \
	assert_that(clients_connect(clients, n, (server)->socket,          \
				    (struct client_options){__VA_ARGS__}), \
		    "%s", clients_error(clients, n)->error)

/* Lets n clients read until the condition holds for each. */
#define assert_drive(clients, n, done, argument)                               \
	assert_that(clients_drive(clients, n, done, argument, PATIENCE), "%s", \
		    clients_error(clients, n)->error)

/* The same, until each knows all the others and nobody else. */
#define assert_mesh(clients, n) \
	assert_drive(clients, n, client_meets, (&(struct client_crowd){clients, n}))

/*
 * Ends the server, whose clients have all gone: it must have given back every descriptor, have
 * nothing to complain about when it ends, and take its socket away. Removes what it left.
 */
#define assert_stop(server)                                                                  \
	do {                                                                                 \
		if (!server_descriptors_wait(server, (server)->idle, PATIENCE))              \
			fail_msg("%d descriptors instead of %d", server_descriptors(server), \
				 (server)->idle);                                            \
		assert_int_equal(server_stop(server), 0);                                    \
		assert_int_equal(access((server)->socket, F_OK), -1);                        \
		server_remove(server);                                                       \
	} while (0)

/* Skips the test, with the reason as a comment in the output. */
#define skip_because(...)                          \
	do {                                       \
		printf("# skipped: " __VA_ARGS__); \
		printf("\n");                      \
		skip();                            \
	} while (0)

#endif
