/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where peers stand, and what they are told: random histories of joins, leaves and short sends, in
 * the rooms ledger and mesh, against a model that keeps a list of messages for each peer. Real
 * sockets and eventfds, and clients that read now and then; several peers leave between two sends.
 *
 * SEED repeats a run, HISTORIES says how many there are.
 */
#define _GNU_SOURCE
#include "send_scm.h"
#include "server/descriptor.h"
#include "server/ledger.h"
#include "server/log.h"
#include "server/mesh.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

#include <setjmp.h>
#include <sys/random.h>

#include <cmocka.h>

#define PEERS 24 /* at once */
#define STEPS 160

/* One message that is to arrive: an eventfd that holds tag, or, with tag 0, no descriptor. */
struct line {
	int64_t value;
	uint64_t tag;
};

struct lines {
	struct line *list;
	size_t n, room;
};

static void line_add(struct lines *lines, int64_t value, uint64_t tag)
{
	if (lines->n == lines->room) {
		lines->room = lines->room ? 2 * lines->room : 64;
		lines->list = realloc(lines->list, lines->room * sizeof(*lines->list));
		assert_non_null(lines->list);
	}
	lines->list[lines->n++] = (struct line){value, tag};
}

/* Takes the first n lines away. */
static void lines_drop(struct lines *lines, size_t n)
{
	assert_true(n <= lines->n);
	lines->n -= n;
	if (lines->n > 0)
		memmove(lines->list, lines->list + n, lines->n * sizeof(*lines->list));
}

/* Moves the first lines to the end of others, n at most. Returns how many there were. */
static size_t lines_move(struct lines *from, struct lines *to, size_t n)
{
	if (n > from->n)
		n = from->n;
	for (size_t i = 0; i < n; i++)
		line_add(to, from->list[i].value, from->list[i].tag);
	lines_drop(from, n);
	return n;
}

/* A client, and what the model says of it. */
struct member {
	int sock;   /* the server's end; -1: nobody */
	int client; /* the other end */
	int id;
	uint64_t tags; /* those of its eventfds begin here */
	/* What is not sent: it goes out in this order. What is sent, and not read. */
	struct lines head, leaves, joins, sent;
	/* By ID: how many eventfds of that peer it has been sent, and whether it was told to have
	 * left. */
	uint16_t known[PEERS + STEPS];
	bool gone[PEERS + STEPS];
	bool retired[PEERS + STEPS]; /* since it joined, whether it was told or not */
};

struct history {
	struct options opt;
	struct ledger *ledger;
	struct supervisor supervisor; /* there is none */
	struct mesh mesh;
	struct member members[PEERS];
	uint64_t random, tags;
	uint64_t buffer; /* of a socket, in bytes */
};

/* SplitMix64 (Steele, Lea, Flood 2014): a number below limit. */
static uint64_t history_random(struct history *h, uint64_t limit)
{
	uint64_t z = h->random += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return (z ^ (z >> 31)) % limit;
}

static size_t member_unsent(const struct member *m)
{
	return m->head.n + m->leaves.n + m->joins.n;
}

static void member_introduce(struct history *h, struct member *to, const struct member *m)
{
	for (unsigned int v = 0; v < h->ledger->vectors; v++)
		line_add(&to->joins, m->id, m->tags + v);
}

/* Whether an ID is somebody's, or was since anybody joined who is there. */
static bool id_taken(const struct history *h, int id)
{
	for (const struct member *m = h->members; m < h->members + PEERS; m++)
		if (m->sock >= 0 && (m->id == id || m->retired[id]))
			return true;
	return false;
}

