/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Restart in place, as those see it who are connected: under load, with messages that nobody has
 * read yet, and with real QEMU nodes. What the restart executes is the server that runs already;
 * other programs, and everything around the process, are in restart.bats.
 *
 * SEED repeats a run.
 */
#define _GNU_SOURCE
#include "send_scm.h"
#include "tests/lib/crowd.h"
#include "tests/lib/mesh.h"
#include "tests/lib/node.h"
#include "tests/lib/program.h"
#include "tests/lib/testing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned int seed;
static char shm_name[32];

static struct server server;

/*
 * The server, and its restarts
 */

/* How often a text stands in the log. */
static size_t logged_times(const char *text)
{
	char *log = server_log(&server);
	size_t n = 0;

	for (const char *at = log; at && (at = strstr(at, text)); at++)
		n++;
	free(log);
	return n;
}

static void logged_times_wait(const char *text, size_t n)
{
	int64_t deadline = deadline_in(PATIENCE);

	while (logged_times(text) < n)
		assert_that(deadline_ahead(deadline), "'%s' was not logged %zu times", text, n);
}

/* What the new image says first. */
#define RESTARTED "restarted in place"

/* Restarts the server so many times, one after the other. */
static void server_restart(size_t times)
{
	size_t before = logged_times(RESTARTED);

	for (size_t i = 1; i <= times; i++) {
		server_signal(&server, SIGHUP);
		logged_times_wait(RESTARTED, before + i);
	}
	assert_int_equal(logged_times(RESTARTED), before + times);
}

/* How many messages the server owes a peer; -1: the ID is not there. */
static long server_owes(int id)
{
	size_t tables = logged_times("joined so far");
	char *log, row[32];
	long waiting = -1;

	server_signal(&server, SIGUSR1);
	logged_times_wait("joined so far", tables + 1);
	log = server_log(&server);
	snprintf(row, sizeof(row), "ID %d: ", id);
	for (const char *at = log; (at = strstr(at, row)); at++)
		if (sscanf(strstr(at, " s, ") + 4, "%ld messages", &waiting) != 1)
			waiting = -1;
	free(log);
	return waiting;
}

static void server_up(const char *const *args)
{
	assert_that(server_start(&server, args), "%s", server.error);
}

/* Ends the server: it must have lived all the time, and have had nothing to complain about. */
static void server_down(void)
{
	static const char *const complaints[] = {"cannot", "Sanitizer", "runtime error",
						 "ssertion"};

	assert_int_equal(server_stop(&server), 0);
	for (size_t i = 0; i < sizeof(complaints) / sizeof(complaints[0]); i++)
		assert_that(!server_logged(&server, complaints[i]), "'%s' is in the log: %s",
			    complaints[i], server_log(&server));
}

/*
 * Clients
 */

/* Somebody leaves, which the server has noticed and all others have been told. */
static void somebody_leaves(size_t i)
{
	size_t before = logged_times(" left: ");
	int id = clients[i].id;

	somebody_goes(i);
	logged_times_wait(" left: ", before + 1);
	everybody(client_misses, &id);
}

/* All clients go, and then the server. */
static void all_end(void)
{
	everybody_goes();
	server_down();
}

/* The next message on a socket, whatever it is. */
static void message_take(int sock, int64_t *value, int *fd)
{
	struct pollfd poll_fd = {.fd = sock, .events = POLLIN};

	assert_that(poll(&poll_fd, 1, PATIENCE * 1000) == 1, "no message comes any more");
	assert_int_equal(scm_recv(sock, value, fd), 1);
}

static void message_none(int sock)
{
	int64_t value;
	int fd;

	assert_int_equal(scm_recv(sock, &value, &fd), -1);
	assert_int_equal(errno, EAGAIN);
}

/*
 * What a client that does not read will get: first what its socket holds already, then leaves, then
 * the rest.
 */

struct story {
	struct scm_msg lines[8192]; /* fd: the vector, -1: none */
	size_t sent, len;
	size_t leaves; /* of those that are not sent, so many come first */
};

static void story_join(struct story *story, int id, int vectors)
{
	for (int v = 0; v < vectors; v++)
		story->lines[story->len++] = (struct scm_msg){.value = id, .fd = v};
}

