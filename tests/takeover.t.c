/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Under a supervisor that keeps the server's descriptors, a new process takes over from one that
 * was killed or has ended, and no node notices. Here the supervisor is a thread of the test, which
 * can be slow, full or gone; systemd itself is in systemd.bats, and an end between any two stores
 * to the ledger in crash.t.c.
 *
 * SEED repeats a run.
 */
#define _GNU_SOURCE
#include "tests/lib/crowd.h"
#include "tests/lib/mesh.h"
#include "tests/lib/node.h"
#include "tests/lib/supervisor.h"
#include "tests/lib/testing.h"

#include "send_scm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static unsigned int seed;
static char shm_name[32];

/* One server, and the supervisor that it runs under. */
static struct server server;
static struct supervisor *supervisor;
static size_t came; /* where in the log the lines of the process begin that runs */

/*
 * The log
 */

/* What was logged from some place on; the caller frees it. */
static char *log_from(size_t place)
{
	char *log = server_log(&server), *rest;

	if (log && strlen(log) > place)
		rest = strdup(log + place);
	else
		rest = strdup("");
	free(log);
	assert_non_null(rest);
	return rest;
}

static size_t log_length(void)
{
	char *log = log_from(0);
	size_t n = strlen(log);

	free(log);
	return n;
}

/* Its last lines, for a message. */
static const char *log_end(void)
{
	return file_end(server.log);
}

/* How often a text stands there. */
static size_t logged_times(size_t place, const char *text)
{
	char *log = log_from(place);
	size_t n = 0;

	for (const char *at = log; (at = strstr(at, text)); at++)
		n++;
	free(log);
	return n;
}

static void logged_wait(size_t place, const char *text)
{
	int64_t deadline = deadline_in(PATIENCE);

	while (logged_times(place, text) == 0)
		assert_that(deadline_ahead(deadline), "'%s' was not logged: %s", text, log_end());
}

