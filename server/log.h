/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * log: one line for each event, on stderr, in a file, or, in the background, to the system's log
 *
 * Owns where lines go, and those that wait. Nobody else writes to stderr or to the system's log. A
 * line is never waited for: nodes would wait with us. What whoever reads the log has no room for
 * waits here and is tried again by the loop; what does not fit here is dropped, and how many lines
 * that were is said when there is room again.
 */
#ifndef SERVER_LOG_H
#define SERVER_LOG_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <syslog.h>

#define QEMU_NAME    "ivshmem-server" /* under this one we take the options of QEMU's server */
#define LOG_RETRY_MS 250              /* until it is tried again to write what waits */

/* Five verbs: what happened; what somebody should know or do, though it works; what failed, with
 * errno's text; what is wrong where errno has nothing to add; a mistake in the command line, which
 * ends the program. Those but the first and the last give their caller false to return. */
#define say(...)      log_line(LOG_INFO, 0, __VA_ARGS__)
#define warn(...)     log_line(LOG_WARNING, 0, __VA_ARGS__)
#define fail(...)     log_line(LOG_ERR, errno, __VA_ARGS__)
#define complain(...) log_line(LOG_ERR, 0, __VA_ARGS__)
#define VALUE         "'%.300s'" /* of the command line: the remedy behind it must not be cut off */
#define usage(format, ...)                                           \
	do {                                                         \
		complain(format " (see '%s --help')", ##__VA_ARGS__, \
			 program_invocation_short_name);             \
		exit(as_qemu() ? EXIT_FAILURE : 2);                  \
	} while (0)

/* Logs one line, with the text of error behind it unless that is 0. Keeps errno, returns false. */
__attribute__((format(printf, 3, 4))) bool log_line(int level, int error, const char *format, ...);

/* Shows on a terminal how far something is, or does not where it takes nothing now. */
__attribute__((format(printf, 1, 2))) void log_progress(const char *format, ...);

/* The last error that was logged, without the program's name; "" if there was none. */
const char *log_reason(void);

/* Has nothing logged until it is called with false. */
void log_mute(bool mute);

/* Sees to it that we have a name to log by: one that is not empty, nor too long for a line. */
void name_begin(void);

/* Whether we were started by the name of QEMU's server. */
bool as_qemu(void);

/* Begins to log, for an image before which so many lines are lost, to the log file that it has left
 * in this descriptor; -1: none. */
void log_begin(bool in_background, int file, size_t lost);

/*
 * Opens a log file to append to, and copies there what is said on stderr, until log_leave_stderr.
 * NULL: there is none; one that an image before has left is open. Returns false with errno.
 */
bool log_file_open(const char *path);

/* The server is ready: from here on the log is the file, if there is one; else it stays stderr or,
 * in the background, becomes the system's; then stderr says so where that cannot be reached. In the
 * background already, does nothing. */
void log_leave_stderr(bool for_background);

/* Opens the log file again, which may have been moved; goes on with it as it was if that fails. */
void log_reopen(void);

/* Whether we are in the background. */
bool log_in_background(void);

/* How many lines are gone if we are from here on. */
size_t log_lost(void);

/* Whether lines wait, for log_settle to be called after LOG_RETRY_MS. */
bool log_waits(void);

/* Writes what waits, and says how much has been dropped meanwhile, as far as there is room. */
void log_settle(void);

/* Forgets what waits, in another process than the one that is to write it. */
void log_forget(void);

/* The descriptor that the log writes to where that is no file, for who has to give it another
 * number; -1: none. */
int *log_descriptor(void);

/* That of the log file, which outlives the process; its number does not change once we serve. -1:
 * none. */
int *log_file(void);

/* Gives both a number that select does not need, if there is one. */
void log_raise(void);

/* What a function says in words, for a line of the log. */
struct text {
	char text[80];
};

/* Replaces by '?' what is no character, or controls a terminal. */
void text_tidy(char *text);

/* The bytes at text that are one character, ASCII or UTF-8; 0: that is none, or one that controls a
 * terminal. */
size_t character_length(const char *text);

/* A size in bytes, as -m takes it: in the largest unit of which it is a multiple. */
struct text size_text(uint64_t bytes);

#define SIZE(bytes) (size_text(bytes).text)
#define S(number)   ((number) == 1 ? "" : "s") /* behind what is counted */

#endif
