/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Many thousands of clients come and go, and what that leaves behind: nothing. Memory and
 * descriptors of the server stay as they are, those who stay see everything exactly once, and when
 * all IDs have been used, a client is turned away until one of those who saw them leave has left.
 *
 * FULL=1 makes it 100,000 joins and leaves.
 */
#include "tests/lib/client.h"
#include "tests/lib/deadline.h"
#include "tests/lib/form.h"
#include "tests/lib/look.h"
#include "tests/lib/server.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RESIDENTS 2
#define BATCH     8 /* that come and go together */

/* Batches for which one does not read: there are more messages for it than a socket holds, 278. */
#define NAP 60

/* Growth of the server's memory that is no leak, but the C library's. */
#define GROWTH (64L << 10)

/* A server, those who stay for long, and those who come and go. */
struct soak {
	struct server server;
	struct client clients[RESIDENTS + BATCH]; /* those who stay come first */
	struct client sleeper;
	bool asleep;
	size_t leaves;          /* so far */
	size_t born[RESIDENTS]; /* the leaves when each of them came */
	size_t joins;           /* so far */
};

static const struct client_options options = {.vectors = 1};

/* Lets those from first to the end of n read until each knows so many others. */
static void drive(struct soak *s, size_t first, size_t n, size_t others)
{
	struct client *clients = &s->clients[first];

	if (!clients_drive(clients, n, client_knows, &others, PATIENCE))
		fail_msg("after %zu joins: %s", s->joins, clients_error(clients, n)->error);
}

static void client_come(struct soak *s, struct client *c)
{
	if (!client_connect(c, s->server.socket, options))
		fail_msg("after %zu joins: %s", s->joins, c->error);
	s->joins++;
}

static void client_go(struct soak *s, struct client *c)
{
	client_free(c);
	s->leaves++;
}

/* A batch of clients comes; all learn of each other; and they go. */
static void batch_pass(struct soak *s, size_t residents)
{
	size_t others = residents + s->asleep;

	for (size_t i = 0; i < BATCH; i++)
		client_come(s, &s->clients[residents + i]);
	drive(s, 0, residents + BATCH, others + BATCH - 1);
	for (size_t i = 0; i < BATCH; i++)
		client_go(s, &s->clients[residents + i]);
	drive(s, 0, residents, others - 1);
}

/* One that stays comes, and all others learn of it. */
static void resident_come(struct soak *s, size_t place, size_t residents)
{
	client_come(s, &s->clients[place]);
	s->born[place] = s->leaves;
	drive(s, 0, residents, residents - 1 + s->asleep);
}

/* It has been told of every leave since it came, exactly once. */
static void resident_check(const struct soak *s, size_t place)
{
	assert_int_equal(s->clients[place].left, s->leaves - s->born[place]);
}

/*
 * One that stays is relieved: beside one that stays only 65,536 IDs can ever be used, since each
 * that it saw leave is lost to it. So the two stay for half that long and more, one of them always
 * being the older, and after the older has left, all IDs can be used that left before the younger
 * came.
 */
static void resident_relieve(struct soak *s, size_t place)
{
	resident_check(s, place);
	client_go(s, &s->clients[place]);
	drive(s, !place, RESIDENTS - 1, RESIDENTS - 2 + s->asleep);
	resident_come(s, place, RESIDENTS);
}

/* One comes that stops to read when it has been greeted; or it wakes up, and nothing was wrong. */
static void sleeper_turn(struct soak *s)
{
	size_t others = RESIDENTS;

	if (!s->asleep)
		client_come(s, &s->sleeper);
	if (!clients_drive(&s->sleeper, 1, client_knows, &others, PATIENCE))
		fail_msg("after %zu joins, one that did not read: %s", s->joins, s->sleeper.error);
	if (s->asleep)
		client_go(s, &s->sleeper);
	s->asleep = !s->asleep;
	drive(s, 0, RESIDENTS, RESIDENTS - 1 + s->asleep);
}

static void soak_start(struct soak *s, const char *const *args)
{
	if (!server_start(&s->server, args))
		fail_msg("%s", s->server.error);
}