/* Of the nodes of this process, how many were let go by a takeover: ID -1, all of them. */
static size_t let_go(size_t place, int id)
{
	char *log = log_from(place), *rest, left[32], who[32];
	size_t n = 0;

	snprintf(left, sizeof(left), id < 0 ? "ID " : "ID %d left: ", id);
	snprintf(who, sizeof(who), "process %d", (int)getpid());
	for (char *line = strtok_r(log, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		n += strstr(line, left) && strstr(line, " left: ") && strstr(line, who) &&
		     strstr(line, "restart the node");
	free(log);
	return n;
}

/*
 * The server, and its successors
 */

static void server_up(const char *const *args)
{
	if (!supervisor)
		supervisor = supervisor_start();
	assert_non_null(supervisor);
	server.supervisor = supervisor;
	came = server.folder[0] ? log_length() : 0;
	assert_that(server_start(&server, args), "%s", server.error);
}

/* How many milliseconds a start takes, for alarms within one: where the machine stops for seconds,
 * that is not to count. */
static int64_t start_measure(const char *const *args)
{
	int64_t begin = clock_ms(), took;

	server_up(args);
	took = clock_ms() - begin;
	return took < 500 ? took : 500;
}

/* The same for one that is to take over so many nodes, from one that runs no longer. */
static void successor_up(const char *const *args, size_t nodes)
{
	char text[64];

	server_up(args);
	snprintf(text, sizeof(text), "took over %zu node", nodes);
	logged_wait(came, text);
}

/* Waits until the supervisor has heard so many times that a server is ready; and no more often. */
static void ready_wait(size_t times)
{
	int64_t deadline = deadline_in(PATIENCE);

	while (supervisor_heard(supervisor, "READY=1") < times)
		assert_that(deadline_ahead(deadline), "it is never ready");
	assert_int_equal(supervisor_heard(supervisor, "READY=1"), times);
}

/* Tells the supervisor something, as a server would. */
static void supervisor_told(const char *text, int fd)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	snprintf(to.sun_path, sizeof(to.sun_path), "%s", supervisor_path(supervisor));
	assert_true(scm_pass(sock, &to, sizeof(to), text, strlen(text), &fd, fd >= 0));
	close(sock);
	supervisor_settle(supervisor);
}

/* The table of nodes, as lines of the log; the caller frees it. */
static char *table_of_nodes(void)
{
	size_t place = log_length();

	server_signal(&server, SIGUSR1);
	logged_wait(place, "joined so far");
	return log_from(place);
}

/* Waits until the server has told the supervisor all that it had to, and has nothing to do. */
static void server_settles(void)
{
	int64_t deadline = deadline_in(PATIENCE);
	size_t messages;

	do {
		assert_that(deadline_ahead(deadline), "it is never settled: %s", log_end());
		messages = supervisor_messages(supervisor);
		assert_that(server_idle(&server) >= 0, "it never rests: %s", log_end());
	} while (supervisor_messages(supervisor) != messages);
}

/* Kills the server, whatever it does. */
static void server_dies(void)
{
	server_signal(&server, SIGKILL);
	assert_int_equal(server_wait(&server, PATIENCE), -SIGKILL);
}

/* Kills the server while it has nothing to do. */
static void server_kill(void)
{
	server_settles();
	server_dies();
}

/* Stops the server, until SIGCONT. */
static void server_halt(void)
{
	server_signal(&server, SIGSTOP);
	assert_int_equal(waitpid(server.pid, NULL, WUNTRACED), server.pid);
}

/* How many nodes the table says are not stored yet, and their IDs. */
static size_t unstored(int *ids, size_t room)
{
	char *table = table_of_nodes(), *rest;
	size_t n = 0;

	for (char *line = strtok_r(table, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		if (strstr(line, "not stored yet")) {
			assert_non_null(strstr(line, "ID "));
			assert_true(n < room);
			ids[n++] = atoi(strstr(line, "ID ") + 3);
		}
	free(table);
	return n;
}

/* What nobody would like to find in the log of a server that nothing has happened to. */
static void log_check(void)
{
	static const char *const complaints[] = {"cannot",   "Sanitizer",        "runtime error",
						 "ssertion", "restart the node", "warning"};

	for (size_t i = 0; i < sizeof(complaints) / sizeof(complaints[0]); i++)
		assert_that(!server_logged(&server, complaints[i]), "'%s' is in the log: %s",
			    complaints[i], log_end());
}

/* All clients go, and then the server, which has to have told its supervisor only what that takes.
 */
static void all_end(void)
{
	everybody_goes();
	assert_that(supervisor_wait(supervisor, "node-*", 0, PATIENCE), "%zu nodes stay stored",
		    supervisor_count(supervisor, "node-*"));
	assert_int_equal(server_stop(&server), 0);
	assert_that(!supervisor_error(supervisor), "%s", supervisor_error(supervisor));
	assert_false(server_logged(&server, "Sanitizer") ||
		     server_logged(&server, "runtime error"));
}

/* The server is restarted in place, and so often that it uses every name. */
static void reload(void)
{
	size_t place = log_length();

	server_signal(&server, SIGHUP);
	logged_wait(place, "restarted in place");
}

/* Forgets the server and its supervisor. */
static void all_forget(void)
{
	server_remove(&server);
	supervisor_free(supervisor);
	supervisor = NULL;
	server = (struct server){0};
}

/* Those that are stored are those who are there, and nobody else; and so it stays. */
static void store_settles(size_t own)
{
	int64_t deadline = deadline_in(PATIENCE);
	size_t all, stored;

	do {
		server_settles();
		all = supervisor_count(supervisor, "*");
		stored = supervisor_count(supervisor, "node-*");
		assert_that(deadline_ahead(deadline),
			    "%zu nodes are stored, and %zu are there; with the server's own, %zu "
			    "descriptors instead of %zu: %s",
			    stored, count, all, own + count, log_end());
	} while (stored != count || all != own + count);
}

/*
 * Tests
 */

static const struct client_options two = {.vectors = 2, .keep = true};
#define TWO SERVER_ARGS("-f", "memory", "-n", "2")
#define OWN 4 /* descriptors of its own that a server of a file stores */
static const char *const own_names[OWN] = {"ledger", "object", "lock", "our-listener"};

/* Starts a server, and so many nodes join. */
static void nodes_up(size_t nodes)
{
	server_up(TWO);
	for (size_t i = 0; i < nodes; i++)
		somebody_joins(two);
}

struct kind {
	const char *const *args;
	struct client_options options;
	size_t own; /* descriptors that it stores */
};

/* One server of some kind is killed twice, and people come and go before, between and after. */
static void kind_check(const struct kind *kind)
{
	const char mark[] = "written before all that";
	char found[sizeof(mark)];
	int idle;

	server_up(kind->args);
	idle = server.idle;
	ready_wait(1);
	store_settles(kind->own);
	for (int i = 0; i < 3; i++)
		somebody_joins(kind->options);
	if (!kind->options.memoryless)
		assert_int_equal(pwrite(clients[0].memory, mark, sizeof(mark), 0), sizeof(mark));
	for (int death = 1; death <= 2; death++) {
		server_kill();
		somebody_goes(1);
		somebody_connects(kind->options);
		successor_up(kind->args, 3);
		ready_wait(1 + (size_t)death);
		everybody_agrees();
		assert_int_equal(clients[2].id, 2 + death);
		/* The first was told of the leave, the last has never heard of it. */
		if (kind->options.vectors) {
			assert_int_equal(client_peer(&clients[0], death)->state, PEER_LEFT);
			assert_int_equal(client_peer(&clients[2], death)->state, PEER_NEVER);
		}
		store_settles(kind->own);
	}
	if (!kind->options.memoryless) {
		assert_int_equal(pread(clients[2].memory, found, sizeof(found), 0), sizeof(found));
		assert_string_equal(found, mark);
	}
	assert_int_equal(clients[0].id, 0);
	somebody_goes(1);
	everybody_agrees();
	somebody_joins(kind->options);
	everybody_agrees();
	everybody_goes();
	assert_that(server_descriptors_wait(&server, idle, PATIENCE),
		    "%d descriptors instead of %d", server_descriptors(&server), idle);
	all_end();
	log_check();
	assert_int_equal(access(server.socket, F_OK), -1);
	all_forget();
}

static void nodes_do_not_notice_a_death(void **state)
{
	const struct kind kinds[] = {
		{TWO, two, OWN},
		{SERVER_ARGS("-s", shm_name, "-n2", "-am2M"), two, OWN},
		{SERVER_ARGS("-A", "-n2", "-g0"), two, OWN - 1},
		{SERVER_ARGS("-f", "memory", "-n", "0"), {.vectors = 0, .keep = true}, OWN},
		{SERVER_ARGS("-f", "memory", "-ipid"), {.vectors = 1, .keep = true}, OWN},
		{SERVER_ARGS("-fmemory", "-vy1", "-n64"), {.vectors = 64, .keep = true}, OWN},
		{SERVER_ARGS("-L", "-f", "memory", "-n", "2"),
		 {.vectors = 2, .keep = true, .legacy = true},
		 OWN},
		{SERVER_ARGS("-L", "-m", "0", "-n", "2"),
		 {.vectors = 2, .keep = true, .legacy = true, .memoryless = true},
		 OWN - 2},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		kind_check(&kinds[i]);
}

/* More vectors than the kernel passes descriptors in one message. */
static void nodes_may_have_many_vectors(void **state)
{
	const struct kind many = {
		SERVER_ARGS("-f", "memory", "-n", "600"), {.vectors = 600, .keep = true}, OWN};

	(void)state;
	if (descriptors_allow() < 8000)
		skip_because("this needs 8000 descriptors");
	kind_check(&many);
}

/*
 * Some do not read, whose sockets are full in the middle of their greeting or of what came later.
 * Nobody is being sent anything when the server dies, so nobody is cut off.
 */
static void who_does_not_read_misses_nothing(void **state)
{
	const char *const *args = SERVER_ARGS("-f", "memory", "-n", "64");
	const struct client_options options = {.vectors = 64};
	int id;

	(void)state;
	server_up(args);
	somebody_joins(options);
	for (int i = 0; i < 9; i++) {
		id = somebody_is_greeted(options)->id;
		some_drive(1, count - 1, client_sees, &id);
	}
	somebody_connects(options);
	logged_wait(came, "ID 10 joined");
	id = 10;
	assert_true(clients_drive(&clients[1], 9, client_sees, &id, PATIENCE));
	for (int death = 1; death <= 2; death++) {
		server_kill();
		somebody_goes(2);
		successor_up(args, count + 1);
		somebody_goes(3);
		assert_true(clients_drive(&clients[1], 2, client_knows, &(size_t){count - 1},
					  PATIENCE));
	}
	somebody_connects(options);
	everybody(client_agrees, NULL);
	/* They were sent what they had not been before: of most, all. */
	assert_true(clients[0].left >= 1 && clients[0].messages > 500);
	store_settles(OWN);
	all_end();
	log_check();
}

/*
 * Death at random moments
 */

#define KILLS  200
#define CROWD  10
#define CROWDS 40 /* vectors of each */

#define FORTY SERVER_ARGS("-f", "memory", "-n", "40")

static bool resting[CROWD]; /* who does not read for now */
static size_t never_greeted;

/* Between nothing and so many microseconds go by. */
static void moment(unsigned int us)
{
	nanosleep(&(struct timespec){.tv_nsec = 1000L * (rand_r(&seed) % (us + 1))}, NULL);
}

static void life_ends(size_t i)
{
	memmove(&resting[i], &resting[i + 1], (count - 1 - i) * sizeof(resting[0]));
	somebody_goes(i);
}

/* The connection of a client has ended: a process had taken it from the listener and nobody else
 * had it, so the kernel closed it. Or the supervisor was so slow that it could not be stored. */
static void life_is_cut(size_t i)
{
	const struct client *c = &clients[i];
	char line[80];

	snprintf(line, sizeof(line), "ID %d left: its descriptors had not been stored when", c->id);
	assert_that(c->messages == 0 || logged_times(0, line) > 0,
		    "client %d was cut off after %zu messages: %s", c->id, c->messages, c->error);
	never_greeted++;
	life_ends(i);
}

/* Lets one read a little. */
static void life_reads(size_t i, int messages)
{
	while (messages-- > 0 && client_step(&clients[i]) > 0)
		;
	if (!clients[i].ended) /* else the next process will say why */
		assert_that(!clients[i].error[0], "%s", clients[i].error);
}

/* Somebody comes, goes, reads or stops to. */
static void life_goes_on(void)
{
	size_t i = count ? (size_t)rand_r(&seed) % count : 0;
	int dice = rand_r(&seed) % 10;

	if ((count < 2 || dice < 3) && count < CROWD) {
		/* Before the first listener is stored there is nothing to connect to. */
		if (!server.pid && supervisor_count(supervisor, "our-listener") == 0)
			return;
		resting[count] = rand_r(&seed) % 3 == 0;
		somebody_connects((struct client_options){.vectors = CROWDS});
	} else if (count > 0 && dice < 5) {
		life_ends(i);
	} else if (count > 0 && dice < 6) {
		resting[i] = !resting[i];
	} else {
		for (i = 0; i < count; i++)
			if (!resting[i])
				life_reads(i, rand_r(&seed) % 100);
	}
}

/* Lets all read until all agree, but for those who are cut off. */
static void lives_settle(void)
{
	int64_t deadline = deadline_in(PATIENCE);
	bool agreed;

	do {
		for (size_t i = count; i-- > 0;) {
			life_reads(i, 10000);
			if (clients[i].ended)
				life_is_cut(i);
		}
		agreed = true;
		for (size_t i = 0; i < count; i++)
			agreed = agreed && client_agrees(&clients[i], NULL);
	} while (!agreed && deadline_ahead(deadline));
	for (size_t i = 0; i < count && !agreed; i++)
		assert_that(client_agrees(&clients[i], NULL),
			    "client %d of %zu, %zu messages, knows %zu others, %zu whole: %s",
			    clients[i].id, count, clients[i].messages, clients[i].here,
			    clients[i].whole, log_end());
	store_settles(OWN);
}

/*
 * Starts the server, which an alarm may end at any moment from its first on. Returns whether it has
 * got as far as to serve.
 */
static bool mortal_up(unsigned int alarm_us)
{
	server.alarm_us = alarm_us;
	if (server_start(&server, FORTY))
		return true;
	assert_that(alarm_us && server.status == -SIGALRM, "%s", server.error);
	return false;
}

static void any_moment_may_be_the_last(void **state)
{
	size_t early = 0;
	int64_t start;

	(void)state;
	printf("# SEED=%u\n", seed);
	never_greeted = 0;
	start = start_measure(FORTY);
	for (int kill = 1; kill <= KILLS; kill++) {
		bool calm = kill % 10 == 0;
		unsigned int alarm_us = 1 + rand_r(&seed) % (unsigned int)(start * 1500 + 1000);

		/* The one that runs dies while it does something, or nothing. */
		for (int n = rand_r(&seed) % 6; n > 0 && server.pid; n--) {
			life_goes_on();
			moment(server.alarm_us ? 3000 : 300);
		}
		if (server.pid && !server.alarm_us) {
			server_signal(&server, SIGKILL);
			assert_int_equal(server_wait(&server, PATIENCE), -SIGKILL);
		} else if (server.pid) {
			assert_int_equal(server_wait(&server, PATIENCE), -SIGALRM);
		}
		for (int n = rand_r(&seed) % 4; n > 0; n--)
			life_goes_on();
		/* The next may die while it starts. */
		early += !mortal_up(calm || rand_r(&seed) % 2 ? 0 : alarm_us);
		if (calm)
			lives_settle();
	}
	printf("# %d deaths, %zu of them before the server was ready: %zu times a client had not "
	       "been greeted\n",
	       KILLS, early, never_greeted);
	if (!server.pid || server.alarm_us) {
		if (server.pid)
			server_wait(&server, PATIENCE);
		assert_true(mortal_up(0));
	}
	lives_settle();
	assert_int_equal(let_go(0, -1),
			 logged_times(0, "its descriptors had not been stored when"));
	assert_in_range(never_greeted, 0, KILLS / 10);
	all_end();
}

/* The first process dies before it has stored all: the next makes do with what there is. */
static void a_start_may_fail_anywhere(void **state)
{
	size_t deaths = 0;
	int64_t start;

	(void)state;
	printf("# SEED=%u\n", seed);
	start = start_measure(TWO);
	all_end();
	for (int i = 0; i < 20; i++) {
		supervisor_empty(supervisor);
		server.alarm_us = 1 + rand_r(&seed) % (unsigned int)(start * 1000);
		if (server_start(&server, TWO)) {
			assert_int_equal(server_wait(&server, PATIENCE), -SIGALRM);
		} else {
			assert_that(server.status == -SIGALRM, "%s", server.error);
			deaths++;
		}
		server.alarm_us = 0;
		server_up(TWO);
		somebody_joins(two);
		store_settles(OWN);
		all_end();
	}
	printf("# %zu of 20 died before they were ready\n", deaths);
}

/*
 * Ends in order
 */

static void a_successor_was_announced(void **state)
{
	const char *const *args = SERVER_ARGS("-f", "memory", "-n", "2", "-i", "pid");
	char pidfile[128];

	(void)state;
	server_up(args);
	snprintf(pidfile, sizeof(pidfile), "%s/pid", server.folder);
	for (int i = 0; i < 3; i++)
		somebody_joins(two);
	for (int round = 1; round <= 2; round++) {
		server_signal(&server, SIGUSR2);
		assert_int_equal(server_wait(&server, PATIENCE), 0);
		assert_int_equal(access(pidfile, F_OK), -1);
		assert_int_equal(access(server.socket, F_OK), 0);
		assert_int_equal(supervisor_heard(supervisor, "STOPPING=1"), round);
		somebody_connects(two);
		successor_up(args, count - 1);
		assert_int_equal(access(pidfile, F_OK), 0);
		everybody_agrees();
		store_settles(OWN);
	}
	all_end();
	log_check();
}

/* The greeting of one that does not read is not waited for: the successor goes on with it. */
static void a_successor_is_not_kept_waiting(void **state)
{
	const char *const *args = SERVER_ARGS("-f", "memory", "-n", "400");
	const struct client_options options = {.vectors = 400};
	int64_t start, took, deadline = deadline_in(PATIENCE);

	(void)state;
	server_up(args);
	somebody_connects(options);
	logged_wait(came, "ID 0 joined");
	do { /* a slow machine may need as long for everything else */
		start = clock_ms();
		server_signal(&server, SIGUSR2);
		assert_int_equal(server_wait(&server, PATIENCE), 0);
		took = clock_ms() - start;
		successor_up(args, 1);
		assert_that(deadline_ahead(deadline), "it always takes as long as a stop, which "
						      "waits for a second");
	} while (took >= 1000);
	everybody(client_agrees, NULL);
	all_end();
	log_check();
}

static void a_stop_and_a_start_is_a_restart(void **state)
{
	(void)state;
	nodes_up(3);
	for (int round = 1; round <= 2; round++) {
		assert_int_equal(server_stop(&server), 0);
		assert_int_equal(access(server.socket, F_OK), -1);
		supervisor_settle(supervisor); /* what it was sent may still lie there */
		assert_int_equal(supervisor_heard(supervisor, "STOPPING=1"), round);
		successor_up(TWO, 3);
		everybody_agrees();
		somebody_goes(1);
		somebody_joins(two);
		everybody_agrees();
		store_settles(OWN);
	}
	all_end();
	log_check();
}

static void a_stop_that_stays_one_lets_all_go(void **state)
{
	(void)state;
	for (int round = 0; round < 2; round++) {
		server_up(TWO);
		assert_int_equal(logged_times(came, "took over"), 0);
		for (int i = 0; i < 3; i++)
			assert_int_equal(somebody_joins(two)->id, i);
		everybody_agrees();
		assert_int_equal(server_stop(&server), 0);
		assert_int_equal(access(server.socket, F_OK), -1);
		supervisor_empty(supervisor);
		everybody_is_let_go();
	}
	log_check();
}

/*
 * What a supervisor hears of a server that lives
 */

static void heard_wait(const char *state, size_t times)
{
	int64_t deadline = deadline_in(PATIENCE);

	while (supervisor_heard(supervisor, state) < times)
		assert_that(deadline_ahead(deadline), "%s was told %zu times, not %zu", state,
			    supervisor_heard(supervisor, state), times);
}

static void for_a_while(int ms)
{
	int64_t end = clock_ms() + ms;

	while (clock_ms() < end)
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

/* It pings where that is wanted of this process, also behind a restart in place; and never else. */
static void a_watchdog_is_fed(void **state)
{
	int64_t start;
	size_t heard;

	(void)state;
	for (int whose = 0; whose < 3; whose++) {
		if (whose > 0)
			assert_int_equal(setenv("WATCHDOG_USEC", "400000", 1), 0);
		if (whose == 1)
			assert_int_equal(setenv("WATCHDOG_PID", "1", 1), 0);
		server_up(TWO);
		unsetenv("WATCHDOG_USEC");
		unsetenv("WATCHDOG_PID");
		if (whose < 2) {
			for_a_while(300);
			assert_int_equal(supervisor_heard(supervisor, "WATCHDOG=1"), 0);
			assert_int_equal(server_stop(&server), 0);
		}
	}
	heard_wait("WATCHDOG=1", 5);
	server_signal(&server, SIGHUP);
	logged_wait(came, "restarted in place");
	heard = supervisor_heard(supervisor, "WATCHDOG=1");
	heard_wait("WATCHDOG=1", heard + 5);

	/* Not more often than four times in that time, and never while it stands still. */
	start = clock_ms();
	heard = supervisor_heard(supervisor, "WATCHDOG=1");
	heard_wait("WATCHDOG=1", heard + 10);
	heard = supervisor_heard(supervisor, "WATCHDOG=1") - heard;
	assert_in_range(heard, 10, 1 + (clock_ms() - start) / 100);
	server_halt();
	heard = supervisor_heard(supervisor, "WATCHDOG=1");
	for_a_while(300);
	assert_int_equal(supervisor_heard(supervisor, "WATCHDOG=1"), heard);
	server_signal(&server, SIGCONT);
	heard_wait("WATCHDOG=1", heard + 1);

	/* The supervisor is not waited for, and not overrun. */
	supervisor_pause(supervisor);
	for_a_while(500);
	somebody_joins(two);
	supervisor_resume(supervisor);
	store_settles(OWN);
	assert_int_equal(server_stop(&server), 0);
	log_check();
}

/*
 * Other options, another path
 */

/* All that are there are told to go, each by name, and one that has other options is served. */
static void misfit_check(const char *const *args, struct client_options options, bool other_memory)
{
	struct client fresh;

	nodes_up(3);
	server_kill();
	assert_true(client_connect(&fresh, server.socket, options));
	server_up(args);
	everybody(client_ended, NULL);
	for (int i = 0; i < 3; i++)
		assert_that(let_go(came, i) == 1, "ID %d is not named: %s", i, log_end());
	assert_that(clients_drive(&fresh, 1, client_greeted, NULL, PATIENCE), "%s", fresh.error);
	assert_true((fresh.memory_ino != clients[0].memory_ino) == other_memory);
	everybody_goes();
	clients[0] = fresh;
	count = 1;
	assert_true(supervisor_wait(supervisor, "node-*", 1, PATIENCE));
	/* And that, in turn, is what the next takes over. */
	server_kill();
	successor_up(args, 1);
	somebody_joins(options);
	if (!options.memoryless)
		everybody_agrees();
	assert_int_equal(let_go(came, -1), 0);
	store_settles(options.memoryless ? OWN - 2 : OWN);
	all_end();
	all_forget();
}

static void options_that_do_not_fit(void **state)
{
	const struct client_options three = {.vectors = 3, .keep = true};
	const struct client_options legacy = {.vectors = 2, .keep = true, .legacy = true};
	const struct client_options memoryless = {
		.vectors = 2, .keep = true, .legacy = true, .memoryless = true};

	(void)state;
	misfit_check(SERVER_ARGS("-f", "memory", "-n", "3"), three, false);
	misfit_check(SERVER_ARGS("-f", "memory", "-n", "2", "-L"), legacy, false);
	misfit_check(SERVER_ARGS("-f", "other", "-n", "2"), two, true);
	misfit_check(SERVER_ARGS("-L", "-m0", "-n2"), memoryless, true);
}

/* The path of the file that serves as the memory. */
static const char *memory_path(void)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/memory", server.folder);
	return path;
}

/* Has something written in it: what nobody has written to may get any size. */
static void memory_use(void)
{
	assert_int_equal(pwrite(clients[0].memory, "used", 4, 0), 4);
}

/* Puts another file there, with something written in it; size 0: none. */
static void memory_replace(const char *text, off_t size)
{
	int fd;

	assert_int_equal(unlink(memory_path()), 0);
	if (!size)
		return;
	fd = open(memory_path(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(fd, size), 0);
	assert_int_equal(pwrite(fd, text, strlen(text) + 1, 0), strlen(text) + 1);
	close(fd);
}

/* Whether a node has the file that stands at the path, and finds the text there. */
static void memory_check(const struct client *c, const char *text)
{
	char found[64] = "";
	struct stat st;

	assert_int_equal(stat(memory_path(), &st), 0);
	assert_true(c->memory_dev == st.st_dev && c->memory_ino == st.st_ino);
	assert_true(pread(c->memory, found, sizeof(found) - 1, 0) > 0);
	assert_string_equal(found, text);
}

/* Whether somebody else can serve our memory; if not, he hears whether our server runs. */
static bool memory_is_free(void)
{
	const char *why = server.pid > 0 ? "is served by another server, process "
					 : "is locked for a server that has ended";
	struct server other = {0};
	bool starts = server_start(&other, SERVER_ARGS("-f", memory_path()));

	assert_that(starts || strstr(other.error, why), "%s", other.error);
	if (starts)
		assert_int_equal(server_stop(&other), 0);
	server_remove(&other);
	return starts;
}

/* While nodes have the object that was replaced they keep it, and the log says what that means. */
static void another_object_at_the_same_path(void **state)
{
	(void)state;
	for (int removed = 0; removed < 2; removed++) {
		nodes_up(2);
		server_kill();
		memory_replace("a backup", removed ? 0 : 1 << 20);
		successor_up(TWO, 2);
		assert_int_equal(logged_times(came,
					      "warning: the nodes use a file that is no longer "
					      "at"),
				 1);
		somebody_joins(two);
		everybody_agrees();
		store_settles(OWN);
		/* And once they are gone, it is the one that stands there. */
		server_kill();
		everybody_goes();
		server_up(TWO);
		assert_int_equal(logged_times(came, "warning"), 0);
		memory_check(somebody_joins(two), removed ? "" : "a backup");
		store_settles(OWN);
		all_end();
		all_forget();
	}
}

/*
 * Without nodes
 */

/* The server ends in some way, and nobody is there. */
static void server_ends_alone(int how)
{
	free(table_of_nodes());
	everybody_goes();
	if (how == 0) /* they have gone before it, or while none runs */
		store_settles(OWN);
	server_signal(&server, how < 2 ? SIGKILL : how == 2 ? SIGTERM : SIGUSR2);
	assert_int_equal(server_wait(&server, PATIENCE), how < 2 ? -SIGKILL : 0);
}

/* A start is a start: what stands at the path is served, whatever the server before had. */
static void a_backup_is_put_back(void **state)
{
	(void)state;
	for (int how = 0; how < 4; how++)
		for (int removed = 0; removed < 2; removed++) {
			server_up(TWO);
			for (int i = 0; i < 2; i++)
				assert_int_equal(somebody_joins(two)->id, i);
			server_ends_alone(how);
			memory_replace("a backup", removed ? 0 : 1 << 20);
			server_up(TWO);
			assert_int_equal(logged_times(came, "took over"), 0);
			assert_int_equal(let_go(came, -1), 0);
			assert_int_equal(somebody_joins(two)->id, 0);
			memory_check(&clients[0], removed ? "" : "a backup");
			assert_true(supervisor_wait(supervisor, "node-3", 1, PATIENCE));
			assert_false(memory_is_free());
			store_settles(OWN);
			/* Which is, in turn, what the next takes over. */
			server_kill();
			successor_up(TWO, 1);
			somebody_joins(two);
			everybody_agrees();
			memory_check(&clients[1], removed ? "" : "a backup");
			all_end();
			log_check();
			all_forget();
		}
}

/* Whether a node that joins now has memory of that size, in which it writes. */
static void size_check(struct client_options options, off_t size)
{
	somebody_joins(options);
	assert_int_equal(clients[0].memory_size, size);
	memory_use();
	somebody_goes(0);
	assert_true(supervisor_wait(supervisor, "node-*", 0, PATIENCE));
}

/* And so do all options hold. */
static void other_options_without_nodes(void **state)
{
	const struct client_options three = {.vectors = 3, .keep = true};
	const struct client_options legacy = {.vectors = 3, .keep = true, .legacy = true};
	const struct client_options memoryless = {
		.vectors = 3, .keep = true, .legacy = true, .memoryless = true};
	struct stat st;

	(void)state;
	server_up(TWO);
	size_check(two, 1 << 20);
	server_kill();
	server_up(SERVER_ARGS("-f", "memory", "-n", "2", "-t", "-m", "4M"));
	size_check(two, 4 << 20);
	server_kill();
	server_up(SERVER_ARGS("-f", "memory", "-n", "3", "-m", "4M", "-a"));
	assert_int_equal(stat(memory_path(), &st), 0);
	assert_true(st.st_blocks * 512 >= 4 << 20);
	size_check(three, 4 << 20);
	server_kill();
	server_up(SERVER_ARGS("-L", "-n", "3", "-A", "-m", "2M"));
	size_check(legacy, 2 << 20);
	store_settles(OWN - 1);
	server_kill();
	server_up(SERVER_ARGS("-L", "-n", "3", "-A"));
	size_check(legacy, 1 << 20);
	server_kill();
	server_up(SERVER_ARGS("-n", "3", "-A."));
	size_check(three, 1 << 20);
	server_kill();
	server_up(SERVER_ARGS("-L", "-n", "3", "-m", "0"));
	somebody_joins(memoryless);
	store_settles(OWN - 2);
	somebody_goes(0);
	assert_true(supervisor_wait(supervisor, "node-*", 0, PATIENCE));
	server_kill();
	server_up(TWO);
	size_check(two, 4 << 20);
	store_settles(OWN);
	assert_int_equal(logged_times(0, "took over"), 0);
	all_end();
	log_check();
}

/*
 * A start that is refused leaves all for the next: who waits is served by that one, and serial
 * numbers go on.
 */
static void a_start_without_nodes_is_refused(void **state)
{
	const char *const *large = SERVER_ARGS("-f", "memory", "-n", "2", "-m", "4M", "-i", "pid");
	char pidfile[128];

	(void)state;
	server_up(TWO);
	snprintf(pidfile, sizeof(pidfile), "%s/pid", server.folder);
	size_check(two, 1 << 20);
	server_kill();
	somebody_connects(two);
	for (int i = 0; i < 2; i++) {
		assert_false(server_start(&server, large));
		assert_int_equal(server.status, 1);
		assert_non_null(strstr(server.error, "has 1M, less than -m 4M"));
		assert_int_equal(access(pidfile, F_OK), -1);
	}
	server_up(TWO);
	everybody(client_greeted, NULL);
	assert_int_equal(clients[0].id, 0);
	assert_true(supervisor_wait(supervisor, "node-2", 1, PATIENCE));
	store_settles(OWN);
	all_end();
}

/* Where nobody of those who are there can be taken over, that is a start as well. */
static void nobody_can_be_taken_over(void **state)
{
	char text[64];
	int ends[2];

	(void)state;
	nodes_up(2);
	server_kill();
	for (int i = 1; i <= 2; i++) {
		snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=node-%d", i);
		supervisor_told(text, -1);
		snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=node-%d\nFDPOLL=0", i);
		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), 0);
		supervisor_told(text, ends[0]);
		close(ends[0]);
		close(ends[1]);
	}
	memory_replace("a backup", 4 << 20);
	server_up(SERVER_ARGS("-f", "memory", "-n", "2", "-m", "4M"));
	assert_int_equal(let_go(came, -1), 2);
	assert_int_equal(logged_times(came, "took over"), 0);
	everybody_is_let_go();
	memory_check(somebody_joins(two), "a backup");
	assert_int_equal(clients[0].id, 0);
	store_settles(OWN);
	all_end();
}

/* Nor is the socket of a socket unit lost, which the server before may not have had. */
static void a_start_with_a_socket_unit_is_refused(void **state)
{
	const char *const *large = SERVER_ARGS("-f", "memory", "-n", "2", "-m", "4M");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)state;
	server_up(TWO);
	size_check(two, 1 << 20);
	assert_int_equal(server_stop(&server), 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", server.socket);
	assert_int_equal(bind(sock, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(sock, 10), 0);
	supervisor_told("FDSTOREREMOVE=1\nFDNAME=our-listener", -1);
	supervisor_told("FDSTORE=1\nFDNAME=our.socket\nFDPOLL=0", sock);
	close(sock);
	assert_false(server_start(&server, large));
	assert_non_null(strstr(server.error, "has 1M, less than -m 4M"));
	server_up(TWO);
	somebody_joins(two);
	store_settles(OWN);
	all_end();
}

/* However far such a start gets, the next serves what stands at the path, and nothing is stored
 * twice. */
static void a_start_without_nodes_may_fail_anywhere(void **state)
{
	size_t deaths = 0;
	int64_t start;
	char text[32];

	(void)state;
	printf("# SEED=%u\n", seed);
	start = start_measure(TWO);
	for (int i = 0; i < 30; i++) {
		server_kill();
		snprintf(text, sizeof(text), "backup %d", i);
		memory_replace(text, 1 << 20);
		server.alarm_us = 1 + rand_r(&seed) % (unsigned int)(start * 1000);
		if (server_start(&server, TWO)) {
			assert_int_equal(server_wait(&server, PATIENCE), -SIGALRM);
		} else {
			assert_that(server.status == -SIGALRM, "%s", server.error);
			deaths++;
		}
		server.alarm_us = 0;
		server_up(TWO);
		assert_int_equal(somebody_joins(two)->id, 0);
		memory_check(&clients[0], text);
		store_settles(OWN);
		for (size_t own = 0; own < OWN; own++)
			assert_int_equal(supervisor_count(supervisor, own_names[own]), 1);
		somebody_goes(0);
		assert_true(supervisor_wait(supervisor, "node-*", 0, PATIENCE));
	}
	printf("# %zu of 30 died before they were ready\n", deaths);
	all_end();
	log_check();
}

/* The same where the nodes would have been let go: they are not, and have the memory still. */
static void a_start_with_other_options_is_refused(void **state)
{
	(void)state;
	nodes_up(3);
	memory_use();
	server_kill();
	for (int i = 0; i < 2; i++) {
		assert_false(server_start(
			&server, SERVER_ARGS("-f", "memory", "-n", "3", "-m", "4M", "-i", "pid")));
		assert_non_null(strstr(server.error, "has 1M, less than -m 4M"));
		assert_false(memory_is_free());
	}
	successor_up(TWO, 3);
	assert_int_equal(let_go(0, -1), 0);
	everybody_agrees();
	store_settles(OWN);
	all_end();
}

/* What of the options cannot hold while nodes have the object is named. */
static void options_that_have_to_wait(void **state)
{
	const struct {
		const char *const *args;
		const char *text;
	} options[] = {
		{SERVER_ARGS("-f", "memory", "-n2", "-m4M"), "keeps its size of 2M"},
		{SERVER_ARGS("-f", "memory", "-n2", "-tm1M"), "keeps its size of 2M"},
		{SERVER_ARGS("-f", "memory", "-n2", "-m1M"), "has 2M, more than -m 1M"},
		{SERVER_ARGS("-f", "memory", "-n2", "-a"), "lacks 2M of its blocks, which -a"},
	};

	(void)state;
	server_up(SERVER_ARGS("-f", "memory", "-n", "2", "-m", "2M"));
	somebody_joins(two);
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		server_kill();
		successor_up(options[i].args, 1);
		assert_that(logged_times(came, options[i].text) == 1, "%s", log_end());
		assert_int_equal(logged_times(came, "while nodes use it") +
					 logged_times(came, "all of it is served"),
				 1);
	}
	all_end();
	all_forget();
	server_up(SERVER_ARGS("-A", "-n", "2", "-m", "2M"));
	somebody_joins(two);
	server_kill();
	successor_up(SERVER_ARGS("-A", "-n", "2"), 1);
	assert_int_equal(logged_times(came, "keeps its size of 2M"), 1);
	all_end();
}

/*
 * What was lost
 */

/* The object is opened again by its path; or it is said what has come of it. */
static void an_object_that_was_lost(void **state)
{
	(void)state;
	for (int removed = 0; removed < 2; removed++) {
		nodes_up(2);
		server_kill();
		supervisor_told("FDSTOREREMOVE=1\nFDNAME=object", -1);
		if (removed)
			memory_replace("a backup", 1 << 20);
		server_up(TWO);
		if (removed) {
			everybody(client_ended, NULL);
			assert_int_equal(let_go(came, -1), 2);
			assert_int_equal(logged_times(came, "other options"), 0);
			assert_int_equal(logged_times(came, "lost the memory of the nodes"), 3);
			everybody_goes();
			memory_check(somebody_joins(two), "a backup");
		} else {
			assert_int_equal(logged_times(came, "took over 2 nodes"), 1);
			assert_int_equal(logged_times(came, "opened again"), 1);
		}
		somebody_joins(two);
		everybody_agrees();
		store_settles(OWN);
		server_kill();
		successor_up(TWO, count);
		all_end();
		all_forget();
	}
}

/* A takeover that fails behind the pidfile leaves none. */
static void a_pidfile_of_a_takeover_that_failed(void **state)
{
	const char *const *args = SERVER_ARGS("-f", "memory", "-n", "2", "-i", "pid");
	char pidfile[128];

	(void)state;
	server_up(TWO);
	somebody_joins(two);
	server_kill();
	snprintf(pidfile, sizeof(pidfile), "%s/pid", server.folder);
	supervisor_told("FDSTOREREMOVE=1\nFDNAME=our-listener", -1);
	assert_int_equal(unlink(server.socket), 0);
	assert_int_equal(mkdir(server.socket, 0700), 0);
	assert_false(server_start(&server, args));
	assert_non_null(strstr(server.error, "is not a socket"));
	assert_int_equal(access(pidfile, F_OK), -1);
	assert_int_equal(rmdir(server.socket), 0);
	successor_up(args, 1);
	assert_int_equal(access(pidfile, F_OK), 0);
	somebody_joins(two);
	everybody_agrees();
	all_end();
}

/* Who ends in order leaves no lock behind, though the supervisor has a copy; for a successor, he
 * does. */
static void a_lock_ends_with_the_server(void **state)
{
	const char *const *args = SERVER_ARGS("-f", "memory", "-n", "2", "-i", "pid");

	(void)state;
	for (int nodes = 0; nodes < 2; nodes++) {
		server_up(TWO);
		if (nodes)
			somebody_joins(two);
		store_settles(OWN);
		assert_false(memory_is_free());
		assert_int_equal(server_stop(&server), 0);
		assert_true(memory_is_free());
		server_up(TWO);
		assert_int_equal(logged_times(came, "took over"), nodes);
		assert_false(memory_is_free());
		server_signal(&server, SIGUSR2);
		assert_int_equal(server_wait(&server, PATIENCE), 0);
		assert_false(memory_is_free());
		server_up(args);
		server_kill();
		assert_false(memory_is_free());
		/* One that fails changes nothing of that. */
		assert_false(server_start(&server, SERVER_ARGS("-f", "memory", "-i", "/dev/null")));
		assert_false(memory_is_free());
		server_up(TWO);
		all_end();
		all_forget();
	}
}

static void another_socket(void **state)
{
	char before[sizeof(server.socket)];

	(void)state;
	server_up(TWO);
	somebody_joins(two);
	strcpy(before, server.socket);
	server_kill();
	somebody_connects(two);
	snprintf(server.socket, sizeof(server.socket), "%s/elsewhere", server.folder);
	server_up(TWO);
	logged_wait(came, "took over");
	somebody_joins(two);
	everybody_agrees();
	assert_int_equal(access(before, F_OK), -1);
	store_settles(OWN);
	server_kill();
	successor_up(TWO, 3);
	everybody_agrees();
	all_end();
	log_check();
}

static void a_socket_that_somebody_removed(void **state)
{
	(void)state;
	server_up(TWO);
	somebody_joins(two);
	for (size_t round = 0; round < 2; round++) {
		server_kill();
		somebody_connects(two);
		assert_int_equal(unlink(server.socket), 0);
		server_up(TWO);
		logged_wait(came, "took over");
		somebody_connects(two);
		everybody_agrees();
		store_settles(OWN);
	}
	all_end();
	assert_int_equal(access(server.socket, F_OK), -1);
}

/* Processor time that the server has used, in clock ticks. */
static long server_ticks(void)
{
	char path[64], *text;
	long user = -1, system = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)server.pid);
	text = file_text(path);
	assert_non_null(text);
	assert_int_equal(sscanf(strrchr(text, ')'),
				") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u "
				"%ld %ld",
				&user, &system),
			 2);
	free(text);
	return user + system;
}

/* Has nothing to do for a second, and does nothing. */
static void server_rests(void)
{
	long before = server_ticks();

	sleep(1);
	assert_in_range(server_ticks() - before, 0, sysconf(_SC_CLK_TCK) / 4);
}

/* The nodes are kept where no socket can be made, and who waited at the old one is served. */
static void a_socket_that_cannot_be_made(void **state)
{
	char folder[sizeof(server.folder) + 8];

	(void)state;
	server_up(TWO);
	somebody_joins(two);
	server_kill();
	somebody_connects(two);
	snprintf(folder, sizeof(folder), "%s/new", server.folder);
	snprintf(server.socket, sizeof(server.socket), "%s/new/sock", server.folder);
	server_up(TWO);
	everybody_agrees();
	server_rests();
	assert_int_equal(mkdir(folder, 0755), 0);
	logged_wait(came, "listening on");
	somebody_joins(two);
	everybody_agrees();
	store_settles(OWN);
	all_end();
}

/* Makes the ledger one that nobody can read. */
static void ledger_spoil(void)
{
	const uint32_t layout = 99;
	int fd = server_ledger(&server);

	assert_int_equal(pwrite(fd, &layout, sizeof(layout), 8), sizeof(layout));
	close(fd);
}

/* A ledger that nobody can read: all is lost but the socket, and who waits there. */
static void another_ledger(void **state)
{
	(void)state;
	nodes_up(3);
	ledger_spoil();
	server_kill();
	somebody_connects(two);
	server_up(TWO);
	logged_wait(came, "3 nodes are disconnected");
	assert_int_equal(logged_times(came, "our socket is gone"), 0);
	for (int i = 0; i < 3; i++) {
		assert_that(clients_drive(clients, 1, client_ended, NULL, PATIENCE), "%s",
			    clients[0].error);
		somebody_goes(0);
	}
	somebody_joins(two);
	everybody_agrees();
	server_rests();
	store_settles(OWN);
	server_kill();
	successor_up(TWO, 2);
	everybody_agrees();
	all_end();
}

/*
 * Supervisors that are slow, full or gone
 */

/* People join while the supervisor takes nothing, until so many are not stored. */
static size_t unstored_gather(int *ids, size_t room, size_t wanted)
{
	size_t n;

	do
		for (int i = 0; i < 4; i++)
			somebody_joins(two);
	while ((n = unstored(ids, room)) < wanted && count < 900);
	assert_in_range(n, wanted, count);
	return n;
}

/*
 * Nothing of the nodes that are let go is dropped while the ledger in which they live is the one
 * that is stored: a start that dies there leaves all for the next. Somebody who joins within the
 * start, since the socket is made anew, does not change that.
 */
static void old_nodes_are_dropped_behind_the_ledger(void **state)
{
	const struct client_options three = {.vectors = 3, .keep = true};
	char *journal, *now, *ledger, *object, *drop;
	int64_t deadline;
	size_t before;

	(void)state;
	server_up(TWO);
	somebody_joins(two);
	store_settles(OWN);
	server_kill();
	deadline = deadline_in(PATIENCE);
	journal = supervisor_journal(supervisor);
	before = strlen(journal);
	free(journal);
	somebody_connects(three);
	assert_int_equal(unlink(server.socket), 0);
	server_up(SERVER_ARGS("-f", "memory", "-n", "3"));
	assert_int_equal(let_go(came, -1), 1);
	somebody_goes(0);
	everybody(client_greeted, NULL);
	store_settles(OWN);
	for (;;) { /* what was stored before looks settled, too */
		journal = supervisor_journal(supervisor);
		now = journal + before;
		if (strstr(now, "drop node-1\n") || !deadline_ahead(deadline))
			break;
		free(journal);
	}
	ledger = strstr(now, "store ledger\n");
	object = strstr(now, "store object\n");
	drop = strstr(now, "drop node-1\n");
	assert_that(ledger && object && drop && ledger < drop && object < drop, "%s", now);
	free(journal);
	all_end();
}

/* What nobody needs is dropped, however long the supervisor takes to listen. */
static void what_is_dropped_is_not_forgotten(void **state)
{
	const char *const *args[] = {TWO, TWO, SERVER_ARGS("-f", "memory", "-n", "3")};
	const struct client_options unkept = {.vectors = 2};
	const size_t many = 100;
	int ends[2];

	(void)state;
	for (size_t round = 0; round < 3; round++) {
		server_up(TWO);
		for (size_t i = 0; i < (round ? 1 : many); i++)
			somebody_is_greeted(round ? two : unkept);
		for (size_t i = 0; round && i < many; i++) {
			char text[64];

			snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=node-%zu\nFDPOLL=0",
				 100 + i);
			assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), 0);
			supervisor_told(text, ends[0]);
			close(ends[0]);
			close(ends[1]);
		}
		assert_true(
			supervisor_wait(supervisor, "node-*", round ? many + 1 : many, PATIENCE));
		if (round == 0)
			ledger_spoil();
		server_kill();
		supervisor_pause(supervisor);
		server_up(args[round]);
		supervisor_resume(supervisor);
		if (round == 1)
			everybody_agrees();
		else
			everybody(client_ended, NULL);
		if (round != 1) {
			everybody_goes();
		}
		store_settles(OWN);
		all_end();
		all_forget();
	}
}

