/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/takeover.h"
#include "server/client.h"
#include "server/descriptor.h"
#include "server/ledger.h"
#include "server/listener.h"
#include "server/log.h"
#include "server/mesh.h"
#include "server/options.h"
#include "server/passed.h"
#include "server/server.h"
#include "server/store.h"
#include "server/supervisor.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <unistd.h>

/* Names a node that is let go, since it would not know for sure who lives. */
static void node_name(const struct peer *p, const char *why)
{
	warn("ID %d left: %s: restart the node, process %d", p->id, why, (int)p->process);
}

/* How many peers can be taken over with so many open descriptors: each takes first its socket and
 * its parcel, and in the end its socket and its eventfds; a parcel that is looked into takes some
 * as well, and so does what is our own. */
static size_t peers_room(const struct server *s, rlim_t limit)
{
	size_t vectors = s->ledger->vectors, own = 24 + PARCEL_EVENTFDS + vectors;

	return limit < own ? 0 : (limit - own) / (1 + (vectors ? vectors : 1));
}

/* Closes all parcels but those of peers that can be taken over where only so many descriptors may
 * be open. Adds to the sets the sockets of these peers, and of those for whom that is too few. */
static void parcels_choose(const struct server *s, struct passed *in, fd_set *kept, fd_set *few)
{
	struct rlimit limit = {.rlim_cur = RLIM_INFINITY};
	size_t room;

	getrlimit(RLIMIT_NOFILE, &limit);
	room = peers_room(s, limit.rlim_cur);
	for (size_t i = 0; i < in->count; i++) {
		struct parcel *parcel = &in->parcels[i];

		if (parcel->sock >= 0 && room > 0 && (rlim_t)parcel->sock < limit.rlim_cur) {
			FD_SET(parcel->sock, kept);
			room--;
		} else if (parcel != in->ungreeted) {
			if (parcel->sock >= 0)
				FD_SET(parcel->sock, few);
			parcel_close(parcel);
		}
	}
}

/* Why there is no parcel of a peer. */
static const char *parcel_missing(const struct peer *p)
{
	return p->stored ? "the supervisor has lost its stored descriptors (is "
			   "FileDescriptorStoreMax= large enough?)"
			 : "its descriptors had not been stored when the server died";
}

/* Gives up the peers that cannot be taken over: nothing stands at their numbers. */
static void peers_give_up(struct server *s, struct passed *in)
{
	static const char many[] =
		"too few descriptors may be open to take it over (raise ulimit -n "
		"or LimitNOFILE=)";
	struct ledger *l = s->ledger;
	fd_set kept, few;

	FD_ZERO(&kept);
	FD_ZERO(&few);
	parcels_choose(s, in, &kept, &few);
	/* Who has left already does not do so once more: first, while that can be told. */
	for (int sock = 0; sock < (int)l->slots; sock++)
		if (peer_at(s->ledger, sock)->serial == departed_last(l))
			peer_at(s->ledger, sock)->serial = 0;
	for (int sock = 0; sock < (int)l->slots; sock++) {
		struct peer *p = peer_at(s->ledger, sock);

		if (!p->serial || FD_ISSET(sock, &kept))
			continue;
		node_name(p, FD_ISSET(sock, &few) ? many : parcel_missing(p));
		departure_note(l, p->serial, p->id);
		p->serial = 0;
		l->flush_due = true;
	}
}

/* Gives a descriptor another number if its own is that of a peer, which /dev/null then holds. */
static bool descriptor_vacate(const struct server *s, int *fd)
{
	int number = *fd, other;

	if (number < 0 || number >= FD_SETSIZE || !peer_at(s->ledger, number)->serial)
		return true;
	other = fcntl(number, F_DUPFD_CLOEXEC, 0);
	if (other < 0)
		return fail("cannot take over: there is no room for the descriptors of the nodes");
	*fd = other;
	return dup3(s->reserve.null, number, O_CLOEXEC) >= 0 ||
	       fail("cannot take over: cannot reserve the descriptor number of a node's socket");
}

/*
 * Moves all that is open to numbers at which no peer stands now, out of select's range if possible:
 * what stayed there would be taken for that peer's. /dev/null holds these until the sockets come.
 */
