/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mesh: the heart: who is there, what each has been told, and what is to be told next
 *
 * Owns the peers in the ledger, the ring of departures, and the sets of sockets that say who can be
 * sent something. Nothing is queued for anybody: a peer has a place, and message_next derives from
 * that what comes next. Only this room sends to peers.
 */
#ifndef SERVER_MESH_H
#define SERVER_MESH_H

#include "server/ledger.h"
#include "server/log.h"
#include "server/options.h"
#include "server/supervisor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/select.h>
#include <sys/socket.h>

#define SEND_RETRY_MS 20 /* until a send is tried again that the kernel had no room for */
#define NEWS_WAIT_MS  50 /* how long greetings keep news waiting, at most */
#define READ_WAIT_MS  5  /* how long greetings under way are waited for where nobody reads his */

/* Greetings under way at the same time, of those that are read. With more, all would end later: the
 * nodes of a host share its processors. */
#define GREETINGS_AT_ONCE 8

/* How much goes out of greetings, and of news, before the loop looks again: messages, and one for
 * each call. */
#define ROUND_SHARE 512

/* Who a peer is, as far as it is known: by its name when it connected, or when the process that
 * serves it first asked. */
struct who {
	struct ucred process;
	char name[32]; /* "": not known (yet) */
};

struct mesh {
	const struct options *opt;
	struct ledger *ledger;
	struct supervisor *supervisor;
	size_t count;               /* of peers */
	uint16_t order[FD_SETSIZE]; /* their sockets, in the order in which they joined */
	fd_set present;             /* the same sockets */
	fd_set greeting;            /* those that have not been sent their greeting yet */
	fd_set idle;                /* those of which nobody waits until they have read it */
	fd_set due;                 /* those for which there may be news */
	fd_set turn;                /* those that have their turn of news yet to come */
	fd_set blocked;             /* those that are full: they wait for select */
	fd_set starved;             /* those for which the kernel lacked something: a timer */
	int64_t busy_ms;            /* when a greeting went on, or a client came */
	int64_t news_ms;            /* since when greetings keep news waiting; 0: there are none */
	struct who who[FD_SETSIZE]; /* by socket */
};

/* What is to be told of a peer, in a table of all. */
struct row {
	const struct who *who;
	int id;
	int64_t age;    /* since it joined, in seconds */
	size_t waiting; /* messages: peer_owed */
	bool greeted;   /* it has been sent its greeting */
	uint8_t stored; /* as in struct peer; of interest where there is a supervisor */
};

/*
 * The ID of the next peer: the lowest that is free and was retired before every peer now connected
 * had joined, since clients break over an ID that they have seen leave (hazard 1). So no ID departs
 * twice while anybody is there who has not dealt with the first time, and the ring of departures is
 * long enough. With nobody connected that is 0. Returns -1 if there is none.
 */
int id_pick(const struct mesh *m);

/*
 * Makes the eventfds of a peer, out of select's range if the limit of descriptors allows. Returns
 * false with errno, and there are none.
 */
bool eventfds_open(struct peer *p, unsigned int vectors);

/* Has select told when the peer with this socket has gone, if it is not yet. Returns false with
 * errno. */
bool end_watch(const struct mesh *m, int sock);

/*
 * Makes a peer of a client, which is greeted and told to all others when it is their turn. Its
 * parcel may have been stored before.
 */
void peer_join(struct mesh *m, int sock, int id, bool stored);

/* Disconnects a peer that could no longer know for certain which others are there. */
void peer_let_go(struct mesh *m, int sock, const char *why);

/*
 * Gives the peer to which the process before was sending the place that it has: so much has gone
 * out. First of all, since the batch follows from who was there then.
 */
void send_settle(struct ledger *l);

/* Takes over the peers that stand in the ledger. */
void peers_restore(struct mesh *m);

/*
 * Sends some of what is owed; clients says whether any may be waiting to come. Who is in his
 * greeting stands still (hazard 4), so greetings come first, in the order of joins, and news wait
 * as long as greetings go on or clients come: NEWS_WAIT_MS, and from then on they take turns.
 * Returns after how many milliseconds it is to be called again, if nothing happens before; -1:
 * never.
 */
int64_t peers_send(struct mesh *m, bool clients);

/* Those that can be sent more as soon as their sockets have room, as far as it is their turn. */
fd_set peers_waiting(const struct mesh *m);

/* How many messages a peer is still to be sent: as many as message_next would give. */
size_t peer_owed(const struct mesh *m, const struct peer *p);

/* Whether a peer has read all that was for it. QEMU drops the rest when the connection ends. */
bool peer_has_read(const struct mesh *m, int sock);

/*
 * Why a client counts as gone, NULL if it does not: it never writes, so the end of the stream says
 * so, and any byte.
 */
const char *client_ended(int sock);

/* Notices who has gone. */
void peers_read(struct mesh *m);

/* Notices who can be sent more. */
void peers_wake(struct mesh *m, const fd_set *writable);

/* Who is at the other end of a socket. */
struct who who_is(int sock);

/* "process 123 (qemu-system-x86), uid 64055" */
struct text who_text(const struct who *w);

/* The row of the peer with this socket. */
struct row peer_row(struct mesh *m, int sock);

/* Where the peer with this serial number stands; -1: nowhere. */
int peer_find(const struct ledger *l, uint64_t serial);

/* Whether a peer with this serial number has left. */
bool peer_departed(const struct ledger *l, uint64_t serial);

/* Has the ends of all peers watched: a server that takes over has some. */
bool peers_watch(struct mesh *m);

/*
 * Whether the limit of descriptors leaves room for peers, where nobody is there yet, and so many
 * more descriptors are to be opened. Returns false, having said why, if there is room for none, and
 * says how many if they are few. What is open is counted only where the limit is so low that it
 * matters.
 */
bool peers_fit(const struct mesh *m, unsigned int more);

#endif
