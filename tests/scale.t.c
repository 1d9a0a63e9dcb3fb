/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * As many clients as fit into one server, and as many messages as those have to be sent: each gets
 * all of them. FULL=1 makes it 250 clients with 64 vectors, which is four million messages.
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

/* All come at once, and read when all are there; then the first half goes. */
static void mesh_test(size_t n, int vectors)
{
	struct server s = {0};
	static struct client clients[CLIENTS_MAX];
	char text[16];
	long idle, peak;

	if (descriptors_allow() < n * (size_t)(vectors + 1) + 100)
		skip_because("the limit of descriptors is too low");
	snprintf(text, sizeof(text), "%d", vectors);
	assert_start(&s, "-f", "memory", "-n", text);
	idle = server_peak(&s);
	assert_connect(&s, clients, n, .vectors = vectors);
	assert_known(clients, n, n - 1);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(clients[i].messages, 3 + n * (size_t)vectors);
	peak = server_peak(&s);
	printf("# %zu clients with %d vectors, %zu messages: the server took %ld MiB at most, "
	       "%ld when it was idle\n",
	       n, vectors, n * (3 + n * (size_t)vectors), peak / 1024, idle / 1024);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		counted_test(thousand_clients_know_each_other),
		counted_test(many_vectors_miss_nothing),
	};

	setlinebuf(stdout);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
