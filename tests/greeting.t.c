/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a client gets when it joins, in both streams, and that it is worth something: every eventfd
 * rings the right bell, all have the same memory.
 */
#define _GNU_SOURCE
#include "send_scm.h"
#include "tests/lib/testing.h"

#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* Reads one message, and adds it to a text as people read it: -1m for the memory, 3e an eventfd. */
static void message_read(int sock, char *text, size_t room)
{
	size_t at = strlen(text);
	int64_t value;
	int fd;

	poll(&(struct pollfd){.fd = sock, .events = POLLIN}, 1, PATIENCE * 1000);
	assert_that(scm_recv(sock, &value, &fd) == 1, "no message after '%s'", text);
	snprintf(text + at, room - at, "%s%d", at ? " " : "", (int)value);
	if (fd >= 0) {
		strncat(text, value == -1 ? "m" : "e", room - strlen(text) - 1);
		close(fd);
	}
}

/* Reads exactly this, as long as it is right, and finds nothing behind it. */
static void stream_expect(int sock, const char *stream)
{
	char text[200] = "";
	int64_t value;
	int fd;

	while (strlen(text) < strlen(stream))
		message_read(sock, text, sizeof(text));
	assert_string_equal(text, stream);
	assert_int_equal(scm_recv(sock, &value, &fd), -1);
}

/* Three clients join one after the other; given is what the first and the last of them get. */
static void streams_expect(struct server *s, const char *first, const char *last)
{
	struct client clients[3];

	for (int i = 0; i < 3; i++) {
		char joined[32];

		assert_connect(s, &clients[i], 1, .vectors = 0);
		snprintf(joined, sizeof(joined), "ID %d joined", i);
		assert_true(server_log_wait(s, joined, PATIENCE));
	}
	stream_expect(clients[2].sock, last);
	stream_expect(clients[0].sock, first);
	client_close(&clients[1]);
	stream_expect(clients[2].sock, "1");
	stream_expect(clients[0].sock, "1");
	clients_free(clients, 3);
}

static void stream_is_as_specified(void **state)
{
	struct server s = {0};

	(void)state;
	assert_start(&s, "-f", "memory", "-n", "2");
	streams_expect(&s, "0 0 -1m 0e 0e 1e 1e 2e 2e", "0 2 -1m 0e 0e 1e 1e 2e 2e");
	assert_stop(&s);
}

static void legacy_stream_is_as_specified(void **state)
{
	struct server s = {0};

	(void)state;
	assert_start(&s, "-f", "memory", "-n", "2", "-L");
	streams_expect(&s, "0 -1m 0e 0e 1e 1e 2e 2e", "2 -1m 0e 0e 1e 1e 2e 2e");
	assert_stop(&s);
}

static void legacy_stream_without_memory(void **state)
{
	struct server s = {0};

	(void)state;
	assert_start(&s, "-m", "0", "-n", "1", "-L");
	streams_expect(&s, "0 0e 1e 2e", "2 0e 1e 2e");
	assert_stop(&s);
}

/* Without vectors there is nothing to say of others: neither joins nor leaves. */
static void stream_without_vectors(void **state)
{
	struct server s = {0};
	struct client first, more[5], last;

	(void)state;
	assert_start(&s, "-f", "memory", "-n", "0");
	assert_connect(&s, &first, 1, .vectors = 0);
	assert_drive(&first, 1, client_greeted, NULL);
	assert_connect(&s, more, 5, .vectors = 0);
	assert_drive(more, 5, client_greeted, NULL);
	clients_free(more, 5);
	assert_true(server_log_wait(&s, "ID 5 left", PATIENCE));
	assert_connect(&s, &last, 1, .vectors = 0);
	assert_drive(&last, 1, client_greeted, NULL);
	/* The first comes first in every round: had there been a word for it, it would be here. */
	assert_int_equal(client_step(&first), 0);
	assert_int_equal(first.messages, 3);
	assert_int_equal(last.messages, 3);
	client_free(&first);
	client_free(&last);
	assert_stop(&s);
}

/* How often all vectors of all clients were rung since the last look. */
static uint64_t bells_count(const struct client *clients, size_t n)
{
	uint64_t rung = 0;

	for (size_t i = 0; i < n; i++)
		for (int v = 0; v < clients[i].options.vectors; v++)
			rung += client_rung(&clients[i], v);
	return rung;
}

/* Each rings each vector of each other, and that one bell rings, no other. */
static void bells_check(const struct client *clients, size_t n)
{
	assert_int_equal(bells_count(clients, n), 0);
	for (size_t from = 0; from < n; from++)
		for (size_t to = 0; to < n; to++)
			for (int v = 0; v < clients[to].options.vectors; v++) {
				assert_true(client_ring(&clients[from], clients[to].id, v));
				assert_int_equal(client_rung(&clients[to], v), 1);
				assert_int_equal(bells_count(clients, n), 0);
			}
}

/* With clients that knew each other from the greeting, from a join, and after others have left. */
static void every_eventfd_rings_its_bell(void **state)
{
	struct server s = {0};
	struct client clients[6];

	(void)state;
	assert_start(&s, "-f", "memory", "-n", "16");
	assert_connect(&s, clients, 4, .vectors = 16, .keep = true);
	assert_mesh(clients, 4);
	bells_check(clients, 4);
	client_free(&clients[0]);
	client_free(&clients[2]);
	clients[0] = clients[1];
	clients[1] = clients[3];
	assert_mesh(clients, 2);
	assert_connect(&s, clients + 2, 4, .vectors = 16, .keep = true);
	assert_mesh(clients, 6);
	bells_check(clients, 6);
	clients_free(clients, 6);
	assert_stop(&s);
}

