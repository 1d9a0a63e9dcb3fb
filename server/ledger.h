/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ledger: what outlives the process
 *
 * One sealed memfd, mapped shared: the next image of the program, or another process, maps it and
 * goes on. Owns the layout, which other versions read, and the timers, which must not be lost on
 * the way. Beside each field stands the room that writes it; nobody else does.
 *
 * Death can come between any two machine instructions, and the next image must make sense of what
 * it finds. So each change of the ledger has one store that makes it true, and ledger_order()
 * stands between that store and those before and after it: a join is true once the peer has its
 * serial number; a leave once it counts among the departures, whether or not the peer's place has
 * been given free; and of a send that is marked, so many messages have gone out as the kernel has
 * noted in its batch.
 */
#ifndef SERVER_LEDGER_H
#define SERVER_LEDGER_H

#include "send_scm.h"
#include "server/options.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>

#define IDS    65536 /* the device's register has 16 bits for it */
#define NOBODY ((gid_t)-1)

/* Peers stand below this: also a process that takes over, when all these numbers have been taken,
 * is to have some for what select is to look at. */
#define PEERS_END (FD_SETSIZE - 8)

/* Keeps the compiler from moving stores past this point. (A process sees its own in order.) */
#ifndef ledger_order
#define ledger_order() atomic_signal_fence(memory_order_seq_cst)
#endif

/* What a peer has been told: it follows from this what it is to be told next (message_next). */
struct place {
	uint32_t head;       /* messages of the greeting's beginning: version, ID, memory */
	uint32_t vectors;    /* eventfds of the peer with the serial number reached */
	uint64_t reached;    /* of the newest peer of which it has been sent an eventfd; 0: none */
	uint64_t departures; /* how many of all it has dealt with */
};

/* A peer stands at the number of its socket. That and the eventfds are closed by peer_free. All is
 * written by mesh, but for one field. */
struct peer {
	uint64_t serial;   /* its number among all joins, from 1 on; 0: nobody is here */
	uint64_t missed;   /* the departures before it joined, of which it never hears */
	int64_t joined_ms; /* now_ms() when it joined */
	struct place place;
	int32_t process;
	uint16_t id;
	uint8_t sending;    /* the batch in the ledger is being sent to it */
	uint8_t stored;     /* what the supervisor has of it: PARCEL_FIRST and so on; 0: nothing;
			       written by supervisor */
	int32_t eventfds[]; /* one for each vector */
};

struct departure {
	uint64_t serial;
	int64_t id;
};

/* When to do what, on the clock of now_ms; 0: not at all. */
enum timer {
	TIMER_ACCEPT,  /* accept again, after the kernel had no room */
	TIMER_SEND,    /* send again to starved peers */
	TIMER_SYNC,    /* flush the object, for -y */
	TIMER_FLUSH,   /* flush it again, where that came to nothing */
	TIMER_SOCKET,  /* look again whether our socket stands there: always running */
	TIMER_TRIAL,   /* give up a program that does not say whether it can take over */
	TIMER_STORE,   /* tell the supervisor what it had no room for */
	TIMER_STANDBY, /* start a standby */
	TIMERS,
};

#define SOCKET_NOWHERE UINT64_MAX

#define DEATHS 5 /* of which the times are kept */

/* What of our own a supervisor keeps for us, and what that is called there. */
enum own { OWN_LEDGER, OWN_OBJECT, OWN_LOCK, OWN_LISTENER, OWNS };

#define LEDGER_LAYOUT 3
#define LEDGER_RING   200
#define LEDGER_HEAD   ((sizeof(struct ledger) + 63) / 64 * 64) /* the peers begin here, aligned */

/*
 * All that must outlive the process, in memory that the next image maps as well. Its descriptors
 * are closed at exit; -1: there is none. Behind it stand FD_SETSIZE peers, so many bytes each as
 * peer_length says; of pages that nobody has touched the kernel keeps none.
 *
 * At the right stands the room that writes a field. Where another process is followed, takeover
 * writes all of it once.
 */
