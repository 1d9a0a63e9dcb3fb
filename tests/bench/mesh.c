/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * All the clients of a case, in one process and one thread: it reads messages and closes their
 * descriptors as fast as it can, and counts. What the messages say is for the tests to check.
 */
#define _GNU_SOURCE
#include "bench.h"

#include "send_scm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* Messages that one client reads before the others have their turn. */
#define TURN 64

/* So long nothing comes: then whatever is missing is lost. */
#define QUIET_MS 2000

struct member {
	int sock;        /* -1: not connected, or the server closed the connection */
	size_t messages; /* received */
	int64_t id;
	unsigned int own; /* of its own vectors received */
	double asked;     /* when it connected */
	double joined;    /* when it had its last own vector; 0: not yet */
};

struct mesh {
	const struct bench_case *what;
	const char *socket;
	int epoll;
	size_t connected; /* members so far */
	size_t received;  /* messages */
	double heard;     /* when the last one came */
	struct member *members;
};

/* What a join brings: the greeting of the one, and its vectors to the others that are there. */
static size_t join_expected(const struct bench_case *c, size_t others)
{
	return GREETING + (others + 1) * c->vectors + others * c->vectors;
}

size_t mesh_expected(const struct bench_case *c)
{
	if (c->how == CHURN)
		return CHURN_STEPS * (join_expected(c, c->peers) + c->peers);
	return (size_t)c->peers * (GREETING + (size_t)c->peers * c->vectors);
}

/* Connects the next member. Returns 1; 0 where the server's backlog is full; -1 with errno. */
static int member_connect(struct mesh *m, struct member *p)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = p};

	strcpy(address.sun_path, m->socket);
	*p = (struct member){.asked = clock_seconds(CLOCK_MONOTONIC), .id = -1};
	p->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (p->sock < 0)
		return -1;
	if (connect(p->sock, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int full = errno == EAGAIN;

		close(p->sock);
		p->sock = -1;
		return full ? 0 : -1;
	}
	return epoll_ctl(m->epoll, EPOLL_CTL_ADD, p->sock, &event) < 0 ? -1 : 1;
}

static void member_close(struct member *p)
{
	if (p->sock >= 0)
		close(p->sock);
	p->sock = -1;
}

/* Counts one message. */
static void member_count(struct mesh *m, struct member *p, int64_t value, bool descriptor)
{
	m->received++;
	if (++p->messages == 2)
		p->id = value;
	if (p->messages > GREETING && descriptor && value == p->id)
		p->own++;
	if (!p->joined && p->messages >= GREETING && p->own == m->what->vectors)
		p->joined = clock_seconds(CLOCK_MONOTONIC);
}

/* Reads what has come for one member. */
static void member_read(struct mesh *m, struct member *p)
{
	for (int turn = 0; turn < TURN; turn++) {
		int64_t value;
		int fd, n = scm_recv(p->sock, &value, &fd);

		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			member_close(p);
			return;
		}
		if (fd >= 0)
			close(fd);
		member_count(m, p, value, fd >= 0);
	}
}

/* Reads what has come for anybody, after waiting for it. Returns false if nothing came. */
static bool mesh_read(struct mesh *m, int wait_ms)
{
	struct epoll_event events[256];
	int n = epoll_wait(m->epoll, events, sizeof(events) / sizeof(events[0]), wait_ms);

	for (int i = 0; i < n; i++)
		member_read(m, events[i].data.ptr);
	if (n > 0)
		m->heard = clock_seconds(CLOCK_MONOTONIC);
	return n != 0;
}

/* Reads until so many messages have come in all, or no more do. Returns whether they have. */
static bool mesh_read_until(struct mesh *m, size_t messages)
{
	while (m->received < messages)
		if (!mesh_read(m, QUIET_MS))
			return false;
	return true;
}

/* Connects n members more, as fast as the server lets them. Returns false with errno. */
static bool mesh_connect(struct mesh *m, size_t n)
{
	while (n > 0) {
		int connected = member_connect(m, &m->members[m->connected]);

		if (connected < 0)
			return false;
		if (connected == 0)
			mesh_read(m, 1);
		m->connected += (size_t)connected;
		n -= (size_t)connected;
	}
	return true;
}

