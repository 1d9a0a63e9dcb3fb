/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The server ends between any two stores to its ledger, or any two messages that it sends, and a
 * new image takes over; or it is killed there, and its standby goes on, or a new process from what
 * a supervisor has stored. Whoever was there must know exactly who lives, but for one that had just
 * connected and was nobody's peer yet: only a standby has him.
 *
 * The server is a build in which the process can end at these points (crash/point.h).
 */
#define _GNU_SOURCE
#include "tests/lib/look.h"
#include "tests/lib/supervisor.h"
#include "tests/lib/testing.h"

#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define CLIENTS 6
#define VECTORS 3

static struct server server;
static struct client clients[CLIENTS];
static bool here[CLIENTS];
static size_t never_greeted;

/* Without either, the server is not killed, but executed anew. */
static struct supervisor *supervisor;
static bool background; /* there is a standby */
static bool killed;     /* it was, in this history */
static int idle;        /* descriptors that it has open without peers, in the background */

/* The same as server_begin, in the background. */
static void daemon_begin(void)
{
	int64_t deadline = deadline_in(PATIENCE);
	char path[64], *children = NULL;
	int status;

	do {
		assert_true(server_spawn(&server, SERVER_ARGS("-f", "memory", "-n", "3", "-d", "-i",
							      "pid", "-o", "log")));
		status = server_wait(&server, PATIENCE);
		assert_true(status == 0 || !killed);
		killed = killed || status != 0;
	} while (status != 0);
	server.pid = server_pidfile(&server); /* whose parent this process has become */
	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", server.pid, server.pid);
	do { /* until there is a standby, which is the last that a start does */
		free(children);
		children = file_text(path);
		assert_that(deadline_ahead(deadline), "no standby: %s", file_end(server.log));
	} while (!children || !*children);
	free(children);
	idle = server_idle(&server);
}

/* Starts the server, with these options; one that is killed while it starts is started once more.
 */
static void server_begin(void)
{
	const char *const *args = SERVER_ARGS("-f", "memory", "-n", "3");

	if (background) {
		daemon_begin();
		return;
	}
	server.supervisor = supervisor;
	if (server_start(&server, args))
		return;
	assert_that(supervisor && !killed && server.status == -SIGKILL, "%s", server.error);
	killed = true;
	unsetenv("CRASH_AT");
	assert_that(server_start(&server, args), "%s", server.error);
}

/* If the server has been killed, starts the next. Returns whether a new image serves. */
static bool server_renewed(void)
{
	pid_t successor;
	int status;

	if (background) {
		successor = server_pidfile(&server);
		if (successor && successor != server.pid) {
			assert_int_equal(server_wait(&server, PATIENCE), -SIGKILL);
			assert_false(killed);
			server.pid = successor;
			killed = true;
		}
		return killed;
	}
	if (!supervisor)
		return server_logged(&server, "restarted in place");
	if (!killed && waitpid(server.pid, &status, WNOHANG) == server.pid) {
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		killed = true;
		server_begin();
	}
	return killed;
}

/* Whether a client knows exactly those who are there. */
static bool client_agrees(const struct client *c)
{
	size_t others = 0;

	for (size_t i = 0; i < CLIENTS; i++) {
		if (!here[i] || &clients[i] == c)
			continue;
		others++;
		if (!client_greeted(&clients[i], NULL) || !client_sees(c, &clients[i].id))
			return false;
	}
	return client_knows(c, &others);
}

static void client_go(size_t i)
{
	client_free(&clients[i]);
	here[i] = false;
}

/* A client whose connection has ended: a process that was killed had only just taken it from the
 * listener, or the supervisor was so slow that it could not be stored. */
static void client_lost(size_t i)
{
	char line[80];

	if (supervisor && !server_renewed())
		return;
	snprintf(line, sizeof(line), "ID %d left: its descriptors had not been stored when",
		 clients[i].id);
	if (supervisor && clients[i].messages > 0 && server_logged(&server, line)) {
		client_go(i);
		return;
	}
	assert_that(supervisor && clients[i].messages == 0, "client %d was cut off: %s",
		    clients[i].id, clients[i].error);
	client_go(i);
	never_greeted++;
}

/*
 * Whether the new image will never greet those of whom nothing has been heard: it takes all who
 * wait in the order in which they came, so it has taken them when it answers who asks now; and each
 * of its nodes is one that is known.
 */
static bool newcomers_are_lost(void)
{
	char *text = look(server.socket);
	bool lost = true;

	assert_non_null(text);
	for (const char *at = text; (at = strstr(at, "{\"id\":")); at++) {
		int id = atoi(at + strlen("{\"id\":"));
		bool known = false;

		for (size_t i = 0; i < CLIENTS; i++)
			known = known || (here[i] && clients[i].id == id);
		lost = lost && known;
	}
	free(text);
	return lost;
}

/* Lets all read until all agree, or are lost. */
static void clients_settle(void)
{
	int64_t deadline = deadline_in(PATIENCE);
	bool agreed, renewed;

	do {
		agreed = true;
		renewed = server_renewed();
		for (size_t i = 0; i < CLIENTS; i++) {
			while (here[i] && client_step(&clients[i]) > 0)
				;
			if (here[i] && clients[i].ended)
				client_lost(i);
			assert_that(!here[i] || clients[i].ended || !clients[i].error[0], "%s",
				    clients[i].error);
			if (here[i] && clients[i].messages == 0 && !supervisor && !background &&
			    renewed && newcomers_are_lost()) {
				client_go(i);
				never_greeted++;
			}
		}
		for (size_t i = 0; i < CLIENTS; i++)
			agreed = agreed && (!here[i] || client_agrees(&clients[i]));
	} while (!agreed && deadline_ahead(deadline));
	assert_that(agreed, "not all know who lives: %s", file_end(server.log));
}

