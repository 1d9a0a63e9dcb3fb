/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Messages (send_scm.h): every result of scm_send and scm_recv. */
#define _GNU_SOURCE
#include "send_scm.h"
#include "tests/lib/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/*
 * Sockets and descriptors
 */

/* A connected pair: messages go into the first, which holds few of them, the second reads. */
static void pair_open(int pair[2], int send_buffer)
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair),
			 0);
	assert_int_equal(
		setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof(send_buffer)), 0);
}

static void pair_close(int pair[2])
{
	close(pair[0]);
	close(pair[1]);
}

/* An eventfd that holds a number, by which it is known again after its journey. */
static int tagged_open(uint64_t tag)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, &tag, sizeof(tag)), sizeof(tag));
	return fd;
}

/* The number that it holds; closes it. */
static uint64_t tagged_close(int fd)
{
	uint64_t tag = 0;

	assert_int_equal(read(fd, &tag, sizeof(tag)), sizeof(tag));
	close(fd);
	return tag;
}

/* Receives one message that must be there, and have this value and no descriptor. */
static void value_arrives(int sock, int64_t value)
{
	int64_t got;
	int fd;

	assert_int_equal(scm_recv(sock, &got, &fd), 1);
	assert_int_equal(got, value);
	assert_int_equal(fd, -1);
}

static void nothing_arrives(int sock)
{
	int64_t got;
	int fd;

	assert_int_equal(scm_recv(sock, &got, &fd), -1);
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(fd, -1);
}

/* Sends raw bytes with n descriptors of /dev/null, as scm_send never would. */
static void raw_send(int sock, size_t bytes, int n)
{
	int64_t value = 77;
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(8 * sizeof(int))];
	} control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct iovec iov = {.iov_base = &value, .iov_len = bytes};
	struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	assert_in_range(n, 0, 8);
	for (int i = 0; i < n; i++)
		memcpy(CMSG_DATA(&control.header) + (size_t)i * sizeof(int), &null, sizeof(int));
	if (n > 0) {
		control.header.cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
		header.msg_control = &control;
		header.msg_controllen = CMSG_SPACE((size_t)n * sizeof(int));
	}
	assert_int_equal(sendmsg(sock, &header, MSG_NOSIGNAL), bytes);
	close(null);
}

/*
 * Sending
 */

static struct mmsghdr headers[SCM_BATCH]; /* of the batch that is sent */

/* Messages without descriptors, whose values count up. */
static const struct scm_msg *counting(int64_t from)
{
	static struct scm_msg messages[SCM_BATCH];

	for (int i = 0; i < SCM_BATCH; i++)
		messages[i] = (struct scm_msg){.value = from + i, .fd = -1};
	return messages;
}

static void send_takes_any_number(void **state)
{
	int pair[2];

	(void)state;
	pair_open(pair, 400000);
	for (int n = 0; n <= SCM_BATCH; n++) {
		assert_int_equal(scm_send(pair[0], headers, counting(n), (size_t)n), n);
		for (int64_t i = 0; i < n; i++)
			value_arrives(pair[1], n + i);
		nothing_arrives(pair[1]);
	}
	pair_close(pair);
}

/* A short count, then the reason; what was not taken is not there, and goes out later. */
static void send_stops_where_the_socket_is_full(void **state)
{
	int pair[2], taken;

	(void)state;
	memset(headers, 0, sizeof(headers));
	pair_open(pair, 0);
	taken = scm_send(pair[0], headers, counting(0), SCM_BATCH);
	assert_in_range(taken, 1, SCM_BATCH - 1);
	for (int i = 0; i < SCM_BATCH; i++) /* as a process that died here would have left it */
		assert_int_equal(headers[i].msg_len, i < taken ? sizeof(int64_t) : 0);
	assert_int_equal(scm_send(pair[0], headers, counting(taken), 1), -1);
	assert_int_equal(errno, EAGAIN);
	for (int i = 0; i < taken; i++)
		value_arrives(pair[1], i);
	nothing_arrives(pair[1]);
	assert_int_equal(scm_send(pair[0], headers, counting(taken), 1), 1);
	value_arrives(pair[1], taken);
	pair_close(pair);
}

