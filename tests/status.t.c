/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who asks for the status is no node: nobody hears of it, however often it is done, and it is
 * answered also where no node would be taken in. What people see of the answer is in status.bats;
 * that each system call may fail, in faults-serve.t.c; a full mesh, in limits.t.c; all IDs used up,
 * in soak.t.c.
 */
#define _GNU_SOURCE
#include "tests/lib/form.h"
#include "tests/lib/look.h"
#include "tests/lib/mesh.h"
#include "tests/lib/node.h"
#include "tests/lib/supervisor.h"
#include "tests/lib/testing.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define RESIDENTS 5
#define VECTORS   2

/* Growth of the server's memory that is no leak, but the C library's. */
#define GROWTH (64L << 10)

/* The answer, which must be one; the caller frees it. */
static char *look_at(const struct server *s)
{
	char *text = look(s->socket);

	assert_that(text, "no answer: %s", strerror(errno));
	return text;
}

/* What one look says: so many nodes, of so many that have joined. */
static void assert_look(const struct server *s, size_t nodes, size_t joined)
{
	char *text = look_at(s);

	assert_int_equal(look_nodes(text), nodes);
	assert_int_equal(look_number(text, "joined"), joined);
	assert_int_equal(look_number(text, "process"), s->pid);
	free(text);
}

/* Asks again and again, in a child, until it is killed. */
static pid_t crowd_start(const struct server *s)
{
	pid_t child = fork();

	assert_true(child >= 0);
	if (child > 0)
		return child;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		char *text = look(s->socket);

		if (!text)
			_exit(1);
		free(text);
	}
}

/* It has been answered each time until now. */
static void crowd_end(pid_t child)
{
	int status;

	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
}

/* How often the server has said that it was restarted in place. */
static size_t server_restarts(const struct server *s)
{
	char *log = server_log(s);
	size_t n = 0;

	for (const char *at = log; at && (at = strstr(at, "restarted in place")); at++)
		n++;
	free(log);
	return n;
}

/* All ring each other, on every vector; each bell rings as often as it was rung. */
static void bells_check(const struct client *clients, size_t n)
{
	for (int v = 0; v < VECTORS; v++) {
		for (size_t i = 0; i < n; i++)
			for (size_t k = 0; k < n; k++)
				assert_true(client_ring(&clients[i], clients[k].id, v));
		for (size_t i = 0; i < n; i++)
			assert_int_equal(client_rung(&clients[i], v), n);
	}
}

/* Whether anything at all has come for a client. */
static bool client_hears(const struct client *c)
{
	return poll(&(struct pollfd){.fd = c->sock, .events = POLLIN}, 1, 0) != 0;
}

static void hundred_thousand_looks_leave_nothing(void **state)
{
	const size_t looks = sanitized() ? 10000 : 100000;
	struct server s = {0};
	struct client clients[RESIDENTS + 1];
	int64_t start;
	char *log, *later;
	long memory;
	int descriptors;

	(void)state;
	assert_start(&s, "-f", "memory", "-n", "2");
	assert_connect(&s, clients, RESIDENTS, .vectors = VECTORS, .keep = true);
	assert_mesh(clients, RESIDENTS);
	bells_check(clients, RESIDENTS);
	assert_look(&s, RESIDENTS, RESIDENTS);
	assert_true(server_descriptors_wait(&s, s.idle + RESIDENTS * (1 + VECTORS), PATIENCE));
	descriptors = server_descriptors(&s);
	memory = server_memory(&s);
	log = server_log(&s);

	start = clock_ms();
	for (size_t i = 0; i < looks; i++)
		assert_look(&s, RESIDENTS, RESIDENTS);
	printf("# a look takes %.1f us, the asking included\n",
	       (double)(clock_ms() - start) * 1000 / (double)looks);

	for (size_t i = 0; i < RESIDENTS; i++)
		assert_false(client_hears(&clients[i]));
	bells_check(clients, RESIDENTS);
	assert_true(server_descriptors_wait(&s, descriptors, PATIENCE));
	if (!sanitized())
		assert_in_range(server_memory(&s), 0, memory + GROWTH);
	later = server_log(&s);
	assert_string_equal(later, log);
	free(log);
	free(later);
	assert_connect(&s, &clients[RESIDENTS], 1, .vectors = VECTORS, .keep = true);
	assert_mesh(clients, RESIDENTS + 1);
	assert_int_equal(clients[RESIDENTS].id, RESIDENTS);
	bells_check(clients, RESIDENTS + 1);
	clients_free(clients, RESIDENTS + 1);
	assert_stop(&s);
}

