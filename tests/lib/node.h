/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Real QEMU nodes for tests: a process of qemu-system-x86_64 with one ivshmem-doorbell device,
 * whose registers and memory are reached over the qtest protocol. Its processor never runs, so that
 * no guest is needed and a node is up in a fraction of a second.
 *
 * A node whose QEMU has died answers every read with all ones, as the bus does for a device that
 * was pulled out, and takes every write to no effect: no call fails, and what the test expects
 * does.
 */
#ifndef NODE_H
#define NODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct node {
	pid_t pid;   /* 0: it has ended, and was waited for */
	int status;  /* what it ended with: an exit status, or the negative number of a signal */
	int qtest;   /* our end of the connection; -1: lost. Closed by node_end */
	int errors;  /* a memfd with what it wrote to stderr; closed by node_end */
	bool failed; /* the connection was lost, or what it said made no sense: why is on stderr */
	unsigned int vectors;
	unsigned int slot; /* of the device on the bus; like the rest, known from node_ready on */
	uint64_t size;     /* of the shared memory */
	uint32_t pba;      /* where in BAR1 the pending bits are */
	struct node *next;
};

/* Returns the reason why no node can be started here, or NULL if one can. */
const char *node_missing(void);

/*
 * Starts a node that connects to the server at this socket, with so many vectors and further
 * properties of the device, e.g. ",master=on". Does not wait for it: node_ready does. The caller
 * ends it with node_end. Returns NULL with errno.
 */
struct node *node_start(const char *socket, unsigned int vectors, const char *properties);

/* Whether the node has connected to the server, which may have said nothing yet. */
bool node_connected(const struct node *n);

/*
 * Waits until the node has had its greeting, then does what a guest's firmware and driver would: it
 * maps the device's three BARs and enables MSI-X with all vectors masked, so that doorbells stay
 * visible as pending bits. Returns whether that went well; if not, why is on stderr.
 */
bool node_ready(struct node *n);

/*
 * Waits, at most so many seconds, until the node ends by itself; n->status then says with what.
 * Returns false if it goes on living.
 */
bool node_wait(struct node *n, int seconds);

/* Whether the node runs and answers. */
bool node_alive(struct node *n);

/* Returns what the node has written to stderr so far, up to the next call. */
const char *node_errors(struct node *n);

/* Kills the node if it lives, waits for it and frees it. */
void node_end(struct node *n);

/* Ends all nodes there are: for the teardown of a test. */
void nodes_end(void);

/* The node's own ID as its guest sees it: the register IVPosition. */
int node_id(struct node *n);

/* Rings the doorbell of one vector of the peer with this ID. */
void node_ring(struct node *n, int id, unsigned int vector);

/* Reads, or writes, eight bytes of the shared memory, at this offset in BAR2. */
uint64_t node_load(struct node *n, uint64_t offset);
void node_store(struct node *n, uint64_t offset, uint64_t value);

/* Whether this vector's doorbell has been rung since node_quiet. */
bool node_rung(struct node *n, unsigned int vector);

/* How many vectors' doorbells have been rung since node_quiet. */
unsigned int node_rung_count(struct node *n);

/* Waits until the node has taken notice of all doorbells that were rung before this call. */
void node_settle(struct node *n);

/* Forgets the doorbells that have been rung: clears all pending bits, after node_settle. */
void node_quiet(struct node *n);

/* How many eventfds the node's process holds: those of its peers, its own, and a few of QEMU's. */
size_t node_eventfds(const struct node *n);

#endif
