/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * status: what is served and who is there, for who asks: in the log, or over the socket
 *
 * Who only wants to look binds his own end of the connection to an abstract address that begins
 * with STATUS_ADDRESS; QEMU's end has none. He is no node, and nobody hears of him: he gets one
 * message, a memfd with the text that ivshmem_protocol(7) describes under "STATUS", and the end.
 * The text is made in one go, and who asks soon after gets the same one, if nobody has joined or
 * left meanwhile: so a crowd of them costs less than one node.
 *
 * Owns that memfd, which is closed when it is too old to be given out.
 */
#ifndef SERVER_STATUS_H
#define SERVER_STATUS_H

#include "server/descriptor.h"
#include "server/ledger.h"
#include "server/mesh.h"
#include "server/options.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

#define STATUS_ADDRESS "ivshmem-status/" /* behind a zero */

#define STATUS_MS 100 /* how old a text may be that is given out */

struct status {
	const struct options *opt;
	struct ledger *ledger;
	struct reserve *reserve;
	struct mesh *mesh;
	int64_t since;    /* when this process began to serve, in seconds since 1970 */
	int text;         /* the memfd; -1: none */
	size_t length;    /* of that */
	int64_t until_ms; /* when it is too old, on the clock of now_ms */
	uint64_t changes; /* joins and departures before it was made */
};

/* A process begins to serve, and has no text yet; whatever one before it had is closed elsewhere.
 */
void status_begin(struct status *s);

/* Whether who has connected from this address only asks. */
bool status_asked(const struct sockaddr_un *from, socklen_t length);

/*
 * Answers him, and closes his socket. Never waits. Where descriptors are short, the reserve is
 * given up for a moment; where it cannot be done even so he gets no message, and says that himself:
 * the log tells it with -v only.
 */
void status_answer(struct status *s, int sock);

/* Closes the text: whoever comes, or lacks a descriptor, is to have that one. Returns whether there
 * was a text. */
bool status_drop(struct status *s);

/* The same, if it is too old, or no longer true. */
void status_settle(struct status *s);

/* Logs what is served, and how to connect a node to it. */
void status_announce(const struct status *s);

/* Logs who is there. */
void status_log(const struct status *s);

#endif