static void unstored_wait(size_t n)
{
	int64_t deadline = deadline_in(PATIENCE);
	int ids[CLIENTS_MAX];

	while (unstored(ids, CLIENTS_MAX) != n)
		assert_that(deadline_ahead(deadline), "some are never stored");
}

static void nobody_waits_for_long_for_a_supervisor(void **state)
{
	int ids[CLIENTS_MAX];
	size_t n;

	(void)state;
	server_up(TWO);
	unstored_wait(0);
	supervisor_pause(supervisor);
	n = unstored_gather(ids, CLIENTS_MAX, 6);
	everybody_agrees();
	/* One that was never stored goes, and one that was. */
	for (size_t i = 0; i < count; i++)
		if (clients[i].id == ids[n - 1]) {
			somebody_goes(i);
			break;
		}
	somebody_goes(0);
	everybody_agrees();
	supervisor_resume(supervisor);
	unstored_wait(0);
	store_settles(OWN);
	server_kill();
	successor_up(TWO, count);
	everybody_agrees();
	all_end();
	log_check();
}

/*
 * While it takes nothing, whoever comes waits in the queue of the listener, where a death loses
 * nobody: also where the drops of those who leave at that moment fill the supervisor's queue.
 * Returns false if the death came too late to say so: newcomers wait for a second at most.
 */
