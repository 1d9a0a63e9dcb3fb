/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "client/mesh.h"
#include "client/clock.h"
#include "client/connect.h"
#include "client/device.h"
#include "send_scm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MEMORY  (-1) /* the value beside the descriptor of the shared memory */
#define REFUSED (-1) /* a version: the server turns us away */

/* Nothing ends a greeting but the last of our own vectors, and how many those are the server never
 * says. If no other peer shows it, none comes behind them, and nobody gave -n, a server that is
 * silent has told all. */
#define SILENCE_MS 300
/* After its first message a server without memory and vectors says nothing at all; any other that
 * is silent there so long is not well. */
#define LONE_MS  3000
#define QUIET_MS 10000 /* when a greeting that goes on no more is given up */

/*
 * Doorbells. Whether an eventfd blocks is up to all who have it open, so it is asked first
 * ("DOORBELLS").
 */

/* One whose counter is full has been rung, and not heard. */
static bool bell_ring(int fd)
{
	uint64_t once = 1;

	if (poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, 0) == 0)
		return true;
	return write(fd, &once, sizeof(once)) == sizeof(once) || errno == EAGAIN;
}

uint64_t bell_count(const struct mesh *m, int vector)
{
	int fd = mesh_own(m)->fds[vector];
	uint64_t count;

	if (poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) != 1 ||
	    read(fd, &count, sizeof(count)) != sizeof(count))
		return 0;
	return count;
}

size_t bells_poll(const struct mesh *m, struct pollfd *polls, bool on)
{
	const struct peer *own = mesh_own(m);

	for (int v = 0; v < own->vectors; v++)
		polls[v] = (struct pollfd){.fd = on ? own->fds[v] : -1, .events = POLLIN};
	return (size_t)own->vectors;
}

/*
 * Peers
 */

const struct peer *mesh_own(const struct mesh *m)
{
	return &m->peers[m->id];
}

/* Whether all doorbells of a peer are known: before, and after it has left, it is not there. */
static bool peer_whole(const struct mesh *m, int id)
{
	const struct peer *p = &m->peers[id];

	return p->vectors > 0 && (id == m->id || (m->vectors >= 0 && p->vectors >= m->vectors));
}

int peer_next(const struct mesh *m, int id)
{
	while (++id < m->ids)
		if (id != m->id && peer_whole(m, id))
			return id;
	return -1;
}

/* Rings one doorbell of a peer, or ALL. Returns false with errno where it cannot. */
static bool peer_ring(const struct peer *p, int vector)
{
	for (int v = 0; v < p->vectors; v++)
		if ((vector == ALL || vector == v) && !bell_ring(p->fds[v]))
			return false;
	return true;
}

bool mesh_ring(const struct mesh *m, int id, int vector, char *why)
{
	const struct peer *p;

	if (m->device)
		return id == ALL
			       ? wrong(why,
				       "a virtual machine cannot know who is there: ring nodes one by one, ID VECTOR or ID all")
			       : device_ring(m->device, id, vector, why);
	if (id == ALL) {
		for (int peer = -1; (peer = peer_next(m, peer)) >= 0;)
			peer_ring(&m->peers[peer], ALL);
		return true;
	}
	p = &m->peers[id];
	if (!peer_whole(m, id))
		return wrong(why, "there is no node %d", id);
	if (vector >= p->vectors)
		return wrong(why, "node %d has no vector %d: it has %d, numbered from 0", id,
			     vector, p->vectors);
	return peer_ring(p, vector) || wrong(why, "cannot ring node %d: %s", id, strerror(errno));
}

static void peer_free(struct peer *p)
{
	for (int i = 0; i < p->vectors; i++)
		close(p->fds[i]);
	free(p->fds);
	p->fds = NULL;
	p->vectors = 0;
}

/*
 * News
 */

static void news_note(struct mesh *m, int id)
{
	if (id < m->news)
		m->news = id;
	if (id >= m->news_end)
		m->news_end = id + 1;
}

enum news news_next(struct mesh *m, int *id)
{
	for (; m->news < m->news_end; m->news++) {
		struct peer *p = &m->peers[m->news];

		*id = m->news;
		if (p->left) {
			p->told = p->left = false;
			return NEWS_LEAVE;
		}
		if (!p->told && m->news != m->id && peer_whole(m, m->news)) {
			p->told = true;
			return NEWS_JOIN;
		}
	}
	m->news = IDS;
	m->news_end = 0;
	return NEWS_NONE;
}