static void history_join(struct history *h, struct member *m)
{
	struct mesh *mesh = &h->mesh;
	int pair[2], size = (int)h->buffer;
	struct peer *p;
	int id = 0;

	while (id_taken(h, id))
		id++;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair),
			 0);
	assert_int_equal(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), 0);
	assert_in_range(pair[0], 0, FD_SETSIZE - 1);
	p = peer_at(h->ledger, pair[0]);
	assert_true(eventfds_open(p, h->ledger->vectors));
	*m = (struct member){.sock = pair[0], .client = pair[1], .id = id_pick(mesh)};
	assert_int_equal(m->id, id);
	assert_true(end_watch(mesh, m->sock));
	m->tags = h->tags + 1;
	for (unsigned int v = 0; v < h->ledger->vectors; v++)
		assert_int_equal(eventfd_write(p->eventfds[v], ++h->tags), 0);
	assert_in_range(m->id, 0, PEERS + STEPS - 1);
	peer_join(mesh, m->sock, m->id, false);

	if (!h->opt.legacy)
		line_add(&m->head, 0, 0);
	line_add(&m->head, m->id, 0);
	for (struct member *other = h->members; other < h->members + PEERS; other++)
		if (other->sock >= 0 && other != m)
			member_introduce(h, other, m);
	for (size_t i = 0; i < mesh->count; i++) /* the order in which they joined */
		for (struct member *other = h->members; other < h->members + PEERS; other++)
			if (other->sock == mesh->order[i])
				member_introduce(h, m, other);
}

static void member_free(struct member *m)
{
	close(m->client);
	free(m->head.list);
	free(m->leaves.list);
	free(m->joins.list);
	free(m->sent.list);
	*m = (struct member){.sock = -1};
}

/* The rule: unsent eventfds of the leaver never arrive; if any was sent, so is word of its leave.
 */
static void history_leave(struct history *h, struct member *leaver)
{
	int id = leaver->id;

	member_free(leaver);
	peers_read(&h->mesh);
	for (struct member *m = h->members; m < h->members + PEERS; m++) {
		size_t kept = 0;

		if (m->sock < 0)
			continue;
		for (size_t i = 0; i < m->joins.n; i++)
			if (m->joins.list[i].value != id)
				m->joins.list[kept++] = m->joins.list[i];
		m->joins.n = kept;
		m->retired[id] = true;
		if (m->known[id])
			line_add(&m->leaves, id, 0);
		m->known[id] = 0;
	}
}

/* What the server has sent, the model sends as well. */
static void member_advance(struct history *h, struct member *m)
{
	size_t n = member_unsent(m) - peer_owed(&h->mesh, peer_at(h->ledger, m->sock)), from;

	n -= lines_move(&m->head, &m->sent, n);
	from = m->sent.n;
	n -= lines_move(&m->leaves, &m->sent, n);
	for (; from < m->sent.n; from++) {
		assert_false(m->gone[m->sent.list[from].value]); /* hazard 1 */
		m->gone[m->sent.list[from].value] = true;
	}
	n -= lines_move(&m->joins, &m->sent, n);
	for (; from < m->sent.n; from++) {
		assert_false(m->gone[m->sent.list[from].value]); /* hazard 1 */
		m->known[m->sent.list[from].value]++;
	}
	assert_int_equal(n, 0);
}

static bool member_greeted(const struct history *h, const struct member *m)
{
	return h->ledger->vectors ? m->known[m->id] == h->ledger->vectors : m->head.n == 0;
}

/*
 * The server sends a share, and nobody is owed more or less than the model says. Greetings come
 * first: a younger one goes on only where the older ones cannot; and where one does, or clients
 * have come, there are no news before those have waited for as long as they may.
 */
static void history_send(struct history *h, bool clients)
{
	struct mesh *mesh = &h->mesh;
	fd_set writable = peers_waiting(mesh);
	bool busy = clients, went_on = false, more = false, news = false, early;
	uint64_t oldest = UINT64_MAX, youngest = 0;
	int64_t wait, since = mesh->news_ms;

	select(FD_SETSIZE, NULL, &writable, NULL, &(struct timeval){0});
	peers_wake(mesh, &writable);
	wait = peers_send(mesh, clients);
	early = since == 0 || now_ms() < since + NEWS_WAIT_MS;
	for (struct member *m = h->members; m < h->members + PEERS; m++) {
		bool greeted = m->sock >= 0 && member_greeted(h, m);
		size_t unsent = member_unsent(m);
		uint64_t serial;

		if (m->sock < 0)
			continue;
		member_advance(h, m);
		serial = peer_at(h->ledger, m->sock)->serial;
		if (member_unsent(m) < unsent) {
			went_on = went_on || !greeted;
			news = news || greeted;
			if (!greeted && serial > youngest)
				youngest = serial;
		}
		if (!member_greeted(h, m) && !FD_ISSET(m->sock, &mesh->blocked) && serial < oldest)
			oldest = serial;
		more = more || (!member_greeted(h, m) && !FD_ISSET(m->sock, &mesh->idle));
		/* Who is owed something waits for his socket, or for the next call. */
		assert_true(member_unsent(m) == 0 || FD_ISSET(m->sock, &mesh->blocked) ||
			    wait >= 0);
	}
	assert_true(youngest <= oldest);
	busy = busy || (went_on && more);
	assert_false(busy && news && early);
}