/* The rule: what is unsent is cut, and who has got some is told of the leave. */
static void story_leave(struct story *story, int id)
{
	size_t kept = story->sent + story->leaves;
	struct scm_msg *first = &story->lines[kept];
	bool told = false;

	for (size_t i = 0; i < story->sent; i++)
		told = told || story->lines[i].value == id;
	for (size_t i = kept; i < story->len; i++)
		if (story->lines[i].value != id)
			story->lines[kept++] = story->lines[i];
	story->len = kept;
	if (!told)
		return;
	memmove(first + 1, first, (size_t)(&story->lines[story->len++] - first) * sizeof(*first));
	*first = (struct scm_msg){.value = id, .fd = -1};
	story->leaves++;
}

static struct client *client_with(int id)
{
	for (size_t i = 0; i < count; i++)
		if (clients[i].id == id)
			return &clients[i];
	return NULL;
}

/* Reads all of it from a socket; every descriptor must ring the vector that it stands for. */
static void story_check(const struct story *story, int sock)
{
	for (size_t i = 0; i < story->len; i++) {
		const struct scm_msg *line = &story->lines[i];
		struct client *peer = client_with((int)line->value);
		uint64_t once = 1;
		int64_t value;
		int fd;

		message_take(sock, &value, &fd);
		assert_that(value == line->value && (fd >= 0) == (line->fd >= 0),
			    "message %zu of %zu, of which %zu were sent before: %" PRId64
			    " with%s a descriptor instead of %" PRId64 " with%s",
			    i, story->len, story->sent, value, fd < 0 ? "out" : "", line->value,
			    line->fd < 0 ? "out" : "");
		if (fd < 0)
			continue;
		assert_int_equal(write(fd, &once, sizeof(once)), sizeof(once));
		close(fd);
		assert_that(!peer || client_rung(peer, line->fd) == 1,
			    "message %zu of %zu: not vector %d of %" PRId64, i, story->len,
			    line->fd, value);
	}
	message_none(sock);
}

/*
 * Tests
 */

/* Whoever it is, his turn to read a little. */
static void clients_step(void)
{
	for (size_t i = 0; i < count; i++) {
		for (int turn = rand_r(&seed) % 40; turn > 0 && client_step(&clients[i]) > 0;
		     turn--)
			;
		assert_that(!clients[i].error[0], "%s", clients[i].error);
		assert_that(!clients[i].ended, "client %d was cut off", clients[i].id);
	}
}

static void nobody_is_cut_off(void **state)
{
	const struct client_options options = {.vectors = 2, .keep = true};

	(void)state;
	printf("# SEED=%u\n", seed);
	server_up(SERVER_ARGS("-f", "memory", "-n", "2"));
	for (size_t restart = 1; restart <= 20; restart++) {
		int64_t deadline = deadline_in(PATIENCE);

		server_signal(&server, SIGHUP);
		do {
			for (int turns = 0; turns < 8; turns++) {
				if (count < 2 || (count < 60 && rand_r(&seed) % 5 < 3))
					somebody_connects(options);
				else
					somebody_goes((size_t)rand_r(&seed) % count);
				clients_step();
			}
			assert_that(clock_ms() < deadline, "no restart %zu", restart);
		} while (logged_times(RESTARTED) < restart);
		if (restart % 5 == 0)
			everybody_agrees();
	}
	while (count > 0)
		somebody_goes(0);
	assert_true(server_descriptors_wait(&server, server.idle, PATIENCE));
	server_down();
}

/* Vectors of those in the story: ten of them fill a socket, which holds 278 messages, twice. */
#define MANY 64

/* One that does not read, and others whose joins are more than its socket holds. */
static void crowd_gather(struct story *story, size_t others)
{
	const struct client_options options = {.vectors = MANY, .keep = true};
	struct client *slow;
	long owed;

	server_up(SERVER_ARGS("-f", "memory", "-n", "64"));
	slow = somebody_joins(options);
	memset(story, 0, sizeof(*story));
	for (size_t i = 0; i < others; i++) {
		struct client *c = somebody_connects(options);

		assert_that(clients_drive(c, 1, client_greeted, NULL, PATIENCE), "%s", c->error);
		story_join(story, c->id, MANY);
	}
	owed = server_owes(slow->id);
	assert_true(owed > 100 && (size_t)owed < story->len);
	story->sent = story->len - (size_t)owed;
	/* Somebody's join must be sent in part. */
	assert_true(story->sent % MANY != 0);
}