static volatile sig_atomic_t pipe_signals;

static void pipe_signal_count(int signal)
{
	(void)signal;
	pipe_signals++;
}

static void send_to_nobody_raises_no_signal(void **state)
{
	int pair[2], fd = tagged_open(1);

	(void)state;
	signal(SIGPIPE, pipe_signal_count);
	pair_open(pair, 8000);
	close(pair[1]);
	assert_int_equal(scm_send(pair[0], headers, &(struct scm_msg){5, fd}, 1), -1);
	assert_int_equal(errno, EPIPE);
	assert_int_equal(pipe_signals, 0);
	signal(SIGPIPE, SIG_DFL);
	close(pair[0]);
	close(fd);
}

/* Each message arrives with its own descriptor, and those that were sent stay open. */
static void descriptors_are_borrowed(void **state)
{
	struct scm_msg messages[3] = {{1, tagged_open(11)}, {2, -1}, {3, tagged_open(13)}};
	int64_t value;
	int pair[2], got;

	(void)state;
	pair_open(pair, 8000);
	assert_int_equal(scm_send(pair[0], headers, messages, 3), 3);
	assert_int_equal(scm_recv(pair[1], &value, &got), 1);
	assert_int_equal(tagged_close(got), 11);
	value_arrives(pair[1], 2);
	assert_int_equal(scm_recv(pair[1], &value, &got), 1);
	assert_int_equal(value, 3);
	assert_int_equal(tagged_close(got), 13);
	for (int i = 0; i < 3; i += 2) {
		assert_int_equal(fcntl(messages[i].fd, F_GETFD), FD_CLOEXEC);
		close(messages[i].fd);
	}
	pair_close(pair);
}

/* Checks in a child, which cannot use cmocka's: a failed one ends it and shows its line. */
#define child_check(condition)                                                  \
	do {                                                                    \
		if (!(condition)) {                                             \
			fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
			_exit(1);                                               \
		}                                                               \
	} while (0)

/*
 * In a child without privileges: more descriptors in flight than it may have open starve every
 * socket, the empty ones too, until somebody reads.
 */
static void starve(void)
{
	struct rlimit limit = {40, 40};
	int slow[2], fast[2], fd = eventfd(0, 0), got, sent = 0, n;
	int64_t value;

	child_check(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	if (geteuid() == 0) {
		uid_t user = 20000 + (uid_t)getpid() % 40000;

		child_check(setgroups(0, NULL) == 0 && setgid(user) == 0 && setuid(user) == 0);
	}
	child_check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, slow) == 0);
	child_check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fast) == 0);
	while ((n = scm_send(slow[0], headers, &(struct scm_msg){sent, fd}, 1)) == 1)
		sent++;
	child_check(n == -1 && errno == ETOOMANYREFS && sent > 20 && sent < 100);
	/* The message without a descriptor goes out, the one with it does not. */
	child_check(scm_send(fast[0], headers, (struct scm_msg[]){{7, -1}, {8, fd}}, 2) == 1);
	child_check(scm_send(fast[0], headers, &(struct scm_msg){8, fd}, 1) == -1 &&
		    errno == ETOOMANYREFS);
	for (int i = 0; i < 20; i++) {
		child_check(scm_recv(slow[1], &value, &got) == 1);
		child_check(value == i && got >= 0 && close(got) == 0);
	}
	child_check(scm_send(fast[0], headers, &(struct scm_msg){8, fd}, 1) == 1);
	child_check(scm_recv(fast[1], &value, &got) == 1 && value == 7 && got == -1);
	child_check(scm_recv(fast[1], &value, &got) == 1 && value == 8 && got >= 0);
	_exit(0);
}

static void send_starves_without_privilege(void **state)
{
	pid_t child = fork();
	int status;

	(void)state;
	if (child == 0)
		starve();
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
}

/*
 * Receiving
 */