/* Who has been told of a join sees it, and of a leave: no text is given out that is not true. */
static void each_look_is_true(void **state)
{
	struct server s = {0};
	struct client clients[10];

	(void)state;
	assert_start(&s, "-f", "memory");
	for (size_t n = 1; n <= 10; n++) {
		assert_connect(&s, &clients[n - 1], 1, .vectors = 1);
		assert_drive(&clients[n - 1], 1, client_greeted, NULL);
		assert_look(&s, n, n);
	}
	assert_mesh(clients, 10);
	for (size_t n = 10; n > 1; n--) {
		client_free(&clients[n - 1]);
		assert_drive(clients, 1, client_misses, &(int){(int)n - 1});
		assert_look(&s, n - 1, 10);
	}
	client_free(clients);
	assert_stop(&s);
}

/* Two who never stop asking are many thousands of looks a second. */
static void nodes_join_beside_a_crowd(void **state)
{
	const size_t n = 40;
	struct server s = {0};
	static struct client clients[40];
	pid_t crowd[2];
	int64_t start;

	(void)state;
	assert_start(&s, "-f", "memory", "-n", "2");
	for (size_t i = 0; i < 2; i++)
		crowd[i] = crowd_start(&s);
	start = clock_ms();
	for (size_t i = 0; i < n; i++) {
		assert_connect(&s, &clients[i], 1, .vectors = VECTORS, .keep = true);
		assert_drive(&clients[i], 1, client_greeted, NULL);
	}
	assert_mesh(clients, n);
	printf("# %zu nodes join one by one beside a crowd in %d ms\n", n,
	       (int)(clock_ms() - start));
	bells_check(clients, n);
	clients_free(clients + n / 2, n / 2);
	assert_mesh(clients, n / 2);
	for (size_t i = 0; i < 2; i++)
		crowd_end(crowd[i]);
	assert_look(&s, n / 2, n);
	clients_free(clients, n / 2);
	assert_stop(&s);
}

static void last_descriptors_are_enough(void **state)
{
	struct server s = {.descriptors = {64, 64}, .unraised = true};
	struct client clients[64];
	size_t n = 0, joined;

	(void)state;
	assert_start(&s, "-f", "memory");
	for (;; n++) {
		assert_true(n < 64);
		assert_connect(&s, &clients[n], 1, .vectors = 1);
		assert_drive(&clients[n], 1, client_answered, NULL);
		if (client_refused(&clients[n], NULL))
			break;
	}
	client_free(&clients[n]);
	assert_mesh(clients, n);
	joined = n;
	for (size_t i = 0; i < 100; i++)
		assert_look(&s, n, joined);
	/* One that takes all that is left, for the answers are to do without. */
	for (size_t i = 0; i < 10; i++) {
		client_free(&clients[n - 1]);
		assert_mesh(clients, n - 1);
		assert_look(&s, n - 1, joined);
		assert_connect(&s, &clients[n - 1], 1, .vectors = 1);
		assert_drive(&clients[n - 1], 1, client_greeted, NULL);
		assert_mesh(clients, n);
		joined++;
		assert_look(&s, n, joined);
	}
	clients_free(clients, n);
	assert_stop(&s);
}