static bool passed_make_room(struct server *s, struct passed *in)
{
	int *const own[] = {
		&in->own[OWN_LISTENER], &in->listener,     &s->reserve.null, &s->reserve.spare,
		&s->supervisor.sock,    log_descriptor(),  log_file(),       &in->own[OWN_LEDGER],
		&in->own[OWN_OBJECT],   &in->own[OWN_LOCK]};
	const size_t listeners = 2; /* at which select is to look */
	const size_t owns = sizeof(own) / sizeof(own[0]), all = owns + in->count;

	for (size_t i = listeners; i < all; i++) {
		int *fd = i < owns ? own[i] : &in->parcels[i - owns].fd;

		*fd = descriptor_raise(*fd, FD_SETSIZE);
	}
	for (int sock = 0; sock < (int)s->ledger->slots; sock++)
		if (peer_at(s->ledger, sock)->serial && fcntl(sock, F_GETFD) < 0 &&
		    dup3(s->reserve.null, sock, O_CLOEXEC) < 0)
			return fail(
				"cannot take over: cannot reserve the descriptor number of a node's socket");
	for (size_t i = 0; i < all; i++)
		if (!descriptor_vacate(s, i < owns ? own[i] : &in->parcels[i - owns].fd))
			return false;
	s->ledger->self = in->own[OWN_LEDGER];
	return true;
}

/*
 * Has the supervisor drop a parcel that is nobody's. It counts as that of a departure, of which
 * nobody is told who has not reached that serial number; of what was lost in some other way, and
 * somebody may have heard of, the supervisor is told once.
 */
static void parcel_disown(struct server *s, uint64_t serial)
{
	struct ledger *l = s->ledger;

	for (uint64_t d = l->forgotten; d < l->departures; d++)
		if (l->ring[d % IDS].serial == serial)
			return;
	if (serial > l->joins)
		l->joins = serial; /* so no other gets its name */
	set_each (sock, &s->mesh.present)
		if (peer_at(s->ledger, sock)->place.reached >= serial) {
			supervisor_drop(&s->supervisor, parcel_name(serial, false).text);
			supervisor_drop(&s->supervisor, parcel_name(serial, true).text);
			return;
		}
	departure_note(l, serial, 0);
}

/* Gives a peer back its socket, at the number where it stands. Returns false with errno. */
static bool parcel_place(const struct server *s, const struct parcel *parcel)
{
	int fd = -1, error;
	bool done;

	if (!parcel_open(s->ledger, parcel->fd, &fd, NULL))
		return false;
	done = dup3(fd, parcel->sock, O_CLOEXEC) >= 0;
	error = errno;
	close(fd);
	errno = error;
	return done;
}

/* Makes a peer of a client that was about to become one when the server before ended. */
static void parcel_join(struct server *s, const struct parcel *parcel)
{
	int32_t eventfds[VECTORS_MAX];
	int fd = -1, id = id_pick(&s->mesh);

	if (!parcel_open(s->ledger, parcel->fd, &fd, eventfds)) {
		fail("cannot serve a client that had connected to the previous server");
		return;
	}
	assert(id >= 0); /* one had been found */
	fd = descriptor_lower(fd);
	if (fd >= PEERS_END) {
		client_refuse(&s->clients, fd, "no more nodes fit into one server");
		for (unsigned int v = 0; v < s->ledger->vectors; v++)
			close(eventfds[v]);
		return;
	}
	memcpy(peer_at(s->ledger, fd)->eventfds, eventfds,
	       s->ledger->vectors * sizeof(eventfds[0]));
	s->ledger->joins = parcel->serial - 1;
	peer_join(&s->mesh, fd, id, true);
	if (!end_watch(&s->mesh, fd))
		peer_let_go(&s->mesh, fd, strerror(errno));
}

/*
 * Takes over the peers, but for those of which we cannot get all. First all sockets get their
 * numbers; then eventfds may have any.
 */