/* As many vectors as there can be, of which a greeting holds more than a socket does. */
static void all_2048_vectors_ring(void **state)
{
	struct server s = {0};
	struct client clients[3];

	(void)state;
	if (descriptors_allow() < 3 * 3 * 2048 + 100)
		skip_because("the limit of descriptors is too low");
	assert_start(&s, "-f", "memory", "-n", "2048");
	assert_connect(&s, clients, 2, .vectors = 2048, .keep = true);
	assert_mesh(clients, 2);
	assert_connect(&s, &clients[2], 1, .vectors = 2048, .keep = true);
	assert_mesh(clients, 3);
	for (int v = 0; v < 2048; v++) {
		assert_true(client_ring(&clients[2], clients[0].id, v));
		assert_int_equal(client_rung(&clients[0], v), 1);
		assert_true(client_ring(&clients[0], clients[2].id, v));
		assert_int_equal(client_rung(&clients[2], v), 1);
	}
	assert_int_equal(bells_count(clients, 3), 0);
	clients_free(clients, 3);
	assert_stop(&s);
}

/* A bell keeps what was rung, whoever comes and goes: the server reads none (hazard 9). */
static void bells_are_the_clients_own(void **state)
{
	struct server s = {0};
	struct client pair[2], other;
	int own;

	(void)state;
	assert_start(&s, "-f", "memory");
	assert_connect(&s, pair, 2, .vectors = 1, .keep = true);
	assert_mesh(pair, 2);
	own = client_peer(&pair[1], pair[1].id)->fds[0];
	/* QEMU does this, and it holds for all who have the eventfd. */
	assert_int_equal(fcntl(own, F_SETFL, fcntl(own, F_GETFL) & ~O_NONBLOCK), 0);
	for (int i = 0; i < 3; i++) {
		assert_true(client_ring(&pair[0], pair[1].id, 0));
		assert_connect(&s, &other, 1, .vectors = 1);
		assert_drive(&other, 1, client_knows, &(size_t){2});
		client_free(&other);
	}
	client_free(&pair[0]);
	assert_drive(&pair[1], 1, client_knows, &(size_t){0});
	assert_int_equal(client_rung(&pair[1], 0), 3);
	client_free(&pair[1]);
	assert_stop(&s);
}

/* The object, as the clients see it, is what stands at the path, and of the size asked for. */
static void memory_check(struct server *s, const char *path, off_t size, bool legacy)
{
	struct client clients[3];
	struct stat st;
	char *maps[3];

	assert_connect(s, clients, 3, .vectors = 1, .keep = true, .legacy = legacy);
	assert_mesh(clients, 3);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, size);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(clients[i].memory_dev, st.st_dev);
		assert_int_equal(clients[i].memory_ino, st.st_ino);
		assert_int_equal(clients[i].memory_size, size);
		maps[i] = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED,
			       clients[i].memory, 0);
		assert_ptr_not_equal(maps[i], MAP_FAILED);
	}
	for (int i = 0; i < 3; i++) {
		maps[i][0] = (char)('a' + i);
		maps[i][size - 1] = (char)('A' + i);
		for (int j = 0; j < 3; j++) {
			assert_int_equal(maps[j][0], 'a' + i);
			assert_int_equal(maps[j][size - 1], 'A' + i);
		}
	}
	for (int i = 0; i < 3; i++)
		munmap(maps[i], (size_t)size);
	clients_free(clients, 3);
}

static void file_is_shared_by_all(void **state)
{
	struct server s = {0};
	char path[128];

	(void)state;
	assert_start(&s, "-f", "memory", "-m", "4");
	snprintf(path, sizeof(path), "%s/memory", s.folder);
	memory_check(&s, path, 4 << 20, false);
	assert_stop(&s);
}

static void shm_object_is_shared_by_all(void **state)
{
	struct server s = {0};
	char name[32], path[64];

	(void)state;
	snprintf(name, sizeof(name), "tm-test-%d", getpid());
	snprintf(path, sizeof(path), "/dev/shm/%s", name);
	assert_start(&s, "-s", name);
	memory_check(&s, path, 1 << 20, false);
	assert_stop(&s);
	assert_int_equal(shm_unlink(name), 0);
}

/* The original devices map any number of pages. */
static void legacy_memory_has_any_size(void **state)
{
	struct server s = {0};
	char path[128];

	(void)state;
	assert_start(&s, "-f", "memory", "-m", "12K", "-L");
	snprintf(path, sizeof(path), "%s/memory", s.folder);
	memory_check(&s, path, 12 << 10, true);
	assert_stop(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		counted_test(stream_is_as_specified),
		counted_test(legacy_stream_is_as_specified),
		counted_test(legacy_stream_without_memory),
		counted_test(stream_without_vectors),
		counted_test(every_eventfd_rings_its_bell),
		counted_test(all_2048_vectors_ring),
		counted_test(bells_are_the_clients_own),
		counted_test(file_is_shared_by_all),
		counted_test(shm_object_is_shared_by_all),
		counted_test(legacy_memory_has_any_size),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