static bool newcomers_survive(size_t leave, size_t come)
{
	int64_t paused;
	bool early;

	nodes_up(leave + 1);
	store_settles(OWN);
	server_halt();
	for (size_t i = 0; i < leave; i++)
		somebody_goes(0);
	for (size_t i = 0; i < come; i++)
		somebody_connects(two);
	supervisor_pause(supervisor);
	paused = clock_ms();
	server_signal(&server, SIGCONT);
	free(table_of_nodes()); /* behind the next table it has accepted whom it will */
	server_dies();
	early = clock_ms() < paused + 1000;
	supervisor_resume(supervisor);
	server_up(TWO);
	if (early) {
		everybody_agrees();
		assert_int_equal(let_go(came, -1), 0);
	}
	all_end();
	if (early)
		log_check();
	all_forget();
	return early;
}

static void a_busy_supervisor_costs_nobody_his_place(void **state)
{
	int64_t deadline = deadline_in(PATIENCE);

	(void)state;
	for (size_t leave = 0; leave <= 20; leave += 20)
		while (!newcomers_survive(leave, 40))
			assert_that(deadline_ahead(deadline), "a death never comes in time");
}

/* Whether an ID is one of those. */
static bool is_one_of(int id, const int *ids, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (ids[i] == id)
			return true;
	return false;
}

