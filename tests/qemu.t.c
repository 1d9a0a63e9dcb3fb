/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Real QEMU nodes beside the server: what a guest sees in its registers, its memory and its
 * interrupts, and that no QEMU is harmed, whatever the server and the other clients do.
 */
#define _GNU_SOURCE
#include "tests/lib/mesh.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct server server;

/* Clients beside the nodes. */
static struct client clients[300];
static size_t clients_used;

/* Ends everything, in whatever state it is. */
static int everything_end(void **state)
{
	(void)state;
	nodes_end();
	clients_free(clients, clients_used);
	clients_used = 0;
	server_remove(&server);
	server = (struct server){0};
	return 0;
}

/*
 * Ends everything in order: when all have gone, the server must have as many descriptors as when it
 * started, and end well.
 */
static void everything_check(void)
{
	nodes_end();
	clients_free(clients, clients_used);
	clients_used = 0;
	if (server.pid) {
		server_descriptors_wait(&server, server.idle, PATIENCE);
		assert_int_equal(server_descriptors(&server), server.idle);
		assert_int_equal(server_stop(&server), 0);
	}
	everything_end(NULL);
}

static void serve(const char *const *args)
{
	assert_that(server_start(&server, args), "%s", server.error);
}

#define SERVE(...) serve(SERVER_ARGS(__VA_ARGS__))

/*
 * Nodes
 */

static struct node *node_launch(unsigned int vectors, const char *properties)
{
	struct node *n = node_start(server.socket, vectors, properties);

	assert_non_null(n);
	return n;
}

/* A node that is up, as a guest would see it after its driver has been loaded. */
static struct node *node_up(unsigned int vectors)
{
	struct node *n = node_launch(vectors, "");

	assert_true(node_ready(n));
	return n;
}

static void nodes_up(struct node **nodes, size_t count, unsigned int vectors)
{
	for (size_t i = 0; i < count; i++)
		nodes[i] = node_launch(vectors, "");
	for (size_t i = 0; i < count; i++)
		assert_true(node_ready(nodes[i]));
}

/* What nodes_check_memory wrote must stand in the object, which descriptor fd is. */
static void object_check(int fd, uint64_t size, size_t count, uint64_t salt)
{
	assert_true(fd >= 0);
	assert_int_equal(lseek(fd, 0, SEEK_END), size);
	for (size_t i = 0; i < count; i++) {
		uint64_t first, last;
		off_t end = (off_t)(size - (i + 1) * 8);

		assert_int_equal(pread(fd, &first, 8, (off_t)i * 8), 8);
		assert_int_equal(first, salt << 32 | 0x1000 | i);
		assert_int_equal(pread(fd, &last, 8, end), 8);
		assert_int_equal(last, salt << 32 | 0x2000 | i);
	}
	close(fd);
}

