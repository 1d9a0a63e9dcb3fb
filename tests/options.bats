#!/usr/bin/env bats
# The command line: every option in each of its forms, every mistake in it.
# shellcheck disable=SC2030,SC2031,SC2034,SC2119,SC2153,SC2314 # each test is a shell of its own

load lib/common

# The options as the parser has them, one a line: letter, name, whether it takes a value. Of those
# without a letter, a list of its own.
setup_more() {
	OPTIONS=$(grep -o -E "\{\"[a-z]+\", [a-z]+_argument, NULL, '.'\}" "$SOURCE_DIR/server/options.c" |
		sed -E "s/.\"(.+)\", (.+)_argument, NULL, '(.)'./\3 \1 \2/" | sort -u)
	[ "$(wc -l <<<"$OPTIONS")" -ge 15 ]
	WORDS=$(sed -nE 's/.*\{"([a-z-]+)", ([a-z]+)_argument, NULL, [A-Z_]+\},/\1 \2/p' \
		"$SOURCE_DIR/server/options.c" | sort -u)
	[ "$(wc -l <<<"$WORDS")" -ge 2 ]
}

# --- mistakes

@test "unknown options, ambiguous ones, and arguments that are none" {
	misuse "'-x'" unknown -- -x
	misuse "'-x'" unknown -- -vx
	misuse "'-x'" unknown -- -L -xv
	misuse "'-x'" unknown -- --legacy -xv
	misuse "'-x'" unknown -- --verbose -x
	misuse "'-9'" unknown -- -9
	misuse "'-:'" unknown -- -:
	misuse "'-?'" unknown -- '-?'
	misuse "'--frobnicate'" unknown -- --frobnicate
	misuse "'--frobnicate=1'" unknown -- --frobnicate=1
	misuse "'--frobnicate'" unknown -- -v --frobnicate -L
	misuse "'--=1'" -- --=1
	misuse "'--s'" ambiguous -- --s x
	misuse "'--ve'" ambiguous -- --ve
	misuse "'--'" -- -- --
	misuse "'store'" argument -- store
	misuse "'store'" argument -- -v store -L
	misuse "'-v'" argument -- -- -v
	misuse "'-'" argument -- -
	misuse "''" argument -- ''
}

@test "an option without the value that it takes" {
	local letter name takes
	while read -r letter name takes; do
		[ "$takes" = required ] || continue
		misuse "-$letter/--$name needs a value" -- "-$letter"
		misuse "-$letter/--$name needs a value" -- "--$name"
		misuse "-$letter/--$name needs a value" -- "-v$letter"
		misuse "-$letter/--$name needs a value" -- -L "--$name"
	done <<<"$OPTIONS"
	while read -r name takes; do
		[ "$takes" = required ] || continue
		misuse ": --$name needs a value" -- "--$name"
	done <<<"$WORDS"
}

@test "a value for an option that takes none" {
	local letter name takes
	while read -r letter name takes; do
		[ "$takes" = no ] || continue
		misuse "-$letter/--$name takes no value" "'--$name=1'" -- "--$name=1"
		misuse "-$letter/--$name takes no value" "'--$name='" -- "--$name="
	done <<<"$OPTIONS"
	while read -r name takes; do
		[ "$takes" = no ] || continue
		misuse ": --$name takes no value" "'--$name=1'" -- "--$name=1"
	done <<<"$WORDS"
}

@test "an empty value, for each option that takes one" {
	local letter name takes
	while read -r letter name takes; do
		[ "$takes" = required ] || continue
		misuse "-$letter/--$name ''" -- "-$letter" ''
		misuse "-$letter/--$name ''" -- "--$name="
		misuse "-$letter/--$name ''" -- "--$name" ''
	done <<<"$OPTIONS"
	while read -r name takes; do
		[ "$takes" = required ] || continue
		misuse ": --$name ''" -- "--$name" ''
	done <<<"$WORDS"
}

