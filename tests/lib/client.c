/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "client.h"

#include "deadline.h"
#include "send_scm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Messages that one client reads before the next has its turn. */
#define TURN 64

static const char *const phase_names[] = {
	[CLIENT_VERSION] = "waiting for the version",
	[CLIENT_ID] = "waiting for its ID",
	[CLIENT_MEMORY] = "waiting for the memory",
	[CLIENT_PEERS] = "receiving eventfds of others",
	[CLIENT_OWN] = "receiving its own eventfds",
	[CLIENT_GREETED] = "greeted",
	[CLIENT_REFUSED] = "refused",
};

/* Notes what is wrong, with the client's ID before it. Returns false, for its caller to return. */
__attribute__((format(printf, 2, 3))) static bool wrong(struct client *c, const char *format, ...)
{
	va_list args;
	int n = snprintf(c->error, sizeof(c->error), "client %d: ", c->id);

	va_start(args, format);
	vsnprintf(c->error + n, sizeof(c->error) - (size_t)n, format, args);
	va_end(args);
	return false;
}

static void client_init(struct client *c, struct client_options options)
{
	*c = (struct client){.options = options, .sock = -1, .id = -1, .group = -1, .memory = -1};
	c->phase = options.legacy ? CLIENT_ID : CLIENT_VERSION;
}

bool client_connect(struct client *c, const char *path, struct client_options options)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int flags;

	client_init(c, options);
	if (strlen(path) >= sizeof(address.sun_path))
		return wrong(c, "the path of the socket is too long: %s", path);
	strcpy(address.sun_path, path);
	c->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->sock < 0)
		return wrong(c, "no socket: %s", strerror(errno));
	if (connect(c->sock, (struct sockaddr *)&address, sizeof(address)) < 0)
		return wrong(c, "cannot connect to %s: %s", path, strerror(errno));
	flags = fcntl(c->sock, F_GETFL);
	if (flags < 0 || fcntl(c->sock, F_SETFL, flags | O_NONBLOCK) < 0)
		return wrong(c, "cannot make the socket non-blocking: %s", strerror(errno));
	return true;
}

bool clients_connect(struct client *clients, size_t n, const char *path,
		     struct client_options options)
{
	bool connected = true;

	for (size_t i = 0; i < n; i++) {
		client_init(&clients[i], options);
		connected = connected && client_connect(&clients[i], path, options);
	}
	return connected;
}

const struct client_peer *client_peer(const struct client *c, int id)
{
	static const struct client_peer never;

	if (id < 0 || id >= CLIENT_IDS || !c->peers[id / CLIENT_PAGE])
		return &never;
	return &c->peers[id / CLIENT_PAGE][id % CLIENT_PAGE];
}

/* The place of an ID in the model, which grows for it. NULL with c->error: no memory. */
static struct client_peer *peer_place(struct client *c, int id)
{
	struct client_peer **page = &c->peers[id / CLIENT_PAGE];

	if (!*page)
		*page = calloc(CLIENT_PAGE, sizeof(**page));
	if (!*page) {
		wrong(c, "no memory for the model");
		return NULL;
	}
	return &(*page)[id % CLIENT_PAGE];
}

static void peer_close(struct client_peer *p)
{
	for (int i = 0; p->fds && i < p->vectors; i++)
		close(p->fds[i]);
	free(p->fds);
	p->fds = NULL;
}

/* Takes a descriptor that came as an eventfd: it is kept or closed. */
static bool eventfd_take(struct client *c, struct client_peer *p, int fd)
{
	char link[32], target[64];
	ssize_t n;
	int *fds;

	p->vectors++;
	if (!c->options.keep) {
		close(fd);
		return true;
	}
	fds = reallocarray(p->fds, (size_t)p->vectors, sizeof(*fds));
	if (!fds) {
		p->vectors--;
		close(fd);
		return wrong(c, "no memory for the model");
	}
	p->fds = fds;
	fds[p->vectors - 1] = fd;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, target, sizeof(target) - 1);
	target[n < 0 ? 0 : n] = '\0';
	return strcmp(target, "anon_inode:[eventfd]") == 0 ||
	       wrong(c, "what came as an eventfd is '%s'", target);
}

