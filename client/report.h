/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the user is told of things that go wrong. This room owns standard error: all that stands
 * there has passed here, one line each, with the program's name in front, and behind all that was
 * printed on standard output before.
 */
#ifndef CLIENT_REPORT_H
#define CLIENT_REPORT_H

#include <stdbool.h>

/* Bytes that a function needs for saying why it failed. */
#define WHY_SIZE 256

/* Says something, and goes on. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The name of QEMU's client, by which we take its options and show what it shows. */
#define QEMU_NAME "ivshmem-client"

/* Whether we were started by that name. */
bool as_qemu(void);

/* Ends the program: with status 1, not done, or 2, a mistake in the command line, which is 1 by the
 * name of QEMU's client. */
void quit(int status, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));

/* Writes why something cannot be to WHY_SIZE bytes. Returns false, for its caller to return. */
bool wrong(char *why, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Writes out what has been printed; where that fails, ends the program with an error. */
void output_flush(void);

#endif
