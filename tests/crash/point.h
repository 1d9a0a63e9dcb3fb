/*
 * Included before the server's sources, in the build that crash.t runs: wherever the server puts
 * two stores to its ledger into order, and behind any message of a batch, its process can end
 * (point.c).
 */
#define _GNU_SOURCE
#include <sys/socket.h>

void crash_point(void);

/* As sendmmsg, with a point behind each message that has gone out. */
int crash_sendmmsg(int sock, struct mmsghdr *messages, unsigned int n, int flags);

#define ledger_order() crash_point()
#define sendmmsg       crash_sendmmsg