/* Somebody leaves, which the others, but not the first, have been told. */
static void crowd_leave(struct story *story, int id)
{
	somebody_goes((size_t)(client_with(id) - clients));
	assert_true(clients_drive(clients + 1, count - 1, client_misses, &id, PATIENCE));
	story_leave(story, id);
}

static void crowd_part(struct story *story)
{
	free(story);
	all_end();
}

/* Nothing else happens after the restart that could wake the server. */
static void place_is_kept(void **state)
{
	struct story *story = malloc(sizeof(*story));

	(void)state;
	crowd_gather(story, 10);
	server_restart(1);
	story_check(story, clients[0].sock);
	assert_int_equal(server_owes(clients[0].id), 0);
	crowd_part(story);
}

static void places_are_kept_by_many_restarts(void **state)
{
	const struct client_options options = {.vectors = MANY, .keep = true};
	struct story *story = malloc(sizeof(*story));
	long owed;

	(void)state;
	crowd_gather(story, 10);
	crowd_leave(story, 1);  /* had been sent */
	crowd_leave(story, 10); /* had not */
	owed = server_owes(0);
	assert_int_equal(owed, story->len - story->sent);
	server_restart(3);
	assert_int_equal(server_owes(0), owed);
	crowd_leave(story, 2);
	crowd_leave(story, 9);
	server_restart(2);
	somebody_connects(options);
	assert_true(clients_drive(&clients[count - 1], 1, client_greeted, NULL, PATIENCE));
	assert_int_equal(clients[count - 1].id, 11);
	story_join(story, 11, MANY);
	server_restart(1);
	story_check(story, clients[0].sock);
	crowd_part(story);
}

/* Vectors of a join that is sent in part, when its peer leaves: one leave, and none of the rest. */
static void join_in_part_then_leave(void **state)
{
	struct story *story = malloc(sizeof(*story));
	int id;

	(void)state;
	crowd_gather(story, 10);
	id = (int)story->lines[story->sent].value;
	assert_int_equal(id, story->lines[story->sent - 1].value);
	server_restart(1);
	crowd_leave(story, id);     /* in part */
	crowd_leave(story, id + 1); /* not at all */
	crowd_leave(story, id - 1); /* in full */
	assert_int_equal(server_owes(0), story->len - story->sent);
	story_check(story, clients[0].sock);
	crowd_part(story);
}

static void greeting_is_finished(void **state)
{
	const struct client_options options = {.vectors = MANY, .keep = true};
	struct story *story = malloc(sizeof(*story));
	struct client *late;

	(void)state;
	crowd_gather(story, 10);
	story_check(story, clients[0].sock);
	somebody_goes(0);
	late = somebody_connects(options);
	server_restart(1);
	assert_true(clients_drive(late, 1, client_greeted, NULL, PATIENCE));
	everybody_agrees();
	crowd_part(story);
}

/*
 * Random histories against the rule for IDs (doc/compatibility.md, hazard 1), with restarts
 * anywhere.
 */
static void ids_stay_retired(void **state)
{
	const struct client_options options = {.vectors = 1, .keep = true};
	unsigned int joins = 0, retired[64] = {0}, joined[64] = {0};

	(void)state;
	printf("# SEED=%u\n", seed);
	server_up(SERVER_ARGS("-f", "memory"));
	for (int i = 0; i < 60; i++) {
		int id = 0;

		if (rand_r(&seed) % 4 == 0)
			server_restart(1);
		if (count > 0 && (count == 6 || rand_r(&seed) % 2)) {
			/* The oldest more often than others: that sets IDs free. */
			size_t who = rand_r(&seed) % 2 ? 0 : (size_t)rand_r(&seed) % count;

			retired[clients[who].id] = joins;
			somebody_leaves(who);
			continue;
		}
		while (client_with(id) || (count && retired[id] >= joined[clients[0].id]))
			id++;
		assert_true(id < 64);
		assert_int_equal(somebody_joins(options)->id, id);
		joined[id] = ++joins;
	}
	server_restart(1);
	while (count > 0)
		somebody_leaves(0);
	server_restart(1);
	assert_int_equal(somebody_joins(options)->id, 0);
	all_end();
}