/* Takes the descriptor of the memory, if QEMU could map it (hazard 7). */
static bool memory_take(struct client *c, int fd)
{
	struct stat st;
	int flags = fcntl(fd, F_GETFL);
	bool examined = fstat(fd, &st) == 0 && flags >= 0;

	if (c->options.keep)
		c->memory = fd;
	else
		close(fd);
	if (!examined || !S_ISREG(st.st_mode))
		return wrong(c, "what came as memory is no file");
	if ((flags & O_ACCMODE) != O_RDWR)
		return wrong(c, "the memory cannot be written");
	if (st.st_size <= 0 || (!c->options.legacy && st.st_size & (st.st_size - 1)))
		return wrong(c, "a memory of %jd bytes: QEMU cannot map that",
			     (intmax_t)st.st_size);
	c->memory_dev = st.st_dev;
	c->memory_ino = st.st_ino;
	c->memory_size = st.st_size;
	return true;
}

/* How many eventfds make a peer whole, as far as is known. */
static int vectors_whole(const struct client *c)
{
	return c->options.vectors == CLIENT_VECTORS_ANY ? 1 : c->options.vectors;
}

/* What comes after the memory: without vectors there is nothing more to greet with. */
static enum client_phase phase_after_memory(const struct client *c)
{
	return c->options.vectors == 0 ? CLIENT_GREETED : CLIENT_PEERS;
}

/*
 * The first message of a refusal, or one after it: three of them, each -1 with a descriptor of size
 * 0, make every device exit (hazard 3).
 */
static bool refusal_apply(struct client *c, int64_t value, int fd)
{
	struct stat st = {.st_size = -1};

	if (fd >= 0 && fstat(fd, &st) < 0)
		st.st_size = -1;
	if (fd >= 0)
		close(fd);
	c->phase = CLIENT_REFUSED;
	if (fd < 0 && c->options.starved)
		st.st_size = 0;
	return (value == -1 && st.st_size == 0 && c->messages <= 3) ||
	       wrong(c, "message %zu of a refusal is %" PRId64 " with%s, %jd bytes", c->messages,
		     value, fd < 0 ? "out a descriptor" : " one", (intmax_t)st.st_size);
}

static bool version_apply(struct client *c, int64_t value)
{
	if (value != 0)
		return wrong(c, "version %" PRId64 " instead of 0", value);
	c->phase = CLIENT_ID;
	return true;
}

static bool id_apply(struct client *c, int64_t value)
{
	if (value < 0 || value >= CLIENT_IDS)
		return wrong(c, "%" PRId64 " instead of its own ID", value);
	c->id = (int)value;
	c->phase = c->options.memoryless ? phase_after_memory(c) : CLIENT_MEMORY;
	return true;
}

/* Whether eventfds are missing of the peer whose eventfds came last. */
static bool group_open(const struct client *c)
{
	return c->group >= 0 && client_peer(c, c->group)->vectors < vectors_whole(c);
}

/* An eventfd: the next of the group that is coming in, or the first of one that starts. */
static bool join_apply(struct client *c, int id, int fd)
{
	struct client_peer *p = peer_place(c, id);
	bool own = id == c->id;

	if (!p || c->options.vectors == 0) {
		close(fd);
		return p ? wrong(c, "an eventfd of %d, where nobody has vectors", id) : false;
	}
	if (id != c->group) {
		const char *why = group_open(c)           ? "before all of another peer had come"
				  : p->state == PEER_LEFT ? "which it saw leave (hazard 1)"
				  : p->vectors > 0        ? "after those of another peer"
							  : NULL;

		if (why) {
			close(fd);
			return wrong(c, "an eventfd of %d, %s", id, why);
		}
		c->group = id;
		c->here += !own;
		p->state = PEER_HERE;
	}
	if (c->options.vectors >= 0 && p->vectors == c->options.vectors) {
		close(fd);
		return wrong(c, "more than %d eventfds of %d (hazard 8)", p->vectors, id);
	}
	if (!eventfd_take(c, p, fd))
		return false;
	if (p->vectors == vectors_whole(c)) {
		c->whole += !own;
		if (own)
			c->phase = CLIENT_GREETED;
	} else if (own && c->phase == CLIENT_PEERS) {
		c->phase = CLIENT_OWN;
	}
	return true;
}

