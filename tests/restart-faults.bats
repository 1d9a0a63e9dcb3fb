#!/usr/bin/env bats
# Restart in place, and all that can go wrong: a flush that is under way, system calls that fail,
# states that nobody can read.
# shellcheck disable=SC2016,SC2030,SC2031,SC2034,SC2059,SC2119,SC2153 # each test is a shell of its own

load lib/restart

# --- flushing

@test "a flush that is under way is waited for by the new image" {
	need_strace
	WRAP=(strace -D -f -o "$WORK/trace" -e trace=fdatasync -e inject=fdatasync:delay_enter=3000000)
	start -f mem
	peer
	served # and left: a flush begins
	eventually pgrep -P "$PID" >/dev/null
	served # another is to follow
	restart
	eventually no_child
	[ "$(grep -c 'fdatasync(' "$WORK/trace")" -ge 2 ]
	hasnt "$LOG" "cannot flush"
	stop
}

@test "a flush that fails is reported by the new image" {
	need_strace
	WRAP=(strace -D -f -o "$WORK/trace" -e trace=fdatasync
		-e inject=fdatasync:error=EIO:delay_enter=3000000)
	start -f mem
	peer
	greeting "$SOCK" 4 >/dev/null
	eventually pgrep -P "$PID" >/dev/null
	hup_until "restarted in place"
	eventually grep -q 'cannot flush' "$LOG"
	eventually no_child
	has "$LOG" "cannot flush $DIR/mem to disk: Input/output error"
	stop
}

@test "a flush that ends between the images leaves no zombie" {
	need_strace
	WRAP=(strace -D -f -o "$WORK/trace" -e trace=fdatasync -e "inject=fdatasync:$HELD")
	before_original 'if ($purpose eq "resume") {
			open(my $here, ">", "'"$WORK"'/resuming");
			open(my $children, "<", "/proc/$$/task/$$/children");
			my $child = 0 + <$children> or exit;
			# It is a zombie now, and so it stays for the next image.
			for (1 .. 1000) {
				open(my $stat, "<", "/proc/$child/stat");
				last if <$stat> =~ /\) Z/;
				select(undef, undef, undef, 0.05);
			}
		}'
	mv "$PROGRAM" "$WORK/slow"
	cp "$ORIGINAL" "$PROGRAM"
	start -f mem
	replace "$WORK/slow"
	peer
	greeting "$SOCK" 4 >/dev/null
	eventually pgrep -P "$PID" >/dev/null
	kill -s HUP "$PID"
	eventually test -e "$WORK/resuming"
	let_go "$PID" # and with it the flush
	eventually logged_more "restarted in place" 0
	eventually no_child
	hasnt "$LOG" "cannot flush"
	served
	stop
}

# --- system calls that fail

@test "where the program cannot be tried or executed, the server goes on" {
	need_strace
	start -f mem
	peer
	inject clone:error=EAGAIN
	no_restart "cannot start a process" "temporarily unavailable"
	trace_end
	restart
	# The child succeeds, and then the server does not.
	inject execve:error=ENOMEM
	no_restart "cannot execute $PROGRAM, going on without a restart: Cannot allocate memory"
	trace_end
	restart
	stop
}

@test "a supervisor is told that the program could not be executed" {
	need_strace
	supervise
	start -f mem
	peer
	inject execve:error=ENOMEM
	no_restart "cannot execute $PROGRAM"
	trace_end
	stop
	supervised "READY=1" "RELOADING=1" "READY=1" "STOPPING=1"
}

@test "a supervisor is told that the program could not be tried" {
	need_strace
	supervise
	start -f mem
	peer
	inject clone:error=EAGAIN
	no_restart "cannot start a process"
	trace_end
	stop
	supervised "READY=1" "RELOADING=1" "READY=1" "STOPPING=1"
}