@test "sizes that are none" {
	local size
	for size in K 1.5G -1 +1 ' 1' '1 ' 0x10 1kb 1KB 1KiB 1KK 1km 1M1 M1 1P 1p one 1e3 1,0 '1 M' ٣; do
		misuse "-m/--size '$size'" 'K, M, G' -- -m "$size"
		misuse "-m/--size '$size'" 'K, M, G' -- --size="$size"
	done
	# A line stays one line, and a terminal stays sane, whatever stands in the value.
	misuse "-m/--size '1?'" 'K, M, G' -- -m $'1\n'
	misuse "-m/--size '1?'" 'K, M, G' -- -m $'1\t'
	misuse "-m/--size '?[1m1'" 'K, M, G' -- -m $'\e[1m1'
	misuse "'-?'" -- $'-\a'
}

@test "sizes beyond what a file can hold" {
	local size
	for size in 99999999999999999999 99999999999999999999K 18446744073709551616K 18446744073709551615 \
		18446744073709551615T 18014398509481984K 8388608T 8589934592G 8796093022208 \
		99999999999999999999999999999999999999999999999999999999999999; do
		misuse "-m/--size '$size'" 'more than' -- -m "$size"
	done
}

@test "sizes that QEMU cannot map: the nearest that it can are named" {
	misuse "-m/--size '0'" 'give a size' -- -m 0
	misuse "-m/--size '00'" -- -m 00
	misuse "-m/--size '0K'" -- -m 0K
	misuse "-m/--size '0T'" -- -m 0T
	misuse "-m/--size '3'" 'power of two' 2M 4M -- -m 3
	misuse "-m/--size '3M'" 'power of two' 2M 4M -- -m 3M
	misuse "-m/--size '5K'" 'power of two' 4K 8K -- -m 5K
	misuse "-m/--size '1000'" 'power of two' 512M 1G -- -m 1000
	misuse "-m/--size '1025K'" 'power of two' 1M 2M -- -m 1025K
	misuse "-m/--size '1000G'" 'power of two' 512G 1T -- -m 1000G
	misuse "-m/--size '4194305T'" 'power of two' 4194304T -- -m 4194305T
	misuse "-m/--size '8388607T'" 'the nearest is 4194304T' -- -m 8388607T # a file has 2^63 - 1
	misuse "-m/--size '1K'" page 4K -- -m 1K
	misuse "-m/--size '2K'" page 4K -- -m 2K
	misuse "-m/--size '1K'" page 4K -- -L -m 1K
	misuse "-m/--size '5K'" page 4K 8K -- -L -m 5K
	misuse "-m/--size '5K'" page 4K 8K -- -m 5K --legacy
}

@test "vectors that are none" {
	local n
	for n in 2049 -1 1x x +1 ' 1' '1 ' 1K 0x1 1.0 99999999999 99999999999999999999 4294967297 \
		18446744073709551617; do
		misuse "-n/--vectors '$n'" 2048 -- -n "$n"
		misuse "-n/--vectors '$n'" 2048 -- --vectors="$n"
	done
}

@test "groups that are none" {
	local group
	for group in no-such-group -1 0x0 '0 ' 1x 4294967295 4294967296 18446744073709551616; do
		misuse "-g/--group '$group'" group -- -g "$group"
		misuse "-g/--group '$group'" group -- --group="$group"
	done
}

@test "seconds between flushes that are none" {
	local n
	for n in 0 -1 x 1s 1.5 86401 4294967297 99999999999999999999; do
		misuse "-y/--sync '$n'" 86400 -- -f store -y "$n"
		misuse "-y/--sync '$n'" 86400 -- -f store --sync="$n"
	done
}