static int memory_open(void)
{
	char path[sizeof(server.folder) + 16];

	snprintf(path, sizeof(path), "%s/memory", server.folder);
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* Waits until the node ends by itself, unsuccessfully, over what this text says. */
static void node_check_exit(struct node *n, const char *error)
{
	assert_that(node_wait(n, PATIENCE), "a node lives on after \"%s\"", error);
	assert_int_equal(n->status, 1);
	assert_that(strstr(node_errors(n), error), "a node ended over \"%s\" instead of \"%s\"",
		    node_errors(n), error);
}

/*
 * Clients
 */

/* Drives the first so many clients to a condition. */
static void clients_reach(size_t count, client_condition *done, const void *argument)
{
	bool reached = clients_drive(clients, count, done, argument, PATIENCE);
	const struct client *c = clients_error(clients, count);

	assert_that(reached, "%s", c ? c->error : "the clients did not get there");
}

/* Lets so many clients connect, in the places from first on. */
static void clients_start(size_t first, size_t count, struct client_options options)
{
	clients_used = first + count;
	assert_that(clients_connect(clients + first, count, server.socket, options), "%s",
		    clients_error(clients + first, count)->error);
}

/*
 * Lets clients connect and be greeted. Only the first three places are for clients that keep their
 * eventfds, to ring with: everybody's together are many.
 */
static void clients_join(size_t first, size_t count, int vectors)
{
	size_t ringing = first >= 3 ? 0 : count < 3 - first ? count : 3 - first;

	clients_start(first, ringing, (struct client_options){.vectors = vectors, .keep = true});
	clients_start(first + ringing, count - ringing,
		      (struct client_options){.vectors = vectors});
	clients_reach(first + count, client_greeted, NULL);
}

/* A client and a node must be able to ring each other. */
static void client_check_bells(struct client *c, struct node *n, unsigned int vector)
{
	int64_t deadline = deadline_in(PATIENCE);
	int id = node_id(n);
	uint64_t rung;

	clients_reach(clients_used, client_sees, &id);
	node_quiet(n);
	assert_true(client_ring(c, id, (int)vector));
	while (!node_rung(n, vector) && deadline_ahead(deadline))
		;
	assert_true(node_rung(n, vector));
	assert_int_equal(node_rung_count(n), 1);
	node_quiet(n);
	client_rung(c, (int)vector);
	do
		node_ring(n, c->id, vector);
	while (!(rung = client_rung(c, (int)vector)) && deadline_ahead(deadline));
	assert_true(rung);
}

/*
 * Tests
 */

/* Four nodes on a file: the main job. One of them dies, and another one comes. */
static void mesh_of_four(void **state)
{
	struct node *nodes[4];
	size_t eventfds[4];
	int dead;

	(void)state;
	SERVE("-f", "memory", "-m", "4M", "-n", "2");
	nodes_up(nodes, 4, 2);
	nodes_check_ids(nodes, 4);
	assert_int_equal(nodes[0]->size, 4 << 20);
	nodes_check_memory(nodes, 4, 1);
	object_check(memory_open(), 4 << 20, 4, 1);
	nodes_check_bells(nodes, 4);

	for (size_t i = 0; i < 4; i++)
		eventfds[i] = node_eventfds(nodes[i]);
	dead = node_id(nodes[1]);
	node_end(nodes[1]);
	for (size_t i = 0; i < 4; i++)
		if (i != 1)
			node_check_eventfds(nodes[i], eventfds[i] - 2);
	nodes[1] = node_up(2);
	assert_int_not_equal(node_id(nodes[1]), dead);
	nodes_check_ids(nodes, 4);
	assert_int_equal(node_load(nodes[1], 8), UINT64_C(1) << 32 | 0x1001);
	nodes_check_bells(nodes, 4);
	nodes_check_memory(nodes, 4, 2);
	object_check(memory_open(), 4 << 20, 4, 2);
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(node_eventfds(nodes[i]), eventfds[i]);
}

/* When all have gone IDs start at 0 again, without which QEMU's master=on refuses to start. */
static void master_after_an_empty_spell(void **state)
{
	struct node *nodes[2], *second;

	(void)state;
	SERVE("-f", "memory", "-n", "1");
	nodes_up(nodes, 2, 1);
	nodes_check_memory(nodes, 2, 3);
	second = node_launch(1, ",master=on");
	node_check_exit(second, "master must connect to the server before any peers");
	nodes_end();
	for (int id = 0; id < 3; id++) {
		char left[32];

		snprintf(left, sizeof(left), "ID %d left", id);
		assert_true(server_log_wait(&server, left, PATIENCE));
	}
	nodes[0] = node_launch(1, ",master=on");
	assert_true(node_ready(nodes[0]));
	assert_int_equal(node_id(nodes[0]), 0);
	nodes[1] = node_up(1);
	assert_int_equal(node_load(nodes[1], 8), UINT64_C(3) << 32 | 0x1001);
	nodes_check_bells(nodes, 2);

	/* The file outlives the server and all nodes. */
	nodes_end();
	assert_int_equal(server_stop(&server), 0);
	SERVE("-f", "memory");
	nodes[0] = node_up(1);
	assert_int_equal(node_load(nodes[0], 8), UINT64_C(3) << 32 | 0x1001);
}

/*
 * QEMU breaks over an ID that comes back after it left, and over a leave that is told twice or of
 * nobody (hazards 1 and 2): a node that stays must outlive 300 clients, and 20 nodes, that do not.
 */
static void crowd_comes_and_goes(void **state)
{
	struct node *stays, *late;
	size_t eventfds;

	(void)state;
	SERVE("-f", "memory", "-n", "2");
	stays = node_up(2);
	eventfds = node_count_eventfds(stays);
	for (int round = 0; round < 30; round++) {
		clients_join(0, 10, 2);
		clients_reach(10, client_knows, &(size_t){10});
		clients_free(clients, 10);
		clients_used = 0;
	}
	for (int i = 0; i < 20; i++) {
		struct node *goes = node_launch(2, "");

		if (i % 2) {
			assert_true(node_ready(goes));
			node_reach(goes, stays, 1);
		}
		node_end(goes);
	}
	node_check_eventfds(stays, eventfds);
	late = node_up(2);
	assert_true(node_id(late) >= 300);
	nodes_check_bells((struct node *[]){stays, late}, 2);
	clients_join(0, 1, 2);
	client_check_bells(&clients[0], stays, 1);
	client_check_bells(&clients[0], late, 0);
	assert_true(node_alive(stays));
}

/* An ID comes back once nobody is left who saw it leave, and then it rings who has it now. */
static void ids_come_back(void **state)
{
	struct node *nodes[3], *first;
	size_t eventfds;

	(void)state;
	SERVE("-f", "memory", "-n", "2");
	first = node_up(2);
	node_end(node_up(2));
	assert_true(server_log_wait(&server, "ID 1 left", PATIENCE));
	nodes[0] = node_up(2);
	assert_int_equal(node_id(nodes[0]), 2);
	node_reach(nodes[0], first, 1);
	eventfds = node_count_eventfds(nodes[0]);
	node_end(first);
	node_check_eventfds(nodes[0], eventfds - 2);
	nodes[1] = node_up(2);
	assert_int_equal(node_id(nodes[1]), 1);
	nodes[2] = node_up(2);
	nodes_check_ids(nodes, 3);
	nodes_check_bells(nodes, 3);
}

/*
 * A node that does not read for a while: its socket is full when peers leave, some of which it has
 * heard of and some not. Afterwards it must know exactly those alive.
 */
static void stopped_node_catches_up(void **state)
{
	struct node *n;
	size_t eventfds;

	(void)state;
	SERVE("-f", "memory", "-n", "2");
	n = node_up(2);
	eventfds = node_count_eventfds(n);
	kill(n->pid, SIGSTOP);
	clients_join(0, 200, 2); /* 400 messages; a socket holds 278 */
	clients_free(clients + 150, 50);
	clients_used = 150;
	clients_reach(150, client_knows, &(size_t){150});
	clients_join(150, 50, 2);
	clients_free(clients + 2, 198);
	clients_used = 2;
	clients_reach(2, client_knows, &(size_t){2});
	clients_join(2, 1, 2);
	kill(n->pid, SIGCONT);

	node_check_eventfds(n, eventfds + 3 * 2);
	for (size_t i = 0; i < 3; i++)
		for (unsigned int vector = 0; vector < 2; vector++)
			client_check_bells(&clients[i], n, vector);
	nodes_check_bells((struct node *[]){n, node_up(2)}, 2);
}

/* Serves with a limit of descriptors that only a few nodes fit below. */
static void serve_few(rlim_t descriptors)
{
	server.descriptors = (struct rlimit){.rlim_cur = descriptors, .rlim_max = descriptors};
	server.unprivileged = true;
	SERVE("-f", "memory", "-n", "2");
}

/* Starts nodes until one is refused, and returns how many are up: from 2 to most. */
static size_t nodes_up_until_refused(struct node **nodes, size_t most)
{
	size_t count = 0;
	struct node *n;

	while (n = node_launch(2, ""), node_ready(n)) {
		assert_true(count < most);
		nodes[count++] = n;
	}
	node_check_exit(n, "server sent version -1, expecting 0");
	assert_true(count >= 2);
	return count;
}

/* Who is refused ends with an error, while a connection that just ends makes QEMU spin for ever. */
static void refused_node_exits(void **state)
{
	struct node *nodes[8];
	size_t count;

	(void)state;
	serve_few(22);
	count = nodes_up_until_refused(nodes, 8);
	nodes_check_bells(nodes, count);
	node_check_exit(node_launch(2, ""), "server sent version -1, expecting 0");

	node_end(nodes[0]);
	assert_true(server_log_wait(&server, "ID 0 left", PATIENCE));
	nodes[0] = node_up(2);
	nodes_check_ids(nodes, count);
	nodes_check_bells(nodes, count);
}

/* A server that is restarted in place, for an upgrade, goes on where it was. */
static void nodes_outlive_a_restart(void **state)
{
	struct node *nodes[4];
	size_t eventfds;

	(void)state;
	SERVE("-f", "memory", "-n", "2");
	nodes_up(nodes, 3, 2);
	nodes_check_bells(nodes, 3);
	eventfds = node_eventfds(nodes[0]);
	server_signal(&server, SIGHUP);
	assert_true(server_log_wait(&server, "restarted in place", PATIENCE));
	nodes[3] = node_up(2);
	nodes_check_ids(nodes, 4);
	nodes_check_bells(nodes, 4);
	nodes_check_memory(nodes, 4, 11);
	node_end(nodes[2]);
	node_check_eventfds(nodes[0], eventfds);
	nodes[2] = node_up(2);
	nodes_check_ids(nodes, 4);
	nodes_check_bells(nodes, 4);
}

/* Nodes do not need the server once they know each other. */
static void nodes_outlive_the_server(void **state)
{
	struct node *nodes[3];

	(void)state;
	SERVE("-f", "memory", "-n", "2");
	nodes_up(nodes, 3, 2);
	nodes_meet(nodes, 3);
	assert_int_equal(server_stop(&server), 0);
	nodes_check_bells(nodes, 3);
	nodes_check_memory(nodes, 3, 4);
	object_check(memory_open(), 1 << 20, 3, 4);
	for (size_t i = 0; i < 3; i++)
		assert_true(node_alive(nodes[i]));
	node_check_exit(node_launch(2, ""), "No such file or directory");
}

/* Starts a node, and waits until it has connected to a server that is stopped. */
static struct node *node_launch_waiting(unsigned int vectors)
{
	struct node *n = node_launch(vectors, "");
	int64_t deadline = deadline_in(PATIENCE);
	bool connected;

	while (!(connected = node_connected(n)) && deadline_ahead(deadline))
		;
	assert_true(connected);
	return n;
}

/* Tells a server to end that is stopped, and lets it go on. */
static void server_stop_stopped(void)
{
	server_signal(&server, SIGTERM);
	server_signal(&server, SIGCONT);
}

/*
 * The same, and lets the clients be greeted, and it end. Returns whether that was before it may cut
 * off any greeting.
 */
static bool server_stops_in_time(void)
{
	int64_t told = clock_ms();
	bool greeted;

	server_stop_stopped();
	greeted = clients_drive(clients, clients_used, client_greeted, NULL, PATIENCE);
	assert_int_equal(server_wait(&server, PATIENCE), 0);
	if (clock_ms() < told + GREETING_MS) {
		assert_true(greeted);
		return true;
	}
	printf("# too late: the server ended after %d ms\n", (int)(clock_ms() - told));
	return false;
}

/*
 * A node that has connected when the server is told to end is greeted still, and runs. QEMU drops
 * what it has not read when the connection ends: the server must wait for that, too, else the node
 * lacks its own vectors and its peer does not hear of it.
 */
static void greeting_at_the_end(void **state)
{
	struct node *nodes[2];
	int tries = 0;

	(void)state;
	do {
		assert_in_range(++tries, 1, TRIES);
		everything_end(NULL);
		SERVE("-f", "memory", "-n", "2");
		nodes[0] = node_up(2);
		server_signal(&server, SIGSTOP);
		nodes[1] = node_launch_waiting(2);
	} while (!server_stops_in_time());
	assert_true(node_ready(nodes[1]));
	assert_int_equal(node_id(nodes[1]), 1);
	nodes_check_memory(nodes, 2, 5);
	nodes_check_bells(nodes, 2);
}

/* The same for a node that stands at the end of a queue, as long a one as the machine serves in
 * time.
 */
static void greeting_at_the_end_of_many(void **state)
{
	size_t count = 400;
	struct node *n;
	int tries = 0;

	(void)state;
	do {
		assert_in_range(++tries, 1, TRIES);
		count = count > 10 ? count / 2 : count;
		everything_end(NULL);
		SERVE("-f", "memory", "-n", "1");
		server_signal(&server, SIGSTOP);
		clients_start(0, count, (struct client_options){.vectors = 1});
		n = node_launch_waiting(1);
	} while (!server_stops_in_time());
	assert_true(node_ready(n));
	assert_int_equal(node_id(n), count);
	nodes_check_memory(&n, 1, 6);
}

/* Who waits when the server ends, and cannot be served, is refused by it in the same way. */
static void refusal_at_the_end(void **state)
{
	(void)state;
	/* A node takes three descriptors: with one of these limits, none is left to accept with. */
	for (rlim_t limit = 20; limit < 23; limit++) {
		struct node *nodes[8], *n;

		serve_few(limit);
		nodes_up_until_refused(nodes, 8);
		server_signal(&server, SIGSTOP);
		clients_start(0, 20, (struct client_options){.vectors = 2, .starved = true});
		n = node_launch_waiting(2);
		server_stop_stopped();
		clients_reach(20, client_refused, NULL);
		node_check_exit(n, "server sent version -1, expecting 0");
		assert_int_equal(server_wait(&server, PATIENCE), 0);
		everything_check();
	}
}

/* More vectors than one word of pending bits has. */
static void many_vectors(void **state)
{
	struct node *nodes[2];

	(void)state;
	SERVE("-f", "memory", "-n", "64");
	nodes_up(nodes, 2, 64);
	nodes_check_bells(nodes, 2);
}

/* The server cannot know how many vectors a device has; QEMU takes what it has room for. */
static void other_numbers_of_vectors(void **state)
{
	struct node *few, *same, *many;

	(void)state;
	SERVE("-f", "memory", "-n", "2");
	few = node_up(1);
	same = node_up(2);
	many = node_up(4);
	node_reach(few, few, 0);
	node_reach(few, same, 0);
	node_reach(few, many, 0);
	node_reach(same, few, 0);
	node_reach(same, many, 1);
	node_reach(many, few, 0);
	node_reach(many, same, 1);
	node_reach(many, many, 1);
	node_quiet(many);
	node_ring(many, node_id(many), 2);
	node_ring(many, node_id(many), 3);
	node_ring(few, node_id(many), 1);
	node_settle(many);
	assert_int_equal(node_rung_count(many), 0);
	assert_non_null(
		strstr(node_errors(few), "Too many eventfd received, device has 1 vectors"));
	assert_string_equal(node_errors(same), "");
	assert_string_equal(node_errors(many), "");
	nodes_check_memory((struct node *[]){few, same, many}, 3, 6);
	assert_true(node_alive(few) && node_alive(same) && node_alive(many));
}

/* Memory alone: no node can ring another, or itself. */
static void no_vectors(void **state)
{
	struct node *nodes[2];

	(void)state;
	SERVE("-f", "memory", "-n", "0");
	nodes_up(nodes, 2, 1);
	nodes_check_ids(nodes, 2);
	nodes_check_memory(nodes, 2, 7);
	for (int i = 0; i < 4; i++)
		node_ring(nodes[i / 2], node_id(nodes[i % 2]), 0);
	for (int i = 0; i < 2; i++) {
		node_settle(nodes[i]);
		assert_int_equal(node_rung_count(nodes[i]), 0);
	}
	node_end(nodes[0]);
	nodes[0] = node_up(1);
	nodes_check_ids(nodes, 2);
	nodes_check_memory(nodes, 2, 8);
}

/* A shared memory object instead of a file. */
static void shm_object(void **state)
{
	struct node *nodes[2];
	char name[64];
	int fd;

	(void)state;
	snprintf(name, sizeof(name), "/tm-qemu-test-%d", (int)getpid());
	SERVE("-s", name, "-m", "2M", "-n", "2");
	fd = shm_open(name, O_RDONLY, 0);
	shm_unlink(name);
	assert_true(fd >= 0);
	nodes_up(nodes, 2, 2);
	nodes_check_memory(nodes, 2, 9);
	object_check(fd, 2 << 20, 2, 9);
	nodes_check_bells(nodes, 2);
}

/* Opens what a process has open as the shared memory without a name, as it could itself. */
static int anonymous_open(pid_t pid)
{
	char path[64], link[64];
	int fd = -1;

	for (int i = 3; i < 256 && fd < 0; i++) {
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, i);
		n = readlink(path, link, sizeof(link) - 1);
		link[n < 0 ? 0 : n] = '\0';
		if (strstr(link, "memfd:ivshmem"))
			fd = open(path, O_RDWR | O_CLOEXEC);
	}
	assert_true(fd >= 0);
	return fd;
}