struct ledger {
	uint64_t magic;           /* ledger: what this is, and of which layout */
	uint32_t layout;          /* ledger */
	uint32_t peer_length;     /* ledger: bytes from one peer to the next */
	uint32_t vectors, legacy; /* ledger: of all nodes, from the options */
	uint32_t group; /* program, listener: who may connect; NOBODY: our own user only */
	uint64_t object_dev, object_ino; /* store */
	uint64_t size;                   /* store: of the object, in bytes */
	int32_t store;                   /* store: the object, passed to every node */
	int32_t lock;                    /* store: the same, opened again for the lock alone */
	int32_t disk;                    /* store: and again to flush it, since the kernel reports
					    an error once for each opening */
	int32_t pidfile;                 /* file */
	int32_t listener;                /* listener, client */
	int32_t watch;                   /* listener: the inotify descriptor that watches it */
	int32_t signals;                 /* program: the signalfd */
	int32_t ends;      /* mesh: an epoll descriptor, readable when a peer has gone */
	int32_t flush_due; /* mesh: the object is to be flushed, once no child does */
	uint64_t socket_dev, socket_ino; /* listener: which socket is ours, among all that may stand
					    there; 0: a supervisor's; SOCKET_NOWHERE: none, to be
					    made */
	int64_t timers[8];               /* ledger, for all rooms */
	int32_t flusher;                 /* store: the child that flushes the object; 0: none */
	uint32_t slots;                  /* mesh: nobody has stood at this number, or beyond */
	uint64_t joins;                  /* mesh: so far; the newest may not have become true */
	uint64_t departures;             /* ledger: so far; each is true once it counts here */
	struct departure ring[IDS];      /* ledger: the last of them, the nth at n % IDS */
	uint64_t forgotten;              /* supervisor: departures of which it has been told */
	uint64_t object_name;            /* ledger: text_hash of what the options call the object */
	uint8_t kept[OWNS];              /* supervisor: what it has by this name, if anything, is
					    right */
	int32_t self;                    /* ledger: the descriptor of all this */
	struct place before;             /* mesh: of the peer that is sent the batch */
	struct mmsghdr batch[SCM_BATCH]; /* mesh: what is sent; msg_len says whether it has been */
	int64_t deaths[DEATHS];          /* standby: when the server died, the last times */
	int32_t standby;   /* standby: that process; 0: none; -1: there is to be none */
	int32_t executing; /* restart, program: another program is to take over, and has not yet */
};

_Static_assert(TIMERS <= 8 && sizeof(struct place) == 24 && sizeof(struct peer) == 56 &&
		       offsetof(struct ledger, ring) == LEDGER_RING &&
		       LEDGER_HEAD == LEDGER_RING + IDS * sizeof(struct departure) + 4216,
	       "another layout of the ledger wants another LEDGER_LAYOUT");

/* Bytes from one peer to the next: whole cache lines. */
static inline uint32_t peer_length(unsigned int vectors)
{
	size_t bytes = sizeof(struct peer) + vectors * sizeof(int32_t);

	return (uint32_t)((bytes + 63) / 64 * 64);
}

/* The peer with this socket, or the place of the one that is to be. */
static inline struct peer *peer_at(const struct ledger *l, int sock)
{
	assert(sock >= 0 && sock < FD_SETSIZE);
	return (struct peer *)((char *)l + LEDGER_HEAD + (size_t)sock * l->peer_length);
}

/* A number that another text hardly has (FNV-1a). */
uint64_t text_hash(const char *text);

/* Makes the ledger of a server that starts with these options. It is sealed, so no holder
 * of the descriptor can truncate it. Returns NULL, having said why. */
struct ledger *ledger_create(const struct options *o);

/*
 * Maps the ledger that another process or image has left in this descriptor; with look, only to
 * read it. The ledger of version 1.2.0 is shorter: without look, a new ledger takes its place in
 * the descriptor, and the supervisor does not have the new one. Returns NULL, having said why: if
 * we cannot read it, errno is EINVAL; any other errno, such as ENOMEM, says nothing about the
 * ledger.
 */
struct ledger *ledger_open(int fd, bool look);

/* Whether the peers in the ledger are as these options want them; says why if not. */
bool ledger_fits(const struct ledger *l, const struct options *o);

/* Notes that somebody has left, which is true from then on. */
void departure_note(struct ledger *l, uint64_t serial, int64_t id);

/* Who left last, by serial number; 0: nobody. Where the process ended just then, that one's place
 * has not been given free. */
uint64_t departed_last(const struct ledger *l);

/* Milliseconds on a clock that nobody sets. */
int64_t now_ms(void);

/* Has something done after so many milliseconds, if it is not to be done sooner already. */
void timer_start(struct ledger *l, enum timer timer, int64_t ms);

/* Whether it is time for that; if so, the timer ends. */
bool timer_ended(struct ledger *l, enum timer timer);

#endif
