/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The mesh, as the server's stream tells it: who is there, the doorbells of each, the memory. The
 * stream and its rules are those of ivshmem_protocol(7) and of QEMU's ivshmem-spec,
 * "Client-Server protocol". In a virtual machine it is what the device shows of it: only the client
 * itself is known there, and there is no stream; sock is the device's timer.
 *
 * This room owns the connection and all descriptors that came over it, and nobody else closes them
 * or writes to a struct mesh, but to what the command line said before it is joined. Others read
 * what stands above "private" there, and may poll sock. A message is read only in mesh_join,
 * message_read and messages_read, so that what stands there does not change in between.
 */
#ifndef CLIENT_MESH_H
#define CLIENT_MESH_H

#include "client/report.h"

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct device;

#define IDS         65536 /* an ID is less */
#define VECTORS_MAX 2048  /* of a peer: what MSI-X has */
#define ALL         (-1)  /* every vector, or every other peer */
#define TURN        2048  /* messages that are read before something else has its turn */

/* A peer, or the client itself. It is there if it has vectors. */
struct peer {
	int vectors; /* eventfds received */
	int *fds;    /* those; closed by mesh */
	bool told;   /* private: its join has been told of */
	bool left;   /* private: since then it has left, of which has not been told */
};

/* What the next message must be. */
enum head { HEAD_FIRST, HEAD_SECOND, HEAD_MEMORY, HEAD_DONE };

/* 1.5 MB: make it static. Zeros, but for what the command line said, until it is joined. */
struct mesh {
	const char *path;      /* of the server's socket; it fits into a sun_path */
	struct device *device; /* in its place; NULL: none */
	int given_vectors;     /* by -n; -1: not given */
	bool verbose;          /* every message is reported */

	int sock;             /* -1: the connection has ended */
	bool gone;            /* then: since the server ended it, or is not there; else we did */
	char error[WHY_SIZE]; /* then: why */
	int id;               /* our own */
	int memory;           /* -1: none */
	off_t size;           /* of the memory, in bytes */
	struct peer peers[IDS];

	/* private */
	int ids;            /* one above the highest ID that has been seen */
	enum head head;     /* where in the greeting we are */
	int vectors;        /* that a whole peer has; -1: not known yet */
	int most;           /* eventfds that one peer has had: vectors are no fewer */
	int group;          /* the ID whose eventfds are coming in; -1: none */
	int news, news_end; /* no ID below, nor from the second on, has anything to be told */
};

/*
 * Connects, and reads the greeting, whose end nothing marks ("THE STREAM"). patience: how long the
 * caller may wait, in ms; a server may be silent so long, but not much more or less than is
 * sensible. The mesh has never been joined, or been freed. Returns false with error and gone, and
 * has freed it.
 */
bool mesh_join(struct mesh *m, int64_t patience);

/* Forgets everything but what the command line said, error and gone. mesh_join has been called. */
void mesh_free(struct mesh *m);

/* Reads one message, if there is one. Returns whether there was; sock, error, gone say if it ends.
 */
bool message_read(struct mesh *m);

/* Reads up to TURN messages. Returns false if the connection has ended thereby: not again later. */
bool messages_read(struct mesh *m);

enum news { NEWS_NONE, NEWS_JOIN, NEWS_LEAVE };

/*
 * The next join or leave of another that has not been told yet, and its ID; from now on it has.
 * Who has come and gone since the last call is not mentioned.
 */
enum news news_next(struct mesh *m, int *id);

/* Takes all that is so far for told. */
void news_skip(struct mesh *m);

/* The client itself among the peers. */
const struct peer *mesh_own(const struct mesh *m);

/* The next other ID whose doorbells are all known, above id; -1: none. Begin with -1. */
int peer_next(const struct mesh *m, int id);

/*
 * Rings a doorbell once; either may be ALL, and with id so is vector. Never waits. Returns false
 * with why, WHY_SIZE bytes, where there is no such doorbell, or it cannot be rung.
 */
bool mesh_ring(const struct mesh *m, int id, int vector, char *why);

/* How often an own doorbell, which must be there, was rung since the last call. Never waits. */
uint64_t bell_count(const struct mesh *m, int vector);

/* Fills a pollfd for each own doorbell, of which there are up to VECTORS_MAX; with nothing to wait
 * for if off. Returns how many. */
size_t bells_poll(const struct mesh *m, struct pollfd *polls, bool on);

#endif