/* No process can cut the memory that it has open, nor let others do less with it. */
static void anonymous_check(int fd, off_t size)
{
	for (off_t other = 0; other <= 2 * size; other += size / 2)
		if (other != size) {
			assert_int_equal(ftruncate(fd, other), -1);
			assert_int_equal(errno, EPERM);
		}
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	assert_int_equal(errno, EPERM);
}

/* Memory without a name: all nodes share it, and none can cut it by the descriptor that it has. */
static void anonymous_memory(void **state)
{
	struct node *nodes[3];

	(void)state;
	SERVE("-A", "-m", "2m", "-n", "2");
	nodes_up(nodes, 2, 2);
	assert_int_equal(nodes[0]->size, 2 << 20);
	for (size_t i = 0; i < 2; i++) {
		int fd = anonymous_open(nodes[i]->pid);

		anonymous_check(fd, 2 << 20);
		close(fd);
	}
	nodes_check_memory(nodes, 2, 12);
	server_signal(&server, SIGHUP);
	assert_true(server_log_wait(&server, "restarted in place", PATIENCE));
	nodes[2] = node_up(2);
	nodes_check_memory(nodes, 3, 13);
	object_check(anonymous_open(nodes[0]->pid), 2 << 20, 3, 13);
	nodes_check_bells(nodes, 3);
}