/* A client takes one message, if one has been sent that it has not read. */
static void member_read(struct member *m)
{
	const struct line *line = m->sent.list;
	int64_t value;
	uint64_t tag = 0;
	int fd;

	if (m->sent.n == 0) {
		assert_int_equal(scm_recv(m->client, &value, &fd), -1);
		assert_int_equal(errno, EAGAIN);
		return;
	}
	assert_int_equal(scm_recv(m->client, &value, &fd), 1);
	assert_int_equal(value, line->value);
	assert_int_equal(fd >= 0, line->tag > 0);
	if (fd >= 0) {
		assert_int_equal(eventfd_read(fd, &tag), 0);
		assert_int_equal(tag, line->tag);
		assert_int_equal(eventfd_write(fd, tag), 0);
		close(fd);
	}
	lines_drop(&m->sent, 1);
}

/* Everything is sent and read: each must know exactly those who are there. */
static void history_settle(struct history *h)
{
	bool more;

	do {
		history_send(h, history_random(h, 4) == 0);
		more = false;
		for (struct member *m = h->members; m < h->members + PEERS; m++) {
			if (m->sock < 0)
				continue;
			more = more || m->sent.n > 0 || member_unsent(m) > 0;
			while (m->sent.n > 0)
				member_read(m);
		}
	} while (more);
	for (struct member *m = h->members; m < h->members + PEERS; m++) {
		size_t known = 0;

		if (m->sock < 0)
			continue;
		assert_int_equal(member_unsent(m), 0);
		member_read(m); /* nothing */
		for (struct member *other = h->members; other < h->members + PEERS; other++)
			if (other->sock >= 0)
				assert_int_equal(m->known[other->id], h->ledger->vectors);
		for (size_t id = 0; id < PEERS + STEPS; id++)
			known += m->known[id];
		assert_int_equal(known, h->mesh.count * h->ledger->vectors);
	}
}

/* What a new image would make of the ledger is what this one knows. */
static void history_restart(struct history *h)
{
	struct mesh *mesh = &h->mesh, before = *mesh;

	mesh->count = 0;
	FD_ZERO(&mesh->present);
	peers_restore(mesh);
	assert_int_equal(mesh->count, before.count);
	assert_memory_equal(mesh->order, before.order, mesh->count * sizeof(mesh->order[0]));
	assert_memory_equal(&mesh->present, &before.present, sizeof(mesh->present));
}

static void history_open(struct history *h, unsigned int vectors, bool legacy)
{
	h->opt = (struct options){.vectors = vectors, .legacy = legacy, .object = ""};
	h->ledger = ledger_create(&h->opt);
	assert_non_null(h->ledger);
	h->supervisor = (struct supervisor){.ledger = h->ledger, .sock = -1};
	h->mesh.opt = &h->opt;
	h->mesh.ledger = h->ledger;
	h->mesh.supervisor = &h->supervisor;
	assert_true(peers_watch(&h->mesh));
	/* Somewhere, and often so that the ring's end is passed. */
	h->ledger->departures = history_random(h, 2) ? IDS - history_random(h, STEPS) : 0;
	for (struct member *m = h->members; m < h->members + PEERS; m++)
		m->sock = -1;
}

static void history_discard(struct history *h)
{
	close(h->ledger->ends);
	close(h->ledger->self);
	munmap(h->ledger, LEDGER_HEAD + FD_SETSIZE * (size_t)peer_length(h->opt.vectors));
}