@test "options that exclude or need each other" {
	misuse -f/--file -s/--shm -- -f store -s "$SHM"
	misuse -f/--file -s/--shm -- -s "$SHM" -f store
	misuse -f/--file -s/--shm -- --shm="$SHM" --file=store -m 1
	misuse -t/--truncate -m/--size -- -t
	misuse -t/--truncate -m/--size -- -f store --truncate
	misuse -t/--truncate -m/--size -- -L -t -m 0
	misuse -a/--allocate -m/--size -- -L --allocate -m 0
	misuse 'f/--file: there is no memory' '-m/--size 0' -- -L -f store -m 0
	misuse 's/--shm: there is no memory' -- -m 0 -s "$SHM" -L
	misuse 'y/--sync: there is no memory' -- -m 0 -y 5 -L
	misuse 'y/--sync: there is no memory' -- -m 0 -y 5 -L --default-file store
	misuse -y/--sync -f/--file -- -y 5
	misuse -y/--sync -f/--file -- -s "$SHM" --sync=5
	misuse -y/--sync -f/--file -- -A -y 5
	misuse -A/--anonymous -f/--file "'store'" -- -A -f store
	misuse -A/--anonymous -s/--shm "'$SHM'" -- -s "$SHM" --anonymous=.
	misuse -A/--anonymous -t/--truncate 'always new' -- -A -t -m 4M
	misuse -A/--anonymous -t/--truncate -- --truncate --anonymous -m 4M
	misuse -A/--anonymous -m/--size -- -L -A -m 0
	misuse "'/dev/shm'" '-A/--anonymous takes a folder without a space' -- -A /dev/shm
	misuse "-A/--anonymous ''" -- --anonymous=
	misuse "-i/--pidfile '$DIR/both'" -- -f both -i both
	misuse "-i/--pidfile '/dev/shm/$SHM'" -- -s "$SHM" -i "/dev/shm/$SHM"
}

@test "a value that is longer than a line of the log leaves the remedy in it" {
	local long
	long=$(printf '9%.0s' {1..5000})
	misuse -p/--socket shorter -- -p "$long"
	misuse -s/--shm 'goes with -f' -- -s "$long"
	misuse -m/--size 'K, M, G' -- -m "x$long"
	misuse -m/--size 'give less' -- -m "$long"
	misuse -n/--vectors 2048 -- -n "$long"
	misuse -g/--group 'no such group' -- -g "$long"
	misuse -y/--sync 86400 -- -f store -y "$long"
	misuse argument -- "$long"
	misuse option -- "--$long"
	misuse 'takes no value' -- "--truncate=$long"
}

@test "names of shared memory objects that are none" {
	local name long
	long=$(printf 'n%.0s' {1..256})
	for name in / a/b /a/b a/ // . .. "$long" ../shm /dev/shm/x; do
		misuse "-s/--shm '$name'" -f -- -s "$name"
	done
}

@test "paths of sockets that are too long" {
	local long folder
	# 107 bytes fit. A relative path counts with the folder that it is relative to.
	long=/$(printf 's%.0s' {1..107})
	misuse -p/--socket "$long" 107 108 -- -p "$long"
	misuse -p/--socket 107 -- --socket="$long$long"
	misuse -p/--socket "$DIR" 107 -- -p "$(printf 's%.0s' {1..107})"
	folder=$(printf 'f%.0s' {1..100})
	mkdir "$folder"
	cd "$folder"
	misuse -p/--socket "$folder/s" 107 -- -p s
}

@test "a relative path while the working directory is gone" {
	mkdir gone
	cd gone
	rmdir ../gone
	misuse "-f/--file 'store'" "'/'" "No such file" -- -f store
	misuse "-p/--socket 'sock'" "'/'" -- -p sock
	misuse "-i/--pidfile 'pid'" "'/'" -- -i pid
	misuse "-A/--anonymous 'folder'" "'/'" -- -Afolder
	serves -- -f "$DIR/store"
}

# --- help and version

@test "--help goes to stdout and ends well" {
	local option
	for option in -h --help --he; do
		try "$SERVER" "$option"
		is status "$STATUS" 0
		is stderr "$(cat "$WORK/err")" ''
		has "$WORK/out" Usage: --socket /tmp/ivshmem_socket
		is "lines too long for a terminal" "$(awk 'length > 100' "$WORK/out")" ''
	done
}

@test "--version goes to stdout and ends well" {
	local option version
	version=$(sed -n 's/^VERSION = //p' "$SOURCE_DIR/Makefile")
	[ -n "$version" ]
	for option in -V --version --vers; do
		try "$SERVER" "$option"
		is status "$STATUS" 0
		is stderr "$(cat "$WORK/err")" ''
		is version "$(cat "$WORK/out")" "tm_ivshmem_server $version"
	done
}

@test "--help and --version start nothing, whatever stands before them" {
	try "$SERVER" -p "$SOCK" -s "$SHM" -f store -m 4 --help
	is status "$STATUS" 0
	try "$SERVER" -p "$SOCK" -s "$SHM" -V
	is status "$STATUS" 0
	is 'what stands here' "$(find "$DIR" "/dev/shm/$SHM" 2>/dev/null)" "$DIR"
}

