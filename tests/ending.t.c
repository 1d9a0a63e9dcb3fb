/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How the server ends: in order, on each of its signals, without leaving any client in the middle
 * of its greeting (hazard 3), and without waiting for one that does not read.
 */
#define _GNU_SOURCE
#include "tests/lib/testing.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

/*
 * Lets clients read until each has had its answer and the end of its stream, from a server that was
 * told to end at that moment. Returns false if they were too late: not before the time was over may
 * anybody be cut off, and a busy machine may let it pass.
 */
static bool clients_in_time(struct client *clients, size_t n, client_condition *answered,
			    int64_t told)
{
	if (clients_drive(clients, n, answered, NULL, PATIENCE))
		return true;
	assert_that(clock_ms() >= told + GREETING_MS, "%s, after %d ms",
		    clients_error(clients, n)->error, (int)(clock_ms() - told));
	printf("# too late: %s\n", clients_error(clients, n)->error);
	return false;
}

/* Tries it until it was in time. */
#define assert_in_time(tried)                               \
	do {                                                \
		int tries = 1;                              \
                                                            \
		while (!(tried))                            \
			assert_in_range(++tries, 2, TRIES); \
	} while (0)

/* The stream has ended, and behind a whole greeting. */
static bool client_greeted_and_ended(const struct client *c, const void *unused)
{
	return client_greeted(c, unused) && client_ended(c, unused);
}

/* Sends it a signal, and waits until it has begun to end: its socket is removed. */
static void server_end_begin(struct server *s, int signal)
{
	int64_t deadline = deadline_in(PATIENCE);

	server_signal(s, signal);
	while (access(s->socket, F_OK) == 0)
		assert_true(deadline_ahead(deadline));
}

static void server_expect_ended(struct server *s)
{
	assert_int_equal(server_wait(s, PATIENCE), 0);
	assert_int_equal(access(s->socket, F_OK), -1);
	server_remove(s);
}

static void signals_end_it_in_order(void **state)
{
	static const int signals[] = {SIGTERM, SIGINT, SIGQUIT};
	struct server s = {0};

	(void)state;
	for (int i = 0; i < 3; i++) {
		struct client clients[3];
		char *map;

		/* The object stays: what one server's clients wrote the next one's find. */
		assert_start(&s, "-f", "memory");
		assert_connect(&s, clients, 3, .vectors = 1, .keep = true);
		assert_mesh(clients, 3);
		map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, clients[0].memory, 0);
		assert_ptr_not_equal(map, MAP_FAILED);
		assert_int_equal(map[0], i);
		map[0] = (char)(i + 1);
		/* It survives a leave, too. */
		client_free(&clients[2]);
		assert_mesh(clients, 2);
		assert_int_equal(map[0], i + 1);
		server_signal(&s, signals[i]);
		assert_int_equal(server_wait(&s, PATIENCE), 0);
		assert_int_equal(access(s.socket, F_OK), -1);
		assert_drive(clients, 2, client_ended, NULL);
		/* Clients keep what they have: memory and doorbells. */
		assert_int_equal(map[0], i + 1);
		munmap(map, 4096);
		assert_true(client_ring(&clients[0], clients[1].id, 0));
		assert_int_equal(client_rung(&clients[1], 0), 1);
		clients_free(clients, 2);
	}
	server_remove(&s);
}

/* A shell starts its background jobs with INT and QUIT ignored. */
static void ignored_signals_end_it_too(void **state)
{
	static const int signals[] = {SIGTERM, SIGINT, SIGQUIT};

	(void)state;
	for (int i = 0; i < 3; i++) {
		struct server s = {0};

		signal(signals[i], SIG_IGN);
		assert_start(&s, "-f", "memory");
		signal(signals[i], SIG_DFL);
		server_signal(&s, signals[i]);
		server_expect_ended(&s);
	}
}

static void shm_object_stays(void **state)
{
	struct server s = {0};
	char name[32];
	int fd;

	(void)state;
	snprintf(name, sizeof(name), "tm-test-%d", getpid());
	assert_start(&s, "-s", name);
	assert_stop(&s);
	fd = shm_open(name, O_RDWR, 0);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(shm_unlink(name), 0);
}

/* 30 others with 16 vectors make a greeting of which a socket holds a little more than half. */
static bool greeting_is_finished(void)
{
	struct server s = {0};
	struct client others[30], late;
	int64_t told;
	bool in_time;

	assert_start(&s, "-f", "memory", "-n", "16");
	assert_connect(&s, others, 30, .vectors = 16);
	assert_mesh(others, 30);
	assert_connect(&s, &late, 1, .vectors = 16);
	assert_drive(others, 30, client_knows, &(size_t){30});
	while (late.messages < 10)
		assert_int_equal(client_step(&late), 1);
	told = clock_ms();
	server_end_begin(&s, SIGTERM);
	in_time = clients_in_time(&late, 1, client_greeted_and_ended, told);
	assert_true(!in_time || late.here == 30);
	assert_drive(others, 30, client_greeted_and_ended, NULL);
	client_free(&late);
	clients_free(others, 30);
	server_expect_ended(&s);
	return in_time;
}

static void greeting_under_way_is_finished(void **state)
{
	(void)state;
	assert_in_time(greeting_is_finished());
}

