/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * supervisor: what keeps descriptors for us, such as systemd (sd_notify(3))
 *
 * It passes them to the process that it starts when this one has ended: what is our own, and for
 * each peer a parcel, one end of a pair of sockets in whose queue the peer's socket and eventfds
 * lie in order. So it holds one descriptor for a peer, however many vectors that has. The other end
 * of the pair lies there first: to close the last descriptor of a socket would cost more than all
 * the rest. We never wait for the supervisor, newcomers do for a second at most: what it has no
 * room for is told again later.
 */
#ifndef SERVER_SUPERVISOR_H
#define SERVER_SUPERVISOR_H

#include "server/ledger.h"
#include "server/log.h"
#include "server/options.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/un.h>

struct supervisor {
	const struct options *opt;
	struct ledger *ledger;
	int sock; /* connected to it, if it can be reached; closed at exit. -1: not opened yet */
	struct sockaddr_un address;
	socklen_t length;     /* of the address; 0: there is no supervisor */
	size_t room;          /* descriptors that it stores for us, at most */
	size_t flight;        /* and that parcels may hold, for the kernel to pass others as well */
	bool lost;            /* it cannot be reached, or lacks something, and the log says so */
	bool full;            /* it had no room for a message: select tells when it has */
	bool stuck;           /* and that for so long that nobody waits for it any more */
	bool unready;         /* it has not been told yet that we are ready */
	bool stopping;        /* nor that we are ending */
	int64_t reloading_us; /* when a restart began of which it has not been told; 0: none */
	uint8_t own_step;     /* how far it has been told what is our own (own_update) */
	uint8_t drop_step;    /* and that it is to drop what it has of somebody who has left */
	bool doubtful;        /* what it was told of our own before, it may have lost */
	bool behind;          /* so it may be with peers, or there is room for more of them */
	size_t nodes;         /* how many there are, for our status */
	size_t nodes_told;    /* and how many that says */
	int64_t took_ms;      /* when it last stored or dropped something, on the clock of now_ms */
	int64_t ping_ms;      /* how often it is to hear that the loop goes round; 0: not at all */
	int64_t ping_at;      /* when it is to hear that next, on the clock of now_ms */
};

#define STORE_MS 1000 /* that it gets to take something when the server ends */

/* The names under which the supervisor stores what is our own. */
extern const char *const own_names[OWNS];

#define PARCEL "node-" /* and a serial number: what the parcel of a peer is called */

/* Which descriptors in a parcel are what; the eventfds come last. */
enum { PARCEL_END, PARCEL_SOCKET, PARCEL_EVENTFDS };

/*
 * What is stored of a peer. Only by its name can the supervisor drop a parcel, so one that is to
 * take the place of another has another name, which means the same: a zero before the number.
 */
enum {
	PARCEL_FIRST = 1,
	PARCEL_SECOND = 2, /* by the name with the zero */
	PARCEL_KEPT = PARCEL_FIRST | PARCEL_SECOND,
	PARCEL_BOTH = 4, /* the one by the other name is to be dropped */
	PARCEL_ANEW = 8, /* it may have been lost: another is to take its place */
};

/* Finds out whether there is a supervisor, and how much it can store. */
void supervisor_open(struct supervisor *v);

/* Whether there is one. */
bool supervised(const struct supervisor *v);

/* Makes the socket to tell it anything, where there is none yet. Returns false with errno. */
bool supervisor_socket(struct supervisor *v);

/* Has all descriptors dropped that are stored by this name. */
bool supervisor_drop(struct supervisor *v, const char *name);

/*
 * Whether a node that joined now could be stored at once: all who have left have been dropped,
 * which is done here, and there is room for another message. Until then newcomers are better off in
 * the queue of the listener, which outlives us; for STORE_RETRY_MS at most.
 */
bool supervisor_takes(struct supervisor *v);

/* What the parcel of the peer with this serial number is called, by its first name or its second.
 */
struct text parcel_name(uint64_t serial, bool second);

/*
 * Has the parcel of a peer stored that has this socket, and is to have this serial number. Returns
 * false if it is still to be stored by supervisor_update.
 */
bool parcel_store(struct supervisor *v, int sock, uint64_t serial, bool second);

/* So many nodes there are now: the status says so from the next message about one of them on. */
void supervisor_count(struct supervisor *v, size_t nodes);

/* A restart begins, which READY=1 ends, whatever comes of it. */
void supervisor_reload(struct supervisor *v);

/* We are ending. */
void supervisor_stop(struct supervisor *v);

/* Has all stored anew that has been, since it may have been lost. */
void supervisor_doubt(struct supervisor *v);

/*
 * Tells the supervisor what it does not know yet, as far as it has room: of us, whether we are
 * ready, of who has left, and of who is there.
 */
void supervisor_update(struct supervisor *v, bool ready);

/* Has something of our own stored once more: it is another now. */
void supervisor_renew(struct supervisor *v, enum own what);

/* Has select look whether the supervisor has room, if it had none. */
void supervisor_watch(const struct supervisor *v, fd_set *writable);

/* Notices that it has room, and takes it out of the set, for others are peers. */
void supervisor_wake(struct supervisor *v, fd_set *writable);

/* Lets the supervisor know that the loop goes round, when it is to hear that. */
void supervisor_ping(struct supervisor *v);

/*
 * At an exit: tells the supervisor why we could not start. Its status shows that while it waits to
 * try again, and of the log only what came after the end. (on_exit(3) wants it like that.)
 */
void supervisor_explain(int status, void *supervisor);

/*
 * Opens the socket that lies in a parcel, or the eventfds, or both, and leaves them there; NULL:
 * not this. Returns false with errno, and nothing is open.
 */
bool parcel_open(const struct ledger *l, int parcel, int *sock, int32_t *eventfds);

/* Whether systemd has executed this very process. */
bool unit_started(void);

/* Warns of what starts well in a unit of systemd and then serves nobody. */
void unit_warn(const struct supervisor *v, const struct options *o, bool own_socket);

#endif