# Once it has been waited for, a process's number may be another's.
@test "no process is killed that has been waited for" {
	local how pid
	need_strace
	start -f mem
	peer
	for how in fails leaves; do
		trace -o "$WORK/trace" -e trace=wait4,waitid,kill
		if [ "$how" = fails ]; then
			printf '#!/bin/sh\nexit 3\n' >"$PROGRAM.new"
			chmod 755 "$PROGRAM.new"
			mv -f "$PROGRAM.new" "$PROGRAM"
			no_restart "ended with status 3"
		else
			# What the trial has started must not stay.
			before_original "if (\$purpose eq 'check') { system('sleep 987 & echo \$! >$WORK/left') }"
			hup_until "restarted in place"
			eventually ended "$(<"$WORK/left")"
			replace "$ORIGINAL"
		fi
		trace_end
		grep -q kill "$WORK/trace" || no "what a trial leaves behind is not killed" "$(<"$WORK/trace")"
		while read -r pid; do
			! sed "0,/^wait4(.* = $pid\$/d" "$WORK/trace" | grep -qE "kill\(-?$pid," ||
				no "$pid is killed when it has been waited for" "$(<"$WORK/trace")"
		done < <(sed -nE 's/^wait4\(.* = ([0-9]+)$/\1/p' "$WORK/trace")
	done
	stop
}

# --- ledgers that make no sense

# The child could take over, and then the server cannot: all that is left is to say why.
@test "a program that fails when it is too late ends the server" {
	local status=0
	start -f mem
	peer
	before_original 'push @ARGV, "--colour" if $purpose eq "resume"'
	kill -s HUP "$PID"
	wait "$PID" || status=$?
	is "status of the server" "$status" 2
	has "$LOG" "unknown or ambiguous option '--colour'"
}

# Whether a ledger would be taken over: status 86, or 1 and a line that says why.
check() { # FILE [ARGUMENT...]
	STATUS=0
	TM_IVSHMEM_SERVER_STATE="check 9 0" "$ORIGINAL" -f "$DIR/mem" "${@:2}" 9<"$1" >"$WORK/out" 2>"$WORK/err" 3>&- ||
		STATUS=$?
}

refuses() { # TEXT [ARGUMENT...]
	check "$WORK/ledger" "${@:2}"
	is "status: $(<"$WORK/err")" "$STATUS" 1
	has "$WORK/err" "cannot take over: " "$1"
	is "lines" "$(wc -l <"$WORK/err")" 1
}

@test "what is no ledger, or another's, is refused" {
	local fd
	start -f mem
	peer
	for fd in "/proc/$PID/fd"/*; do
		[[ $(readlink "$fd") != /memfd:* ]] || cp "$fd" "$WORK/real"
	done
	check "$WORK/real"
	is "status of a real ledger: $(<"$WORK/err")" "$STATUS" 86
	is "what it said" "$(<"$WORK/err")" ''
	: >"$WORK/ledger"
	refuses "no ledger of peers"
	printf 'listener 5\nstore 3\njoins 1\n' >"$WORK/ledger" # as before version 1.1
	refuses "no ledger of peers"
	head -c 2M /dev/zero >"$WORK/ledger"
	refuses "no ledger of peers"
	head -c 2M /dev/urandom >"$WORK/ledger"
	refuses "no ledger of peers"
	cp "$WORK/real" "$WORK/ledger"
	truncate -s -1 "$WORK/ledger"
	refuses "no ledger of peers"
	cp "$WORK/real" "$WORK/ledger"
	refuses "the nodes have 1 vector, this program's options say 5" -n 5
	refuses "the nodes have 1 vector, this program's options say 1, -L" -L
	# The layout's number, and that of vectors.
	cp "$WORK/real" "$WORK/ledger"
	printf '\377' | dd of="$WORK/ledger" bs=1 seek=8 conv=notrunc status=none
	refuses "no ledger of peers"
	cp "$WORK/real" "$WORK/ledger"
	printf '\377' | dd of="$WORK/ledger" bs=1 seek=16 conv=notrunc status=none
	refuses "no ledger of peers"
	TM_IVSHMEM_SERVER_STATE="check 999 0" try "$ORIGINAL" -f mem
	is "status without a ledger" "$STATUS" 1
	check "$DIR"
	is "status of a folder" "$STATUS" 1
	stop
}