/* The successor has cut off and named those n that were not stored, and nobody else. */
static void unstored_are_let_go(const int *ids, size_t n)
{
	size_t before = count;

	for (size_t i = count; i-- > 0;) {
		if (!is_one_of(clients[i].id, ids, n))
			continue;
		assert_that(clients_drive(&clients[i], 1, client_ended, NULL, PATIENCE), "%s",
			    clients[i].error);
		assert_that(let_go(came, clients[i].id) == 1, "ID %d is not named: %s",
			    clients[i].id, log_end());
		somebody_goes(i);
	}
	assert_int_equal(before - count, n);
	assert_int_equal(let_go(came, -1), n);
	everybody_agrees();
}

static void who_is_not_stored_is_let_go(void **state)
{
	int ids[CLIENTS_MAX];
	size_t n;

	(void)state;
	nodes_up(4);
	store_settles(OWN);
	supervisor_pause(supervisor);
	n = unstored_gather(ids, CLIENTS_MAX, 3);
	/* Two leave for which the queue has no place, either: one is told of, one when all is over.
	 */
	somebody_goes(1);
	everybody(client_agrees, NULL);
	server_dies();
	somebody_goes(1);
	supervisor_resume(supervisor);
	server_up(TWO);
	unstored_are_let_go(ids, n);
	store_settles(OWN);
	somebody_joins(two);
	server_kill();
	successor_up(TWO, count);
	everybody_agrees();
	store_settles(OWN);
	all_end();
}

/*
 * Where the limit of descriptors is low, what is stored must not keep others from being sent
 * anything; and everything has to find its number again.
 */
