/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * As many clients as there can be, and one more; too few descriptors; descriptors in flight that
 * nobody reads. Who cannot be served is refused in the way that QEMU understands, and nobody else
 * notices.
 */
#define _GNU_SOURCE
#include "tests/lib/look.h"
#include "tests/lib/testing.h"

#include "send_scm.h"

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Moves those that were greeted to the front, and frees the others. Returns how many stay. */
static size_t refused_free(struct client *clients, size_t n)
{
	size_t greeted = 0;

	for (size_t i = 0; i < n; i++) {
		struct client c = clients[i];

		if (client_refused(&c, NULL))
			client_free(&c);
		else
			clients[greeted++] = c;
	}
	return greeted;
}

/*
 * Many clients
 */

/* The soft limit of a login is too low for them: raising it is up to the server. */
static void soft_limit_set(struct server *s)
{
	s->descriptors.rlim_max = descriptors_allow();
	s->descriptors.rlim_cur = 256;
	if (s->descriptors.rlim_max < 4000)
		skip_because("the limit of descriptors is below 4000");
}

/* 278 messages fill a socket: each greeting from the 18th client on is longer (hazard 10). */
static void hundred_one_by_one_miss_nothing(void **state)
{
	struct server s = {0};
	static struct client clients[100];

	(void)state;
	soft_limit_set(&s);
	assert_start(&s, "-f", "memory", "-n", "16");
	for (size_t n = 1; n <= 100; n++) {
		assert_connect(&s, &clients[n - 1], 1, .vectors = 16);
		assert_drive(&clients[n - 1], 1, client_greeted, NULL);
	}
	assert_mesh(clients, 100);
	for (size_t i = 0; i < 100; i++)
		assert_int_equal(clients[i].messages, 3 + 100 * 16);
	clients_free(clients, 100);
	assert_stop(&s);
}

/* Who asks for the status is told all of it. */
static void assert_told(const struct server *s, const struct client *clients, size_t n)
{
	int64_t start = clock_ms();
	char *text = look(s->socket), row[32];

	assert_non_null(text);
	printf("# the status of %zu nodes is %zu bytes, and takes %d ms\n", n, strlen(text),
	       (int)(clock_ms() - start));
	assert_int_equal(look_nodes(text), n);
	for (size_t i = 0; i < n; i++) {
		snprintf(row, sizeof(row), "{\"id\":%d,", clients[i].id);
		assert_non_null(strstr(text, row));
	}
	free(text);
}

static void surplus_of_select_is_refused(void **state)
{
	struct server s = {0};
	static struct client clients[1100];
	size_t n = 1100, served;

	(void)state;
	soft_limit_set(&s);
	assert_start(&s, "-f", "memory");
	assert_connect(&s, clients, n, .vectors = 1);
	assert_drive(clients, n, client_answered, NULL);
	served = refused_free(clients, n);
	assert_in_range(served, 1000, 1023);
	assert_mesh(clients, served);
	assert_true(server_logged(&s, "no more nodes fit"));
	assert_told(&s, clients, served);

	/* Where some leave there is room again, for exactly so many, whoever asks. */
	clients_free(&clients[served - 10], 10);
	assert_mesh(clients, served - 10);
	assert_told(&s, clients, served - 10);
	assert_connect(&s, &clients[served - 10], 20, .vectors = 1);
	assert_drive(&clients[served - 10], 20, client_answered, NULL);
	assert_int_equal(refused_free(&clients[served - 10], 20), 10);
	assert_mesh(clients, served);
	clients_free(clients, served);
	assert_stop(&s);
}

/*
 * Few descriptors
 */

/* Clients come until there is no descriptor left; the surplus is refused, the others served on. */
static void descriptors_run_out(int vectors)
{
	struct server s = {.descriptors = {64, 64}, .unprivileged = true};
	struct client clients[80];
	size_t n, again;
	char number[8];

	snprintf(number, sizeof(number), "%d", vectors);
	assert_start(&s, "-f", "memory", "-n", number);
	assert_connect(&s, clients, 60, .vectors = vectors, .starved = true);
	assert_drive(clients, 60, client_answered, NULL);
	n = refused_free(clients, 60);
	assert_in_range(n, (60 - (size_t)s.idle) / (size_t)(1 + vectors), 59);
	assert_mesh(clients, n);
	for (int round = 0; round < 3; round++) {
		/* Refused one by one, too, when all others know all that they will ever know. */
		assert_connect(&s, &clients[n], 4, .vectors = vectors, .starved = true);
		assert_drive(&clients[n], 4, client_refused, NULL);
		clients_free(&clients[n], 4);
		assert_mesh(clients, n);
		assert_int_equal(clients[0].left, 2 * (size_t)round);

		clients_free(&clients[n - 2], 2);
		assert_mesh(clients, n - 2);
		assert_connect(&s, &clients[n - 2], 8, .vectors = vectors, .starved = true);
		assert_drive(&clients[n - 2], 8, client_answered, NULL);
		again = refused_free(&clients[n - 2], 8);
		assert_int_equal(again, 2);
		assert_mesh(clients, n);
	}
	clients_free(clients, n);
	assert_stop(&s);
}

static void surplus_of_descriptors_is_refused(void **state)
{
	(void)state;
	descriptors_run_out(1);
}

/* The last descriptors are enough for the socket and some of the eventfds. */
static void surplus_of_eventfds_is_refused(void **state)
{
	(void)state;
	descriptors_run_out(9);
}

