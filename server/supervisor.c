/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/supervisor.h"
#include "send_scm.h"
#include "server/descriptor.h"
#include "server/ledger.h"
#include "server/listener.h"
#include "server/log.h"
#include "server/options.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/capability.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define STORE_RETRY_MS 1000 /* until a supervisor is told again that could not be */

const char *const own_names[OWNS] = {"ledger", "object", "lock", "our-listener"};

/* Descriptors in a parcel, at most. */
#define PARCEL_MAX (2 + VECTORS_MAX)

#define PINGS 4 /* in the time after which a supervisor that hears of none ends us */

/* How often it wants to hear of this very process; 0: not at all (sd_watchdog_enabled(3)). */
static int64_t supervisor_ping_ms(void)
{
	const char *process = getenv("WATCHDOG_PID"), *us = getenv("WATCHDOG_USEC");
	uint64_t number;
	char *end;

	if (process &&
	    (!digits_parse(process, &number, &end) || *end || number != (uint64_t)getpid()))
		return 0;
	if (!us || !digits_parse(us, &number, &end) || *end || number == 0)
		return 0;
	return (int64_t)(number / 1000 / PINGS) + 1;
}

/* How many more descriptors than nodes a store should have room for: our own, and the parcels of
 * those who leave while others join. */
#define STORE_MORE (OWNS + 66)

#define FIRST_USER_NAMESPACE UINT64_C(0xeffffffd) /* what its file's number is, on every Linux */

/*
 * Whether the kernel limits how many descriptors we have in flight: it does not for the privileged,
 * unless they are so in a namespace of their own only.
 */
static bool flight_limited(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
	struct stat st;

	return syscall(SYS_capget, &header, sets) < 0 ||
	       !(sets[0].effective &
		 (CAP_TO_MASK(CAP_SYS_RESOURCE) | CAP_TO_MASK(CAP_SYS_ADMIN))) ||
	       stat("/proc/self/ns/user", &st) < 0 || st.st_ino != FIRST_USER_NAMESPACE;
}

void supervisor_open(struct supervisor *v)
{
	const char *path = getenv("NOTIFY_SOCKET"), *most = getenv("FDSTORE");
	struct rlimit limit;
	uint64_t number;
	char *end;

	if (!path || !*path || strlen(path) >= sizeof(v->address.sun_path))
		return;
	v->address = socket_address(path);
	v->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	if (*path == '@')
		v->address.sun_path[0] = '\0';
	v->room = most && digits_parse(most, &number, &end) && !*end ? number : SIZE_MAX;
	v->flight = SIZE_MAX;
	/* Messages need room as well (socket_buffer_limit). */
	if (flight_limited() && getrlimit(RLIMIT_NOFILE, &limit) == 0)
		v->flight = limit.rlim_cur / 2;
	v->unready = true;
	v->ping_ms = supervisor_ping_ms();
}

bool supervised(const struct supervisor *v)
{
	return v->length > 0;
}

bool supervisor_socket(struct supervisor *v)
{
	if (supervised(v) && v->sock < 0)
		v->sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	return v->sock >= 0;
}

/* Connects that to the socket that stands at the address by now. Returns false with errno. */
static bool supervisor_connect(const struct supervisor *v)
{
	return connect(v->sock, (const struct sockaddr *)&v->address, v->length) == 0;
}

/* Sends the supervisor a message. Returns false with errno. */
static bool supervisor_send(struct supervisor *v, const char *state, size_t length, int fd)
{
	if (!supervisor_socket(v))
		return false;
	if (scm_pass(v->sock, NULL, 0, state, length, &fd, fd >= 0))
		return true;
	return (errno == ENOTCONN || errno == ECONNREFUSED) && supervisor_connect(v) &&
	       scm_pass(v->sock, NULL, 0, state, length, &fd, fd >= 0);
}

/* Adds to a state what its status is to show: what is served, and to how many. */
static void status_add(const struct supervisor *v, char *state, size_t room)
{
	char object[400] = "interrupts without memory";
	size_t n = strlen(state);

	if (v->ledger->store >= 0)
		snprintf(object, sizeof(object), "%.300s, %s", v->opt->object,
			 SIZE(v->ledger->size));
	text_tidy(object); /* another line would be another state */
	snprintf(state + n, room - n, "%sSTATUS=serving %s, %zu node%s", n ? "\n" : "", object,
		 v->nodes, S(v->nodes));
}

