/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/client.h"
#include "send_scm.h"
#include "server/descriptor.h"
#include "server/ledger.h"
#include "server/listener.h"
#include "server/log.h"
#include "server/mesh.h"
#include "server/status.h"
#include "server/store.h"
#include "server/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define REFUSED (-1) /* a version that makes every QEMU exit with an error */

#define ACCEPT_RETRY_MS 250 /* and an accept, each of which is logged */

/*
 * The next client that waits at a socket, or -1 with errno; *asks: it is one who asks for the
 * status only. Our own look is none (socket_is_ours).
 */
static int client_accept(int listener, bool *asks)
{
	struct sockaddr_un from;
	socklen_t length;
	int sock;

	for (;;) {
		length = sizeof(from);
		sock = accept4(listener, (struct sockaddr *)&from, &length,
			       SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (sock < 0 || client_process(sock).pid != getpid())
			break;
		close(sock);
	}
	*asks = sock >= 0 && status_asked(&from, length);
	return sock;
}

void client_dismiss(const struct clients *c, int sock)
{
	const struct scm_msg no = {REFUSED, c->reserve->null}, bare = {REFUSED, -1};
	struct mmsghdr headers[3];
	int sent = scm_send(sock, headers, (const struct scm_msg[]){no, no, no}, 3);

	/* Where no more descriptors may be in flight, most devices are content with the version;
	 * and who has gone, as most have after that, need not be told. */
	if (sent < 3 &&
	    scm_send(sock, headers, (const struct scm_msg[]){bare, bare, bare},
		     sent > 0 ? 3 - (size_t)sent : 3) < 0 &&
	    errno != EPIPE && errno != ECONNRESET)
		fail("cannot tell a client that it is refused");
	close(sock);
}

/* Makes a peer of a client, or turns it away. */
static void client_enter(struct clients *c, int sock)
{
	const char *ended = client_ended(sock);
	int id;

	status_drop(c->status);
	if (ended) {
		say("a client left before its handshake: %s", ended);
		close(sock);
		return;
	}
	if (sock >= PEERS_END) {
		client_refuse(c, sock, "no more nodes fit into one server");
		return;
	}
	if (!store_has_size(c->store)) {
		client_refuse(c, sock, "%s has been resized since the server opened it",
			      c->opt->object);
		return;
	}
	id = id_pick(c->mesh);
	if (id < 0) {
		client_refuse(
			c, sock,
			"no ID is left until ID %d leaves, which has seen all other IDs leave",
			peer_at(c->ledger, c->mesh->order[0])->id);
		return;
	}
	socket_buffer_limit(sock);
	/* Urgent data is data: else some kernels would report it and not let it be read. */
	if (setsockopt(sock, SOL_SOCKET, SO_OOBINLINE, &(int){1}, sizeof(int)) < 0)
		fail("cannot set an option of a client's socket");
	if (!end_watch(c->mesh, sock) ||
	    !eventfds_open(peer_at(c->ledger, sock), c->ledger->vectors)) {
		client_refuse(c, sock, "%s", strerror(errno));
		return;
	}
	peer_join(c->mesh, sock, id, false);
}

/*
 * Serves who has been accepted; refusal: the errno that said that there is no descriptor for a
 * node, or 0. Returns whether he is one, or was refused.
 */
static bool client_serve(struct clients *c, int sock, bool asks, int refusal)
{
	if (asks)
		status_answer(c->status, sock);
	else if (refusal)
		client_refuse(c, sock, "%s", strerror(refusal));
	else
		client_enter(c, sock);
	return !asks;
}

void client_welcome(struct clients *c, int sock)
{
	struct sockaddr_un from;
	socklen_t length = sizeof(from);
	bool known = getpeername(sock, (struct sockaddr *)&from, &length) == 0;

	client_serve(c, sock, known && status_asked(&from, length), 0);
}

bool clients_accept(struct clients *c, bool all)
{
	bool came = false;

	reserve_fill(c->reserve);
	for (int i = 0; all || (i < ACCEPTS_PER_ROUND && supervisor_takes(c->mesh->supervisor));
	     i++) {
		bool asks;
		int sock = client_accept(c->ledger->listener, &asks), error = errno, refusal = 0;
		bool full = sock < 0 && (error == EMFILE || error == ENFILE);

		if (full && status_drop(c->status))
			continue;
		if (full) {
			spare_close(c->reserve);
			refusal = error;
			sock = client_accept(c->ledger->listener, &asks);
			error = errno;
		}
		if (sock >= 0 && client_serve(c, sock, asks, refusal))
			came = true;
		if (full)
			reserve_fill(c->reserve);
		if (sock >= 0 || error == ECONNABORTED || error == EINTR)
			continue;
		if (error == EAGAIN || error == EINVAL /* shut down, and empty */ || c->ending)
			return false;
		errno = error;
		if (!full)
			fail("cannot accept a client");
		timer_start(c->ledger, TIMER_ACCEPT, ACCEPT_RETRY_MS);
		return false;
	}
	return came;
}

void clients_find(const struct clients *c, fd_set *found)
{
	struct sockaddr_un ours = {0}, theirs = {0};
	socklen_t length = sizeof(ours);

	FD_ZERO(found);
	if (getsockname(c->ledger->listener, (struct sockaddr *)&ours, &length) < 0)
		return;
	for (int fd = STDERR_FILENO + 1; fd < FD_SETSIZE; fd++) {
		socklen_t got = sizeof(theirs);

		if (FD_ISSET(fd, &c->mesh->present) || fd == c->ledger->listener ||
		    getsockname(fd, (struct sockaddr *)&theirs, &got) < 0 || got != length ||
		    memcmp(&ours, &theirs, got) != 0)
			continue;
		got = sizeof(theirs);
		if (getpeername(fd, (struct sockaddr *)&theirs, &got) == 0)
			FD_SET(fd, found);
	}
}

void clients_turn_away(const struct clients *c, int listener, const char *why)
{
	bool asks;
	int sock;

	while ((sock = client_accept(listener, &asks)) >= 0)
		if (asks)
			close(sock);
		else
			client_refuse(c, sock, "%s", why);
}

void socket_changed(struct clients *c)
{
	char events[1024];

	while (read(c->ledger->watch, events, sizeof(events)) > 0)
		;
	if (socket_stands(c->listener))
		return;
	c->listener->doubted = true;
	timer_start(c->ledger, TIMER_SOCKET, SOCKET_LOST_MS);
}

/*
 * Listens on another socket from here on. By the old one, which may have been moved, nobody can
 * connect any more, and who waits there is served before it is closed.
 */
static bool listener_replace(struct clients *c, int fd)
{
	shutdown(c->ledger->listener, SHUT_RDWR);
	clients_accept(c, true);
	supervisor_renew(c->mesh->supervisor, OWN_LISTENER);
	return dup3(fd, c->ledger->listener, O_CLOEXEC) >= 0 ||
	       fail("cannot replace the socket %s", c->opt->socket);
}

/* Makes the socket anew. */
static bool socket_renew(struct clients *c, bool quiet)
{
	int32_t fd;
	bool done;

	log_mute(quiet);
	done = socket_make(c->listener, &fd);
	log_mute(false);
	if (done) {
		stale_leave(c->listener, true);
		done = listener_replace(c, fd);
		socket_watch(c->listener);
	} else if (fd >= 0) {
		clients_turn_away(c, fd, "the socket could not be made");
	}
	if (fd >= 0)
		close(fd);
	return done;
}

void socket_check(struct clients *c)
{
	bool lost = c->listener->lost;

	c->listener->doubted = false;
	c->listener->lost = !c->ending && !socket_stands(c->listener);
	if (!c->listener->lost)
		return;
	if (!lost)
		fail("our socket is gone, making it again: %s", c->opt->socket);
	c->listener->lost = !socket_renew(c, lost);
	if (!c->listener->lost) {
		say("listening on %s again", c->opt->socket);
		return;
	}
	if (!lost)
		complain("nobody can connect: trying again every second");
	timer_start(c->ledger, TIMER_SOCKET, SOCKET_RETRY_MS);
}

void socket_look(struct clients *c)
{
	if (c->listener->lost || c->listener->doubted)
		socket_check(c);
	else if (!c->ending)
		look_start(c->listener);
	timer_start(c->ledger, TIMER_SOCKET, SOCKET_LOOK_MS);
}

/* Listens on a socket that a supervisor has made. */
static void socket_adopt(struct clients *c, int passed)
{
	if (c->ledger->listener >= 0) {
		listener_replace(c, passed);
		close(passed);
	} else {
		c->ledger->listener = descriptor_lower(passed);
	}
	c->ledger->socket_ino = 0;
	socket_name(c->listener);
}

/* Removes the listening socket that was taken over, and serves who waits there. */
static void listener_retire(struct clients *c)
{
	listener_forsake(c->listener);
	clients_accept(c, true);
}

bool socket_open(struct clients *c, int passed, uint32_t group)
{
	struct ledger *l = c->ledger;
	bool inherited = l->listener >= 0, fits;

	if (inherited)
		l->listener = descriptor_lower(l->listener);
	fits = inherited && passed < 0 && listener_fits(c->listener, group);
	if (inherited && !fits)
		listener_retire(c);
	if (passed >= 0)
		socket_adopt(c, passed);
	else if (inherited && !fits)
		socket_check(c);
	else if (inherited || socket_make(c->listener, &l->listener))
		socket_watch(c->listener);
	else
		return false;
	return l->listener < FD_SETSIZE ||
	       complain("cannot listen: no descriptor below %d is left", FD_SETSIZE);
}