static void history_run(uint64_t seed, unsigned int vectors)
{
	static struct history h;
	uint64_t sends, reads;

	h = (struct history){.random = seed};
	history_open(&h, vectors, history_random(&h, 2));
	/* How eager the sender and the readers are changes from one history to the next. */
	h.buffer = history_random(&h, 20000);
	sends = 1 + history_random(&h, 12);
	reads = history_random(&h, 12);
	for (int step = 0; step < STEPS; step++) {
		uint64_t choice = history_random(&h, 13 + sends + reads);
		struct member *m = &h.members[history_random(&h, PEERS)];

		if (choice == 0)
			history_restart(&h);
		else if (choice > 12 + sends)
			for (uint64_t n = history_random(&h, 24); m->sock >= 0 && n > 0; n--)
				member_read(m);
		else if (choice > 12)
			history_send(&h, history_random(&h, 4) == 0);
		else if (m->sock >= 0)
			history_leave(&h, m);
		else
			history_join(&h, m);
	}
	history_settle(&h);
	for (struct member *m = h.members; m < h.members + PEERS; m++)
		if (m->sock >= 0)
			history_leave(&h, m);
	assert_int_equal(h.mesh.count, 0);
	history_discard(&h);
}

/*
 * Somebody joins and leaves for ever, and is always in his greeting: the others hear of it, though
 * not at once.
 */
static void coming_and_going_keeps_no_news(void **state)
{
	static struct history h;
	struct member *stays = &h.members[0], *comes = &h.members[1];
	int64_t start, since, now;

	(void)state;
	h = (struct history){.buffer = 20000};
	history_open(&h, 1, false);
	history_join(&h, stays);
	history_settle(&h);
	start = now_ms();
	while (stays->sent.n == 0) {
		if (comes->sock >= 0)
			history_leave(&h, comes);
		history_join(&h, comes);
		since = h.mesh.news_ms;
		now = now_ms();
		history_send(&h, true);
		/* However long the machine has let it wait: what is late goes out now. */
		assert_true(stays->sent.n > 0 || !since || now < since + NEWS_WAIT_MS);
		assert_true(stays->sent.n > 0 || h.mesh.news_ms > 0);
		usleep(2000);
	}
	assert_true(now_ms() >= start + NEWS_WAIT_MS);
	history_settle(&h);
	history_leave(&h, comes);
	history_leave(&h, stays);
	history_discard(&h);
}

/* Who does not read his greeting keeps neither the next one waiting, nor news. */
static void unread_greetings_keep_nobody_waiting(void **state)
{
	static struct history h;
	struct member *last = &h.members[PEERS - 1];

	(void)state;
	h = (struct history){.buffer = 0};
	history_open(&h, 64, false);
	for (struct member *m = h.members; m <= last; m++)
		history_join(&h, m);
	for (int64_t end = now_ms() + 120000; last->known[last->id] < 64 && now_ms() < end;) {
		history_send(&h, false);
		while (last->sent.n > 0)
			member_read(last);
	}
	assert_true(member_greeted(&h, last));
	history_settle(&h);
	for (struct member *m = h.members; m <= last; m++)
		history_leave(&h, m);
	history_discard(&h);
}

static uint64_t environment_number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : otherwise;
}

static void histories_run(unsigned int vectors, uint64_t count)
{
	uint64_t seed;

	assert_int_equal(getrandom(&seed, sizeof(seed), 0), sizeof(seed));
	seed = environment_number("SEED", seed);
	count = environment_number("HISTORIES", count);
	printf("# SEED=%" PRIu64 " HISTORIES=%" PRIu64 ", %u vectors\n", seed, count, vectors);
	fflush(stdout);
	for (uint64_t i = 0; i < count; i++)
		history_run(seed + i, vectors);
}

static void histories_without_vectors(void **state)
{
	(void)state;
	histories_run(0, 200);
}

static void histories_with_one_vector(void **state)
{
	(void)state;
	histories_run(1, 400);
}

static void histories_with_three_vectors(void **state)
{
	(void)state;
	histories_run(3, 400);
}

static void histories_with_64_vectors(void **state)
{
	(void)state;
	histories_run(64, 100);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(coming_and_going_keeps_no_news),
		cmocka_unit_test(unread_greetings_keep_nobody_waiting),
		cmocka_unit_test(histories_without_vectors),
		cmocka_unit_test(histories_with_one_vector),
		cmocka_unit_test(histories_with_three_vectors),
		cmocka_unit_test(histories_with_64_vectors),
	};

	log_mute(true);
	descriptor_limit_raise();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
