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
	if [ -n "${SCRIPT_PID-}" ]; then
		kill "$SCRIPT_PID" 2>/dev/null || true
		wait "$SCRIPT_PID" 2>/dev/null || true
	fi
	rm -f "$SOCK" "$WORK/played"*
	python3 "$BATS_TEST_DIRNAME/lib/script.py" "$SOCK" "$WORK/played" "$@" 3>&- &
	SCRIPT_PID=$!
	PIDS+=("$SCRIPT_PID")
	eventually test -S "$SOCK"
}

# Plays messages to a command that ends by itself: see `try`. A silence is what a client hears for 300
# ms, so that the play counts only where nothing else has held up what plays it; if something has, all is
# done again.
try_play() { # STREAM COMMAND...
	local i
	for ((i = 0; i < 50; i++)); do
		# shellcheck disable=SC2086 # one word a message
		plays $1
		try "${@:2}"
		eventually test -e "$WORK/played"
		[ "$(<"$WORK/played")" = late ] || return 0
	done
	no "this machine is too busy to play without pauses: $1"
}