/* One joins after the other, until all are there or messages are lost. Returns false with errno. */
static bool mesh_join_in_turn(struct mesh *m)
{
	size_t expected = 0;

	for (size_t i = 0; i < m->what->peers; i++) {
		expected += join_expected(m->what, i);
		if (!mesh_connect(m, 1))
			return false;
		if (!mesh_read_until(m, expected))
			break;
	}
	return true;
}

/* One joins and leaves, again and again, until messages are lost. *joins gets how long it took. */
static bool mesh_churn(struct mesh *m, double *joins, size_t *joined)
{
	size_t expected = m->received;

	for (int step = 0; step < CHURN_STEPS; step++) {
		struct member *p = &m->members[m->connected];

		expected += join_expected(m->what, m->what->peers);
		if (!mesh_connect(m, 1))
			return false;
		m->connected--;
		if (!mesh_read_until(m, expected))
			break;
		joins[(*joined)++] = p->joined - p->asked;
		member_close(p);
		expected += m->what->peers;
		if (!mesh_read_until(m, expected))
			break;
	}
	return true;
}

/* How long the joins took of those that have joined. */
static size_t mesh_joins(const struct mesh *m, double *joins)
{
	size_t n = 0;

	for (size_t i = 0; i < m->connected; i++)
		if (m->members[i].joined)
			joins[n++] = m->members[i].joined - m->members[i].asked;
	return n;
}

static int seconds_compare(const void *a, const void *b)
{
	double first = *(const double *)a, second = *(const double *)b;

	return (first > second) - (first < second);
}

/* Plays the case. joins has room for one for each join. Returns false with errno. */
static bool mesh_play(struct mesh *m, struct bench_program *p, struct bench_result *r,
		      double *joins)
{
	const struct bench_case *c = m->what;
	size_t before = 0, joined = 0, expected = mesh_expected(c);
	double cpu, wall;

	if (c->how == CHURN) {
		before = (size_t)c->peers * (GREETING + (size_t)c->peers * c->vectors);
		if (!mesh_connect(m, c->peers))
			return false;
		mesh_read_until(m, before);
		before = m->received;
		program_cpu_idle(p);
	}
	cpu = program_cpu(p);
	wall = clock_seconds(CLOCK_MONOTONIC);
	if (c->how == CHURN     ? !mesh_churn(m, joins, &joined)
	    : c->how == IN_TURN ? !mesh_join_in_turn(m)
				: !mesh_connect(m, c->peers))
		return false;
	if (c->how == AT_ONCE)
		mesh_read_until(m, expected);
	if (c->how != CHURN)
		joined = mesh_joins(m, joins);
	r->wall = m->heard - wall;
	r->messages = m->received - before;
	r->lost = r->messages < expected ? expected - r->messages : 0;
	r->cpu = program_cpu_idle(p) - cpu;
	r->peak = program_peak(p);
	qsort(joins, joined, sizeof(*joins), seconds_compare);
	if (joined > 0) {
		r->median = 1e3 * joins[joined / 2];
		r->p99 = 1e3 * joins[(joined * 99 - 1) / 100];
	}
	return true;
}

bool mesh_run(const struct bench_case *c, struct bench_program *p, struct bench_result *r)
{
	struct mesh m = {.what = c, .socket = p->socket};
	double *joins = calloc(c->peers + CHURN_STEPS, sizeof(*joins));
	bool played;

	m.members = calloc(c->peers + 1, sizeof(*m.members));
	m.epoll = epoll_create1(EPOLL_CLOEXEC);
	played = m.members && joins && m.epoll >= 0 && mesh_play(&m, p, r, joins);
	if (!played)
		fprintf(stderr, "bench: cannot run the clients: %s\n", strerror(errno));
	for (size_t i = 0; m.members && i <= c->peers; i++)
		if (m.members[i].sock > 0)
			close(m.members[i].sock);
	if (m.epoll >= 0)
		close(m.epoll);
	free(m.members);
	free(joins);
	return played;
}
