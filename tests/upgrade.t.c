/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A real server of version 1.2.0, built from this project's history, is replaced under live nodes
 * by the server under test, and that by itself: in place, by HUP, or as another process under a
 * supervisor. Nobody notices. What else a restart or a takeover can meet is in restart.t.c and
 * takeover.t.c, whose servers are of one version.
 *
 * SEED repeats a run.
 */
#define _GNU_SOURCE
#include "server/ledger.h"
#include "tests/lib/crowd.h"
#include "tests/lib/mesh.h"
#include "tests/lib/node.h"
#include "tests/lib/program.h"
#include "tests/lib/supervisor.h"
#include "tests/lib/testing.h"

#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define VERSION_120 "f7d38cdccd05d480006e4ae2ac023d89c18a83c6"

static unsigned int seed;
static char shm_name[32];

static char version_120[PATH_MAX]; /* the old program */

/* How a server is started, and replaced. */
struct way {
	bool background; /* with -d */
	bool supervised;
	int signal; /* HUP: it executes its successor; any other ends it, and another is started */
};

static const struct way hup_in_foreground = {.signal = SIGHUP};
static const struct way hup_in_background = {.background = true, .signal = SIGHUP};
static const struct way supervised_hup = {.supervised = true, .signal = SIGHUP};
static const struct way supervised_kill = {.supervised = true, .signal = SIGKILL};
static const struct way supervised_restart = {.supervised = true, .signal = SIGUSR2};

/* What a test has: one server at a time. */
static const struct way *way;
static const char *const *args;
static struct server server;
static int idle; /* descriptors of the server under test, when it has no nodes */
static struct supervisor *supervisor;