void news_skip(struct mesh *m)
{
	int id;

	while (news_next(m, &id) != NEWS_NONE)
		;
}

/*
 * The stream
 */

static void mesh_disconnect(struct mesh *m)
{
	if (m->sock >= 0)
		close(m->sock);
	m->sock = -1;
}

/* Takes the descriptor of the memory. Returns false with m->error, and has not taken it. */
static bool memory_take(struct mesh *m, int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return wrong(m->error, "what the server sent as memory is no file");
	m->memory = fd;
	m->size = st.st_size;
	return true;
}

/*
 * The eventfds of the group, our own as well, are complete when those of another come; not when it
 * leaves: then those that were not sent yet never come, and of what it had nothing can be learned
 * ("RULES FOR CLIENTS", 3). Returns false with m->error where they are fewer than -n says.
 */
static bool group_end(struct mesh *m)
{
	int vectors;

	if (m->group < 0)
		return true;
	vectors = m->peers[m->group].vectors;
	if (m->vectors < 0) {
		m->vectors = vectors;
		news_note(m, m->group);
	}
	return vectors >= m->given_vectors ||
	       wrong(m->error, "the server gives each node %d vector%s, not %d, as -n says",
		     vectors, vectors == 1 ? "" : "s", m->given_vectors);
}

static bool id_valid(int64_t value)
{
	return value >= 0 && value < IDS;
}

/* Takes the next eventfd of a peer. Returns false with m->error, and has not taken it. */
static bool join_take(struct mesh *m, int64_t value, int fd)
{
	struct peer *p;
	int id, *fds;

	if (!id_valid(value))
		return wrong(m->error,
			     "the server sent a descriptor of %" PRId64 ", which is no ID", value);
	id = (int)value;
	p = &m->peers[id];
	if (id != m->group && !group_end(m))
		return false;
	m->group = id;
	if (p->vectors == (m->given_vectors < 0 ? VECTORS_MAX : m->given_vectors))
		return wrong(m->error, "the server gives more than %d vector%s%s", p->vectors,
			     p->vectors == 1 ? "" : "s",
			     m->given_vectors < 0 ? "" : ", as -n says");
	fds = reallocarray(p->fds, (size_t)p->vectors + 1, sizeof(*fds));
	if (!fds)
		return wrong(m->error, "not enough memory for an eventfd");
	p->fds = fds;
	fds[p->vectors++] = fd;
	if (id >= m->ids)
		m->ids = id + 1;
	if (p->vectors > m->most)
		m->most = p->vectors;
	news_note(m, id);
	return true;
}

/* A peer that was not known, since it had no vectors, has nothing to leave with ("RULES FOR
 * CLIENTS", 4). Returns false with m->error. */
static bool leave_take(struct mesh *m, int64_t value)
{
	struct peer *p;

	if (!id_valid(value) || value == m->id)
		return wrong(m->error, "the server says that %" PRId64 " left, which cannot be",
			     value);
	p = &m->peers[value];
	p->left = p->told;
	peer_free(p);
	if (m->group == (int)value)
		m->group = -1;
	news_note(m, (int)value);
	return true;
}

/*
 * The first messages: version, ID and memory. The original stream has no version, and no memory
 * where the server has none; its second message tells it by its descriptor ("THE ORIGINAL STREAM").
 * A refusal comes as a version ("REFUSAL AND END"). Returns false with m->error, and has not taken
 * the descriptor.
 */
static bool head_take(struct mesh *m, int64_t value, int fd)
{
	bool id = fd < 0 && id_valid(value);

	switch (m->head) {
	case HEAD_FIRST:
		if (value == REFUSED)
			return wrong(m->error, "the server at %s refused us; its log says why",
				     m->path);
		if (!id)
			break;
		m->id = (int)value;
		m->head = HEAD_SECOND;
		return true;
	case HEAD_SECOND:
		if (fd >= 0) {
			m->head = HEAD_DONE;
			return value == MEMORY ? memory_take(m, fd) : join_take(m, value, fd);
		}
		if (m->id != 0)
			return wrong(
				m->error,
				"the server speaks version %d of the protocol, this client version 0",
				m->id);
		if (!id)
			break;
		m->id = (int)value;
		m->head = HEAD_MEMORY;
		return true;
	default:
		if (fd < 0 || value != MEMORY)
			break;
		m->head = HEAD_DONE;
		return memory_take(m, fd);
	}
	return wrong(m->error,
		     "%s is no ivshmem server: it began with %" PRId64 " with%s a descriptor",
		     m->path, value, fd < 0 ? "out" : "");
}