static bool leave_apply(struct client *c, int64_t value)
{
	int id = (int)value;
	struct client_peer *p;

	if (value < 0 || value >= CLIENT_IDS)
		return wrong(c, "%" PRId64 " without a descriptor is no ID", value);
	if (id == c->id)
		return wrong(c, "its own ID left");
	if (client_peer(c, id)->state == PEER_NEVER)
		return wrong(c, "%d left, of which it had no eventfd (hazard 2)", id);
	if (client_peer(c, id)->state == PEER_LEFT)
		return wrong(c, "%d left twice (hazard 1)", id);
	p = peer_place(c, id);
	c->whole -= p->vectors >= vectors_whole(c);
	c->here--;
	c->left++;
	if (id == c->group)
		c->group = -1;
	peer_close(p);
	*p = (struct client_peer){.state = PEER_LEFT};
	return true;
}

/* Checks one message and takes its descriptor, if there is one. */
static bool message_apply(struct client *c, int64_t value, int fd)
{
	bool wants_fd = c->phase == CLIENT_MEMORY;

	if (c->phase == CLIENT_REFUSED || (c->messages == 1 && value == -1))
		return refusal_apply(c, value, fd);
	switch (c->phase) {
	case CLIENT_VERSION:
	case CLIENT_ID:
	case CLIENT_MEMORY:
		if (wants_fd ? fd >= 0 && value == -1 : fd < 0)
			break;
		if (fd >= 0)
			close(fd);
		return wrong(c, "%" PRId64 " with%s a descriptor, while %s", value,
			     fd < 0 ? "out" : "", phase_names[c->phase]);
	case CLIENT_PEERS:
	case CLIENT_OWN:
	case CLIENT_GREETED:
		if (fd < 0)
			return leave_apply(c, value);
		if (value >= 0 && value < CLIENT_IDS)
			return join_apply(c, (int)value, fd);
		close(fd);
		return wrong(c, "a descriptor of %" PRId64 "%s", value,
			     value == -1 ? ": memory for the second time (hazard 6)" : "");
	case CLIENT_REFUSED: break;
	}
	if (c->phase == CLIENT_VERSION)
		return version_apply(c, value);
	if (c->phase == CLIENT_ID)
		return id_apply(c, value);
	c->phase = phase_after_memory(c);
	return memory_take(c, fd);
}

/* The server closed the connection: too early for QEMU before the memory has come. */
static bool end_apply(struct client *c)
{
	c->ended = true;
	if (c->phase == CLIENT_REFUSED && c->messages < 3)
		return wrong(c, "the stream ended in a refusal of %zu messages (hazard 3)",
			     c->messages);
	return (c->phase != CLIENT_VERSION && c->phase != CLIENT_ID && c->phase != CLIENT_MEMORY) ||
	       wrong(c, "the stream ended while it was %s (hazard 3)", phase_names[c->phase]);
}

int client_step(struct client *c)
{
	int64_t value;
	int fd, n;

	if (c->error[0] || c->ended)
		return -1;
	n = scm_recv(c->sock, &value, &fd);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n == 0 || (n < 0 && errno == ECONNRESET)) {
		end_apply(c);
		return -1;
	}
	if (n < 0) {
		wrong(c, "cannot read a message: %s", strerror(errno));
		return -1;
	}
	c->messages++;
	c->last = value;
	return message_apply(c, value, fd) ? 1 : -1;
}

/* Whether all n have got there. If somebody never will, that client's error says so. */
static bool clients_done(struct client *clients, size_t n, client_condition *done,
			 const void *argument)
{
	bool all = true;

	for (size_t i = 0; i < n; i++) {
		struct client *c = &clients[i];

		if (done(c, argument))
			continue;
		all = false;
		if (c->ended && !c->error[0])
			wrong(c, "the stream ended while it was %s, with %zu others there",
			      phase_names[c->phase], c->here);
	}
	return all;
}

/*
 * Waits until some of them can read, or for the deadline, and gives each its turn. Returns whether
 * anything came.
 */
static bool clients_read(struct client *clients, size_t n, struct pollfd *polls, int64_t deadline)
{
	int64_t wait = deadline - clock_ms();

	for (size_t i = 0; i < n; i++)
		polls[i] = (struct pollfd){.fd = clients[i].ended ? -1 : clients[i].sock,
					   .events = POLLIN};
	if (poll(polls, n, wait < 0 ? 0 : (int)wait) <= 0)
		return false;
	for (size_t i = 0; i < n; i++)
		for (int turn = 0; polls[i].revents && turn < TURN; turn++)
			if (client_step(&clients[i]) <= 0)
				break;
	return true;
}

