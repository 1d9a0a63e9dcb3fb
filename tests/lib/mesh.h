/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What real nodes of one server must be able to do together, as assertions. */
#ifndef MESH_H
#define MESH_H

#include "tests/lib/testing.h"

#include "tests/lib/node.h"

/*
 * Rings from one node to the other until the bell is heard, since a node learns only some time
 * after a join that there is somebody to ring. The eventfds of a peer come in the order of its
 * vectors: once the last one works, all do.
 */
static inline bool node_reaches(struct node *from, struct node *to, unsigned int vector,
				int seconds)
{
	int64_t deadline = deadline_in(seconds);

	do
		node_ring(from, node_id(to), vector);
	while (!node_rung(to, vector) && deadline_ahead(deadline));
	return node_rung(to, vector);
}

static inline void node_reach(struct node *from, struct node *to, unsigned int vector)
{
	assert_that(node_reaches(from, to, vector, PATIENCE),
		    "ID %d cannot ring vector %u of ID %d", node_id(from), vector, node_id(to));
}

/* Waits until all know each other; no bell is left pending. */
static inline void nodes_meet(struct node **nodes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < n; j++)
			node_reach(nodes[i], nodes[j], nodes[j]->vectors - 1);
	for (size_t i = 0; i < n; i++)
		node_quiet(nodes[i]);
}

/*
 * Rings every vector of every node, from every node: each must be heard there, and nothing else
 * anywhere.
 */
static inline void nodes_check_bells(struct node **nodes, size_t n)
{
	nodes_meet(nodes, n);
	for (size_t from = 0; from < n; from++) {
		for (size_t to = 0; to < n; to++) {
			for (unsigned int vector = 0; vector < nodes[to]->vectors; vector++) {
				node_ring(nodes[from], node_id(nodes[to]), vector);
				for (size_t i = 0; i < n; i++) {
					node_settle(nodes[i]);
					assert_int_equal(node_rung_count(nodes[i]), i == to);
				}
				assert_true(node_rung(nodes[to], vector));
				node_quiet(nodes[to]);
			}
		}
	}
}

/*
 * Writes at both ends of the memory from every node; all must read it, each other's and their own.
 * What is written depends on salt, so that nothing from an earlier call can pass for it.
 */
static inline void nodes_check_memory(struct node **nodes, size_t n, uint64_t salt)
{
	uint64_t end = nodes[0]->size;

	for (size_t i = 0; i < n; i++) {
		assert_int_equal(nodes[i]->size, end);
		node_store(nodes[i], i * 8, salt << 32 | 0x1000 | i);
		node_store(nodes[i], end - (i + 1) * 8, salt << 32 | 0x2000 | i);
	}
	for (size_t i = 0; i < n; i++) {
		for (size_t j = 0; j < n; j++) {
			assert_int_equal(node_load(nodes[j], i * 8), salt << 32 | 0x1000 | i);
			assert_int_equal(node_load(nodes[j], end - (i + 1) * 8),
					 salt << 32 | 0x2000 | i);
		}
	}
}

/* All IDs are some, and each another. */
static inline void nodes_check_ids(struct node **nodes, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		assert_in_range(node_id(nodes[i]), 0, CLIENT_IDS - 1);
		for (size_t j = 0; j < i; j++)
			assert_int_not_equal(node_id(nodes[i]), node_id(nodes[j]));
	}
}

/* All of that; each of them lives. */
static inline void nodes_check(struct node **nodes, size_t n, uint64_t salt)
{
	nodes_check_bells(nodes, n);
	nodes_check_memory(nodes, n, salt);
	for (size_t i = 0; i < n; i++)
		assert_true(node_alive(nodes[i]));
}

/* How many eventfds a node holds that has had its whole greeting, whose end are its own. */
static inline size_t node_count_eventfds(struct node *node)
{
	node_reach(node, node, node->vectors - 1);
	node_quiet(node);
	return node_eventfds(node);
}

/*
 * Waits until the node holds so many eventfds: those of a peer are closed when QEMU hears that the
 * peer left.
 */
static inline void node_check_eventfds(struct node *node, size_t eventfds)
{
	int64_t deadline = deadline_in(PATIENCE);

	while (node_eventfds(node) != eventfds && deadline_ahead(deadline))
		;
	assert_int_equal(node_eventfds(node), eventfds);
}

#endif
