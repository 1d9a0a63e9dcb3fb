/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A supervisor as systemd is one, in a thread of the test: it has a notify socket, keeps the
 * descriptors that it is sent (FileDescriptorStoreMax=, sd_pid_notify_with_fds(3)), and gives them
 * to the next process that it starts. It is as strict as systemd's documentation.
 *
 *	struct supervisor *supervisor = supervisor_start();
 *	struct server s = {.supervisor = supervisor};
 *
 *	server_start(&s, SERVER_ARGS("-f", "memory"));
 *	server_signal(&s, SIGKILL);
 *	server_wait(&s, PATIENCE);
 *	server_start(&s, SERVER_ARGS("-f", "memory"));
 *	...
 *	server_remove(&s);
 *	supervisor_free(supervisor);
 */
#ifndef SUPERVISOR_H
#define SUPERVISOR_H

#include <stdbool.h>
#include <stddef.h>

struct supervisor;

/* Makes its socket, in a folder of its own, and takes what is sent there. NULL with errno. */
struct supervisor *supervisor_start(void);

/* Closes all that it has, and removes its socket. NULL: nothing. */
void supervisor_free(struct supervisor *s);

/* The path of its socket. */
const char *supervisor_path(const struct supervisor *s);

/* Takes nothing any more, so that the queue of its socket fills up; and goes on. */
void supervisor_pause(struct supervisor *s);
void supervisor_resume(struct supervisor *s);

/* Takes one message in so many milliseconds, and lets the others wait; 0: all at once again. */
void supervisor_slow(struct supervisor *s, unsigned int ms);

/* Has another socket at the same path from here on; what was sent to the old one is gone. */
bool supervisor_reexec(struct supervisor *s);

/*
 * Takes all that has been sent so far, also while it pauses: as systemd does it before it starts a
 * process anew.
 */
void supervisor_settle(struct supervisor *s);

/* Has room for so many descriptors; those that are sent beyond are closed. */
void supervisor_limit(struct supervisor *s, size_t descriptors);

/* Tells those that it starts from here on how many that is, as systemd does since version 254. */
void supervisor_announce(struct supervisor *s);

/* How many descriptors it has closed because there was no room. */
size_t supervisor_refused(struct supervisor *s);

/* What it was to store and to drop so far, in lines like "store ledger" and "drop node-1"; the
 * caller frees that. */
char *supervisor_journal(struct supervisor *s);

/* Closes all descriptors, as when a service is stopped. */
void supervisor_empty(struct supervisor *s);

/* Closes those whose names match a pattern. */
void supervisor_lose(struct supervisor *s, const char *pattern);

/* How many descriptors it has whose names match a pattern, as in a shell: "ledger", "node-*". */
size_t supervisor_count(struct supervisor *s, const char *pattern);

/* Waits until it has exactly so many of them. Returns false after so many seconds. */
bool supervisor_wait(struct supervisor *s, const char *pattern, size_t n, int seconds);

/* How often it was told "READY=1", "RELOADING=1", "STOPPING=1" or "WATCHDOG=1". */
size_t supervisor_heard(struct supervisor *s, const char *state);

/* How many messages it was sent, whatever they say. */
size_t supervisor_messages(struct supervisor *s);

/* What the last of them says that has a STATUS=; the caller frees it. */
char *supervisor_status(struct supervisor *s);

/* Whether it was told "RELOADING=1", and not "READY=1" after that. */
bool supervisor_reloads(struct supervisor *s);

/* What was sent that systemd would not take, or take differently; NULL: nothing. */
const char *supervisor_error(struct supervisor *s);

/* What a process is given that the supervisor starts. */
struct supervised {
	char **environment;
	char *pid; /* in there, room for the process's number; NULL: it gets no descriptors */
	int *fds;  /* to become 3, 4, ... */
	size_t n;
	char *text; /* what the environment's own lines stand in */
};

/*
 * Gathers all that, once everything is taken that was sent; the store must not change before the
 * process has it. NULL: a process without a supervisor. Returns false with errno.
 */
bool supervised_prepare(struct supervised *given, struct supervisor *s);

/*
 * In the new process, before it executes its program: moves the descriptors to their places, and
 * completes the environment. What stood there is closed. Async-signal-safe. Returns false with
 * errno.
 */
bool supervised_enter(struct supervised *given);

/* Frees it, in the supervisor's process, which keeps the descriptors. */
void supervised_free(struct supervised *given);

#endif
