/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which form of the tests this is. */
#ifndef FORM_H
#define FORM_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Whether the long form was asked for: FULL=1. */
static inline bool full(void)
{
	const char *text = getenv("FULL");

	return text && !strcmp(text, "1");
}

/* Whether a sanitizer was built in, with memory and system calls of its own. */
static inline bool sanitized(void)
{
#if defined(__SANITIZE_ADDRESS__)
	return true;
#elif defined(__has_feature)
	return __has_feature(address_sanitizer);
#else
	return false;
#endif
}

#endif