static void client_come(size_t i)
{
	if (supervisor)
		supervisor_settle(supervisor); /* it has room to store this one */
	assert_connect(&server, &clients[i], 1, .vectors = VECTORS, .keep = true);
	here[i] = true;
}

/* Who is there rings who is there. */
static void bells_check(void)
{
	for (size_t from = 0; from < CLIENTS; from++)
		for (size_t to = 0; to < CLIENTS; to++)
			if (here[from] && here[to]) {
				assert_true(client_ring(&clients[from], clients[to].id, 1));
				assert_int_equal(client_rung(&clients[to], 1), 1);
			}
}

/* Whether nobody is there any more, for the server or its successor, and nobody's parcel. */
static bool all_settled(void)
{
	server_renewed();
	if (background)
		return server_descriptors(&server) == idle;
	return !supervisor || supervisor_count(supervisor, "node-*") == 0;
}

/* Ends the server, which may die once more after it has been told to end. */
static void server_end(void)
{
	int64_t deadline = deadline_in(PATIENCE);
	int status = -1;

	while (!all_settled())
		assert_that(deadline_ahead(deadline),
			    "somebody stays who has left: process %d has %d descriptors, and %d "
			    "without nodes; %s",
			    (int)server.pid, server_descriptors(&server), idle,
			    file_end(server.log));
	do
		server_signal(&server, SIGTERM);
	while (waitpid(server.pid, &status, WNOHANG) == 0 && deadline_ahead(deadline));
	assert_int_equal(status, 0);
	server.pid = 0;
	server_remove(&server);
	server = (struct server){0};
	if (!supervisor)
		return;
	assert_that(!supervisor_error(supervisor), "%s", supervisor_error(supervisor));
	supervisor_empty(supervisor);
}

/* Clients come and go, one by one and together, and the server ends at a point. Returns whether it
 * did. */
static bool history_run(unsigned int at)
{
	char number[16], mark[PATH_MAX];
	bool crashed;

	never_greeted = 0;
	killed = false;
	snprintf(number, sizeof(number), "%u", at);
	setenv("CRASH_AT", number, 1);
	if (background) {
		snprintf(mark, sizeof(mark), "%s/crashed-%u",
			 getenv("TEST_DIR") ? getenv("TEST_DIR") : "/tmp", at);
		setenv("CRASH_KILL", mark, 1);
	}
	server_begin();
	unsetenv("CRASH_AT");
	for (size_t i = 0; i < 3; i++) {
		client_come(i);
		clients_settle();
	}
	if (here[1])
		client_go(1);
	clients_settle();
	client_come(3);
	client_come(4);
	clients_settle();
	for (size_t i = 0; i <= 2; i += 2)
		if (here[i])
			client_go(i);
	clients_settle();
	client_come(5);
	clients_settle();
	bells_check();
	crashed = server_renewed();
	assert_in_range(never_greeted, 0, crashed);
	for (size_t i = 0; i < CLIENTS; i++)
		if (here[i])
			client_go(i);
	server_end();
	if (background)
		unlink(mark);
	return crashed;
}

/* One history for each point. Returns how many there are; so often at least, somebody must have
 * been caught before he was a peer. */
static unsigned int histories_run(size_t least)
{
	unsigned int at = 1;
	size_t ungreeted = 0;

	for (; history_run(at); at++)
		ungreeted += never_greeted;
	printf("# %u points: %zu times a client had not been greeted\n", at - 1, ungreeted);
	assert_true(ungreeted >= least);
	return at - 1;
}

static void any_moment_may_be_the_last(void **state)
{
	(void)state;
	/* Each message is one, and the four stores around each batch. */
	assert_true(histories_run(3) > 150);
}

static void any_moment_may_be_the_death(void **state)
{
	(void)state;
	supervisor = supervisor_start();
	assert_non_null(supervisor);
	/* Who has been stored is greeted by the next process. */
	assert_true(histories_run(0) > 150);
}

static void any_moment_may_be_the_standbys(void **state)
{
	size_t ungreeted = 0;
	unsigned int at = 1;

	(void)state;
	background = true;
	for (; history_run(at); at++)
		ungreeted += never_greeted;
	printf("# %u points\n", at - 1);
	assert_true(at > 150 && ungreeted == 0);
}

static int teardown(void **state)
{
	(void)state;
	for (size_t i = 0; i < CLIENTS; i++)
		if (here[i])
			client_go(i);
	server_remove(&server);
	server = (struct server){0};
	supervisor_free(supervisor);
	supervisor = NULL;
	background = false;
	unsetenv("CRASH_AT");
	unsetenv("CRASH_KILL");
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(any_moment_may_be_the_last, teardown),
		cmocka_unit_test_teardown(any_moment_may_be_the_death, teardown),
		cmocka_unit_test_teardown(any_moment_may_be_the_standbys, teardown),
	};
	const char *program = getenv("SOURCE_DIR");
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/build/tests/crash/server", program ? program : ".");
	setenv("SERVER", path, 1);
	/* Servers in the background become this process's children. */
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
