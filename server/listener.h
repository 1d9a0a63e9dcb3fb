/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * listener: the socket on which nodes connect: found free, bound, watched, removed
 *
 * Owns the socket's file and what is known of it. What makes the socket anew while the server runs
 * serves those who wait on the old one, and is in client.
 */
#ifndef SERVER_LISTENER_H
#define SERVER_LISTENER_H

#include "server/ledger.h"
#include "server/options.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

struct listener {
	struct options *opt; /* of which it writes the socket: a passed one stands elsewhere */
	struct ledger *ledger;
	char *stale;    /* where the stale socket is that this start has found; NULL: none */
	bool lost;      /* somebody removed our socket, and the log says so */
	bool doubted;   /* somebody has done something to it: it is looked at at the next timer */
	int32_t looker; /* the child that looks whether it is still reached by its path; 0: none */
};

#define ACCEPTS_PER_ROUND 4 /* of the loop: more would only keep the first ones waiting */

#define SOCKET_LOST_MS                                                                            \
	500                   /* until a socket is made again that somebody removed: not at once, \
				 who removes a folder is to get through */
#define SOCKET_RETRY_MS 1000  /* and until that is tried again */
#define SOCKET_LOOK_MS  20000 /* between looks at it: not all that can be done to it is told */

/* Which process, of which user, has connected by this socket. */
struct ucred client_process(int sock);

/* The address of a socket at a path, which must not be too long for one. */
struct sockaddr_un socket_address(const char *path);

/* Removes the stale socket that was set aside; or puts it back, if nobody else has taken its place.
 */
void stale_leave(struct listener *n, bool replaced);

/*
 * Has the kernel tell us when somebody removes or moves the socket's file, which shows as a change
 * of its link count, or its folder. Where that fails, HUP and USR1 look all the same.
 */
bool socket_watch(struct listener *n);

/* Makes the socket and listens on it. *fd is what listens, also if it failed; -1: nothing. */
bool socket_make(struct listener *n, int32_t *fd);

/*
 * Whether our socket stands at its path; if not, errno is ENOENT, or says why nobody knows. A
 * socket that a supervisor has made is its own matter.
 */
bool socket_stands(const struct listener *n);

/*
 * Removes the socket if it is still ours. Nobody else can connect from here on; who waits already
 * is kept.
 */
void socket_remove(struct listener *n);

/*
 * Starts a child that looks whether our socket is still reached by its path, if none is at it: what
 * the path leads through may be on a file system that does not answer.
 */
void look_start(struct listener *n);

/* That child has ended, with this status of waitpid(2): notes it if the socket is not reached. */
void look_ended(struct listener *n, int status);

/* Whether a descriptor is a UNIX socket that listens for streams. */
bool is_listener(int fd);

/*
 * Notes which file is that of the listening socket, and for whom, where the ledger does not say it:
 * the one at its path, if nobody else listens there.
 */
void listener_identify(struct listener *n);

/* Logs the path of a socket that a supervisor has made, which replaces the path of -p. */
void socket_name(struct listener *n);

/*
 * Whether the listening socket that was taken over is where the options want it, and for whom:
 * group could connect there. It may have been shut down, or the file be that of one which was lost.
 */
bool listener_fits(const struct listener *n, uint32_t group);

/* Removes the socket of a listener that does not fit, from where it stands. Who waits there is
 * still to be served. */
void listener_forsake(struct listener *n);

#endif