/*
 * Tells the supervisor a state, with a descriptor unless that is -1, and with our status if so. If
 * it cannot be told, whatever is still to be told is tried again when there is room, or later; the
 * log says so once. Returns whether it was told.
 */
__attribute__((format(printf, 4, 5))) static bool supervisor_tell(struct supervisor *v, int fd,
								  bool status, const char *format,
								  ...)
{
	char state[512];
	va_list args;
	size_t n;

	if (!supervised(v))
		return false;
	va_start(args, format);
	vsnprintf(state, sizeof(state), format, args);
	va_end(args);
	n = strlen(state);
	if (status)
		status_add(v, state, sizeof(state));
	if (supervisor_send(v, state, strlen(state), fd)) {
		if (status)
			v->nodes_told = v->nodes;
		v->stuck = false;
		return true;
	}
	state[n] = '\0'; /* the rest is of no use in a log */
	timer_start(v->ledger, TIMER_STORE, STORE_RETRY_MS);
	if (errno == EAGAIN) {
		v->full = true;
	} else if (!v->lost) {
		for (char *at = state; *at; at++)
			if (*at == '\n')
				*at = ' ';
		v->lost =
			!fail("cannot send %s to %s, trying again", state, getenv("NOTIFY_SOCKET"));
	}
	return false;
}

/* Notes that something has been stored or dropped, if so: a successor is worth waiting for it. */
static bool supervisor_took(struct supervisor *v, bool done)
{
	if (done)
		v->took_ms = now_ms();
	return done;
}

/* Whether a name is that of a node's parcel: with that our status changes. */
static bool parcel_named(const char *name)
{
	return !strncmp(name, PARCEL, strlen(PARCEL));
}

