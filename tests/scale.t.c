/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * As many clients as fit into one server, and as many messages as those have to be sent: each gets
 * all of them, and the server needs no memory for that, whoever reads or does not. FULL=1 makes it
 * 250 clients with 64 vectors, which is four million messages, and 300 of which half do not read.
 */
#include "tests/lib/form.h"
#include "tests/lib/testing.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define CLIENTS_MAX 1000

/* Far more than it takes. */
#define SECONDS 300

/* The most memory that the server has had so far, in KiB. */
static long server_peak(const struct server *s)
{
	char path[32], line[128];
	long peak = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)s->pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "VmHWM: %ld", &peak) == 1)
			break;
	if (f)
		fclose(f);
	return peak;
}

/* Lets n clients read until each knows so many others. */
static void assert_known(struct client *clients, size_t n, size_t others)
{
	assert_that(clients_drive(clients, n, client_knows, &others, SECONDS), "%s",
		    clients_error(clients, n)->error);
}

/* Starts a server for so many. Returns the memory that it has taken when it is idle, in KiB. */
static long mesh_start(struct server *s, size_t n, int vectors)
{
	char text[16];

	if (descriptors_allow() < n * (size_t)(vectors + 1) + 100)
		skip_because("the limit of descriptors is too low");
	snprintf(text, sizeof(text), "%d", vectors);
	assert_start(s, "-f", "memory", "-n", text);
	return server_peak(s);
}

/* What the server took more than that stays below a mebibyte. */
static void memory_check(const struct server *s, long idle)
{
	long peak = server_peak(s);

	printf("the server took %ld KiB at most, %ld when it was idle\n", peak, idle);
	/* The address sanitizer takes memory of its own. */
	if (!sanitized())
		assert_in_range(peak - idle, 0, 1024);
}

/* All come at once, and read when all are there; then the first half goes. */
static void mesh_test(size_t n, int vectors)
{
	struct server s = {0};
	static struct client clients[CLIENTS_MAX];
	long idle = mesh_start(&s, n, vectors);

	assert_connect(&s, clients, n, .vectors = vectors);
	assert_known(clients, n, n - 1);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(clients[i].messages, 3 + n * (size_t)vectors);
	printf("# %zu clients with %d vectors, %zu messages: ", n, vectors,
	       n * (3 + n * (size_t)vectors));
	memory_check(&s, idle);
	clients_free(clients, n / 2);
	assert_known(clients + n / 2, n - n / 2, n - n / 2 - 1);
	for (size_t i = n / 2; i < n; i++)
		assert_int_equal(clients[i].left, n / 2);
	clients_free(clients + n / 2, n - n / 2);
	assert_stop(&s);
}

static void thousand_clients_know_each_other(void **state)
{
	(void)state;
	mesh_test(CLIENTS_MAX, 1);
}

static void many_vectors_miss_nothing(void **state)
{
	(void)state;
	mesh_test(full() ? 250 : 100, 64);
}

/*
 * Half of all never read, the others go at once, and one comes: it waits for nobody's death. How
 * long it did is printed, and no part of the test.
 */
static void exodus_delays_nobody(void **state)
{
	const size_t n = full() ? 300 : 100;
	static struct client clients[CLIENTS_MAX];
	struct client *readers = clients + n / 2, newcomer;
	struct server s = {0};
	long idle = mesh_start(&s, n, 64);
	int64_t start, first;

	(void)state;
	assert_connect(&s, clients, n, .vectors = 64);
	assert_known(readers, n - n / 2, n - 1);
	start = clock_ms();
	for (size_t i = 0; i < n - n / 2; i++)
		client_close(&readers[i]);
	assert_connect(&s, &newcomer, 1, .vectors = 64);
	while (newcomer.messages == 0 && client_step(&newcomer) >= 0)
		;
	first = clock_ms();
	assert_known(&newcomer, 1, n / 2);
	printf("# %zu of %zu clients with 64 vectors go: a newcomer's first message comes after %d "
	       "ms, its whole greeting after %d ms\n# ",
	       n - n / 2, n, (int)(first - start), (int)(clock_ms() - start));
	memory_check(&s, idle);
	/* And now those who had not read know exactly who lives. */
	assert_known(clients, n / 2, n / 2);
	for (size_t i = 0; i < n / 2; i++)
		assert_true(client_sees(&clients[i], &newcomer.id));
	client_free(&newcomer);
	clients_free(clients, n);
	assert_stop(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		counted_test(thousand_clients_know_each_other),
		counted_test(many_vectors_miss_nothing),
		counted_test(exodus_delays_nobody),
	};

	setlinebuf(stdout);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
