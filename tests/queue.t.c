/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The queue of messages (send_scm.h): random histories of joins, leaves, flushes and reads against
 * a flat list that says what must arrive, and every result of scm_flush and scm_recv by itself.
 *
 * SEED repeats a run, HISTORIES says how many there are.
 */
#define _GNU_SOURCE
#include "send_scm.h"
#include "tests/lib/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/*
 * Memory that can run out: stands in for the C library's reallocarray, which the queue uses.
 */

static bool memory_is_out;

void *reallocarray(void *old, size_t n, size_t size)
{
	if (memory_is_out) {
		errno = ENOMEM;
		return NULL;
	}
	return realloc(old, n * size);
}

/*
 * Sockets and descriptors
 */

/* A connected pair: the queue sends into the first, which holds few messages, the second reads. */
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

/* Sends raw bytes with n descriptors of /dev/null, as the queue never would. */
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
 * Random histories
 */

#define SLOTS       24
#define VECTORS_MAX 64
#define STEPS       160

/* One message that is to arrive: an eventfd that holds tag, or, with tag 0, word of a leave. */
struct line {
	int64_t id;
	uint64_t tag;
};

struct history {
	uint64_t random;
	int pair[2];
	struct scm_queue queue;
	size_t vectors;
	bool reuse; /* IDs: else each peer has one that no other ever had */
	/* The world: peers that are there. */
	struct {
		bool here;
		int64_t id;
		int fds[VECTORS_MAX];
	} slots[SLOTS];
	int64_t next_id;
	uint64_t next_tag;
	/* What is to arrive, in order. The last queue.len of these are not sent yet. */
	struct line *lines;
	size_t count, room, received;
	/* The receiver: eventfds that it holds of each ID. */
	size_t view[SLOTS + STEPS];
};

/* SplitMix64 (Steele, Lea, Flood 2014): a number below limit. */
static uint64_t history_random(struct history *h, uint64_t limit)
{
	uint64_t z = h->random += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return (z ^ (z >> 31)) % limit;
}

static void line_add(struct history *h, int64_t id, uint64_t tag)
{
	if (h->count == h->room) {
		h->room = h->room ? 2 * h->room : 256;
		h->lines = realloc(h->lines, h->room * sizeof(*h->lines));
		assert_non_null(h->lines);
	}
	h->lines[h->count++] = (struct line){id, tag};
}

static void history_join(struct history *h, size_t slot)
{
	int64_t id = h->reuse ? (int64_t)slot : h->next_id++;

	h->slots[slot].here = true;
	h->slots[slot].id = id;
	for (size_t i = 0; i < h->vectors; i++) {
		int fd = tagged_open(++h->next_tag);

		h->slots[slot].fds[i] = fd;
		assert_int_equal(scm_push(&h->queue, id, fd), 0);
		line_add(h, id, h->next_tag);
	}
}

/* The rule: unsent eventfds of the leaver never arrive; if any was sent, so is word of its leave.
 */
static void history_leave(struct history *h, size_t slot)
{
	int64_t id = h->slots[slot].id;
	size_t sent = h->count - h->queue.len, kept = sent, unsent;

	for (size_t i = sent; i < h->count; i++)
		if (h->lines[i].id != id || h->lines[i].tag == 0)
			h->lines[kept++] = h->lines[i];
	unsent = h->count - kept;
	h->count = kept;
	if (unsent < h->vectors)
		line_add(h, id, 0);

	assert_int_equal(scm_cut(&h->queue, id, h->vectors), 0);
	for (size_t i = 0; i < h->vectors; i++)
		close(h->slots[slot].fds[i]);
	h->slots[slot].here = false;

	assert_int_equal(h->queue.len, h->count - sent);
	for (size_t i = 0; i < h->queue.len; i++) {
		assert_int_equal(scm_at(&h->queue, i)->value, h->lines[sent + i].id);
		assert_int_equal(scm_at(&h->queue, i)->fd < 0, h->lines[sent + i].tag == 0);
	}
}