@test "--help and --version fail where nothing can be written" {
	local option status
	for option in --help --version; do
		status=0
		"$SERVER" "$option" >/dev/full 2>"$WORK/err" || status=$?
		is status "$status" 1
		is 'lines on stderr' "$(wc -l <"$WORK/err")" 1
		has "$WORK/err" 'standard output' 'No space left on device'
	done
}

@test "--help lists exactly the options that the parser takes" {
	local letter name takes listed taken
	is 'those without a letter' \
		"$("$SERVER" --help | sed -nE 's/^      --([a-z-]+)( PATH)?  .*/\1\2/p' | sort)" \
		"$(sed 's/ required/ PATH/; s/ no$//' <<<"$WORDS")"
	listed=$("$SERVER" --help |
		sed -n -E 's/^  -(.), --([a-z]+)(\[=[A-Z]+\]| [A-Z].*)?  .*/\1 \2/p' | sort)
	taken=$(cut -d' ' -f1,2 <<<"$OPTIONS")
	is 'options in --help' "$listed" "$taken"
	# Those with a value show what it is.
	while read -r letter name takes; do
		if [ "$takes" = required ]; then
			"$SERVER" --help | grep -qE "^  -$letter, --$name [A-Z]"
		elif [ "$takes" = optional ]; then
			"$SERVER" --help | grep -qE "^  -$letter, --$name\[=[A-Z]+\]  "
		else
			"$SERVER" --help | grep -qE "^  -$letter, --$name  "
		fi
	done <<<"$OPTIONS"
	# No letter is taken in secret: a second mistake ends each of these at once.
	taken=
	for letter in {a..z} {A..Z} {0..9}; do
		try "$SERVER" -p "$SOCK" "-$letter" --frobnicate --frobnicate
		if [ "$STATUS" = 0 ] || ! grep -qF "unknown option '-$letter'" "$WORK/err"; then
			taken+=$letter$'\n'
		fi
	done
	is 'letters taken' "$(sort <<<"${taken%$'\n'}")" "$(cut -d' ' -f1 <<<"$OPTIONS")"
}

# --- what a start would say, without one

# What a start says of a command line, --check says, wherever it stands, and --version behind it.
checks() { # ARGUMENT...
	local before wanted
	try "$SERVER" -p "$SOCK" "$@"
	is "status of: $*: $(<"$WORK/err")" "$STATUS" 2
	wanted=$(<"$WORK/err")
	before=$(state)
	try "$SERVER" -p "$SOCK" "$@" --check
	is "status of --check behind: $*" "$STATUS" 2
	is "what --check says behind: $*" "$(<"$WORK/err")" "$wanted"
	try "$SERVER" --check -p "$SOCK" "$@"
	is "status of --check before: $*" "$STATUS" 2
	is "what --check says before: $*" "$(<"$WORK/err")" "$wanted"
	try "$SERVER" -p "$SOCK" "$@" --version
	is "status of --version behind: $*" "$STATUS" 2
	is "what --version says behind: $*" "$(<"$WORK/err")" "$wanted"
	is "stdout of --version behind: $*" "$(<"$WORK/out")" ''
	is 'what stands here' "$(state)" "$before"
}

@test "--check and a last --version say what a start would say of the command line" {
	checks -m 3G
	checks -g no-such-group
	checks -f store -s "$SHM"
	checks -y 5
	checks -t
	checks store
	checks -L -m 0 -f store
	checks -A -t -m 4M
	checks -f both -i both
	checks -f both -p both
	checks -i both -p both
	checks -n 2049
	checks -x
	checks --frobnicate
	cd "$WORK"
	mkdir gone
	cd gone
	rmdir ../gone
	checks -f store
}