/* There is not even one for the socket of those who are to be refused. */
static void surplus_of_sockets_is_refused(void **state)
{
	struct server s = {.descriptors = {64, 64}, .unprivileged = true};
	struct client clients[100];
	size_t n;

	(void)state;
	assert_start(&s, "-f", "memory", "-n", "0");
	for (int round = 0; round < 3; round++) {
		assert_connect(&s, clients, 100, .vectors = 0, .starved = true);
		assert_drive(clients, 100, client_answered, NULL);
		n = refused_free(clients, 100);
		assert_in_range(n, 64 - (size_t)s.idle, 63);
		assert_int_equal(client_step(&clients[0]), 0);
		clients_free(clients, n);
		assert_true(server_descriptors_wait(&s, s.idle, PATIENCE));
	}
	assert_stop(&s);
}

/*
 * Descriptors in flight: what is sent and not read counts against the limit of descriptors, for all
 * sockets of a user together, unless it is privileged.
 */

static void unread_clients_starve_nobody(void **state)
{
	struct server s = {.descriptors = {256, 256}, .unprivileged = true};
	struct client silent[4], others[30];
	size_t all = 33;

	(void)state;
	assert_start(&s, "-f", "memory", "-n", "4");
	assert_connect(&s, silent, 4, .vectors = 4);
	assert_true(server_log_wait(&s, "ID 3 joined", PATIENCE));
	for (int round = 0; round < 4; round++) {
		assert_connect(&s, others, 30, .vectors = 4);
		assert_drive(others, 30, client_knows, &all);
		if (round == 3)
			break;
		clients_free(others, 30);
		assert_true(server_descriptors_wait(&s, s.idle + 4 * 5, PATIENCE));
	}
	/* Its number of peers was the same in each round, so it must come to the last. */
	for (size_t i = 0; i < 30; i++)
		assert_drive(silent, 4, client_sees, &others[i].id);
	assert_drive(silent, 4, client_knows, &all);
	clients_free(silent, 4);
	assert_mesh(others, 30);
	clients_free(others, 30);
	assert_stop(&s);
}

/* So many do not read that nobody can be sent a descriptor: until they do, and not any longer. */
static void starvation_ends_when_they_read(void **state)
{
	struct server s = {.descriptors = {64, 64}, .unprivileged = true};
	struct client clients[22];

	(void)state;
	assert_start(&s, "-f", "memory");
	assert_connect(&s, clients, 21, .vectors = 1);
	assert_true(server_log_wait(&s, "ID 20 joined", PATIENCE));
	assert_connect(&s, &clients[21], 1, .vectors = 1);
	assert_true(server_log_wait(&s, "ID 21 joined", PATIENCE));
	assert_mesh(clients, 22);
	clients_free(clients, 22);
	assert_stop(&s);
}

/* Another process of the user, which has so many descriptors in flight; it says so by a byte. */
static void flight_fill(uid_t user, int said, size_t many)
{
	int ends[2], fds[SCM_DESCRIPTORS];

	if (user != geteuid() && setuid(user) < 0)
		_exit(1);
	for (size_t i = 0; i < SCM_DESCRIPTORS; i++)
		fds[i] = said;
	for (; many > 0; many -= many < SCM_DESCRIPTORS ? many : SCM_DESCRIPTORS)
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0 ||
		    !scm_pass(ends[0], NULL, 0, "", 1, fds, SCM_DESCRIPTORS))
			_exit(1);
	(void)!write(said, "", 1);
	for (;;)
		pause();
}

/* It has had what comes without a descriptor, and nothing else. */
static bool client_starves(const struct client *c, const void *unused)
{
	(void)unused;
	return c->phase == CLIENT_MEMORY;
}

/* So many descriptors of others are in flight that no greeting goes on: until they are not. */
static void starvation_by_others_ends_with_them(void **state)
{
	struct server s = {.descriptors = {256, 256}, .unprivileged = true};
	struct client clients[30];
	int said[2];
	pid_t other;
	char byte;

	(void)state;
	descriptors_allow();
	assert_start(&s, "-f", "memory");
	assert_int_equal(pipe2(said, O_CLOEXEC), 0);
	other = fork();
	assert_true(other >= 0);
	if (other == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		flight_fill(s.user, said[1], 512);
	}
	close(said[1]);
	assert_int_equal(read(said[0], &byte, 1), 1);
	close(said[0]);
	assert_connect(&s, clients, 30, .vectors = 1);
	assert_drive(clients, 30, client_starves, NULL);
	nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL); /* it tries again and again */
	for (size_t i = 0; i < 30; i++)
		while (client_step(&clients[i]) > 0)
			;
	for (size_t i = 0; i < 30; i++)
		assert_int_equal(clients[i].phase, CLIENT_MEMORY);
	kill(other, SIGKILL);
	assert_int_equal(waitpid(other, NULL, 0), other);
	assert_mesh(clients, 30);
	clients_free(clients, 30);
	assert_stop(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		counted_test(hundred_one_by_one_miss_nothing),
		counted_test(surplus_of_select_is_refused),
		counted_test(surplus_of_descriptors_is_refused),
		counted_test(surplus_of_eventfds_is_refused),
		counted_test(surplus_of_sockets_is_refused),
		counted_test(unread_clients_starve_nobody),
		counted_test(starvation_ends_when_they_read),
		counted_test(starvation_by_others_ends_with_them),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
