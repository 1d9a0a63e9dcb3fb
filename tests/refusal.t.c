/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A refusal must make every device give up, and none of them looks at the same: what follows parses
 * as the devices do. One that does not give up before the stream ends would spin for ever (hazard
 * 3).
 */
#define _GNU_SOURCE
#include "send_scm.h"
#include "tests/lib/testing.h"

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define SIZE (1 << 20) /* of the memory, as the command line of an older QEMU has it */

/* What a device is in the middle of; each takes a message and says whether it gives up over that.
 */
struct device {
	int messages; /* so far, this one included */
	int64_t value;
	off_t size; /* of the file behind the descriptor; -1: none came */
};

/* QEMU 2.6 and later, which read one by one: the first is the version. */
static bool modern_gives_up(const struct device *d)
{
	return d->messages == 1 && d->value != 0;
}

/* QEMU up to 2.4, which take any -1 with a descriptor for the memory, and want it large enough. */
static bool classic_gives_up(const struct device *d)
{
	return d->value == -1 && d->size >= 0 && d->size < SIZE;
}

/* ivshmem-flat, which skips the version, takes any ID, and wants a memory of its own size. */
static bool flat_gives_up(const struct device *d)
{
	return d->messages == 3 && (d->value != -1 || d->size != SIZE);
}

static void refusal_read(struct server *s, bool (*gives_up)(const struct device *d))
{
	struct client c;
	struct device d = {0};
	struct stat st;
	bool gone = false;
	int fd;

	assert_connect(s, &c, 1, .vectors = 1);
	while (poll(&(struct pollfd){.fd = c.sock, .events = POLLIN}, 1, PATIENCE * 1000) == 1 &&
	       scm_recv(c.sock, &d.value, &fd) == 1) {
		d.messages++;
		assert_true(fd < 0 || fstat(fd, &st) == 0);
		d.size = fd < 0 ? -1 : st.st_size;
		if (fd >= 0)
			close(fd);
		gone = gone || gives_up(&d);
	}
	assert_true(gone);
	assert_int_equal(d.messages, 3);
	client_free(&c);
}

static void every_device_gives_up(void **state)
{
	const char *const streams[][6] = {{"-f", "memory"}, {"-f", "memory", "-L"}};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct server s = {0};
		char path[128];

		assert_that(server_start(&s, streams[i]), "%s", s.error);
		snprintf(path, sizeof(path), "%s/memory", s.folder);
		/* Nobody is served with a memory that has another size than that of the start. */
		assert_int_equal(truncate(path, 4 * SIZE), 0);
		refusal_read(&s, modern_gives_up);
		refusal_read(&s, classic_gives_up);
		refusal_read(&s, flat_gives_up);
		assert_true(server_logged(&s, "was 1M and has been resized to 4M"));
		assert_true(server_logged(&s, "truncate -s 1048576"));
		assert_int_equal(truncate(path, SIZE), 0);
		assert_stop(&s);
	}
}

/* Most devices have gone before the last message is sent, which is nothing to complain of. */
static void who_has_gone_is_not_told(void **state)
{
	struct server s = {0};
	struct client c;
	char path[128];

	(void)state;
	assert_start(&s, "-f", "memory");
	snprintf(path, sizeof(path), "%s/memory", s.folder);
	assert_int_equal(truncate(path, 4 * SIZE), 0);
	server_signal(&s, SIGSTOP);
	assert_connect(&s, &c, 1, .vectors = 1);
	assert_int_equal(shutdown(c.sock, SHUT_RD), 0);
	server_signal(&s, SIGCONT);
	refusal_read(&s, modern_gives_up); /* who comes later */
	assert_false(server_logged(&s, "cannot tell a client"));
	client_free(&c);
	assert_stop(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		counted_test(every_device_gives_up),
		counted_test(who_has_gone_is_not_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