static void who_connects_meanwhile_waits(void **state)
{
	const struct client_options options = {.vectors = 4, .keep = true};

	(void)state;
	server_up(SERVER_ARGS("-f", "memory", "-n", "4"));
	for (size_t restart = 1; restart <= 10; restart++) {
		server_signal(&server, SIGHUP);
		for (int i = 0; i < 4; i++)
			somebody_connects(options);
		logged_times_wait(RESTARTED, restart);
	}
	everybody_agrees();
	all_end();
}

static void storm_of_signals(void **state)
{
	const struct client_options options = {.vectors = 2, .keep = true};

	(void)state;
	server_up(SERVER_ARGS("-f", "memory", "-n", "2"));
	for (int i = 0; i < 30; i++) {
		somebody_connects(options);
		for (int hups = 0; hups < 20; hups++)
			server_signal(&server, SIGHUP);
		clients_step();
	}
	everybody_agrees();
	for (int hups = 0; hups < 400; hups++)
		server_signal(&server, SIGHUP);
	logged_times_wait(RESTARTED, 1);
	everybody_agrees();
	server_signal(&server, SIGHUP);
	server_signal(&server, SIGHUP);
	all_end();
}

/* What a process has open: "NUMBER FLAGS TARGET" a line, in the order of the numbers. */
static void descriptors_list(pid_t pid, char *list, size_t room)
{
	size_t n = 0;

	*list = '\0';
	for (int fd = 0; fd < 4096; fd++) {
		char path[64], target[PATH_MAX], info[256] = "";
		unsigned int flags = 0;
		ssize_t length;
		FILE *f;

		snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
		length = readlink(path, target, sizeof(target) - 1);
		if (length < 0)
			continue;
		target[length] = '\0';
		snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", pid, fd);
		f = fopen(path, "re");
		while (f && fgets(info, sizeof(info), f))
			if (sscanf(info, "flags: %o", &flags) == 1)
				break;
		if (f)
			fclose(f);
		/* The server's own may move. */
		if (strcmp(target, "anon_inode:[signalfd]") != 0 &&
		    strcmp(target, "/dev/null") != 0)
			n += (size_t)snprintf(list + n, room - n, "%d %o %s\n", fd, flags, target);
		assert_true(n < room);
	}
}

static void a_hundred_restarts_leave_no_trace(void **state)
{
	static char before[1 << 16], after[1 << 16];
	const struct client_options options = {.vectors = 3, .keep = true};
	long memory;
	int descriptors;

	(void)state;
	server_up(SERVER_ARGS("-f", "memory", "-n", "3"));
	for (int i = 0; i < 8; i++)
		somebody_joins(options);
	somebody_leaves(3);
	descriptors = server_descriptors(&server);
	descriptors_list(server.pid, before, sizeof(before));
	server_restart(10);
	memory = server_memory(&server);
	assert_true(memory > 0);
	server_restart(90);
	assert_int_equal(server_descriptors(&server), descriptors);
	descriptors_list(server.pid, after, sizeof(after));
	assert_string_equal(after, before);
	assert_that(server_memory(&server) < memory + (2 << 20),
		    "%ld bytes of memory have become %ld", memory, server_memory(&server));
	everybody_agrees();
	all_end();
}

/* Each kind of server: one client is there before the restart, one comes after it. */
static void every_kind_of_server(void **state)
{
	const struct {
		const char *const *args;
		struct client_options options;
	} kinds[] = {
		{SERVER_ARGS("-f", "memory", "-n", "0"), {.vectors = 0, .keep = true}},
		{SERVER_ARGS("-f", "memory", "-n", "700"), {.vectors = 700, .keep = true}},
		{SERVER_ARGS("-f", "memory", "-L", "-n", "2"),
		 {.vectors = 2, .keep = true, .legacy = true}},
		{SERVER_ARGS("-L", "-m", "0", "-n", "2"),
		 {.vectors = 2, .keep = true, .legacy = true, .memoryless = true}},
		{SERVER_ARGS("-fmemory", "-vy1", "-n2", "-ipid", "-g0"),
		 {.vectors = 2, .keep = true}},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		server_up(kinds[i].args);
		somebody_joins(kinds[i].options);
		server_restart(i == 0 ? 2 : 1);
		somebody_joins(kinds[i].options);
		server_restart(1);
		somebody_joins(kinds[i].options);
		everybody_agrees();
		all_end();
		server_remove(&server);
	}
}

