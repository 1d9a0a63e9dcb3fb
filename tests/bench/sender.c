/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The plain sender: it accepts connections and sends the messages of a case to them as cheaply as
 * the kernel lets anybody: prepared batches, sockets that block, nobody looked after. What it
 * spends in sendmmsg is what the kernel takes for these messages; accepting is not counted. It
 * greets one after the other, in the order of connecting, and has news for others after that: so
 * the time that a join takes is the kernel's as well.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define BATCH 64

union control {
	struct cmsghdr header;
	char space[CMSG_SPACE(sizeof(int))];
};

struct sender {
	const struct bench_case *what;
	double *spent;
	int memory;
	int *eventfds; /* of all peers, and of the one that comes and goes */
	int *socks;
	struct mmsghdr headers[BATCH];
	struct iovec iov[BATCH];
	union control control[BATCH];
	int64_t values[BATCH];
};

__attribute__((noreturn)) static void sender_fail(const char *what)
{
	fprintf(stderr, "bench: the plain sender: %s: %s\n", what, strerror(errno));
	_exit(EXIT_FAILURE);
}

/* Puts a message into a place of the batch. */
static void message_put(struct sender *s, size_t place, int64_t value, int fd)
{
	struct msghdr *header = &s->headers[place].msg_hdr;

	s->values[place] = value;
	header->msg_control = fd < 0 ? NULL : &s->control[place];
	header->msg_controllen = fd < 0 ? 0 : sizeof(s->control[place]);
	memcpy(CMSG_DATA(&s->control[place].header), &fd, sizeof(fd));
}

/* Sends the first n places of the batch. */
static void batch_send(struct sender *s, int sock, size_t n)
{
	for (size_t sent = 0; sent < n;) {
		int now = sendmmsg(sock, &s->headers[sent], (unsigned int)(n - sent), MSG_NOSIGNAL);

		if (now > 0)
			sent += (size_t)now;
		else if (errno == ETOOMANYREFS)
			usleep(1000);
		else if (errno != EINTR)
			sender_fail("cannot send");
	}
}

/*
 * Sends a peer messages of its greeting, from one up to another: the three that come first, and
 * then the vectors of all peers by ID.
 */
static void greeting_send(struct sender *s, size_t peer, size_t from, size_t to)
{
	for (size_t n; from < to; from += n) {
		for (n = 0; n < BATCH && from + n < to; n++) {
			size_t at = from + n;

			if (at == 0)
				message_put(s, n, 0, -1);
			else if (at == 1)
				message_put(s, n, (int64_t)peer, -1);
			else if (at == 2)
				message_put(s, n, -1, s->memory);
			else
				message_put(s, n, (int64_t)((at - GREETING) / s->what->vectors),
					    s->eventfds[at - GREETING]);
		}
		batch_send(s, s->socks[peer], n);
	}
}

/* Where a peer's greeting ends: behind its own vectors. */
static size_t greeting_end(const struct sender *s, size_t peer)
{
	return GREETING + (peer + 1) * s->what->vectors;
}

static void greeting_whole_send(struct sender *s, size_t peer)
{
	greeting_send(s, peer, 0, greeting_end(s, peer));
}

/* Sends all who have been greeted what came after, in turns of a batch each. */
static void news_send(struct sender *s, size_t unused)
{
	size_t end = GREETING + (size_t)s->what->peers * s->what->vectors;

	(void)unused;
	for (size_t done = 0; done < end; done += BATCH)
		for (size_t i = 0; i < s->what->peers; i++) {
			size_t from = greeting_end(s, i) + done;

			greeting_send(s, i, from, from + BATCH < end ? from + BATCH : end);
		}
}

/* Sends a peer its greeting, and its vectors to all before it. */
static void join_send(struct sender *s, size_t peer)
{
	size_t first = GREETING + peer * s->what->vectors;

	greeting_whole_send(s, peer);
	for (size_t i = 0; i < peer; i++)
		greeting_send(s, i, first, first + s->what->vectors);
}

/* Sends all before it word that a peer has left. */
static void leave_send(struct sender *s, size_t peer)
{
	message_put(s, 0, (int64_t)peer, -1);
	for (size_t i = 0; i < peer; i++)
		batch_send(s, s->socks[i], 1);
}

static void peer_accept(struct sender *s, size_t peer, int listener)
{
	s->socks[peer] = accept(listener, NULL, NULL);
	if (s->socks[peer] < 0)
		sender_fail("cannot accept");
}

static void sender_prepare(struct sender *s)
{
	size_t peers = s->what->peers + 1, eventfds = peers * s->what->vectors;

	s->memory = memfd_create("bench", MFD_CLOEXEC);
	s->eventfds = calloc(eventfds + 1, sizeof(*s->eventfds));
	s->socks = calloc(peers, sizeof(*s->socks));
	if (s->memory < 0 || !s->eventfds || !s->socks)
		sender_fail("cannot start");
	for (size_t i = 0; i < eventfds; i++)
		if ((s->eventfds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
			sender_fail("cannot create an eventfd");
	for (size_t i = 0; i < BATCH; i++) {
		s->iov[i] = (struct iovec){.iov_base = &s->values[i], .iov_len = sizeof(int64_t)};
		s->headers[i].msg_hdr = (struct msghdr){.msg_iov = &s->iov[i], .msg_iovlen = 1};
		s->control[i].header = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
							.cmsg_type = SCM_RIGHTS,
							.cmsg_len = CMSG_LEN(sizeof(int))};
	}
}

/* Lets one of the functions above send, and adds up what that costs. */
static void send_measured(struct sender *s, void (*send)(struct sender *s, size_t peer),
			  size_t peer)
{
	double start = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);

	send(s, peer);
	*s->spent += clock_seconds(CLOCK_PROCESS_CPUTIME_ID) - start;
}

/* Waits until a peer leaves. */
static void leave_wait(const struct sender *s, size_t peer)
{
	char byte;

	if (recv(s->socks[peer], &byte, 1, 0) != 0)
		sender_fail("a client did not leave");
	close(s->socks[peer]);
}

void sender_run(const struct bench_case *c, int listener, double *spent)
{
	struct sender *s = calloc(1, sizeof(*s));

	if (!s)
		sender_fail("cannot start");
	s->what = c;
	s->spent = spent;
	sender_prepare(s);
	for (size_t i = 0; i < c->peers; i++) {
		peer_accept(s, i, listener);
		if (c->how == CHURN)
			join_send(s, i);
		else
			send_measured(s, c->how == IN_TURN ? join_send : greeting_whole_send, i);
	}
	if (c->how == AT_ONCE)
		send_measured(s, news_send, 0);
	for (int step = 0; c->how == CHURN && step < CHURN_STEPS; step++) {
		peer_accept(s, c->peers, listener);
		send_measured(s, join_send, c->peers);
		leave_wait(s, c->peers);
		send_measured(s, leave_send, c->peers);
	}
}