@test "--check says nothing where all is right, and touches nothing" {
	local before
	echo 'something else' >pid
	truncate -s 4M store
	before=$(state)
	passes() { # ARGUMENT...
		try "$SERVER" "$@" --check
		is "status of: $*: $(<"$WORK/err")" "$STATUS" 0
		is "what is said of: $*" "$(cat "$WORK/out" "$WORK/err")" ''
		try "$SERVER" --ch "$@"
		is "status of: $*" "$STATUS" 0
		try "$SERVER" "$@" -V
		is "status of: $*" "$STATUS" 0
		is "stdout of: $*" "$(<"$WORK/out")" "$("$SERVER" --version)"
		is 'what stands here' "$(state)" "$before"
	}
	passes
	passes -d -f store -m 4M -y 5 -p sock -i pid -g 0 -n 2 -a -v
	passes -s "$SHM" -t -m 64K -g root
	passes -L -m 0 -n 0
	passes -A -m 4G
	# What a start finds on disk is another matter.
	passes -f store -m 8M -p "$DIR/missing/sock"
	# It never becomes a server, with what a supervisor passes neither.
	LISTEN_PID=$$ LISTEN_FDS=1 passes -f store
}

@test "--version that is not the last word is printed at once" {
	try "$SERVER" --version -m 3G
	is status "$STATUS" 0
	has "$WORK/out" 'tm_ivshmem_server '
	try "$SERVER" -vV -x
	is status "$STATUS" 0
	try "$SERVER" -m 3G -vV
	is status "$STATUS" 2
	try "$SERVER" -V --check
	is status "$STATUS" 0
	has "$WORK/out" 'tm_ivshmem_server '
}

@test "--check says whether the server that runs has other options" {
	# As a supervisor's reload does.
	same() { # ARGUMENT...
		try env MAINPID="$PID" "$SERVER" "$@" --check
		is "status of: $*" "$STATUS" 0
		is "what is said of: $*" "$(<"$WORK/err")" ''
	}
	other() { # ARGUMENT...
		try env MAINPID="$PID" "$SERVER" --check "$@"
		is "status of: $*" "$STATUS" 0
		said_lines 1 "$@"
		has "$WORK/err" "process $PID was started with other options" 'systemctl restart'
	}
	compared() {
		same -p sock -f store -m 1M -v
		same -v --size=1024K --socket="$DIR/sock" --file="$DIR/store"
		same -p sock --default-file store -m 1 -v -n 1
		other -p sock -f store -m 1M
		other -p sock -f store -v
		other -p sock -f other -m 1M -v
		other -p other -f store -m 1M -v
		other -p sock -s "$SHM" -m 1M -v
		other -p sock -f store -m 1M -v -g 0
		other -p sock -f store -m 1M -v -y 7
		other -p sock -f store -m 1M -v -i pid
		other -p sock -f store -m 1M -v -a
		other -p sock -f store -m 1M -v -n 2
		try env MAINPID="$PID" "$SERVER" --check -p sock -f store -m 1M -x
		is status "$STATUS" 2
	}
	SOCK=sock start -f store -m 1M -v
	compared
	# One that was restarted in place has absolute paths.
	kill -HUP "$PID"
	eventually grep -q 'restarted in place' "$LOG"
	compared
	stop
	# A command line that is no server's of ours, and processes that are none.
	sleep 1000 3>&- &
	PID=$!
	PIDS+=("$PID")
	other -f store
	for PID in 999999999 0 '' x 99999999999999999999; do
		same -f store
	done
}

# --- the file unless something else is said

@test "--default-file is -f where nothing else is said, and nothing where it is" {
	serves "serving $DIR/store, size 2M" -- --default-file store -m 2M
	is 'size' "$(stat -c %s store)" $((2 << 20))
	serves "serving $DIR/store, size 1M" 'shrank' -- --default-file "$DIR/store" -y 5 -t -m 1M
	serves "serving $DIR/other, size 1M" -- --default-file missing -f other
	serves "serving $DIR/other, size 1M" -- -f other --default-file=missing
	serves "serving /dev/shm/$SHM, size 1M" -- --default-file missing -s "$SHM"
	serves 'serving anonymous memory, size 1M' -- --default-file missing -A
	MESSAGES=2 serves 'without memory' -- -L -m 0 --default-file missing
	missing missing
	misuse "-i/--pidfile '$DIR/both'" -- --default-file both -i both
	misuse -y/--sync -- --default-file missing -s "$SHM" -y 5
	# It is absolute when the working directory is another.
	daemonize --default-file store
	kill -HUP "$PID"
	restarted() { tr '\0' ' ' <"/proc/$PID/cmdline" | grep -qF -- "--default-file $DIR/store "; }
	eventually restarted
	stop_daemon
}

