/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/mesh.h"
#include "send_scm.h"
#include "server/descriptor.h"
#include "server/file.h"
#include "server/ledger.h"
#include "server/listener.h"
#include "server/log.h"
#include "server/supervisor.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#define PROTOCOL_VERSION 0
#define MEMORY           (-1) /* the value beside the descriptor of the shared memory */
#define PEERS_FEW        16   /* a server for fewer is warned of */

/* How many peers have a serial number of at most this one: the index of the first peer behind. */
static size_t peers_up_to(const struct mesh *m, uint64_t serial)
{
	size_t low = 0, high = m->count;

	/* Most often it is the youngest's, or that of the one before. */
	for (int i = 0; i < 2 && low < high; i++, high--)
		if (peer_at(m->ledger, m->order[high - 1])->serial <= serial)
			return high;
	while (low < high) {
		size_t middle = (low + high) / 2;

		if (peer_at(m->ledger, m->order[middle])->serial <= serial)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* A place that moves, and the index of the first peer behind the one that it has reached. */
struct cursor {
	struct place at;
	size_t behind;
};

/* Where the greeting's first messages end: a server without memory has no third. */
static uint32_t head_end(const struct mesh *m)
{
	return m->ledger->store < 0 ? 2 : 3;
}

/*
 * What a peer is to be told next (ivshmem-spec, "Client-Server protocol"), and moves the cursor
 * there. Returns false if there is nothing.
 *
 * Departures come before introductions. So when one is dealt with, the peer has reached what it had
 * reached when that one left, and "its serial number is at most reached" says exactly whether it
 * had been introduced: who had not been is never mentioned (hazard 2), who had been is told to have
 * left once (hazard 1), and nothing of its eventfds is due any more. All older peers come before
 * its own eventfds, all younger ones behind, since it stands in that order itself.
 */
static bool message_next(const struct mesh *m, const struct peer *p, struct cursor *c,
			 struct scm_msg *msg)
{
	const struct ledger *l = m->ledger;
	const struct scm_msg head[] = {{PROTOCOL_VERSION, -1}, {p->id, -1}, {MEMORY, l->store}};
	struct place *at = &c->at;
	const struct peer *next;

	if (at->head < head_end(m)) {
		*msg = head[at->head++];
		return true;
	}
	while (at->departures < l->departures) {
		const struct departure *d = &l->ring[at->departures++ % IDS];

		if (d->serial > at->reached)
			continue;
		if (d->serial == at->reached)
			at->vectors = l->vectors;
		*msg = (struct scm_msg){d->id, -1};
		return true;
	}
	if (at->vectors == l->vectors) {
		if (l->vectors == 0 || c->behind == m->count)
			return false;
		at->reached = peer_at(m->ledger, m->order[c->behind++])->serial;
		at->vectors = 0;
	}
	next = peer_at(m->ledger, m->order[c->behind - 1]);
	*msg = (struct scm_msg){next->id, next->eventfds[at->vectors++]};
	return true;
}

size_t peer_owed(const struct mesh *m, const struct peer *p)
{
	const struct ledger *l = m->ledger;
	const struct place *at = &p->place;
	size_t owed = head_end(m) - at->head, vectors = l->vectors - at->vectors;

	for (uint64_t d = at->departures; d < l->departures; d++) {
		owed += l->ring[d % IDS].serial <= at->reached;
		if (l->ring[d % IDS].serial == at->reached)
			vectors = 0;
	}
	return owed + vectors + l->vectors * (m->count - peers_up_to(m, at->reached));
}

int id_pick(const struct mesh *m)
{
	const struct ledger *l = m->ledger;
	uint64_t taken[IDS / 64] = {0}, d = l->departures;

	if (m->count > 0)
		d = peer_at(m->ledger, m->order[0])->missed;
	for (int id; d < l->departures; d++) {
		id = (int)l->ring[d % IDS].id;
		taken[id / 64] |= UINT64_C(1) << id % 64;
	}
	for (size_t i = 0; i < m->count; i++) {
		int id = peer_at(m->ledger, m->order[i])->id;

		taken[id / 64] |= UINT64_C(1) << id % 64;
	}
	for (int word = 0; word < IDS / 64; word++)
		if (~taken[word])
			return word * 64 + __builtin_ctzll(~taken[word]);
	return -1;
}

bool eventfds_open(struct peer *p, unsigned int vectors)
{
	for (unsigned int v = 0; v < vectors; v++) {
		int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), error = errno;

		if (fd < 0) {
			while (v > 0)
				close(p->eventfds[--v]);
			errno = error;
			return false;
		}
		p->eventfds[v] = descriptor_raise(fd, FD_SETSIZE);
	}
	return true;
}

bool end_watch(const struct mesh *m, int sock)
{
	struct epoll_event end = {.events = EPOLLIN, .data.fd = sock};

	return epoll_ctl(m->ledger->ends, EPOLL_CTL_ADD, sock, &end) == 0 || errno == EEXIST;
}

/* Whether a peer has been sent its greeting, of which its own last vector is the end. */
static bool peer_greeted(const struct mesh *m, const struct peer *p)
{
	const struct place *at = &p->place;
	uint32_t vectors = m->ledger->vectors;

	if (vectors == 0)
		return at->head == head_end(m);
	return at->reached > p->serial || (at->reached == p->serial && at->vectors == vectors);
}

/* Takes a peer into the order of peers. */
static void peer_enter(struct mesh *m, int sock)
{
	size_t at = peers_up_to(m, peer_at(m->ledger, sock)->serial);

	memmove(&m->order[at + 1], &m->order[at], (m->count++ - at) * sizeof(m->order[0]));
	m->order[at] = (uint16_t)sock;
	m->who[sock].name[0] = '\0';
	FD_SET(sock, &m->present);
	FD_CLR(sock, &m->idle);
	if (!peer_greeted(m, peer_at(m->ledger, sock)))
		FD_SET(sock, &m->greeting);
	m->due = m->present;
}

struct who who_is(int sock)
{
	struct who who = {.process = client_process(sock)};

	snprintf(who.name, sizeof(who.name), "%.31s", process_name((int)who.process.pid).text);
	return who;
}

/* The same of a peer: to ask costs more than the rest of its row, and once is enough. */
static const struct who *peer_who(struct mesh *m, int sock)
{
	if (!m->who[sock].name[0])
		m->who[sock] = who_is(sock);
	return &m->who[sock];
}

struct text who_text(const struct who *w)
{
	struct text out;

	snprintf(out.text, sizeof(out.text), "process %d (%s), uid %u", (int)w->process.pid,
		 w->name[0] ? w->name : "?", (unsigned int)w->process.uid);
	return out;
}

void peer_join(struct mesh *m, int sock, int id, bool stored)
{
	struct ledger *l = m->ledger;
	struct peer *p = peer_at(m->ledger, sock);
	uint64_t serial = ++l->joins;

	if ((uint32_t)sock >= l->slots)
		l->slots = (uint32_t)sock + 1;
	p->id = (uint16_t)id;
	p->joined_ms = now_ms();
	p->process = client_process(sock).pid;
	p->missed = l->departures;
	p->sending = 0;
	p->place = (struct place){
		.head = l->legacy ? 1 : 0, .vectors = l->vectors, .departures = l->departures};
	ledger_order();
	supervisor_count(m->supervisor, m->count + 1);
	p->stored = 0;
	p->stored = stored || parcel_store(m->supervisor, sock, serial, false) ? PARCEL_FIRST : 0;
	ledger_order();
	p->serial = serial;
	ledger_order();
	peer_enter(m, sock);
	say("ID %d joined: %s", id, who_text(peer_who(m, sock)).text);
}

/* Gives a peer's place free, and closes all that was its own. */
static void peer_free(struct mesh *m, int sock)
{
	struct peer *p = peer_at(m->ledger, sock);

	p->serial = 0;
	ledger_order();
	for (unsigned int v = 0; v < m->ledger->vectors; v++)
		close(p->eventfds[v]);
	/* Others may have it open as well: then closing it ends neither the watch nor the stream.
	 */
	epoll_ctl(m->ledger->ends, EPOLL_CTL_DEL, sock, NULL);
	if (p->stored & PARCEL_KEPT)
		shutdown(sock, SHUT_RDWR);
	close(sock);
}

/* What is said of a client that has left as any may leave; all else is worth a warning. */
static const char left_closed[] = "closed the connection";
static const char left_unread[] =
	"ended before it had read all messages (Connection reset by peer)";

/* Why a client has left, to whom nothing can be sent for this reason. */
static const char *send_ended(int error)
{
	return error == EPIPE ? left_closed : error == ECONNRESET ? left_unread : strerror(error);
}

/* A peer has left: takes it off the list, and notes that for the others to be told. */
static void peer_leave(struct mesh *m, int sock, const char *why)
{
	int level = why == left_closed || why == left_unread ? LOG_INFO : LOG_WARNING;
	struct ledger *l = m->ledger;
	struct peer *p = peer_at(m->ledger, sock);
	size_t at = peers_up_to(m, p->serial) - 1;

	log_line(level, 0, "ID %d left: %s", p->id, why);
	supervisor_count(m->supervisor, --m->count);
	memmove(&m->order[at], &m->order[at + 1], (m->count - at) * sizeof(m->order[0]));
	FD_CLR(sock, &m->present);
	FD_CLR(sock, &m->greeting);
	FD_CLR(sock, &m->turn);
	FD_CLR(sock, &m->blocked);
	FD_CLR(sock, &m->starved);
	m->due = m->present;
	l->flush_due = true;

	departure_note(l, p->serial, p->id);
	peer_free(m, sock);
}

void peer_let_go(struct mesh *m, int sock, const char *why)
{
	char line[256];

	snprintf(line, sizeof(line), "%s: restart the node, process %d", why,
		 (int)peer_at(m->ledger, sock)->process);
	peer_leave(m, sock, line);
}

void send_settle(struct ledger *l)
{
	struct mesh then = {.ledger = l};
	struct peer *p = NULL;
	struct cursor c = {.at = l->before};
	struct scm_msg sent;

	for (int sock = 0; sock < (int)l->slots; sock++) {
		if (!peer_at(l, sock)->serial)
			continue;
		peer_enter(&then, sock);
		if (peer_at(l, sock)->sending)
			p = peer_at(l, sock); /* there is one at most */
	}
	if (!p)
		return;
	c.behind = peers_up_to(&then, c.at.reached);
	for (size_t n = 0; n < SCM_BATCH && l->batch[n].msg_len > 0; n++)
		if (!message_next(&then, p, &c, &sent))
			break;
	p->place = c.at;
	ledger_order();
	p->sending = false;
}

void peers_restore(struct mesh *m)
{
	struct ledger *l = m->ledger;
	uint64_t last = departed_last(l);

	*m = (struct mesh){.opt = m->opt, .ledger = l, .supervisor = m->supervisor};
	send_settle(l);
	for (int sock = 0; sock < (int)l->slots; sock++) {
		const struct peer *p = peer_at(m->ledger, sock);

		if (p->serial && p->serial == last)
			peer_free(m, sock); /* it has left, and then the server before ended */
		else if (p->serial)
			peer_enter(m, sock);
	}
	supervisor_count(m->supervisor, m->count);
	m->blocked = m->idle = m->present; /* the first look says who is not */
}

/* Sends a peer a batch of what it is owed. Returns how many messages went out; with SCM_BATCH,
 * there may be more that it can take. */
static size_t peer_send_batch(struct mesh *m, int sock)
{
	struct ledger *l = m->ledger;
	struct peer *p = peer_at(l, sock);
	struct cursor c = {p->place, peers_up_to(m, p->place.reached)};
	struct scm_msg batch[SCM_BATCH];
	struct place after[SCM_BATCH];
	size_t n = 0;
	int sent;

	while (n < SCM_BATCH && message_next(m, p, &c, &batch[n])) {
		l->batch[n].msg_len = 0;
		after[n++] = c.at;
	}
	if (n == 0) {
		p->place.departures = c.at.departures; /* it need not hear of these */
		return 0;
	}
	l->before = p->place;
	ledger_order();
	p->sending = true;
	ledger_order();
	sent = scm_send(sock, l->batch, batch, n);
	assert(sent <= (int)n);
	if (sent > 0)
		p->place = after[sent - 1];
	ledger_order();
	p->sending = false;
	ledger_order();
	for (int i = 0; i < sent && m->opt->verbose; i++)
		log_line(LOG_DEBUG, 0, "to ID %d: %" PRId64 "%s", p->id, batch[i].value,
			 batch[i].fd < 0 ? "" : " with a descriptor");
	if (sent == (int)n)
		return n;
	if (sent >= 0 || errno == EAGAIN || errno == EINTR) {
		FD_SET(sock, &m->blocked);
	} else if (errno == ETOOMANYREFS || errno == ENOBUFS || errno == ENOMEM) {
		/* Unread descriptors of all sockets together, say: select would not wait for that.
		 */
		FD_SET(sock, &m->starved);
		timer_start(m->ledger, TIMER_SEND, SEND_RETRY_MS);
	} else {
		peer_leave(m, sock, send_ended(errno));
	}
	return sent > 0 ? (size_t)sent : 0;
}

/*
 * Sends a peer a batch, if it can take one for all that is known, at the cost of a round's share.
 * Returns how many messages went out.
 */
static size_t peer_send(struct mesh *m, int sock, size_t *share)
{
	size_t sent;

	if (FD_ISSET(sock, &m->blocked) || FD_ISSET(sock, &m->starved))
		return 0;
	sent = peer_send_batch(m, sock);
	*share -= *share < sent + 1 ? *share : sent + 1;
	if (FD_ISSET(sock, &m->greeting) && peer_greeted(m, peer_at(m->ledger, sock)))
		FD_CLR(sock, &m->greeting);
	if (sent == SCM_BATCH)
		FD_SET(sock, &m->due);
	return sent;
}

/* The greetings under way: of those who read, the first that joined. */
static fd_set greetings_current(const struct mesh *m)
{
	fd_set reading = set_without(&m->greeting, &m->idle), current;
	size_t n = 0;

	reading = set_without(&reading, &m->starved);
	FD_ZERO(&current);
	for (size_t i = 0; i < m->count && n < GREETINGS_AT_ONCE; i++)
		if (FD_ISSET(m->order[i], &reading)) {
			FD_SET(m->order[i], &current);
			n++;
		}
	return current;
}

/* Sends the greetings under way, in the order of joins. Returns whether any went on. */
static bool greetings_send(struct mesh *m)
{
	fd_set current = greetings_current(m);
	size_t share = ROUND_SHARE, sent = 0, now;

	for (size_t i = 0; i < m->count && share > 0;) {
		int sock = m->order[i];

		now = 0;
		if (FD_ISSET(sock, &current) && FD_ISSET(sock, &m->greeting))
			now = peer_send(m, sock, &share);
		sent += now;
		if (now < SCM_BATCH && i < m->count && m->order[i] == sock) /* it has not left */
			i++;
	}
	return sent > 0;
}

/* Whether there may be news for somebody who has had his greeting. */
static bool news_wait(const struct mesh *m)
{
	fd_set due = set_without(&m->due, &m->greeting);

	return set_any(&m->turn) || set_any(&due);
}

/* Whether greetings have kept news waiting for as long as they may. */
static bool news_late(struct mesh *m, int64_t now)
{
	if (!m->news_ms && news_wait(m))
		m->news_ms = now;
	return m->news_ms && now >= m->news_ms + NEWS_WAIT_MS;
}

/* Sends news: a batch to everybody who is due, before anybody gets another. */
static void news_send(struct mesh *m)
{
	size_t share = ROUND_SHARE;

	if (!set_any(&m->turn)) {
		m->turn = set_without(&m->due, &m->greeting);
		FD_ZERO(&m->due);
	}
	set_each (sock, &m->turn) {
		if (share == 0)
			return;
		FD_CLR(sock, &m->turn);
		FD_CLR(sock, &m->due); /* before it sends: a leave makes all due again */
		peer_send(m, sock, &share);
	}
	m->news_ms = 0;
}

int64_t peers_send(struct mesh *m, bool clients)
{
	bool sent = greetings_send(m), busy;
	fd_set current = greetings_current(m), able;
	int64_t now = now_ms();

	if (sent || clients)
		m->busy_ms = now;
	busy = clients || (sent && set_any(&current));
	if (now >= m->busy_ms + READ_WAIT_MS) {
		/* Those only that select will tell of: others have moved up where some starve. */
		set_each (sock, &current)
			if (FD_ISSET(sock, &m->blocked))
				FD_SET(sock, &m->idle);
		current = greetings_current(m);
	}
	if (busy ? news_late(m, now) : !set_any(&current))
		news_send(m);
	able = set_without(&current, &m->blocked);
	if (clients || set_any(&able) || (!set_any(&current) && news_wait(m)))
		return 0;
	if (!set_any(&current))
		return -1;
	return now < m->busy_ms + READ_WAIT_MS ? m->busy_ms + READ_WAIT_MS - now : 0;
}

fd_set peers_waiting(const struct mesh *m)
{
	fd_set others = set_without(&m->present, &m->greeting);

	return set_any(&m->turn) ? set_without(&m->blocked, &others) : m->blocked;
}

bool peer_has_read(const struct mesh *m, int sock)
{
	int unread;

	return peer_owed(m, peer_at(m->ledger, sock)) == 0 &&
	       (ioctl(sock, SIOCOUTQ, &unread) < 0 || unread == 0);
}

const char *client_ended(int sock)
{
	char byte;
	ssize_t n = recv(sock, &byte, 1, MSG_DONTWAIT | MSG_PEEK); /* for the next look as well */

	if (n == 0)
		return left_closed;
	if (n > 0)
		return "sent data, which no ivshmem client does";
	if (errno == EAGAIN || errno == EINTR || errno == ENOMEM || errno == ENOBUFS)
		return NULL;
	return send_ended(errno);
}

void peers_read(struct mesh *m)
{
	struct epoll_event ends[FD_SETSIZE];
	int n = epoll_wait(m->ledger->ends, ends, FD_SETSIZE, 0);

	for (int i = 0; i < n; i++) {
		int sock = ends[i].data.fd;
		const char *why = client_ended(sock);

		if (!FD_ISSET(sock, &m->present))
			close(sock); /* the image before was about to make or to free a peer */
		else if (why)
			peer_leave(m, sock, why);
	}
}

void peers_wake(struct mesh *m, const fd_set *writable)
{
	set_each (sock, writable) {
		FD_CLR(sock, &m->blocked);
		FD_CLR(sock, &m->idle);
		FD_SET(sock, &m->due);
	}
	if (timer_ended(m->ledger, TIMER_SEND)) {
		set_each (sock, &m->starved)
			FD_SET(sock, &m->due);
		FD_ZERO(&m->starved);
	}
}

struct row peer_row(struct mesh *m, int sock)
{
	const struct peer *p = peer_at(m->ledger, sock);

	return (struct row){.who = peer_who(m, sock),
			    .id = p->id,
			    .age = (now_ms() - p->joined_ms) / 1000,
			    .waiting = peer_owed(m, p),
			    .greeted = peer_greeted(m, p),
			    .stored = p->stored};
}

int peer_find(const struct ledger *l, uint64_t serial)
{
	for (int sock = 0; sock < (int)l->slots; sock++)
		if (peer_at(l, sock)->serial == serial)
			return sock;
	return -1;
}

bool peer_departed(const struct ledger *l, uint64_t serial)
{
	uint64_t d = l->departures > IDS ? l->departures - IDS : 0;

	while (d < l->departures && l->ring[d % IDS].serial != serial)
		d++;
	return d < l->departures;
}

bool peers_watch(struct mesh *m)
{
	m->ledger->ends = epoll_create1(EPOLL_CLOEXEC);
	if (m->ledger->ends < 0)
		return fail("cannot create an epoll descriptor");
	set_each (sock, &m->present)
		if (!end_watch(m, sock))
			peer_let_go(m, sock, strerror(errno));
	return true;
}

bool peers_fit(const struct mesh *m, unsigned int more)
{
	struct pollfd all[FD_SETSIZE];
	struct rlimit limit;
	rlim_t each = 1 + m->opt->vectors, used = more, nodes, n;

	if (m->count > 0 || getrlimit(RLIMIT_NOFILE, &limit) < 0 ||
	    limit.rlim_cur >= FD_SETSIZE + PEERS_FEW * each)
		return true;
	n = limit.rlim_cur < FD_SETSIZE ? limit.rlim_cur : FD_SETSIZE;
	for (rlim_t fd = 0; fd < n; fd++)
		all[fd] = (struct pollfd){.fd = (int)fd};
	if (poll(all, n, 0) < 0)
		return true;
	for (rlim_t fd = 0; fd < n; fd++)
		used += !(all[fd].revents & POLLNVAL);
	nodes = used < limit.rlim_cur ? (limit.rlim_cur - used) / each : 0;
	if (nodes == 0)
		return complain(
			"no node fits: a node takes %ju descriptor%s, and the server itself "
			"needs %ju of the %ju that the limit allows; raise the limit with "
			"ulimit -n or LimitNOFILE=",
			(uintmax_t)each, S(each), (uintmax_t)used, (uintmax_t)limit.rlim_cur);
	if (nodes < PEERS_FEW)
		warn("warning: only %ju node%s of %u vector%s will fit: the limit of descriptors is "
		     "%ju; raise that limit with ulimit -n or LimitNOFILE=",
		     (uintmax_t)nodes, S(nodes), m->opt->vectors, S(m->opt->vectors),
		     (uintmax_t)limit.rlim_cur);
	return true;
}