static void history_flush(struct history *h)
{
	switch (scm_flush(&h->queue, h->pair[0])) {
	case SCM_EMPTY:
		assert_int_equal(h->queue.len, 0);
		break;
	case SCM_BLOCKED:
		assert_int_not_equal(h->queue.len, 0);
		break;
	default:
		fail_msg("flush: %s", strerror(errno));
	}
}

/* The receiver takes one message, if one has been sent that it has not read. */
static void history_read(struct history *h)
{
	const struct line *line;
	int64_t value;
	int fd;

	if (h->received == h->count - h->queue.len) {
		nothing_arrives(h->pair[1]);
		return;
	}
	line = &h->lines[h->received++];
	assert_int_equal(scm_recv(h->pair[1], &value, &fd), 1);
	assert_int_equal(value, line->id);
	if (line->tag) {
		assert_true(fd >= 0);
		assert_int_equal(tagged_close(fd), line->tag);
		h->view[value]++;
	} else {
		assert_int_equal(fd, -1);
		assert_int_not_equal(h->view[value], 0); /* hazard 2 */
		h->view[value] = 0;
	}
}

/* No more than every live peer's vectors and one leave of each ID that the receiver knows. */
static void history_bound(const struct history *h)
{
	size_t bound = 0;

	for (size_t i = 0; i < SLOTS; i++)
		bound += h->slots[i].here * h->vectors;
	for (size_t id = 0; id < SLOTS + STEPS; id++)
		bound += h->view[id] > 0;
	/* What is in the socket may have made more IDs known. */
	bound += h->count - h->queue.len - h->received;
	assert_in_range(h->queue.len, 0, bound);
}

/* Everything is sent and read: the receiver must know exactly the peers that are there. */
static void history_settle(struct history *h)
{
	size_t there[sizeof(h->view) / sizeof(*h->view)] = {0};

	while (h->received < h->count) {
		history_flush(h);
		history_read(h);
	}
	assert_int_equal(h->queue.len, 0);
	nothing_arrives(h->pair[1]);
	for (size_t i = 0; i < SLOTS; i++)
		if (h->slots[i].here)
			there[h->slots[i].id] = h->vectors;
	assert_memory_equal(h->view, there, sizeof(there));
}

static void history_run(uint64_t seed, bool reuse)
{
	static const size_t vectors[] = {0, 1, 1, 2, 3, 16, VECTORS_MAX};
	struct history h = {.random = seed, .reuse = reuse};
	uint64_t flushes, reads;

	/* How eager the sender and the reader are changes from one history to the next. */
	h.vectors = vectors[history_random(&h, sizeof(vectors) / sizeof(*vectors))];
	pair_open(h.pair, (int)history_random(&h, 20000));
	flushes = 1 + history_random(&h, 12);
	reads = history_random(&h, 12);
	for (int step = 0; step < STEPS; step++) {
		uint64_t choice = history_random(&h, 12 + flushes + reads);
		size_t slot = history_random(&h, SLOTS);

		if (choice >= 12 + flushes) {
			for (uint64_t n = history_random(&h, 24); n > 0; n--)
				history_read(&h);
		} else if (choice >= 12) {
			history_flush(&h);
		} else if (h.slots[slot].here) {
			history_leave(&h, slot);
		} else {
			history_join(&h, slot);
		}
		history_bound(&h);
	}
	history_settle(&h);
	for (size_t i = 0; i < SLOTS; i++)
		if (h.slots[i].here)
			history_leave(&h, i);
	history_settle(&h);
	scm_free(&h.queue);
	free(h.lines);
	pair_close(h.pair);
}

static uint64_t environment_number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : otherwise;
}

static void histories_run(bool reuse)
{
	uint64_t seed, count = environment_number("HISTORIES", 1500);

	assert_int_equal(getrandom(&seed, sizeof(seed), 0), sizeof(seed));
	seed = environment_number("SEED", seed);
	printf("# SEED=%" PRIu64 " HISTORIES=%" PRIu64 "\n", seed, count);
	fflush(stdout);
	for (uint64_t i = 0; i < count; i++)
		history_run(seed + i, reuse);
}

