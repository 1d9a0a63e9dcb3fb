/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "client/lines.h"
#include "client/mesh.h"
#include "client/report.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool lines_fill(struct lines *l)
{
	ssize_t n;

	memmove(l->text, l->text + l->start, l->end - l->start);
	l->end -= l->start;
	l->start = 0;
	do
		n = read(l->fd, l->text + l->end, sizeof(l->text) - 1 - l->end);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		l->end += (size_t)n;
	return n > 0 || (n < 0 && errno == EAGAIN);
}

char *lines_next(struct lines *l)
{
	char *line = l->text + l->start;
	char *end = memchr(line, '\n', l->end - l->start);

	if (end) {
		l->start += (size_t)(end - line) + 1;
	} else {
		if (l->start > 0 || l->end < sizeof(l->text) - 1)
			return NULL;
		end = l->text + l->end;
		l->start = l->end;
	}
	*end = '\0';
	return line;
}

char *lines_rest(struct lines *l)
{
	l->text[l->end] = '\0';
	return l->start < l->end ? l->text + l->start : NULL;
}

void words_split(char *line, char **words)
{
	size_t n = 0;
	char *rest = NULL;

	for (char *word = strtok_r(line, " \t\r", &rest); word && n < LINE_WORDS - 1;
	     word = strtok_r(NULL, " \t\r", &rest))
		words[n++] = word;
	words[n] = NULL;
}

bool number_read(const char *what, const char *text, int max, int *number, char *why)
{
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value > max)
		return wrong(why, "%s '%.40s': give a whole number from 0 to %d", what, text, max);
	*number = (int)value;
	return true;
}

bool ring_read(char *const *words, int *id, int *vector, char *why)
{
	bool all = words[0] && strcmp(words[0], "all") == 0;
	bool known = words[0] && (all ? !words[1] : words[1] && !words[2]);

	*id = ALL;
	*vector = ALL;
	if (!known)
		return wrong(why, "give ID VECTOR, ID all, or all");
	if (all)
		return true;
	return number_read("ID", words[0], IDS - 1, id, why) &&
	       (strcmp(words[1], "all") == 0 ||
		number_read("VECTOR", words[1], VECTORS_MAX - 1, vector, why));
}