/* Has a descriptor stored by this name. FDPOLL=0: it is not to be dropped when its end comes. */
static bool supervisor_store(struct supervisor *v, int fd, const char *name)
{
	return supervisor_took(v, supervisor_tell(v, fd, parcel_named(name),
						  "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name));
}

bool supervisor_drop(struct supervisor *v, const char *name)
{
	return supervisor_took(
		v, supervisor_tell(v, -1, parcel_named(name), "FDSTOREREMOVE=1\nFDNAME=%s", name));
}

struct text parcel_name(uint64_t serial, bool second)
{
	struct text name;

	snprintf(name.text, sizeof(name.text), PARCEL "%s%" PRIu64, second ? "0" : "", serial);
	return name;
}

/* How many parcels are stored. */
static size_t parcels_count(const struct ledger *l)
{
	size_t n = 0;

	for (int sock = 0; sock < (int)l->slots; sock++)
		n += peer_at(l, sock)->serial && peer_at(l, sock)->stored;
	return n;
}

/* There can be no parcel now, for the reason in errno. */
static bool parcel_fail(struct supervisor *v)
{
	timer_start(v->ledger, TIMER_STORE, STORE_RETRY_MS);
	if (!v->lost)
		v->lost = !fail("cannot have the descriptors of a node stored, trying again");
	return false;
}

/*
 * Whether a parcel of this peer fits: into what the supervisor stores, if it says how much that is;
 * and into what may be in flight, for that is what lies in parcels. Beyond the limit of that nobody
 * could be sent anything. If it does not, the log says so, and somebody has to leave first.
 */
static bool parcel_fits(struct supervisor *v, const struct peer *p)
{
	const struct ledger *l = v->ledger;
	size_t each = PARCEL_EVENTFDS + l->vectors, all = l->joins - l->departures + 1;

	if (p->stored || (all + OWNS <= v->room && all <= v->flight / each))
		return true;
	all = parcels_count(l) + 1; /* which takes longer */
	if (all + OWNS <= v->room && all <= v->flight / each)
		return true;
	if (v->lost)
		return false;
	v->lost = true;
	if (all + OWNS > v->room)
		return complain(
			"ID %d is not stored, and ends with the server: the supervisor "
			"stores no more than %zu descriptors; raise FileDescriptorStoreMax= "
			"to the number of nodes plus %d",
			p->id, v->room, STORE_MORE);
	return complain("ID %d is not stored, and ends with the server: no more than %zu "
			"descriptors may be in flight; raise LimitNOFILE= to %zu for each node",
			p->id, 2 * v->flight, 2 * each);
}

/* Has the supervisor drop what it has of those who have left, by whatever name. */
static bool parcels_drop(struct supervisor *v)
{
	struct ledger *l = v->ledger;

	if (l->departures - l->forgotten > IDS)
		l->forgotten = l->departures - IDS;
	for (; l->forgotten < l->departures; l->forgotten++) {
		uint64_t serial = l->ring[l->forgotten % IDS].serial;

		for (; v->drop_step < 2; v->drop_step++)
			if (!supervisor_drop(v, parcel_name(serial, v->drop_step).text))
				return false;
		v->drop_step = 0;
		v->behind = true; /* there may be room for somebody else */
	}
	return true;
}

bool parcel_store(struct supervisor *v, int sock, uint64_t serial, bool second)
{
	const struct peer *p = peer_at(v->ledger, sock);
	size_t count = PARCEL_EVENTFDS + v->ledger->vectors;
	int all[PARCEL_MAX], ends[2];
	bool done = true;

	if (!supervised(v) || v->ledger->timers[TIMER_STORE])
		return false;
	if (v->own_step < 2 * OWNS) {
		v->behind = true;
		return false;
	}
	/* Those who have left make room first: the ledger that says so is stored by now. */
	if (!parcels_drop(v) || !parcel_fits(v, p))
		return false;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return parcel_fail(v);
	all[PARCEL_END] = ends[1];
	all[PARCEL_SOCKET] = sock;
	memcpy(&all[PARCEL_EVENTFDS], p->eventfds, v->ledger->vectors * sizeof(all[0]));
	for (size_t at = 0; done && at < count; at += SCM_DESCRIPTORS)
		done = scm_pass(ends[1], NULL, 0, "", 1, &all[at],
				count - at < SCM_DESCRIPTORS ? count - at : SCM_DESCRIPTORS) ||
		       parcel_fail(v);
	done = done && supervisor_store(v, ends[0], parcel_name(serial, second).text);
	close(ends[0]);
	close(ends[1]);
	return done;
}

/* Whether the supervisor has room for a message: to ask costs less than a parcel made in vain. */
static bool supervisor_has_room(struct supervisor *v)
{
	struct pollfd room = {.fd = v->sock, .events = POLLOUT};

	if (room.fd < 0 || poll(&room, 1, 0) != 0)
		return true; /* or the message will say what is wrong */
	timer_start(v->ledger, TIMER_STORE, STORE_RETRY_MS);
	v->full = true;
	return false;
}

bool supervisor_takes(struct supervisor *v)
{
	if (!supervised(v) || v->stuck)
		return true;
	/* Who has left goes first: between an accept and a parcel, that would take its room. */
	if (!v->full && !v->ledger->timers[TIMER_STORE] && v->own_step == 2 * OWNS)
		parcels_drop(v);
	return !v->full && supervisor_has_room(v);
}

/* Has stored what is to be of a peer, and dropped what is too much. False: it is not done yet. */
static bool parcel_update(struct supervisor *v, int sock)
{
	struct peer *p = peer_at(v->ledger, sock);

	for (;;) {
		bool second = p->stored & PARCEL_SECOND;

		if (p->stored & PARCEL_BOTH) {
			if (!supervisor_drop(v, parcel_name(p->serial, !second).text))
				return false;
			p->stored &= (uint8_t)~PARCEL_BOTH;
		} else if (p->stored & PARCEL_ANEW) {
			if (!supervisor_has_room(v) || !parcel_store(v, sock, p->serial, !second))
				return false;
			p->stored = PARCEL_BOTH | (second ? PARCEL_FIRST : PARCEL_SECOND);
		} else if (!p->stored) {
			if (!supervisor_has_room(v) || !parcel_store(v, sock, p->serial, false))
				return false;
			p->stored = PARCEL_FIRST;
		} else {
			return true;
		}
	}
}

/* Does so for all. Returns false if there is more to do once the supervisor, or the kernel, can. */
static bool parcels_update(struct supervisor *v)
{
	bool all = true;

	for (int sock = 0; sock < (int)v->ledger->slots; sock++) {
		const struct peer *p = peer_at(v->ledger, sock);

		if (!p->serial || (!all && !p->stored))
			continue; /* where one does not fit, the next does not, either */
		all = parcel_update(v, sock) && all;
		if (v->ledger->timers[TIMER_STORE])
			return false;
	}
	v->behind = false;
	v->lost = v->lost && !all;
	return true;
}

/*
 * Tells the supervisor what is our own, but for the lock, of which it is told last. Returns whether
 * all was told.
 */
static bool own_update(struct supervisor *v)
{
	struct ledger *l = v->ledger;
	const int own[OWNS] = {l->self, l->store, l->lock, l->socket_ino ? l->listener : -1};

	for (; v->own_step < 2 * OWNS; v->own_step++) {
		enum own i = v->own_step % OWNS;

		if (v->own_step < OWNS) {
			if (i == OWN_LOCK && v->doubtful)
				l->kept[i] = false;
			if (!l->kept[i] && !supervisor_drop(v, own_names[i]))
				return false;
		} else if (i != OWN_LOCK && (!l->kept[i] || v->doubtful)) {
			if (own[i] >= 0 && !supervisor_store(v, own[i], own_names[i]))
				return false;
			l->kept[i] = true;
		}
	}
	v->doubtful = false;
	return true;
}

/* Tells the supervisor that a restart has begun, if it has. Returns whether it knows. */
static bool reload_tell(struct supervisor *v)
{
	if (v->reloading_us &&
	    !supervisor_tell(v, -1, false, "RELOADING=1\nMONOTONIC_USEC=%" PRId64, v->reloading_us))
		return false;
	v->reloading_us = 0;
	return true;
}

void supervisor_reload(struct supervisor *v)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t); /* in full: it must not seem to be before the request */
	v->reloading_us = (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
	v->unready = true;
	reload_tell(v);
}

/* Tells the supervisor that we are ending, if so. Returns whether it knows. */
static bool stop_tell(struct supervisor *v)
{
	v->stopping = v->stopping && !supervisor_tell(v, -1, false, "STOPPING=1");
	return !v->stopping;
}

void supervisor_stop(struct supervisor *v)
{
	v->stopping = true;
	stop_tell(v);
}

/* Tells the supervisor how we are, ready or not, and what is our own. Returns whether it has been
 * told. */
static bool supervisor_begin(struct supervisor *v, bool ready)
{
	if (!reload_tell(v) || !stop_tell(v) || !own_update(v))
		return false;
	if (v->unready && ready)
		v->unready = !supervisor_tell(v, -1, true, "READY=1");
	return !v->ledger->timers[TIMER_STORE];
}

void supervisor_doubt(struct supervisor *v)
{
	for (int sock = 0; sock < (int)v->ledger->slots; sock++)
		if (peer_at(v->ledger, sock)->serial && peer_at(v->ledger, sock)->stored)
			peer_at(v->ledger, sock)->stored |= PARCEL_ANEW;
	v->own_step = 0;
	v->doubtful = v->behind = true;
}

void supervisor_renew(struct supervisor *v, enum own what)
{
	v->ledger->kept[what] = false;
	v->own_step = 0;
}

void supervisor_update(struct supervisor *v, bool ready)
{
	struct ledger *l = v->ledger;

	if (!supervised(v))
		return;
	if (timer_ended(l, TIMER_STORE)) {
		/* It has taken nothing for so long: the socket at its address may be another. */
		if (v->sock >= 0)
			supervisor_connect(v);
		v->stuck = v->full;
		v->full = false;
		v->behind = true;
	}
	if (l->timers[TIMER_STORE] || !supervisor_begin(v, ready) || !parcels_drop(v) ||
	    (v->behind && !parcels_update(v)))
		return;
	if (!l->kept[OWN_LOCK])
		l->kept[OWN_LOCK] =
			l->lock < 0 || supervisor_store(v, l->lock, own_names[OWN_LOCK]);
	/* Of a node that is not stored it hears nothing else. */
	if (v->nodes_told != v->nodes && !v->unready)
		supervisor_tell(v, -1, true, "%s", "");
}

void supervisor_watch(const struct supervisor *v, fd_set *writable)
{
	if (v->full && v->sock < FD_SETSIZE)
		FD_SET(v->sock, writable);
}

void supervisor_count(struct supervisor *v, size_t nodes)
{
	v->nodes = nodes;
}

void supervisor_wake(struct supervisor *v, fd_set *writable)
{
	if (!v->full || v->sock >= FD_SETSIZE || !FD_ISSET(v->sock, writable))
		return;
	FD_CLR(v->sock, writable);
	v->full = false;
	v->behind = true;
	v->ledger->timers[TIMER_STORE] = 0;
}

void supervisor_ping(struct supervisor *v)
{
	if (!v->ping_ms || now_ms() < v->ping_at)
		return;
	v->ping_at = now_ms() + v->ping_ms;
	supervisor_tell(v, -1, false, "WATCHDOG=1");
}

void supervisor_explain(int status, void *supervisor)
{
	struct supervisor *v = supervisor;
	char state[1024];
	int n = snprintf(state, sizeof(state), "STATUS=%s", log_reason());

	if (status == EXIT_SUCCESS)
		return;
	if (!supervised(v))
		supervisor_open(v);
	if (supervised(v))
		supervisor_send(v, state, (size_t)n, -1);
}

bool parcel_open(const struct ledger *l, int parcel, int *sock, int32_t *eventfds)
{
	int all[PARCEL_MAX + SCM_DESCRIPTORS] = {0}, n = 1;
	size_t count = 0, wanted = PARCEL_EVENTFDS + l->vectors;
	bool done;

	if (setsockopt(parcel, SOL_SOCKET, SO_PEEK_OFF, &(int){0}, sizeof(int)) < 0)
		return false;
	while (count < wanted && (n = scm_peek(parcel, &all[count])) > 0)
		count += (size_t)n;
	done = count == wanted;
	if (!done)
		errno = n < 0 ? errno : EPROTO;
	for (size_t i = 0; i < count; i++)
		if (done && i == PARCEL_SOCKET && sock)
			*sock = all[i];
		else if (done && i >= PARCEL_EVENTFDS && eventfds)
			eventfds[i - PARCEL_EVENTFDS] = descriptor_raise(all[i], FD_SETSIZE);
		else
			close(all[i]);
	return done;
}

/* Whether a path is in a folder that systemd has made for this unit alone (PrivateTmp=). */
static bool path_private(const char *path)
{
	FILE *mounts = fopen("/proc/self/mountinfo", "re");
	char *line = NULL, root[PATH_MAX], at[PATH_MAX];
	size_t room = 0, length, longest = 0;
	bool private = false;

	while (mounts && getline(&line, &room, mounts) > 0) {
		if (sscanf(line, "%*s %*s %*s %4095s %4095s", root, at) != 2)
			continue;
		length = strlen(at);
		if (length < longest || strncmp(path, at, length) != 0 || path[length] != '/')
			continue;
		longest = length; /* of those at one place, the last is seen */
		private = strstr(root, "/systemd-private-");
	}
	free(line);
	if (mounts)
		fclose(mounts);
	return private;
}

bool unit_started(void)
{
	const char *process = getenv("SYSTEMD_EXEC_PID");

	return process && atoi(process) == (int)getpid();
}

void unit_warn(const struct supervisor *v, const struct options *o, bool own_socket)
{
	if (o->daemonize && supervised(v) && unit_started())
		warn("warning: a supervisor takes the end of this process in the foreground for "
		     "the end of the server: %s",
		     as_qemu() ? "give -F" : "leave out -d");
	if (!getenv("INVOCATION_ID"))
		return;
	if (own_socket && path_private(o->socket))
		warn("warning: nobody outside of this unit can connect to %s, since its folder is "
		     "private (PrivateTmp=): choose a path in /run with -%c",
		     o->socket, typed('p'));
	if (!o->shm && path_private(o->object))
		warn("warning: %s is lost when this unit stops, since its folder is private "
		     "(PrivateTmp=): choose a path in /var/lib with -f",
		     o->object);
}
