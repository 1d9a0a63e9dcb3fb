/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/passed.h"
#include "server/ledger.h"
#include "server/listener.h"
#include "server/log.h"
#include "server/mesh.h"
#include "server/options.h"
#include "server/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <unistd.h>

unsigned int passed_count(void)
{
	const char *process = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	uint64_t number;
	char *end;

	if (!process || !digits_parse(process, &number, &end) || *end ||
	    number != (uint64_t)getpid() || !count || !digits_parse(count, &number, &end) || *end ||
	    number > INT_MAX / 2)
		return 0;
	for (unsigned int i = 0; i < number; i++) /* before any of ours can get such a number */
		if (fcntl(STDERR_FILENO + 1 + (int)i, F_SETFD, FD_CLOEXEC) < 0 && errno == EBADF)
			return i; /* there are no more */
	return (unsigned int)number;
}

/* Takes one descriptor that has been passed by this name. Whatever is not for us is closed. */
static bool passed_take(struct passed *in, int fd, const char *name)
{
	struct stat st;
	char *end;

	for (enum own i = 0; i < OWNS; i++)
		if (!strcmp(name, own_names[i])) {
			if (in->own[i] >= 0)
				close(fd); /* the same once more */
			else
				in->own[i] = fd;
			return true;
		}
	if (!strncmp(name, PARCEL, strlen(PARCEL)) &&
	    digits_parse(name + strlen(PARCEL), &in->parcels[in->count].serial, &end) && !*end &&
	    in->parcels[in->count].serial > 0) {
		in->parcels[in->count].sock = -1;
		in->parcels[in->count].second = name[strlen(PARCEL)] == '0';
		in->parcels[in->count++].fd = fd;
		return true;
	}
	if (in->listener < 0 && is_listener(fd)) {
		fcntl(fd, F_SETFL, O_NONBLOCK);
		in->listener = fd;
		return true;
	}
	if (fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode))
		return complain("cannot use the passed socket %s: a socket unit must have one "
				"ListenStream=, which is a path, and not Accept=yes",
				name);
	close(fd);
	return true;
}

bool passed_sort(struct passed *in, unsigned int count)
{
	char *names = getenv("LISTEN_FDNAMES"), *name;
	bool fine = true;

	*in = (struct passed){.own = {-1, -1, -1, -1}, .listener = -1, .waiting = -1};
	in->parcels = calloc(count + 1, sizeof(in->parcels[0]));
	if (!in->parcels)
		return fail("cannot take over %u descriptors", count);
	for (unsigned int i = 0; i < count; i++) {
		int fd = STDERR_FILENO + 1 + (int)i;

		name = strsep(&names, ":");
		fine = passed_take(in, fd, name ? name : "") && fine;
	}
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	return fine;
}

void parcel_close(struct parcel *parcel)
{
	if (parcel->fd >= 0)
		close(parcel->fd);
	parcel->fd = -1;
}

/* Whether the peer that a parcel is of is there still; if that cannot be seen, it counts. */
static bool parcel_lives(const struct ledger *l, const struct parcel *parcel)
{
	int sock = -1;
	bool lives;

	if (!parcel_open(l, parcel->fd, &sock, NULL))
		return true;
	lives = !client_ended(sock);
	close(sock);
	return lives;
}

void parcels_find(const struct ledger *l, struct passed *in)
{
	struct parcel *found[FD_SETSIZE] = {NULL};

	for (size_t i = 0; i < in->count; i++) {
		struct parcel *parcel = &in->parcels[i], **first;

		if (parcel->serial != departed_last(l))
			parcel->sock = peer_find(l, parcel->serial);
		first = parcel->sock < 0 ? NULL : &found[parcel->sock];
		if (first && *first) { /* by its other name */
			(*first)->both = true;
			parcel->sock = -1;
			parcel_close(parcel);
			continue;
		}
		if (first)
			*first = parcel;
		if (parcel->sock < 0 && parcel->serial == l->joins &&
		    !peer_departed(l, parcel->serial))
			in->ungreeted = parcel;
		in->nodes = in->nodes || (parcel->sock >= 0 && parcel_lives(l, parcel));
	}
}
