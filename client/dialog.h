/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The dialog, without a command: words of QEMU's ivshmem-client come from standard input, line by
 * line, and what happens in the mesh is shown as it comes; ivshmem_client(1), "DIALOG". On a
 * terminal there is a prompt, and a server that has gone is tried again every second; elsewhere
 * that is an error. By the name of QEMU's client both hold everywhere, and what is shown has the
 * form that programs expect of that one. This room owns standard input and the prompt.
 */
#ifndef CLIENT_DIALOG_H
#define CLIENT_DIALOG_H

struct mesh;

/*
 * Joins the mesh, and obeys the input until it ends or says quit. Returns the status to end
 * with: 1 where a line could not be done and nobody was there to see that. Where there is no
 * server, or it is none of ours, the client ends.
 */
int dialog(struct mesh *m);

#endif