static void few_descriptors(void **state)
{
	const struct client_options eight = {.vectors = 8, .keep = true};
	const char *const *args = SERVER_ARGS("-f", "memory", "-n", "8");
	const size_t most = 400 / 2 / (2 + 8);
	int ids[CLIENTS_MAX];
	size_t n;

	(void)state;
	server.unprivileged = true;
	server.descriptors = (struct rlimit){400, 400};
	server_up(args);
	for (size_t i = 0; i < most + 12; i++)
		somebody_joins(eight);
	everybody_agrees();
	server_settles();
	n = unstored(ids, CLIENTS_MAX);
	assert_int_equal(n, 12);
	assert_true(server_logged(&server, "raise LimitNOFILE="));
	assert_int_equal(supervisor_count(supervisor, "node-*"), most);
	server_kill();
	server_up(args);
	unstored_are_let_go(ids, n);
	for (int i = 0; i < 4; i++)
		somebody_joins(eight);
	for (int i = 0; i < 8; i++)
		somebody_goes(i);
	everybody_agrees();
	store_settles(OWN);
	server_kill();
	successor_up(args, count);
	everybody_agrees();
	all_end();
}

/* So many are there, of whom only the last stay, at numbers that are far up. */
static void crowd_thins(const char *const *args, struct client_options options, size_t most,
			size_t stay)
{
	server_up(args);
	for (size_t i = 0; i < most; i++) {
		somebody_connects(options);
		if (i % 50 == 49)
			everybody(client_knows, &(size_t){count - 1});
	}
	everybody(client_knows, &(size_t){count - 1});
	while (count > stay)
		somebody_goes(0);
	everybody(client_agrees, NULL);
	unstored_wait(0);
	store_settles(OWN);
}

/* That many were there once takes no numbers from those who are there now. */
static void few_are_left_of_many(void **state)
{
	const char *const *args = SERVER_ARGS("-f", "memory");
	const struct client_options one = {.vectors = 1, .keep = true};

	(void)state;
	if (descriptors_allow() < 3000)
		skip_because("this needs 3000 descriptors");
	server.unprivileged = true;
	server.descriptors = (struct rlimit){1024, 1024};
	crowd_thins(args, (struct client_options){.vectors = 1}, 490, 30);
	for (int death = 0; death < 2; death++) {
		server_kill();
		successor_up(args, count);
		somebody_joins(one);
		everybody(client_agrees, NULL);
		store_settles(OWN);
	}
	server_signal(&server, SIGHUP);
	logged_wait(came, "restarted in place");
	somebody_joins(one);
	everybody(client_agrees, NULL);
	assert_int_equal(let_go(0, -1), 0);
	all_end();
}

/* Where the limit is lower than it was, as many are taken over as there is room for. */
static void fewer_descriptors_than_before(void **state)
{
	const char *const *args = SERVER_ARGS("-f", "memory", "-n", "2");
	size_t before;

	(void)state;
	for (int vectors_low = 0; vectors_low < 2; vectors_low++) {
		server.unprivileged = true;
		server.descriptors.rlim_max = vectors_low ? 1000 : 2048;
		server.descriptors.rlim_cur = server.descriptors.rlim_max;
		server_up(args);
		for (int i = 0; i < 80; i++)
			somebody_joins(two);
		store_settles(OWN);
		server_kill();
		server.descriptors = (struct rlimit){150, 150};
		server_up(args);
		before = count;
		for (size_t i = count; i-- > 0;) {
			if (let_go(came, clients[i].id) == 0)
				continue;
			assert_true(clients_drive(&clients[i], 1, client_ended, NULL, PATIENCE));
			somebody_goes(i);
		}
		printf("# %zu of %zu were taken over\n", count, before);
		assert_in_range(count, 20, before - 1);
		assert_int_equal(logged_times(came, "too few descriptors"), before - count);
		everybody_agrees();
		store_settles(OWN);
		server_kill();
		successor_up(args, count);
		everybody_agrees();
		all_end();
		all_forget();
	}
}

/* What the log is written to gives way to a node's socket, where there is no higher number. */
static void a_log_that_is_in_the_way(void **state)
{
	const struct client_options none = {.vectors = 0, .keep = true};
	const char *const *args = SERVER_ARGS("-f", "memory", "-n", "0");

	(void)state;
	server.unprivileged = true;
	server.descriptors = (struct rlimit){400, 400};
	server.piped = true;
	server_up(args);
	for (int i = 0; i < 60; i++)
		somebody_joins(none);
	everybody_agrees();
	store_settles(OWN);
	server_kill();
	successor_up(args, count);
	everybody_agrees();
	all_end();
}

/* The text of the log file; the caller frees it. */
static char *log_file_text(void)
{
	char path[128], *text;

	snprintf(path, sizeof(path), "%s/file", server.folder);
	text = file_text(path);
	assert_non_null(text);
	return text;
}

/* A log file gets all of it from one process after the other, and its descriptor gives way, too. */
static void a_log_file_goes_on(void **state)
{
	const struct client_options none = {.vectors = 0, .keep = true};
	const char *const *args = SERVER_ARGS("-f", "memory", "-n", "0", "-o", "file");
	char *text, who[32];
	int64_t deadline;

	(void)state;
	server.unprivileged = true;
	server.descriptors = (struct rlimit){400, 400};
	server_up(args);
	for (int i = 0; i < 60; i++)
		somebody_joins(none);
	store_settles(OWN);
	for (int i = 0; i < 3; i++) {
		server_signal(&server, SIGKILL);
		assert_int_equal(server_wait(&server, PATIENCE), -SIGKILL);
		successor_up(args, count);
		everybody_agrees();
		somebody_joins(none);
		everybody_agrees();
		store_settles(OWN);
		text = log_file_text();
		snprintf(who, sizeof(who), "[%d]: took over %zu", (int)server.pid, count - 1);
		assert_non_null(strstr(text, who));
		snprintf(who, sizeof(who), "[%d]: ID %d joined", (int)server.pid, 60 + i);
		assert_non_null(strstr(text, who));
		free(text);
	}
	server_signal(&server, SIGHUP);
	snprintf(who, sizeof(who), "[%d]: restarted in place", (int)server.pid);
	deadline = deadline_in(PATIENCE);
	for (text = log_file_text(); !strstr(text, who); text = log_file_text()) {
		free(text);
		assert_true(deadline_ahead(deadline));
	}
	free(text);
	everybody_agrees();
	all_end();
}

/* Waits until the status says that so many nodes have what is served. */
static void status_wait(const char *object, const char *nodes)
{
	int64_t deadline = deadline_in(PATIENCE);
	char wanted[512], *status;

	snprintf(wanted, sizeof(wanted), "serving %s, %s", object, nodes);
	for (;;) {
		status = supervisor_status(supervisor);
		if (!strcmp(status, wanted))
			break;
		assert_that(deadline_ahead(deadline), "the status is '%s', not '%s'", status,
			    wanted);
		free(status);
	}
	free(status);
}

/* Waits until the supervisor has had so many messages, and asserts that it gets no more. */
static void messages_wait(size_t n)
{
	int64_t deadline = deadline_in(PATIENCE);

	while (supervisor_messages(supervisor) < n)
		assert_that(deadline_ahead(deadline), "there are %zu messages instead of %zu",
			    supervisor_messages(supervisor), n);
	assert_int_equal(supervisor_messages(supervisor), n);
}

/* The status says what is served and to how many, in the messages that there are anyway. */
static void the_status_tells_of_nodes(void **state)
{
	char object[256];
	size_t before;

	(void)state;
	server_up(TWO);
	store_settles(OWN);
	snprintf(object, sizeof(object), "%s/memory, 1M", server.folder);
	status_wait(object, "0 nodes");
	ready_wait(1);
	before = supervisor_messages(supervisor);
	somebody_joins(two);
	status_wait(object, "1 node");
	for (int i = 0; i < 9; i++)
		somebody_joins(two);
	store_settles(OWN);
	status_wait(object, "10 nodes");
	messages_wait(before + 10);
	/* A parcel may have either of two names, which are dropped. */
	somebody_goes(0);
	store_settles(OWN);
	status_wait(object, "9 nodes");
	somebody_goes(3);
	store_settles(OWN);
	status_wait(object, "8 nodes");
	messages_wait(before + 10 + 4);
	reload();
	status_wait(object, "8 nodes");
	server_kill();
	somebody_goes(0);
	successor_up(TWO, 8);
	status_wait(object, "7 nodes");
	ready_wait(3);
	all_end();
}

/* Also of those that are not stored, of whom nothing else is told; and without memory. */
static void the_status_tells_of_all(void **state)
{
	const struct client_options memoryless = {.vectors = 1, .legacy = true, .memoryless = true};
	char object[256];

	(void)state;
	supervisor = supervisor_start();
	assert_non_null(supervisor);
	supervisor_limit(supervisor, OWN + 2);
	supervisor_announce(supervisor);
	/* What stands in a path is no other state. */
	server_up(SERVER_ARGS("-f", "mem\nREADY=1", "-n", "2"));
	snprintf(object, sizeof(object), "%s/mem?READY=1, 1M", server.folder);
	for (int i = 0; i < 4; i++)
		somebody_joins(two);
	status_wait(object, "4 nodes");
	somebody_goes(3);
	status_wait(object, "3 nodes");
	ready_wait(1);
	all_end();
	all_forget();
	server_up(SERVER_ARGS("-L", "-m", "0"));
	somebody_joins(memoryless);
	status_wait("interrupts without memory", "1 node");
	all_end();
}

/* The same limit is none for who may do more: all are stored, however many lie in parcels. */
static void few_descriptors_and_no_limit(void **state)
{
	const struct client_options eight = {.vectors = 8, .keep = true};
	const char *const *args = SERVER_ARGS("-f", "memory", "-n", "8");
	struct stat st;

	(void)state;
	if (geteuid() != 0 || stat("/proc/self/ns/user", &st) < 0 || st.st_ino != 0xeffffffd)
		skip_because("only root is without a limit, outside of user namespaces");
	server.unraised = true;
	server.descriptors = (struct rlimit){400, 400};
	server_up(args);
	for (size_t i = 0; i < 400 / 2 / (2 + 8) + 12; i++)
		somebody_joins(eight);
	unstored_wait(0);
	store_settles(OWN);
	server_kill();
	successor_up(args, count);
	everybody_agrees();
	all_end();
	log_check();
}

/* While the server ends, or until all nodes are stored: for how many milliseconds none was. */
static int64_t longest_pause(void)
{
	int64_t deadline = deadline_in(PATIENCE), since = clock_ms(), longest = 0;
	size_t stored = supervisor_count(supervisor, "node-*");
	siginfo_t ended = {.si_pid = 0};

	while (stored < count && !ended.si_pid && deadline_ahead(deadline)) {
		size_t before = stored;

		stored = supervisor_count(supervisor, "node-*");
		if (clock_ms() - since > longest)
			longest = clock_ms() - since;
		if (stored != before)
			since = clock_ms();
		waitid(P_PID, (id_t)server.pid, &ended, WEXITED | WNOHANG | WNOWAIT);
	}
	return longest;
}

