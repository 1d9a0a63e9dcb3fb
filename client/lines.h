/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What others ask for in text: lines that come in piece by piece, their words, and what the words
 * mean. This room owns the text of a struct lines; its descriptor is its user's, who opens it, says
 * whether it blocks, and closes it.
 */
#ifndef CLIENT_LINES_H
#define CLIENT_LINES_H

#include <stdbool.h>
#include <stddef.h>

/* Begins as {.fd = ...}; others touch nothing but fd. */
struct lines {
	int fd;
	size_t start, end; /* of what has been read, and not been given out */
	char text[4096];
};

/* Reads once. Returns false at the end of the text; true where there is nothing to read yet. */
bool lines_fill(struct lines *l);

/*
 * The next whole line, without its end, to be written to until lines_fill; NULL: there is none. A
 * line that does not fit, of more than 4095 bytes, is taken for several.
 */
char *lines_next(struct lines *l);

/* After the last line, at the end of the text: what stands behind it; NULL: nothing. */
char *lines_rest(struct lines *l);

#define LINE_WORDS 5 /* one more than any request has, and the NULL */

/* Cuts a line into LINE_WORDS words, with NULL behind the last. Any more of them are left out. */
void words_split(char *line, char **words);

/* Reads a whole number from 0 to max; what is its name. Returns false with why, WHY_SIZE bytes. */
bool number_read(const char *what, const char *text, int max, int *number, char *why);

/*
 * Reads "ID VECTOR", "ID all" or "all", up to a NULL, for mesh_ring: "all" is ALL. Returns false
 * with why, WHY_SIZE bytes. Whether there is such a doorbell is not known here.
 */
bool ring_read(char *const *words, int *id, int *vector, char *why);

#endif