static void histories_with_fresh_ids(void **state)
{
	(void)state;
	histories_run(false);
}

static void histories_with_reused_ids(void **state)
{
	(void)state;
	histories_run(true);
}

/*
 * The ring
 */

/* Reads whatever is there, which must be values that count up from *next. */
static void counting_read(int sock, int64_t *next)
{
	int64_t value;
	int fd;

	while (scm_recv(sock, &value, &fd) == 1)
		assert_int_equal(value, (*next)++);
	assert_int_equal(errno, EAGAIN);
}

/* Values count up, pushed faster than they are read: the ring grows, often while it is wrapped. */
static void order_survives_wrap_and_growth(void **state)
{
	struct scm_queue q = {0};
	int64_t pushed = 0, read = 0;
	int pair[2], wraps = 0, growths = 0;

	(void)state;
	pair_open(pair, 0);
	for (int round = 0; round < 4000; round++) {
		size_t cap = q.cap;
		bool wrapped = q.head + q.len > q.cap;

		assert_int_equal(scm_push(&q, pushed++, -1), 0);
		wraps += q.head + q.len > q.cap;
		growths += wrapped && q.cap > cap;
		if (round % 9 == 0) {
			scm_flush(&q, pair[0]);
			counting_read(pair[1], &read);
		}
	}
	while (read < pushed) {
		scm_flush(&q, pair[0]);
		counting_read(pair[1], &read);
	}
	assert_int_not_equal(wraps, 0);
	assert_int_not_equal(growths, 0);
	scm_free(&q);
	pair_close(pair);
}

static void ring_gives_memory_back(void **state)
{
	struct scm_queue q = {0};
	int64_t read = 0;
	int pair[2];

	(void)state;
	pair_open(pair, 200000);
	for (int64_t i = 0; i < 5000; i++)
		assert_int_equal(scm_push(&q, i, -1), 0);
	assert_in_range(q.cap, 5000, 8192);
	while (scm_flush(&q, pair[0]) == SCM_BLOCKED) {
		assert_in_range(q.cap, 5000, 8192);
		counting_read(pair[1], &read);
	}
	counting_read(pair[1], &read);
	assert_int_equal(read, 5000);
	assert_in_range(q.cap, 1, SCM_KEEP);

	for (int64_t i = 5000; i < 7000; i++)
		assert_int_equal(scm_push(&q, i, -1), 0);
	while (scm_flush(&q, pair[0]) == SCM_BLOCKED)
		counting_read(pair[1], &read);
	counting_read(pair[1], &read);
	assert_int_equal(read, 7000);
	scm_free(&q);
	pair_close(pair);
}

static void reserved_room_needs_no_memory(void **state)
{
	struct scm_queue q = {0};
	int64_t read = 0;
	int pair[2];

	(void)state;
	pair_open(pair, 200000);
	assert_int_equal(scm_push(&q, 0, -1), 0);
	assert_int_equal(scm_reserve(&q, 3000), 0);
	memory_is_out = true;
	for (int64_t i = 1; i <= 3000; i++)
		assert_int_equal(scm_push(&q, i, -1), 0);
	/* Giving memory back needs some: then the ring stays large, and is as good. */
	while (scm_flush(&q, pair[0]) == SCM_BLOCKED)
		counting_read(pair[1], &read);
	for (int64_t i = 3001; i <= 6000; i++)
		assert_int_equal(scm_push(&q, i, -1), 0);
	while (scm_flush(&q, pair[0]) == SCM_BLOCKED)
		counting_read(pair[1], &read);
	counting_read(pair[1], &read);
	memory_is_out = false;
	assert_int_equal(read, 6001);
	scm_free(&q);
	pair_close(pair);
}