static void peers_inherit(struct server *s, struct passed *in)
{
	peers_restore(&s->mesh);
	for (size_t i = 0; i < in->count; i++) {
		const struct parcel *parcel = &in->parcels[i];

		if (parcel->sock < 0 || !FD_ISSET(parcel->sock, &s->mesh.present))
			continue;
		if (parcel_place(s, parcel))
			peer_at(s->ledger, parcel->sock)->stored =
				(parcel->second ? PARCEL_SECOND : PARCEL_FIRST) |
				(parcel->both ? PARCEL_BOTH : 0);
		else
			peer_let_go(&s->mesh, parcel->sock, strerror(errno));
		s->supervisor.behind |= parcel->both;
	}
	for (size_t i = 0; i < in->count; i++) {
		struct parcel *parcel = &in->parcels[i];

		if (parcel->sock < 0)
			continue;
		if (FD_ISSET(parcel->sock, &s->mesh.present) &&
		    !parcel_open(s->ledger, parcel->fd, NULL,
				 peer_at(s->ledger, parcel->sock)->eventfds))
			peer_let_go(&s->mesh, parcel->sock, strerror(errno));
		parcel_close(parcel);
	}
}

/*
 * Sees to it that what was passed as the object, and as its lock, is that; and opens the object
 * again if it was lost, where it stands at its path. Returns false with errno, as object_stands.
 */
static bool object_regain(const struct server *s, struct passed *in)
{
	const struct options *o = &s->opt;
	int *object = &in->own[OWN_OBJECT];

	for (enum own i = OWN_OBJECT; i <= OWN_LOCK; i++) {
		if (in->own[i] < 0 || store_is(s->ledger, in->own[i]))
			continue;
		if (errno != ENOENT)
			return false;
		flock(in->own[i], LOCK_UN);
		close(in->own[i]);
		in->own[i] = -1;
	}
	if (!s->ledger->object_ino || *object >= 0)
		return true;
	errno = ENOENT;
	if (o->anonymous || !object_stands(&s->store))
		return false;
	*object = open(o->object, (o->shm ? O_NOFOLLOW : 0) | O_RDWR | O_CLOEXEC | O_NOCTTY);
	if (*object < 0)
		return false;
	in->regained = store_is(s->ledger, *object);
	if (in->regained) {
		say("%s was not passed by the supervisor, and has been opened again", o->object);
		return true;
	}
	close(*object);
	*object = -1;
	errno = ENOENT;
	return false;
}

/*
 * Whether the nodes have the object that our options name, by this name or another, and we have it,
 * too. If not, errno is ENOENT, or says why nobody knows.
 */
static bool object_fits(const struct server *s, struct passed *in)
{
	const struct options *o = &s->opt;
	const struct ledger *l = s->ledger;
	bool fits = !l->object_ino == memoryless(o);

	errno = ENOENT;
	if (fits && l->object_ino)
		fits = l->object_name == text_hash(o->object) || object_stands(&s->store);
	if (fits && object_regain(s, in))
		return true;
	if (errno != ENOENT)
		return fail("cannot take over: cannot examine or open %s", o->object);
	if (!fits)
		return memoryless(o) ? complain("cannot take over: the nodes have memory, and -m 0 "
						"asks for none")
				     : complain("cannot take over: the nodes have another object "
						"than %s",
						o->object);
	in->why = "the supervisor has lost the memory of the nodes";
	return complain("cannot take over: the supervisor has lost the memory of the nodes%s%s",
			o->anonymous ? "" : ", which is no longer at ",
			o->anonymous ? "" : o->object);
}

/*
 * Finds out whether there is somebody to take over, and whether our options are his. Returns false
 * if nobody knows.
 */
static bool passed_judge(struct server *s, struct passed *in)
{
	parcels_find(s->ledger, in);
	if (!in->nodes)
		return true;
	in->why = "the server was restarted with other options";
	errno = ENOENT;
	in->fits = ledger_fits(s->ledger, &s->opt) && object_fits(s, in);
	return in->fits || errno == ENOENT;
}

/* Puts what has been passed into the ledger, instead of what the process had that has ended. */
static void ledger_adopt(struct server *s, const struct passed *in)
{
	struct ledger *l = s->ledger;

	l->store = in->own[OWN_OBJECT];
	l->lock = in->own[OWN_LOCK];
	l->listener = in->own[OWN_LISTENER];
	l->disk = l->pidfile = l->watch = l->signals = l->ends = -1;
	l->object_name = text_hash(s->opt.object);
	flush_inherit(&s->store);
	for (enum own i = OWN_OBJECT; i < OWNS; i++) /* of itself the ledger knows that */
		l->kept[i] = in->own[i] >= 0 && !(i == OWN_OBJECT && in->regained);
	memset(l->timers, 0, sizeof(l->timers));
	for (int sock = 0; sock < (int)l->slots; sock++) {
		peer_at(s->ledger, sock)->stored = 0;
		memset(peer_at(s->ledger, sock)->eventfds, -1, l->vectors * sizeof(int32_t));
	}
	if (!l->socket_ino) /* it was removed at the end */
		l->socket_ino = SOCKET_NOWHERE;
}

