/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * check: what a start would say of the options, without a start
 *
 * For --check, and --version behind other options. Owns nothing, and touches nothing on disk.
 */
#ifndef SERVER_CHECK_H
#define SERVER_CHECK_H

#include "server/options.h"

/*
 * Ends the program over options that have been parsed and ask for no start, with the status that a
 * start would have. Where a supervisor says which process is its server (MAINPID), says whether
 * that was started with others.
 */
__attribute__((noreturn)) void check_answer(const struct options *o);

#endif