static void recv_tells_silence_from_end(void **state)
{
	int64_t value;
	int pair[2], fd = 99;

	(void)state;
	pair_open(pair, 8000);
	nothing_arrives(pair[1]);
	close(pair[0]);
	assert_int_equal(scm_recv(pair[1], &value, &fd), 0);
	assert_int_equal(fd, -1);
	close(pair[1]);
}

static void recv_gives_closed_on_exec(void **state)
{
	int64_t value;
	int pair[2], fd;

	(void)state;
	pair_open(pair, 8000);
	raw_send(pair[0], 8, 1);
	raw_send(pair[0], 8, 0);
	assert_int_equal(scm_recv(pair[1], &value, &fd), 1);
	assert_int_equal(value, 77);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	close(fd);
	value_arrives(pair[1], 77);
	pair_close(pair);
}

static void recv_rejects_end_within_message(void **state)
{
	(void)state;
	for (int descriptors = 0; descriptors < 2; descriptors++) {
		int64_t value;
		int pair[2], fd;

		pair_open(pair, 8000);
		raw_send(pair[0], 3, descriptors);
		close(pair[0]);
		assert_int_equal(scm_recv(pair[1], &value, &fd), -1);
		assert_int_equal(errno, EPROTO);
		assert_int_equal(fd, -1);
		close(pair[1]);
	}
}

/* However many descriptors come, and however they are cut up: none stays open. */
static void recv_rejects_several_descriptors(void **state)
{
	(void)state;
	for (int descriptors = 2; descriptors <= 8; descriptors++) {
		int64_t value;
		int pair[2], fd;

		pair_open(pair, 8000);
		raw_send(pair[0], 8, descriptors);
		raw_send(pair[0], 5, 1);
		raw_send(pair[0], 3, 1);
		raw_send(pair[0], 5, descriptors);
		raw_send(pair[0], 3, 0);
		for (int i = 0; i < 3; i++) {
			assert_int_equal(scm_recv(pair[1], &value, &fd), -1);
			assert_int_equal(errno, EPROTO);
			assert_int_equal(fd, -1);
		}
		/* The next message is read from its start. */
		raw_send(pair[0], 8, 0);
		value_arrives(pair[1], 77);
		pair_close(pair);
	}
}

/* An eventfd for which there is no room must not look like word of a leave. */
static void recv_rejects_lost_descriptor(void **state)
{
	struct rlimit limit, none;
	int64_t value;
	int pair[2], fd;

	(void)state;
	pair_open(pair, 8000);
	raw_send(pair[0], 8, 1);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	none = (struct rlimit){.rlim_cur = 0, .rlim_max = limit.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_int_equal(scm_recv(pair[1], &value, &fd), -1);
	assert_int_equal(errno, EPROTO);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	pair_close(pair);
}

static void *rest_send(void *sock)
{
	nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
	raw_send(*(int *)sock, 3, 0);
	return NULL;
}

static void recv_waits_for_rest_of_message(void **state)
{
	pthread_t sender;
	int64_t value;
	int pair[2], fd;

	(void)state;
	pair_open(pair, 8000);
	raw_send(pair[0], 5, 1);
	assert_int_equal(pthread_create(&sender, NULL, rest_send, &pair[0]), 0);
	assert_int_equal(scm_recv(pair[1], &value, &fd), 1);
	assert_true(fd >= 0);
	close(fd);
	pthread_join(sender, NULL);
	pair_close(pair);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		counted_test(send_takes_any_number),
		counted_test(send_stops_where_the_socket_is_full),
		counted_test(send_to_nobody_raises_no_signal),
		counted_test(descriptors_are_borrowed),
		counted_test(send_starves_without_privilege),
		counted_test(recv_tells_silence_from_end),
		counted_test(recv_gives_closed_on_exec),
		counted_test(recv_rejects_end_within_message),
		counted_test(recv_rejects_several_descriptors),
		counted_test(recv_rejects_lost_descriptor),
		counted_test(recv_waits_for_rest_of_message),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