/*
 * An unprivileged server whose descriptors in flight are few: those who do not read starve all
 * others, and the restart comes while some have not been sent even the memory.
 */
static void the_starved_are_served(void **state)
{
	const struct client_options options = {.vectors = 1, .keep = true};

	(void)state;
	if (geteuid() != 0)
		skip_because("only root can become another user");
	server.unprivileged = true;
	server.descriptors = (struct rlimit){.rlim_cur = 400, .rlim_max = 400};
	server_up(SERVER_ARGS("-f", "memory"));
	for (int i = 0; i < 130; i++)
		somebody_connects(options);
	logged_times_wait(" joined: ", count);
	assert_true(server_owes((int)count - 1) > (long)count);
	server_restart(2);
	everybody_agrees();
	all_end();
}

/* What the table of nodes says of them: how long they have been there, not since the restart. */
static void ages_are_kept(void **state)
{
	const struct client_options options = {.vectors = 1, .keep = true};
	int64_t before = clock_ms(), since;
	const char *row = "ID 0: ", *age;
	int seconds = -1;
	char *log;

	(void)state;
	server_up(SERVER_ARGS("-f", "memory"));
	somebody_joins(options);
	since = clock_ms();
	while (clock_ms() < since + 2500)
		deadline_ahead(0);
	server_restart(1);
	assert_int_equal(server_owes(0), 0);
	log = server_log(&server);
	age = strstr(strstr(log, row), "connected for ");
	assert_int_equal(sscanf(age, "connected for %d s", &seconds), 1);
	free(log);
	assert_in_range(seconds, 2, (clock_ms() - before) / 1000);
	all_end();
}

/* As many peers as select can watch: the new image needs room there, too. */
static void a_full_server(void **state)
{
	const struct client_options options = {.vectors = 0};

	(void)state;
	if (descriptors_allow() < CLIENTS_MAX + 100)
		skip_because("this needs %d descriptors", CLIENTS_MAX + 100);
	server_up(SERVER_ARGS("-f", "memory", "-n", "0"));
	do {
		somebody_connects(options);
		assert_true(clients_drive(&clients[count - 1], 1, client_answered, NULL, PATIENCE));
	} while (client_greeted(&clients[count - 1], NULL));
	assert_true(count > 1000);
	somebody_goes(count - 1);
	server_restart(2);
	somebody_leaves(500);
	somebody_connects(options);
	everybody(client_greeted, NULL);
	assert_int_equal(clients[count - 1].id, count);
	server_restart(1);
	clients_step();
	all_end();
}

/* No descriptor is left: that does not keep it from a restart, and nobody loses anything. */
static void the_last_descriptor(void **state)
{
	const struct client_options options = {.vectors = 1, .keep = true};
	size_t greeted = 0;

	(void)state;
	if (geteuid() != 0)
		skip_because("only root can become another user");
	server.unprivileged = true;
	server.descriptors = (struct rlimit){.rlim_cur = 40, .rlim_max = 40};
	server_up(SERVER_ARGS("-f", "memory"));
	do {
		struct client *c = somebody_connects(options);

		everybody(client_answered, NULL);
		if (client_greeted(c, NULL))
			greeted++;
	} while (greeted == count);
	somebody_goes(count - 1);
	for (int vacant = 0; vacant < 4; vacant++) {
		server_restart(2);
		everybody_agrees();
		somebody_leaves((size_t)rand_r(&seed) % count);
	}
	server_restart(1);
	somebody_joins(options);
	everybody_agrees();
	everybody_goes();
	assert_int_equal(server_stop(&server), 0);
}

