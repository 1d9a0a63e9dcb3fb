#!/usr/bin/env bats
# tests/includes, which make lint runs: rooms include what is below them, and nothing else, and are
# not too large.
# shellcheck disable=SC2154 # what run sets

load lib/common

# Writes a file whose lines are #include of the headers named, and nothing else.
room() { # FILE [HEADER...]
	mkdir -p "$DIR/$(dirname "$1")"
	printf '#include "%s"\n' "${@:2}" >"$DIR/$1"
}

# A house that is in order.
setup_more() {
	mkdir server
	echo '#include <stddef.h>' | tee send_scm.h >server/log.h
	room send_scm.c send_scm.h
	room tm_ivshmem_server.c server/takeover.h server/log.h send_scm.h
	room server/log.c server/log.h
	room server/mesh.h server/ledger.h send_scm.h
	room server/mesh.c server/mesh.h server/log.h
	room client/run.h client/mesh.h
	room client/ivshmem_client.c client/run.h client/mesh.h send_scm.h
	room build/any.c server/mesh.h
	[ "$("$SOURCE_DIR/tests/includes" "$DIR" 2>&1)" = '' ]
}

# With one file more, or another one, it says which is wrong.
refuses() { # FILE HEADER...
	room "$@"
	run "$SOURCE_DIR/tests/includes" "$DIR"
	[[ $status != 0 && $output == *"./$1"* && ${#lines[@]} = 1 ]] || no "$*: $output"
	rm "$1"
}

@test "what goes against the order is refused" {
	refuses server/log.h server/mesh.h
	refuses server/ledger.h server/mesh.h # a circle
	refuses server/ledger.c server/log.h server/ledger.h server/mesh.h
	refuses server/takeover.h server/takeover.h
	refuses server/store.c server/none.h
	refuses send_scm.h server/log.h
}

@test "a file is no room, or names a header by another way" {
	refuses server/util.h send_scm.h
	refuses server/sub/log.h send_scm.h
	refuses server/store.c log.h
	refuses server/store.c ../server/log.h
	refuses client/util.c send_scm.h
}

@test "the server's rooms and the client's know nothing of each other" {
	refuses server/store.c client/mesh.h
	refuses client/run.c server/mesh.h
	refuses tm_ivshmem_server.c client/mesh.h
}

@test "a file of more than 700 lines is refused" {
	many() { # LINES FILE
		yes '// a line' | head -n "$1" >"$DIR/$2"
		run "$SOURCE_DIR/tests/includes" "$DIR"
	}
	many 700 server/store.c
	[ "$status" = 0 ] || no "$output"
	many 701 server/store.c
	[[ $status != 0 && $output == *'./server/store.c has more than 700 lines'* ]] || no "$output"
}
