/*
 * Included before the server's sources, in the build that crash.t runs: wherever the server puts
 * two stores to its ledger into order, its process can end (point.c).
 */
void crash_point(void);

#define ledger_order() crash_point()
