/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * client: who connects: accepted, welcomed as a peer, turned away, or told the status
 *
 * Also makes the socket again when somebody has removed it, since clients that wait on the old
 * socket are served first.
 */
#ifndef SERVER_CLIENT_H
#define SERVER_CLIENT_H

#include "server/descriptor.h"
#include "server/ledger.h"
#include "server/listener.h"
#include "server/log.h"
#include "server/mesh.h"
#include "server/options.h"
#include "server/status.h"
#include "server/store.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/select.h>

struct clients {
	const struct options *opt;
	struct ledger *ledger;
	struct reserve *reserve;
	struct store *store;
	struct listener *listener;
	struct mesh *mesh;
	struct status *status;
	bool ending; /* the server ends: its socket is not made again */
};

/*
 * Turns a client away, and says why. After an early end of the stream QEMU would spin for ever;
 * three messages, each -1 with a descriptor of size 0, make every device exit: as a version, as
 * its own ID, or as a memory that is too small (hazard 3). Closes the socket.
 */
#define client_refuse(c, sock, ...) \
	(warn("a client is refused: " __VA_ARGS__), client_dismiss(c, sock))

/* The second half of that. */
void client_dismiss(const struct clients *c, int sock);

/* Makes a peer of a client that has been accepted, or turns it away; or answers, if it only asks
 * for the status. The socket is the room's from then on. */
void client_welcome(struct clients *c, int sock);

/*
 * Welcomes those who wait, some or all. Where no descriptor is left, the spare one is given up for
 * a moment to refuse a client; if the kernel has no room even so, accepting pauses. Returns whether
 * nodes have come, and others may be waiting still; who only asks for the status keeps nobody
 * waiting.
 */
bool clients_accept(struct clients *c, bool all);

/* Finds the clients that a process had accepted when it died, and not made peers yet: sockets with
 * our address that belong to no peer. The caller is to welcome them. */
void clients_find(const struct clients *c, fd_set *found);

/* Turns away who has connected to a listening socket that nobody will serve (hazard 3). */
void clients_turn_away(const struct clients *c, int listener, const char *why);

/* Somebody has done something to our socket: have it looked at. */
void socket_changed(struct clients *c);

/* Makes our socket again if somebody has removed it. Says so once, and tries until it works. */
void socket_check(struct clients *c);

/*
 * Looks after our socket. The kernel tells what is done to it or to its folder; but not that a
 * folder further up has been moved, a link on the way leads elsewhere, or something is mounted over
 * it: a child looks for that, now and then.
 */
void socket_look(struct clients *c);

/*
 * Listens: on the socket of a socket unit; on the one that was taken over, if that fits; or on a
 * new one. Where there is one to go on with that cannot be made again, it is tried again later.
 */
bool socket_open(struct clients *c, int passed, uint32_t group);

#endif