# --- what is right

@test "each way to write an option" {
	serves "$DIR/store" 'size 1M' 'vectors 1,' -- -f store
	rm store
	serves "$DIR/store" 'size 2M' 'vectors 1,' -- --file store --size 2 --vectors 1
	rm store
	serves "$DIR/store" 'size 4M' 'vectors 1,' -- --file=store --size=4M --vectors=1
	rm store
	serves "$DIR/store" 'size 8M' 'vectors 1,' -- -fstore -m8 -n1
	rm store
	serves "$DIR/store" 'size 16M' 'vectors 1,' -- -vfstore -tm16 -vn1
	rm store
	serves "$DIR/store" 'size 32M' 'to ID 0' -- --fi=store --si=32 --tr --verb --vec=1 --so="$SOCK"
	rm store
	serves "$SHM" 'size 1M' -- -s "$SHM"
	serves "$SHM" 'size 1M' -- -s "/$SHM"
	serves "$SHM" 'size 1M' -- --shm="$SHM"
	serves "$SHM" 'size 1M' -- --shm "$SHM" --
}

@test "of an option that is given twice the last counts" {
	serves "$DIR/store" 'size 1M' 'vectors 1,' "$DIR/sock" -- -f other -f store -m 4 -m 1 -n 7 -n 1 \
		-p "$DIR/other" -p sock
	missing other
}

@test "sizes in every unit" {
	local size
	while read -r size bytes; do
		rm -f store
		serves -- -f store -m "$size"
		is "bytes of -m $size" "$(stat -c %s store)" "$bytes"
		has "$WORK/greeting" "-1 fd $bytes"
	done <<-END
		4K 4096
		8K 8192
		0004K 4096
		1024K 1048576
		1 1048576
		1M 1048576
		4k 4096
		4m 4194304
		4g 4294967296
		1t 1099511627776
		01 1048576
		512 536870912
		1024 1073741824
		1G 1073741824
		4G 4294967296
		64G 68719476736
		1T 1099511627776
		1048576 1099511627776
	END
}

@test "vectors from none to the most that MSI-X has" {
	local n
	for n in 0 1 2 64 2048; do
		start -s "$SHM" -n "$n"
		has "$LOG" "vectors $n,"
		greeting "$SOCK" $((3 + n)) >"$WORK/greeting"
		is 'the greeting' "$(cat "$WORK/greeting")" "$(
			printf '0\n0\n-1 fd 1048576'
			for ((; n > 0; n--)); do printf '\n0 fd 0'; done
		)"
		stop
	done
}

@test "--legacy: no version message, any size of whole pages, and no memory at all" {
	start -s "$SHM" -L
	is 'the greeting' "$(greeting "$SOCK" 3)" $'0\n-1 fd 1048576\n0 fd 0'
	stop
	rm "/dev/shm/$SHM"
	start -s "$SHM" --legacy -m 12K
	is 'the greeting' "$(greeting "$SOCK" 3)" $'0\n-1 fd 12288\n0 fd 0'
	stop
	start -L -m 0 -n 2
	has "$LOG" 'without memory'
	is 'the greeting' "$(greeting "$SOCK" 3)" $'0\n0 fd 0\n0 fd 0'
	stop
}

@test "--verbose logs every message, otherwise there is one line for each event" {
	start -s "$SHM"
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' "$LOG"
	stop
	is 'lines in the log' "$(wc -l <"$LOG")" 5
	start -s "$SHM" -v
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' "$LOG"
	stop
	is 'messages in the log' "$(grep -c 'to ID 0' "$LOG")" 4
}

@test "what the log says to connect a node with is right for the options" {
	start -s "$SHM" -n 3
	has "$LOG" "-chardev socket,path=$SOCK,id=fam -device ivshmem-doorbell,chardev=fam,vectors=3"
	stop
	start -s "$SHM" -n 3 -p "$DIR/a,b"
	has "$LOG" "-chardev socket,path=$DIR/a,,b,id=fam "
	stop
	start -s "$SHM" -L
	has "$LOG" "-device ivshmem,chardev=fam,size=1M,vectors=1"
	stop
}