/*
 * A restart comes while most have yet to be stored. The supervisor needs longer than a second for
 * them, but does not stop to take them. (Where the machine stops for so long, it is tried again.)
 */
static void a_slow_supervisor_is_waited_for(void **state)
{
	const char *const *args = SERVER_ARGS("-f", "memory");
	const struct client_options options = {.vectors = 1};
	int64_t deadline = deadline_in(PATIENCE), start, longest;

	(void)state;
	do {
		assert_that(deadline_ahead(deadline), "this test gets no time");
		everybody_goes();
		all_forget();
		server_up(args);
		store_settles(OWN);
		supervisor_pause(supervisor);
		for (int i = 0; i < 300; i++)
			somebody_connects(options);
		everybody(client_knows, &(size_t){count - 1});
		supervisor_slow(supervisor, 5);
		supervisor_resume(supervisor);
		start = clock_ms();
		server_signal(&server, SIGUSR2);
		longest = longest_pause();
		assert_int_equal(server_wait(&server, PATIENCE), 0);
		printf("# the server took %d ms to end\n", (int)(clock_ms() - start));
		supervisor_slow(supervisor, 0);
		assert_int_equal(supervisor_heard(supervisor, "STOPPING=1"), 1);
		server_up(args);
	} while (longest >= 1000 && let_go(came, -1) > 0);
	logged_wait(came, "took over 300 nodes");
	assert_int_equal(let_go(came, -1), 0);
	somebody_connects(options);
	everybody(client_agrees, NULL);
	store_settles(OWN);
	all_end();
	log_check();
}

/* That a restart in place has begun, and ended, it hears when it has room. */
static void a_full_supervisor_hears_of_a_reload(void **state)
{
	int ids[CLIENTS_MAX];
	int64_t deadline;

	(void)state;
	server_up(TWO);
	ready_wait(1);
	store_settles(OWN);
	supervisor_pause(supervisor);
	unstored_gather(ids, CLIENTS_MAX, 6);
	server_signal(&server, SIGHUP);
	logged_wait(came, "restarted in place");
	supervisor_resume(supervisor);
	ready_wait(2);
	assert_int_equal(supervisor_heard(supervisor, "RELOADING=1"), 1);
	assert_false(supervisor_reloads(supervisor));
	deadline = deadline_in(PATIENCE);
	for (size_t hups = 2; hups <= 4; hups++) {
		server_signal(&server, SIGHUP);
		while (supervisor_heard(supervisor, "RELOADING=1") < hups ||
		       supervisor_reloads(supervisor))
			assert_that(deadline_ahead(deadline), "a reload never ends");
	}
	store_settles(OWN);
	all_end();
	log_check();
}

static void a_supervisor_that_takes_nothing_is_not(void **state)
{
	int ids[CLIENTS_MAX];
	int64_t start;
	size_t n;

	(void)state;
	server_up(TWO);
	store_settles(OWN);
	supervisor_pause(supervisor);
	n = unstored_gather(ids, CLIENTS_MAX, 6);
	start = clock_ms();
	server_signal(&server, SIGUSR2);
	assert_int_equal(server_wait(&server, PATIENCE), 0);
	assert_true(clock_ms() - start >= 1000); /* that it was given */
	supervisor_resume(supervisor);
	server_up(TWO);
	unstored_are_let_go(ids, n);
	store_settles(OWN);
	all_end();
}

/*
 * The supervisor starts anew, while it has room and while it has none: then what lay in its socket
 * is gone, and the next restart in place makes up for it.
 */
static void another_supervisor_at_the_same_address(void **state)
{
	int ids[CLIENTS_MAX];
	size_t place;

	(void)state;
	server_up(TWO);
	somebody_joins(two);
	store_settles(OWN);
	assert_true(supervisor_reexec(supervisor));
	somebody_joins(two);
	store_settles(OWN);
	supervisor_pause(supervisor);
	unstored_gather(ids, CLIENTS_MAX, 6);
	assert_true(supervisor_reexec(supervisor));
	supervisor_resume(supervisor);
	unstored_wait(0);
	assert_true(supervisor_count(supervisor, "node-*") < count);
	place = log_length();
	server_signal(&server, SIGHUP);
	logged_wait(place, "restarted in place");
	store_settles(OWN);
	server_kill();
	successor_up(TWO, count);
	everybody_agrees();
	all_end();
}

/*
 * As many leave as come, in the same moment, and the store has room for no more than that many.
 */
static void who_leaves_makes_room(void **state)
{
	(void)state;
	server_up(TWO);
	store_settles(OWN);
	supervisor_limit(supervisor, OWN + 8);
	for (int i = 0; i < 8; i++)
		somebody_joins(two);
	store_settles(OWN);
	for (int round = 0; round < 4; round++) {
		server_halt();
		for (int i = 0; i < 4; i++)
			somebody_goes(1);
		for (int i = 0; i < 4; i++)
			somebody_connects(two);
		server_signal(&server, SIGCONT);
		everybody_agrees();
		store_settles(OWN);
	}
	assert_int_equal(supervisor_refused(supervisor), 0);
	server_kill();
	successor_up(TWO, 8);
	everybody_agrees();
	all_end();
	log_check();
}

/* A supervisor that says how many it stores is not sent more, and the log says what to do. */
static void a_store_that_is_known_to_be_full(void **state)
{
	int ids[8] = {0};

	(void)state;
	supervisor = supervisor_start();
	assert_non_null(supervisor);
	supervisor_limit(supervisor, OWN + 5);
	supervisor_announce(supervisor);
	nodes_up(5);
	unstored_wait(0);
	assert_false(server_logged(&server, "FileDescriptorStoreMax="));
	for (int i = 0; i < 3; i++)
		somebody_joins(two);
	logged_wait(0, "ID 5 is not stored");
	logged_wait(0, "raise FileDescriptorStoreMax=");
	unstored_wait(3);
	/* Who leaves makes room for one of them. */
	somebody_goes(1);
	unstored_wait(2);
	server_settles();
	assert_int_equal(unstored(ids, 8), 2);
	assert_int_equal(supervisor_count(supervisor, "node-*"), 5);
	assert_int_equal(supervisor_refused(supervisor), 0);
	/* A restart in place stores all of them anew, and finds room for that. */
	server_signal(&server, SIGHUP);
	logged_wait(0, "restarted in place");
	server_settles();
	assert_int_equal(unstored(ids, 8), 2);
	assert_int_equal(supervisor_count(supervisor, "node-*"), 5);
	assert_int_equal(supervisor_refused(supervisor), 0);
	server_kill();
	server_up(TWO);
	unstored_are_let_go(ids, 2);
	store_settles(OWN);
	all_end();
}

/* The supervisor throws away what does not fit, which the server cannot know. */
static void a_store_that_is_full(void **state)
{
	const struct client *last = &clients[3];

	(void)state;
	server_up(TWO);
	store_settles(OWN);
	supervisor_limit(supervisor, OWN + 3);
	for (int i = 0; i < 4; i++)
		somebody_joins(two);
	server_kill();
	successor_up(TWO, 3);
	assert_that(clients_drive(&clients[3], 1, client_ended, NULL, PATIENCE), "%s", last->error);
	assert_int_equal(let_go(came, 3), 1);
	somebody_goes(3);
	everybody_agrees();
	all_end();
}

/* Some of what a successor needs is not there: it starts all the same, and serves. */
static void a_store_in_part(void **state)
{
	(void)state;
	for (size_t room = 0; room < OWN + 2; room++) {
		supervisor = supervisor_start();
		assert_non_null(supervisor);
		supervisor_limit(supervisor, room);
		nodes_up(2);
		server_kill();
		supervisor_limit(supervisor, 100);
		server_up(TWO);
		for (size_t i = count; i-- > 0;)
			if (room < OWN + 1 || i > 0) {
				assert_that(
					clients_drive(&clients[i], 1, client_ended, NULL, PATIENCE),
					"%s", clients[i].error);
				somebody_goes(i);
			}
		somebody_joins(two);
		everybody_agrees();
		store_settles(OWN);
		all_end();
		all_forget();
	}
}

static void a_supervisor_that_has_gone(void **state)
{
	(void)state;
	server_up(TWO);
	somebody_joins(two);
	assert_int_equal(unlink(supervisor_path(supervisor)), 0);
	for (int i = 0; i < 3; i++)
		somebody_joins(two);
	somebody_goes(0);
	everybody_agrees();
	free(table_of_nodes());
	server_signal(&server, SIGHUP);
	logged_wait(came, "restarted in place");
	somebody_joins(two);
	everybody_agrees();
	everybody_goes();
	assert_int_equal(server_stop(&server), 0);
	assert_int_equal(access(server.socket, F_OK), -1);
}

/*
 * Supervisors that lose what they have
 */

/* All of it, or a part. A restart repairs that, in place or not. */
static void a_restart_stores_what_was_lost(void **state)
{
	static const char *const lost[] = {"*",      "node-*",  "ledger", "lock", "our-listener",
					   "object", "node-*2", "*"};

	(void)state;
	nodes_up(3);
	for (size_t i = 0; i < sizeof(lost) / sizeof(lost[0]); i++) {
		store_settles(OWN);
		supervisor_lose(supervisor, lost[i]);
		if (i % 3 == 2) {
			server_signal(&server, SIGUSR2);
			assert_int_equal(server_wait(&server, PATIENCE), 0);
		} else {
			reload();
			store_settles(OWN);
			server_kill();
		}
		somebody_connects(two);
		successor_up(TWO, count - 1);
		everybody_agrees();
		somebody_goes(1);
		everybody(client_agrees, NULL);
	}
	store_settles(OWN);
	all_end();
	log_check();
}

/* The store has not a single place more than it needs. */
static void what_is_stored_anew_needs_no_room(void **state)
{
	(void)state;
	server_up(TWO);
	store_settles(OWN);
	for (int i = 0; i < 6; i++)
		somebody_joins(two);
	store_settles(OWN);
	supervisor_limit(supervisor, OWN + 6);
	for (int round = 0; round < 3; round++) {
		if (round == 1)
			supervisor_empty(supervisor);
		reload();
		store_settles(OWN);
		assert_int_equal(supervisor_refused(supervisor), 0);
	}
	server_kill();
	successor_up(TWO, count);
	everybody_agrees();
	all_end();
	log_check();
}

/*
 * The server is killed, or restarted once more, at any moment while it has all stored anew: nobody
 * is lost, and nothing stays stored twice.
 */