static bool message_take(struct mesh *m, int64_t value, int fd)
{
	if (m->verbose)
		complain("message %" PRId64 "%s", value, fd < 0 ? "" : " with a descriptor");
	if (m->head != HEAD_DONE)
		return head_take(m, value, fd);
	return fd < 0 ? leave_take(m, value) : join_take(m, value, fd);
}

bool message_read(struct mesh *m)
{
	int64_t value;
	int fd, n;

	if (m->sock < 0)
		return false;
	if (m->device) {
		device_look(m->device);
		return false;
	}
	n = scm_recv(m->sock, &value, &fd);
	if (n < 0 && errno == EAGAIN)
		return false;
	if (n > 0) {
		if (message_take(m, value, fd))
			return true;
		if (fd >= 0)
			close(fd);
	} else if (n == 0 || errno == ECONNRESET) {
		m->gone = true;
		wrong(m->error, "the server closed the connection");
	} else if (errno == EPROTO) {
		wrong(m->error, "a message is broken, or there was no descriptor left for it: "
				"raise 'ulimit -n'");
	} else {
		wrong(m->error, "cannot read from the server: %s", strerror(errno));
	}
	mesh_disconnect(m);
	return false;
}

bool messages_read(struct mesh *m)
{
	bool connected = m->sock >= 0;

	for (int turn = 0; turn < TURN && message_read(m); turn++)
		;
	return !connected || m->sock >= 0;
}

/*
 * Joining
 */

/* Whether the greeting is complete beyond doubt. */
static bool greeting_certain(const struct mesh *m)
{
	return m->head == HEAD_DONE && m->vectors >= 0 && mesh_own(m)->vectors >= m->vectors;
}

/* Whether a server that has been silent so long will say no more. */
static bool greeting_over(const struct mesh *m, int64_t silence)
{
	if (m->head == HEAD_SECOND && m->given_vectors <= 0)
		return silence >= LONE_MS;
	return m->head == HEAD_DONE && m->vectors < 0 && mesh_own(m)->vectors >= m->most &&
	       silence >= SILENCE_MS;
}

/* Reads the greeting. Returns false with m->error. */
static bool greeting_read(struct mesh *m, int64_t patience)
{
	int64_t heard = clock_now();

	while (!greeting_certain(m)) {
		struct pollfd poll = {.fd = m->sock, .events = POLLIN};
		/* Taken before the look: if we are stopped behind it, that is no silence. */
		int64_t silence = clock_now() - heard;

		if (message_read(m)) {
			heard = clock_now();
			continue;
		}
		if (m->sock < 0)
			return false;
		if (greeting_over(m, silence))
			break;
		if (silence >= patience)
			return wrong(
				m->error,
				"the handshake with %s is not complete, and the server is silent%s",
				m->path, m->given_vectors < 0 ? "" : ": is -n right?");
		polls_wait(&poll, 1, SILENCE_MS / 3);
	}
	m->head = HEAD_DONE;
	if (m->id >= m->ids)
		m->ids = m->id + 1;
	return true;
}

/* Takes what the device has, which is all there at once. Returns false with m->error. */
static bool device_join(struct mesh *m)
{
	struct device *d = m->device;

	if (!device_open(d, m->error))
		return false;
	m->sock = d->timer;
	m->id = d->id;
	m->ids = d->id + 1;
	m->memory = d->memory;
	m->size = d->size;
	m->peers[d->id] = (struct peer){.vectors = d->vectors, .fds = d->bells};
	return true;
}

bool mesh_join(struct mesh *m, int64_t patience)
{
	if (m->device)
		return device_join(m);
	if (patience > QUIET_MS)
		patience = QUIET_MS;
	if (patience < LONE_MS)
		patience = LONE_MS;
	m->memory = -1;
	m->head = HEAD_FIRST;
	m->vectors = m->given_vectors;
	m->most = 0;
	m->group = -1;
	m->gone = true;
	m->sock = server_connect(m->path, NULL, patience, m->error);
	if (m->sock >= 0) {
		m->gone = false;
		if (greeting_read(m, patience))
			return true;
	}
	mesh_free(m);
	return false;
}

void mesh_free(struct mesh *m)
{
	mesh_disconnect(m);
	for (int id = 0; id < m->ids; id++) {
		peer_free(&m->peers[id]);
		m->peers[id] = (struct peer){0};
	}
	if (m->memory >= 0)
		close(m->memory);
	m->memory = -1;
	m->size = 0;
	m->ids = 0;
}