/* A file without a name: the nodes share it, and keep it when the server has gone. */
static void unnamed_file(void **state)
{
	struct node *nodes[2];

	(void)state;
	SERVE("--anonymous=.", "-n", "2");
	nodes_up(nodes, 2, 2);
	nodes_check_memory(nodes, 2, 14);
	nodes_check_bells(nodes, 2);
	assert_int_equal(server_stop(&server), 0);
	nodes_check_memory(nodes, 2, 15);
}

static void size_check(uint64_t size)
{
	struct node *nodes[2];

	nodes_up(nodes, 2, 1);
	assert_int_equal(nodes[0]->size, size);
	nodes_check_memory(nodes, 2, 10);
	object_check(memory_open(), size, 2, 10);
	nodes_check_bells(nodes, 2);
	everything_check();
}

/* The smallest memory that QEMU can map, and a sparse one larger than most machines'. */
static void sizes(void **state)
{
	(void)state;
	SERVE("-f", "memory", "-m", "4K");
	size_check(UINT64_C(4) << 10);
	SERVE("-f", "memory", "-m", "64M");
	size_check(UINT64_C(64) << 20);
	/* A tmpfs takes no file that is larger than itself. */
	if (server_start(&server, SERVER_ARGS("-f", "memory", "-m", "256G"))) {
		size_check(UINT64_C(256) << 30);
	}
}

