# shellcheck shell=bash disable=SC2016,SC2153
# What the tests of the restart in place share: each has a server of its own on disk, to be replaced,
# and says how a restart, or the refusal of one, must look from outside.

load lib/common

setup_more() {
	mkdir "$WORK/bin"
	ORIGINAL=$WORK/bin/original
	PROGRAM=$WORK/bin/tm_ivshmem_server
	cp "$SERVER" "$ORIGINAL"
	cp "$SERVER" "$PROGRAM"
	SERVER=$PROGRAM
	VERSION=$("$PROGRAM" --version)
	VERSION=${VERSION##* }
	# No other version is as long, and all of its digits differ.
	NEWER=$(tr 0-9 1-90 <<<"$VERSION")
}

# --- the program on disk

# Puts another program into the place of the one that runs, as a package manager would.
replace() { # FILE
	cp "$1" "$PROGRAM.new"
	mv -f "$PROGRAM.new" "$PROGRAM"
}

# A build that is the same but for its version.
newer() { # FILE
	perl -0777 -pe "s/(server|version) \\Q$VERSION\\E/\$1 $NEWER/g" "$ORIGINAL" >"$1"
	chmod 755 "$1"
	is "version of the newer build" "$("$1" --version)" "tm_ivshmem_server $NEWER"
}

# A program that does something first, and then is the original: Perl code, which has the purpose
# (check or resume) in $purpose, and arguments for the original in @ARGV.
before_original() { # CODE
	cat >"$PROGRAM.new" <<-END
		#!$(command -v perl)
		use strict;
		use warnings;
		\$^F = 1 << 20; # no descriptor gets close-on-exec
		my (\$purpose, \$fd) = split ' ', \$ENV{TM_IVSHMEM_SERVER_STATE};
		$1;
		exec { '$ORIGINAL' } \$0, @ARGV or die "exec: \$!\n";
	END
	chmod 755 "$PROGRAM.new"
	mv -f "$PROGRAM.new" "$PROGRAM"
}

# --- restarts

times_logged() { # TEXT
	grep -cF -e "$1" "$LOG" || true
}

logged_more() { # TEXT NUMBER
	[ "$(times_logged "$1")" -gt "$2" ]
}

logged_more_or_ended() { # TEXT NUMBER
	logged_more "$@" || ! alive "$PID"
}

# Sends HUP and waits for a line in the log that was not there before.
hup_until() { # TEXT
	local before
	before=$(times_logged "$1")
	kill -s HUP "$PID"
	eventually logged_more_or_ended "$1" "$before"
	logged_more "$1" "$before" || no "the server has ended without '$1'"
}

# A restart that succeeds; the log names the version, and a newcomer is served.
restart() { # [VERSION]
	hup_until "restarted in place, version ${1:-$VERSION}, "
	served
}

# The restart does not take place, and the log says why; nobody has noticed anything.
no_restart() { # TEXT...
	local before heard descriptors
	before=$(times_logged "restarted in place")
	heard=$(cat "$HEARD")
	descriptors=$(descriptors)
	hup_until "going on without"
	# The child that has tried may have said why, and the server that it goes on.
	eventually no_child
	has "$LOG" "$@"
	is "restarts" "$(times_logged "restarted in place")" "$before"
	eventually descriptors_are "$descriptors" # that is seen to after it has been said
	is "what the client heard" "$(cat "$HEARD")" "$heard"
	served
}

# A newcomer is greeted, and whoever was there hears of it. His ID is one that was not heard before.
served() {
	local id newcomer
	: >"$WORK/newcomer"
	perl -e "$PEER" "$SOCK" >"$WORK/newcomer" 2>&1 3>&- &
	newcomer=$!
	PIDS+=("$newcomer")
	eventually greeted_or_ended "$WORK/newcomer"
	id=$(awk '/ fd / { exit } { id = $1 } END { print id }' "$WORK/newcomer")
	[ -n "$id" ] || no "a newcomer is not greeted:" "$(<"$WORK/newcomer")"
	eventually grep -q "^$id fd " "$HEARD" # who goes before others have heard of him was never there
	kill "$newcomer"
	eventually grep -qx "$id" "$HEARD"
	alive "$PEER_PID"
}

# What the server has open: number, flags and target; its own two, which have no use outside, apart.
descriptors() {
	local fd
	for fd in "/proc/$PID/fd"/*; do
		printf '%s %s %s\n' "${fd##*/}" "$(awk '/^flags/ { print $2 }' "/proc/$PID/fdinfo/${fd##*/}")" \
			"$(readlink "$fd")"
	done | grep -v -e signalfd -e /dev/null | sort -n
}

descriptors_are() { # DESCRIPTORS
	[ "$(descriptors)" = "$1" ]
}

no_child() {
	[ -z "$(ps -o pid= --ppid "$PID")" ]
}

# The server is a program that waits: one by Perl.
perl_runs() { # [PID]
	[[ $(readlink "/proc/${1:-$PID}/exe") == *perl* ]]
}

# The server that runs is the file that stands at the path.
runs() { # PATH
	[ "$(stat -L -c %d:%i "/proc/$PID/exe")" = "$(stat -L -c %d:%i "$1")" ]
}

# In the background, where the log is not ours to read: another copy of the program is executed.
restart_daemon() {
	replace "$ORIGINAL"
	kill -s HUP "$PID"
	eventually runs "$PROGRAM"
	served
}

# Has strace look at the server, until trace_end.
trace() { # ARGUMENT...
	rm -f "$WORK/strace" # what one before has said
	strace -p "$PID" "$@" 2>"$WORK/strace" 3>&- &
	STRACE=$!
	PIDS+=("$STRACE")
	eventually grep -qs attached "$WORK/strace"
}

# Makes a system call of the server fail, until trace_end: "NAME:error=..." as strace has it.
inject() { # WHAT
	trace -o /dev/null -e "trace=${1%%:*}" -e "inject=$1"
}

trace_end() {
	kill -s INT "$STRACE"
	wait "$STRACE" || true
}

# --- a supervisor

# Hears what the server says as systemd would, but for what is to be stored.
supervise() {
	export NOTIFY_SOCKET=$WORK/notify
	perl -MSocket -e '
		$| = 1;
		socket(my $s, PF_UNIX, SOCK_DGRAM, 0) or die;
		bind($s, pack_sockaddr_un($ARGV[0])) or die;
		while (defined recv($s, my $text, 4096, 0)) { next if $text =~ /^FDSTORE/; $text =~ tr/\n/ /; print "$text\n" }' \
		"$NOTIFY_SOCKET" >"$WORK/notified" 2>&1 3>&- &
	PIDS+=("$!")
	eventually test -S "$NOTIFY_SOCKET"
}

notifications_are() { # NUMBER
	[ "$(wc -l <"$WORK/notified")" -ge "$1" ]
}

# It has heard these states, with a reload the time that systemd wants, and when all is ready the status.
supervised() { # STATE...
	eventually notifications_are "$#"
	is "what the supervisor heard" "$(sed -E 's/(RELOADING=1) MONOTONIC_USEC=[0-9]+$/\1/
		s/(READY=1) STATUS=serving .*, [0-9]+ nodes?$/\1/' "$WORK/notified")" \
		"$(printf '%s\n' "$@")"
}