/* The object is the one that was opened at the start, and nothing is done to it. */
static void store_is_left_alone(void **state)
{
	const struct {
		const char *const *args;
		bool shm;
	} kinds[] = {
		{SERVER_ARGS("-f", "memory", "-m", "1M", "-t"), false},
		{SERVER_ARGS("-s", shm_name, "-tam1M"), true},
	};
	const struct client_options options = {.vectors = 1, .keep = true};

	(void)state;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		char path[256], other[300], mark[5] = "";
		struct client *c;
		struct stat st;
		int fd;

		server_up(kinds[i].args);
		if (kinds[i].shm)
			snprintf(path, sizeof(path), "/dev/shm/%s", shm_name);
		else
			snprintf(path, sizeof(path), "%s/memory", server.folder);
		snprintf(other, sizeof(other), "%s.old", path);
		c = somebody_joins(options);
		assert_int_equal(pwrite(c->memory, "mark", 4, 4096), 4);
		server_restart(2);

		/* Another file stands at the path, of a size that no server would take. */
		assert_int_equal(rename(path, other), 0);
		fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		assert_int_equal(write(fd, "other", 5), 5);
		close(fd);
		server_restart(1);
		assert_int_equal(stat(path, &st), 0);
		assert_int_equal(st.st_size, 5);
		c = somebody_joins(options);
		assert_true(c->memory_dev == clients[0].memory_dev);
		assert_true(c->memory_ino == clients[0].memory_ino);
		assert_int_equal(c->memory_size, 1 << 20);
		assert_int_equal(pread(c->memory, mark, 4, 4096), 4);
		assert_string_equal(mark, "mark");

		/* Nothing stands there. */
		assert_int_equal(unlink(path), 0);
		assert_int_equal(unlink(other), 0);
		server_restart(1);
		c = somebody_joins(options);
		assert_true(c->memory_ino == clients[0].memory_ino);
		assert_int_equal(stat(path, &st), -1);
		everybody_agrees();
		all_end();
		server_remove(&server);
	}
}

static void qemu_nodes(void **state)
{
	const char *missing = node_missing();
	struct node *nodes[4];

	(void)state;
	if (missing)
		skip_because("%s", missing);
	server_up(SERVER_ARGS("-f", "memory", "-n", "4"));
	for (int i = 0; i < 4; i++) {
		nodes[i] = node_start(server.socket, 4, "");
		assert_true(node_ready(nodes[i]));
		assert_int_equal(node_id(nodes[i]), i);
	}
	nodes_check(nodes, 4, 100);
	for (uint64_t restart = 1; restart <= 3; restart++) {
		server_restart(1);
		nodes_check(nodes, 4, 1000 * restart);
	}
	node_end(nodes[1]);
	logged_times_wait(" left: ", 1);
	server_restart(1);
	nodes[1] = node_start(server.socket, 4, "");
	assert_true(node_ready(nodes[1]));
	assert_int_equal(node_id(nodes[1]), 4);
	nodes_check(nodes, 4, 5000);
	server_restart(1);
	nodes_check(nodes, 4, 6000);
	nodes_end();
	server_down();
}

/* Nothing of a test stays behind, however it has ended. */
static int teardown(void **state)
{
	char path[64];

	(void)state;
	everybody_goes();
	nodes_end();
	server_remove(&server);
	server = (struct server){0};
	snprintf(path, sizeof(path), "/dev/shm/%s", shm_name);
	unlink(path);
	return 0;
}

/* A test that leaves no descriptor behind. */
#define restart_test(test)                                                          \
	(struct CMUnitTest)                                                         \
	{                                                                           \
		.name = #test, .test_func = counted_run, .teardown_func = teardown, \
		.initial_state = (test)                                             \
	}

/* The tests have a server of their own, which another user can execute by its path too, and which
 * nobody rebuilds meanwhile. */
static int setup(void **state)
{
	(void)state;
	program_put(tested);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		restart_test(nobody_is_cut_off),
		restart_test(place_is_kept),
		restart_test(places_are_kept_by_many_restarts),
		restart_test(join_in_part_then_leave),
		restart_test(greeting_is_finished),
		restart_test(ids_stay_retired),
		restart_test(who_connects_meanwhile_waits),
		restart_test(storm_of_signals),
		restart_test(a_hundred_restarts_leave_no_trace),
		restart_test(every_kind_of_server),
		restart_test(the_starved_are_served),
		restart_test(ages_are_kept),
		restart_test(a_full_server),
		restart_test(the_last_descriptor),
		restart_test(store_is_left_alone),
		restart_test(qemu_nodes),
	};

	if (!program_begin("tm_ivshmem_server"))
		return 1;
	if (!seed_choose(&seed))
		return 1;
	snprintf(shm_name, sizeof(shm_name), "tm-restart-%d", (int)getpid());
	descriptors_allow();
	crowd_at(server.socket, server.log);
	return cmocka_run_group_tests(tests, setup, NULL);
}