/* What is sent, but not read, is lost to QEMU when the connection ends: the server waits for it. */
static bool greeting_sent_is_waited_for(void)
{
	struct server s = {0};
	struct client other, late;
	struct pollfd stream = {.events = POLLRDHUP};
	int64_t told;
	bool in_time;

	assert_start(&s, "-L", "-m", "0");
	assert_connect(&s, &other, 1, .vectors = 1, .memoryless = true, .legacy = true);
	assert_mesh(&other, 1);
	assert_connect(&s, &late, 1, .vectors = 1, .memoryless = true, .legacy = true);
	assert_drive(&other, 1, client_knows, &(size_t){1});
	told = clock_ms();
	server_end_begin(&s, SIGTERM);
	deadline_ahead(0); /* a moment, in which a server that waits for nothing would be gone */
	stream.fd = late.sock;
	in_time = poll(&stream, 1, 0) == 0;
	assert_true(in_time || clock_ms() >= told + GREETING_MS);
	assert_drive(&late, 1, client_greeted_and_ended, NULL);
	clients_free(&late, 1);
	client_free(&other);
	server_expect_ended(&s);
	return in_time;
}

static void greeting_sent_is_read_before_the_end(void **state)
{
	(void)state;
	assert_in_time(greeting_sent_is_waited_for());
}

/* Neither does a second signal change that, nor is a client that waits for nothing in its way. */
static void client_that_does_not_read_holds_nothing_up(void **state)
{
	struct server s = {0};
	struct client others[30], silent[3];

	(void)state;
	assert_start(&s, "-f", "memory", "-n", "16");
	assert_connect(&s, others, 30, .vectors = 16);
	assert_mesh(others, 30);
	assert_connect(&s, silent, 3, .vectors = 16);
	assert_drive(others, 30, client_knows, &(size_t){32});
	server_end_begin(&s, SIGTERM);
	server_signal(&s, SIGINT);
	server_expect_ended(&s);
	assert_drive(others, 30, client_greeted_and_ended, NULL);
	clients_free(others, 30);
	clients_free(silent, 3);
}

/* Stops the server as it stands, so that what follows happens in one of its rounds. */
static void server_freeze(struct server *s)
{
	char path[32], state = 0;
	int64_t deadline = deadline_in(PATIENCE);

	snprintf(path, sizeof(path), "/proc/%d/stat", s->pid);
	server_signal(s, SIGSTOP);
	do {
		FILE *f = fopen(path, "re");

		assert_non_null(f);
		assert_int_equal(fscanf(f, "%*d %*s %c", &state), 1);
		fclose(f);
	} while (state != 'T' && deadline_ahead(deadline));
	assert_int_equal(state, 'T');
}

static bool client_answered_and_ended(const struct client *c, const void *unused)
{
	return client_answered(c, unused) && client_ended(c, unused);
}

/* Clients connect, the signal comes, and only then does the server get to see either. Returns
 * whether that was in time. */
static bool answer_at_the_end(struct server *s, size_t n, int vectors, client_condition *answered)
{
	static struct client clients[600];
	struct client first;
	char number[8];
	int64_t told;
	bool in_time;

	snprintf(number, sizeof(number), "%d", vectors);
	assert_start(s, "-f", "memory", "-n", number);
	assert_connect(s, &first, 1, .vectors = vectors);
	assert_mesh(&first, 1);
	server_freeze(s);
	assert_connect(s, clients, n, .vectors = vectors, .starved = true);
	told = clock_ms();
	server_signal(s, SIGTERM);
	server_signal(s, SIGCONT);
	in_time = clients_in_time(clients, n, answered, told);
	assert_drive(&first, 1, client_greeted_and_ended, NULL);
	clients_free(clients, n);
	client_free(&first);
	server_expect_ended(s);
	return in_time;
}

static void client_not_yet_accepted_is_greeted(void **state)
{
	struct server s = {0};

	(void)state;
	assert_in_time(answer_at_the_end(&s, 1, 1, client_greeted_and_ended));
}

/* More than are accepted in one round, but so few that sockets hold all their greetings. */
static void many_not_yet_accepted_are_greeted(void **state)
{
	struct server s = {0};

	(void)state;
	assert_in_time(answer_at_the_end(&s, 100, 1, client_greeted_and_ended));
}

/* For some of them there is no descriptor: those are told so, as at any other time. */
static void surplus_not_yet_accepted_is_refused(void **state)
{
	(void)state;
	for (int vectors = 0; vectors < 2; vectors++) {
		struct server s = {.descriptors = {64, 64}, .unprivileged = true};

		assert_in_time(answer_at_the_end(&s, 600, vectors, client_answered_and_ended));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		counted_test(signals_end_it_in_order),
		counted_test(ignored_signals_end_it_too),
		counted_test(shm_object_stays),
		counted_test(greeting_under_way_is_finished),
		counted_test(greeting_sent_is_read_before_the_end),
		counted_test(client_that_does_not_read_holds_nothing_up),
		counted_test(client_not_yet_accepted_is_greeted),
		counted_test(many_not_yet_accepted_are_greeted),
		counted_test(surplus_not_yet_accepted_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