/* An emptied queue keeps room for SCM_KEEP messages: the server counts on it for leaves. */
static void emptied_queue_keeps_room(void **state)
{
	struct scm_queue q = {0};
	int64_t read = 0;
	int pair[2];

	(void)state;
	pair_open(pair, 200000);
	assert_int_equal(scm_reserve(&q, 4 * SCM_KEEP), 0);
	assert_int_equal(scm_push(&q, read, -1), 0);
	assert_int_equal(scm_flush(&q, pair[0]), SCM_EMPTY);
	memory_is_out = true;
	for (int i = 0; i < SCM_KEEP; i++)
		assert_int_equal(scm_push(&q, i, -1), 0);
	memory_is_out = false;
	scm_free(&q);
	pair_close(pair);
}

static void failure_leaves_queue_as_it_was(void **state)
{
	struct scm_queue q = {0}, before;

	(void)state;
	memory_is_out = true;
	assert_int_equal(scm_push(&q, 1, -1), -1);
	assert_int_equal(errno, ENOMEM);
	memory_is_out = false;
	assert_int_equal(q.len, 0);

	do
		assert_int_equal(scm_push(&q, (int64_t)q.len, -1), 0);
	while (q.len < q.cap);
	before = q;
	memory_is_out = true;
	assert_int_equal(scm_push(&q, 1, -1), -1);
	assert_int_equal(scm_reserve(&q, 1), -1);
	assert_int_equal(errno, ENOMEM);
	memory_is_out = false;
	assert_memory_equal(&q, &before, sizeof(q));
	for (size_t i = 0; i < q.len; i++)
		assert_int_equal(scm_at(&q, i)->value, i);
	scm_free(&q);
	assert_null(q.ring);
	assert_int_equal(q.cap, 0);
}

/*
 * What a flush ends with
 */

static void flush_of_nothing_is_empty(void **state)
{
	struct scm_queue q = {0};
	int pair[2];

	(void)state;
	pair_open(pair, 8000);
	assert_int_equal(scm_flush(&q, pair[0]), SCM_EMPTY);
	nothing_arrives(pair[1]);
	pair_close(pair);
}

/* Batches of 64: whatever the number, all arrive, and the flush says so. */
static void flush_sends_any_number(void **state)
{
	static const int64_t numbers[] = {1, 2, 63, 64, 65, 127, 128, 129, 200};
	struct scm_queue q = {0};
	int pair[2];

	(void)state;
	pair_open(pair, 400000);
	for (size_t n = 0; n < sizeof(numbers) / sizeof(*numbers); n++) {
		for (int64_t i = 0; i < numbers[n]; i++)
			assert_int_equal(scm_push(&q, i, -1), 0);
		assert_int_equal(scm_flush(&q, pair[0]), SCM_EMPTY);
		for (int64_t i = 0; i < numbers[n]; i++)
			value_arrives(pair[1], i);
		nothing_arrives(pair[1]);
	}
	scm_free(&q);
	pair_close(pair);
}

static void flush_blocks_and_goes_on(void **state)
{
	struct scm_queue q = {0};
	int64_t read = 0;
	size_t left;
	int pair[2];

	(void)state;
	pair_open(pair, 0);
	for (int64_t i = 0; i < 100; i++)
		assert_int_equal(scm_push(&q, i, -1), 0);
	assert_int_equal(scm_flush(&q, pair[0]), SCM_BLOCKED);
	left = q.len;
	assert_in_range(left, 1, 99);
	assert_int_equal(scm_flush(&q, pair[0]), SCM_BLOCKED);
	assert_int_equal(q.len, left);
	counting_read(pair[1], &read);
	assert_int_equal(read, 100 - (int64_t)left);
	while (scm_flush(&q, pair[0]) == SCM_BLOCKED)
		counting_read(pair[1], &read);
	counting_read(pair[1], &read);
	assert_int_equal(read, 100);
	scm_free(&q);
	pair_close(pair);
}

static volatile sig_atomic_t pipe_signals;

static void pipe_signal_count(int signal)
{
	(void)signal;
	pipe_signals++;
}

static void flush_to_nobody_is_dead(void **state)
{
	struct scm_queue q = {0};
	int pair[2], fd = tagged_open(1);

	(void)state;
	signal(SIGPIPE, pipe_signal_count);
	pair_open(pair, 8000);
	assert_int_equal(scm_push(&q, 5, fd), 0);
	close(pair[1]);
	assert_int_equal(scm_flush(&q, pair[0]), SCM_DEAD);
	assert_int_equal(errno, EPIPE);
	assert_int_equal(pipe_signals, 0);
	signal(SIGPIPE, SIG_DFL);
	scm_free(&q);
	close(pair[0]);
	close(fd);
}