/* Has version 1.2.0 built, the first time. Skips the test where its source is not here. */
static void version_120_needed(void)
{
	static char said[512];
	static int status = -1;
	const char *source = getenv("SOURCE_DIR");
	char command[2 * PATH_MAX];
	FILE *f;

	if (status < 0) {
		snprintf(command, sizeof(command),
			 "%s/tests/lib/version " VERSION_120 " '%s.120' 2>&1",
			 source ? source : ".", program);
		f = popen(command, "re");
		assert_non_null(f);
		said[fread(said, 1, sizeof(said) - 1, f)] = '\0';
		said[strcspn(said, "\n")] = '\0';
		status = pclose(f);
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip_because("%s", said);
	assert_that(status == 0, "version 1.2.0 cannot be built: %s", said);
}

/*
 * The server, and its successors
 */

/* The last lines of its log, for a message; one in the background has none. */
static const char *log_end(void)
{
	return file_end(server.log);
}

/* Starts the program, in the test's way, with the test's options. */
static void server_begin(void)
{
	const char *all[32] = {"-d", "-i", "pid"};
	size_t n = 3;

	if (!way->background) {
		assert_that(server_start(&server, args), "%s", server.error);
	} else {
		for (const char *const *arg = args; *arg; arg++)
			all[n++] = *arg;
		assert_that(server_spawn(&server, all), "%s", server.error);
		assert_that(server_wait(&server, PATIENCE) == 0, "%s", log_end());
		server.pid = server_pidfile(&server); /* whose parent this process has become */
	}
	assert_true(program_runs(server.pid));
}

/* Ends it, in order. */
static void server_end(void)
{
	assert_int_equal(server_stop(&server), 0);
	assert_int_equal(access(server.socket, F_OK), -1);
	if (supervisor)
		supervisor_empty(supervisor);
}

/* Starts version 1.2.0; and before that the server under test, to see what it has open. */
static void server_up(const char *const *options)
{
	if (way->supervised)
		supervisor = supervisor_start();
	assert_int_equal(way->supervised, supervisor != NULL);
	server.supervisor = supervisor;
	args = options;
	program_put(tested);
	server_begin();
	idle = server_idle(&server);
	server_end();
	program_put(version_120);
	server_begin();
}

/* The table of nodes, as the lines that the server logs of it; the caller frees it. */
static char *table_of_nodes(void)
{
	char *log = server_log(&server), *table = NULL;
	size_t before = log ? strlen(log) : 0;
	int64_t deadline = deadline_in(PATIENCE);

	server_signal(&server, SIGUSR1);
	do {
		assert_that(deadline_ahead(deadline), "no table of nodes: %s", log_end());
		free(log);
		log = server_log(&server);
	} while (!log || !strstr(log + before, "joined so far"));
	table = strdup(log + before);
	free(log);
	assert_non_null(table);
	return table;
}

/* Waits until the server knows of all who have come and gone, and has nothing more to do or store.
 */
static void server_rests(void)
{
	int64_t deadline = deadline_in(PATIENCE);
	char connected[32], *table;
	bool rests;

	snprintf(connected, sizeof(connected), " %zu nodes connected", count);
	do {
		assert_that(deadline_ahead(deadline), "it never rests: %s", log_end());
		/* What waited when the first is asked for is seen to before the second. */
		free(table_of_nodes());
		table = table_of_nodes();
		rests = strstr(table, connected) && !strstr(table, "not stored yet");
		free(table);
	} while (!rests);
	assert_that(server_idle(&server) >= 0, "it never sleeps: %s", log_end());
}

/*
 * The server under test comes into the place of the one that runs. In between, people may come and
 * go.
 */
static void server_goes(void)
{
	if (way->signal == SIGKILL)
		server_rests();
	program_put(tested);
	server_signal(&server, way->signal);
	if (way->signal != SIGHUP)
		assert_int_equal(server_wait(&server, PATIENCE),
				 way->signal == SIGKILL ? -SIGKILL : 0);
}

static void server_comes(void)
{
	int64_t deadline = deadline_in(PATIENCE);

	if (way->signal != SIGHUP)
		server_begin();
	while (!program_runs(server.pid))
		assert_that(deadline_ahead(deadline) && !server_logged(&server, "cannot take over"),
			    "it is not replaced: %s", log_end());
	if (way->background)
		assert_int_equal(server_pidfile(&server), server.pid);
}

/* All clients go, and then the server, which has as much open in the end as one that came into
 * nobody's place. */
static void all_leave(void)
{
	everybody_goes();
	if (supervisor)
		assert_that(supervisor_wait(supervisor, "node-*", 0, PATIENCE),
			    "%zu nodes stay stored", supervisor_count(supervisor, "node-*"));
	assert_that(server_descriptors_wait(&server, idle, PATIENCE),
		    "%d descriptors instead of %d", server_descriptors(&server), idle);
	server_end();
	if (supervisor)
		assert_that(!supervisor_error(supervisor), "%s", supervisor_error(supervisor));
}

/* The same, and the server must have lived without a complaint. */
static void all_end(void)
{
	static const char *const complaints[] = {"cannot", "Sanitizer", "runtime error", "ssertion",
						 "restart the node"};
	static const char no_syslog[] = "warning: nothing is logged from here on";
	char *log;

	all_leave();
	for (size_t i = 0; i < sizeof(complaints) / sizeof(complaints[0]); i++)
		assert_that(!server_logged(&server, complaints[i]), "'%s' is in the log: %s",
			    complaints[i], log_end());
	log = server_log(&server);
	assert_non_null(log);
	for (const char *at = log; (at = strstr(at, "warning"));
	     at++) /* the machine may have none */
		assert_that(!strncmp(at, no_syslog, strlen(no_syslog)), "there is a %s", at);
	free(log);
}

/* Forgets the server and its supervisor. */
static void all_forget(void)
{
	server_remove(&server);
	supervisor_free(supervisor);
	supervisor = NULL;
	server = (struct server){0};
}

/*
 * Tests
 */

static const struct client_options two = {.vectors = 2, .keep = true};

struct kind {
	const char *const *args;
	struct client_options options;
};

/* People come and go before, while and after a server of this kind is replaced, twice. */
static void kind_check(const struct kind *kind)
{
	const char mark[] = "written before all that";
	char found[sizeof(mark)];

	server_up(kind->args);
	for (int id = 0; id < 3; id++)
		assert_int_equal(somebody_is_greeted(kind->options)->id, id);
	everybody(client_agrees, NULL);
	if (!kind->options.memoryless)
		assert_int_equal(pwrite(clients[0].memory, mark, sizeof(mark), 0), sizeof(mark));
	for (int round = 1; round <= 2; round++) {
		server_goes();
		somebody_goes(1);
		somebody_connects(kind->options);
		server_comes();
		everybody_agrees();
		assert_int_equal(clients[0].id, 0);
		assert_int_equal(clients[2].id, 2 + round);
		if (kind->options.vectors)
			assert_int_equal(client_peer(&clients[0], round)->state, PEER_LEFT);
	}
	if (!kind->options.memoryless) {
		assert_int_equal(pread(clients[2].memory, found, sizeof(found), 0), sizeof(found));
		assert_string_equal(found, mark);
	}
	somebody_goes(0);
	everybody_agrees();
	somebody_is_greeted(kind->options);
	everybody_agrees();
	all_end();
	all_forget();
}

static void every_kind_of_server(void)
{
	const struct kind kinds[] = {
		{SERVER_ARGS("-f", "memory", "-n2"), two},
		{SERVER_ARGS("-s", shm_name, "-n2", "-am2M"), two},
		{SERVER_ARGS("-A", "-n2", "-g0"), two},
		{SERVER_ARGS("-f", "memory", "-n0"), {.vectors = 0, .keep = true}},
		{SERVER_ARGS("-fmemory", "-vy1", "-n64"), {.vectors = 64, .keep = true}},
		{SERVER_ARGS("-L", "-f", "memory", "-m", "1M", "-n2"),
		 {.vectors = 2, .keep = true, .legacy = true}},
		{SERVER_ARGS("-L", "-m0", "-n2"),
		 {.vectors = 2, .keep = true, .legacy = true, .memoryless = true}},
	};

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		kind_check(&kinds[i]);
}

/* More than a socket holds, 278 messages, for one who was greeted and for one who is not yet. */
static void who_does_not_read_misses_nothing(void)
{
	const struct client_options many = {.vectors = 48, .keep = true};
	size_t read[2];
	int id;

	if (descriptors_allow() < 8000)
		skip_because("this needs 8000 descriptors");
	server_up(SERVER_ARGS("-f", "memory", "-n", "48"));
	for (int i = 0; i < 10; i++)
		somebody_is_greeted(many);
	somebody_connects(many);
	id = 10;
	some_drive(1, count - 2, client_sees, &id);
	read[0] = clients[0].messages;
	read[1] = clients[count - 1].messages;
	for (int round = 1; round <= 2; round++) {
		server_goes();
		somebody_goes(3);
		server_comes();
		somebody_goes(3);
		some_drive(1, count - 2, client_knows, &(size_t){count - 1});
	}
	everybody_agrees();
	assert_int_equal(clients[count - 1].id, id);
	assert_in_range(clients[0].messages - read[0], 278 + 1, 48 * 10 + 4);
	assert_in_range(clients[count - 1].messages - read[1], 278 + 1, 3 + 48 * 11 + 4);
	assert_true(clients[0].left >= 1);
	somebody_is_greeted(many);
	everybody_agrees();
	all_end();
}

/* Somebody comes, goes, or reads a little. */
static void life_goes_on(void)
{
	if (count < 2 || (count < 40 && rand_r(&seed) % 5 < 3))
		somebody_connects(two);
	else
		somebody_goes((size_t)rand_r(&seed) % count);
	for (size_t i = 0; i < count; i++) {
		for (int n = rand_r(&seed) % 40; n > 0 && client_step(&clients[i]) > 0; n--)
			;
		assert_that(!clients[i].error[0] && !clients[i].ended, "%d is cut off: %s; %s",
			    clients[i].id, clients[i].error, log_end());
	}
}

/* In the middle of joins and leaves. One that is killed is so while it has nothing to do. */
static void nobody_is_cut_off(void)
{
	printf("# SEED=%u\n", seed);
	for (int history = 0; history < 5; history++) {
		server_up(SERVER_ARGS("-f", "memory", "-n", "2"));
		for (int round = 0; round < 3; round++) {
			for (int turns = 0; turns < 20; turns++)
				life_goes_on();
			server_goes();
			for (int turns = 0; turns < 20; turns++)
				life_goes_on();
			server_comes();
			if (round != 1)
				everybody_agrees();
		}
		all_end();
		all_forget();
	}
}

/* Marks in the ledger of version 1.2.0, of one vector or two, that something is being sent to the
 * node with this ID. */
static void sending_mark(int id)
{
	const size_t peers = 1048832, each = 64;
	struct peer p = {0};
	bool written = false;
	int fd = server_ledger(&server);

	for (size_t at = peers; pread(fd, &p, sizeof(p), (off_t)at) == sizeof(p); at += each) {
		if (!p.serial || p.id != id)
			continue;
		p.sending = true;
		written = pwrite(fd, &p, sizeof(p), (off_t)at) == sizeof(p);
	}
	close(fd);
	assert_true(written);
}

/* Version 1.2.0 did not note how much of a send had gone out: that one node is let go, and named.
 */
static void one_that_was_being_sent_something(void)
{
	char line[128];

	server_up(SERVER_ARGS("-f", "memory", "-n", "2"));
	for (int id = 0; id < 3; id++)
		somebody_is_greeted(two);
	everybody_agrees();
	server_rests();
	sending_mark(1);
	server_goes();
	server_comes();
	some_drive(1, 1, client_ended, NULL);
	somebody_goes(1);
	everybody_agrees();
	snprintf(line, sizeof(line),
		 "ID 1 left: version 1.2.0 died while it sent to this node, and did not note how "
		 "much arrived: restart the node, process %d",
		 (int)getpid());
	assert_true(server_logged(&server, line));
	assert_int_equal(somebody_is_greeted(two)->id, 3);
	server_goes();
	server_comes();
	everybody_agrees();
	all_leave();
}

/* The ledger is made anew where no descriptor is left for it. */
static void no_descriptor_is_left(void)
{
	server.unraised = true;
	server.descriptors = (struct rlimit){40, 40};
	server_up(SERVER_ARGS("-f", "memory", "-n", "2"));
	do
		somebody_connects(two);
	while (clients_drive(&clients[count - 1], 1, client_greeted, NULL, PATIENCE));
	assert_true(server_log_wait(&server, "Too many open files", PATIENCE));
	somebody_goes(count - 1);
	for (int round = 1; round <= 2; round++) {
		server_goes();
		server_comes();
		everybody_agrees();
	}
	all_leave();
}

/* Version 1.2.0 cannot read what the server under test keeps: HUP refuses it, and nobody notices.
 */
static void there_is_no_way_back(void)
{
	server_up(SERVER_ARGS("-f", "memory", "-n", "2"));
	for (int id = 0; id < 3; id++)
		somebody_is_greeted(two);
	server_goes();
	server_comes();
	program_put(version_120);
	server_signal(&server, SIGHUP);
	assert_true(
		server_log_wait(&server, "cannot take over, going on without a restart", PATIENCE));
	somebody_goes(1);
	assert_int_equal(somebody_is_greeted(two)->id, 3);
	everybody_agrees();
	all_leave();
}

/* The server that comes has a standby, as version 1.2.0 had none. */
static void a_standby_comes_with_it(void)
{
	int64_t deadline = deadline_in(PATIENCE);
	int32_t standby = 0;
	int ledger;

	server_up(SERVER_ARGS("-f", "memory", "-n", "2"));
	for (int id = 0; id < 3; id++)
		somebody_is_greeted(two);
	server_goes();
	server_comes();
	while (standby <= 0) {
		assert_that(deadline_ahead(deadline), "there is no standby");
		ledger = server_ledger(&server); /* at first the shorter one of version 1.2.0 */
		if (pread(ledger, &standby, sizeof(standby), offsetof(struct ledger, standby)) !=
		    sizeof(standby))
			standby = 0;
		close(ledger);
	}
	server_signal(&server, SIGKILL);
	assert_int_equal(server_wait(&server, PATIENCE), -SIGKILL);
	while (server_pidfile(&server) != standby)
		assert_that(deadline_ahead(deadline), "the standby does not go on");
	server.pid = standby;
	somebody_goes(1);
	assert_int_equal(somebody_is_greeted(two)->id, 3);
	everybody_agrees();
	all_end();
}

/* They ring each other before, while and after; one connects meanwhile, and one leaves. */
static void qemu_nodes(void)
{
	const char *missing = node_missing();
	struct node *nodes[3];
	uint64_t salt = 0;
	size_t eventfds;

	if (missing)
		skip_because("%s", missing);
	server_up(SERVER_ARGS("-f", "memory", "-n", "2"));
	for (int i = 0; i < 2; i++) {
		nodes[i] = node_start(server.socket, 2, "");
		assert_true(node_ready(nodes[i]));
	}
	nodes_check(nodes, 2, ++salt);
	eventfds = node_eventfds(nodes[0]);
	count = 2; /* of those that are to be stored */
	for (int round = 1; round <= 2; round++) {
		server_goes();
		nodes[2] = node_start(server.socket, 2, "");
		nodes_check(nodes, 2, ++salt);
		server_comes();
		assert_true(node_ready(nodes[2]));
		assert_int_equal(node_id(nodes[0]), 0);
		assert_int_equal(node_id(nodes[1]), round);
		assert_int_equal(node_id(nodes[2]), 1 + round);
		nodes_check(nodes, 3, ++salt);
		node_end(nodes[1]);
		nodes[1] = nodes[2];
		node_check_eventfds(nodes[0], eventfds);
		nodes_check(nodes, 2, ++salt);
	}
	count = 0;
	nodes_end();
	all_end();
}

/*
 * Nothing of a test stays behind, however it has ended.
 */

struct trial {
	const struct way *way;
	void (*test)(void);
};

static int teardown(void **state)
{
	char path[64];

	(void)state;
	everybody_goes();
	nodes_end();
	all_forget();
	snprintf(path, sizeof(path), "/dev/shm/%s", shm_name);
	unlink(path);
	return 0;
}

static void trial_run(void **state)
{
	const struct trial *trial = *state;
	int before;

	*state = NULL;
	version_120_needed();
	before = descriptors_count(0);
	way = trial->way;
	trial->test();
	teardown(state);
	assert_int_equal(descriptors_count(0), before);
}

#define in_one_way(way_, test_)                                                              \
	(struct CMUnitTest)                                                                  \
	{                                                                                    \
		.name = #test_ "_" #way_, .test_func = trial_run, .teardown_func = teardown, \
		.initial_state = &(struct trial)                                             \
		{                                                                            \
			&(way_), test_                                                       \
		}                                                                            \
	}
#define in_all_ways(test)                                                            \
	in_one_way(hup_in_foreground, test), in_one_way(hup_in_background, test),    \
		in_one_way(supervised_hup, test), in_one_way(supervised_kill, test), \
		in_one_way(supervised_restart, test)

int main(void)
{
	const struct CMUnitTest tests[] = {
		in_all_ways(every_kind_of_server),
		in_all_ways(who_does_not_read_misses_nothing),
		in_all_ways(nobody_is_cut_off),
		in_all_ways(qemu_nodes),
		in_one_way(supervised_kill, one_that_was_being_sent_something),
		in_one_way(hup_in_foreground, no_descriptor_is_left),
		in_one_way(hup_in_foreground, there_is_no_way_back),
		in_one_way(supervised_hup, there_is_no_way_back),
		in_one_way(hup_in_background, a_standby_comes_with_it),
	};

	if (!program_begin("upgraded") || !daemons_begin(&seed))
		return 1;
	snprintf(version_120, sizeof(version_120), "%.*s.120/tm_ivshmem_server", PATH_MAX - 32,
		 program);
	snprintf(shm_name, sizeof(shm_name), "tm-upgrade-%d", (int)getpid());
	crowd_at(server.socket, server.log);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