bool clients_drive(struct client *clients, size_t n, client_condition *done, const void *argument,
		   int seconds)
{
	int64_t deadline = deadline_in(seconds);
	struct pollfd *polls = calloc(n, sizeof(*polls));
	bool reached = false, late = false;

	if (!polls)
		return n == 0 || wrong(&clients[0], "no memory to poll");
	while (!clients_error(clients, n)) {
		reached = clients_done(clients, n, done, argument);
		if (reached || late || clients_error(clients, n))
			break;
		if (clients_read(clients, n, polls, deadline))
			deadline = deadline_in(seconds);
		else
			late = clock_ms() >= deadline;
	}
	free(polls);
	for (size_t i = 0; i < n && late && !reached && !clients_error(clients, n); i++)
		if (!done(&clients[i], argument))
			wrong(&clients[i],
			      "silence for %d s while %s, with %zu others there, %zu whole",
			      seconds, phase_names[clients[i].phase], clients[i].here,
			      clients[i].whole);
	return reached;
}

const struct client *clients_error(const struct client *clients, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (clients[i].error[0])
			return &clients[i];
	return NULL;
}

bool client_greeted(const struct client *c, const void *unused)
{
	(void)unused;
	return c->phase == CLIENT_GREETED;
}

bool client_knows(const struct client *c, const void *others)
{
	size_t n = *(const size_t *)others;

	return c->phase == CLIENT_GREETED && c->here == n && c->whole == n;
}

bool client_sees(const struct client *c, const void *id)
{
	const struct client_peer *p = client_peer(c, *(const int *)id);

	return p->state == PEER_HERE && p->vectors >= vectors_whole(c);
}

bool client_meets(const struct client *c, const void *crowd)
{
	const struct client_crowd *all = crowd;
	size_t others = all->n - 1;

	if (!client_knows(c, &others))
		return false;
	for (const struct client *other = all->list; other < all->list + all->n; other++)
		if (other != c && (other->id < 0 || !client_sees(c, &other->id)))
			return false;
	return true;
}

bool client_misses(const struct client *c, const void *id)
{
	return client_peer(c, *(const int *)id)->state != PEER_HERE;
}

bool client_ended(const struct client *c, const void *unused)
{
	(void)unused;
	return c->ended;
}

bool client_refused(const struct client *c, const void *unused)
{
	(void)unused;
	return c->ended && c->phase == CLIENT_REFUSED;
}

bool client_answered(const struct client *c, const void *unused)
{
	return client_greeted(c, unused) || client_refused(c, unused);
}

/* The descriptor of a vector, if it was kept; else -1 with errno. */
static int vector_fd(const struct client *c, int id, int vector)
{
	const struct client_peer *p = client_peer(c, id);

	if (p->fds && vector >= 0 && vector < p->vectors)
		return p->fds[vector];
	errno = EINVAL;
	return -1;
}

bool client_ring(const struct client *c, int id, int vector)
{
	uint64_t once = 1;
	int fd = vector_fd(c, id, vector);

	return fd >= 0 && write(fd, &once, sizeof(once)) == sizeof(once);
}

uint64_t client_rung(const struct client *c, int vector)
{
	struct pollfd bell = {.fd = vector_fd(c, c->id, vector), .events = POLLIN};
	uint64_t count;

	/* Asks first: whether the eventfd blocks is up to all who have it open (hazard 9). */
	if (bell.fd < 0 || poll(&bell, 1, 0) != 1 ||
	    read(bell.fd, &count, sizeof(count)) != sizeof(count))
		return 0;
	return count;
}

void client_close(struct client *c)
{
	for (size_t page = 0; page < CLIENT_IDS / CLIENT_PAGE; page++)
		for (size_t i = 0; c->peers[page] && i < CLIENT_PAGE; i++)
			peer_close(&c->peers[page][i]);
	if (c->memory >= 0)
		close(c->memory);
	if (c->sock >= 0)
		close(c->sock);
	c->memory = c->sock = -1;
	c->ended = true;
}

void client_free(struct client *c)
{
	client_close(c);
	for (size_t page = 0; page < CLIENT_IDS / CLIENT_PAGE; page++) {
		free(c->peers[page]);
		c->peers[page] = NULL;
	}
}

void clients_free(struct client *clients, size_t n)
{
	for (size_t i = 0; i < n; i++)
		client_free(&clients[i]);
}