/* The queue borrows descriptors: it closes none, sent or not. */
static void descriptors_are_borrowed(void **state)
{
	struct scm_queue q = {0};
	int64_t value;
	int pair[2], got, sent = tagged_open(11), cut = tagged_open(12), freed = tagged_open(13);

	(void)state;
	pair_open(pair, 8000);
	assert_int_equal(scm_push(&q, 1, sent), 0);
	assert_int_equal(scm_flush(&q, pair[0]), SCM_EMPTY);
	assert_int_equal(scm_push(&q, 2, cut), 0);
	assert_int_equal(scm_push(&q, 3, freed), 0);
	assert_int_equal(scm_cut(&q, 2, 1), 0);
	assert_int_equal(q.len, 1);
	scm_free(&q);
	assert_int_equal(scm_recv(pair[1], &value, &got), 1);
	assert_int_equal(tagged_close(got), 11);
	assert_int_equal(tagged_close(cut), 12);
	assert_int_equal(tagged_close(freed), 13);
	assert_int_equal(fcntl(sent, F_GETFD), FD_CLOEXEC);
	close(sent);
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
	struct scm_queue unread = {0}, other = {0};
	int slow[2], fast[2], fd = eventfd(0, 0), got;
	int64_t value;

	child_check(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	if (geteuid() == 0) {
		uid_t user = 20000 + (uid_t)getpid() % 40000;

		child_check(setgroups(0, NULL) == 0 && setgid(user) == 0 && setuid(user) == 0);
	}
	child_check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, slow) == 0);
	child_check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fast) == 0);
	for (int i = 0; i < 100; i++)
		child_check(scm_push(&unread, i, fd) == 0);
	child_check(scm_flush(&unread, slow[0]) != SCM_EMPTY);
	child_check(scm_flush(&unread, slow[0]) == SCM_STARVED);
	child_check(unread.len > 0 && unread.len < 100);
	child_check(scm_push(&other, 7, -1) == 0 && scm_push(&other, 8, fd) == 0);
	/* The message without a descriptor goes out, the one with it stays. */
	child_check(scm_flush(&other, fast[0]) == SCM_BLOCKED);
	child_check(scm_flush(&other, fast[0]) == SCM_STARVED);
	child_check(other.len == 1);
	for (int i = 0; i < 20; i++) {
		child_check(scm_recv(slow[1], &value, &got) == 1);
		child_check(value == i && got >= 0 && close(got) == 0);
	}
	child_check(scm_flush(&other, fast[0]) == SCM_EMPTY);
	child_check(scm_recv(fast[1], &value, &got) == 1 && value == 7 && got == -1);
	child_check(scm_recv(fast[1], &value, &got) == 1 && value == 8 && got >= 0);
	_exit(0);
}

static void flush_starves_without_privilege(void **state)
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
		counted_test(histories_with_fresh_ids),
		counted_test(histories_with_reused_ids),
		counted_test(order_survives_wrap_and_growth),
		counted_test(ring_gives_memory_back),
		counted_test(reserved_room_needs_no_memory),
		counted_test(emptied_queue_keeps_room),
		counted_test(failure_leaves_queue_as_it_was),
		counted_test(flush_of_nothing_is_empty),
		counted_test(flush_sends_any_number),
		counted_test(flush_blocks_and_goes_on),
		counted_test(flush_to_nobody_is_dead),
		counted_test(descriptors_are_borrowed),
		counted_test(flush_starves_without_privilege),
		counted_test(recv_tells_silence_from_end),
		counted_test(recv_gives_closed_on_exec),
		counted_test(recv_rejects_end_within_message),
		counted_test(recv_rejects_several_descriptors),
		counted_test(recv_rejects_lost_descriptor),
		counted_test(recv_waits_for_rest_of_message),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