/* They ask, and never read; or are gone before they are answered. */
static void mute_crowd_harms_nobody(void **state)
{
	enum { MUTE = 2000, GONE = 500 };
	static int mute[MUTE];
	struct server s = {0};
	struct client clients[RESIDENTS];
	long memory;

	(void)state;
	if (descriptors_allow() < MUTE + 100)
		skip_because("the limit of descriptors is too low");
	assert_start(&s, "-f", "memory", "-n", "2");
	assert_connect(&s, clients, RESIDENTS - 1, .vectors = VECTORS, .keep = true);
	assert_mesh(clients, RESIDENTS - 1);
	assert_look(&s, RESIDENTS - 1, RESIDENTS - 1);
	memory = server_memory(&s);
	for (size_t i = 0; i < MUTE; i++) {
		mute[i] = look_ask(s.socket);
		assert_true(mute[i] >= 0);
		if (i < GONE) {
			int gone = look_ask(s.socket);

			assert_true(gone >= 0);
			close(gone);
		}
	}
	/* They wait in the same queue as the node that comes now. */
	assert_connect(&s, &clients[RESIDENTS - 1], 1, .vectors = VECTORS, .keep = true);
	assert_mesh(clients, RESIDENTS);
	bells_check(clients, RESIDENTS);
	assert_look(&s, RESIDENTS, RESIDENTS);
	if (!sanitized())
		assert_in_range(server_memory(&s), 0, memory + GROWTH);
	assert_true(server_descriptors_wait(&s, s.idle + RESIDENTS * (1 + VECTORS), PATIENCE));
	/* Whoever reads late reads what was true. */
	for (size_t i = 0; i < MUTE; i++) {
		char *text = look_take(mute[i]);

		assert_non_null(text);
		assert_int_equal(look_nodes(text), RESIDENTS - 1);
		free(text);
	}
	clients_free(clients, RESIDENTS);
	assert_stop(&s);
}

/* They write, which no client does. */
static void odd_askers_harm_nobody(void **state)
{
	struct server s = {0};
	struct client clients[2];
	char *text;
	int sock;

	(void)state;
	assert_start(&s, "-f", "memory", "-n", "2");
	assert_connect(&s, clients, 2, .vectors = VECTORS, .keep = true);
	assert_mesh(clients, 2);
	for (size_t i = 0; i < 100; i++) {
		sock = look_ask(s.socket);
		assert_true(sock >= 0);
		send(sock, "GET / HTTP/1.0\r\n\r\n", 18, MSG_NOSIGNAL);
		text = look_take(sock); /* or a reset: he has not been read */
		assert_true(text || errno == 0 || errno == EPROTO);
		free(text);
	}
	bells_check(clients, 2);
	assert_look(&s, 2, 2);
	clients_free(clients, 2);
	assert_stop(&s);
}

/* A server that is replaced in place, or by its successor, answers who asks meanwhile. */
static void restart_keeps_nobody_from_asking(void **state)
{
	struct server s = {0};
	struct client clients[RESIDENTS];
	pid_t crowd;

	(void)state;
	assert_start(&s, "-f", "memory", "-n", "2");
	assert_connect(&s, clients, RESIDENTS, .vectors = VECTORS, .keep = true);
	assert_mesh(clients, RESIDENTS);
	crowd = crowd_start(&s);
	for (size_t i = 0; i < 5; i++) {
		size_t before = server_restarts(&s);

		server_signal(&s, SIGHUP);
		while (server_restarts(&s) == before)
			assert_look(&s, RESIDENTS, RESIDENTS);
	}
	crowd_end(crowd);
	bells_check(clients, RESIDENTS);
	clients_free(clients, RESIDENTS);
	assert_stop(&s);
}