static void storing_anew_may_be_cut_short(void **state)
{
	(void)state;
	printf("# SEED=%u\n", seed);
	nodes_up(12);
	store_settles(OWN);
	for (int round = 0; round < 40; round++) {
		unsigned int slow = 1 + rand_r(&seed) % 3;

		supervisor_slow(supervisor, slow);
		reload();
		if (round % 4 == 3) {
			moment(1000 * slow * 20);
			reload();
		}
		if (round % 3 == 2)
			somebody_goes((size_t)rand_r(&seed) % count);
		moment(1000 * slow * 40);
		server_signal(&server, SIGKILL);
		assert_int_equal(server_wait(&server, PATIENCE), -SIGKILL);
		supervisor_slow(supervisor, 0);
		if (round % 3 == 2) {
			server_up(TWO);
			logged_wait(came, "took over 1"); /* 12 if that was not noticed any more */
		} else {
			successor_up(TWO, count);
		}
		assert_int_equal(let_go(came, -1), 0);
		everybody_agrees();
		if (round % 3 == 2)
			somebody_joins(two);
		store_settles(OWN);
	}
	all_end();
	log_check();
}

/* The successor says what it knows: this one had been stored. */
static void what_was_lost_is_named(void **state)
{
	(void)state;
	nodes_up(3);
	store_settles(OWN);
	supervisor_lose(supervisor, "node-2");
	server_kill();
	server_up(TWO);
	some_drive(1, count - 1, client_knows, &(size_t){2});
	assert_int_equal(let_go(came, 1), 1);
	assert_int_equal(logged_times(came, "ID 1 left: the supervisor has lost its stored "
					    "descriptors"),
			 1);
	somebody_goes(1);
	everybody_agrees();
	all_end();
}

/*
 * What is stored
 */

static void the_store_does_not_grow(void **state)
{
	size_t place;

	(void)state;
	server_up(TWO);
	for (int round = 0; round < 4; round++) {
		for (int i = 0; i < 6; i++)
			somebody_joins(two);
		while (count > 2)
			somebody_goes((size_t)rand_r(&seed) % count);
		everybody_agrees();
		store_settles(OWN);
		if (round % 2) {
			server_kill();
			successor_up(TWO, count);
		} else {
			place = log_length();
			server_signal(&server, SIGHUP);
			logged_wait(place, "restarted in place");
		}
		everybody_agrees();
		store_settles(OWN);
		for (size_t i = 0; i < OWN; i++)
			assert_int_equal(supervisor_count(supervisor, own_names[i]), 1);
	}
	all_end();
	log_check();
}

/* Who is turned away, or breaks the protocol, sees the end: nothing keeps the connection. */
static void who_is_not_wanted_is_not_kept(void **state)
{
	struct client refused;
	char path[128];

	(void)state;
	nodes_up(3);
	assert_int_equal(write(clients[1].sock, "?", 1), 1);
	assert_true(clients_drive(&clients[1], 1, client_ended, NULL, PATIENCE));
	somebody_goes(1);
	everybody_agrees();
	store_settles(OWN);
	snprintf(path, sizeof(path), "%s/memory", server.folder);
	assert_int_equal(truncate(path, 8 << 20), 0);
	for (int round = 0; round < 2; round++) {
		assert_true(client_connect(&refused, server.socket, two));
		assert_that(clients_drive(&refused, 1, client_refused, NULL, PATIENCE), "%s",
			    refused.error);
		client_free(&refused);
		store_settles(OWN);
		if (round == 0) {
			assert_int_equal(truncate(path, 1 << 20), 0);
			server_kill();
			successor_up(TWO, 2);
			assert_int_equal(truncate(path, 8 << 20), 0);
		}
	}
	assert_int_equal(truncate(path, 1 << 20), 0);
	somebody_joins(two);
	everybody_agrees();
	all_end();
}

/* Without a supervisor, a node costs its socket and its eventfds; and with one nothing more. */
static void the_store_costs_nothing(void **state)
{
	int idle[2];

	(void)state;
	for (int supervised = 0; supervised < 2; supervised++) {
		if (supervised)
			server_up(TWO);
		else
			assert_start(&server, "-f", "memory", "-n", "2");
		idle[supervised] = server.idle;
		for (int i = 0; i < 4; i++)
			somebody_joins(two);
		assert_that(server_descriptors_wait(&server, idle[supervised] + 4 * 3, PATIENCE),
			    "%d descriptors instead of %d", server_descriptors(&server),
			    idle[supervised] + 4 * 3);
		everybody_goes();
		assert_stop(&server);
		supervisor_free(supervisor);
		supervisor = NULL;
		server = (struct server){0};
	}
	printf("# %d descriptors, %d under a supervisor\n", idle[0], idle[1]);
	assert_in_range(idle[0], 3, 16);
	assert_in_range(idle[1] - idle[0], 0, 1);
}

static void a_thousand_nodes(void **state)
{
	const char *const *args = SERVER_ARGS("-f", "memory");
	const struct client_options options = {.vectors = 1};
	int64_t start;

	(void)state;
	if (descriptors_allow() < 3500)
		skip_because("the limit of descriptors is too low");
	server_up(args);
	for (int i = 0; i < 1000; i++)
		somebody_connects(options);
	everybody(client_knows, &(size_t){count - 1});
	store_settles(OWN);
	start = clock_ms();
	server_kill();
	successor_up(args, count);
	printf("# it took %d ms to take over a thousand nodes\n", (int)(clock_ms() - start));
	while (count > 990)
		somebody_goes((size_t)rand_r(&seed) % count);
	somebody_connects(options);
	everybody(client_agrees, NULL);
	assert_int_equal(clients[count - 1].id, 1000);
	store_settles(OWN);
	log_check();
	/* So many may also have to be let go. */
	server_kill();
	server_up(TWO);
	assert_int_equal(let_go(came, -1), count);
	everybody_is_let_go();
	somebody_joins(two);
	store_settles(OWN);
	all_end();
}

static void qemu_nodes(void **state)
{
	const char *missing = node_missing();
	struct node *nodes[3];

	(void)state;
	if (missing)
		skip_because("%s", missing);
	server_up(TWO);
	for (size_t n = 1; n <= 3; n++) {
		nodes[n - 1] = node_start(server.socket, 2, "");
		assert_true(node_ready(nodes[n - 1]));
		assert_int_equal(node_id(nodes[n - 1]), n - 1);
		nodes_check(nodes, n, 100 * n);
		server_kill();
		nodes_check(nodes, n, 1000 * n);
		successor_up(TWO, n);
		nodes_check(nodes, n, 10000 * n);
	}
	nodes_end();
	all_end();
	log_check();
}

/* Nothing of a test stays behind, however it has ended. */
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

/* A test whose server, supervisor and clients end with it, and that leaves no descriptor behind. */
static void takeover_run(void **state)
{
	void (*test)(void **state) = *state;
	int before = descriptors_count(0);

	*state = NULL;
	test(state);
	teardown(state);
	assert_int_equal(descriptors_count(0), before);
}

#define takeover_test(test)                                                          \
	(struct CMUnitTest)                                                          \
	{                                                                            \
		.name = #test, .test_func = takeover_run, .teardown_func = teardown, \
		.initial_state = (test)                                              \
	}

int main(void)
{
	const struct CMUnitTest tests[] = {
		takeover_test(nodes_do_not_notice_a_death),
		takeover_test(nodes_may_have_many_vectors),
		takeover_test(who_does_not_read_misses_nothing),
		takeover_test(any_moment_may_be_the_last),
		takeover_test(a_start_may_fail_anywhere),
		takeover_test(a_successor_was_announced),
		takeover_test(a_successor_is_not_kept_waiting),
		takeover_test(a_stop_and_a_start_is_a_restart),
		takeover_test(a_stop_that_stays_one_lets_all_go),
		takeover_test(a_watchdog_is_fed),
		takeover_test(options_that_do_not_fit),
		takeover_test(another_object_at_the_same_path),
		takeover_test(a_backup_is_put_back),
		takeover_test(other_options_without_nodes),
		takeover_test(a_start_without_nodes_is_refused),
		takeover_test(nobody_can_be_taken_over),
		takeover_test(a_start_with_a_socket_unit_is_refused),
		takeover_test(a_start_without_nodes_may_fail_anywhere),
		takeover_test(a_start_with_other_options_is_refused),
		takeover_test(options_that_have_to_wait),
		takeover_test(an_object_that_was_lost),
		takeover_test(a_pidfile_of_a_takeover_that_failed),
		takeover_test(a_lock_ends_with_the_server),
		takeover_test(another_socket),
		takeover_test(a_socket_that_somebody_removed),
		takeover_test(a_socket_that_cannot_be_made),
		takeover_test(another_ledger),
		takeover_test(old_nodes_are_dropped_behind_the_ledger),
		takeover_test(what_is_dropped_is_not_forgotten),
		takeover_test(nobody_waits_for_long_for_a_supervisor),
		takeover_test(a_busy_supervisor_costs_nobody_his_place),
		takeover_test(who_is_not_stored_is_let_go),
		takeover_test(few_descriptors),
		takeover_test(few_are_left_of_many),
		takeover_test(fewer_descriptors_than_before),
		takeover_test(a_log_that_is_in_the_way),
		takeover_test(a_log_file_goes_on),
		takeover_test(the_status_tells_of_nodes),
		takeover_test(the_status_tells_of_all),
		takeover_test(few_descriptors_and_no_limit),
		takeover_test(a_slow_supervisor_is_waited_for),
		takeover_test(a_full_supervisor_hears_of_a_reload),
		takeover_test(a_supervisor_that_takes_nothing_is_not),
		takeover_test(another_supervisor_at_the_same_address),
		takeover_test(who_leaves_makes_room),
		takeover_test(a_store_that_is_known_to_be_full),
		takeover_test(a_store_that_is_full),
		takeover_test(a_store_in_part),
		takeover_test(a_supervisor_that_has_gone),
		takeover_test(a_restart_stores_what_was_lost),
		takeover_test(what_is_stored_anew_needs_no_room),
		takeover_test(storing_anew_may_be_cut_short),
		takeover_test(what_was_lost_is_named),
		takeover_test(the_store_does_not_grow),
		takeover_test(who_is_not_wanted_is_not_kept),
		takeover_test(the_store_costs_nothing),
		takeover_test(a_thousand_nodes),
		takeover_test(qemu_nodes),
	};

	if (!seed_choose(&seed))
		return 1;
	snprintf(shm_name, sizeof(shm_name), "tm-takeover-%d", (int)getpid());
	setlinebuf(stdout);
	crowd_at(server.socket, server.log);
	descriptors_allow();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
