/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * descriptor: the numbers of descriptors
 *
 * Sockets must lie below FD_SETSIZE, where select sees them; everything else is moved above it as
 * far as the limit allows. Owns that limit, the descriptors that are held in reserve for when it is
 * reached, and what walks through a set of descriptors.
 */
#ifndef SERVER_DESCRIPTOR_H
#define SERVER_DESCRIPTOR_H

#include <stdbool.h>
#include <sys/select.h>

/* Descriptors that are held for when there is none left. */
struct reserve {
	int null;  /* /dev/null: given to clients that are refused, and to ourselves in the
		      background */
	int spare; /* the same: given up where no descriptor is left, to refuse a client or to
		      restart; both may be -1 */
};

/*
 * Opens the spare descriptor, after making sure that 0 to 2 exist and none of ours is taken for
 * them. Returns it or, after having said why, -1.
 */
int spare_open(void);

/*
 * Sees to it that a descriptor has a number from this one on, as far as the limit of descriptors
 * allows that. Returns the number.
 */
int descriptor_raise(int fd, int from);

/* Sees to it that a descriptor has the lowest number that is free. Returns that. */
int descriptor_lower(int fd);

/* Gives up the spare descriptor for a moment; spare_open gets it back. */
void spare_close(struct reserve *r);

/* Opens what of the reserve is missing, as far as that goes. */
void reserve_fill(struct reserve *r);

/* Gives up one of the reserve until it is filled, the spare one first. Returns false where none is
 * left. */
bool reserve_give(struct reserve *r);

/*
 * Raises the number of descriptors that we may have open, and in flight: as far as the kernel
 * allows if we are privileged, else to the hard limit. Without luck the limit stays as it is.
 */
void descriptor_limit_raise(void);

/*
 * Unread messages count against the limit of descriptors in flight, over all our sockets together,
 * unless we are privileged; beyond it nobody can be sent any. So where the limit is low, sockets
 * hold less, and 64 peers that do not read still leave room for the others. A socket holds 278
 * messages by default, which take 768 bytes each; the kernel doubles what SO_SNDBUF says.
 */
void socket_buffer_limit(int sock);

/* The lowest descriptor of a set from this one on; FD_SETSIZE if there is none. */
static inline int set_next(const fd_set *set, int fd)
{
	for (int word = fd / NFDBITS; word < FD_SETSIZE / NFDBITS; word++) {
		unsigned long bits = (unsigned long)set->fds_bits[word];

		if (word == fd / NFDBITS)
			bits &= ~0UL << fd % NFDBITS;
		if (bits)
			return word * NFDBITS + __builtin_ctzl(bits);
	}
	return FD_SETSIZE;
}

static inline bool set_any(const fd_set *set)
{
	return set_next(set, 0) < FD_SETSIZE;
}

/* Those of a set that are not in another. */
static inline fd_set set_without(const fd_set *set, const fd_set *other)
{
	fd_set out = *set;

	for (int word = 0; word < FD_SETSIZE / NFDBITS; word++)
		out.fds_bits[word] &= ~other->fds_bits[word];
	return out;
}

/* NOLINTNEXTLINE(bugprone-macro-parentheses): a declaration takes none */
#define set_each(fd, set) for (int fd = -1; (fd = set_next(set, fd + 1)) < FD_SETSIZE;)

#endif
