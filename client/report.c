/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "client/report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void line_write(const char *format, va_list args, const char *hint)
{
	char text[2 * WHY_SIZE];

	vsnprintf(text, sizeof(text), format, args);
	fflush(stdout);
	fprintf(stderr, "ivshmem_client: %s%s\n", text, hint);
}

void complain(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	line_write(format, args, "");
	va_end(args);
}

void quit(int status, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	line_write(format, args, status == 2 ? " (see 'ivshmem_client --help')" : "");
	va_end(args);
	exit(status);
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