/* The original stream is not for this device: QEMU says so and ends. */
static void legacy_stream_is_refused(void **state)
{
	(void)state;
	SERVE("-L", "-f", "memory", "-n", "1");
	node_check_exit(node_launch(1, ""), "server sent invalid ID message");
	assert_true(server_log_wait(&server, "ID 0 left", PATIENCE));
	clients_start(0, 1, (struct client_options){.vectors = 1, .legacy = true});
	clients_reach(1, client_greeted, NULL);
	node_check_exit(node_launch(1, ""), "server sent version 1, expecting 0");
}

/* Runs the test that *state is, or skips it. */
static void node_test_run(void **state)
{
	void (*test)(void **state) = *state;
	int before = descriptors_count(0);

	if (node_missing())
		skip_because("%s", node_missing());
	*state = NULL;
	test(state);
	everything_check();
	assert_int_equal(descriptors_count(0), before);
}

#define node_test(test)                                                                     \
	(struct CMUnitTest)                                                                 \
	{                                                                                   \
		.name = #test, .test_func = node_test_run, .teardown_func = everything_end, \
		.initial_state = test,                                                      \
	}

int main(void)
{
	const struct CMUnitTest tests[] = {
		node_test(mesh_of_four),
		node_test(master_after_an_empty_spell),
		node_test(crowd_comes_and_goes),
		node_test(ids_come_back),
		node_test(stopped_node_catches_up),
		node_test(refused_node_exits),
		node_test(nodes_outlive_a_restart),
		node_test(nodes_outlive_the_server),
		node_test(greeting_at_the_end),
		node_test(greeting_at_the_end_of_many),
		node_test(refusal_at_the_end),
		node_test(many_vectors),
		node_test(other_numbers_of_vectors),
		node_test(no_vectors),
		node_test(shm_object),
		node_test(anonymous_memory),
		node_test(unnamed_file),
		node_test(sizes),
		node_test(legacy_stream_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
