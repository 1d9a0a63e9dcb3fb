/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * options: what the user wants
 *
 * Reads the command line, under our own name and under that of QEMU's server, and refuses what does
 * not go together. Owns the texts of help. What comes out of it is not changed afterwards.
 */
#ifndef SERVER_OPTIONS_H
#define SERVER_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifndef VERSION
#define VERSION "unversioned"
#endif

#define DEFAULT_GROUP "kvm"

#define DEFAULT_SIZE (UINT64_C(1) << 20)
#define VECTORS_MAX  2048 /* what MSI-X has */

struct options {
	const char *object;  /* absolute path of the backing store, or words for an unnamed one */
	const char *folder;  /* absolute: where an unnamed one has its file; NULL: it has none */
	const char *socket;  /* absolute */
	const char *pidfile; /* absolute; NULL: none */
	const char *log;     /* absolute; NULL: none */
	bool shm;            /* the object is no file that persists */
	bool anonymous;      /* it has no name, either: nobody else can open it */
	bool daemonize, truncate, allocate, legacy, verbose;
	bool check, version;   /* nothing is served, the command line is checked */
	bool sized;            /* -m was given */
	bool grow;             /* an object smaller than that is enlarged */
	bool shm_by_m;         /* by QEMU's name: -m had the name of the object, in place of -M */
	bool pidfile_optional; /* nobody asked for it: goes on without, where it fails */
	const char *group;     /* name or number; NULL: the default, if there is one */
	uint64_t size;         /* bytes */
	unsigned int vectors;
	unsigned int sync; /* seconds; 0: never */
};

/* The letter to type for an option of ours: by QEMU's name, its own. */
int typed(int letter);

/* What to type before an option that QEMU's server lacks. */
const char *own_name(void);

extern const char version_text[];

/* Writes to stdout and ends the program: successfully, if all of it could be written. */
__attribute__((noreturn)) void print_and_exit(const char *text);

/*
 * The name that people know an option of ours by, in all its forms; NULL: there is no such option.
 * By QEMU's name it is the letter that is typed there.
 */
const char *option_name(int letter);

/*
 * Reads the decimal digits that text begins with; *end is what follows them. More than 64 bits hold
 * become UINT64_MAX. Returns false where there are none.
 */
bool digits_parse(const char *text, uint64_t *number, char **end);

/* The absolute form of a path, which the caller frees; NULL with errno. */
char *path_absolute(const char *path);

/*
 * Whether QEMU can map so many bytes (hazard 7). If not, *why gets the reason and the remedy; the
 * caller frees it.
 */
bool size_fits(const struct options *o, uint64_t bytes, char **why);

/* Whether the server is to have no memory. */
bool memoryless(const struct options *o);

/*
 * Fills in the options; a mistake ends the program. Relative paths in argv become absolute, so that
 * a restart in place finds the same files.
 */
void options_parse(struct options *o, int argc, char **argv);

#endif
