/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A strict client of the ivshmem protocol. It reads one message at a time, keeps a model of who is
 * there, and calls everything an error that some real client would break over (the hazards in
 * doc/compatibility.md, "What a server must never do"). Many clients can be driven from one thread.
 *
 *	struct client c;
 *
 *	if (!client_connect(&c, path, (struct client_options){.vectors = 2, .keep = true}) ||
 *	    !clients_drive(&c, 1, client_knows, &(size_t){3}, PATIENCE))
 *		puts(c.error);
 *	client_ring(&c, id, 1);
 *	client_free(&c);
 */
#ifndef CLIENT_H
#define CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CLIENT_IDS         65536
#define CLIENT_PAGE        256 /* IDs that are near each other take memory together */
#define CLIENT_VECTORS_ANY (-1)

/* What the client knows of the server, and how it treats descriptors. */
struct client_options {
	int vectors;     /* that each peer has; CLIENT_VECTORS_ANY where the client cannot know */
	bool legacy;     /* the original stream: no version message, memory of any size */
	bool memoryless; /* the server has no memory (-L -m 0) */
	bool starved;    /* it may be unable to send descriptors: a refusal may have none */
	bool keep; /* keep the descriptors, to ring them; else they are closed and only counted */
};

/* What the next message must be. */
enum client_phase {
	CLIENT_VERSION,
	CLIENT_ID,
	CLIENT_MEMORY,
	CLIENT_PEERS,   /* eventfds of others, or the first of its own */
	CLIENT_OWN,     /* the rest of its own eventfds */
	CLIENT_GREETED, /* joins and leaves, from here on for ever */
	CLIENT_REFUSED, /* three messages of -1, each with a descriptor of size 0, and the end */
};

enum client_peer_state { PEER_NEVER, PEER_HERE, PEER_LEFT };

/* Another peer, or the client itself, as this client sees it. */
struct client_peer {
	enum client_peer_state state;
	int vectors; /* eventfds received */
	int *fds;    /* those, if they are kept */
};

struct client {
	struct client_options options;
	int sock;
	enum client_phase phase;
	bool ended;                                          /* the server closed the connection */
	char error[160];                                     /* what was wrong; empty: nothing */
	int id;                                              /* its own; -1 before it is known */
	struct client_peer *peers[CLIENT_IDS / CLIENT_PAGE]; /* by ID, its own included, in pages */
	size_t here;  /* others that have joined and not left */
	size_t whole; /* of those, the ones with all their eventfds */
	size_t left;  /* others that have left */
	size_t messages;
	int64_t last; /* the value of the last message */
	int group;    /* the ID whose eventfds are coming in; -1: none */
	int memory;   /* the descriptor, if kept; else -1 */
	dev_t memory_dev;
	ino_t memory_ino;
	off_t memory_size;
};

/* Clients that are all there is. */
struct client_crowd {
	const struct client *list;
	size_t n;
};

/* What a client is driven towards: says whether it has got there. */
typedef bool client_condition(const struct client *c, const void *argument);

/*
 * Connects, and reads nothing yet. Waits if the server's backlog is full. Returns false with
 * c->error set. client_free is right after either.
 */
bool client_connect(struct client *c, const char *path, struct client_options options);

/* The same for n clients, none of which waits for another; all may be freed after either. */
bool clients_connect(struct client *clients, size_t n, const char *path,
		     struct client_options options);

/*
 * Reads one message if there is one, and checks it against everything before. Returns 1 for a
 * message, 0 if none is waiting, and -1 at the end of the stream (c->ended) or where the server is
 * wrong (c->error).
 */
int client_step(struct client *c);

/*
 * Lets n clients read, a few messages each in turn, until the condition holds for every one of
 * them. Returns false when nothing came for so many seconds, and at the first error; one client's
 * error then says which it was and what it knew. The end of a stream that no condition asked for is
 * an error too.
 */
bool clients_drive(struct client *clients, size_t n, client_condition *done, const void *argument,
		   int seconds);

/* Of those n clients, the one that has an error; NULL: none. */
const struct client *clients_error(const struct client *clients, size_t n);

/* Conditions for clients_drive. */

/* Its greeting is complete. */
bool client_greeted(const struct client *c, const void *unused);
/* Its greeting is complete, and *(size_t *) others are there, each with all its vectors. */
bool client_knows(const struct client *c, const void *others);
/* The peer *(int *) is there, with all its vectors. */
bool client_sees(const struct client *c, const void *id);
/* The others of *(struct client_crowd *) are there, each with all its vectors, and nobody else: by
 * who it is, since so many may be those of a moment ago. */
bool client_meets(const struct client *c, const void *crowd);
/* The peer *(int *) is not, or no longer, there. */
bool client_misses(const struct client *c, const void *id);
/* The server closed the connection. */
bool client_ended(const struct client *c, const void *unused);
/* It was turned away as it should be: three messages of -1, and then the end of the stream. */
bool client_refused(const struct client *c, const void *unused);
/* It was either greeted or refused. */
bool client_answered(const struct client *c, const void *unused);

/* What is known of an ID; never NULL. */
const struct client_peer *client_peer(const struct client *c, int id);

/* Rings a peer, its own bell included. Returns false with errno; EINVAL: no such peer or vector. */
bool client_ring(const struct client *c, int id, int vector);

/* How often its own vector was rung since the last look; 0: never. Never waits. */
uint64_t client_rung(const struct client *c, int vector);

/* Closes everything that the client holds. The model stays readable until client_free. */
void client_close(struct client *c);

/* client_close, and the model is freed too. */
void client_free(struct client *c);

/* The same for n of them. */
void clients_free(struct client *clients, size_t n);

#endif