@test "what the log says to connect a node with is one word for a shell, whatever the path" {
	local path said
	# shellcheck disable=SC2016 # that nobody executes it, is what is tested
	for path in "it's; touch x" "''" "a b" 'a$(touch x)`touch x`"' 'a\b!' '~' 'x^y=z' plain; do
		start -s "$SHM" -p "$DIR/$path"
		said=$(sed -n 's/.*connect a node: //p' "$LOG")
		eval "set -- $said"
		is 'words' "$#" 4
		is 'the second' "$2" "socket,path=$DIR/$path,id=fam"
		[ "$path" != plain ] || hasnt "$LOG" "'"
		stop
	done
	is 'what is here' "$(ls)" ''
}

@test "with no option: the object and socket that everybody knows" {
	need_namespace
	# In a namespace whose /dev/shm and /tmp are empty.
	mkdir tmp shm
	cp "$SERVER" tmp/tm_ivshmem_server
	# shellcheck disable=SC2016
	unshare -m sh -c 'mount --bind shm /dev/shm && mount --bind tmp /tmp &&
		exec /tmp/tm_ivshmem_server' >"$LOG" 2>&1 3>&- &
	PID=$!
	PIDS+=("$PID")
	ready
	has "$LOG" 'ivshmem, size 1M, vectors 1, socket /tmp/ivshmem_socket'
	is 'what stands there' "$(find tmp shm -printf '%p %y %s\n' | grep ivshmem_s | sort | cut -d' ' -f1,2)" \
		$'tmp/ivshmem_socket s\ntmp/tm_ivshmem_server f'
	is 'size of the object' "$(stat -c %s shm/ivshmem)" 1048576
	stop
	missing tmp/ivshmem_socket
}

@test "descriptors 0 to 2 closed at the start: nothing of ours is taken for them" {
	local closed
	for closed in '<&-' '>&-' '2>&-' '<&- >&-' '<&- 2>&-' '>&- 2>&-' '<&- >&- 2>&-'; do
		rm -f store
		eval '"$SERVER" -v -f store -p "$SOCK" 3>&- '"$closed" '&'
		PID=$!
		PIDS+=("$PID")
		eventually test -S "$SOCK"
		eventually connects
		is "the greeting with $closed" "$(greeting "$SOCK" | sed -n 3p)" '-1 fd 1048576'
		readlink "/proc/$PID/fd/0" "/proc/$PID/fd/1" "/proc/$PID/fd/2" >"$WORK/fds"
		hasnt "$WORK/fds" store socket signalfd
		case $closed in *'<&-'*) is stdin "$(sed -n 1p "$WORK/fds")" /dev/null ;; esac
		case $closed in *'2>&-'*) is stderr "$(sed -n 3p "$WORK/fds")" /dev/null ;; esac
		kill "$PID"
		wait "$PID"
		is "bytes in the store that are not zero, with $closed" "$(tr -d '\0' <store | wc -c)" 0
	done
}

connects() {
	greeting "$SOCK" 0 2>/dev/null
}

@test "the version where nothing can be written, and without /dev/null" {
	STATUS=0
	"$SERVER" --version >&- 2>"$WORK/err" 3>&- || STATUS=$?
	is 'status with stdout closed' "$STATUS" 1
	has "$WORK/err" 'cannot write to standard output'
	need_namespace
	STATUS=0
	unshare -m sh -c 'mount -t tmpfs none /dev && exec "$@"' - "$SERVER" --version >"$WORK/out" 2>&1 3>&- || STATUS=$?
	is 'status without /dev/null' "$STATUS" 0
	has "$WORK/out" 'tm_ivshmem_server '
}

@test "a group that cannot be looked up is no group that does not exist" {
	need_strace
	grep -q '^kvm:' /etc/group || skip "the group kvm is not in /etc/group"
	WRAP=(strace -D -o /dev/null -e trace=openat -P /etc/group --inject=openat:error=EIO)
	refused 'cannot look up the group kvm' 'Input/output error' -- -s "$SHM" -g kvm
	serves 'cannot look up the group kvm' "only the server's own user" -- -s "$SHM"
	misuse 'there is no such group' -- -g no-such-group-at-all
}
