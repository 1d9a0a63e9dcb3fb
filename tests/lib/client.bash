# shellcheck shell=bash
# The client for the command line, in tests, and a server that plays a script to it.

setup_more() {
	CLIENT=$SOURCE_DIR/client/ivshmem_client
	[ -x "$CLIENT" ] || no "$CLIENT is missing: make builds it"
}

# Runs the client in the background; what it says is in $WORK/NAME. Waits until that is its ID, or
# the end.
client() { # NAME ARGUMENT...
	rm -f "$WORK/$1" # what one before has said
	"$CLIENT" "${@:2}" >"$WORK/$1" 2>&1 3>&- &
	CLIENT_PID=$!
	PIDS+=("$CLIENT_PID")
	eventually client_said "$WORK/$1"
	grep -q '^id' "$WORK/$1"
}

client_said() { # FILE
	grep -qs '^id' "$1" || ended "$CLIENT_PID"
}

# Plays messages to the next client, instead of a server; see lib/script.py.
plays() { # WORD...
	need_tool python3
	[ -z "${SCRIPT_PID-}" ] || kill "$SCRIPT_PID" 2>/dev/null || true
	rm -f "$SOCK"
	python3 "$BATS_TEST_DIRNAME/lib/script.py" "$SOCK" "$@" 3>&- &
	SCRIPT_PID=$!
	PIDS+=("$SCRIPT_PID")
	eventually test -S "$SOCK"
}