static void test_soak(void **state)
{
	struct soak s = {0};
	const size_t joins = full() ? 100000 : 4000, life = joins / 2;
	long before = 0, after;
	size_t relieved = 0;
	int descriptors;

	(void)state;
	soak_start(&s, SERVER_ARGS("-f", "memory"));
	for (size_t i = 0; i < RESIDENTS; i++)
		resident_come(&s, i, i + 1);
	descriptors = server_descriptors(&s.server);
	for (size_t batch = 0; s.joins < joins || s.asleep; batch++) {
		batch_pass(&s, RESIDENTS);
		if (batch % (NAP + NAP / 4) == (s.asleep ? NAP : 0))
			sleeper_turn(&s);
		if (s.joins > (relieved + 1) * life / RESIDENTS && !s.asleep)
			resident_relieve(&s, relieved++ % RESIDENTS);
		/* By then all IDs that are ever used have been, and are in the server's table. */
		if (!before && s.joins > joins / 8 * 5)
			before = server_memory(&s.server);
	}
	for (size_t i = 0; i < RESIDENTS; i++)
		resident_check(&s, i);
	after = server_memory(&s.server);
	printf("# %zu joins; the server's memory: %ld KiB after five eighths, %ld KiB at the end\n",
	       s.joins, before / 1024, after / 1024);
	/* The address sanitizer keeps what was freed. */
	if (!sanitized())
		assert_in_range(after, 0, (unsigned long)(before + GROWTH));
	assert_true(server_descriptors_wait(&s.server, descriptors, PATIENCE));
	clients_free(s.clients, RESIDENTS);
	assert_int_equal(server_stop(&s.server), 0);
	server_remove(&s.server);
}

/* The CPU time that the server has used, in milliseconds. */
static long server_cpu(const struct server *s)
{
	char path[64];
	unsigned long long ns = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/schedstat", (int)s->pid);
	f = fopen(path, "re");
	if (f && fscanf(f, "%llu", &ns) != 1)
		ns = 0;
	if (f)
		fclose(f);
	return (long)(ns / 1000000);
}

/* A client is turned away as it should be. */
static void assert_refused(struct soak *s)
{
	struct client c;

	assert_true(client_connect(&c, s->server.socket, options));
	if (!clients_drive(&c, 1, client_refused, NULL, PATIENCE))
		fail_msg("%s", c.error);
	client_free(&c);
}

/* Who only asks needs no ID: so many are there, and so many have joined. */
static void assert_told(const struct soak *s, size_t nodes, size_t joined)
{
	char *text = look(s->server.socket);

	assert_non_null(text);
	assert_int_equal(look_nodes(text), nodes);
	assert_int_equal(look_number(text, "joined"), joined);
	free(text);
}

/* A client is served, and has this ID. */
static void assert_served(struct soak *s, int id)
{
	struct client c;

	assert_true(client_connect(&c, s->server.socket, options));
	if (!clients_drive(&c, 1, client_greeted, NULL, PATIENCE))
		fail_msg("%s", c.error);
	assert_int_equal(c.id, id);
	client_free(&c);
}

/*
 * Two stay, one from the first ID on, the other from somewhere in the middle. When all IDs have
 * been used, nobody can be served; when the first has left, the IDs that left before the second
 * came can be used again, but not the first's own; when both have left, all can.
 */
static void test_ids(void **state)
{
	struct soak s = {0};
	char name[64], path[96];
	size_t used = 1, middle;
	long cpu, cpu_first = 0, cpu_last = 0;

	(void)state;
	snprintf(name, sizeof(name), "tm_soak_%d", (int)getpid());
	snprintf(path, sizeof(path), "/dev/shm/%s", name);
	soak_start(&s, SERVER_ARGS("-s", name)); /* no file: nothing is to be flushed */
	resident_come(&s, 0, 1);
	while (used + BATCH <= CLIENT_IDS / 2) {
		cpu = server_cpu(&s.server);
		batch_pass(&s, 1);
		used += BATCH;
		if (used <= CLIENT_IDS / 8)
			cpu_first += server_cpu(&s.server) - cpu;
	}
	middle = used;
	resident_come(&s, 1, 2);
	assert_int_equal(s.clients[1].id, middle);
	used++;
	while (used + BATCH <= CLIENT_IDS) {
		cpu = server_cpu(&s.server);
		batch_pass(&s, 2);
		used += BATCH;
		if (used > CLIENT_IDS / 8 * 7)
			cpu_last += server_cpu(&s.server) - cpu;
	}
	for (; used < CLIENT_IDS; used++) {
		client_come(&s, &s.clients[2]);
		drive(&s, 0, 3, 2);
		assert_int_equal(s.clients[2].id, used);
		client_go(&s, &s.clients[2]);
		drive(&s, 0, 2, 1);
	}
	printf("# the server's CPU time for the first eighth of all IDs: %ld ms, for the last: %ld "
	       "ms\n",
	       cpu_first, cpu_last);
	assert_refused(&s);
	assert_told(&s, 2, CLIENT_IDS);
	assert_refused(&s);
	assert_true(server_log_wait(
		&s.server, "a client is refused: no ID is left until ID 0 leaves", PATIENCE));
	resident_check(&s, 0);
	client_go(&s, &s.clients[0]);
	drive(&s, 1, 1, 0);
	resident_check(&s, 1);
	assert_served(&s, 1);
	client_free(&s.clients[1]);
	assert_true(server_descriptors_wait(&s.server, s.server.idle, PATIENCE));
	assert_served(&s, 0);
	assert_int_equal(server_stop(&s.server), 0);
	unlink(path);
	server_remove(&s.server);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_soak),
		cmocka_unit_test(test_ids),
	};

	setlinebuf(stdout);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