/* Whether the node with this ID is stored, as the status has it: "true", "false" or "null". */
static bool stored_is(const struct server *s, int id, const char *wanted)
{
	char *text = look_at(s), row[32];
	const char *at;
	bool is;

	snprintf(row, sizeof(row), "{\"id\":%d,", id);
	at = strstr(text, row);
	assert_non_null(at);
	at = strstr(at, "\"stored\":");
	assert_non_null(at);
	at += strlen("\"stored\":");
	is = !strncmp(at, wanted, strlen(wanted));
	free(text);
	return is;
}

/* A supervisor that takes nothing for a while has not stored who comes then; and who asks is never
 * stored. */
static void status_says_who_is_stored(void **state)
{
	struct supervisor *supervisor = supervisor_start();
	struct server s = {.supervisor = supervisor};
	struct client clients[300];
	int64_t deadline;
	size_t n = 1;

	(void)state;
	assert_non_null(supervisor);
	assert_start(&s, "-f", "memory");
	supervisor_settle(supervisor); /* it has room to store this one */
	assert_connect(&s, clients, 1, .vectors = 1);
	assert_mesh(clients, 1);
	assert_true(stored_is(&s, 0, "true"));
	supervisor_pause(supervisor);
	do {
		assert_true(n < 300);
		assert_connect(&s, &clients[n], 1, .vectors = 1);
		n++;
		assert_mesh(clients, n);
	} while (stored_is(&s, clients[n - 1].id, "true"));
	assert_true(stored_is(&s, clients[n - 1].id, "false"));
	supervisor_resume(supervisor);
	deadline = deadline_in(PATIENCE);
	while (!stored_is(&s, clients[n - 1].id, "true"))
		assert_true(deadline_ahead(deadline));
	assert_true(supervisor_wait(supervisor, "node-*", n, PATIENCE));
	/* Another process says the same of those whom it has taken over. */
	server_signal(&s, SIGKILL);
	assert_int_equal(server_wait(&s, PATIENCE), -SIGKILL);
	assert_start(&s, "-f", "memory");
	assert_look(&s, n, n);
	assert_true(stored_is(&s, clients[n - 1].id, "true"));
	assert_mesh(clients, n);
	clients_free(clients, n);
	assert_true(supervisor_wait(supervisor, "node-*", 0, PATIENCE));
	assert_int_equal(server_stop(&s), 0);
	server_remove(&s);
	supervisor_free(supervisor);
}

static void qemu_notices_nothing(void **state)
{
	struct server s = {0};
	struct node *nodes[3];
	const char *missing = node_missing();

	(void)state;
	if (missing)
		skip_because("%s", missing);
	assert_start(&s, "-f", "memory", "-n", "2");
	for (size_t i = 0; i < 2; i++) {
		nodes[i] = node_start(s.socket, VECTORS, "");
		assert_non_null(nodes[i]);
		assert_true(node_ready(nodes[i]));
	}
	nodes_check_bells(nodes, 2);
	for (size_t i = 0; i < 1000; i++)
		assert_look(&s, 2, 2);
	nodes_check_bells(nodes, 2);
	nodes[2] = node_start(s.socket, VECTORS, "");
	assert_non_null(nodes[2]);
	assert_true(node_ready(nodes[2]));
	assert_int_equal(node_id(nodes[2]), 2);
	nodes_check_bells(nodes, 3);
	nodes_check_memory(nodes, 3, 1);
	nodes_end();
	assert_stop(&s);
}

static int everything_end(void **state)
{
	(void)state;
	nodes_end();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		counted_test(hundred_thousand_looks_leave_nothing),
		counted_test(each_look_is_true),
		counted_test(nodes_join_beside_a_crowd),
		counted_test(last_descriptors_are_enough),
		counted_test(mute_crowd_harms_nobody),
		counted_test(odd_askers_harm_nobody),
		counted_test(restart_keeps_nobody_from_asking),
		counted_test(status_says_who_is_stored),
		counted_test(qemu_notices_nothing),
	};

	setlinebuf(stdout);
	descriptors_allow();
	return cmocka_run_group_tests(tests, NULL, everything_end);
}