/*
 * Makes a ledger for our options, instead of the old one; NULL: there is none, or nobody can read
 * it. Also of the parcels of peers only the supervisor is still to know something: to drop them.
 */
static bool ledger_replace(struct server *s, struct passed *in, const struct ledger *old)
{
	struct ledger *l;

	if (in->ungreeted && !parcel_open(s->ledger, in->ungreeted->fd, &in->waiting, NULL))
		fail("cannot serve a client that had connected to the previous server");
	l = ledger_create(&s->opt);
	if (!l)
		return false;
	server_use(s, l);
	in->old = old;
	in->ungreeted = NULL;
	for (enum own i = OWN_LEDGER; i <= OWN_OBJECT; i++)
		if (in->own[i] >= 0)
			close(in->own[i]);
	for (size_t i = 0; i < in->count; i++)
		parcel_close(&in->parcels[i]);
	l->listener = in->own[OWN_LISTENER];
	l->kept[OWN_LISTENER] = l->listener >= 0;
	if (old) {
		l->joins = old->joins;
		l->departures = old->departures;
		l->forgotten = old->forgotten;
		for (uint64_t d = l->forgotten; d < l->departures; d++)
			l->ring[d % IDS] = old->ring[d % IDS];
		l->socket_dev = old->socket_dev;
		l->socket_ino = old->socket_ino;
		if (!l->socket_ino && l->listener >= 0) /* it was removed at the end */
			l->socket_ino = SOCKET_NOWHERE;
		l->group = old->group;
		flush_again(&s->store); /* what nodes have written that left, or do so now */
	} else if (l->listener >= 0) {
		listener_identify(&s->listener);
	}
	return true;
}

void nodes_let_go(const struct passed *in)
{
	const struct ledger *old = in->old;

	if (!old && in->count > 0)
		complain("%zu %s disconnected: restart %s", in->count,
			 in->count == 1 ? "node is" : "nodes are",
			 in->count == 1 ? "that node" : "these nodes");
	for (int sock = 0; old && sock < (int)old->slots; sock++) {
		const struct peer *p = peer_at(old, sock);
		const char *why = parcel_missing(p);

		if (!p->serial || p->serial == departed_last(old))
			continue;
		for (size_t i = 0; i < in->count; i++)
			if (in->parcels[i].sock == sock)
				why = in->why;
		if (why)
			node_name(p, why);
		else
			say("ID %d left: it ended while no server ran", p->id);
	}
}

bool server_inherit(struct server *s, struct passed *in)
{
	struct ledger *old = NULL;

	supervisor_open(&s->supervisor);
	if (in->own[OWN_LEDGER] >= 0) {
		old = ledger_open(in->own[OWN_LEDGER], false);
		if (!old && errno != EINVAL)
			return false; /* nothing is wrong with the ledger: for the next try */
		server_use(s, old);
	}
	in->nodes = !old && in->count > 0;
	if (old && !passed_judge(s, in))
		return false;
	if (in->fits) {
		send_settle(s->ledger);
		peers_give_up(s, in);
		if (!passed_make_room(s, in))
			return false;
		ledger_adopt(s, in);
		peers_inherit(s, in);
		in->fits = s->mesh.count > 0; /* some of them could be taken over */
	}
	if (!in->fits && !ledger_replace(s, in, old))
		return false;
	if (!peers_watch(&s->mesh))
		return false;
	if (in->ungreeted)
		parcel_join(s, in->ungreeted);
	for (size_t i = 0; i < in->count; i++) {
		parcel_close(&in->parcels[i]);
		if (!in->fits || peer_find(s->ledger, in->parcels[i].serial) < 0)
			parcel_disown(s, in->parcels[i].serial);
	}
	return true;
}

bool store_open_anew(struct server *s, const struct passed *in)
{
	if (in->own[OWN_LOCK] >= 0 && flock(in->own[OWN_LOCK], LOCK_UN) < 0)
		return fail("cannot unlock the object of the previous server");
	return store_open(&s->store);
}
