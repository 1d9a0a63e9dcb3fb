/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "client/report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool as_qemu(void)
{
	return strcmp(program_invocation_short_name, QEMU_NAME) == 0;
}

static const char *program_name(void)
{
	return as_qemu() ? QEMU_NAME : "ivshmem_client";
}

/* At once, since a program that we run may write to the same file. */
static void line_write(const char *format, va_list args, bool hint)
{
	char text[2 * WHY_SIZE], more[64] = "";

	vsnprintf(text, sizeof(text), format, args);
	if (hint)
		snprintf(more, sizeof(more), " (see '%s --help')", program_name());
	fflush(stdout);
	fprintf(stderr, "%s: %s%s\n", program_name(), text, more);
}

void complain(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	line_write(format, args, false);
	va_end(args);
}

void quit(int status, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	line_write(format, args, status == 2);
	va_end(args);
	exit(as_qemu() ? EXIT_FAILURE : status);
}

bool wrong(char *why, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, WHY_SIZE, format, args);
	va_end(args);
	return false;
}

void output_flush(void)
{
	if (fflush(stdout) != 0 || ferror(stdout))
		quit(1, "cannot write to standard output: %s", strerror(errno));
}
