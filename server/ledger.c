/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/ledger.h"
#include "server/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define LEDGER_MAGIC UINT64_C(0x72656764656c6d74)

/* The ledger of version 1.2.0 has all fields but the last ones. */
#define LAYOUT_120 2
#define FIELDS_120 offsetof(struct ledger, before)
#define HEAD_120   ((FIELDS_120 + 63) / 64 * 64)

static size_t ledger_length(size_t head, unsigned int vectors)
{
	return head + FD_SETSIZE * (size_t)peer_length(vectors);
}

uint64_t text_hash(const char *text)
{
	uint64_t hash = UINT64_C(0xcbf29ce484222325);

	for (; *text; text++)
		hash = (hash ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
	return hash;
}

/* Maps a ledger of so many bytes. Returns NULL with errno. */
static struct ledger *ledger_map(int fd, size_t length, int protection)
{
	struct ledger *l = mmap(NULL, length, protection, MAP_SHARED, fd, 0);

	return l == MAP_FAILED ? NULL : l;
}

/* Makes an empty ledger, for peers with so many vectors. Returns NULL, having said why. */
static struct ledger *ledger_make(unsigned int vectors)
{
	size_t length = ledger_length(LEDGER_HEAD, vectors);
	int fd = memfd_create("tm_ivshmem_server", MFD_CLOEXEC | MFD_ALLOW_SEALING), error;
	struct ledger *l = NULL;

	if (fd >= 0 && ftruncate(fd, (off_t)length) == 0 &&
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
		l = ledger_map(fd, length, PROT_READ | PROT_WRITE);
	if (l) {
		l->self = fd;
		return l;
	}
	fail("cannot create the ledger of peers, a file of %s in memory", SIZE(length));
	error = errno;
	if (fd >= 0)
		close(fd);
	errno = error;
	return NULL;
}

struct ledger *ledger_create(const struct options *o)
{
	struct ledger *l = ledger_make(o->vectors);

	if (!l)
		return NULL;
	l->magic = LEDGER_MAGIC;
	l->layout = LEDGER_LAYOUT;
	l->peer_length = peer_length(o->vectors);
	l->vectors = o->vectors;
	l->legacy = o->legacy;
	l->object_name = text_hash(o->object);
	l->store = l->lock = l->disk = l->pidfile = -1;
	l->listener = l->watch = l->signals = l->ends = -1;
	return l;
}

/* Whether so many bytes are a ledger that we can read. */
static bool ledger_known(const struct ledger *l, size_t bytes)
{
	return bytes >= FIELDS_120 && l->magic == LEDGER_MAGIC &&
	       (l->layout == LEDGER_LAYOUT || l->layout == LAYOUT_120) &&
	       l->vectors <= VECTORS_MAX && l->slots <= FD_SETSIZE &&
	       l->peer_length == peer_length(l->vectors) &&
	       bytes == ledger_length(l->layout == LAYOUT_120 ? HEAD_120 : LEDGER_HEAD, l->vectors);
}

/*
 * A peer that comes from version 1.2.0, with the departure that was the last then. If that died
 * while it sent to this peer, it has not noted how much went out.
 */
static void peer_convert(struct ledger *l, struct peer *p, uint64_t last)
{
	if (p->serial == last) {
		p->serial = 0;
	} else if (p->serial && p->sending) {
		warn("ID %d left: version 1.2.0 died while it sent to this node, and did not note "
		     "how much arrived: restart the node, process %d",
		     p->id, (int)p->process);
		departure_note(l, p->serial, p->id);
		p->serial = 0;
		l->flush_due = true;
	}
	p->sending = 0;
}

/* Makes a ledger out of that of version 1.2.0, which it replaces in that one's descriptor. Returns
 * NULL with errno, having said why, and that one stays. */
static struct ledger *ledger_convert(const struct ledger *old, int fd)
{
	struct ledger *l = ledger_make(old->vectors);
	int made = l ? l->self : -1;

	if (!l)
		return NULL;
	memcpy(l, old, FIELDS_120);
	l->layout = LEDGER_LAYOUT;
	l->kept[OWN_LEDGER] = false;
	for (int sock = 0; sock < (int)l->slots; sock++) {
		size_t at = HEAD_120 + (size_t)sock * l->peer_length;

		memcpy(peer_at(l, sock), (const char *)old + at, l->peer_length);
		peer_convert(l, peer_at(l, sock), departed_last(old));
	}
	if (dup3(made, fd, O_CLOEXEC) < 0) {
		fail("cannot replace the ledger of version 1.2.0");
		munmap(l, ledger_length(LEDGER_HEAD, l->vectors));
		l = NULL;
	}
	close(made);
	return l;
}

struct ledger *ledger_open(int fd, bool look)
{
	struct ledger *l = NULL, *old;
	struct stat st;

	if (fstat(fd, &st) < 0 ||
	    (st.st_size > 0 && !(l = ledger_map(fd, (size_t)st.st_size,
						look ? PROT_READ : PROT_READ | PROT_WRITE)))) {
		fail("cannot take over: cannot map the ledger of peers");
		return NULL;
	}
	if (!l || !ledger_known(l, (size_t)st.st_size)) {
		complain("cannot take over: the previous server has no ledger of peers that this "
			 "program can read: install another version");
		errno = EINVAL;
		return NULL;
	}
	if (look)
		return l;
	if (l->layout == LAYOUT_120) {
		old = l;
		l = ledger_convert(old, fd);
		munmap(old, (size_t)st.st_size);
	}
	if (l)
		l->self = fd;
	return l;
}

bool ledger_fits(const struct ledger *l, const struct options *o)
{
	return (l->vectors == o->vectors && l->legacy == o->legacy) ||
	       complain("cannot take over: the nodes have %u vector%s%s, this program's options "
			"say %u%s",
			l->vectors, S(l->vectors), l->legacy ? ", -L" : "", o->vectors,
			o->legacy ? ", -L" : "");
}

void departure_note(struct ledger *l, uint64_t serial, int64_t id)
{
	l->ring[l->departures % IDS] = (struct departure){serial, id};
	ledger_order();
	l->departures++;
	ledger_order();
}

uint64_t departed_last(const struct ledger *l)
{
	return l->departures ? l->ring[(l->departures - 1) % IDS].serial : 0;
}

int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void timer_start(struct ledger *l, enum timer timer, int64_t ms)
{
	int64_t *at = &l->timers[timer], when = now_ms() + ms;

	if (!*at || *at > when)
		*at = when;
}

bool timer_ended(struct ledger *l, enum timer timer)
{
	if (!l->timers[timer] || now_ms() < l->timers[timer])
		return false;
	l->timers[timer] = 0;
	return true;
}
